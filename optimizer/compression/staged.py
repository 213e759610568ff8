"""Pruning in stages: what goes next is chosen by what the network pruned so far lets its layers see.

Statistics of the dense network say little of one that lost most of its weights: the sums that its layers see
are others, and so is what they are worth. Read anew after a part is gone and the rest is refitted, they
choose and refit better (as Optimal BERT Surgeon does, arXiv 2203.07259); but each stage fits the same images
once more, and may lose by it. So several ways are gone, and the outputs (KL) for images that no layer was
fitted to decide.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.compression.calibration.statistics import Statistics, seen_and_held_out
from optimizer.compression.divergence import divergence, prepared
from optimizer.model.layers import walk
from optimizer.progress import Report, quiet, stop_if_cancelled
from optimizer.recipe import Recipe
from optimizer.system.threads import pinned_threads

VERSION = 1
"""Raised with every change of what comes out."""
STAGES = (1, 2, 3)
"""In how many the same share of the weights goes, one way after the other."""
BATCH = 16


@pinned_threads()
def prune_in_stages(
    model: nn.Module,
    recipe: Recipe,
    published: Mapping[str, Tensor],
    statistics: Statistics,
    study: Callable[[nn.Module, Tensor], Statistics],
    images: Tensor,
    report: Report = quiet,
) -> nn.Module:
    """The best of STAGES: a pruned copy of ``model``, with the weights and biases that came of it.

    ``recipe`` prunes a share by calibration images ``[N, C, H, W]``, ``statistics`` are those of ``model`` on
    them, ``study`` takes those of another one, and ``published`` are the weights of ``model`` before batch
    norm was folded.
    """
    _, held_out = seen_and_held_out(images)
    wanted = _outputs(model, held_out)
    ways: dict[float, nn.Module] = {}
    for stages in STAGES:
        pruned, known, original = model, statistics, published
        for stage in range(1, stages + 1):
            stop_if_cancelled()
            so_far = f", divergence {min(ways):.3g} so far" if ways else ""
            done = (sum(range(stages)) + stage - 1) / sum(STAGES)
            report(done, f"pruning in stages: {stage} of {stages}{so_far}")
            if stage > 1:
                known = study(pruned, images)
                original = {layer.name: layer.weight.detach() for layer in walk(pruned)}
            share = recipe.prune.share
            if stage < stages:  # each stage takes the same share of what is left
                share = 1 - (1 - share) ** (stage / stages)
            pruned = compress(pruned, _at(recipe, share), original, known).module
        apart = divergence(_outputs(pruned, held_out), wanted).item() / len(held_out)
        ways.setdefault(apart, pruned)
    return ways[min(ways)]


def _at(recipe: Recipe, share: float) -> Recipe:
    layers = tuple(replace(one, weight_bits=None) for one in recipe.layers)
    return Recipe(replace(recipe.prune, sparsity=share), layers=layers)


@torch.inference_mode()
def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([prepared(model(part)) for part in images.split(BATCH)])
