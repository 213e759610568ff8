"""One experiment: a request in, a result out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np

from optimizer.analysis.statistics import summarise_latency
from optimizer.compression.apply import CompressedModel, compress
from optimizer.data.loading import Datasets
from optimizer.engine import Runner
from optimizer.engine.memory import measure_start
from optimizer.engine.realised import named
from optimizer.formats import count
from optimizer.measurement.accuracy import accuracy_of
from optimizer.measurement.latency import measure_latency
from optimizer.measurement.subject import Setting, calibration_of, images_of, subject, turn
from optimizer.measurement.variant import (
    build_of,
    builder,
    compressed_model,
    inspection_of,
    notes_on_equalisation,
)
from optimizer.model.catalogue import Report, card, download, quiet
from optimizer.recipe import Recipe
from optimizer.records import Accuracy, ColdStart, Execution, Inspection, Latency, Request, Result, digest
from optimizer.store.keys import request_key
from optimizer.system.environment import environment

SharedLatency = Callable[[str, bool], Latency | None]


TIMED_IMAGES = 64


@dataclass(frozen=True)
class Baseline:
    """The uncompressed model on one engine, scored once."""

    runner: Runner
    logits: np.ndarray


@dataclass(frozen=True)
class Scored:
    """A compressed model that has run over the evaluation images: logits ``[N, K]``, and its baseline's."""

    setting: Setting
    images: Datasets
    inspection: Inspection
    runner: Runner
    logits: np.ndarray
    baseline: Baseline

    @property
    def accuracy(self) -> Accuracy:
        return accuracy_of(self.logits, self.baseline.logits, self._labels, self.setting.files)

    @property
    def baseline_accuracy(self) -> Accuracy:
        return accuracy_of(self.baseline.logits, self.baseline.logits, self._labels, self.setting.files)

    @property
    def _labels(self) -> np.ndarray | None:
        labels = self.images.evaluation.labels
        return None if labels is None else labels.numpy()


def score(request: Request, report: Report = quiet) -> Scored:
    """Compress, build and run over all evaluation images. Raises InputError, UnavailableError, WorkError."""
    setting = Setting.of(request)
    report(None, "loading the model")
    if not card(request.model).ready:
        download(request.model, report)
    target = subject(request.model)
    report(None, "reading the images")
    images = images_of(setting)
    report(None, f"preparing {request.engine}")
    compressed = compressed_model(request, report)
    build = build_of(request, report)
    evaluation = images.evaluation.images.numpy()
    with turn(report):
        report(None, f"scoring {len(evaluation):,} images")
        baseline = _baseline(setting)
        runner = build(compressed, calibration_of(images), setting.threads, setting.batch)
        logits = baseline.logits if request.recipe.identity else runner.score(evaluation)
    inspection = inspection_of(target, compressed.module, compressed.weights)
    return Scored(setting, images, inspection, runner, logits, baseline)


@dataclass(frozen=True)
class Pair:
    """A compressed model and its baseline on one engine, with the same threads and folding, not yet run.

    ``images`` ``[N, C, H, W]`` are some to time them with.
    """

    setting: Setting
    compressed: CompressedModel
    runner: Runner
    baseline: Runner
    images: np.ndarray

    @property
    def removed_share(self) -> float:
        """Of the layers' weights that are left, the share that is zero."""
        weights = [weight.values for weight in self.compressed.weights.values()]
        return 1 - sum(int(w.count_nonzero()) for w in weights) / max(1, sum(w.numel() for w in weights))


def pair(request: Request, report: Report = quiet) -> Pair:
    """Compress and build, and score nothing. Raises InputError, UnavailableError, WorkError."""
    setting = Setting.of(request)
    report(None, "loading the model")
    if not card(request.model).ready:
        download(request.model, report)
    images = images_of(setting)
    report(None, f"preparing {request.engine}")
    compressed = compressed_model(request, report)
    build = build_of(request, report)
    with turn(report):
        runner = build(compressed, calibration_of(images), setting.threads, setting.batch)
        baseline = _twin(setting)
    timed = images.evaluation.images[:TIMED_IMAGES].numpy()
    return Pair(setting, compressed, runner, baseline, timed)


