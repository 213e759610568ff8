"""Statistics of counted outcomes, held to what they promise: as published, and by simulation."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import ndtri
from scipy.stats import binom, multinomial, norm

import optimizer.analysis.outcomes as statistics_of_outcomes
from optimizer.analysis.outcomes import (
    AccuracyVerdict,
    balanced_share,
    disagreement,
    growing_drop,
    growing_share_interval,
    images_needed,
    paired_drop,
    share_interval,
    shown_within,
    wilson,
)
from optimizer.errors import InputError

SIMULATIONS = 500

law = settings(max_examples=50, deadline=None)


# Proportions


def test_wilson_as_published() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@law
@given(
    st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.01, 0.999)
)
def test_wilson_holds_the_proportion_and_stays_a_share(counts: tuple[int, int], confidence: float) -> None:
    successes, total = counts
    low, high = wilson(successes, total, confidence)
    assert 0 <= low <= successes / total <= high <= 1
    assert wilson(total - successes, total, confidence) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize(("successes", "total"), [(-1, 5), (6, 5), (0, 0)])
def test_what_is_no_proportion_is_refused(successes: int, total: int) -> None:
    with pytest.raises(InputError, match=f"{successes} of {total}"):
        wilson(successes, total)


# Paired outcomes


def outcomes(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, lost, gained, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_the_score_interval_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014) 2850-2875, both of their examples.
    monkeypatch.setattr(statistics_of_outcomes, "CORRECTION", 0.0)
    for counts, interval in (((1, 7, 21), (-51.7, -2.6)), ((6, 16, 161), (-12.4, -0.54))):
        low, high = statistics_of_outcomes._score_interval.__wrapped__(*counts, 0.95)
        assert (100 * low, 100 * high) == pytest.approx(interval, abs=0.05)


def test_a_quarter_of_an_image_is_taken_off_before_it_is_tested() -> None:
    drop = paired_drop(*outcomes(59, 6, 16, 80))
    assert drop.points == pytest.approx(-6.21, abs=0.005)
    assert drop.p == pytest.approx(2 * norm.sf((10 - 0.25) / 22**0.5))
    assert drop.low < -12.4 < -0.54 < drop.high, "wider than without"


def test_flips_both_ways_are_counted_though_they_cancel() -> None:
    drop = paired_drop(*outcomes(80, 7, 7, 6))
    assert (drop.points, drop.lost, drop.gained, drop.p) == (0, 7, 7, 1)
    assert drop.low < 0 < drop.high


def test_identical_outcomes_differ_by_nothing_but_not_for_certain() -> None:
    drop = paired_drop(*outcomes(900, 0, 0, 100))
    assert (drop.points, drop.p) == (0, 1)
    assert -0.5 < drop.low < 0 < drop.high < 0.5
    assert drop.verdict is AccuracyVerdict.SAME


def test_five_flips_one_way_are_the_fewest_that_tell() -> None:
    four, five = paired_drop(*outcomes(480, 4, 0, 16)), paired_drop(*outcomes(480, 5, 0, 15))
    assert (four.verdict, five.verdict) == (AccuracyVerdict.SAME, AccuracyVerdict.WORSE)
    assert four.p is not None
    assert five.p is not None
    assert five.p < 0.05 < four.p


def test_an_image_that_both_get_right_or_wrong_says_nothing() -> None:
    assert paired_drop(*outcomes(244, 6, 0, 250)) == paired_drop(*outcomes(474, 6, 0, 20))


@law
@given(st.integers(1, 2_000), st.floats(0, 1), st.floats(0, 1))
def test_the_verdict_the_interval_and_p_agree(total: int, flipped: float, one_way: float) -> None:
    flips = round(total * flipped)
    lost = round(flips * one_way)
    drop = paired_drop(*outcomes(total - flips, lost, flips - lost, 0))
    assert drop.p is not None
    assert (drop.verdict is not AccuracyVerdict.SAME) == (drop.p < 0.05) == (not drop.low <= 0 <= drop.high)
    if drop.verdict is not AccuracyVerdict.SAME:
        assert drop.verdict == (AccuracyVerdict.WORSE if drop.points > 0 else AccuracyVerdict.BETTER)


pairs = st.integers(1, 60).flatmap(lambda n: st.tuples(arrays(bool, n), arrays(bool, n)))


@law
@given(pairs)
def test_swapping_baseline_and_variant_negates_the_drop(pair: tuple[np.ndarray, np.ndarray]) -> None:
    drop, swapped = paired_drop(*pair), paired_drop(*pair[::-1])
    assert (swapped.points, swapped.p) == (-drop.points, drop.p)
    assert (swapped.low, swapped.high) == pytest.approx((-drop.high, -drop.low), abs=1e-9)
    assert (swapped.lost, swapped.gained) == (drop.gained, drop.lost)


@law
@given(pairs, st.integers(0, 100))
def test_the_drop_lies_in_its_interval_whatever_the_order(
    pair: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    drop = paired_drop(*pair)
    assert -100 - 1e-9 <= drop.low <= drop.points <= drop.high <= 100 + 1e-9
    assert drop.p is not None
    assert 0 < drop.p <= 1
    order = np.random.default_rng(seed).permutation(len(pair[0]))
    assert paired_drop(pair[0][order], pair[1][order]) == drop


# Where right means "as the uncompressed model answers"


def test_what_is_right_by_definition_is_not_random() -> None:
    none = disagreement(np.ones(500, bool))
    assert (none.points, none.low, none.p, none.verdict) == (0, 0, None, AccuracyVerdict.SAME)
    assert none.high == pytest.approx(0.76, abs=0.005)
    one = disagreement(np.arange(500) > 0)
    assert (one.points, one.lost, one.gained, one.verdict) == (0.2, 1, 0, AccuracyVerdict.WORSE)
    assert 0 < one.low < one.points < one.high


@law
@given(st.integers(1, 60).flatmap(lambda n: arrays(bool, n)))
def test_disagreement_is_what_agreement_leaves(agrees: np.ndarray) -> None:
    drop = disagreement(agrees)
    low, high = share_interval(int(agrees.sum()), len(agrees))
    assert (drop.low, drop.high) == pytest.approx((100 - 100 * high, 100 - 100 * low), abs=1e-9)
    assert 0 <= drop.low <= drop.points <= drop.high <= 100
    assert (drop.verdict is AccuracyVerdict.WORSE) == (drop.lost > 0)


@pytest.mark.parametrize(
    ("baseline", "variant"), [([True], [True, False]), ([], []), ([[True]], [[True]]), ([1, 0], [1, 1])]
)
def test_what_cannot_be_paired_is_refused(baseline: list[object], variant: list[object]) -> None:
    with pytest.raises(InputError, match="give"):
        paired_drop(baseline, variant)  # type: ignore[arg-type]


def test_the_images_needed_are_the_fewest_that_can_show_a_loss_to_be_small() -> None:
    for points in (0.5, 1, 2, 50):
        needed = images_needed(points)
        assert paired_drop(*outcomes(needed, 0, 0, 0)).high <= points
        assert paired_drop(*outcomes(needed - 1, 0, 0, 0)).high > points
    assert [images_needed(points) for points in (0.5, 1, 2)] == [862, 429, 213]
    with pytest.raises(InputError, match="more than 0"):
        images_needed(0)


# Coverage of every interval, to within two points: seeds are fixed, so nothing here is left to chance

COVERED = pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("total", "share"), [(200, 0.9), (500, 0.87), (1000, 0.5), (10_000, 0.93)])
def test_wilson_covers_95_percent(total: int, share: float) -> None:
    """Exactly: the probability of every count whose interval holds the share."""
    counts = range(int(binom.ppf(1e-9, total, share)), int(binom.ppf(1 - 1e-9, total, share)))
    intervals = {count: wilson(count, total) for count in counts}
    coverage = sum(
        binom.pmf(count, total, share) for count, (low, high) in intervals.items() if low <= share <= high
    )
    assert coverage == COVERED


FLIPS = [  # images lost and gained that are expected
    *[(few, other) for few in (0.1, 0.5, 1, 2, 3, 4.6, 6, 7.5, 10.5, 14.5) for other in (0, 0.3, 1, 2)],
    *[(19.3, 0), (15, 15), (40, 5)],
]


@pytest.mark.parametrize("total", [20, 50, 500])
def test_the_paired_interval_covers_95_percent_however_few_the_flips(total: int) -> None:
    """Exactly: the probability of all counts whose interval holds the difference. With so few flips counts
    are coarse, so that it can't be 95 % everywhere: it is never below 93.5."""
    found = {}
    for lost, gained in FLIPS:
        if lost + gained < total:
            found[lost, gained] = coverage(total, lost / total, gained / total)
    assert min(found.values()) >= 0.935, min(found, key=found.__getitem__)
    many = [share for (lost, gained), share in found.items() if lost + gained >= 20]
    assert all(share <= 0.965 for share in many if total == 500), many


