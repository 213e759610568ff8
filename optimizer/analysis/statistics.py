"""Intervals and verdicts of latency, derived from raw samples whenever a result is read.

Nothing here draws random numbers: the bootstrap distribution of a median is computed exactly.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from optimizer.analysis.labels import Labelled
from optimizer.analysis.noise import (
    MIN_CHANGE,
    SMALL_CHANGE,
    Noise,
    aa_noise,
    mean_noise,
    percent,
    series_noise,
    stolen_noise,
)
from optimizer.analysis.rounds import (
    CONFIDENCE,
    MIN_ROUNDS,
    mean_interval,
    median_interval,
    percentile_bounds,
    t_quantile,
)
from optimizer.errors import InputError
from optimizer.formats import format_ratio
from optimizer.records import Latency, Visits

BLOCK_ROUNDS = 10
"""Rounds a block of the bootstrap holds, so that what one round hands to the next stays inside a block."""
MIN_BLOCKS = 5
"""With too few rounds for this many blocks the blocks are shorter."""
MIN_PROCESSES = 2
"""From so many on, an interval is over processes: two, of which others were lost, say little, and rounds of
one build would claim more."""

POWER_PROCESSES = 4
"""Of fewer, how wide an interval is, is itself too much a matter of chance to say what it detects."""
POWER_SHARE = NormalDist().inv_cdf(0.95) / NormalDist().inv_cdf(0.975)
"""Half an interval of 95 %, times this, is what 95 of 100 estimates do not fall short of the truth by."""


class LatencyVerdict(Labelled):
    """What is said of a time against the baseline's."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "no measurable difference"
    NOISY = "noisy"


SAME = LatencyVerdict.SAME


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """What the samples of one comparison say, in nanoseconds a call and as ratios (1 is the baseline).

    ``p95_ns`` and ``p99_ns`` are upper bounds: at 99 % confidence, that share of calls is no slower.
    ``aa`` is the baseline against itself. How far from 1 its interval reaches may be chance, and where in
    memory two builds of it lie, so a change must exceed that, and 2 %: a floor that holds false verdicts
    below 2 in 100 where builds scatter by at most 0.6 % (below 6 in 100 where all rounds are of one process,
    and their autocorrelation is 0.7 or more). The intervals are at 95 %; under six rounds no such
    interval exists, so that they span what was seen and no difference is told. Of MIN_PROCESSES processes and
    more they are over processes, in each of which all was built anew. ``mean_ratio`` is of all time
    spent: nothing is called faster or slower by the median that is not by the mean. ``detectable`` is the
    share by which a time must change to be told in 95 of 100 such measurements (None under six rounds, and of
    two or three processes). Of visits in one process that is SMALL_CHANGE and more: a smaller one that it
    finds is told where fresh processes find it too.
    ``reasons`` say why the verdict is noisy. ``checksum`` is that of the measurement
    (:attr:`optimizer.records.Latency.checksum`), 0 of bare times.
    """

    median_ns: float
    p95_ns: float | None
    p99_ns: float | None
    rounds: int
    ratio: float
    ratio_low: float
    ratio_high: float
    aa_ratio: float
    aa_low: float
    aa_high: float
    mean_ratio: float
    detectable: float | None
    verdict: LatencyVerdict
    reasons: tuple[Noise, ...]
    checksum: int = 0

    @property
    def noise(self) -> tuple[str, ...]:
        """The reasons in words."""
        return tuple(reason.words for reason in self.reasons)

    def to_dict(self) -> dict[str, Any]:
        """Of a comparison what its JSON says: plain but for the verdict."""
        names = ("ratio", "ratio_low", "ratio_high", "verdict", "detectable", "noise", "rounds")
        return {name: getattr(self, name) for name in names}

    @property
    def ratio_words(self) -> str:
        """``0.450× (0.449 to 0.451)``."""
        return format_ratio(self.ratio, self.ratio_low, self.ratio_high)

    @property
    def detectable_words(self) -> str:
        """``could have detected changes above 2.9 %``: what "no measurable difference" leaves open."""
        if self.detectable is None:
            return "too few rounds or processes to say which changes could have been detected"
        return f"could have detected changes above {percent(self.detectable, 2)}"


