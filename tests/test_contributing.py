"""The worked example of the contributors' page runs, and its table names files that are there."""

import re
from pathlib import Path

import pytest

from optimizer.methods.pruners import PRUNERS
from optimizer.store.results import Store

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "contributing.md").read_text()


@pytest.mark.slow
def test_the_example_is_a_pruner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(PRUNERS, "rows", PRUNERS["magnitude"])  # put back after the test
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(code, "contributing.md", "exec"), {})
    assert "rows" in capsys.readouterr().out
    (result,) = Store().results("fashion-mlp")
    zeros = [1 - layer.nonzero / layer.elements for layer in result.inspection.layers]
    assert zeros == pytest.approx([0.3] * len(zeros), abs=0.02)


def test_files_that_are_named_exist() -> None:
    for path in re.findall(r"`((?:optimizer|pages)/[\w./]+)`", PAGE):
        if "NAME" not in path:
            assert (ROOT / path).exists(), path
