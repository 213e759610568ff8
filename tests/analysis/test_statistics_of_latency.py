"""Statistics of latency, held to what they promise, mostly by simulation: coverage, false verdicts, power."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from factories import make_latency
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import ArrayLike
from scipy.stats import norm, t

from optimizer.analysis.noise import MIN_CHANGE, SMALL_CHANGE, NoiseKind
from optimizer.analysis.statistics import (
    POWER_SHARE,
    SAME,
    LatencySummary,
    LatencyVerdict,
    mean_time_interval,
    median_ratio,
    process_ratios,
    ratio_interval,
    summarise_latency,
    summarise_visits,
    time_interval,
)
from optimizer.errors import InputError

SIMULATIONS = 150

law = settings(max_examples=25, deadline=None)


Noise = Callable[[np.random.Generator, int], np.ndarray]


def iid(random: np.random.Generator, rounds: int) -> np.ndarray:
    return np.exp(random.normal(0, 0.02, (3, rounds)))


def skewed(random: np.random.Generator, rounds: int) -> np.ndarray:
    """Calls are never faster than the code allows, and often slower."""
    return 1 + random.exponential(0.03, (3, rounds))


def drifting(random: np.random.Generator, rounds: int) -> np.ndarray:
    """The machine's speed wanders by several percent, for baseline and variant alike."""
    return iid(random, rounds) * np.exp(np.cumsum(random.normal(0, 0.01, rounds)))


def correlated(random: np.random.Generator, rounds: int) -> np.ndarray:
    """Each series has slow noise of its own, halved from round to round."""
    noise = random.normal(0, 0.02, (3, rounds))
    for i in range(1, rounds):
        noise[:, i] += 0.5 * noise[:, i - 1]
    return np.exp(noise)


def compare(noise: np.ndarray, ratio: float = 1.0) -> LatencySummary:
    """Noise ``[3, R]`` around a call of 1 ms, of which the last is the variant."""
    samples = 1e6 * noise
    return summarise_latency(samples[:2], ratio * samples[2])


@cache
def identical(noise: Noise, rounds: int) -> list[LatencySummary]:
    """Comparisons of a model with itself."""
    random = np.random.default_rng(rounds)
    return [compare(noise(random, rounds)) for _ in range(SIMULATIONS)]


@pytest.mark.parametrize("rounds", [20, pytest.param(40, marks=pytest.mark.slow), 130])
@pytest.mark.parametrize("noise", [iid, skewed, drifting, correlated])
def test_identical_variants_are_not_called_different(noise: Noise, rounds: int) -> None:
    verdicts = [summary.verdict for summary in identical(noise, rounds)]
    assert np.mean([verdict in ("faster", "slower") for verdict in verdicts]) <= 0.02


@pytest.mark.slow
def test_builds_that_lie_differently_are_not_called_different() -> None:
    """Every build has a speed of its own, within 0.6 %."""
    random = np.random.default_rng(11)
    told = [compare(iid(random, 400) * np.exp(random.normal(0, 0.006, (3, 1)))).verdict for _ in range(400)]
    assert np.mean([verdict in ("faster", "slower") for verdict in told]) <= 0.02
    assert np.mean([verdict == "noisy" for verdict in told]) <= 0.06


@pytest.mark.slow
def test_a_long_series_of_skewed_noise_is_not_biased() -> None:
    random = np.random.default_rng(4)
    summaries = [compare(skewed(random, 662)) for _ in range(100)]
    assert np.mean([s.ratio for s in summaries]) == pytest.approx(1, abs=0.0005)


def test_the_interval_is_the_one_that_resampling_estimates() -> None:
    random = np.random.default_rng(5)
    noise = iid(random, 400)
    starts = random.integers(0, 400, (4000, 40))
    rounds = (starts[:, :, None] + np.arange(10)).reshape(4000, 400) % 400
    medians = np.median(np.log(noise[0] / noise[1])[rounds], axis=1)
    summary = compare(noise)
    # 40 blocks: the levels expand from 2.5 % to 2.0 %.
    assert np.log([summary.aa_low, summary.aa_high]) == pytest.approx(
        np.quantile(medians, [0.0203, 0.9797]), abs=0.1 * np.ptp(medians)
    )


