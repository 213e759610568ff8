"""What one result says: every figure derived from the raw samples, with its interval and how far to trust it.

That takes tens of milliseconds: :mod:`optimizer.analysis.stored` keeps it beside the result.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import PurePath
from threading import Lock

import numpy as np

from optimizer.analysis.badges import MAX_NAMED, Badge, badges, describe_skipped
from optimizer.analysis.metrics import METRICS, metric
from optimizer.analysis.outcomes import (
    PairedDrop,
    balanced_share,
    drop_against,
    growing_drop,
    growing_share_interval,
    ratio_interval,
    share_interval,
    skewed_mean_interval,
)
from optimizer.analysis.realisation import Realisation, realisation, skipping
from optimizer.analysis.rounds import CONFIDENCE, MIN_ROUNDS, mean_interval
from optimizer.analysis.statistics import (
    LatencySummary,
    first_call_ratio,
    process_ratios,
    summarise_visits,
    time_interval,
)
from optimizer.formats import count
from optimizer.methods.engines import engine_info
from optimizer.recipe import Recipe
from optimizer.records import (
    Accuracy,
    DataSpec,
    Known,
    Latency,
    OutputFidelity,
    Request,
    Result,
    Size,
)
from optimizer.system.environment import describe, environment


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure in its metric's unit, its 95 % interval and the uncompressed model's. None is missing."""

    value: int | float | None  # a whole number stays one where it is stored
    low: float | None = None
    high: float | None = None
    baseline: int | float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """Everything that one result says. ``measures`` has an entry for each metric.

    ``pruned_percent`` is the share of weights that pruning was asked to remove (by threshold: that are zero),
    ``zeros_percent`` the share that are zero, to which rounding adds its own. ``timed`` is the recipe that
    was really timed when another one with the same instructions was. ``processes`` are the rounds of each
    process that timed, and ``process_ratios`` the ratio that each found. ``outcomes`` are bits, packed,
    one an image, ``image_files`` names which these were; ``baseline_outcomes`` is a digest of those of the
    uncompressed model.
    ``fidelity``: the network's outputs are no logits, and SQNR stands in accuracy's place (:func:`quality`).
    ``skipping`` of ``layers`` ran on kernels that skip zeros, ``skipped`` are the first of them; ``fallback``
    says why these were not ours. ``simulated`` are reasons in words. Hashes by identity: :func:`summarise`
    gives one object a measurement.
    """

    key: str
    request: Request
    measures: Mapping[str, Measure]
    correct: int
    baseline_correct: int
    total: int
    reference: str
    image_files: str
    outcomes: bytes
    baseline_outcomes: str
    fidelity: bool
    drop: PairedDrop
    latency: LatencySummary
    size: Size
    baseline_size: Size
    pruned_percent: float
    zeros_percent: float
    batch: int
    threads: int
    quick: bool
    processes: tuple[int, ...]
    process_ratios: tuple[float, ...]
    timed: Recipe | None
    realisation: Realisation
    skipping: int
    skipped: tuple[str, ...]
    layers: int
    fallback: str
    precisions: Mapping[str, int]
    simulated: tuple[str, ...]
    environment: str
    environment_key: str
    created: str
    notes: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        return self.request.recipe

    @property
    def served(self) -> str:
        """``2 threads``, and the batch size where that is not 1."""
        batch = f", batch size {self.batch}" if self.batch > 1 else ""
        return count(self.threads, "thread") + batch

    @property
    def repeat(self) -> str:
        """The command of another instrument that gives this latency from the exported file, or nothing."""
        precision = self.recipe.quantize.precision
        command = engine_info(self.request.engine).repeat
        return command.format(threads=self.threads, batch=self.batch, precision=precision)

    @property
    def description(self) -> str:
        return self.recipe.describe()

    @property
    def images(self) -> str:
        return describe_images(self.request.data, self.total)

    @property
    def shared_with(self) -> str | None:
        """The recipe that was really timed, in words, where another one with the same instructions was."""
        return self.timed.describe() if self.timed else None

    @property
    def other_machine(self) -> bool:
        return self.environment_key != _here()

    @property
    def badges(self) -> tuple[Badge, ...]:
        return badges(
            self.simulated,
            describe_skipped(self.request.engine, self.skipped, self.skipping, self.layers),
            self.noise,
            self.quick,
            self.environment if self.other_machine else "",
        )

    @property
    def noise(self) -> tuple[str, ...]:
        return self.latency.noise

    def text(self, name: str) -> str:
        """A metric as it is written, with its interval where it has one."""
        return _text(self.measures[name], name)

    def parts(self, name: str) -> tuple[str, str]:
        """A metric's value and its interval (empty where it has none), as they are written."""
        return _parts(self.measures[name], name)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreSummary:
    """The part of a :class:`Summary` that is known before anything is timed, by the same names. ``partial``:
    on some of the images yet, with intervals that hold at every look."""

    request: Request
    images: str
    measures: Mapping[str, Measure]
    baseline_correct: int
    total: int
    reference: str
    fidelity: bool
    drop: PairedDrop
    partial: bool

    @property
    def recipe(self) -> Recipe:
        return self.request.recipe

    def text(self, name: str) -> str:
        return _text(self.measures[name], name)

    def parts(self, name: str) -> tuple[str, str]:
        return _parts(self.measures[name], name)


