"""The seed idea: a weight survives if ``|w| > threshold``."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.prune.allocation import counts_of
from optimizer.compression.prune.patterns import PATTERNS, keep_mask
from optimizer.compression.prune.pruned import Pruned
from optimizer.recipe import PruneSpec


def prune(
    weights: Mapping[str, Tensor],
    published: Mapping[str, Tensor],
    spec: PruneSpec,
    statistics: Statistics | None,
) -> dict[str, Pruned]:
    """Each layer loses its smallest ``published`` weights; those that stay keep their value in ``weights``.

    How many a layer loses, and in what pattern, is as ``spec`` says. Raises InputError for a sparsity that
    can't be met.
    """
    by_thresholds = spec.threshold is not None or spec.allocation in ("uniform", "global")
    if spec.pattern == "unstructured" and by_thresholds:
        kept = masks(published, spec)
    else:
        counts, pattern = counts_of(spec, published, weights, statistics), PATTERNS[spec.pattern]
        kept = {name: keep_mask(one.square(), pattern, counts[name]) for name, one in published.items()}
    return {name: Pruned(weight * kept[name], kept[name]) for name, weight in weights.items()}


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
    if spec.allocation == "global":
        everything = torch.cat([weight.flatten() for weight in weights.values()])
        return dict.fromkeys(weights, _threshold(everything, spec.sparsity))
    return {name: _threshold(weight, spec.sparsity) for name, weight in weights.items()}


def _threshold(weight: Tensor, sparsity: float) -> float:
    removed = round(sparsity * weight.numel())
    if removed == 0:
        return -1.0
    magnitudes = weight.detach().abs().flatten().numpy()
    return float(np.partition(magnitudes, removed - 1)[removed - 1])