def test_of_six_rounds_the_interval_is_that_of_all_resamples_expanded_as_published() -> None:
    # Hesterberg, arXiv 1411.5279: the expanded percentile interval.
    logs = np.random.default_rng(6).normal(0, 0.02, (6, 7))
    resamples = logs[np.indices((6,) * 6).reshape(6, -1).T].reshape(6**6, -1)
    medians = np.sort(resamples, axis=1)[:, [20, 21]]
    level = norm.cdf(-((6 / 5) ** 0.5) * t.ppf(0.975, 5))
    low = np.quantile(medians[:, 0], level, method="inverted_cdf")
    high = -np.quantile(-medians[:, 1], level, method="inverted_cdf")
    assert np.log(median_ratio(logs)[1:]) == pytest.approx([low, high])


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "verdict"), [(1.1, "slower"), (1 / 1.1, "faster")])
@pytest.mark.parametrize("rounds", [20, 130])
def test_a_tenth_is_told(ratio: float, verdict: str, rounds: int) -> None:
    random = np.random.default_rng(7)
    verdicts = [compare(iid(random, rounds), ratio).verdict for _ in range(SIMULATIONS)]
    told = [v for v in verdicts if v != "noisy"]
    assert set(told) == {verdict}
    assert len(told) >= 0.85 * SIMULATIONS


def test_a_change_below_two_percent_is_not_told_however_certain() -> None:
    random = np.random.default_rng(8)
    noise = np.exp(random.normal(0, 0.001, (3, 662)))
    small, large = compare(noise, 1.019), compare(noise, 1.021)
    assert small.ratio_low > 1
    assert (small.verdict, large.verdict) == (SAME, "slower")


def test_a_change_within_what_the_baseline_shows_of_itself_is_not_told() -> None:
    half_apart = np.exp(0.014 * np.repeat([1, -1] * 4, 10))
    noise = np.stack([half_apart, 1 / half_apart, np.ones(80)])
    unsure, sure = compare(noise, 1.025), compare(np.ones((3, 80)), 1.025)
    assert unsure.ratio_low > 1
    assert (unsure.aa_low, unsure.aa_high) == pytest.approx((1 / 1.028, 1.028), abs=0.0005)
    assert (unsure.verdict, sure.verdict, unsure.noise) == (SAME, "slower", ())


@pytest.mark.parametrize("slower_build", [0, 1])
def test_a_change_must_exceed_what_two_builds_of_the_baseline_differ_by(slower_build: int) -> None:
    half_apart = np.exp(0.004 * np.repeat([1, -1] * 4, 10))
    noise = np.stack([half_apart, 1 / half_apart, np.ones(80)])
    noise[slower_build] *= 1.017
    small, large = compare(noise, 1.032), compare(noise, 1.036)
    assert not small.aa_low <= 1 <= small.aa_high
    reach = max(1 - small.aa_low, small.aa_high - 1)
    assert 1.02 < small.ratio < 1 + reach < large.ratio
    assert small.ratio_low > 1
    assert (small.verdict, large.verdict, small.noise) == (SAME, "slower", ())


def test_a_change_that_may_be_none_is_not_told() -> None:
    unsure = np.stack([np.ones(80), np.ones(80), np.repeat([0.985, 1.075] * 4, 10)])
    summary = compare(unsure)
    assert summary.ratio > 1.02
    assert summary.ratio_low < 1
    assert (summary.verdict, summary.noise) == (SAME, ())


QUIET = np.exp(np.random.default_rng(9).normal(0, 0.005, (3, 130)))


def test_a_quiet_machine_gives_no_reason() -> None:
    assert compare(QUIET).noise == ()
    assert compare(QUIET).verdict == SAME


def noisy(
    first: ArrayLike = 1, second: ArrayLike = 1, variant: ArrayLike = 1, stolen: float = 0
) -> tuple[str, ...]:
    """Reasons when quiet series are multiplied by something, or CPU time is stolen."""
    baseline = np.stack([QUIET[0] * first, QUIET[1] * second])
    return summarise_latency(baseline, QUIET[2] * variant, stolen).noise


def test_noise_a_baseline_that_differs_from_itself() -> None:
    (reason,) = noisy(first=1.025)
    figure = r"1\.02\d"
    assert re.fullmatch(
        f"the baseline differs from itself: ratio {figure}, 95 % interval {figure} to {figure} "
        r"\(limit 2 %\)",
        reason,
    )
    assert noisy(first=1.017) == ()