def measure(
    request: Request, report: Report = quiet, shared_latency: SharedLatency = lambda *_: None
) -> Result:
    """Score and time one recipe. Raises InputError, UnavailableError, WorkError.

    ``shared_latency`` may give an earlier measurement of an execution signature: dense kernels run the same
    instructions whatever the weights' values, so unless it was noisy it is used instead of timing again.
    """
    scored = score(request, report)
    settings = replace(request.settings, threads=scored.setting.threads)
    baseline, runner = scored.baseline.runner, scored.runner
    signature = _signature(request, runner.execution, settings.threads)
    latency = shared_latency(signature, settings.quick)
    if latency is None or _noisy(latency):
        images = scored.images.evaluation.images[:TIMED_IMAGES].numpy()
        with turn(report):
            report(None, "timing")
            latency = measure_latency(
                (baseline, _twin(scored.setting)),
                runner,
                images,
                settings,
                signature,
                request.recipe,
            )
    inspection, cold_start = scored.inspection, None
    if not settings.quick:
        shape = (settings.batch, *subject(request.model).input_shape)
        with turn(report):
            report(None, "measuring memory and cold start")
            started = measure_start(runner, settings.threads, shape)
            before = measure_start(baseline, settings.threads, shape)
        if started and before:
            inspection = _with_memory(inspection, started.memory_bytes, before.memory_bytes)
            cold_start = ColdStart(started.cold_start_ns, before.cold_start_ns)
    return Result(
        key=request_key(request, scored.setting.files),
        request=request,
        environment=environment(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        inspection=inspection,
        accuracy=scored.accuracy,
        baseline_accuracy=scored.baseline_accuracy,
        latency=latency,
        execution=runner.execution,
        notes=(
            *subject(request.model).notes,
            *notes_on_equalisation(request),
            *_notes_on_scoring(runner),
            *scored.images.notes,
        ),
        cold_start=cold_start,
    )


def _notes_on_scoring(runner: Runner) -> tuple[str, ...]:
    """What is to be said where accuracy is not that of the precisions that are timed."""
    names = runner.scored_otherwise
    if not names:
        return ()
    layers = count(len(names), "layer")
    return (f"accuracy: {layers} ran in another precision than when timed ({named(names)})",)


def _noisy(latency: Latency) -> bool:
    return bool(summarise_latency(latency.baseline_ns, latency.variant_ns, latency.stolen_share).noise)


@lru_cache(maxsize=2)
def _baseline(setting: Setting) -> Baseline:
    runner = uncompressed(setting)
    images = images_of(setting)
    return Baseline(runner, runner.score(images.evaluation.images.numpy()))


@lru_cache(maxsize=2)
def _twin(setting: Setting) -> Runner:
    """The baseline once more, built for itself: what it differs in from the first is what noise is here."""
    return uncompressed(setting)


def uncompressed(setting: Setting) -> Runner:
    """A baseline's runner, built anew."""
    images = images_of(setting)
    compressed = compress(subject(setting.model).module, Recipe())
    build = builder(setting.model, setting.engine)
    return build(compressed, calibration_of(images), setting.threads, setting.batch)


def _with_memory(inspection: Inspection, memory_bytes: int, baseline_bytes: int) -> Inspection:
    return replace(
        inspection,
        size=replace(inspection.size, memory_bytes=memory_bytes),
        baseline_size=replace(inspection.baseline_size, memory_bytes=baseline_bytes),
    )


def _signature(request: Request, execution: Execution, threads: int) -> str:
    """Equal for configurations that run the same instructions: same shapes, kernels and precisions."""
    return digest(
        [
            request.model,
            request.engine,
            execution.layers,
            request.recipe.quantize.activation_bits,
            request.recipe.prune if request.recipe.prune.shrinks else None,
            threads,
            request.settings.batch,
            environment().key,
        ]
    )
