"""A recipe run again gives the same weights and the same predictions: in a fresh process, with a fresh data
folder or with what an earlier run kept, whatever number of threads that process was started with."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rerun_recipes import KEEP_NOTHING

from optimizer.engine.compile import CACHE_VARIABLE
from optimizer.methods.engines import ENGINES

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
Twice = tuple[Path, dict[str, object], dict[str, object]]


def run(home: Path, threads: int, engines: Iterable[str] = ENGINES, **variables: str) -> dict[str, object]:
    variables |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    variables |= {name: str(home) for name in ("PARETOSCOPE_HOME", "XDG_DATA_HOME")}  # and locks of its own
    inherited = {name: value for name, value in os.environ.items() if name != CACHE_VARIABLE}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "rerun_recipes.py"), *engines],
        env=inherited | variables | {"PYTHONPATH": str(ROOT)},
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
def twice(tmp_path_factory: pytest.TempPathFactory) -> Twice:
    """At the same time, on one thread in the folder that is given back and on two in another: everything
    is made anew; but what inductor writes is compiled only where it isn't the same text."""
    home, other = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    anew = dict.fromkeys(("TORCHINDUCTOR_FX_GRAPH_CACHE", "TORCHINDUCTOR_AUTOGRAD_CACHE"), "0")
    with ThreadPoolExecutor() as both:
        one = both.submit(run, home, 1)
        two = both.submit(run, other, 2, **anew, **{CACHE_VARIABLE: str(home / "inductor")})
        return home, one.result(), two.result()


def differing(one: dict[str, object], other: dict[str, object]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name] and name != "threads"}


def test_other_threads_give_the_same(twice: Twice) -> None:
    _, one, two = twice
    assert (one["threads"], two["threads"]) == (1, 2)
    assert not differing(one, two)


def test_what_was_kept_gives_the_same(twice: Twice) -> None:
    """Calibration statistics, plans, the fine-tuned network and what was compiled are read."""
    home, expected, _ = twice
    again = run(home, 2, set(ENGINES) - {*KEEP_NOTHING})
    left = {name for name in expected if name.endswith(tuple(f"on {engine}" for engine in KEEP_NOTHING))}
    assert left.isdisjoint(again)
    assert not differing({name: value for name, value in expected.items() if name not in left}, again)