def test_noise_a_baseline_that_is_hardly_known() -> None:
    apart = np.resize(np.repeat([1.02, 1 / 1.02], 10), 130)
    (reason,) = noisy(first=apart, second=1 / apart)
    assert re.fullmatch(r"the baseline against itself is known to ±[34](\.\d+)? % only \(limit 3 %\)", reason)


def test_a_change_beyond_all_that_builds_may_differ_by_is_told_however_little_they_are_known() -> None:
    apart = np.resize(np.repeat([1.02, 1 / 1.02], 10), 130)
    noise = QUIET * np.stack([apart, 1 / apart, np.ones(130)])
    small, large = compare(noise, 1.035), compare(noise, 1.1)
    assert small.ratio < small.aa_high < 1.04 < 1.09 < large.ratio_low
    assert (small.verdict, large.verdict, large.noise) == ("noisy", "slower", ())


def test_noise_wide_samples() -> None:
    wide = np.resize(np.linspace(1, 1.3, 13), 130)
    (reason,) = noisy(variant=wide)
    assert re.fullmatch(
        r"the middle half of the model's samples spans 1[234](\.\d)? % of their median "
        r"\(limit 10 %\)",
        reason,
    )
    (reason,) = noisy(first=wide, second=wide)
    assert reason.startswith("the middle half of the baseline's samples")


def test_noise_halves_that_differ() -> None:
    step = np.repeat([1, 1.07], 65)
    (reason,) = noisy(variant=step)
    figure = r"[67](\.\d+)?"
    assert re.fullmatch(
        f"the model's second half is {figure} % slower than its first \\(limit 5 %\\)", reason
    )
    (reason,) = noisy(first=step[::-1], second=step[::-1])
    assert re.fullmatch(
        f"the baseline's second half is {figure} % faster than its first \\(limit 5 %\\)", reason
    )


@pytest.mark.parametrize(("rare", "side"), [(0.3, "below"), (1.7, "above")])
def test_noise_a_mean_far_from_the_median_on_either_side(rare: float, side: str) -> None:
    (reason,) = noisy(variant=np.resize([1, 1, 1, 1, rare], 130))
    figure = r"1[345](\.\d)?"
    assert re.fullmatch(
        f"the model's mean is {figure} % {side} its median \\(limit 10 %\\): calls are not alike", reason
    )


def test_noise_stolen_time() -> None:
    assert noisy(stolen=0.02) == ()
    assert noisy(stolen=0.031) == (
        "other work on this machine or its host took 3.1 % of the CPU time (limit 2 %)",
    )


def test_a_noisy_comparison_is_never_called_faster() -> None:
    assert summarise_latency(QUIET[:2], 0.5 * QUIET[2], stolen_share=0.1).verdict == "noisy"
    assert summarise_latency(QUIET[:2], 0.5 * QUIET[2]).verdict == "faster"


samples = st.integers(2, 30).flatmap(lambda n: arrays(np.int64, (3, n), elements=st.integers(1_000, 10**10)))


@law
@given(samples)
def test_what_always_holds_of_a_summary(series: np.ndarray) -> None:
    summary = summarise_latency(series[:2], series[2])
    assert summary.ratio_low <= summary.ratio <= summary.ratio_high
    assert summary.aa_low <= summary.aa_ratio <= summary.aa_high
    assert series[2].min() <= summary.median_ns <= series[2].max()
    assert isinstance(summary.verdict, LatencyVerdict)
    assert (summary.verdict == "noisy") == bool(summary.noise)
    assert all(type(value) is not np.float64 for value in (summary.median_ns, summary.ratio, summary.aa_low))


@law
@given(samples)
def test_swapping_baseline_and_variant_inverts_the_ratio(series: np.ndarray) -> None:
    one, other = series[[0, 0]], series[[1, 1]]
    forth, back = summarise_latency(one, other[0]), summarise_latency(other, one[0])
    inverse = (1 / back.ratio, 1 / back.ratio_high, 1 / back.ratio_low)
    assert (forth.ratio, forth.ratio_low, forth.ratio_high) == pytest.approx(inverse, rel=1e-9)


