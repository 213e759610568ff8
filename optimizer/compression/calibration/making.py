"""All that is read of a model and its calibration images before any recipe, in one go."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from optimizer.compression.calibration.curvature import row_effects
from optimizer.compression.calibration.moments import channels_last, watched
from optimizer.compression.calibration.sensitivity import Trial, divergences
from optimizer.compression.calibration.statistics import (
    NEGLIGIBLE,
    REFERENCE,
    Statistics,
    collapse_copies,
    seen_and_held_out,
)
from optimizer.compression.divergence import is_classifier
from optimizer.compression.prune.allocation import change_costs
from optimizer.compression.prune.compensated import growth, prune
from optimizer.model.layers import hooked, walk
from optimizer.progress import Report, quiet
from optimizer.system.memory import kept_memory
from optimizer.system.threads import pinned_threads
from optimizer.tasks.outputs import is_logits

CURVATURE_IMAGES = 32
MAX_RATIO = 16.0
"""How far a measurement may correct a prediction: either can be nearly nothing. On fewer images at most as
far as there are of them: one or two that are sure of their class say that no layer matters."""


@kept_memory()
@pinned_threads()
def make(model: nn.Module, images: Tensor, report: Report = quiet) -> Statistics:
    """Read every layer's inputs, then tell what a change in each does to the outputs.

    Curvature says how much each row counts. How much a whole layer does is measured, on images that nothing
    was fitted to: a classifier that was refitted to 224 images answers those almost as before, and others
    not. Layers that gradients say nothing of (the model detaches what they give) are told by that alone.
    """
    model, images = channels_last(model, collapse_copies(images))
    seen, held_out = seen_and_held_out(images)
    watch = watched(model, seen, report)
    moments = watch.moments()
    if not moments:  # each product is the model's own code's
        return Statistics({}, {}, frozenset())
    layers = {layer.name: layer for layer in walk(model) if layer.name in moments}
    biased = frozenset(watch.biased(model) & layers.keys())
    effects = row_effects(model, seen[:CURVATURE_IMAGES], moments, biased, report)
    silent = {name for name, one in effects.items() if not one.any()}
    weights = {name: layer.weight.detach() for name, layer in layers.items()}
    growths = dict[str, tuple[float, ...]]()  # filled in below: what is kept for these statistics serves all
    predicted = guessed = Statistics(moments, effects, biased, growths)
    if silent:  # rows alike, for want of a better guess
        guessed = replace(predicted, effects=effects | {one: torch.ones_like(effects[one]) for one in silent})
    report(None, "pruning each layer on trial")  # minutes of a large network
    growths.update({name: growth(name, weight, guessed) for name, weight in weights.items()})
    pruned = prune(weights, weights, REFERENCE, predicted)
    if silent:
        unknown = {name: weights[name] for name in weights if name in silent}
        pruned |= prune(unknown, unknown, replace(REFERENCE, allocation="uniform"), guessed)
    alone, costs = {}, {}
    for name, weight in weights.items():
        costs[name] = change_costs(name, weight - pruned[name].weight, predicted)
        alone[name] = predicted.divergence(name, costs[name])
    least = NEGLIGIBLE * sum(alone.values())
    trials = {  # a bias that was fitted to a single image would undo any change there
        name: Trial(pruned[name].weight, None if held_out is seen else pruned[name].bias_change)
        for name, expected in alone.items()
        if expected >= least or name in silent
    }
    most = min(MAX_RATIO, len(held_out))
    for name, divergence in divergences(model, held_out, trials, report).items():
        if name in silent:
            spent = costs[name].sum().item()
            effects[name] = torch.full_like(effects[name], max(0.0, divergence) / spent if spent > 0 else 0.0)
        else:
            ratio = divergence / alone[name] if alone[name] > 0 else 1.0
            effects[name] = effects[name] * min(max(ratio, 1 / most), most)
    # Not before: with its slope kept a classifier loses half as much alone, and would get so few weights that
    # the whole diverges more (EfficientNet-Lite0 at 70 %: 0.85 nats in place of 0.67).
    return replace(predicted, effects=effects, logits=logits_of(model, images[:1]))


@torch.inference_mode()
def logits_of(model: nn.Module, image: Tensor) -> frozenset[str]:
    """The layers that give the logits of a classifier for ``image`` ``[1, ...]``, each as it is or in another
    shape."""
    given: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            given[name] = output

    with hooked(one.module.register_forward_hook(partial(keep, one.name)) for one in walk(model)):
        outputs = model(image.clone())
    if not (is_classifier(model) and is_logits(outputs)):
        return frozenset()
    place = outputs.untyped_storage().data_ptr()
    return frozenset(name for name, one in given.items() if one.untyped_storage().data_ptr() == place)
