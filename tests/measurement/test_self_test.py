"""The stopwatch on this machine's clock: a smaller version of ``benchmarks/self_test.py``.

Other work may run beside the tests, so here a comparison may come out noisy; what it may not do is to tell
equal networks apart, or to miss the direction of a real difference.
"""

import runpy
from pathlib import Path
from typing import Any

import pytest

from optimizer.analysis.statistics import summarise_latency
from optimizer.records import Settings

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "self_test.py"))
REPETITIONS = 6


def quiet(words: str) -> None:
    pass


@pytest.fixture(scope="module")
def bench() -> Any:
    return BENCHMARK["Bench"]("openvino", Settings(threads=1, quick=True))


@pytest.mark.timing
def test_only_what_is_slower_is_told_apart(bench: Any) -> None:
    """A network from itself, and from one with a tenth more layers."""
    found = BENCHMARK["verdicts"](bench, BENCHMARK["VARIANTS"], REPETITIONS, quiet)
    assert sum(summary.verdict in ("faster", "slower") for summary in found["same"]) <= 1
    verdicts = [summary.verdict for summary in found["slower"]]
    assert "faster" not in verdicts
    assert sorted(summary.ratio for summary in found["slower"])[REPETITIONS // 2] > 1.03
    told = [verdict for verdict in verdicts if verdict != "noisy"]
    assert told.count("slower") >= len(told) - 1


@pytest.mark.slow
@pytest.mark.timing
def test_beside_a_busy_process_on_every_core_it_is_noisy(bench: Any) -> None:
    with BENCHMARK["hogs"]():
        found = BENCHMARK["verdicts"](bench, ["same"], 3, quiet)["same"]
    assert [summary.verdict for summary in found] == ["noisy"] * 3
    assert all(summary.noise for summary in found)


def test_the_benchmark_counts_and_judges() -> None:
    def summary(ratio: float, stolen: float = 0.0) -> Any:
        return summarise_latency([[1000] * 40] * 2, [round(1000 * ratio)] * 40, stolen)

    class Made:
        """Comparisons with known ends, in place of timed ones."""

        def __init__(self, same: list[Any], slower: list[Any], busy: list[Any]) -> None:
            self.ends = {"same": iter([*same, *busy]), "slower": iter(slower)}

        def compare(self, names: Any, seed: int) -> Any:
            return {name: next(self.ends[name]) for name in names}

    good = Made([summary(1)] * 50, [summary(1.1)] * 48 + [summary(1)] * 2, [summary(1, 0.5)])
    told = BENCHMARK["self_test"](good, 50, 1, quiet)
    assert [test["passed"] for test in told.values()] == [True, True, True]
    assert told["a tenth more layers"]["called slower"] == 48
    bad = Made([summary(0.9)] * 2 + [summary(1)] * 48, [summary(1.1)] * 47 + [summary(1)] * 3, [summary(1)])
    told = BENCHMARK["self_test"](bad, 50, 1, quiet)
    assert [test["passed"] for test in told.values()] == [False, False, False]
    assert told["the same network"]["told apart"] == 2
