"""What a recipe makes of a workspace's model: the compressed model, the network that it belongs to, and what
is counted and told of it without running an image."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from cachetools import LRUCache
from torch import Tensor, nn

from optimizer.compression.anatomy import anatomy_of, sensitivities_of
from optimizer.compression.apply import CompressedModel, compress, equalised_pairs, prune_weights
from optimizer.compression.calibration.cache import fine_tuned, improved, plan_of, statistics_of
from optimizer.compression.calibration.layer_sensitivity import alone, coupled
from optimizer.compression.calibration.moments import MAX_COLUMNS
from optimizer.compression.calibration.statistics import Statistics, collapse_copies
from optimizer.compression.prune import Shrinker
from optimizer.compression.prune.matching import matched
from optimizer.compression.prune.plan import ChannelPlan
from optimizer.compression.prune.pruned import Pruned
from optimizer.compression.quantize.held import HeldGrid, held_grid, moved
from optimizer.compression.step_time import keep_step_time
from optimizer.engine.base import Build
from optimizer.engine.faithful import prepare
from optimizer.errors import unknown
from optimizer.formats import count, listed, significant
from optimizer.measurement.size import size_of
from optimizer.measurement.workspace import OpenModel, Workspace, once
from optimizer.model.layers import walk
from optimizer.progress import Report, quiet, uninterrupted
from optimizer.recipe import PruneSpec, Recipe
from optimizer.records import SAME_PERCENT, Anatomy, GroupSensitivity, Inspection, LayerFacts, Sensitivity
from optimizer.system.machine_lock import exclusive

MIN_REACHED, MAX_REACHED = 0.5, 1.25
"""Of the share of channels that was asked for, and of the weights that go with it where every layer loses
that share of what it reads and of what it gives: a smaller and a larger share of the weights is told."""
ENOUGH_CALIBRATION = 32
"""Images. With fewer, another few give clearly another network; a hundred or more are better."""


def inspect(workspace: Workspace, recipe: Recipe, report: Report = quiet) -> Inspection:
    """Exact counts and sizes of a recipe, without scoring an image. Raises InputError.

    A recipe that needs data needs the statistics of it, which take their time once. What learns keeps its
    masks and its grids (on one, codes may come to zero).
    """
    compressed = compressed_model(workspace, _unmatched(recipe.unlearnt), report=report)
    return inspection_of(workspace.model, compressed)


def _unmatched(recipe: Recipe) -> Recipe:
    """Scaling channels changes no count, unless channels go, which a network is made anew for anyway."""
    if recipe.prune.shrinks:
        return recipe
    return replace(recipe, prune=replace(recipe.prune, match=False)).canonical()


def compressed_model(workspace: Workspace, recipe: Recipe, *, report: Report = quiet) -> CompressedModel:
    """The workspace's model after the recipe: worked out once for its counts, its scores and its files, and
    for all recipes of the same weights. Its module is not to be changed. Raises InputError."""
    return replace(_compressed(workspace, recipe.of_weights, report=report), recipe=recipe)


@once
def _compressed(workspace: Workspace, recipe: Recipe, *, report: Report) -> CompressedModel:
    own, workspace = workspace, workspace.rewritten(recipe, report)
    if workspace is not own:
        made = _compressed(workspace, recipe, report=report)
        return replace(made, notes=(*made.notes, *workspace.notes))
    model = workspace.model
    if _is_learnt(recipe):
        return _rounded(workspace, recipe, report)
    if recipe.prune.shrinks:
        small = shrunk(workspace, recipe.prune, report)
        rest = replace(recipe, prune=PruneSpec())
        return replace(
            compress(small, rest, statistics=_statistics_of(workspace, small, rest, report)), recipe=recipe
        )
    statistics = workspace.statistics(report) if recipe.needs_data else None
    report(None, "compressing")
    pruned = _pruned(workspace, recipe, statistics) if recipe.prune.active else None
    return compress(model.module, recipe, model.published, statistics, pruned)


MAX_PRUNED_BYTES = 128 * 2**20
"""Of weights that stay pruned, for other bit widths to be rounded from."""


def _pruned(workspace: Workspace, recipe: Recipe, statistics: Statistics | None) -> Mapping[str, Pruned]:
    """Pruning takes as long as rounding: done once for all bit widths of the last few sparsities."""
    model = workspace.model
    kept = workspace.kept.setdefault(_pruned, LRUCache(MAX_PRUNED_BYTES, _bytes_of))
    asked = tuple(recipe.prune_for(model.published).items())
    if (pruned := kept.get(asked)) is None:
        pruned = prune_weights(model.module, recipe, model.published, statistics)
        with suppress(ValueError):  # too large to be kept
            kept[asked] = pruned
    return pruned


def _bytes_of(pruned: Mapping[str, Pruned]) -> int:
    return sum(one.weight.nbytes + one.mask.nbytes for one in pruned.values())


def _statistics_of(
    workspace: Workspace, network: nn.Module, recipe: Recipe, report: Report
) -> Statistics | None:
    """Statistics of a network that is not the model any more, where the recipe needs them."""
    if not recipe.needs_data:
        return None
    with exclusive(report):
        return statistics_of(network, workspace.statistics_images, report)


def network_of(workspace: Workspace, recipe: Recipe, report: Report = quiet) -> nn.Module:
    """What the recipe's weights take their place in: the model, or what became of all that is not a layer's
    weights when channels were removed or put into another order, outputs matched, or the network learnt.
    Raises InputError."""
    workspace = workspace.rewritten(recipe, report)
    if recipe.learns_on_grids:
        return compressed_model(workspace, recipe, report=report).module
    if _is_learnt(recipe):
        return learnt(workspace, recipe, report).module
    return shrunk(workspace, recipe.prune, report) if recipe.prune.shrinks else workspace.model.module


def build_of(workspace: Workspace, recipe: Recipe, engine: str, report: Report = quiet) -> Build:
    """What an engine prepares for the recipe. Raises InputError, UnavailableError."""
    workspace = workspace.rewritten(recipe, report)
    network = network_of(workspace, recipe, report)
    if network is workspace.model.module:
        return workspace.model.builder(engine)
    return _built_for(workspace, network, engine)


@once
def _built_for(workspace: Workspace, network: nn.Module, engine: str) -> Build:
    return prepare(engine, network, workspace.model.input_shape)


def _is_matched(recipe: Recipe) -> bool:
    """Whether outputs are matched after pruning; a network made smaller was refitted as it was made."""
    return recipe.matches and not recipe.prune.shrinks


def _is_learnt(recipe: Recipe) -> bool:
    return recipe.learns or _is_matched(recipe)


@dataclass(frozen=True)
class Learnt:
    """A network whose outputs were matched, or which learnt; the masks and thresholds of its pruning, and
    what is to be said of it."""

    module: nn.Module
    masks: dict[str, Tensor]
    thresholds: dict[str, float]
    notes: tuple[str, ...] = ()


def learnt(workspace: Workspace, recipe: Recipe, report: Report = quiet) -> Learnt:
    """Prune, match outputs, and let what is left learn, whatever is rounded later. Raises InputError."""
    return _learnt(workspace, recipe.learnt, report=report)


@once
def _learnt(workspace: Workspace, recipe: Recipe, *, report: Report) -> Learnt:
    plain = _unmatched(recipe.unlearnt)
    student = compressed_model(workspace, plain, report=report)
    teacher, module = workspace.model.module, student.module
    notes: tuple[str, ...] = ()
    with exclusive(report):
        if _is_matched(recipe):
            module = matched(teacher, module, workspace.statistics_images, report=report) or module
        if recipe.learns:
            module, notes = _taught(workspace, module, student, recipe, report)
    masks = {name: weight.mask for name, weight in student.weights.items()}
    thresholds = {name: weight.threshold for name, weight in student.weights.items()}
    return Learnt(module, masks, thresholds, notes)


def _taught(
    workspace: Workspace,
    module: nn.Module,
    made: CompressedModel,
    recipe: Recipe,
    report: Report,
    grids: Mapping[str, HeldGrid] | None = None,
) -> tuple[nn.Module, tuple[str, ...]]:
    """``module`` once it has learnt, with the masks of ``made`` and on ``grids``; and what is to be said of
    it."""
    masks = {name: weight.mask for name, weight in made.weights.items()}
    images, teacher = workspace.finetuning_images, workspace.model.module
    notes = []
    if asked := recipe.effort_seconds:
        scaled = bool(equalised_pairs(teacher, recipe.quantize_for(masks)))
        module, took = improved(module, teacher, masks, images, asked, report, grids, not scaled)
        if took < asked:
            notes.append(f"best effort was ended after {took:.0f} of {asked} s, with the best until then")
    if asked := recipe.finetune_steps:
        seconds = partial(keep_step_time, workspace.model.loaded.card.name)
        module, made_steps = fine_tuned(module, teacher, masks, images, asked, report, seconds, grids)
        if made_steps < asked:
            notes.append(
                f"fine-tuning was ended after {made_steps:,} of {asked:,} steps, with the best until then"
            )
    return module, tuple(notes)


def _rounded(workspace: Workspace, recipe: Recipe, report: Report) -> CompressedModel:
    """What learnt, rounded on the fixed mask; or what was rounded and learnt on the grids."""
    if recipe.learns_on_grids:
        made = compressed_model(workspace, recipe.unlearnt, report=report)
        return _on_grids(workspace, replace(made, recipe=recipe), report)
    pruned = learnt(workspace, recipe, report)
    layers = tuple(replace(one, sparsity=None, pruning=None) for one in recipe.layers)
    rest = Recipe(PruneSpec(threshold=0.0), recipe.quantize, layers)  # zeros stay zeros
    made = compress(pruned.module, rest, statistics=_statistics_of(workspace, pruned.module, rest, report))
    weights = {  # not all zeros were pruned: a batch norm with a gain of 0 leaves some
        name: replace(weight, mask=pruned.masks[name], threshold=pruned.thresholds[name])
        for name, weight in made.weights.items()
    }
    return replace(made, recipe=recipe, weights=weights, notes=pruned.notes)


def _on_grids(workspace: Workspace, made: CompressedModel, report: Report) -> CompressedModel:
    """``made`` once it has learnt, its weights held to their masks and grids."""
    grids = {
        name: held_grid(one.codes, one.spec) for name, one in made.weights.items() if one.codes is not None
    }
    with exclusive(report):
        module, notes = _taught(workspace, made.module, made, made.recipe, report, grids)
    weights = {}
    for layer in walk(module):
        one = made.weights[layer.name]
        if one.bits == 16:
            layer.weight.data = layer.weight.half().float()
        values = layer.weight.detach()
        codes = one.codes and moved(one.codes, values)
        weights[layer.name] = replace(one, values=values, codes=codes, bias_change=None)
    return replace(made, module=module, weights=weights, notes=notes)


def shrunk(workspace: Workspace, spec: PruneSpec, report: Report = quiet) -> nn.Module:
    """The network without the channels that the spec removes. Raises InputError, UnavailableError."""
    with exclusive(report):
        return _shrunk(workspace, spec, report=report)


@once
def _shrunk(workspace: Workspace, spec: PruneSpec, *, report: Report) -> nn.Module:
    remove: Shrinker = spec.pruner.load()
    return remove(
        workspace.model.module, spec, lambda order: _plan(workspace, order, report=report), report
    ).eval()


@once
@uninterrupted(unless_over=True)
def _plan(workspace: Workspace, order: str, *, report: Report) -> ChannelPlan:
    """In which order channels go; a compensated one works from the calibration statistics' moments."""
    moments = workspace.statistics(report).moments if order == "compensated" else None
    return plan_of(workspace.model.module, workspace.statistics_images, order, moments, report)


