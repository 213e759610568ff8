"""What makes a comparison of times noisy, and in words why."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from optimizer.formats import significant

MIN_CHANGE = 0.02
"""Of a time, as a share: no smaller one is told."""
SMALL_CHANGE = 0.15
"""The same of one process. Builds of small networks were seen to scatter by 4 %, which makes two builds of
the baseline alike by chance, and the variant's another."""
AA_LIMIT = 0.03
SPREAD_LIMIT = 0.10
TAIL_LIMIT = 0.10
"""How far the mean may lie above or below the median before neither stands for the calls alone."""
STOLEN_LIMIT = 0.02
HALVES_LIMIT = 0.05


class NoiseKind(StrEnum):
    """What makes a comparison noisy."""

    BUILDS_DIFFER = "builds differ"
    BUILDS_UNKNOWN = "builds unknown"
    SPREAD = "spread"
    TAIL = "tail"
    DRIFT = "drift"
    MEAN_DISAGREES = "mean disagrees"
    STOLEN = "stolen"


@dataclass(frozen=True, slots=True)
class Noise:
    """One reason, and the figure that is beyond its ``limit``: a share; for BUILDS_DIFFER a ratio with its
    interval ``low`` to ``high``; for MEAN_DISAGREES the ratio by the mean, whose limit is 1, and by the
    median (``low``). ``series`` is ``baseline`` or ``variant`` where the reason lies in one."""

    kind: NoiseKind
    value: float
    limit: float
    series: str = ""
    low: float = math.nan
    high: float = math.nan

    @property
    def words(self) -> str:
        """``the model's second half is 6 % slower than its first (limit 5 %)``."""
        series = "model" if self.series == "variant" else self.series
        value, limit = percent(abs(self.value)), f"(limit {percent(self.limit)})"
        match self.kind:
            case NoiseKind.BUILDS_DIFFER:
                return (
                    f"the baseline differs from itself: ratio {self.value:.3f}, 95 % interval "
                    f"{self.low:.3f} to {self.high:.3f} {limit}"
                )
            case NoiseKind.BUILDS_UNKNOWN:
                return f"the baseline against itself is known to ±{value} only {limit}"
            case NoiseKind.SPREAD:
                return f"the middle half of the {series}'s samples spans {value} of their median {limit}"
            case NoiseKind.TAIL:
                side = "above" if self.value > 0 else "below"
                return f"the {series}'s mean is {value} {side} its median {limit}: calls are not alike"
            case NoiseKind.DRIFT:
                direction = "slower" if self.value > 0 else "faster"
                return f"the {series}'s second half is {value} {direction} than its first {limit}"
            case NoiseKind.MEAN_DISAGREES:
                return (
                    f"median and mean disagree: {self.low:.3f}× of the baseline's time by the median, "
                    f"{self.value:.3f}× by the mean"
                )
            case NoiseKind.STOLEN:
                return f"other work on this machine or its host took {value} of the CPU time {limit}"


def aa_noise(ratio: float, low: float, high: float, told: bool) -> Iterator[Noise]:
    """Two builds always differ by a little, and enough rounds prove it: no noise, below the smallest change
    that is told. What is ``told`` exceeds all that they may differ by, however well that is known."""
    if not low <= 1 <= high and abs(ratio - 1) > MIN_CHANGE:
        yield Noise(NoiseKind.BUILDS_DIFFER, ratio, MIN_CHANGE, low=low, high=high)
    if (half_width := (high - low) / 2) > AA_LIMIT and not told:
        yield Noise(NoiseKind.BUILDS_UNKNOWN, half_width, AA_LIMIT)


def series_noise(
    name: str, samples: NDArray[np.float64], means: NDArray[np.float64], processes: Sequence[int]
) -> Iterator[Noise]:
    """What lies in one series ``[K, R]``: its spread, its tail, and its drift between the two halves; within
    the processes that share its rounds. What they differ in is in the interval, which is over processes."""
    ends = np.cumsum(processes)[:-1]
    parts = np.split(samples, ends, axis=1)
    level = np.concatenate([np.full(part.shape[1], np.median(part)) for part in parts])
    samples, means = samples / level, means / level
    quartiles = np.percentile(samples, [25, 50, 75])
    if (spread := float((quartiles[2] - quartiles[0]) / quartiles[1])) > SPREAD_LIMIT:
        yield Noise(NoiseKind.SPREAD, spread, SPREAD_LIMIT, name)
    if abs(tail := float(means.mean() / quartiles[1] - 1)) > TAIL_LIMIT:
        yield Noise(NoiseKind.TAIL, tail, TAIL_LIMIT, name)
    halves = zip(*(np.array_split(part, 2, axis=1) for part in np.split(samples, ends, axis=1)), strict=True)
    first, second = (np.median(np.concatenate(half, axis=1)) for half in halves)
    if abs(drift := float(second / first - 1)) > HALVES_LIMIT:
        yield Noise(NoiseKind.DRIFT, drift, HALVES_LIMIT, name)


def mean_noise(ratio: float, mean_ratio: float, told: bool) -> Iterator[Noise]:
    """A change that would be told by the median, and is none or the opposite by the mean."""
    if told and (mean_ratio - 1) * (ratio - 1) <= 0:
        yield Noise(NoiseKind.MEAN_DISAGREES, mean_ratio, 1.0, low=ratio)


def stolen_noise(share: float) -> Iterator[Noise]:
    """Of a ``share`` of the CPU time that others had, 0 to 1: a reason where it is above the limit."""
    if share > STOLEN_LIMIT:
        yield Noise(NoiseKind.STOLEN, share, STOLEN_LIMIT)


def percent(share: float, digits: int = 3) -> str:
    """With so many digits."""
    return f"{significant(100 * share, digits)} %"