def coverage(total: int, lost: float, gained: float) -> float:
    lost_counts = np.arange(int(binom.ppf(1 - 1e-7, total, lost)) + 1)
    gained_counts = np.arange(int(binom.ppf(1 - 1e-7, total, gained)) + 1)
    truth, covered = lost - gained, 0.0
    lost_of, gained_of = map(np.ravel, np.meshgrid(lost_counts, gained_counts))
    counts = np.stack([lost_of, gained_of, total - lost_of - gained_of], axis=1)
    counts = counts[counts[:, 2] >= 0]
    chances = multinomial.pmf(counts, total, [lost, gained, 1 - lost - gained])
    for (a, b, _), chance in zip(counts.tolist(), chances, strict=True):
        if chance > 1e-9:
            low, high = statistics_of_outcomes._score_interval(a, b, total, 0.95)
            covered += chance if low <= truth <= high else 0.0
    return covered


@pytest.mark.parametrize(
    "shares", [(0.80, 0.06, 0.03, 0.11), (0.88, 0.02, 0.02, 0.08), (0.5, 0.2, 0.05, 0.25)]
)
def test_the_paired_interval_covers_95_percent_and_is_not_wide(shares: tuple[float, ...]) -> None:
    counts = np.random.default_rng(21).multinomial(500, shares, 2_000)
    truth = shares[1] - shares[2]
    drops = [paired_drop(*outcomes(*one)) for one in counts]
    assert np.mean([drop.low <= 100 * truth <= drop.high for drop in drops]) == pytest.approx(0.95, abs=0.015)
    error = (shares[1] + shares[2] - truth**2) ** 0.5 / 500**0.5
    assert np.mean([drop.high - drop.low for drop in drops]) <= 1.12 * 100 * 2 * 1.96 * error