def anatomy(workspace: Workspace, recipe: Recipe, layer: str, report: Report = quiet) -> Anatomy:
    """One layer's weights before and after the recipe. Raises InputError for an unknown layer."""
    workspace = workspace.rewritten(recipe, report)
    model = workspace.model
    before = {one.name: one.weight.detach() for one in walk(model.module)}
    if layer not in before:
        raise unknown("layer", layer, before)
    after = compressed_model(workspace, recipe.unlearnt, report=report).weights[layer]
    same = torch.equal(before[layer], model.published[layer])
    as_published = same and not recipe.prune.shrinks  # what reads channels that went was refitted
    return anatomy_of(layer, before[layer], after, as_published)


def sensitivities(workspace: Workspace, report: Report = quiet) -> tuple[Sensitivity, ...]:
    """What each layer's change alone does to the outputs, in the order of the network."""
    model, known = workspace.model.module, workspace.statistics(report)
    with exclusive(report):
        pruned = alone(model, workspace.statistics_images, known, report)
    weights = {layer.name: layer.weight.detach() for layer in walk(model)}
    return sensitivities_of(weights, known, pruned)


def coupled_sensitivities(workspace: Workspace, report: Report = quiet) -> tuple[GroupSensitivity, ...]:
    """What changing coupled layers at once does to the outputs. Raises UnavailableError, WorkError."""
    known, images = workspace.statistics(report), workspace.statistics_images
    with exclusive(report):
        return coupled(workspace.model.module, images, known, report)


