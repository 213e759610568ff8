"""The figures of one result by metric, each with its 95 % interval and that of the uncompressed model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from optimizer.analysis.metrics import METRICS
from optimizer.analysis.outcomes import (
    PairedDrop,
    balanced_share,
    share_interval,
)
from optimizer.analysis.rounds import CONFIDENCE, MIN_ROUNDS
from optimizer.analysis.skewed import positive_mean_interval, positive_ratio_interval
from optimizer.analysis.statistics import (
    LatencySummary,
    first_call_ratio,
    mean_time_interval,
    summarise_visits,
    time_interval,
)
from optimizer.records import Accuracy, Latency, OutputFidelity, Result, Visits


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure in its metric's unit, its 95 % interval and the uncompressed model's. None is missing."""

    value: int | float | None  # a whole number stays one where it is stored
    low: float | None = None
    high: float | None = None
    baseline: int | float | None = None


@lru_cache(maxsize=64)
def latency_measures(latency: Latency) -> tuple[LatencySummary, dict[str, Measure]]:
    """Its summary, and its metrics but those of a batch (no interval with too few rounds).

    Cached by the samples: configurations that share a measurement share its figures.
    """
    baseline, variant, processes = latency.baseline, latency.variant, latency.processes
    summary = summarise_visits(baseline, variant, latency.stolen_share, processes)
    times = {
        "latency": time_interval(variant.medians_ns, processes),
        "mean": mean_time_interval(variant.means_ns, processes, variant.timed),
        "first_call": time_interval(variant.first_ns, processes),
    }
    before = {
        "latency": time_interval(np.stack([build.medians_ns for build in baseline], 1), processes)[0],
        "mean": _mean_of_builds(baseline, processes),
        "first_call": time_interval(np.stack([build.first_ns for build in baseline], 1), processes)[0],
    }
    measures = {name: Measure(*interval, float(before[name])) for name, interval in times.items()}
    if summary.rounds < MIN_ROUNDS:
        measures = {name: replace(one, low=None, high=None) for name, one in measures.items()}
    return summary, measures | {
        "latency_ratio": Measure(summary.ratio, summary.ratio_low, summary.ratio_high, 1.0),
        "latency_p95": Measure(summary.p95_ns),
        "latency_p99": Measure(summary.p99_ns),
        "first_call_ratio": Measure(*first_call_ratio(baseline, variant, processes), 1.0),
    }


def _mean_of_builds(builds: tuple[Visits, Visits], processes: tuple[int, ...]) -> float:
    """Nanoseconds of a call: of two builds the mean."""
    return float(np.mean([mean_time_interval(one.means_ns, processes, one.timed)[0] for one in builds]))


OF_CLASSES = ("accuracy", "balanced_accuracy", "drop", "agreement")
"""Metrics of answers: missing where outputs are no logits."""


def accuracy_measures(accuracy: Accuracy, baseline: Accuracy, drop: PairedDrop) -> dict[str, Measure]:
    total = accuracy.total
    lost = Measure(drop.points, drop.low, drop.high, 0.0)
    found = {
        "accuracy": share_measure(correct(accuracy), total, 100 * correct(baseline) / total),
        "balanced_accuracy": _balanced(accuracy, baseline),
        "drop": lost if drop.low < drop.high else replace(lost, low=None, high=None),
        "agreement": share_measure(accuracy.agreement, total, 100.0),
        "sqnr": _worst_sqnr(accuracy),
        "cosine": Measure(_worst_cosine(accuracy), baseline=1.0),
        "largest": _largest(accuracy),
    }
    return found | dict.fromkeys(OF_CLASSES, Measure(None)) if accuracy.is_fidelity else found


def all_measures(result: Result, drop: PairedDrop, timed: Mapping[str, Measure]) -> dict[str, Measure]:
    size, baseline_size = result.inspection.size, result.inspection.baseline_size
    layers, start = result.inspection.layers, result.cold_start
    found = {
        **accuracy_measures(result.accuracy, result.baseline_accuracy, drop),
        "file_size": Measure(size.file_bytes, baseline=baseline_size.file_bytes),
        "packed_size": Measure(size.packed_bytes, baseline=baseline_size.packed_bytes),
        "compressed_size": Measure(size.compressed_bytes, baseline=baseline_size.compressed_bytes),
        "memory": Measure(size.memory_bytes, baseline=baseline_size.memory_bytes),
        "cold_start": Measure(start.variant_ns, baseline=start.baseline_ns) if start else Measure(None),
        **timed,
        "throughput": _throughput(timed["mean"], result.latency.batch),
        "nonzero": Measure(size.nonzero, baseline=baseline_size.nonzero),
        "operations": Measure(
            sum(layer.macs * layer.nonzero / layer.elements for layer in layers if layer.elements),
            baseline=sum(layer.macs for layer in layers),
        ),
        "kl": _kl(result.accuracy),
    }
    return {name: found[name] for name in METRICS}


