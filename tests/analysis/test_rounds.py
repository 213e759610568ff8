"""Intervals of dependent rounds, held to what they promise by simulation; seeds are fixed."""

from collections.abc import Callable

import numpy as np
import pytest
from dependent_rounds import Process, bursts, correlated
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from optimizer.analysis.rounds import (
    MIN_ROUNDS,
    PERCENTILE_ROUNDS,
    dependence,
    mean_interval,
    median_interval,
    percentile_bound,
    percentile_bounds,
)

SIMULATIONS = 600


def cauchy(random: np.random.Generator, rounds: int) -> np.ndarray:
    return random.standard_cauchy(rounds)


def covered(
    interval: Callable[[np.ndarray], tuple[float, float, float]],
    draw: Process,
    rounds: int,
    truth: float,
    simulations: int = SIMULATIONS,
) -> float:
    random = np.random.default_rng(31)
    found = [interval(draw(random, rounds)) for _ in range(simulations)]
    return float(np.mean([low <= truth <= high for _, low, high in found]))


@given(seed=st.integers(0, 999), rounds=st.integers(100, 3_000), burst=st.integers(1, 300))
@settings(max_examples=40)
def test_what_bounds_more_calls_bounds_fewer(seed: int, rounds: int, burst: int) -> None:
    """Also where a burst leaves the 95th percentile fewer independent calls than the 99th."""
    samples = np.random.default_rng(seed).exponential(size=rounds)
    samples[rounds // 3 : rounds // 3 + burst] += 50
    p95, p99 = percentile_bounds(samples)
    assert p99 is None or (p95 is not None and p95 <= p99)
    assert p99 == percentile_bound(samples, 0.99)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [400, 662])
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (correlated(0), 0.0),
        (correlated(0.5), 0.0),
        (correlated(0.8), 0.0),
        (correlated(0.8, heavy=True), 1.0),
        (cauchy, 0.0),
    ],
)
def test_a_median_s_interval_covers_95_percent(draw: Process, truth: float, rounds: int) -> None:
    assert 0.935 <= covered(median_interval, draw, rounds, truth) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rounds", "rho", "least"),
    [(20, 0, 0.95), (20, 0.5, 0.95), (20, 0.8, 0.88), (30, 0.8, 0.935), (60, 0.8, 0.935), (130, 0.8, 0.935)],
)
def test_of_few_rounds_a_median_s_interval_errs_on_the_wide_side(
    rounds: int, rho: float, least: float
) -> None:
    assert covered(median_interval, correlated(rho), rounds, 0.0) >= least


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [60, 130, 400])
@pytest.mark.parametrize(("share", "length"), [(0.2, 5), (0.1, 10)])
def test_bursts_are_in_a_median_s_interval(share: float, length: int, rounds: int) -> None:
    draw = bursts(share, length)
    truth = float(np.median(draw(np.random.default_rng(1), 500_000)))
    assert covered(median_interval, draw, rounds, truth) >= 0.925


def test_several_values_a_round_count_as_the_rounds_they_are() -> None:
    """Two copies of one series know no more than the series."""
    random = np.random.default_rng(2)
    series = correlated(0.5)(random, 200)
    assert median_interval(np.column_stack([series, series]))[1:] == pytest.approx(
        median_interval(series)[1:], abs=0.02
    )


@pytest.mark.slow
@pytest.mark.parametrize(("rho", "rounds"), [(0, 130), (0.5, 130), (0.8, 130), (0.8, 400), (0.5, 30)])
def test_a_mean_s_interval_covers_95_percent(rho: float, rounds: int) -> None:
    assert 0.935 <= covered(mean_interval, correlated(rho), rounds, 0.0) <= 0.985


@pytest.mark.parametrize("rounds", [60, 130, 400])
def test_a_mean_s_interval_covers_calls_of_which_one_in_five_is_three_times_slower(rounds: int) -> None:
    def draw(random: np.random.Generator, rounds: int) -> np.ndarray:
        return np.exp(random.normal(0, 0.02, rounds)) * np.where(random.random(rounds) < 0.2, 3, 1)

    assert covered(mean_interval, draw, rounds, 1.4 * np.exp(0.0002)) >= 0.935


@pytest.mark.parametrize(("rho", "rounds"), [(0.5, 400), (0.8, 400), (0.8, 130)])
def test_a_mean_s_interval_covers_heavy_tails(rho: float, rounds: int) -> None:
    assert covered(mean_interval, correlated(rho, heavy=True), rounds, np.exp(0.5)) >= 0.93


