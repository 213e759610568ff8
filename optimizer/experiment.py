"""One experiment: a request in, a result out. And its fast first half, which runs no image.

Everything that recipes share (the loaded model, its images, the converted graph, the scored baseline) is kept
between calls in this process, so a new position of a slider costs only what is new in it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from optimizer.accuracy import accuracy_of
from optimizer.anatomy import anatomy_of, sensitivities_of
from optimizer.compress import CompressedModel, CompressedWeight, compress, compress_weights, equalised_pairs
from optimizer.data import Datasets, load_images
from optimizer.engines import Runner, engine_named
from optimizer.engines.base import Build
from optimizer.engines.memory import measure_start
from optimizer.environment import check_precision, environment, threads_available
from optimizer.errors import InputError, unknown
from optimizer.folders import fingerprint
from optimizer.keys import request_key
from optimizer.latency import measure_latency
from optimizer.layers import fold_batch_norm, multiplications, walk
from optimizer.models import LoadedModel, Report, card, download, load, quiet
from optimizer.prune.channels import shrink
from optimizer.prune.matching import matched
from optimizer.prune.plan import Plan
from optimizer.recipe import PruneSpec, Recipe
from optimizer.records import (
    Accuracy,
    Anatomy,
    ColdStart,
    DataSpec,
    Execution,
    GroupSensitivity,
    Inspection,
    Latency,
    LayerFacts,
    Request,
    Result,
    Sensitivity,
    Settings,
    Size,
    digest,
)
from optimizer.size import size_of
from optimizer.statistics import summarise_latency
from optimizer.studies import IMAGES as STUDIED_IMAGES
from optimizer.studies import coupled, plan_of, study_of, trained
from optimizer.study import Study
from optimizer.token import machine_token

SharedLatency = Callable[[str, bool], Latency | None]
ACTIVATION_CALIBRATION_IMAGES = 128
TIMED_IMAGES = 64


@dataclass(frozen=True)
class Subject:
    """A loaded model, its batch norm folded, ready for any recipe.

    ``published`` are its layers' weights before folding, by name: by their magnitude weights are pruned.
    """

    loaded: LoadedModel
    module: nn.Module
    published: dict[str, Tensor]
    multiplications: dict[str, int]
    size: Size
    notes: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.loaded.card.input_shape


@dataclass(frozen=True, slots=True)
class Setting:
    """What a baseline depends on. ``files`` is the fingerprint of the images: changed ones are read anew."""

    model: str
    engine: str
    data: DataSpec
    files: str
    threads: int
    batch: int

    @classmethod
    def of(cls, request: Request) -> "Setting":
        """Raises InputError for more threads than cores, a precision that the CPU has not, or a folder that
        can't be used."""
        threads = resolve_threads(request.settings.threads)
        check_precision(request.recipe.quantize.precision, environment())
        files = fingerprint(request.data)
        return cls(request.model, request.engine, request.data, files, threads, request.settings.batch)


@dataclass(frozen=True)
class Baseline:
    """The uncompressed model on one engine, scored once."""

    runner: Runner
    logits: np.ndarray


@lru_cache(maxsize=2)
def subject(model: str) -> Subject:
    """Load a model and fold its batch norm, once. Raises InputError, UnavailableError."""
    loaded = load(model)
    module, notes = fold_batch_norm(loaded.module)
    return Subject(
        loaded,
        module,
        {layer.name: layer.weight.detach() for layer in walk(loaded.module)},
        multiplications(module, loaded.card.input_shape),
        size_of(module, compress_weights(module, Recipe())),
        notes,
    )


def inspect(request: Request, report: Report = quiet) -> Inspection:
    """Exact counts and sizes of a recipe, without scoring an image. Raises InputError.

    A recipe that needs data needs the study of it, which takes its time once.
    """
    target = subject(request.model)
    request = _unmatched(_untrained(request))
    if request.recipe.prune.shrinks:
        compressed = compressed_model(request, report)
        return _inspection(target, compressed.module, compressed.weights)
    known = study(request, report) if request.recipe.needs_data else None
    weights = compress_weights(target.module, request.recipe, target.published, known)
    return _inspection(target, target.module, weights)


def _untrained(request: Request) -> Request:
    """Training changes no count, and would be waited for."""
    return replace(request, recipe=replace(request.recipe, training_seconds=0.0).canonical())