def inspection_of(model: OpenModel, compressed: CompressedModel) -> Inspection:
    """Counts against the uncompressed model's, also of a smaller network: what is gone is not there."""
    weights = compressed.weights
    facts = tuple(
        LayerFacts(
            name=layer.name,
            kind=layer.kind,
            shape=tuple(layer.weight.shape),
            elements=layer.weight.numel(),
            nonzero=weights[layer.name].nonzero,
            threshold=weights[layer.name].threshold,
            bits=weights[layer.name].bits,
            macs=layer.weight.numel() * model.multiplications[layer.name],
            pruned=layer.weight.numel() - int(weights[layer.name].mask.count_nonzero()),
        )
        for layer in walk(model.module)
    )
    size = replace(size_of(compressed.module, weights), elements=model.size.elements)
    return Inspection(facts, size, model.size)


NOTHING_TO_EQUALISE = (
    "nothing to equalise: between no two layers is there only what keeps to scale (ReLU, pooling); clips "
    "(ReLU6), curves (GELU) and sums don't"
)


def notes_on_equalisation(model: nn.Module, recipe: Recipe) -> tuple[str, ...]:
    """What is to be said where it was asked for and there is nothing to be had by it."""
    specs = recipe.quantize_for(layer.name for layer in walk(model))
    asked = any(spec.equalises for spec in specs.values())
    return (NOTHING_TO_EQUALISE,) if asked and not equalised_pairs(model, specs) else ()