def test_a_mean_s_interval_covers_bursts_once_there_are_some() -> None:
    assert covered(mean_interval, bursts(0.2, 5), 400, 1.4 * np.exp(0.0002)) >= 0.935


def test_a_mean_time_is_no_shorter_than_any_that_was_seen() -> None:
    """Rounds of which few took very long: t alone would reach below 0, and images a second above it."""
    rounds = np.array([1, 1.1, 1, 1.2, 1, 90, 1.1, 1])
    mean, low, high = mean_interval(rounds)
    assert 1 <= low < mean == rounds.mean() < high


@pytest.mark.parametrize("interval", [median_interval, mean_interval])
def test_too_few_rounds_for_an_interval_give_their_range(interval) -> None:  # type: ignore[no-untyped-def]
    assert interval([3, 1, 2]) == (2, 1, 3)
    assert interval([2] * MIN_ROUNDS) == (2, 2, 2)
    middle, low, high = interval(np.arange(MIN_ROUNDS))
    assert low <= 0.5 < middle < 4.5 <= high


def test_the_effective_number_of_rounds_is_what_theory_says() -> None:
    """(1 - rho) / (1 + rho) of the rounds."""
    for rho in (0.0, 0.5, 0.8):
        known = dependence(correlated(rho)(np.random.default_rng(3), 20_000))
        assert known.effective == pytest.approx(20_000 * (1 - rho) / (1 + rho), rel=0.25)


# Percentiles


def test_percentiles_only_from_enough_rounds() -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(1.0, 1001))
    for rounds, share in ((129, 0.95), (661, 0.99)):
        assert percentile_bound(shuffled[:rounds], share) is None
    bound = percentile_bound(shuffled[:400], 0.95)
    assert bound is not None
    assert np.sort(shuffled[:400])[387] <= bound < shuffled[:400].max()
    assert percentile_bound(shuffled[:662], 0.99) is not None


@pytest.mark.parametrize(("share", "rounds"), PERCENTILE_ROUNDS.items())
def test_percentile_bounds_of_independent_calls_hold_at_99_percent_and_are_shown(
    share: float, rounds: int
) -> None:
    random = np.random.default_rng(25)
    bounds = [percentile_bound(random.exponential(size=rounds), share) for _ in range(1_000)]
    shown = [bound for bound in bounds if bound is not None]
    assert len(shown) >= 0.75 * len(bounds)
    assert np.mean([bound >= -np.log(1 - share) for bound in shown]) >= 0.985


@pytest.mark.parametrize(("share", "rounds"), [(0.95, 133), (0.99, 685)])
def test_a_percentile_bound_is_the_first_of_the_sorted_calls_that_holds_at_99_percent(
    share: float, rounds: int
) -> None:
    """Exactly: so many calls may lie below the percentile, of as many as there are."""
    random = np.random.default_rng(28)
    bounds = [percentile_bound(random.permutation(np.arange(float(rounds))), share) for _ in range(50)]
    below = min(bound for bound in bounds if bound is not None)
    assert binom.cdf(below - 1, rounds, share) < 0.99 <= binom.cdf(below, rounds, share)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "rounds"),
    [
        (correlated(0.5), 400),
        (correlated(0.8), 662),
        (cauchy, 130),
        (bursts(0.2, 5), 400),
        (bursts(0.3, 20), 662),
        (bursts(0.1, 10), 2_000),
    ],
)
def test_percentile_bounds_hold_under_dependence_or_are_not_shown(draw: Process, rounds: int) -> None:
    truth = np.quantile(draw(np.random.default_rng(9), 500_000), 0.95)
    random = np.random.default_rng(26)
    bounds = [percentile_bound(draw(random, rounds), 0.95) for _ in range(SIMULATIONS)]
    assert np.mean([bound is not None and bound < truth for bound in bounds]) <= 0.025


def test_too_few_bursts_show_no_percentile() -> None:
    """Bursts of 20 rounds: 130 rounds have seen two or three of them."""
    random = np.random.default_rng(27)
    seen = [one for one in (bursts(0.3, 20)(random, 130) for _ in range(300)) if (one > 2).mean() > 0.1]
    bounds = [percentile_bound(one, 0.95) for one in seen]
    assert np.mean([bound is None for bound in bounds]) >= 0.6
    assert np.mean([bound is not None and bound < 3 for bound in bounds]) <= 0.01
