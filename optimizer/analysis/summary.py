"""What one result says: every figure derived from the raw samples, with its interval and how far to trust it.

That takes tens of milliseconds: :mod:`optimizer.analysis.stored` keeps it beside the result.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import PurePath
from threading import Lock

from cachetools import LRUCache

from optimizer.analysis.badges import BADGES, MAX_NAMED, Badge, BadgeKind, describe_skipped, elsewhere
from optimizer.analysis.measures import (
    Measure,
    accuracy_measures,
    all_equal,
    all_measures,
    correct,
    latency_measures,
)
from optimizer.analysis.metrics import metric
from optimizer.analysis.outcomes import (
    PairedDrop,
    drop_against,
    growing_drop,
    growing_share_interval,
    nothing_lost,
)
from optimizer.analysis.realisation import Realisation, realisation, skipping
from optimizer.analysis.statistics import MIN_PROCESSES, LatencySummary, process_ratios
from optimizer.formats import count
from optimizer.methods.engines import engine_info
from optimizer.recipe import Recipe
from optimizer.records import SAME_PERCENT, DataSpec, Inspection, Known, Request, Result, Size
from optimizer.system.environment import describe, environment


class _Figures:
    """What is said of the ``measures`` of a request, by name."""

    __slots__ = ()
    request: Request
    measures: Mapping[str, Measure]
    fidelity: bool

    @property
    def recipe(self) -> Recipe:
        return self.request.recipe

    def text(self, name: str) -> str:
        """A metric as it is written, with its interval where it has one."""
        value, interval = self.parts(name)
        return f"{value} ({interval})" if interval else value

    def parts(self, name: str) -> tuple[str, str]:
        """A metric's value and its interval (empty where it has none), as they are written."""
        if self.without_noise(name):
            return "equal", ""
        measure = self.measures[name]
        return metric(name).format.parts(measure.value, measure.low, measure.high)

    def without_noise(self, name: str) -> bool:
        """Whether a metric is the SQNR of outputs that are no logits, and none of these differs."""
        return name == "sqnr" and self.fidelity and all_equal(self.measures)


