"""The tutorial runs from the first cell to the last, and shows what it promises."""

from os import pathsep
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"
IN_A_FEW_CALLS = """
from quick_timing import A_FEW_CALLS

from optimizer.measurement import latency

latency.EFFORTS[True] = A_FEW_CALLS
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own packages
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat  # here: Jupyter's packages take long to import, for who only collects this too
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", f"{TUTORIAL.parents[1]}{pathsep}{Path(__file__).parent}")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # beside other tests, threads wait more than they work
    notebook = nbformat.read(TUTORIAL, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(IN_A_FEW_CALLS))  # it measures a dozen times
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = {
        kind for cell in notebook.cells for one in cell.get("outputs", ()) for kind in one.get("data", ())
    }
    assert {"text/html", "application/vnd.plotly.v1+json"} <= kinds
    assert (tmp_path / "half-4-bit.onnx").stat().st_size > 1_000
    assert not [cell.source for cell in nbformat.read(TUTORIAL, as_version=4).cells if cell.get("outputs")]
