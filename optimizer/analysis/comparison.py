"""Two results against each other: accuracy image by image, and time where both were timed alike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from optimizer.analysis.labels import Labelled
from optimizer.analysis.measures import Measure
from optimizer.analysis.metrics import metric
from optimizer.analysis.noise import MIN_CHANGE, SMALL_CHANGE, mean_noise
from optimizer.analysis.outcomes import AccuracyVerdict, PairedDrop, disagreement, paired_drop
from optimizer.analysis.statistics import MIN_PROCESSES, LatencyVerdict, change_of
from optimizer.analysis.summary import Summary
from optimizer.records import Request, unpacked

PAIRED = ("accuracy", "drop")
"""Metrics that are compared image by image."""


class OfModel(Protocol):
    """A result, its summary, or what will be one."""

    @property
    def request(self) -> Request: ...

    @property
    def weights(self) -> str: ...


class NotComparable(Labelled):
    """Why two results can't be compared in what they lose, or in time."""

    IMAGES = "not the same images"
    LABELS = "one has labels and the other has not"
    CLASSES = "outputs that are no logits have no accuracy"
    BASELINES = "without labels each is judged by another uncompressed model"
    TIMING = "not timed alike: another model, engine, batch size, threads or machine"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a result loses against a ``reference`` that is not its baseline, and its time over that one's.

    ``drop`` is None where the two did not answer the same images (``no_drop``), ``ratio`` without a value and
    ``time_verdict`` None where they were not timed alike (``no_ratio``).
    """

    drop: PairedDrop | None
    ratio: Measure
    time_verdict: LatencyVerdict | None
    no_drop: NotComparable | None = None
    no_ratio: NotComparable | None = None

    @property
    def missing(self) -> tuple[NotComparable, ...]:
        """Why something is."""
        return tuple(one for one in (self.no_drop, self.no_ratio) if one)


@lru_cache(maxsize=4096)
def compare(summary: Summary, reference: Summary) -> Comparison:
    """``summary`` against ``reference``. Positive drops and ratios above 1 are worse than the reference."""
    drop, no_drop = _drop(summary, reference)
    ratio, verdict, no_ratio = _time(summary, reference)
    return Comparison(drop, ratio, verdict, no_drop, no_ratio)


def measurably_better(summary: Summary, other: Summary, name: str) -> bool:
    """Whether a metric of ``summary`` is better than that of ``other`` by more than chance.

    Shares are paired by image, times compared with their intervals; of what has no interval every difference
    counts, and where intervals can't be paired they must not overlap.
    """
    if summary is other:
        return False
    if name in PAIRED and (drop := _drop(summary, other)[0]):
        return drop.verdict is AccuracyVerdict.BETTER
    if name in ("latency", "latency_ratio", "throughput") and (verdict := _time(summary, other)[1]):
        return verdict is LatencyVerdict.FASTER
    own, its = summary.ranked(name), other.ranked(name)
    if own.value is None or its.value is None:
        return False
    if own.low is None or own.high is None or its.low is None or its.high is None:
        loss = metric(name).loss([own.value, its.value])
        return bool(loss[0] < loss[1])
    return own.high < its.low if metric(name).direction == "lower" else own.low > its.high


def _drop(summary: Summary, reference: Summary) -> tuple[PairedDrop | None, NotComparable | None]:
    if not _same_images(summary, reference):
        return None, NotComparable.IMAGES
    if summary.reference != reference.reference:
        return None, NotComparable.LABELS
    if summary.fidelity or reference.fidelity:
        return None, NotComparable.CLASSES
    own, its = (unpacked(one.outcomes, one.total) for one in (summary, reference))
    if summary.reference == "labels":
        return paired_drop(its, own), None
    if not same_baseline(summary, reference):
        return None, NotComparable.BASELINES
    if reference.recipe.identity:  # right by definition
        return disagreement(own), None
    if summary.recipe.identity:
        return disagreement(its).turned, None
    return paired_drop(its, own), None


def same_baseline(one: OfModel, other: OfModel) -> bool:
    """Whether both are held against the same uncompressed model. Another network may have had the name
    before: what is known of the weights must not differ."""
    if one.weights and other.weights and one.weights != other.weights:
        return False
    return (one.request.model, one.request.engine) == (other.request.model, other.request.engine)


def _same_images(one: Summary, other: Summary) -> bool:
    """The same files in the same order. Results from before these were recorded are known to be alike where
    the images came with this program, or where one baseline answered all of them the same."""
    if one.request.data != other.request.data or one.total != other.total:
        return False
    if one.image_files and other.image_files:
        return one.image_files == other.image_files
    return one.request.data.path is None or (
        same_baseline(one, other) and one.baseline_outcomes == other.baseline_outcomes
    )


def weights_of(summaries: Sequence[Summary]) -> list[str]:
    """For each which weights its network had. Where that was not recorded yet: those of all others of its
    name, if these are one; else empty."""
    return _filled_in([one.weights for one in summaries], [one.request.model for one in summaries])


def baselines_of(summaries: Sequence[Summary]) -> list[tuple[str, str, str]]:
    """For each its uncompressed model: the name, which weights it had, and the engine."""
    weights = weights_of(summaries)
    return [(one.request.model, its, one.request.engine) for one, its in zip(summaries, weights, strict=True)]


def image_files(summaries: Sequence[Summary]) -> list[str]:
    """For each which images these were, of those of one folder and number. Where that was not recorded yet:
    those of all others, if they came with this program; else empty, and the number is all that is known."""
    recorded = [one.image_files for one in summaries]
    filled = _filled_in(recorded, [(one.request.data, one.total) for one in summaries])
    bundled = [one.request.data.path is None for one in summaries]
    return [one if known else name for name, one, known in zip(recorded, filled, bundled, strict=True)]


def _filled_in(names: Sequence[str], groups: Sequence[object]) -> list[str]:
    """Each name, and in place of an empty one that of all others of its group, if these are one."""
    if all(names):
        return [*names]
    known: dict[object, set[str]] = {}
    for name, group in zip(names, groups, strict=True):
        known.setdefault(group, set()).update([name] if name else [])
    alone = {group: "".join(found) for group, found in known.items() if len(found) == 1}
    return [name or alone.get(group, "") for name, group in zip(names, groups, strict=True)]


def _time(
    summary: Summary, reference: Summary
) -> tuple[Measure, LatencyVerdict | None, NotComparable | None]:
    """The ratio of the two ratios: each was measured against the same baseline, in a run of its own.

    The interval joins both: on the logarithm the squared distances to either end add up (G. Y. Zou and A.
    Donner, Statistics in Medicine 27, 2008, 1693-1702), which keeps what each interval knows of its rounds.
    What builds scatter by is in neither where one of them was timed in one process, so that no small change
    is told.
    """
    if not same_baseline(summary, reference) or _timed(summary) != _timed(reference):
        return Measure(None), None, NotComparable.TIMING
    own, its = summary.latency, reference.latency
    if (own.checksum or own) == (its.checksum or its):  # the same instructions share a measurement
        return Measure(1.0, 1.0, 1.0, 1.0), LatencyVerdict.SAME, None
    ratio = own.ratio / its.ratio
    below = math.hypot(math.log(own.ratio / own.ratio_low), math.log(its.ratio_high / its.ratio))
    above = math.hypot(math.log(own.ratio_high / own.ratio), math.log(its.ratio / its.ratio_low))
    low, high = ratio * math.exp(-below), ratio * math.exp(above)
    measure = Measure(ratio, low, high, 1.0)
    if own.noise or its.noise:
        return measure, LatencyVerdict.NOISY, None
    of_builds = min(len(summary.processes), len(reference.processes)) >= MIN_PROCESSES
    ends = (end for one in (own, its) for end in (1 / one.aa_low - 1, one.aa_high - 1))
    floor = max(MIN_CHANGE if of_builds else SMALL_CHANGE, *ends)
    verdict = change_of(ratio, low, high, min(own.rounds, its.rounds), floor)
    disagrees = any(mean_noise(ratio, own.mean_ratio / its.mean_ratio, verdict is not LatencyVerdict.SAME))
    return measure, LatencyVerdict.NOISY if disagrees else verdict, None


def _timed(summary: Summary) -> tuple[object, ...]:
    return summary.batch, summary.threads, summary.environment_key
