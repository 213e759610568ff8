"""Intervals and verdicts of latency, derived from raw samples whenever a result is read.

Nothing here draws random numbers: the bootstrap distribution of a median is computed exactly.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, norm, quantile_test
from scipy.stats import t as student_t

from optimizer.errors import InputError

BLOCK_ROUNDS = 10
"""Rounds a block of the bootstrap holds, so that what one round hands to the next stays inside a block."""
LEAST_BLOCKS = 5
"""With too few rounds for this many blocks the blocks are shorter."""
LEAST_ROUNDS = 6
"""With fewer, not even the range of the rounds holds a median in 95 % of cases (2 / 2**5 > 0.05)."""
PERCENTILE_ROUNDS = {0.95: 130, 0.99: 662}
"""Rounds from which the second largest sample is an upper bound at 99 % confidence (as in MLPerf)."""

SMALLEST_CHANGE = 0.02
AA_LIMIT = 0.03
SPREAD_LIMIT = 0.10
STOLEN_LIMIT = 0.02
HALVES_LIMIT = 0.05

SAME = "no difference that can be told"
VERDICTS = ("faster", "slower", SAME, "noisy")


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """What the samples of one comparison say, in nanoseconds a call and as ratios (1 is the baseline).

    ``p95_ns`` and ``p99_ns`` are upper bounds: at 99 % confidence, that share of calls is no slower.
    ``aa`` is the baseline against itself. How far from 1 its interval reaches may be chance, and where in
    memory two builds of it lie, so a change must exceed that, and 2 %: a floor that holds false verdicts
    below 2 in 100 where builds scatter by at most 0.6 %. The intervals are at 95 %; under six rounds no such
    interval exists, so that they span what was seen and no difference is told. ``noise`` gives the reasons,
    in words with figures, why the verdict is "noisy".
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
    verdict: str
    noise: tuple[str, ...]


