"""Intervals for how far outputs moved: for a mean over images, or a ratio of sums, of what is never negative.

A few images often carry most of a change. The skewness of a small sample then tells too little of the tail
that is yet to come, and an interval by it misses the truth on one side: it calls the change too small. On
simulated and on recorded energies of errors, which are close to lognormal, that happened to 6 to 9 of 100
intervals of 20 to 30 images where 2.5 are promised, and to 15 where tails are heavier. So the upper end is
also that of a lognormal distribution fitted to the images, unless these contradict it: the ends
then miss 2 to 4 of 100 from MIN_IMAGES on in most cases, without being wider than need be. Where tails are
heavier than a lognormal's they miss more: of a residual network's 8-bit weights the upper end of SQNR's
change misses 9 of 100 at 20 images, 7 at 100 and 3 at 1,000, and that of divergences (KL) 18, 9 and 4. What
no image of a sample shows is in no interval: what one image in 100 suffers from takes 300 images to be among
them, and 1,000 to be covered as promised.
"""

import math

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from optimizer.analysis.rounds import CONFIDENCE, normal_quantile, skewed, t_quantile

MIN_IMAGES = 20
"""With fewer no interval is given: it would miss too often, or span tens of decibels."""
MIN_MOVED = 10
"""Images that a change has to be spread over before the shape of its distribution is fitted."""


def positive_mean_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Interval for the mean of values ``[N]``, none below 0, as :func:`positive_ratio_interval`."""
    sample = np.asarray(values, float)
    return positive_ratio_interval(sample, np.ones(len(sample)), confidence)


def positive_ratio_interval(
    above: ArrayLike, below: ArrayLike, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Interval for the sum of ``above`` over the sum of ``below``, ``[N]`` each, one an image and none below
    0. None under MIN_IMAGES; the lower end is 0 or less where few images carry most of ``above``."""
    numerator, denominator = np.asarray(above, float), np.asarray(below, float)
    if len(numerator) < MIN_IMAGES:
        return None
    ratio = float(numerator.sum() / denominator.sum())
    added = ratio + (numerator - ratio * denominator) / denominator.mean()
    low, high = _by_skewness(added, confidence)
    fitted = _of_lognormal(numerator, denominator, confidence)
    return low, max(high, fitted[1]) if fitted and fitted[0] <= ratio else high


def _by_skewness(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Interval for the mean of values ``[N]``: Student's, with the skewness taken out by Hall's cubic
    transformation (P. Hall, Journal of the Royal Statistical Society B 54, 1992, 221-228): as accurate as a
    bootstrap of t, without drawing."""
    number, mean, spread = len(values), float(values.mean()), float(values.std())
    if not spread > 0:
        return mean, mean
    skew = float((((values - mean) / spread) ** 3).mean()) / math.sqrt(number)
    error = spread / math.sqrt(number - 1)
    quantile = t_quantile(number - 1, confidence)
    return mean - skewed(quantile, skew) * error, mean - skewed(-quantile, skew) * error


def _of_lognormal(
    above: NDArray[np.float64], below: NDArray[np.float64], confidence: float
) -> tuple[float, float] | None:
    """Interval for the ratio of sums where what an image has ``above`` over what it has ``below`` is
    lognormal; None where the change is spread over fewer than MIN_MOVED images.

    The ratio of sums is the mean of the images' ratios, weighted by ``below``. That of a lognormal
    distribution is ``exp(mean + variance / 2)`` of the logarithms, whose intervals are put together by their
    distances from the estimates (G. Y. Zou, C. Y. Huo and J. Taleb, Environmetrics 20, 2009, 172-180). The
    images that did not move are a share that is taken as known (J. Aitchison, JASA 50, 1955, 901-908).
    """
    moved = (above > 0) & (below > 0)
    if moved.sum() < MIN_MOVED:
        return None
    weights = below[moved] / below[moved].sum()
    images = 1 / float((weights**2).sum())  # as many of equal weight know as much (L. Kish, 1965)
    if images < MIN_MOVED:
        return None
    logs = np.log(above[moved] / below[moved])
    mean, freedom = float(weights @ logs), images - 1
    variance = float(weights @ (logs - mean) ** 2) * images / freedom
    reach = normal_quantile(confidence) * math.sqrt(variance / images)
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    least, most = (variance * freedom / float(scipy.special.chdtri(freedom, tail)) for tail in tails)
    middle = mean + variance / 2 + math.log(below[moved].sum() / below.sum())
    low = middle - math.hypot(reach, (variance - least) / 2)
    high = middle + math.hypot(reach, (most - variance) / 2)
    with np.errstate(over="ignore"):
        return float(np.exp(low)), float(np.exp(high))
