"""What a configuration must keep to, which of those measured do, and what relaxing a limit would buy.

A limit is kept by the bound of a figure's interval, not by the figure: the best of many is in part the
luckiest. What is lost counts as within its limit where that is shown for all that were tried at once.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import ArrayLike

from optimizer.analysis.comparison import measurably_better
from optimizer.analysis.gate import (
    MEGABYTE,
    MIN_LIMIT,
    Check,
    check_limits,
    drop_check,
    no_accuracy,
    size_check,
    sqnr_check,
)
from optimizer.analysis.outcomes import PairedDrop, drop_against, nothing_lost, shown_within
from optimizer.analysis.rounds import CONFIDENCE
from optimizer.analysis.summary import Summary, is_baseline, summarise
from optimizer.analysis.two_files import EQUAL_DB
from optimizer.records import LATER, Accuracy, Result, unpacked

MILLISECOND = 1e6
MINIMISED = ("latency", "drop", "file_size", "sqnr")
"""What may be asked to be as good as possible. SQNR is a loss as the noise that it tells
(:func:`loss_of`)."""
TIMES = ("latency", "latency_ratio")
"""Those of a measurement of time. What keeps a machine busy for a while moves a time, but hardly its ratio to
what was timed in the same rounds."""
LIMITED = (*MINIMISED, "latency_ratio")
"""What may have a limit."""
MIN_CONFIRMING = 500
"""Images that did not choose; with fewer, or too few for a half to show anything, all of them choose."""
MIN_GAIN = 0.05
"""Share of time or size that relaxing a limit must gain to be worth telling."""
MIN_GAIN_POINTS = 0.1
MIN_GAIN_DB = 1.0

WORDS = {
    "drop_points": "max drop",
    "latency_ms": "max latency ms",
    "latency_ratio": "max latency ratio",
    "size_mb": "max size mb",
    "sqnr_db": "min sqnr",
}
"""For the options of the command line, the arguments in Python and the fields of the page."""
BOUNDS = {
    "drop_points": (0.0, 100.0),
    "latency_ms": (0.0, math.inf),
    "latency_ratio": (0.0, math.inf),
    "size_mb": (0.0, math.inf),
    "sqnr_db": (MIN_LIMIT, EQUAL_DB),
}
"""What each limit has to lie between, the ends left out."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much accuracy may be lost, how long a call may take (the median of its steady time) and how large
    the file may be, at most, and the SQNR of the worst output at least; ``latency_ratio`` is the
    most that the time of a call may be, divided by the uncompressed model's on the same engine. None is no
    limit. Raises InputError for one that can't be."""

    drop_points: float | None = None
    latency_ms: float | None = None
    size_mb: float | None = None
    sqnr_db: float | None = None
    latency_ratio: float | None = None

    def __post_init__(self) -> None:
        check_limits({words: (getattr(self, name), *BOUNDS[name]) for name, words in WORDS.items()})

    @property
    def given(self) -> dict[str, float]:
        """Those that are, by the metric that they limit, in its unit."""
        found = {
            "drop": self.drop_points,
            "latency": None if self.latency_ms is None else self.latency_ms * MILLISECOND,
            "file_size": None if self.size_mb is None else round(self.size_mb * MEGABYTE, 3),
            "sqnr": self.sqnr_db,
            "latency_ratio": self.latency_ratio,
        }
        return {name: value for name, value in found.items() if value is not None}

    @property
    def losses(self) -> dict[str, float]:
        """As :attr:`given`, each as the loss that is allowed."""
        return {name: loss_of(name, value) for name, value in self.given.items()}

    def usual(self, classes: int) -> str:
        """What is to be as good as possible unless it is said: the time, or where nothing limits what is
        lost, the accuracy lost; of a network without ``classes``, SQNR."""
        if self.drop_points is None and self.sqnr_db is None:
            return "drop" if classes else "sqnr"
        return "latency"

    def check_for(self, model: str, minimise: str) -> None:
        """Whether a network that is no classifier can be held to them. Raises InputError where it can't."""
        if self.drop_points is not None:
            raise no_accuracy(model)
        if minimise == "drop":
            raise no_accuracy(model, "minimise sqnr in place of drop")


LATER[Limits] = {"latency_ratio": (None, {})}


def finite(sqnr_db: float) -> float:
    """That of equal outputs, or an end that is not known, as a figure: what is kept of a search can't hold
    another."""
    return max(-EQUAL_DB, min(sqnr_db, EQUAL_DB))