def _throughput(mean_ns: Measure, batch: int) -> Measure:
    """Images a second from the mean time of a call: the longest time is the lowest throughput."""

    def images(time_ns: float | None) -> float | None:
        return None if time_ns is None else 1e9 * batch / time_ns

    return Measure(images(mean_ns.value), images(mean_ns.high), images(mean_ns.low), images(mean_ns.baseline))


def _kl(accuracy: Accuracy) -> Measure:
    if accuracy.kl is None:
        return Measure(None)
    interval = accuracy.kl_images and positive_mean_interval(accuracy.kl_images.values)
    if not interval or not math.isfinite(interval[1]):
        return Measure(accuracy.kl, baseline=0.0)
    low, high = interval
    return Measure(accuracy.kl, max(0.0, min(low, accuracy.kl)), max(high, accuracy.kl), 0.0)


def sqnr(one: OutputFidelity | Accuracy) -> Measure:
    """In dB, of an output or of logits: without an interval where one of its ends is not known."""
    if one.sqnr_db is None:
        return Measure(None)
    low, high = sqnr_ends(one, one.sqnr_db)
    known = math.isfinite(low) and math.isfinite(high)
    return Measure(one.sqnr_db, low, high) if known else Measure(one.sqnr_db)


def _worst_sqnr(accuracy: Accuracy) -> Measure:
    """Of several outputs the lowest, with the lowest of either end: a limit is held against that too. None
    where nothing moved, and where one was silent and is no more: it is the worst, and has no figure."""
    if any(one.was_silent for one in accuracy.outputs):
        return Measure(None)
    found = [sqnr(one) for one in accuracy.outputs or (accuracy,)]
    moved = [(one.value, one.low, one.high) for one in found if one.value is not None]
    ends = (None if None in column else min(column) for column in zip(*moved, strict=True))
    return Measure(*ends) if moved else Measure(None)


def all_equal(measures: Mapping[str, Measure]) -> bool:
    """Of outputs that are no logits, whether all are as the uncompressed network's."""
    return measures["sqnr"].value is None and not measures["largest"].value


def _worst_cosine(accuracy: Accuracy) -> float | None:
    each = [one.cosine for one in accuracy.outputs] if accuracy.outputs else [accuracy.cosine]
    return min((one for one in each if one is not None), default=None)


def sqnr_ends(
    one: OutputFidelity | Accuracy, db: float, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Noise over signal has an interval; in dB its ends change places, and one that is not known is infinite:
    both under MIN_IMAGES, the upper one where noise may reach 0, as few images have most of it."""
    noise, signal = one.noise_images, one.signal_images
    interval = noise and signal and positive_ratio_interval(noise.values, signal.values, confidence)
    if not interval:
        return -math.inf, math.inf
    least, most = interval
    return min(-10 * math.log10(most), db), max(-10 * math.log10(least), db) if least > 0 else math.inf


def _largest(accuracy: Accuracy) -> Measure:
    """Of outputs that are no logits: of all of them, each as a share of its own range."""
    if not accuracy.outputs:
        return Measure(None)
    return Measure(100 * max(one.largest_share for one in accuracy.outputs), baseline=0.0)


def correct(accuracy: Accuracy) -> int:
    return int(accuracy.outcomes.sum())


def _balanced(accuracy: Accuracy, baseline: Accuracy) -> Measure:
    """Each class counts the same, however many images it has. None where all have as many."""
    classes = accuracy.classes
    if classes is None:
        return Measure(None)
    before, *_ = balanced_share(baseline.outcomes, classes)
    return Measure(*(100 * one for one in (*balanced_share(accuracy.outcomes, classes), before)))


def share_measure(count: int, total: int, baseline_percent: float | None = None) -> Measure:
    """In percent."""
    low, high = share_interval(count, total)
    return Measure(100 * count / total, 100 * low, 100 * high, baseline_percent)