@pytest.mark.slow
@pytest.mark.parametrize("flipped", [0.002, 0.005, 0.01, 0.02, 0.1])
def test_equal_models_are_rarely_called_different(flipped: float) -> None:
    counts = np.random.default_rng(2).multinomial(
        500, (0.9 - flipped, flipped, flipped, 0.1 - flipped), 4_000
    )
    told = [paired_drop(*outcomes(*one)).verdict is not AccuracyVerdict.SAME for one in counts]
    assert np.mean(told) <= 0.055


@pytest.mark.parametrize("total", [20, 50, 500])
def test_shares_near_nothing_and_everything_are_covered(total: int) -> None:
    intervals = [share_interval(count, total) for count in range(total + 1)]
    for expected in (0.01, 0.05, 0.1, 0.17, 0.25, 0.5, 1, 2, 3, 3.9, 5, 6.5, 8, 10):
        share = expected / total
        held = np.array([low <= share <= high for low, high in intervals])
        covered = float(np.sum(binom.pmf(np.arange(total + 1), total, share)[held]))  # type: ignore[index]
        assert covered >= 0.93, expected
    assert share_interval(81, 263) == wilson(81, 263)


# Classes with unequal numbers of images


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shares", "recalls", "images", "at_most"),
    [
        ([0.7, 0.2, 0.1], [0.9, 0.6, 0.3], 500, 0.965),
        ([0.5, 0.3, 0.2], [0.95, 0.9, 0.85], 200, 0.965),
        ([0.8, 0.16, 0.03, 0.01], [0.7] * 4, 376, 0.99),  # a class of four decides
        ([1 / 60] * 60, [0.8] * 60, 100, 1.0),  # an image or two a class: wider than need be
    ],
)
def test_the_interval_of_balanced_accuracy_covers(
    shares: list[float], recalls: list[float], images: int, at_most: float
) -> None:
    random, covered = np.random.default_rng(5), []
    for _ in range(2000):
        classes = random.choice(len(shares), images, p=shares)
        seen = np.unique(classes)
        _, low, high = balanced_share(random.random(images) < np.array(recalls)[classes], classes)
        covered.append(low <= np.array(recalls)[seen].mean() <= high)
    assert 0.935 <= np.mean(covered) <= at_most


