"""Intervals for medians, means and percentiles of rounds that depend on each other.

A disturbance lasts longer than a round, so that so many rounds tell less than so many independent ones would.
How much less is estimated from the autocorrelation of the rounds, by the initial positive sequence
(C. J. Geyer, Statistical Science 7, 1992, 473-483), corrected for its bias, since the mean is estimated too,
and with a t of as many degrees of freedom as there are windows in the series. Of few rounds that
depend on each other the intervals are too narrow: 95 % come to 85 % for 6 rounds at an autocorrelation of
0.5, and at 0.8 to 72 % for 8 and 90 % for 20. A state of the machine that did not occur among the rounds is
in no interval.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
MIN_ROUNDS = 6
"""With fewer, not even the range of the rounds holds a median in 95 % of cases (2 / 2**5 > 0.05)."""
PERCENTILE_ROUNDS = {0.95: 130, 0.99: 662}
"""Rounds from which the second largest sample is an upper bound at 99 % confidence (as in MLPerf)."""
ROUNDS_A_PAIR, MAX_MIN_PAIRS = 100, 10
"""In a long series the window holds at least a pair of lags for so many rounds, up to ten: the small
correlations of rare bursts would end Geyer's sequence too early."""
MAX_WINDOW_SHARE = 0.75


def confidence_of_each(tried: int) -> float:
    """What the interval of each of ``tried`` needs, for all of them to hold the truth at once with CONFIDENCE
    (Bonferroni's inequality): the best of many is in part the luckiest."""
    return 1 - (1 - CONFIDENCE) / max(tried, 1)


@dataclass(frozen=True, slots=True)
class Dependence:
    """How a series ``[R]`` hangs together: the ``variance`` of a round, the ``long_run`` variance (R times
    that of the mean), the lags in the ``window`` that it was summed over, on both sides of 0, and ``rounds``.
    """

    variance: float
    long_run: float
    window: int
    rounds: int

    @property
    def effective(self) -> float:
        """As many independent rounds would know the mean as well."""
        return self.rounds * self.variance / self.long_run if self.long_run else float(self.rounds)

    @property
    def standard_error(self) -> float:
        """Of the mean."""
        return math.sqrt(self.long_run / self.rounds)

    def quantile(self, confidence: float = CONFIDENCE) -> float:
        """Standard errors to either side that hold the truth with ``confidence``."""
        return t_quantile(max(self.rounds / self.window - 1, 1.0), confidence)