def _unmatched(request: Request) -> Request:
    """Nor does scaling channels, unless channels go, which a network is made anew for anyway."""
    if request.recipe.prune.shrinks:
        return request
    prune = replace(request.recipe.prune, match=False)
    return replace(request, recipe=replace(request.recipe, prune=prune).canonical())


def study(request: Request, report: Report = quiet) -> Study:
    """What is known of the model on the request's calibration images; made once. Raises InputError."""
    setting = Setting.of(request)
    with turn(report):
        return _study(setting.model, setting.data, setting.files, Telling(report))


def compressed_model(request: Request, report: Report = quiet) -> CompressedModel:
    """The model after the request's recipe. Raises InputError."""
    target, recipe = subject(request.model), request.recipe
    if _is_followed_up(recipe):
        return _rounded(request, report)
    if recipe.prune.shrinks:
        small = shrunk(request, report)
        rest = replace(recipe, prune=PruneSpec())
        known = None
        if rest.needs_data:
            with turn(report):
                known = study_of(small, _studied(request), report)
        return replace(compress(small, rest, study=known), recipe=recipe)
    known = study(request, report) if recipe.needs_data else None
    return compress(target.module, recipe, target.published, known)


def network_of(request: Request, report: Report = quiet) -> nn.Module:
    """What the recipe's weights take their place in: the model, or what became of all that is not a layer's
    weights when channels were removed, outputs matched, or the network trained. Raises InputError."""
    if _is_followed_up(request.recipe):
        return followed_up(request, report).module
    return shrunk(request, report) if request.recipe.prune.shrinks else subject(request.model).module


def build_of(request: Request, report: Report = quiet) -> Build:
    """What an engine prepares for the request's recipe. Raises InputError."""
    network = network_of(request, report)
    if network is subject(request.model).module:
        return builder(request.model, request.engine)
    return _built_for(network, request.engine, subject(request.model).input_shape)


def _is_followed_up(recipe: Recipe) -> bool:
    return recipe.trains or (recipe.matches and not recipe.prune.shrinks)


@dataclass(frozen=True)
class FollowedUp:
    """A pruned network whose outputs were matched, or which was trained; the thresholds it was pruned at."""

    module: nn.Module
    thresholds: dict[str, float]


def followed_up(request: Request, report: Report = quiet) -> FollowedUp:
    """Prune, match outputs, and train on what is left, whatever is rounded later. Raises InputError."""
    layers = tuple(replace(one, weight_bits=None) for one in request.recipe.layers)
    recipe = Recipe(request.recipe.prune, layers=layers, training_seconds=request.recipe.training_seconds)
    asked = replace(request, recipe=recipe, engine="openvino", settings=Settings())
    return _followed_up(asked, Setting.of(asked).files, Telling(report))


@lru_cache(maxsize=2)
def _followed_up(request: Request, files: str, telling: "Telling") -> FollowedUp:
    recipe, report = request.recipe, telling.report
    student = compressed_model(_unmatched(_untrained(request)), report)
    images, teacher = _studied(request), subject(request.model).module
    module = student.module
    with turn(report):
        if recipe.matches and not recipe.prune.shrinks:
            module = matched(teacher, module, images, report=report) or module
        if recipe.trains:
            masks = {name: weight.mask for name, weight in student.weights.items()}
            module = trained(module, teacher, masks, images, recipe.training_seconds, report)
    return FollowedUp(module, {name: weight.threshold for name, weight in student.weights.items()})


def _rounded(request: Request, report: Report) -> CompressedModel:
    """What was followed up, rounded on the fixed mask."""
    recipe, pruned = request.recipe, followed_up(request, report)
    layers = tuple(replace(one, sparsity=None, pruning=None) for one in recipe.layers)
    rest = Recipe(PruneSpec(threshold=0.0), recipe.quantize, layers)  # zeros stay zeros
    known = None
    if rest.needs_data:
        with turn(report):
            known = study_of(pruned.module, _studied(request), report)
    made = compress(pruned.module, rest, study=known)
    weights = {
        name: replace(weight, threshold=pruned.thresholds[name]) for name, weight in made.weights.items()
    }
    return replace(made, recipe=recipe, weights=weights)


