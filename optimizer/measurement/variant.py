"""What a recipe makes of a model: the compressed model, the network that it belongs to, and what is counted
and told of it without running an image."""

from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import nn

from optimizer.compression.anatomy import anatomy_of, sensitivities_of
from optimizer.compression.apply import (
    CompressedModel,
    CompressedWeight,
    compress,
    compress_weights,
    equalised_pairs,
)
from optimizer.compression.calibration.cache import coupled, fine_tuned, plan_of, study_of
from optimizer.compression.prune.channels import shrink
from optimizer.compression.prune.matching import matched
from optimizer.compression.prune.plan import Plan
from optimizer.compression.step_time import keep_step_time
from optimizer.engine import engine_named
from optimizer.engine.base import Build
from optimizer.errors import unknown
from optimizer.measurement.size import size_of
from optimizer.measurement.subject import (
    Setting,
    Subject,
    Telling,
    studied,
    studied_images,
    study,
    study_on,
    subject,
    turn,
)
from optimizer.model.catalogue import Report, quiet
from optimizer.model.layers import walk
from optimizer.recipe import PruneSpec, Recipe
from optimizer.records import (
    Anatomy,
    DataSpec,
    GroupSensitivity,
    Inspection,
    LayerFacts,
    Request,
    Sensitivity,
    Settings,
)


def inspect(request: Request, report: Report = quiet) -> Inspection:
    """Exact counts and sizes of a recipe, without scoring an image. Raises InputError.

    A recipe that needs data needs the study of it, which takes its time once.
    """
    target = subject(request.model)
    request = _unmatched(_untuned(request))
    if request.recipe.prune.shrinks:
        compressed = compressed_model(request, report)
        return inspection_of(target, compressed.module, compressed.weights)
    known = study(request, report) if request.recipe.needs_data else None
    weights = compress_weights(target.module, request.recipe, target.published, known)
    return inspection_of(target, target.module, weights)


def _untuned(request: Request) -> Request:
    """Fine-tuning changes no count, and would be waited for."""
    return replace(request, recipe=replace(request.recipe, finetune_steps=0).canonical())


def _unmatched(request: Request) -> Request:
    """Nor does scaling channels, unless channels go, which a network is made anew for anyway."""
    if request.recipe.prune.shrinks:
        return request
    prune = replace(request.recipe.prune, match=False)
    return replace(request, recipe=replace(request.recipe, prune=prune).canonical())


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
                known = study_of(small, studied_images(request), report)
        return replace(compress(small, rest, study=known), recipe=recipe)
    known = study(request, report) if recipe.needs_data else None
    return compress(target.module, recipe, target.published, known)


def network_of(request: Request, report: Report = quiet) -> nn.Module:
    """What the recipe's weights take their place in: the model, or what became of all that is not a layer's
    weights when channels were removed, outputs matched, or the network fine-tuned. Raises InputError."""
    if _is_followed_up(request.recipe):
        return followed_up(request, report).module
    return shrunk(request, report) if request.recipe.prune.shrinks else subject(request.model).module


def build_of(request: Request, report: Report = quiet) -> Build:
    """What an engine prepares for the request's recipe. Raises InputError."""
    network = network_of(request, report)
    if network is subject(request.model).module:
        return builder(request.model, request.engine)
    return _built_for(network, request.engine, subject(request.model).input_shape)


@lru_cache(maxsize=2)
def builder(model: str, engine: str) -> Build:
    """What an engine prepares of a model, once."""
    target = subject(model)
    return engine_named(engine).prepare(target.module, target.input_shape)


@lru_cache(maxsize=2)
def _built_for(module: nn.Module, engine: str, input_shape: tuple[int, int, int]) -> Build:
    return engine_named(engine).prepare(module, input_shape)


def _is_matched(recipe: Recipe) -> bool:
    """Whether outputs are matched after pruning; a network made smaller was refitted as it was made."""
    return recipe.matches and not recipe.prune.shrinks