def summarise_visits(
    baseline: tuple[Visits, Visits], variant: Visits, stolen_share: float, processes: Sequence[int]
) -> LatencySummary:
    """Compare the visits to a variant with those to two builds of the baseline in the same rounds.

    A visit counts by the median of its timed calls; percentiles are of the timed calls themselves.
    ``processes`` are the rounds of each process. Raises InputError as :func:`summarise_latency` does.
    """
    summary = summarise_latency(
        [build.medians_ns for build in baseline],
        variant.medians_ns,
        stolen_share,
        np.concatenate(variant.steady),
        means_ns=(
            [_time_shares(build.means_ns, build.timed, processes) for build in baseline],
            _time_shares(variant.means_ns, variant.timed, processes),
        ),
        processes=processes,
    )
    detectable = summary.detectable
    if detectable is not None and len(processes) < MIN_PROCESSES:
        detectable = max(detectable, SMALL_CHANGE)
    return replace(summary, checksum=variant.calls.checksum, detectable=detectable)


def first_call_ratio(
    baseline: tuple[Visits, Visits], variant: Visits, processes: Sequence[int]
) -> tuple[float, float, float]:
    """Time of a variant's first call after another network over the baseline's, and its 95 % interval."""
    before = np.array([build.first_ns for build in baseline], float)
    return ratio_interval(np.log(variant.first_ns / before).T, processes)


def summarise_latency(
    baseline_ns: ArrayLike,
    variant_ns: ArrayLike,
    stolen_share: float = 0.0,
    single_ns: ArrayLike = (),
    smallest_change: float = MIN_CHANGE,
    *,
    means_ns: tuple[ArrayLike, ArrayLike] | None = None,
    processes: Sequence[int] = (),
) -> LatencySummary:
    """Compare the rounds of a variant ``[R]`` with the two baseline builds ``[2, R]`` in the same rounds.

    Where a sample is of several calls, ``single_ns`` has single ones of the variant: percentiles are of
    these; and where it is their median, ``means_ns`` has the baseline's and the variant's means. No change up
    to ``smallest_change`` is told. ``processes`` are the rounds of each process, where these were several.

    The ratio is the median of the per-round log ratios of the variant to either build of the baseline.
    (Against the mean of the two it would be biased: the noise of a call is skewed, and averaging takes the
    skew out of one side only.) Raises InputError on other shapes, fewer than two rounds and times that are
    not positive.
    """
    baseline, variant = np.asarray(baseline_ns, float), np.asarray(variant_ns, float)
    rounds = variant.size
    if variant.shape != (rounds,) or baseline.shape != (2, rounds) or rounds < 2:
        raise InputError(
            f"latency samples of shapes {list(baseline.shape)} and {list(variant.shape)} are no comparison: "
            "give the baseline as [2, rounds] and the variant as [rounds], with at least 2 rounds"
        )
    for samples in (baseline, variant):
        if not (np.isfinite(samples) & (samples > 0)).all():
            raise InputError("latency samples must be finite and above 0 ns: measure again")
    before, after = map(np.asarray, means_ns or (baseline, variant))
    ratio, low, high = ratio_interval(np.log(variant / baseline).T, processes)
    aa_ratio, aa_low, aa_high = ratio_interval(np.log(baseline[:1] / baseline[1:]).T, processes)
    mean_ratio = float(after.mean() / before.mean())
    floor = max(smallest_change, 1 / aa_low - 1, aa_high - 1)
    change = change_of(ratio, low, high, rounds, floor)
    told = change is not SAME
    reasons = (
        *aa_noise(aa_ratio, aa_low, aa_high, told),
        *series_noise("baseline", baseline, before, processes),
        *series_noise("variant", variant[None], after, processes),
        *mean_noise(ratio, mean_ratio, told),
        *stolen_noise(stolen_share),
    )
    half = math.expm1(math.log(high / low) / 2)
    tells_power = rounds >= MIN_ROUNDS and not MIN_PROCESSES <= len(processes) < POWER_PROCESSES
    single = np.asarray(single_ns, float)
    p95, p99 = percentile_bounds(single if single.size else variant)
    return LatencySummary(
        median_ns=time_interval(variant, processes)[0],
        p95_ns=p95,
        p99_ns=p99,
        rounds=rounds,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        aa_ratio=aa_ratio,
        aa_low=aa_low,
        aa_high=aa_high,
        mean_ratio=mean_ratio,
        detectable=max(floor, half) + POWER_SHARE * half if tells_power else None,
        verdict=LatencyVerdict.NOISY if reasons else change,
        reasons=reasons,
    )


