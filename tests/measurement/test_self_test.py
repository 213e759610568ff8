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
REPETITIONS = 4
SLOWER = "10 % more"


def quiet(words: str) -> None:
    pass


@pytest.fixture(scope="module")
def bench() -> Any:
    return BENCHMARK["Bench"]("openvino", Settings(threads=1, quick=True))


@pytest.mark.slow
@pytest.mark.timing
def test_only_what_is_slower_is_told_apart(bench: Any) -> None:
    """A network from itself, and from one with a tenth more layers."""
    found = BENCHMARK["verdicts"](bench, ["same", SLOWER], REPETITIONS, quiet)
    assert sum(summary.verdict in ("faster", "slower") for summary in found["same"]) <= 1
    verdicts = [summary.verdict for summary in found[SLOWER]]
    assert "faster" not in verdicts
    assert sorted(summary.ratio for summary in found[SLOWER])[REPETITIONS // 2] > 1.03
    told = [verdict for verdict in verdicts if verdict != "noisy"]
    assert told.count("slower") >= len(told) - 1


@pytest.mark.slow
@pytest.mark.timing
def test_beside_a_busy_process_on_every_core_it_is_noisy(bench: Any) -> None:
    with BENCHMARK["hogs"]():
        found = BENCHMARK["verdicts"](bench, ["same"], 3, quiet)["same"]
    assert [summary.verdict for summary in found] == ["noisy"] * 3
    assert all(summary.noise for summary in found)


def summary(ratio: float, stolen: float = 0.0) -> Any:
    return summarise_latency([[1000] * 40] * 2, [round(1000 * ratio)] * 40, stolen)


class Made:
    """Comparisons with known ends, in place of timed ones."""

    def __init__(self, same: list[Any], busy: list[Any], found: dict[str, int]) -> None:
        slower = {
            name: [summary(1.1)] * number + [summary(1)] * (100 - number) for name, number in found.items()
        }
        self.ends = {name: iter(ends) for name, ends in {"same": [*same, *busy], **slower}.items()}

    def compare(self, names: Any, seed: int) -> Any:
        return {name: next(self.ends[name]) for name in names}


def judged(same: list[Any], found: int, busy: Any) -> dict[str, dict[str, Any]]:
    made = Made(same, [busy], {"3 % more": 20, "5 % more": 80, SLOWER: found})
    told: dict[str, dict[str, Any]] = BENCHMARK["self_test"](made, len(same), 100, 1, quiet)
    return told


def test_the_benchmark_judges_by_the_bound_of_a_rate() -> None:
    good = judged([summary(1)] * 299 + [summary(0.9)], 96, summary(1, 0.5))
    assert [test.get("passed") for test in good.values()] == [True, None, None, True, True]
    assert [test["called slower"] for test in good.values() if "called slower" in test] == [20, 80, 96]
    alike = good["the same network"]
    assert (alike["called different"], alike["rate is at most"]) == (1, pytest.approx(0.0157, abs=1e-4))
    assert good["10 % more layers"]["rate is at least"] == pytest.approx(0.911, abs=1e-3)


def test_few_false_ones_do_not_pass_where_more_would_be_no_surprise() -> None:
    bad = judged([summary(0.9)] * 2 + [summary(1)] * 98, 95, summary(1))
    assert [test.get("passed") for test in bad.values()] == [False, None, None, False, False]
    assert bad["the same network"]["rate is at most"] == pytest.approx(0.0616, abs=1e-4)
    few = judged([summary(1)] * 100, 100, summary(1, 0.5))
    assert not few["the same network"]["passed"], "none of 100 is still up to 3 in 100"