def loss_of(name: str, value: float) -> float:
    """A metric's value as what is above 0 and better the lower it is: of SQNR, noise over signal."""
    return float(10 ** (-finite(value) / 20)) if name == "sqnr" else value


def figure(result: Result, name: str) -> float | None:
    """That of a metric of :data:`MINIMISED`."""
    if name == "sqnr":
        return finite(sqnr_check(result.accuracy, 0).value)
    return summarise(result).measures[name].value


def value_of(name: str, loss: float) -> float:
    """The other way round, in the metric's unit."""
    return -20 * math.log10(loss) if name == "sqnr" else loss


@lru_cache(maxsize=4096)
def noise(accuracy: Accuracy, confidence: float = CONFIDENCE) -> float:
    """Of the worst output, over its signal: the upper end of its interval."""
    return loss_of("sqnr", sqnr_check(accuracy, 0, confidence).low)


def halves(result: Result, fewest: int) -> tuple[PairedDrop, PairedDrop | None]:
    """What is lost on a random half of the images, and on the other; on all of them, and None, where a half
    would have fewer than ``fewest``."""
    after, before = result.accuracy, result.baseline_accuracy
    if is_baseline(result):
        whole, half = after.total, after.total // 2
        split = whole >= 2 * fewest
        return (nothing_lost(half), nothing_lost(whole - half)) if split else (nothing_lost(whole), None)
    return _halves(before.correct, after.correct, after.total, after.reference, fewest)


@lru_cache(maxsize=4096)
def _halves(
    correct_before: bytes, correct: bytes, total: int, reference: str, fewest: int
) -> tuple[PairedDrop, PairedDrop | None]:
    """Of packed outcomes. A search asks for those of all its results after each measurement."""
    before, after = (unpacked(bits, total) for bits in (correct_before, correct))
    if total < 2 * fewest:
        return drop_against(reference, before, after), None
    first = np.random.default_rng(0).permutation(total) < total // 2
    chosen, confirmed = (drop_against(reference, before[half], after[half]) for half in (first, ~first))
    return chosen, confirmed


def bound(result: Result, name: str, confidence: float = CONFIDENCE) -> float:
    """The upper end of the interval of a metric of :data:`LIMITED` as a loss (the accuracy lost on the images
    that choose); the figure itself where it has none. The interval of a time is at CONFIDENCE."""
    if name == "sqnr":
        return noise(result.accuracy, confidence)
    if name == "drop":
        lost = halves(result, MIN_CONFIRMING)[0]
        return lost.high if confidence == CONFIDENCE else lost.high_at(confidence)
    measure = summarise(result).measures[name]
    found = measure.value if measure.high is None else measure.high
    return math.inf if found is None else float(found)


def _weights(tried: int) -> np.ndarray:
    """Of results in the order in which they were tried: of n the first weighs as much as n times the last."""
    return 1 / np.arange(1, tried + 1)


def _confidences(tried: int) -> list[float]:
    """At which the bound of each holds while those of all others do."""
    weights = _weights(tried)
    return [1 - (1 - CONFIDENCE) * float(weight) for weight in weights / weights.sum()]


def keeping(results: Sequence[Result], limits: Limits, but: Collection[str] = ()) -> list[Result]:
    """Those that are shown to keep to every limit ``but`` those on some metrics, all of them at once. They
    come in the order in which they were tried, and of n the first weighs as much as n times the last: what is
    shown to keep to a loss early in a search is hardly lost again by going on with it."""
    given = {name: value for name, value in limits.losses.items() if name not in but}
    shown, weights = np.ones(len(results), bool), _weights(len(results))
    if "drop" in given:
        ends = [halves(one, MIN_CONFIRMING)[0].high_at for one in results]
        shown &= shown_within(ends, given["drop"], weights)
    if "sqnr" in given:
        shown &= shown_within([partial(noise, one.accuracy) for one in results], given["sqnr"], weights)
    others = [name for name in given if name not in ("drop", "sqnr")]
    return [
        one
        for one, within in zip(results, shown, strict=True)
        if within and all(bound(one, name) <= given[name] for name in others)
    ]


def in_order(results: Sequence[Result], minimise: str) -> list[Result]:
    """By the bound of the metric that is to be low; where that is equal, as for what shares a measurement of
    time, by the others."""

    def losses(result: Result) -> list[float]:
        lost = "sqnr" if result.accuracy.is_fidelity else "drop"
        return [bound(result, name) for name in (minimise, "latency", lost, "file_size")]

    return sorted(results, key=losses)