def change_of(ratio: float, low: float, high: float, rounds: int, floor: float) -> LatencyVerdict:
    """What is said of a ratio and its 95 % interval, where nothing was noisy: a change is told where the
    interval excludes 1 and the change exceeds the ``floor``."""
    if rounds >= MIN_ROUNDS and not low <= 1 <= high and abs(ratio - 1) > floor:
        return LatencyVerdict.FASTER if ratio < 1 else LatencyVerdict.SLOWER
    return SAME


def process_ratios(latency: Latency) -> tuple[float, ...]:
    """The ratio to the baseline that each of several processes found; nothing where there was one."""
    if len(latency.processes) < MIN_PROCESSES:
        return ()
    before = np.array([build.medians_ns for build in latency.baseline])
    logs = np.log(latency.variant.medians_ns / before).T
    return tuple(np.exp(_by_process(logs, latency.processes)).tolist())


def time_interval(times_ns: ArrayLike, processes: Sequence[int] = ()) -> tuple[float, float, float]:
    """The median of times ``[R]`` or ``[R, K]`` (K a round) and its 95 % interval: over processes where there
    are MIN_PROCESSES, of whose medians it is the geometric mean, else over rounds."""
    times = np.asarray(times_ns, float)
    if len(processes) < MIN_PROCESSES:
        return median_interval(times)
    return _over_processes(np.log(times.reshape(len(times), -1)), processes)


def mean_time_interval(
    means_ns: ArrayLike, processes: Sequence[int] = (), calls: ArrayLike = ()
) -> tuple[float, float, float]:
    """The same of the mean time of a call: all the time of a process over all its calls, which is what a
    throughput goes by; over processes the mean of the logarithms. ``means_ns`` ``[R]`` are those of visits,
    of so many ``calls`` each (as many in all, where none are given).

    A visit lasts for a time: one that a long call falls into, or a slow spell, has fewer calls. Were all
    visits to count alike, the mean would be too large, by 8 % where one visit in five is half as fast, since
    a mean of ratios is biased; a ratio of sums over calls that stop at a time is not (A. Wald, Annals of
    Mathematical Statistics 15, 1944, 283-296).
    """
    means = np.asarray(means_ns, float)
    shares = _time_shares(means, calls, processes)
    if len(processes) >= MIN_PROCESSES:
        return _over_processes(shares, processes, lambda part: np.log(part.mean()))
    if len(means) < MIN_ROUNDS:
        return float(shares.mean()), float(means.min()), float(means.max())
    mean, low, high = mean_interval(shares)
    return mean, max(low, min(float(means.min()), mean)), high


def _time_shares(
    means: NDArray[np.float64], calls: ArrayLike, processes: Sequence[int]
) -> NDArray[np.float64]:
    """What each visit adds to the time of its process over the calls of that, ``[R]``: the mean of these is
    that ratio, and they scatter as it does (the ratio estimator of W. G. Cochran, Sampling Techniques,
    section 6.3)."""
    counts = np.asarray(calls, float) if np.size(calls) else np.ones(len(means))
    found = []
    for mean, count in zip(
        *(np.split(one, np.cumsum(processes)[:-1]) for one in (means, counts)), strict=True
    ):
        ratio = (mean * count).sum() / count.sum()
        found.append(ratio + count * (mean - ratio) / count.mean())
    return np.concatenate(found)


def ratio_interval(logs: NDArray[np.float64], processes: Sequence[int] = ()) -> tuple[float, float, float]:
    """The ratio of log ratios ``[R, K]`` (K a round) and its 95 % interval: over processes where there are
    MIN_PROCESSES, else over rounds."""
    if len(processes) < MIN_PROCESSES:
        return median_ratio(logs)
    return _over_processes(logs, processes)


