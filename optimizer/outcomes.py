"""Intervals and tests of counted outcomes, derived from one boolean an image whenever a result is read."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from optimizer.errors import InputError


def wilson(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion, as shares between 0 and 1.

    Raises InputError unless ``0 <= successes <= total``, ``total >= 1`` and ``0 < confidence < 1``.
    """
    if not (0 <= successes <= total and total >= 1):
        raise InputError(
            f"{successes} of {total} is not a proportion: give 0 <= successes <= total, total >= 1"
        )
    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence:g} is out of range: between 0 and 1, such as 0.95")
    interval = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    # Rounding must not put the proportion outside its own interval.
    share = successes / total
    return min(float(interval.low), share), max(float(interval.high), share)


@dataclass(frozen=True, slots=True)
class PairedDrop:
    """What the variant loses against the baseline on the same images, in percentage points.

    Positive is worse. ``lost`` images were right and are now wrong, ``gained`` the reverse; ``p`` is the
    exact McNemar test on the two.
    """

    points: float
    low: float
    high: float
    p: float
    lost: int
    gained: int


def paired_drop(baseline: ArrayLike, variant: ArrayLike, confidence: float = 0.95) -> PairedDrop:
    """Compare outcomes, boolean ``[N]`` each, image by image.

    The interval is Newcombe's for paired proportions: two Wilson intervals, squared and added, with the
    continuity-corrected correlation (R. G. Newcombe, Statistics in Medicine 17, 1998, 2635-2650, method 10).
    Raises InputError when the two are not boolean, are empty or differ in length.
    """
    before, after = np.asarray(baseline), np.asarray(variant)
    if before.ndim != 1 or before.shape != after.shape or not len(before):
        raise InputError(
            f"outcomes of shapes {list(before.shape)} and {list(after.shape)} can't be paired: "
            "give one boolean an image, for the same images, at least one"
        )
    if before.dtype != bool or after.dtype != bool:
        raise InputError(
            f"outcomes of types {before.dtype} and {after.dtype}: give booleans, True where right"
        )
    total = len(before)
    both, lost = int((before & after).sum()), int((before & ~after).sum())
    gained = int((~before & after).sum())
    neither = total - both - lost - gained

    share_before, share_after = (both + lost) / total, (both + gained) / total
    low_before, high_before = wilson(both + lost, total, confidence)
    low_after, high_after = wilson(both + gained, total, confidence)
    correlation = _correlation(both, lost, gained, neither)
    drop = (lost - gained) / total
    below = _reach(share_before - low_before, high_after - share_after, correlation)
    above = _reach(high_before - share_before, share_after - low_after, correlation)
    flips = lost + gained
    return PairedDrop(
        points=100 * drop,
        low=100 * (drop - below),
        high=100 * (drop + above),
        p=float(binomtest(lost, flips).pvalue) if flips else 1.0,
        lost=lost,
        gained=gained,
    )


def _correlation(both: int, lost: int, gained: int, neither: int) -> float:
    """Newcombe's corrected phi; 0 where one of the two has a single outcome."""
    product = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if not product:
        return 0.0
    excess: float = both * neither - lost * gained
    if excess > 0:
        excess = max(excess - (both + lost + gained + neither) / 2, 0.0)
    return excess / math.sqrt(product)


def _reach(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0))