def quality(name: str, summaries: Iterable[Summary]) -> str:
    """The metric that is shown in the place of one: SQNR for accuracy and what is lost of it, where no
    network tells classes."""
    of = [summary.fidelity for summary in summaries]
    return "sqnr" if name in ("accuracy", "drop") and of and all(of) else name


def summarise_scores(known: Known) -> ScoreSummary | None:
    """All that is known of the scores; None before there are any."""
    accuracy, baseline = known.accuracy, known.baseline_accuracy
    if accuracy is None or baseline is None:
        return None
    images, partial = describe_images(known.request.data, known.images), accuracy.total < known.images
    drop = drop_against(accuracy.reference, baseline.outcomes, accuracy.outcomes)
    measures = _accuracy_measures(accuracy, baseline, drop)
    if partial:
        drop = growing_drop(drop)
        low, high = growing_share_interval(_correct(accuracy), accuracy.total)
        share = replace(measures["accuracy"], low=100 * low, high=100 * high)
        measures |= {"accuracy": share, "drop": Measure(drop.points, drop.low, drop.high, 0.0)}
        measures["sqnr"] = Measure(measures["sqnr"].value)  # no interval of it holds at every look
    return ScoreSummary(
        request=known.request,
        images=f"{accuracy.total:,} of {images} so far" if partial else images,
        measures=measures,
        baseline_correct=_correct(baseline),
        total=accuracy.total,
        reference=accuracy.reference,
        fidelity=accuracy.is_fidelity,
        drop=drop,
        partial=partial,
    )


def _text(measure: Measure, name: str) -> str:
    return metric(name).format(measure.value, measure.low, measure.high)


def _parts(measure: Measure, name: str) -> tuple[str, str]:
    return metric(name).format.parts(measure.value, measure.low, measure.high)


Measured = Result | Summary
"""What figures are shown of: a result, or what it comes to where that is known already."""

_MAX_SUMMARIES = 4096
_summaries: OrderedDict[tuple[object, ...], Summary] = OrderedDict()
_lock = Lock()


def summarise(measured: Measured) -> Summary:
    """All derived figures of a result, computed once for each measurement in this process.

    Only the summary is kept, not the raw samples, so memory stays flat over a long sweep.
    """
    if isinstance(measured, Summary):
        return measured
    identity = _identity(measured)
    with _lock:
        if identity in _summaries:
            _summaries.move_to_end(identity)
            return _summaries[identity]
    return remember(measured, derive(measured))


def remember(result: Result, summary: Summary) -> Summary:
    """Have :func:`summarise` give this of a result."""
    with _lock:
        _summaries[_identity(result)] = summary
        if len(_summaries) > _MAX_SUMMARIES:
            _summaries.popitem(last=False)
    return summary


def _identity(result: Result) -> tuple[object, ...]:
    latency = result.latency
    return (result.key, result.created, latency.signature, latency.quick, latency.variant.calls.checksum)


