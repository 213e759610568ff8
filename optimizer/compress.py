"""A recipe applied to a model: copy once, prune, then quantize on the fixed mask."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optimizer.errors import unknown
from optimizer.layers import walk
from optimizer.prune import PRUNERS
from optimizer.quantize import QUANTIZERS
from optimizer.quantize.grid import Codes
from optimizer.recipe import Recipe


@dataclass(frozen=True, slots=True)
class CompressedWeight:
    """One layer's weight after a recipe.

    ``values`` float32 are what the layer multiplies with; ``mask`` is True where a weight survived pruning;
    ``codes`` hold the integer grid at 8 bits or fewer; ``threshold`` is the largest magnitude that went, or
    -1.
    """

    values: Tensor
    mask: Tensor
    codes: Codes | None
    threshold: float


@dataclass(frozen=True, slots=True)
class CompressedModel:
    """A copy of the module with the compressed weights in it, and those weights by parameter name."""

    module: nn.Module
    recipe: Recipe
    weights: dict[str, CompressedWeight]


@torch.no_grad()
def compress_weights(model: nn.Module, recipe: Recipe) -> dict[str, CompressedWeight]:
    """The weights that ``recipe`` makes of ``model``, which is left as it was. Raises InputError."""
    if recipe.prune.method not in PRUNERS:
        raise unknown("pruning method", recipe.prune.method, PRUNERS)
    if recipe.quantize.method not in QUANTIZERS:
        raise unknown("quantization method", recipe.quantize.method, QUANTIZERS)
    weights = {layer.name: layer.weight.detach() for layer in walk(model)}
    masks = PRUNERS[recipe.prune.method](weights, recipe.prune)
    return {name: _compress_weight(weight, masks[name], recipe) for name, weight in weights.items()}


def _compress_weight(weight: Tensor, mask: Tensor, recipe: Recipe) -> CompressedWeight:
    removed = weight[~mask]
    threshold = removed.abs().max().item() if removed.numel() else -1.0
    values, codes = weight * mask, None
    if recipe.quantize.integer:
        codes = QUANTIZERS[recipe.quantize.method](values, recipe.quantize)
        values = codes.values
    elif recipe.quantize.weight_bits == 16:
        values = values.half().float()
    return CompressedWeight(values, mask, codes, threshold)


@torch.no_grad()
def compress(model: nn.Module, recipe: Recipe) -> CompressedModel:
    """A compressed copy of ``model``, in evaluation mode. Raises InputError for an unknown method."""
    weights = compress_weights(model, recipe)
    module = copy.deepcopy(model).eval()
    for layer in walk(module):
        layer.weight.copy_(weights[layer.name].values)
    return CompressedModel(module, recipe, weights)
