"""Percentiles of a queue, against the theory of queues and by simulation."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.analysis import queueing
from optimizer.analysis.queueing import NEEDED, PERCENTILES, response_percentiles, response_times

MS = 1e6
Draw = Callable[[np.random.Generator, int], np.ndarray]
NUMBERS = st.floats(0.01, 100)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=30))
def test_a_request_waits_until_the_one_before_is_answered(requests: list[tuple[float, float]]) -> None:
    service, gaps = np.array(requests).T
    arrivals = np.cumsum(gaps)
    expected, free = [], 0.0
    for taken, came in zip(service, arrivals, strict=True):
        free = max(free, came) + taken
        expected.append(free - came)
    assert response_times(service, arrivals) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("busy", [0.2, 0.6, 0.9])
def test_calls_of_exponential_times_respond_as_theory_says(busy: float) -> None:
    """M/M/1: the response time is exponential, of mean 1 / (1 - busy) calls."""
    calls = -MS * np.log(1 - (np.arange(40_000) + 0.5) / 40_000)
    found = response_percentiles(np.random.default_rng(2).permutation(calls), 1e3 * busy)
    for name, share in PERCENTILES.items():
        truth = -np.log(1 - share) / (1 - busy) * MS
        measure = found[name]
        assert measure.value == pytest.approx(truth, rel=0.15)
        assert measure.low < truth < measure.high, name  # type: ignore[operator]


def test_calls_that_all_take_as_long_respond_as_theory_says() -> None:
    """M/D/1 at half its capacity (A. K. Erlang, 1909: P(wait <= t) of a call is a finite sum)."""
    found = response_percentiles(np.full(1_000, MS), 500.0)
    waits = np.linspace(0, 8, 4_001)
    known = [
        0.5
        * sum(
            (0.5 * (k - t)) ** k / np.prod(np.arange(1.0, k + 1)) * np.exp(0.5 * (t - k))
            for k in range(int(t) + 1)
        )
        for t in waits
    ]
    for name, share in PERCENTILES.items():
        truth = 1 + np.interp(share, known, waits)
        assert found[name].value == pytest.approx(MS * truth, rel=0.015), name


def test_slow_calls_in_a_row_make_longer_queues_than_the_same_ones_apart() -> None:
    calls = np.where(np.arange(4_000) % 1_000 < 50, 4 * MS, MS)
    apart = np.random.default_rng(0).permutation(calls)
    p95 = [response_percentiles(one, 600.0)["p95"].value for one in (apart, calls)]
    assert p95[0] is not None
    assert p95[1] is None, "four slow spells are too few for a percentile"
    often = np.where(np.arange(40_000) % 100 < 5, 4 * MS, MS)
    in_a_row = response_percentiles(often, 600.0)["p95"].value
    assert in_a_row is not None
    assert in_a_row > 1.15 * p95[0]


def test_too_few_calls_have_no_percentile() -> None:
    calls = MS * np.random.default_rng(1).gamma(400, 1 / 400, 2_000)
    for count, known in (
        (0, set()),
        (99, set()),
        (150, {"p50"}),
        (600, {"p50", "p95"}),
        (2_000, set(NEEDED)),
    ):
        found = response_percentiles(calls[:count], 500.0)
        assert {name for name, measure in found.items() if measure.value is not None} == known
        assert set(found) == set(PERCENTILES)


def test_a_network_that_may_be_too_slow_has_none() -> None:
    calls = MS * np.random.default_rng(1).exponential(1, 700)
    calls *= MS / calls.mean()
    assert response_percentiles(calls, 900.0)["p50"].value is not None
    for rate in (970.0, 1_000.0, 1_100.0):
        assert response_percentiles(calls, rate)["p50"].value is None


def test_the_same_calls_have_the_same_percentiles_and_slower_ones_longer_times() -> None:
    calls = MS * np.random.default_rng(1).gamma(400, 1 / 400, 1_500)
    found = [response_percentiles(factor * calls, 700.0) for factor in (1, 1, 1.1)]
    assert found[0] == found[1]
    for name in PERCENTILES:
        assert found[2][name].low > found[0][name].value, name  # type: ignore[operator]


def even(random: np.random.Generator, count: int) -> np.ndarray:
    return random.gamma(400, 1 / 400, count)


def rarely_slow(random: np.random.Generator, count: int) -> np.ndarray:
    return np.where(random.random(count) < 0.01, 8, 1) / 1.07


def exponential(random: np.random.Generator, count: int) -> np.ndarray:
    return random.exponential(1, count)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "busy"), [(even, 0.8), (rarely_slow, 0.6), (rarely_slow, 0.9), (exponential, 0.8)]
)
def test_intervals_hold_the_truth(monkeypatch: pytest.MonkeyPatch, draw: Draw, busy: float) -> None:
    random = np.random.default_rng(9)
    many = draw(random, 2_000_000)
    truth = np.quantile(
        response_times(many, np.cumsum(random.exponential(1 / busy, len(many)))), list(PERCENTILES.values())
    )
    missed = []
    for seed in range(25):
        monkeypatch.setattr(queueing, "SEED", seed)
        found = response_percentiles(MS * draw(random, 1_600), 1e3 * busy).values()
        missed.append(
            [
                measure.value is not None and not 0.999 * measure.low <= MS * value <= measure.high * 1.001  # type: ignore[operator]
                for measure, value in zip(found, truth, strict=True)
            ]
        )
    assert np.sum(missed, axis=0).max() <= 4, "of 25, at 5 %: more once in 100 such tests"


def test_the_median_is_given_where_slow_spells_leave_the_others_unknown() -> None:
    """As of a network that grows slowly slower: half of its calls, in a row, are above the median."""
    drifting = MS * np.linspace(1, 1.02, 2_000)
    spells = drifting * np.where(np.arange(2_000) % 700 < 40, 3, 1)
    found = response_percentiles(spells, 500.0)
    assert found["p50"].value is not None
    assert found["p95"].value is None