def derive(result: Result) -> Summary:
    """All figures of a result, worked out of its raw samples."""
    accuracy, reference = result.accuracy, result.baseline_accuracy
    drop = drop_against(accuracy.reference, reference.outcomes, accuracy.outcomes)
    latency, timed_measures = _latency_measures(result.latency)
    size = result.inspection.size
    recipe = result.request.recipe
    timed = result.latency.recipe
    zeros_percent = 100 * (1 - size.nonzero / size.elements) if size.elements else 0.0
    prune, skipped = recipe.prune, skipping(result.execution)
    counted = prune.threshold is not None or prune.fixed_sparsity or prune.shrinks or recipe.layers
    return Summary(
        key=result.key,
        request=result.request,
        measures=_measures(result, drop, timed_measures),
        correct=_correct(accuracy),
        baseline_correct=_correct(reference),
        total=accuracy.total,
        reference=accuracy.reference,
        image_files=accuracy.images,
        outcomes=accuracy.correct,
        baseline_outcomes=hashlib.sha256(reference.correct).hexdigest()[:16],
        fidelity=accuracy.is_fidelity,
        drop=drop,
        latency=latency,
        size=size,
        baseline_size=result.inspection.baseline_size,
        pruned_percent=zeros_percent if counted else 100 * prune.share,
        zeros_percent=zeros_percent,
        batch=result.latency.batch,
        threads=result.latency.threads,
        quick=result.latency.quick,
        processes=result.latency.processes,
        process_ratios=process_ratios(result.latency),
        timed=None if timed == recipe else timed,
        realisation=realisation(result.execution, recipe.prune.shrinks),
        skipping=len(skipped),
        skipped=tuple(skipped[:MAX_NAMED]),
        fallback=result.execution.fallback,
        layers=len(result.execution.layers),
        precisions=result.execution.precisions,
        simulated=result.execution.simulated,
        environment=describe(result.environment),
        environment_key=result.environment.key,
        created=result.created,
        notes=result.notes,
    )