@law
@given(samples, st.integers(1, 20))
def test_the_unit_of_time_does_not_matter(series: np.ndarray, power: int) -> None:
    scale = 2**power
    summary = summarise_latency(series[:2], series[2])
    scaled = summarise_latency(scale * series[:2], scale * series[2])
    assert replace(scaled, median_ns=summary.median_ns) == summary
    assert scaled.median_ns == scale * summary.median_ns


def test_with_under_six_rounds_nothing_is_told() -> None:
    for rounds, verdict in ((5, SAME), (6, "faster")):
        noise = np.linspace(1, 1.001, rounds)
        summary = summarise_latency(np.stack([noise, noise[::-1]]), 0.5 * noise)
        assert (summary.verdict, summary.noise) == (verdict, ())


@pytest.mark.parametrize(
    ("baseline", "variant"),
    [
        ([[1, 2], [1, 2]], [1, 2, 3]),
        ([[1, 2]], [1, 2]),
        ([[1], [1]], [1]),
        ([[], []], []),
        ([[1, 2], [1, 2]], [0, 1]),
        ([[1, -2], [1, 2]], [1, 1]),
        ([[1, 2], [1, 2]], [float("nan"), 1]),
        ([[1, float("inf")], [1, 2]], [1, 1]),
    ],
)
def test_samples_that_are_no_comparison_are_refused(
    baseline: list[list[float]], variant: list[float]
) -> None:
    with pytest.raises(InputError, match="latency samples"):
        summarise_latency(baseline, variant)


# Coverage of every interval, to within two points: seeds are fixed, so nothing here is left to chance

COVERED = pytest.approx(0.95, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [iid, skewed, drifting, correlated])
def test_the_ratio_s_interval_covers_95_percent(noise: Noise) -> None:
    """Both of them, variant against baseline and baseline against itself, from 130 rounds on."""
    random = np.random.default_rng(22)
    for of in (lambda one: np.log(one[2] / one[:2]).T, lambda one: np.log(one[:1] / one[1:2]).T):
        found = [median_ratio(of(noise(random, 130))) for _ in range(800)]
        assert np.mean([low <= 1 <= high for _, low, high in found]) == COVERED


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [20, 40])
def test_of_few_rounds_the_ratio_s_interval_errs_on_the_wide_side(rounds: int) -> None:
    """With so few blocks it has to be wide, lest rounds that depend on each other make it too narrow."""
    random = np.random.default_rng(23)
    for noise, least, most in ((iid, 0.95, 0.99), (skewed, 0.95, 0.99), (correlated, 0.90, 0.97)):
        found = [
            median_ratio(np.log(one[2] / one[:2]).T) for one in (noise(random, rounds) for _ in range(800))
        ]
        assert least <= np.mean([low <= 1 <= high for _, low, high in found]) <= most


# Mean and median


def test_calls_of_which_one_in_five_is_far_slower_are_flagged() -> None:
    random = np.random.default_rng(30)
    slow = np.where(random.random(200) < 0.2, 3, 1)
    summary = compare(np.stack([iid(random, 200)[0], iid(random, 200)[0], iid(random, 200)[0] * slow]), 0.95)
    assert summary.ratio == pytest.approx(0.95, abs=0.01)
    assert summary.mean_ratio == pytest.approx(1.33, abs=0.06)
    assert summary.verdict == LatencyVerdict.NOISY
    assert {reason.kind for reason in summary.reasons} == {NoiseKind.TAIL, NoiseKind.MEAN_DISAGREES}
    tail, disagrees = summary.noise
    assert re.fullmatch(
        r"the model's mean is [34]\d(\.\d)? % above its median \(limit 10 %\): "
        r"calls are not alike",
        tail,
    )
    assert disagrees.startswith("median and mean disagree: 0.9")
    assert replace(summary.reasons[0], value=15.149).words.startswith("the model's mean is 1,515 % above")
    assert "is 1,000 % above" in replace(summary.reasons[0], value=9.996).words
    assert "above 150 %" in replace(summary, detectable=1.5).detectable_words


def test_faster_by_the_median_and_not_by_the_mean_is_not_faster() -> None:
    """Each series is even enough by itself."""
    slow = np.resize([1] * 24 + [3], 200)
    summary = compare(np.stack([np.ones(200), np.ones(200), slow]), 0.95)
    assert (summary.ratio < 0.98, summary.mean_ratio > 1) == (True, True)
    assert [reason.kind for reason in summary.reasons] == [NoiseKind.MEAN_DISAGREES]
    assert summary.verdict == LatencyVerdict.NOISY


