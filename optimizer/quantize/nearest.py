"""Round to nearest, on a range by absolute maximum or by least squared error."""

import torch
from torch import Tensor

from optimizer.quantize.grid import Codes, extremes, round_to_grid
from optimizer.recipe import QuantizeSpec

SHRINK_FACTORS = tuple(1 - 0.025 * step for step in range(31))
"""Shares of the absolute range that the least-squares search tries: 1 down to 0.25."""


def quantize(weight: Tensor, spec: QuantizeSpec) -> Codes:
    """Codes of ``weight`` ``[out, ...]``, float32, at ``spec.weight_bits`` of 2 to 8."""
    low, high = extremes(weight, spec)
    if spec.range == "mse":
        factor = _least_squares_factor(weight, low, high, spec)
        low, high = low * factor, high * factor
    return round_to_grid(weight, low, high, spec)


def _least_squares_factor(weight: Tensor, low: Tensor, high: Tensor, spec: QuantizeSpec) -> Tensor:
    """Each channel's best shrink factor, in the shape of ``low``."""
    axes = tuple(axis for axis in range(weight.dim()) if low.shape[axis] == 1)
    best = torch.ones_like(low)
    least = torch.full_like(low, torch.inf)
    for factor in SHRINK_FACTORS:
        rounded = round_to_grid(weight, low * factor, high * factor, spec).values
        error = (rounded - weight).square().sum(axes, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, factor, best)
    return best