def _is_followed_up(recipe: Recipe) -> bool:
    return recipe.finetunes or _is_matched(recipe)


@dataclass(frozen=True)
class FollowedUp:
    """A pruned network whose outputs were matched, or which was fine-tuned; the thresholds of its pruning."""

    module: nn.Module
    thresholds: dict[str, float]


def followed_up(request: Request, report: Report = quiet) -> FollowedUp:
    """Prune, match outputs, and fine-tune what is left, whatever is rounded later. Raises InputError."""
    layers = tuple(replace(one, weight_bits=None) for one in request.recipe.layers)
    recipe = Recipe(request.recipe.prune, layers=layers, finetune_steps=request.recipe.finetune_steps)
    asked = replace(request, recipe=recipe, engine="openvino", settings=Settings())
    return _followed_up(asked, Setting.of(asked).files, Telling(report))


@lru_cache(maxsize=2)
def _followed_up(request: Request, files: str, telling: Telling) -> FollowedUp:
    recipe, report = request.recipe, telling.report
    student = compressed_model(_unmatched(_untuned(request)), report)
    images, teacher = studied_images(request), subject(request.model).module
    module = student.module
    with turn(report):
        if _is_matched(recipe):
            module = matched(teacher, module, images, report=report) or module
        if recipe.finetunes:
            masks = {name: weight.mask for name, weight in student.weights.items()}
            took = partial(keep_step_time, request.model)
            module = fine_tuned(module, teacher, masks, images, recipe.finetune_steps, report, took)
    return FollowedUp(module, {name: weight.threshold for name, weight in student.weights.items()})


def _rounded(request: Request, report: Report) -> CompressedModel:
    """What was followed up, rounded on the fixed mask."""
    recipe, pruned = request.recipe, followed_up(request, report)
    layers = tuple(replace(one, sparsity=None, pruning=None) for one in recipe.layers)
    rest = Recipe(PruneSpec(threshold=0.0), recipe.quantize, layers)  # zeros stay zeros
    known = None
    if rest.needs_data:
        with turn(report):
            known = study_of(pruned.module, studied_images(request), report)
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


@lru_cache(maxsize=2)
def _plan(model: str, data: DataSpec, files: str, measured: bool, telling: Telling) -> Plan:
    """In which order channels go: with ``measured`` effects, from the moments of the study."""
    target, images = subject(model), studied(model, data, files)
    if not measured:
        return plan_of(target.module, images, "magnitude", report=telling.report)
    moments = study_on(model, data, files, telling).moments
    return plan_of(target.module, images, "compensated", moments, telling.report)


@lru_cache(maxsize=2)
def _shrunk(plan: Plan, ratio: float, snap: int, match: bool, telling: Telling) -> nn.Module:
    return shrink(plan, ratio, multiple=snap, match=match, report=telling.report).module


def anatomy(request: Request, layer: str, report: Report = quiet) -> Anatomy:
    """One layer's weights before and after the request's recipe. Raises InputError for an unknown layer."""
    target = subject(request.model)
    before = {one.name: one.weight.detach() for one in walk(target.module)}
    if layer not in before:
        raise unknown("layer", layer, before)
    request = _untuned(request)
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
    known, images = study(request, report), studied_images(request)
    with turn(report):
        return coupled(subject(request.model).module, images, known, report)


def inspection_of(target: Subject, module: nn.Module, weights: dict[str, CompressedWeight]) -> Inspection:
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


NOTHING_TO_EQUALISE = (
    "nothing to equalise: between no two layers is there only what keeps to scale (ReLU, pooling); clips "
    "(ReLU6), curves (GELU) and sums don't"
)


def notes_on_equalisation(request: Request) -> tuple[str, ...]:
    """What is to be said where it was asked for and there is nothing to be had by it."""
    recipe, module = request.recipe, subject(request.model).module
    specs = recipe.quantize_for(layer.name for layer in walk(module))
    asked = any(spec.equalises for spec in specs.values())
    return (NOTHING_TO_EQUALISE,) if asked and not equalised_pairs(module, specs) else ()