def notes_on_calibration(images: Tensor, recipe: Recipe) -> tuple[str, ...]:
    """What is to be said where a recipe that works from calibration ``images`` ``[N, ...]`` had few of them,
    or copies of one."""
    found = len(collapse_copies(images))
    if not recipe.needs_images or found >= ENOUGH_CALIBRATION:
        return ()
    copies = "" if found == len(images) else f" (all {len(images):,} are the same)"
    return (
        f"only {count(found, 'calibration image')}{copies}: what this recipe reads off images rests on so "
        f"few; give {ENOUGH_CALIBRATION} or more",
    )


def notes_on_unread(workspace: Workspace, recipe: Recipe, report: Report = quiet) -> tuple[str, ...]:
    """What is to be said where calibration images tell nothing of layers that a recipe works on by them."""
    by_images = [
        *(one.needs_data for one in recipe.prune_specs),
        *(one.needs_data for one in recipe.quantize_specs),
    ]
    if recipe.prune.shrinks or not any(by_images):
        return ()
    known = workspace.statistics(report).moments
    unread = [layer.name for layer in walk(workspace.model.module) if layer.name not in known]
    if not unread:
        return ()
    return (
        f"calibration images tell nothing of {listed(unread)}, which magnitude prunes and nearest "
        "rounds: such a weight is multiplied in the model's own code or in parts, did not run, "
        f"or has more than {MAX_COLUMNS:,} columns",
    )


def notes_on_channels(
    model: OpenModel, compressed: CompressedModel, inspection: Inspection
) -> tuple[str, ...]:
    """What is to be said where far fewer or more weights went than the share of channels lets one expect."""
    prune, found = compressed.recipe.prune, inspection.pruned_percent
    if not prune.shrinks or found is None:
        return ()
    if found < MIN_REACHED * 100 * prune.share:
        layers = [*walk(model.module)]
        fewer = sum(len(compressed.weights[one.name].values) < len(one.weight) for one in layers)
        why = f"{fewer} of {count(len(layers), 'layer')} gave up channels"
    elif found > MAX_REACHED * 100 * (1 - (1 - prune.share) ** 2):
        why = "those that went have many weights for their multiply-accumulates"
    else:
        return ()
    asked = f"{100 * prune.share:.4g} % of the channels that can go"
    return (f"{asked} is {significant(found, 2)} % of layer weights: {why}",)


def notes_on_ties(recipe: Recipe, inspection: Inspection) -> tuple[str, ...]:
    """What is to be said where more went than was asked for: a share becomes a threshold."""
    found, asked = inspection.pruned_percent, 100 * recipe.prune.share
    by_share = recipe.prune.pattern == "unstructured" and not (recipe.prune.shrinks or recipe.layers)
    if found is None or not asked or not by_share:
        return ()
    layers = inspection.layers
    rounded = 50 * len(layers) / sum(layer.elements for layer in layers)  # whole weights go of each layer
    if found < asked + SAME_PERCENT + rounded:
        return ()
    return (
        f"{found:.3g} % of the weights were pruned, not {asked:.3g} %: those of one magnitude go together",
    )