@lru_cache(maxsize=64)
def _latency_measures(latency: Latency) -> tuple[LatencySummary, dict[str, Measure]]:
    """Its summary, and its metrics but those of a batch (no interval with too few rounds).

    Cached by the samples: configurations that share a measurement share its figures.
    """
    baseline, variant, processes = latency.baseline, latency.variant, latency.processes
    summary = summarise_visits(baseline, variant, latency.stolen_share, processes)
    times = {
        "latency": time_interval(variant.medians_ns, processes),
        "mean": mean_interval(variant.means_ns),
        "first_call": time_interval(variant.first_ns, processes),
    }
    before = {
        "latency": np.median([build.medians_ns for build in baseline]),
        "mean": np.mean([build.means_ns for build in baseline]),
        "first_call": np.median([build.first_ns for build in baseline]),
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


def _accuracy_measures(accuracy: Accuracy, baseline: Accuracy, drop: PairedDrop) -> dict[str, Measure]:
    total = accuracy.total
    return {
        "accuracy": _share(_correct(accuracy), total, 100 * _correct(baseline) / total),
        "balanced_accuracy": _balanced(accuracy, baseline),
        "drop": Measure(drop.points, drop.low, drop.high, 0.0),
        "sqnr": _worst_sqnr(accuracy),
        "cosine": Measure(_worst_cosine(accuracy), baseline=1.0),
        "largest": _largest(accuracy),
    }


TIMED = ("latency", "latency_ratio", "first_call", "first_call_ratio", "latency_p95", "latency_p99")


def _measures(result: Result, drop: PairedDrop, timed: Mapping[str, Measure]) -> dict[str, Measure]:
    size, baseline_size = result.inspection.size, result.inspection.baseline_size
    layers, total, start = result.inspection.layers, result.accuracy.total, result.cold_start
    found = {
        **_accuracy_measures(result.accuracy, result.baseline_accuracy, drop),
        "file_size": Measure(size.file_bytes, baseline=baseline_size.file_bytes),
        "packed_size": Measure(size.packed_bytes, baseline=baseline_size.packed_bytes),
        "compressed_size": Measure(size.compressed_bytes, baseline=baseline_size.compressed_bytes),
        "memory": Measure(size.memory_bytes, baseline=baseline_size.memory_bytes),
        "cold_start": Measure(start.variant_ns, baseline=start.baseline_ns) if start else Measure(None),
        **{name: timed[name] for name in TIMED},
        "throughput": _throughput(timed["mean"], result.latency.batch),
        "nonzero": Measure(size.nonzero, baseline=baseline_size.nonzero),
        "operations": Measure(
            sum(layer.macs * layer.nonzero / layer.elements for layer in layers if layer.elements),
            baseline=sum(layer.macs for layer in layers),
        ),
        "agreement": _share(result.accuracy.agreement, total, 100.0),
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
    if accuracy.kl_images is None or accuracy.total < 2:
        return Measure(accuracy.kl, baseline=0.0)
    low, high = skewed_mean_interval(accuracy.kl_images.values)
    return Measure(accuracy.kl, max(0.0, min(low, accuracy.kl)), max(high, accuracy.kl), 0.0)


def sqnr_of(one: OutputFidelity | Accuracy) -> Measure:
    """Of an output, or of logits: without an interval where one of its ends is not known."""
    if one.sqnr_db is None:
        return Measure(None)
    low, high = sqnr_ends(one, one.sqnr_db)
    return (
        Measure(one.sqnr_db, low, high)
        if math.isfinite(low) and math.isfinite(high)
        else Measure(one.sqnr_db)
    )


def _worst_sqnr(accuracy: Accuracy) -> Measure:
    """Of several outputs the lowest, with the lowest of either end: a limit is held against that too."""
    found = [sqnr_of(one) for one in accuracy.outputs or (accuracy,)]
    moved = [(one.value, one.low, one.high) for one in found if one.value is not None]
    ends = (None if None in column else min(column) for column in zip(*moved, strict=True))
    return Measure(*ends) if moved else Measure(None)


def _worst_cosine(accuracy: Accuracy) -> float | None:
    each = [one.cosine for one in accuracy.outputs] if accuracy.outputs else [accuracy.cosine]
    return min((one for one in each if one is not None), default=None)


def sqnr_ends(
    one: OutputFidelity | Accuracy, db: float, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Noise over signal has an interval; in dB its ends change places, and one that is not known is infinite:
    of few images noise may reach 0."""
    noise, signal = one.noise_images, one.signal_images
    if not noise or not signal or len(noise.codes) < 2:
        return -math.inf, math.inf
    least, most = ratio_interval(noise.values, signal.values, confidence)
    return min(-10 * math.log10(most), db), max(-10 * math.log10(least), db) if least > 0 else math.inf


def _largest(accuracy: Accuracy) -> Measure:
    """Of outputs that are no logits: of all of them, each as a share of its own range."""
    if not accuracy.outputs:
        return Measure(None)
    return Measure(100 * max(one.largest_share for one in accuracy.outputs), baseline=0.0)


def _correct(accuracy: Accuracy) -> int:
    return int(accuracy.outcomes.sum())


def _balanced(accuracy: Accuracy, baseline: Accuracy) -> Measure:
    """Each class counts the same, however many images it has. None where all have as many."""
    classes = accuracy.classes
    if classes is None:
        return Measure(None)
    before, *_ = balanced_share(baseline.outcomes, classes)
    return Measure(*(100 * one for one in (*balanced_share(accuracy.outcomes, classes), before)))


def _share(count: int, total: int, baseline_percent: float) -> Measure:
    low, high = share_interval(count, total)
    return Measure(100 * count / total, 100 * low, 100 * high, baseline_percent)


def describe_images(data: DataSpec, total: int) -> str:
    """The images in words: ``10,000 bundled images`` or ``500 images of photographs``."""
    if data.content:
        return f"{total:,} images given in memory"
    return f"{total:,} {'bundled images' if data.path is None else f'images of {PurePath(data.path).name}'}"


@cache
def _here() -> str:
    return environment().key


FIDELITY = ("sqnr", "cosine", "largest")
"""Metrics that are shown of a network whose outputs are no logits, in the place of accuracy."""
FALLBACK = "torch CSR"
"""What skips zeros where the sparse engine has no kernels."""
