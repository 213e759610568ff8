"""Intervals, tests and verdicts of what each image says, derived from raw outcomes when a result is read.

Whether accuracy differs is decided in one place: :attr:`PairedDrop.verdict`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from optimizer.analysis.labels import Labelled
from optimizer.analysis.rounds import CONFIDENCE, normal_quantile, t_quantile
from optimizer.errors import InputError
from optimizer.formats import format_points

MAX_RARE = 3
"""A share of so many counts or fewer, from either end, has the exact interval's end there."""
CORRECTION = 0.25
"""Images taken off a difference before it is tested. Without it the score interval covers 93 % where there
are few flips, with it at least 93.7 %; half an image and a whole one cover more than is promised."""


# Shares


def wilson(successes: float, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval for a proportion, as shares between 0 and 1.

    Raises InputError unless ``0 <= successes <= total`` and ``total >= 1``.
    """
    _check_share(successes, total)
    return _wilson(successes / total, total, normal_quantile(confidence))


def _wilson(share: float, total: float, z: float) -> tuple[float, float]:
    middle = (total * share + z * z / 2) / (total + z * z)
    reach = z * math.sqrt(total * share * (1 - share) + z * z / 4) / (total + z * z)
    # Rounding must not put the proportion outside its own interval.
    return min(max(middle - reach, 0.0), share), max(min(middle + reach, 1.0), share)


def share_interval(successes: float, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's interval, which with one to MAX_RARE of a kind would leave out the truth too often: there the
    end that is near 0 or 1 is the exact interval's (Brown, Cai and DasGupta, Statistical Science 16, 2001,
    101-133, section 4.1.2, do the same with Poisson quantiles). Raises InputError as :func:`wilson` does.
    """
    low, high = wilson(successes, total, confidence)
    if 0 < successes <= MAX_RARE:
        exact = scipy.special.betaincinv(successes, total - successes + 1, (1 - confidence) / 2)
        low = min(low, float(exact))
    if 0 < total - successes <= MAX_RARE:
        exact = scipy.special.betaincinv(successes + 1, total - successes, (1 + confidence) / 2)
        high = max(high, float(exact))
    return low, high


def _check_share(successes: float, total: int) -> None:
    if not (0 <= successes <= total and total >= 1):
        raise InputError(
            f"{successes} of {total} is not a proportion: give 0 <= successes <= total, total >= 1"
        )


def growing_share_interval(successes: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval for a proportion of which more is seen all the time: it holds at every look at once,
    whenever one stops. Shares between 0 and 1.

    A confidence sequence: the shares under which the outcomes are at most ``1 / (1 - confidence)`` times less
    likely than under all shares mixed uniformly (H. Robbins, Annals of Mathematical Statistics 41, 1970,
    1397-1409; I. Waudby-Smith and A. Ramdas, NeurIPS 2020, call it the prior-posterior ratio). The examples
    have to come in a random order. Raises InputError as :func:`wilson` does.
    """
    _check_share(successes, total)
    failures, share = total - successes, successes / total
    least = scipy.special.betaln(successes + 1, failures + 1) + math.log(1 - confidence)

    def surplus(p: float) -> float:
        """Log likelihood of a share over the least that one in the interval has."""
        return float(scipy.special.xlogy(successes, p) + scipy.special.xlogy(failures, 1 - p) - least)

    low = scipy.optimize.brentq(surplus, 0, share) if successes else 0.0
    return low, scipy.optimize.brentq(surplus, share, 1) if failures else 1.0


def balanced_share(outcomes: ArrayLike, classes: ArrayLike) -> tuple[float, float, float]:
    """The mean over the classes of the share of right outcomes, and its interval; outcomes boolean ``[N]``,
    classes integers ``[N]``.

    Its variance adds up those of the classes, each with one right and one wrong image more than it has
    (A. Agresti and B. Caffo, The American Statistician 54, 2000, 280-288): a class with a single image has
    some too. How well it is known depends on the classes that it comes from (F. E. Satterthwaite, Biometrics
    Bulletin 2, 1946, 110-114). The interval is Wilson's for as many images as would have this variance were
    all classes one (E. L. Korn and B. I. Graubard, Survey Methodology 24, 1998, 193-201): one of equal reach
    to both sides would call shares near 1 too high. Raises InputError as :func:`disagreement` does.
    """
    right = _outcomes(outcomes)
    _, index, images = np.unique(np.asarray(classes), return_inverse=True, return_counts=True)
    correct = np.bincount(index, weights=right)
    share, shrunk = float((correct / images).mean()), (correct + 1) / (images + 2)
    variances = shrunk * (1 - shrunk) / images
    freedom = variances.sum() ** 2 / (variances**2 / (images + 1)).sum()
    middle, variance = float(shrunk.mean()), float(variances.sum()) / len(images) ** 2
    alike = middle * (1 - middle) / variance
    return share, *_wilson(share, alike, t_quantile(float(freedom), CONFIDENCE))


# What a recipe loses


class AccuracyVerdict(Labelled):
    """What can be said of a difference: its interval excludes 0, or it does not."""

    WORSE = "worse"
    BETTER = "better"
    SAME = "no measurable difference"


@dataclass(frozen=True, slots=True)
class PairedDrop:
    """What one model loses against another on the same images, in percentage points. Positive is worse.

    Of ``total`` images ``lost`` were right and are now wrong, ``gained`` the reverse. ``p`` is the test whose
    acceptance region the interval is; None where right means "as the uncompressed model answers": that one is
    right by definition, and nothing is left to test.
    """

    points: float
    low: float
    high: float
    p: float | None
    lost: int
    gained: int
    total: int

    @property
    def verdict(self) -> AccuracyVerdict:
        """The interval decides, and with it ``p``: below 0.05 exactly where the interval excludes 0."""
        if self.low > 0:
            return AccuracyVerdict.WORSE
        return AccuracyVerdict.BETTER if self.high < 0 else AccuracyVerdict.SAME

    @property
    def words(self) -> str:
        """``1.2 points (0.4 to 2.0)``."""
        return format_points(self.points, self.low, self.high)

    @property
    def turned(self) -> "PairedDrop":
        """What the other model loses against this one."""
        points, low, high = -self.points, -self.high, -self.low
        return replace(self, points=points, low=low, high=high, lost=self.gained, gained=self.lost)

    def high_at(self, confidence: float) -> float:
        """The upper end of the interval at another confidence."""
        if self.low == self.high:  # of :func:`nothing_lost`
            return self.high
        if self.p is None:
            return 100 * share_interval(self.lost, self.total, confidence)[1]
        return 100 * _score_interval(self.lost, self.gained, self.total, confidence)[1]


def paired_drop(baseline: ArrayLike, variant: ArrayLike) -> PairedDrop:
    """Compare outcomes, boolean ``[N]`` each, image by image.

    The interval is the score interval for paired proportions (T. Tango, Statistics in Medicine 17, 1998,
    891-908) with a correction of a quarter of an image, ``p`` McNemar's test with the same correction: the
    two are one test. It depends on flips alone, not on how many images both get right.
    Raises InputError when the two are not boolean, are empty or differ in length.
    """
    before, after = _outcomes(baseline), _outcomes(variant)
    if before.shape != after.shape:
        raise InputError(
            f"outcomes of shapes {list(before.shape)} and {list(after.shape)} can't be paired: "
            "give one boolean an image, for the same images, at least one"
        )
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    low, high = _score_interval(lost, gained, len(before), CONFIDENCE)
    flips = lost + gained
    distance = max(abs(lost - gained) - CORRECTION, 0) / math.sqrt(flips) if flips else 0.0
    return PairedDrop(
        points=100 * (lost - gained) / len(before),
        low=100 * low,
        high=100 * high,
        p=min(1.0, 2 * float(scipy.special.ndtr(-distance))),
        lost=lost,
        gained=gained,
        total=len(before),
    )


def disagreement(agrees: ArrayLike) -> PairedDrop:
    """What a model loses against one that is right by definition: the share of images, boolean ``[N]``, that
    it answers otherwise. One sample, so never below 0. Raises InputError as :func:`paired_drop` does.
    """
    agreed = _outcomes(agrees)
    lost, total = int((~agreed).sum()), len(agreed)
    low, high = share_interval(lost, total)
    return PairedDrop(100 * lost / total, 100 * low, 100 * high, None, lost, 0, total)


def nothing_lost(images: int) -> PairedDrop:
    """What a network loses against itself: nothing, on whatever images."""
    return PairedDrop(0.0, 0.0, 0.0, None, 0, 0, images)


def drop_against(reference: str, baseline: ArrayLike, variant: ArrayLike) -> PairedDrop:
    """What outcomes, boolean ``[N]``, lose: against labels both models can be wrong; against the
    uncompressed model (``reference`` is "baseline"), that one is right by definition."""
    return disagreement(variant) if reference == "baseline" else paired_drop(baseline, variant)


def interval_over(drop: PairedDrop, images: int) -> tuple[float, float]:
    """The interval of a drop, in points, as it would be on so many images with the same shares of flips."""
    lost, gained = (flips * images / drop.total for flips in (drop.lost, drop.gained))
    if drop.p is None:
        low, high = share_interval(lost, images)
    else:
        low, high = _score_interval(lost, gained, images, CONFIDENCE)
    return 100 * low, 100 * high


def shown_within(
    ends: Sequence[Callable[[float], float]], limit: float, weights: ArrayLike | None = None
) -> NDArray[np.bool_]:
    """Which losses are shown to be at most ``limit``, all of them at once, as a boolean ``[N]``. ``ends``
    give the upper end of each one's interval at a confidence. What has more of the ``weights`` ``[N]``, which
    are chosen before its loss is known, is shown more easily at others' expense; without, all are alike.

    One is by its own interval. Of many, by the sequentially rejective test of S. Holm (Scandinavian Journal
    of Statistics 6, 1979, 65-70), whatever they have in common: that any of them is shown wrongly happens no
    more often than with one. Whichever is then picked, for whatever reason, it holds for that one.
    """
    shown = np.zeros(len(ends), bool)
    weight = np.ones(len(ends)) if weights is None else np.asarray(weights, float)
    while True:
        confidences = 1 - (1 - CONFIDENCE) * weight / max(weight[~shown].sum(), np.finfo(float).tiny)
        more = shown.copy()
        for index in np.flatnonzero(~shown).tolist():
            more[index] = ends[index](confidences[index]) <= limit
        if (more == shown).all():
            return shown
        shown = more


def growing_drop(drop: PairedDrop) -> PairedDrop:
    """A drop on the first images of more, with the interval that holds at every look
    (:func:`growing_share_interval`): where both models can be wrong, one of the share lost and one of the
    share gained, each at half the error."""
    if drop.p is None:
        low, high = growing_share_interval(drop.lost, drop.total)
        return replace(drop, low=100 * low, high=100 * high)
    each = (1 + CONFIDENCE) / 2
    lost, gained = (growing_share_interval(flips, drop.total, each) for flips in (drop.lost, drop.gained))
    return replace(drop, low=100 * (lost[0] - gained[1]), high=100 * (lost[1] - gained[0]))


def images_needed(points: float, confidence: float = CONFIDENCE) -> int:
    """The fewest images on which a loss of at most ``points`` can be shown: without a single flip.

    Raises InputError unless ``points`` is between 0 and 100.
    """
    if not 0 < points < 100:
        raise InputError(f"{points:g} points are out of range: more than 0 and less than 100")
    # Without flips the score is (N d - correction) / sqrt(N d (1 - d)): solved for N d, with d the loss.
    loss, z = points / 100, normal_quantile(confidence)
    root = (z * math.sqrt(1 - loss) + math.sqrt(z * z * (1 - loss) + 4 * CORRECTION)) / 2
    return math.ceil(root * root / loss)


def _outcomes(values: ArrayLike) -> NDArray[np.bool_]:
    outcomes = np.asarray(values)
    if outcomes.ndim != 1 or not len(outcomes):
        raise InputError(
            f"outcomes of shape {list(outcomes.shape)} can't be compared: give one boolean an image, "
            "at least one"
        )
    if outcomes.dtype != bool:
        raise InputError(f"outcomes of type {outcomes.dtype}: give booleans, True where right")
    return outcomes


@lru_cache(maxsize=65536)
def _score_interval(lost: float, gained: float, total: int, confidence: float) -> tuple[float, float]:
    """The differences between the shares, between -1 and 1, that the score test does not reject."""
    z = normal_quantile(confidence)
    high = _upper_end(lost, gained, total, z)
    return -_upper_end(gained, lost, total, z), high


def _upper_end(lost: float, gained: float, total: int, z: float) -> float:
    """Where the score falls below ``-z``: it falls steadily from the observed difference on."""
    observed, last = (lost - gained) / total, 1 - 1e-12

    def excess(difference: float) -> float:
        return _score(lost, gained, total, difference) + z

    if observed >= last or excess(last) >= 0:
        return 1.0
    return float(scipy.optimize.brentq(excess, observed, last, xtol=1e-12))


def _score(lost: float, gained: float, total: int, difference: float) -> float:
    """The score statistic of a difference at or above the observed one, corrected towards 0.

    Its variance is that of the likeliest shares with this difference: Tango's quadratic equation for the
    share of images gained.
    """
    if difference < 0:  # the equation is for a difference above 0; from the other side it is one
        gain, apart = _likeliest(gained, lost, total, -difference), -difference
    else:
        gain, apart = _likeliest(lost, gained, total, difference), difference
    variance = total * (2 * gain + apart * (1 - apart))
    away = min(lost - gained - total * difference + CORRECTION, 0.0)
    return away / math.sqrt(variance) if variance > 0 else 0.0


def _likeliest(lost: float, gained: float, total: int, difference: float) -> float:
    linear = (2 * total - lost + gained) * difference - lost - gained
    constant = -gained * difference * (1 - difference)
    return max((math.sqrt(linear**2 - 8 * total * constant) - linear) / (4 * total), 0.0)