@pytest.mark.parametrize(
    ("shares", "recalls", "images"),
    [
        ([0.7, 0.2, 0.1], [0.9, 0.6, 0.3], 500),
        ([0.7, 0.2, 0.1], [0.98, 0.95, 0.9], 500),
        ([0.7, 0.2, 0.1], [0.2, 0.1, 0.05], 500),
        ([0.97, 0.03], [0.99, 0.6], 300),
        ([*np.linspace(1, 5, 100) / 300], [0.95] * 100, 1000),
        ([1 / 60] * 60, [0.8] * 60, 100),
    ],
)
def test_either_end_of_balanced_accuracy_misses_as_rarely_as_it_promises(
    shares: list[float], recalls: list[float], images: int
) -> None:
    random, missed, runs = np.random.default_rng(3), np.zeros(2), 2_000
    for _ in range(runs):
        classes = random.choice(len(shares), images, p=shares)
        truth = np.array(recalls)[np.unique(classes)].mean()
        _, low, high = balanced_share(random.random(images) < np.array(recalls)[classes], classes)
        missed += np.array([low > truth, high < truth]) / runs
    assert (missed <= 0.037).all()


# While more images are scored


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.5, 0.93])
def test_the_growing_interval_holds_at_every_look_at_once(share: float) -> None:
    """The interval for a fixed number of images misses at one look or another."""
    random, looks = np.random.default_rng(0), [round(10 * 1.6**step) for step in range(9)]
    missed, fixed_missed, runs = 0, 0, 200
    for _ in range(runs):
        right = np.cumsum(random.random(500) < share)
        missed += any(not _holds(growing_share_interval, int(right[n - 1]), n, share) for n in looks)
        fixed_missed += any(not _holds(share_interval, int(right[n - 1]), n, share) for n in looks)
    assert missed <= binom.ppf(0.999, runs, 0.05)
    assert fixed_missed > binom.ppf(0.999, runs, 0.05)


def _holds(interval: Callable[[int, int], tuple[float, float]], right: int, total: int, share: float) -> bool:
    low, high = interval(right, total)
    return low <= share <= high


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_growing_interval_holds_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    right, total = counts
    low, high = growing_share_interval(right, total)
    assert 0 <= low <= right / total <= high <= 1
    wrong_low, wrong_high = growing_share_interval(total - right, total)
    assert (1 - wrong_high, 1 - wrong_low) == pytest.approx((low, high))


def test_a_growing_drop_has_the_points_and_flips_of_a_fixed_one_and_is_wider() -> None:
    before, after = np.arange(200) % 10 > 0, np.arange(200) % 7 > 0
    fixed = paired_drop(before, after)
    growing = growing_drop(fixed)
    assert (growing.points, growing.lost, growing.gained) == (fixed.points, fixed.lost, fixed.gained)
    assert growing.low < fixed.low < fixed.high < growing.high
    lost, gained = (growing_share_interval(flips, 200, 0.975) for flips in (fixed.lost, fixed.gained))
    ends = (100 * (lost[0] - gained[1]), 100 * (lost[1] - gained[0]))
    assert (growing.low, growing.high) == pytest.approx(ends), "both hold at once at 95 %"
    alone = growing_drop(disagreement(after))
    assert (alone.low, alone.high) == tuple(
        100 * end for end in growing_share_interval(int((~after).sum()), 200)
    )


# Many at once


def shown_of(losses: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Which of ``losses``, known with a standard error of 1, are shown to be at most 0."""
    ends = [lambda confidence, loss=loss: loss + ndtri((1 + confidence) / 2) for loss in losses]
    return shown_within(ends, 0.0, weights)


@pytest.mark.parametrize("together", [0.0, 0.7])
@pytest.mark.parametrize("weighted", [False, True])
def test_of_many_that_lose_as_much_as_is_allowed_none_is_shown_to_keep(
    weighted: bool, together: float
) -> None:
    """But for 2.5 of 100 times, whatever they have in common."""
    random, tried = np.random.default_rng(7), 20
    weights = 1 / np.arange(1, tried + 1) if weighted else None
    wrong = 0
    for _ in range(SIMULATIONS):
        common = together**0.5 * random.standard_normal() + (1 - together) ** 0.5 * random.standard_normal(
            tried
        )
        wrong += shown_of(common, weights).any()
    assert wrong / SIMULATIONS <= 0.025 + 3 * (0.025 * 0.975 / SIMULATIONS) ** 0.5


def test_what_weighs_more_is_shown_more_easily_and_what_is_shown_leaves_its_weight_to_the_others() -> None:
    losses = np.array([-2.6, *[5.0] * 19])
    weights = 1 / np.arange(1, 21)
    assert not shown_of(losses).any()
    assert shown_of(losses, weights)[0]
    assert not shown_of(losses[::-1].copy(), weights).any(), "tried last"
    assert shown_of(np.array([-9.0, -2.1]), np.array([9.0, 1.0])).all()
    assert not shown_of(np.array([5.0, -2.1]), np.array([9.0, 1.0])).any()
    assert not shown_of(np.array([])).any()