def shrunk(request: Request, report: Report = quiet) -> nn.Module:
    """The network without the channels that the request's recipe removes. Raises InputError,
    UnavailableError."""
    setting, spec = Setting.of(request), request.recipe.prune
    with turn(report):
        known = _plan(
            setting.model, setting.data, setting.files, spec.allocation == "measured", Telling(report)
        )
        return _shrunk(known, spec.share, spec.snap, spec.match, Telling(report))


def anatomy(request: Request, layer: str, report: Report = quiet) -> Anatomy:
    """One layer's weights before and after the request's recipe. Raises InputError for an unknown layer."""
    target = subject(request.model)
    before = {one.name: one.weight.detach() for one in walk(target.module)}
    if layer not in before:
        raise unknown("layer", layer, before)
    request = _untrained(request)
    after = compressed_model(request, report).weights[layer]
    same = torch.equal(before[layer], target.published[layer])
    as_published = same and not request.recipe.prune.shrinks  # what reads channels that went was refitted
    return anatomy_of(layer, before[layer], after, as_published)


def sensitivities(request: Request, report: Report = quiet) -> tuple[Sensitivity, ...]:
    """What each layer's change alone does to the outputs, in the order of the network."""
    known = study(request, report)
    weights = {layer.name: layer.weight.detach() for layer in walk(subject(request.model).module)}
    return sensitivities_of(weights, known)


def coupled_sensitivities(request: Request, report: Report = quiet) -> tuple[GroupSensitivity, ...]:
    """What changing coupled layers at once does to the outputs. Raises UnavailableError, WorkError."""
    known, images = study(request, report), _studied(request)
    with turn(report):
        return coupled(subject(request.model).module, images, known, report)


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
        return accuracy_of(self.logits, self.baseline.logits, self._labels)

    @property
    def baseline_accuracy(self) -> Accuracy:
        return accuracy_of(self.baseline.logits, self.baseline.logits, self._labels)

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
    images = _images(setting.model, setting.data, setting.files)
    report(None, f"preparing {request.engine}")
    compressed = compressed_model(request, report)
    build = build_of(request, report)
    evaluation = images.evaluation.images.numpy()
    with turn(report):
        report(None, f"scoring {len(evaluation):,} images")
        baseline = _baseline(setting)
        runner = build(compressed, _calibration(images), setting.threads, setting.batch)
        logits = baseline.logits if request.recipe.identity else runner.score(evaluation)
    inspection = _inspection(target, compressed.module, compressed.weights)
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
    images = _images(setting.model, setting.data, setting.files)
    report(None, f"preparing {request.engine}")
    compressed = compressed_model(request, report)
    build = build_of(request, report)
    with turn(report):
        runner = build(compressed, _calibration(images), setting.threads, setting.batch)
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
                request.recipe.describe(),
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
        key=request_key(request),
        request=request,
        environment=environment(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        inspection=inspection,
        accuracy=scored.accuracy,
        baseline_accuracy=scored.baseline_accuracy,
        latency=latency,
        execution=runner.execution,
        notes=(*subject(request.model).notes, *_equalisation(request), *scored.images.notes),
        cold_start=cold_start,
    )


NOTHING_TO_EQUALISE = (
    "nothing to equalise: between no two layers is there only what keeps to scale (ReLU, pooling); clips "
    "(ReLU6), curves (GELU) and sums don't"
)


def _equalisation(request: Request) -> tuple[str, ...]:
    """What is to be said where it was asked for and there is nothing to be had by it."""
    recipe, module = request.recipe, subject(request.model).module
    specs = {layer.name: recipe.quantize_for(layer.name) for layer in walk(module)}
    asked = any(spec.equalises for spec in specs.values())
    return (NOTHING_TO_EQUALISE,) if asked and not equalised_pairs(module, specs) else ()


def turn(report: Report) -> AbstractContextManager[None]:
    """This machine to ourselves, for one phase: a CLI and a page take turns."""
    return machine_token(
        waiting=lambda seconds: report(
            None, f"waiting for another measurement on this machine ({seconds:.0f} s)"
        )
    )


def _noisy(latency: Latency) -> bool:
    return bool(summarise_latency(latency.baseline_ns, latency.variant_ns, latency.stolen_share).noise)