@dataclass(frozen=True, slots=True, eq=False)
class Summary(_Figures):
    """Everything that one result says. ``measures`` has an entry for each metric.

    ``pruned_percent`` is the share of weights that pruning was asked to remove, or did remove where that is
    another (weights of one magnitude go together) or none was asked for; ``zeros_percent`` is the share that
    are zero, to which rounding adds its own. ``timed`` is the recipe that was really timed when another one
    with the same instructions was. ``processes`` are the rounds of each process that timed, and
    ``process_ratios`` the ratio that each found; ``lost`` are those that ended before their time.
    ``outcomes`` are bits, packed, one an image, ``image_files`` names which these were; ``baseline_outcomes``
    is a digest of those of the uncompressed model.
    ``fidelity``: the network's outputs are no logits, accuracy and what is lost of it are missing, and SQNR
    stands in their place (:func:`quality`).
    ``skipping`` of ``layers`` ran on kernels that skip zeros, ``skipped`` are the first of them; ``fallback``
    says why these were not ours. ``simulated`` are reasons in words. ``environment`` is that which was timed,
    ``scored_on`` another that worked out the accuracy, both in words. Hashes by identity: :func:`summarise`
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
    scored_on: str = ""
    weights: str = ""
    lost: int = 0

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
    def note_on_sharing(self) -> str:
        """Empty where it was timed itself."""
        return f"time shared with {self.shared_with}, which runs the same instructions" if self.timed else ""

    @property
    def other_machine(self) -> bool:
        return self.environment_key != _here()

    @property
    def badges(self) -> tuple[Badge, ...]:
        """How far its figures can be trusted."""
        skipped = describe_skipped(self.request.engine, self.skipped, self.skipping, self.layers)
        measured = BadgeKind.SIMULATED if self.simulated else BadgeKind.MEASURED
        values = self.simulated or (BADGES[BadgeKind.MEASURED],)
        reasons: dict[BadgeKind, Sequence[str]] = {
            measured: (*values, skipped, self.scored_elsewhere),
            BadgeKind.NOISY: self.noise,
            BadgeKind.PRELIMINARY: (BADGES[BadgeKind.PRELIMINARY] if self.quick else "", self.of_one_build),
            BadgeKind.OTHER_ENVIRONMENT: (elsewhere(self.environment) if self.other_machine else "",),
        }
        return tuple(
            Badge(kind, "; ".join(filter(None, words))) for kind, words in reasons.items() if any(words)
        )

    @property
    def of_one_build(self) -> str:
        """That one process alone was left of several, in words; empty where it was not."""
        if not self.lost or len(self.processes) >= MIN_PROCESSES:
            return ""
        return f"{count(self.lost, 'process', 'processes')} ended early, and one build says little of others"

    @property
    def preliminary(self) -> bool:
        return self.quick or bool(self.of_one_build)

    @property
    def scored_elsewhere(self) -> str:
        """Which other machine worked out the accuracy, in words; empty for the one that was timed."""
        return f"accuracy was worked out on another machine ({self.scored_on})" if self.scored_on else ""

    @property
    def noise(self) -> tuple[str, ...]:
        return self.latency.noise

    def ranked(self, name: str) -> Measure:
        """A metric as it is compared with others': of outputs that are no logits, equal ones have no SQNR and
        are the best."""
        return Measure(math.inf) if self.without_noise(name) else self.measures[name]


@dataclass(frozen=True, slots=True, eq=False)
class ScoreSummary(_Figures):
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


def quality(name: str, summaries: Iterable[Summary]) -> str:
    """The metric that is shown in the place of one: SQNR for accuracy and what is lost of it, where no
    network tells classes."""
    of = [summary.fidelity for summary in summaries]
    return "sqnr" if name in ("accuracy", "drop") and of and all(of) else name


def label_of(name: str, summaries: Iterable[Summary]) -> str:
    """What the metric is called that is shown: where no classifier's images have labels, accuracy is
    agreement with the uncompressed model."""
    of = tuple(summaries)
    label, judged = metric(quality(name, of)).label, {one.reference for one in of if not one.fidelity}
    agreement = name in ("accuracy", "drop") and judged == {"baseline"}
    return label.replace("accuracy", "agreement") if agreement else label


def summarise_scores(known: Known) -> ScoreSummary | None:
    """All that is known of the scores; None before there are any."""
    accuracy, baseline = known.accuracy, known.baseline_accuracy
    if accuracy is None or baseline is None:
        return None
    images, partial = describe_images(known.request.data, known.images), accuracy.total < known.images
    drop = drop_against(accuracy.reference, baseline.outcomes, accuracy.outcomes)
    measures = accuracy_measures(accuracy, baseline, drop)
    if partial:
        drop = growing_drop(drop)
        if not accuracy.is_fidelity:
            low, high = growing_share_interval(correct(accuracy), accuracy.total)
            share = replace(measures["accuracy"], low=100 * low, high=100 * high)
            measures |= {"accuracy": share, "drop": Measure(drop.points, drop.low, drop.high, 0.0)}
        for name in ("balanced_accuracy", "agreement", "sqnr"):  # no interval of them holds at every look
            measures[name] = replace(measures[name], low=None, high=None)
    return ScoreSummary(
        request=known.request,
        images=f"{accuracy.total:,} of {images} so far" if partial else images,
        measures=measures,
        baseline_correct=correct(baseline),
        total=accuracy.total,
        reference=accuracy.reference,
        fidelity=accuracy.is_fidelity,
        drop=drop,
        partial=partial,
    )


Measured = Result | Summary
"""What figures are shown of: a result, or what it comes to where that is known already."""

_summaries: LRUCache[tuple[object, ...], Summary] = LRUCache(4096)
_lock = Lock()


def summarise(measured: Measured) -> Summary:
    """All derived figures of a result, computed once for each measurement in this process.

    Only the summary is kept, not the raw samples, so memory stays flat over a long sweep.
    """
    if isinstance(measured, Summary):
        return measured
    identity = _identity(measured)
    with _lock:
        if known := _summaries.get(identity):
            return known
    return remember(measured, derive(measured))


def remember(result: Result, summary: Summary) -> Summary:
    """Have :func:`summarise` give this of a result."""
    with _lock:
        _summaries[_identity(result)] = summary
    return summary


def _identity(result: Result) -> tuple[object, ...]:
    latency = result.latency
    return (result.key, result.created, latency.signature, latency.quick, latency.checksum)


def is_baseline(result: Result) -> bool:
    """Whether it is the uncompressed model itself, which answers all images as it does."""
    return result.request.recipe.identity and result.accuracy.correct == result.baseline_accuracy.correct


def derive(result: Result) -> Summary:
    """All figures of a result, worked out of its raw samples."""
    accuracy, reference = result.accuracy, result.baseline_accuracy
    drop = drop_against(accuracy.reference, reference.outcomes, accuracy.outcomes)
    if is_baseline(result):
        drop = nothing_lost(accuracy.total)
    latency, timed_measures = latency_measures(result.latency)
    size = result.inspection.size
    recipe = result.request.recipe
    timed = result.latency.recipe
    zeros_percent = 100 * (1 - size.nonzero / size.elements) if size.elements else 0.0
    skipped = skipping(result.execution)
    return Summary(
        key=result.key,
        request=result.request,
        measures=all_measures(result, drop, timed_measures),
        correct=correct(accuracy),
        baseline_correct=correct(reference),
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
        pruned_percent=_pruned_percent(recipe, result.inspection, zeros_percent),
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
        scored_on=describe(result.scored_on) if result.scored_on else "",
        weights=result.weights,
        lost=result.latency.lost,
    )


def _pruned_percent(recipe: Recipe, inspection: Inspection, zeros_percent: float) -> float:
    """As asked where that is what went, to the rounding of weights and blocks; a result that was stored
    before it was counted knows zeros at most."""
    prune, found, asked = recipe.prune, inspection.pruned_percent, 100 * recipe.prune.share
    if prune.threshold is not None or prune.fixed_sparsity or prune.shrinks or recipe.layers:
        return zeros_percent if found is None else found
    return asked if found is None or abs(found - asked) < SAME_PERCENT else found


def describe_images(data: DataSpec, total: int | None = None) -> str:
    """The images in words: ``10,000 bundled images`` or ``500 images of photographs``, and without their
    ``total`` ``bundled images``; those of a set that was uploaded without the hash behind its name."""
    name = "" if data.path is None else PurePath(data.path).name
    called = HASH.sub("", name)
    if data.content:
        kind, place = "image", " given in memory"
    elif data.path is None:
        kind, place = "bundled image", ""
    elif called == LOOSE and called != name:
        kind, place = "uploaded image", ""
    else:
        kind, place = "image", f" of {called}"
    return (f"{kind}s" if total is None else count(total, kind)) + place


def describe_asked_images(data: DataSpec) -> str:
    """Images before they are counted: ``bundled images``, and ``images of photographs (up to 200)``."""
    most = f" (up to {data.limit:,})" if data.limit != DataSpec().limit else ""
    return describe_images(data) + most


@cache
def _here() -> str:
    return environment().key


FIDELITY = ("sqnr", "cosine", "largest")
"""Metrics that are shown of a network whose outputs are no logits, in the place of accuracy."""
HASH, LOOSE = re.compile(r" [0-9a-f]{12}$"), "images"
"""What the folders of uploaded images end with, and how those begin that came without an archive
(:mod:`optimizer.data.uploaded`)."""