def _over_processes(
    values: NDArray[np.float64],
    processes: Sequence[int],
    log_of: Callable[[NDArray[np.float64]], float] = np.median,
) -> tuple[float, float, float]:
    """The mean of what ``log_of`` gives of each process's rounds of ``values`` ``[R, ...]``, and its 95 %
    interval, by the t of one degree of freedom less; not as logarithms.

    The processes scatter by what builds differ in and by what rounds leave open, so that the interval holds
    both. A bootstrap of five processes would be too narrow.
    """
    middle, half = mean_of_processes(_by_process(values, processes, log_of))
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def mean_of_processes(values: NDArray[np.float64], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The mean of values ``[P]``, one a process, and half of its interval, by Student's t. Infinite of one
    alone, which tells nothing."""
    if len(values) < 2:
        return float(values.mean()), math.inf
    t = t_quantile(len(values) - 1, confidence)
    return float(values.mean()), float(t * values.std(ddof=1) / math.sqrt(len(values)))


def _by_process(
    values: NDArray[np.float64],
    processes: Sequence[int],
    of: Callable[[NDArray[np.float64]], float] = np.median,
) -> NDArray[np.float64]:
    """Medians, or another figure, of ``values`` ``[R, ...]``, of which each process has so many rounds."""
    return np.array([of(part) for part in np.split(values, np.cumsum(processes)[:-1])])


def median_ratio(logs: NDArray[np.float64]) -> tuple[float, float, float]:
    """Median of log ratios ``[R, K]`` (K a round) and its 95 % interval, as ratios."""
    if len(logs) < MIN_ROUNDS:
        low, high = logs.min(), logs.max()
    else:
        low, high = _bootstrap_low(logs), -_bootstrap_low(-logs)
    middle = np.median(logs)
    return math.exp(middle), math.exp(min(low, middle)), math.exp(max(high, middle))


def _bootstrap_low(values: NDArray[np.float64]) -> float:
    """Lower end of the 95 % interval for the median of ``values`` ``[R, K]``, from blocks of rounds.

    Circular block bootstrap (Politis and Romano, 1992), percentile interval, expanded for the small number
    of blocks (T. Hesterberg, arXiv 1411.5279). A resampled median is at most x when half of the
    resample is; the values up to x in it are a sum of independent blocks, so their distribution is a
    convolution power, computed exactly where drawing resamples would only estimate it.
    """
    rounds, a_round = values.shape
    block = max(1, min(BLOCK_ROUNDS, rounds // MIN_BLOCKS))
    blocks = rounds // block
    order = np.argsort(values, axis=None)
    round_of = order // a_round

    def chance(index: int) -> float:
        marked = np.bincount(round_of[: index + 1], minlength=rounds)
        return _chance_of_half(marked, block, blocks, a_round)

    index = bisect_left(range(len(order)), _tail(blocks), key=chance)
    return float(values.flat[order[index]])


@cache
def _tail(blocks: int) -> float:
    """Share of the bootstrap distribution to leave out at either end: 2.5 %, less for few blocks."""
    return float(scipy.special.ndtr(-math.sqrt(blocks / (blocks - 1)) * t_quantile(blocks - 1, 0.95)))


def _chance_of_half(marked: NDArray[np.int64], block: int, blocks: int, a_round: int) -> float:
    """Chance that at least half of ``blocks`` drawn blocks of rounds is marked: so many of ``a_round`` in
    each round, ``marked`` ``[R]``."""
    running = np.concatenate((marked, marked[:block])).cumsum()
    in_block = running[block:] - running[:-block]  # of the R circular blocks, one each
    size, upper_half = _upper_half(blocks * block * a_round)
    spectrum = np.fft.rfft(np.bincount(in_block) / len(marked), size)
    return float(np.dot(upper_half, spectrum**blocks).real)


@lru_cache(maxsize=64)
def _upper_half(most: int) -> tuple[int, NDArray[np.complex128]]:
    """A size for the Fourier transform of the distribution of a count from 0 to ``most``, and what adds up
    the chances of half of them and more, of that transform."""
    size = scipy.fft.next_fast_len(most + 1, real=True)
    frequencies, counts = np.arange(size // 2 + 1), np.arange(size)
    twice = np.where((frequencies == 0) | (2 * frequencies == size), 1, 2)  # those left out are mirrored
    upper = np.fft.rfft((counts >= (most + 1) // 2) & (counts <= most))
    return size, twice / size * upper.conj()
