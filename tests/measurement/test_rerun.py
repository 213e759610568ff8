"""A recipe run again gives the same weights and the same predictions: in a fresh process, with a fresh data
folder or with what an earlier run kept, whatever number of threads that process was started with."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from rerun_recipes import KEEP_NOTHING

from optimizer.engine.compile import CACHE_VARIABLE
from optimizer.methods.engines import ENGINES

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def run(home: Path, threads: int, engines: Iterable[str] = ENGINES, **variables: str) -> dict[str, object]:
    variables |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    inherited = {name: value for name, value in os.environ.items() if name != CACHE_VARIABLE}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "rerun_recipes.py"), *engines],
        env=inherited | variables | {"PARETOSCOPE_HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert not done.returncode, done.stderr[-3000:]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    home = tmp_path_factory.mktemp("first")
    return home, run(home, 1)


def differing(one: dict[str, object], other: dict[str, object]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name] and name != "threads"}


def test_other_threads_give_the_same(first: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    """Everything is made anew; but what inductor writes is compiled only where it isn't the same text."""
    home, expected = first
    written = dict.fromkeys(("TORCHINDUCTOR_FX_GRAPH_CACHE", "TORCHINDUCTOR_AUTOGRAD_CACHE"), "0")
    again = run(tmp_path, 2, **written, **{CACHE_VARIABLE: str(home / "inductor")})
    assert (expected["threads"], again["threads"]) == (1, 2)
    assert not differing(expected, again)


def test_what_was_kept_gives_the_same(first: tuple[Path, dict[str, object]]) -> None:
    """Calibration statistics, plans, the fine-tuned network and what was compiled are read."""
    home, expected = first
    again = run(home, 2, set(ENGINES) - {*KEEP_NOTHING})
    left = {name for name in expected if name.endswith(tuple(f"on {engine}" for engine in KEEP_NOTHING))}
    assert left.isdisjoint(again)
    assert not differing({name: value for name, value in expected.items() if name not in left}, again)