def resolve_threads(asked: int) -> int:
    """The thread count that is asked for, or every core for 0. Raises InputError."""
    available = threads_available()
    if asked > available:
        raise InputError(
            f"{asked} threads are more than this machine's {available} cores: use 1 to {available}"
        )
    return asked or available


@lru_cache(maxsize=2)
def _images(model: str, data: DataSpec, files: str) -> Datasets:
    """``files`` is the fingerprint of the folder: images that changed are read anew."""
    return load_images(subject(model).loaded, data)


@dataclass(frozen=True)
class Telling:
    """A report that makes no difference to what is cached: all are equal."""

    report: Report = field(compare=False)


@lru_cache(maxsize=2)
def _study(model: str, data: DataSpec, files: str, telling: Telling) -> Study:
    images = _drawn(_images(model, data, files), STUDIED_IMAGES)
    return study_of(subject(model).module, images, telling.report)


@lru_cache(maxsize=2)
def _plan(model: str, data: DataSpec, files: str, measured: bool, telling: Telling) -> Plan:
    """In which order channels go: with ``measured`` effects, from the moments of the study."""
    target, images = subject(model), _drawn(_images(model, data, files), STUDIED_IMAGES)
    if not measured:
        return plan_of(target.module, images, "magnitude", report=telling.report)
    moments = _study(model, data, files, telling).moments
    return plan_of(target.module, images, "compensated", moments, telling.report)


@lru_cache(maxsize=2)
def _shrunk(plan: Plan, ratio: float, snap: int, match: bool, telling: Telling) -> nn.Module:
    return shrink(plan, ratio, multiple=snap, match=match, report=telling.report).module


@lru_cache(maxsize=2)
def _built_for(module: nn.Module, engine: str, input_shape: tuple[int, int, int]) -> Build:
    return engine_named(engine).prepare(module, input_shape)


@lru_cache(maxsize=2)
def builder(model: str, engine: str) -> Build:
    """What an engine prepares of a model, once."""
    target = subject(model)
    return engine_named(engine).prepare(target.module, target.input_shape)


@lru_cache(maxsize=2)
def _baseline(setting: Setting) -> Baseline:
    runner = uncompressed(setting)
    images = _images(setting.model, setting.data, setting.files)
    return Baseline(runner, runner.score(images.evaluation.images.numpy()))


@lru_cache(maxsize=2)
def _twin(setting: Setting) -> Runner:
    """The baseline once more, built for itself: what it differs in from the first is what noise is here."""
    return uncompressed(setting)


def uncompressed(setting: Setting) -> Runner:
    """A baseline's runner, built anew."""
    images = _images(setting.model, setting.data, setting.files)
    compressed = compress(subject(setting.model).module, Recipe())
    build = builder(setting.model, setting.engine)
    return build(compressed, _calibration(images), setting.threads, setting.batch)


def activation_images(request: Request) -> Tensor:
    """The calibration images ``[N, C, H, W]`` that activation ranges are read from."""
    setting = Setting.of(request)
    return _calibration(_images(setting.model, setting.data, setting.files))


def _studied(request: Request) -> Tensor:
    setting = Setting.of(request)
    return _drawn(_images(setting.model, setting.data, setting.files), STUDIED_IMAGES)


def _calibration(images: Datasets) -> Tensor:
    return _drawn(images, ACTIVATION_CALIBRATION_IMAGES)


def _drawn(images: Datasets, count: int) -> Tensor:
    """Calibration images drawn over the whole set (folders come sorted by class): a shorter draw begins a
    longer."""
    everything = images.calibration.images
    return everything[np.random.default_rng(0).permutation(len(everything))[:count]]


def _inspection(target: Subject, module: nn.Module, weights: dict[str, CompressedWeight]) -> Inspection:
    """Counts against the whole network's, also where ``module`` is a smaller one: what is gone is not
    there."""
    facts = tuple(
        LayerFacts(
            name=layer.name,
            kind=layer.kind,
            shape=tuple(layer.weight.shape),
            elements=layer.weight.numel(),
            nonzero=int(weights[layer.name].values.count_nonzero()),
            threshold=weights[layer.name].threshold,
            bits=weights[layer.name].bits,
            macs=layer.weight.numel() * target.multiplications[layer.name],
        )
        for layer in walk(target.module)
    )
    size = replace(size_of(module, weights), elements=target.size.elements)
    return Inspection(facts, size, target.size)


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