def dependence(series: NDArray[np.float64]) -> Dependence:
    """Estimate it from a series ``[R]``. Negative autocorrelation is not made use of."""
    rounds = len(series)
    centred = series - series.mean()
    spectrum = np.fft.rfft(centred, 2 ** (2 * rounds - 1).bit_length())
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[:rounds] / rounds
    pairs = covariance[: rounds // 2 * 2].reshape(-1, 2).sum(axis=1)
    over = pairs <= 0
    over[: min(max(1, rounds // ROUNDS_A_PAIR), MAX_MIN_PAIRS)] = False
    count = int(over.argmax()) if over.any() else len(pairs)
    window = 4 * count - 1
    variance = max(float(covariance[0]), 0.0)
    summed = 2 * float(np.cumsum(pairs[:count]).max()) - variance
    unbiased = max(summed, variance) / (1 - min(window / rounds, MAX_WINDOW_SHARE))
    return Dependence(variance, unbiased, window, rounds)


def median_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """The median of ``values`` ``[R]`` or ``[R, K]`` (K a round) and its interval."""
    return quantile_interval(values, 0.5, confidence)


def quantile_interval(
    values: ArrayLike, share: float, confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """The value that ``share`` of ``values`` ``[R]`` or ``[R, K]`` (K a round) stay below, and its
    interval; the range, where there are under six rounds.

    By order statistics (R. S. Woodruff, JASA 47, 1952, 635-646): how well the share of values below it is
    known, from its :func:`dependence` round by round, read off as quantiles.
    """
    table = np.asarray(values, float)
    table = table.reshape(len(table), -1)
    middle = float(np.quantile(table, share))
    if len(table) < MIN_ROUNDS:
        return middle, float(table.min()), float(table.max())
    below = ((table < middle) + share * (table == middle)).mean(axis=1)
    known = dependence(below)
    half = known.quantile(confidence) * known.standard_error
    low, high = np.quantile(table, np.clip([share - half, share + half], 0, 1), method="hazen")
    return middle, min(float(low), middle), max(float(high), middle)


def mean_interval(values: ArrayLike) -> tuple[float, float, float]:
    """The mean of ``values`` ``[R]`` or ``[R, K]`` and its 95 % interval; the range, where there are under
    six rounds.

    Times are skewed: the quantiles of t are transformed by the skewness (P. Hall, JRSS B 54, 1992, 221-228).
    No mean is below the shortest round: where few rounds were very long, quantiles can be, even below 0.
    """
    table = np.asarray(values, float)
    series = table.reshape(len(table), -1).mean(axis=1)
    mean = float(series.mean())
    if len(series) < MIN_ROUNDS:
        return mean, float(table.min()), float(table.max())
    known = dependence(series)
    if not known.variance:
        return mean, mean, mean
    skewness = float(((series - mean) ** 3).mean()) / known.variance**1.5
    # The mean of so many dependent rounds keeps the skewness of as many fewer independent ones.
    a = skewness / math.sqrt(known.effective)
    t = known.quantile()
    low, high = (mean - skewed(end, a) * known.standard_error for end in (t, -t))
    return mean, min(max(low, float(series.min())), mean), max(high, mean)


def skewed(t: float, a: float) -> float:
    """Hall's transformation, inverted: where the studentised mean, of skewness ``a``, has the quantile that
    Student's has at ``t``."""
    if abs(a) < 1e-6:
        return t
    return float(3 / a * (np.cbrt(1 + a * (t - a / 6)) - 1))


def percentile_bound(samples: NDArray[np.float64], share: float) -> float | None:
    """The smallest order statistic of ``samples`` ``[R]``, in the order they were taken, that ``share`` of
    all calls stay below, at 99 % confidence.

    None with fewer samples than PERCENTILE_ROUNDS says of the share, or where slow calls come in such bursts
    that as few independent samples, by their :func:`dependence`, would have no bound.
    """
    total = len(samples)
    if total < PERCENTILE_ROUNDS[share]:
        return None
    ordered = np.sort(samples)
    known = dependence((samples >= ordered[math.ceil(share * total)]).astype(float))
    effective = min(total, int(known.effective))
    index = _bound_index(effective, share)
    if index >= effective:
        return None
    return float(ordered[min(total, math.ceil((index + 1) / effective * total)) - 1])


def percentile_bounds(samples: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """:func:`percentile_bound` of the 95th and of the 99th percentile. A bound of the 99th bounds the 95th
    too; where bursts make it the smaller one, it is taken."""
    p95, p99 = (percentile_bound(samples, share) for share in (0.95, 0.99))
    return min((one for one in (p95, p99) if one is not None), default=None), p99


@cache
def _bound_index(rounds: int, share: float) -> int:
    """The 99th percentile of how many of so many samples lie below the percentile."""
    if not rounds:
        return 0
    least = math.ceil(scipy.special.bdtrik(0.99, rounds, share))
    # It is rounded up from a real number, and may be one too high.
    return least - 1 if scipy.special.bdtr(least - 1, rounds, share) >= 0.99 else least


def normal_quantile(confidence: float) -> float:
    """How many standard deviations to either side hold this share of a normal distribution."""
    return -float(scipy.special.ndtri((1 - confidence) / 2))


@cache
def t_quantile(freedom: float, confidence: float) -> float:
    """The same of Student's t."""
    return -float(scipy.special.stdtrit(freedom, (1 - confidence) / 2))