# What could have been detected


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [40, 130])
def test_a_change_that_could_have_been_detected_is_told(rounds: int) -> None:
    random = np.random.default_rng(32)
    detectable = np.median([compare(iid(random, rounds)).detectable for _ in range(100)])
    assert 0.02 < detectable < 0.06
    verdicts = [compare(iid(random, rounds), 1 + detectable).verdict for _ in range(SIMULATIONS)]
    told = [verdict for verdict in verdicts if verdict != LatencyVerdict.NOISY]
    assert np.mean([verdict == LatencyVerdict.SLOWER for verdict in told]) >= 0.9
    small = [compare(iid(random, rounds), 1 + detectable / 3).verdict for _ in range(SIMULATIONS)]
    assert np.mean([verdict == LatencyVerdict.SLOWER for verdict in small]) <= 0.2


def test_what_could_have_been_detected_in_words() -> None:
    assert compare(QUIET).detectable_words.startswith("could have detected changes above 2")
    few = compare(QUIET[:, :5])
    assert few.detectable is None
    assert few.detectable_words == "too few rounds or processes to say which changes could have been detected"


def test_what_could_have_been_detected_is_at_least_as_wide_as_the_interval() -> None:
    random = np.random.default_rng(5)
    summary = compare(np.exp(random.normal(0, [[0.004], [0.004], [0.08]], (3, 40))))
    half = math.sqrt(summary.ratio_high / summary.ratio_low) - 1
    assert half > max(MIN_CHANGE, 1 / summary.aa_low - 1, summary.aa_high - 1)
    assert summary.detectable == pytest.approx((1 + POWER_SHARE) * half)


def test_of_one_process_only_large_changes_and_of_two_or_three_none_could_have_been_detected() -> None:
    latency = make_latency(1.0, rounds=40)
    visits = summarise_visits(latency.baseline, latency.variant, 0.0, ())
    bare = compare(QUIET)
    assert bare.detectable is not None
    assert bare.detectable < visits.detectable == SMALL_CHANGE
    times = times_in_processes(np.random.default_rng(3), 1, 0.003)
    for number in (2, 3, 4, 5):
        some = summarise_latency(
            times[:2, : 8 * number], times[2, : 8 * number], processes=PROCESSES[:number]
        )
        assert (some.detectable is None) == (number < 4)


# Several processes


PROCESSES = (8,) * 5


def in_processes(
    random: np.random.Generator, ratio: float, build_scatter: float, call_scatter: float = 0.004
) -> LatencySummary:
    times = times_in_processes(random, ratio, build_scatter, call_scatter)
    return summarise_latency(times[:2], times[2], processes=PROCESSES)


def times_in_processes(
    random: np.random.Generator, ratio: float, build_scatter: float, call_scatter: float = 0.004
) -> np.ndarray:
    """Each process has builds of its own, each faster or slower by chance for as long as it lives."""
    builds = np.exp(random.normal(0, build_scatter, (3, len(PROCESSES)))).repeat(PROCESSES[0], axis=1)
    times = 1e6 * builds * np.exp(random.normal(0, call_scatter, builds.shape))
    times[2] *= ratio
    return times


@pytest.mark.slow
@pytest.mark.parametrize("build_scatter", [0.0, 0.003, 0.006, 0.01])
def test_the_interval_over_processes_covers_95_percent_however_builds_scatter(build_scatter: float) -> None:
    random, count = np.random.default_rng(41), 2_500
    series = [times_in_processes(random, 1, build_scatter) for _ in range(count)]
    found = [ratio_interval(np.log(times[2] / times[:2]).T, PROCESSES) for times in series]
    covered = np.mean([low <= 1 <= high for _, low, high in found])
    # The baseline's two builds make pairs of log ratios that are no t of four degrees exactly.
    assert covered == pytest.approx(0.95, abs=0.01 + 3 * (0.95 * 0.05 / count) ** 0.5)
    whole = summarise_latency(series[0][:2], series[0][2], processes=PROCESSES)
    assert (whole.ratio, whole.ratio_low, whole.ratio_high) == found[0]