def checks(result: Result, limits: Limits) -> tuple[Check, ...]:
    """Each limit with the figure that it is about, on all images."""
    summary, found = summarise(result), list[Check]()
    if limits.drop_points is not None:
        found.append(drop_check(summary.drop, limits.drop_points, summary.reference == "labels"))
    if limits.latency_ms is not None:
        found.append(_time_check("time of a call", "ms", MILLISECOND, summary, "latency", limits.latency_ms))
    if limits.latency_ratio is not None:
        found.append(_time_check("latency ratio", "", 1.0, summary, "latency_ratio", limits.latency_ratio))
    if limits.size_mb is not None:
        found.append(size_check(result.inspection.size.file_bytes, limits.size_mb))
    if limits.sqnr_db is not None:
        found.append(sqnr_check(result.accuracy, limits.sqnr_db))
    return tuple(found)


def _time_check(words: str, unit: str, scale: float, summary: Summary, name: str, limit: float) -> Check:
    """One of :data:`TIMES`, shown in a ``unit`` that is ``scale`` of the metric's."""
    measure = summary.measures[name]
    value = math.inf if measure.value is None else float(measure.value)
    low, high = (value if end is None else float(end) for end in (measure.low, measure.high))
    takes = "a longer measurement would decide it"
    return Check(words, unit, limit, value / scale, low / scale, high / scale, takes)


@dataclass(frozen=True, slots=True)
class Relaxation:
    """What relaxing one limit by ``more`` (in the unit of its metric) would buy: the result under ``key``,
    which gains ``gain`` of the ``minimised`` metric: a share, in points for accuracy, in dB for SQNR; None
    where nothing keeps to the limits as they are."""

    limit: str
    more: float
    minimised: str
    gain: float | None
    key: str


def relaxations(
    results: Sequence[Result], limits: Limits, minimise: str, best: Result | None
) -> tuple[Relaxation, ...]:
    """For each limit by how much to relax it, the other limits kept, for something that is measurably better
    than ``best``; without a best one, for anything that keeps to the others. What is lost then is shown for
    all ``results`` at once, in the order in which they were tried, as :func:`keeping` shows it."""
    found = []
    confidences = dict(zip((one.key for one in results), _confidences(len(results)), strict=True))
    for name, limit in limits.losses.items():
        most = loss_of(name, -math.inf) if name == "sqnr" else math.inf  # what is not known is not offered
        ends = {
            one.key: bound(one, name, confidences[one.key]) for one in keeping(results, limits, but=(name,))
        }
        beyond = [one for one in results if limit < ends.get(one.key, limit) < most]
        for one in sorted(beyond, key=lambda one: ends[one.key]):
            gain = None if best is None else _gain(one, best, minimise)
            if best is None or gain is not None:
                more = abs(value_of(name, ends[one.key]) - value_of(name, limit))
                found.append(Relaxation(name, more, minimise, gain, one.key))
                break
    return tuple(found)


def _gain(result: Result, best: Result, minimise: str) -> float | None:
    """By how much a result is better; None where it is not by enough, or not measurably."""
    own, its = figure(result, minimise), figure(best, minimise)
    if own is None or its is None or not _better(result, best, minimise):
        return None
    if minimise == "drop":
        gain, enough = its - own, MIN_GAIN_POINTS
    elif minimise == "sqnr":
        gain, enough = own - its, MIN_GAIN_DB
    else:
        gain, enough = 1 - own / its, MIN_GAIN
    return float(gain) if gain >= enough else None


def _better(result: Result, best: Result, name: str) -> bool:
    """Measurably; of what is not paired, SQNR and times of two engines, where intervals don't overlap."""
    if name == "sqnr":
        return sqnr_check(result.accuracy, 0).low > sqnr_check(best.accuracy, 0).high
    one, other = summarise(result), summarise(best)
    if name == "latency" and one.request.engine != other.request.engine:
        own, its = one.measures[name], other.measures[name]
        return own.high is not None and its.low is not None and own.high < its.low
    return measurably_better(one, other, name)


def covered(points: ArrayLike, reference: ArrayLike) -> float:
    """The share of the rectangle from 0 to ``reference`` ``[2]`` above one of ``points`` ``[N, 2]`` in both:
    the hypervolume of two losses (E. Zitzler and L. Thiele, PPSN V, 1998), as a share."""
    edges = np.asarray(reference, float)
    rows = np.clip(np.asarray(points, float).reshape(-1, 2), 0, edges)
    area, lowest = 0.0, edges[1]
    for first, second in rows[np.lexsort((rows[:, 1], rows[:, 0]))]:
        area += (edges[0] - first) * max(0.0, lowest - second)
        lowest = min(lowest, second)
    return float(area / edges.prod())