def summarise_latency(
    baseline_ns: ArrayLike,
    variant_ns: ArrayLike,
    stolen_share: float = 0.0,
    single_ns: ArrayLike = (),
) -> LatencySummary:
    """Compare the rounds of a variant ``[R]`` with the two baseline calls ``[2, R]`` of the same rounds.

    Where a sample is the mean of several calls, ``single_ns`` has single ones of the variant: percentiles are
    of these.

    The ratio is the median of the per-round log ratios of the variant to either baseline call. (Against the
    mean of the two it would be biased: the noise of a call is skewed, and averaging takes the skew out of
    one side only.) Raises InputError on other shapes, fewer than two rounds and times that are not positive.
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
    ratio, low, high = median_ratio(np.log(variant / baseline).T)
    aa_ratio, aa_low, aa_high = median_ratio(np.log(baseline[:1] / baseline[1:]).T)
    noise = (
        *_aa_noise(aa_ratio, aa_low, aa_high),
        *_series_noise("baseline", baseline),
        *_series_noise("variant", variant[None]),
        *_stolen_noise(stolen_share),
    )
    told = rounds >= LEAST_ROUNDS and not low <= 1 <= high
    changed = abs(ratio - 1) > max(SMALLEST_CHANGE, 1 / aa_low - 1, aa_high - 1)
    direction = "faster" if ratio < 1 else "slower"
    single = np.asarray(single_ns, float)
    single = single if single.size else variant
    return LatencySummary(
        median_ns=float(np.median(variant)),
        p95_ns=percentile_bound(single, 0.95),
        p99_ns=percentile_bound(single, 0.99),
        rounds=rounds,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        aa_ratio=aa_ratio,
        aa_low=aa_low,
        aa_high=aa_high,
        verdict="noisy" if noise else direction if told and changed else SAME,
        noise=noise,
    )


def percentile_bound(samples: NDArray[np.float64], share: float) -> float | None:
    """Smallest order statistic that ``share`` of all calls stay below, at 99 % confidence; None with fewer
    samples than PERCENTILE_ROUNDS says of the share."""
    if len(samples) < PERCENTILE_ROUNDS[share]:
        return None
    return float(np.sort(samples)[_bound_index(len(samples), share)])


def median_interval(samples: ArrayLike) -> tuple[float, float, float]:
    """The median of ``samples`` ``[N]`` and its 95 % interval by order statistics: the range, where there are
    too few for one. They are taken as independent."""
    values = np.asarray(samples, float)
    interval: Any = quantile_test(values, p=0.5).confidence_interval(0.95)
    low, high = float(interval.low), float(interval.high)
    if math.isnan(low + high):
        low, high = float(values.min()), float(values.max())
    return float(np.median(values)), low, high


@cache
def _bound_index(rounds: int, share: float) -> int:
    return int(binom.ppf(0.99, rounds, share))


def median_ratio(logs: NDArray[np.float64]) -> tuple[float, float, float]:
    """Median of log ratios ``[R, K]`` (K a round) and its 95 % interval, as ratios."""
    if len(logs) < LEAST_ROUNDS:
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
    block = max(1, min(BLOCK_ROUNDS, len(values) // LEAST_BLOCKS))
    blocks = len(values) // block
    ordered = np.sort(values, axis=None)
    index = bisect_left(
        range(len(ordered)), _tail(blocks), key=lambda i: _chance_of_half(values <= ordered[i], block, blocks)
    )
    return float(ordered[index])


@cache
def _tail(blocks: int) -> float:
    """Share of the bootstrap distribution to leave out at either end: 2.5 %, less for few blocks."""
    return float(norm.sf(math.sqrt(blocks / (blocks - 1)) * student_t.ppf(0.975, blocks - 1)))


def _chance_of_half(marked: NDArray[np.bool_], block: int, blocks: int) -> float:
    """Chance that at least half of ``blocks`` drawn blocks of rounds is marked in ``marked`` ``[R, K]``."""
    rounds, a_round = marked.shape
    running = np.cumsum(np.resize(marked.sum(axis=1), rounds + block))
    in_block = running[block:] - running[:-block]  # of the R circular blocks, one each
    most = blocks * block * a_round
    size = 2 ** most.bit_length()
    spectrum = np.fft.rfft(np.bincount(in_block) / rounds, size)
    return float(np.fft.irfft(spectrum**blocks, size)[(most + 1) // 2 : most + 1].sum())


def _aa_noise(ratio: float, low: float, high: float) -> list[str]:
    """Two builds always differ by a little, and enough rounds prove it: no noise, below the smallest change
    that is told."""
    reasons = []
    if not low <= 1 <= high and abs(ratio - 1) > SMALLEST_CHANGE:
        reasons.append(
            f"the baseline differs from itself: ratio {ratio:.3f}, 95 % interval {low:.3f} to {high:.3f} "
            f"(limit {_percent(SMALLEST_CHANGE)})"
        )
    if (half_width := (high - low) / 2) > AA_LIMIT:
        reasons.append(
            f"the baseline against itself is known to ±{_percent(half_width)} only "
            f"(limit {_percent(AA_LIMIT)})"
        )
    return reasons


def _series_noise(name: str, samples: NDArray[np.float64]) -> list[str]:
    """Reasons that lie in one series ``[K, R]``: its spread, and its drift between the two halves."""
    reasons = []
    quartiles = np.percentile(samples, [25, 50, 75])
    if (spread := (quartiles[2] - quartiles[0]) / quartiles[1]) > SPREAD_LIMIT:
        reasons.append(
            f"the middle half of the {name}'s samples spans {_percent(spread)} of their median "
            f"(limit {_percent(SPREAD_LIMIT)})"
        )
    first, second = (np.median(half) for half in np.array_split(samples, 2, axis=1))
    if (drift := abs(second / first - 1)) > HALVES_LIMIT:
        reasons.append(
            f"the {name}'s second half is {_percent(drift)} {'slower' if second > first else 'faster'} "
            f"than its first (limit {_percent(HALVES_LIMIT)})"
        )
    return reasons


def _stolen_noise(share: float) -> list[str]:
    if share <= STOLEN_LIMIT:
        return []
    return [
        f"other work on this machine or its host took {_percent(share)} of the CPU time "
        f"(limit {_percent(STOLEN_LIMIT)})"
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