@pytest.mark.parametrize("build_scatter", [0.0, 0.01])
def test_the_interval_of_the_mean_over_processes_covers_95_percent_however_builds_scatter(
    build_scatter: float,
) -> None:
    random, count = np.random.default_rng(45), 1_000
    series = [times_in_processes(random, 1, build_scatter)[2] for _ in range(count)]
    found = [mean_time_interval(times, PROCESSES) for times in series]
    covered = np.mean([low <= 1e6 <= high for _, low, high in found])
    assert covered == pytest.approx(0.95, abs=0.01 + 3 * (0.95 * 0.05 / count) ** 0.5)
    if build_scatter:  # taken as one series, rounds say that they hang together, and no more
        widths = [[high - low for _, low, high in one] for one in (found, map(mean_time_interval, series))]
        assert np.median(widths[0]) < 0.7 * np.median(widths[1])


@pytest.mark.slow
def test_builds_that_scatter_are_not_told_apart_and_a_change_of_five_percent_is() -> None:
    random = np.random.default_rng(42)
    for build_scatter in (0.003, 0.006, 0.01):
        same = [in_processes(random, 1, build_scatter).verdict for _ in range(400)]
        assert sum(verdict in (LatencyVerdict.FASTER, LatencyVerdict.SLOWER) for verdict in same) <= 2
    for ratio, build_scatter, least in ((1.05, 0.003, 0.98), (1.05, 0.006, 0.9), (1.1, 0.01, 0.97)):
        found = [in_processes(random, ratio, build_scatter).verdict for _ in range(400)]
        assert np.mean([verdict == LatencyVerdict.SLOWER for verdict in found]) >= least


