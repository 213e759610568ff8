"""The seed idea: a weight survives if ``|w| > threshold``."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from optimizer.recipe import PruneSpec


def masks(weights: Mapping[str, Tensor], spec: PruneSpec) -> dict[str, Tensor]:
    """Boolean masks of the weights' shapes; True survives."""
    limits = thresholds(weights, spec)
    return {name: weight.abs() > limits[name] for name, weight in weights.items()}


def thresholds(weights: Mapping[str, Tensor], spec: PruneSpec) -> dict[str, float]:
    """Each layer's threshold; -1 where nothing goes.

    A sparsity becomes the magnitude of the last weight to go, so weights that tie with it go too.
    """
    if spec.threshold is not None:
        return dict.fromkeys(weights, spec.threshold)
    if not spec.sparsity:
        return dict.fromkeys(weights, -1.0)
    if spec.scope == "global":
        everything = torch.cat([weight.flatten() for weight in weights.values()])
        return dict.fromkeys(weights, _threshold(everything, spec.sparsity))
    return {name: _threshold(weight, spec.sparsity) for name, weight in weights.items()}


def _threshold(weight: Tensor, sparsity: float) -> float:
    removed = round(sparsity * weight.numel())
    if removed == 0:
        return -1.0
    magnitudes = weight.detach().abs().flatten().numpy()
    return float(np.partition(magnitudes, removed - 1)[removed - 1])
