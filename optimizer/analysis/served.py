"""One configuration that serves requests: the raw times of a recipe and its baseline, and what they say."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from optimizer.analysis.labels import Labelled
from optimizer.analysis.noise import SMALL_CHANGE
from optimizer.analysis.rounds import mean_interval, median_interval, percentile_bound
from optimizer.analysis.statistics import LatencySummary, summarise_latency
from optimizer.formats import count

EAGER_EVERY = 3
"""Rounds from one in which torch eager takes part to the next: it takes longest, and matters least."""


class Side(Labelled):
    """The two networks of a comparison."""

    RECIPE = "recipe"
    UNCOMPRESSED = "uncompressed"


NAMES: dict[str, str] = {Side.RECIPE: "the compressed model", Side.UNCOMPRESSED: "the uncompressed model"}


@dataclass(frozen=True, slots=True, order=True)
class Configuration:
    """How requests are served: batch size, total threads, and streams (requests at once)."""

    batch: int
    threads: int
    streams: int

    @property
    def words(self) -> str:
        return f"batch size {self.batch}, {count(self.threads, 'thread')}, {count(self.streams, 'stream')}"


@dataclass(frozen=True, slots=True)
class Served:
    """Raw times of one network in one configuration.

    ``interval_ns`` ``[K][R]``: nanoseconds from one finished request to the next, the mean over the requests
    of a round; K is 2 for the baseline, which ran twice a round. ``request_ns``: what single requests took
    while all streams were busy, in their order; of many some, from all rounds alike.
    """

    interval_ns: tuple[tuple[int, ...], ...]
    request_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ServedPoint:
    """One configuration. A round had ``requests`` requests of the recipe, and of the baseline. ``eager``: the
    uncompressed model in torch eager, one request at a time, every so many rounds (None where that is the
    engine)."""

    configuration: Configuration
    requests: int
    baseline: Served
    variant: Served
    eager: Served | None

    def of(self, network: Side) -> Served:
        return self.variant if network is Side.RECIPE else self.baseline


@dataclass(frozen=True, slots=True)
class Performance:
    """What one network does in one configuration, with 95 % intervals.

    ``latency_ns`` is the median time of a request; ``p95_ns`` a time that 95 % of them stay under (at 99 %
    confidence; None with too few). ``throughput`` is images over all the time that requests took, a second.
    """

    latency_ns: float
    latency_low: float
    latency_high: float
    p95_ns: float | None
    throughput: float
    throughput_low: float
    throughput_high: float


@dataclass(frozen=True, slots=True)
class ServedComparison:
    """A configuration of the recipe beside the same configuration uncompressed.

    ``fair``: time an image over the baseline's, on the same engine, threads, streams and folding. All were
    built once, in one process: rounds don't say what builds scatter by (by 3 %, one verdict in five of a
    change of 2 % would be wrong), so that none below SMALL_CHANGE is told. ``eager``:
    over the uncompressed model's in torch eager with as many threads, which is another engine: it says what
    the two engines differ in as much as what the recipe does.
    """

    configuration: Configuration
    variant: Performance
    baseline: Performance
    fair: LatencySummary
    eager: float | None

    def of(self, network: Side) -> Performance:
        return self.variant if network is Side.RECIPE else self.baseline


@lru_cache(maxsize=1024)
def compare_served(point: ServedPoint, stolen_share: float) -> ServedComparison:
    """What the raw times of a configuration say; of the processor's time others took ``stolen_share``."""
    baseline, variant = _intervals(point.baseline), _intervals(point.variant)[0]
    eager = None
    if point.eager:
        eager = math.exp(np.median(np.log(variant[::EAGER_EVERY] / _intervals(point.eager))))
    return ServedComparison(
        point.configuration,
        _performance(point.variant, point.configuration.batch),
        _performance(point.baseline, point.configuration.batch),
        summarise_latency(baseline, variant, stolen_share, smallest_change=SMALL_CHANGE),
        eager,
    )


def _intervals(served: Served) -> NDArray[np.float64]:
    return np.array(served.interval_ns, float)


def _performance(served: Served, batch: int) -> Performance:
    latency, low, high = median_interval(served.request_ns)
    interval, shortest, longest = mean_interval(_intervals(served).T)
    p95 = percentile_bound(np.array(served.request_ns, float), 0.95)
    images = 1e9 * batch
    return Performance(latency, low, high, p95, images / interval, images / longest, images / shortest)