def test_noise_is_what_lies_within_processes_and_not_between_them() -> None:
    """A machine that gets slower from one to the next slows all three networks down alike."""
    times = times_in_processes(np.random.default_rng(46), 0.9, 0.002)
    slowing = times * np.linspace(1, 1.25, len(PROCESSES)).repeat(PROCESSES[0])
    found = summarise_latency(slowing[:2], slowing[2], processes=PROCESSES)
    assert (found.verdict, found.reasons) == (LatencyVerdict.FASTER, ())
    assert {one.kind for one in summarise_latency(slowing[:2], slowing[2]).reasons} >= {NoiseKind.DRIFT}
    step = np.tile(np.repeat([1, 1.08], PROCESSES[0] // 2), len(PROCESSES))
    drifts = summarise_latency(times[:2], times[2] * step, processes=PROCESSES).reasons
    assert {(one.kind, one.series) for one in drifts} == {(NoiseKind.DRIFT, "variant")}


def test_rounds_of_one_process_can_not_know_what_other_builds_would_give() -> None:
    """Why there are several: of the same rounds in one process the interval is far too narrow."""
    random = np.random.default_rng(43)
    builds = np.exp(random.normal(0, 0.006, (3, 300, 1)))
    times = 1e6 * builds * np.exp(random.normal(0, 0.004, (3, 300, 40)))
    found = [median_ratio(np.log(one[2] / one[:2]).T) for one in times.swapaxes(0, 1)]
    assert np.mean([low <= 1 <= high for _, low, high in found]) < 0.5


@pytest.mark.slow
def test_two_processes_that_are_left_cover_95_percent_and_one_is_taken_as_rounds() -> None:
    random, count, left = np.random.default_rng(44), 1_000, (8, 8)
    series = [times_in_processes(random, 1, 0.006)[:, :16] for _ in range(count)]
    found = [ratio_interval(np.log(one[2] / one[:2]).T, left) for one in series]
    alone = [time_interval(one[2], left) for one in series]
    for intervals, true in ((found, 1), (alone, 1e6)):
        covered = np.mean([low <= true <= high for _, low, high in intervals])
        assert covered == pytest.approx(0.95, abs=0.01 + 3 * (0.95 * 0.05 / count) ** 0.5)
    told = [summarise_latency(one[:2], one[2], processes=left).verdict for one in series[:200]]
    assert np.mean([verdict in ("faster", "slower") for verdict in told]) <= 0.02
    times = series[0]
    assert summarise_latency(times[:2], times[2], processes=(16,)) == summarise_latency(times[:2], times[2])
    assert process_ratios(replace(make_latency(rounds=24), processes=(24,))) == ()


@pytest.mark.parametrize("processes", [(10, 14), (2, 4, 6, 12)])
def test_each_process_has_its_ratio(processes: tuple[int, ...]) -> None:
    made = replace(make_latency(0.5, rounds=24), processes=processes)
    before = np.array([build.medians_ns for build in made.baseline])
    ends = np.cumsum((0, *processes))
    for ratio, first, last in zip(process_ratios(made), ends, ends[1:], strict=False):
        logs = np.log(made.variant.medians_ns[first:last] / before[:, first:last])
        assert ratio == pytest.approx(np.exp(np.median(logs)))
    assert len(process_ratios(made)) == len(processes)
    logs = [np.log(ratio) for ratio in process_ratios(made)]
    assert summarise_visits(made.baseline, made.variant, 0, processes).ratio == pytest.approx(
        np.exp(np.mean(logs))
    )
    middle, low, high = time_interval(made.variant.medians_ns, processes)
    assert low < middle < high


def visit_for(seconds_ms: float, calls_ms: np.ndarray) -> tuple[float, int]:
    """The mean of the calls of a visit that lasts for a time, of 8 calls at least, and how many they are."""
    count = max(8, int(np.searchsorted(np.cumsum(calls_ms), seconds_ms)) + 1)
    return float(calls_ms[:count].mean()), len(calls_ms[:count])


def with_stalls(random: np.random.Generator) -> np.ndarray:
    """One call in 500 waits ten milliseconds."""
    return 0.2 * random.lognormal(0, 0.05, 256) + 10 * (random.random(256) < 0.002)


def in_slow_spells(random: np.random.Generator) -> np.ndarray:
    """A fifth of the time the machine is half as fast."""
    return 0.2 * random.lognormal(0, 0.05, 256) * (2 if random.random() < 0.2 else 1)


def scattered(random: np.random.Generator) -> np.ndarray:
    return 0.2 * random.lognormal(0, 0.1) * random.lognormal(0, 0.05, 256)


@pytest.mark.parametrize(
    ("draw", "truth_ms"),
    [
        (with_stalls, 0.2 * np.exp(0.05**2 / 2) + 0.02),
        (in_slow_spells, 0.2 * np.exp(0.05**2 / 2) / (0.8 + 0.2 / 2)),
        (scattered, 0.2 * np.exp(0.05**2 / 2) / np.exp(0.1**2 / 2)),
    ],
)
def test_throughput_is_calls_over_time_however_many_calls_a_visit_had(
    draw: Callable[[np.random.Generator], np.ndarray], truth_ms: float
) -> None:
    """Visits of 20 ms: as many calls as went into all the time that passed."""
    random = np.random.default_rng(46)
    found = []
    for _ in range(400):
        means, calls = zip(*(visit_for(20, draw(random)) for _ in range(40)), strict=True)
        found.append(mean_time_interval(means, (), calls))
    means, lows, highs = np.array(found).T
    assert means.mean() == pytest.approx(truth_ms, rel=0.007)
    assert np.mean(highs < truth_ms) <= 0.035
    assert np.mean(lows > truth_ms) <= 0.035


@pytest.mark.parametrize("build_scatter", [0.0, 0.03])
def test_the_mean_time_of_visits_of_several_processes_covers_95_percent(build_scatter: float) -> None:
    """Where a build is slower, its visits have fewer calls."""
    random, count = np.random.default_rng(47), 2_000
    missed = np.zeros(2)
    for _ in range(count):
        pace = np.exp(random.normal(0, build_scatter, 5)).repeat(8)
        means = 0.2 * pace * np.exp(random.normal(0, 0.01, 40))
        _, low, high = mean_time_interval(means, (8,) * 5, np.round(20 / means))
        missed += np.array([low > 0.2, high < 0.2]) / count
    assert (missed <= 0.035).all()
    assert missed.sum() == pytest.approx(0.05, abs=0.015)


def test_a_mean_time_is_no_shorter_than_the_shortest_visit_s_and_all_time_over_all_calls() -> None:
    means, calls = np.array([1, *[90] * 7]), np.array([256, *[8] * 7])
    mean, low, high = mean_time_interval(means, (), calls)
    assert mean == pytest.approx((256 + 7 * 8 * 90) / (256 + 7 * 8))
    assert 1 <= low <= mean < high
    assert mean_time_interval(means[:3], (), calls[:3])[1:] == (1, 90)
    assert mean_time_interval(means, (), [5] * 8) == pytest.approx(mean_time_interval(means))
