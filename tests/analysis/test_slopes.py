"""Slopes: what is shown of growth, on times whose truth is known."""

import numpy as np
import pytest

from optimizer.analysis.slopes import SLOPE_MARGIN, Fit, Growth, fit_power, order_stays

SIZES = tuple(10**k for k in range(1, 8))


def fit(times: np.ndarray, known_to: float = 0.01, from_n: int = 10_000) -> Fit:
    return fit_power(SIZES, [1] * len(SIZES), times, [known_to] * len(SIZES), from_n)


def times(power: float = 1.0, noise: float = 0.002, seed: int = 0, step_from: float = np.inf) -> np.ndarray:
    """Overhead of 1 µs and n ^ power ns, one and a half times as many from a size on."""
    n = np.array(SIZES, float)
    work = n**power * np.where(n >= step_from, 1.5, 1)
    return (1_000 + work) * np.exp(np.random.default_rng(seed).normal(0, noise, len(n)))


@pytest.mark.parametrize("power", [0.8, 1.0, 1.1, 1.5])
def test_overhead_cost_and_exponent_are_found_together(power: float) -> None:
    found = fit(times(power))
    assert found.slope == pytest.approx(power, abs=0.01)
    assert found.floor_ns == pytest.approx(1_000, rel=0.05)
    assert found.weights_ns(1e6) == pytest.approx(1e6**power, rel=0.05)
    assert found.time_ns(10, layers=3) == pytest.approx(3_000, rel=0.05)
    assert (found.points, found.degrees) == (7, 4)


@pytest.mark.slow
@pytest.mark.parametrize("power", [0.5, 0.9, 1.1, 1.5])
def test_only_an_exponent_of_one_is_shown_to_be_linear(power: float) -> None:
    shown = [fit(times(power, noise=0.02, seed=seed)).growth for seed in range(100)]
    assert set(shown) == {Growth.NOT_SHOWN}
    linear = [fit(times(1.0, noise=0.02, seed=seed)).growth for seed in range(100)]
    assert linear.count(Growth.LINEAR) >= 95


def test_what_is_not_known_well_is_not_shown_to_be_linear() -> None:
    assert fit(times(noise=0.2, seed=1), known_to=0.5).growth == Growth.NOT_SHOWN


@pytest.mark.slow
@pytest.mark.parametrize("step_from", [100_000, 1_000_000, 10_000_000])
def test_a_step_where_a_cache_ends_is_no_straight_line(step_from: float) -> None:
    found = [fit(times(noise=0.01, seed=seed, step_from=step_from)) for seed in range(100)]
    assert all(one.growth != Growth.LINEAR for one in found)
    assert sum(one.growth == Growth.BENT for one in found) >= 90
    straight = [fit(times(noise=0.01, seed=seed)) for seed in range(100)]
    assert not [one for one in straight if one.growth == Growth.BENT]


def test_a_residual_that_is_noise_bends_nothing() -> None:
    step = times(noise=0.0, step_from=1_000_000)
    assert fit(step, known_to=0.01).growth == Growth.BENT
    assert fit(step, known_to=0.5).growth == Growth.NOT_SHOWN


def made(slope: float, half: float = 0.01) -> Fit:
    return Fit(slope, slope - half, slope + half, 1_000, 1.0, 10_000, 7, 4, ())


@pytest.mark.parametrize(
    ("before", "after", "stays"),
    [
        (made(1.0), made(1.0), True),
        (made(1.0), made(1 + SLOPE_MARGIN / 2), True),
        (made(1.5), made(1.5), False),
        (made(0.5), made(0.5), False),
        (made(1.1), made(1.1), False),
        (made(1.0), made(1.1), False),
        (made(0.95), made(1.04), False),  # both linear, and too far apart
        (made(1.0), made(1.0, half=SLOPE_MARGIN), False),  # not known well enough
        (made(1.0, half=0.05), made(1.0, half=0.05), True),
        (made(1.0, half=0.07), made(1.0, half=0.07), False),  # each known well, their difference not
        (made(1.05, half=0.04), made(1.03), False),  # not linear before, though near enough
        (made(1.03), made(1.05, half=0.04), False),
    ],
)
def test_the_order_stays_where_that_is_shown(before: Fit, after: Fit, stays: bool) -> None:
    assert order_stays(before, after) is stays
