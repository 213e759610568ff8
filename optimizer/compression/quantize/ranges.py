"""Which part of the weights' range a grid covers: what lies outside is clipped to its ends.

A range takes weights ``[out or 1, n, width]`` (see :func:`optimizer.compression.quantize.grid.units`), a
spec, and what an error in each of them costs (the same shape, or one it broadcasts from; None where all cost
the same). It returns lowest and highest value to cover, ``[out or 1, n]``. Zero is always covered.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from optimizer.compression.quantize.grid import code_range, grid_between
from optimizer.recipe import QuantizeSpec

Range = Callable[[Tensor, QuantizeSpec, Tensor | None], tuple[Tensor, Tensor]]

SHRINK_FACTORS = tuple(1 - 0.025 * step for step in range(31))
"""Shares of the absolute range that the least-squares search tries: 1 down to 0.25."""
WEIGHTED_FACTORS = SHRINK_FACTORS[::3]
"""Fewer where costs are given: compensated rounding fits the scales once more, and gains nothing by more."""
PERCENTILE = 0.999
"""Share of a grid's weights that range ``percentile`` covers, by magnitude, interpolated between two."""


def absmax(weights: Tensor, spec: QuantizeSpec, costs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """From the lowest to the highest weight: nothing is clipped."""
    low, high = torch.aminmax(weights, dim=2)
    low, high = low.clamp(max=0), high.clamp(min=0)
    if spec.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    return low, high


def percentile(weights: Tensor, spec: QuantizeSpec, costs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As far as ``PERCENTILE`` of the magnitudes reach. Up to a thousand weights that is all but a part of
    one."""
    limit = torch.from_numpy(np.quantile(weights.abs().numpy(), PERCENTILE, axis=2).astype(np.float32))
    low, high = absmax(weights, spec)
    return torch.maximum(low, -limit), torch.minimum(high, limit)


def least_squares(weights: Tensor, spec: QuantizeSpec, costs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The share of the absolute range with the least squared error of rounding to nearest, times its cost."""
    low, high = absmax(weights, spec)
    first, last = code_range(spec)
    best = torch.ones_like(low)
    least = torch.full_like(low, torch.inf)
    for factor in SHRINK_FACTORS if costs is None else WEIGHTED_FACTORS:
        scale, zero_point = grid_between(low * factor, high * factor, spec)
        steps = weights / scale[..., None]
        ends = (first - zero_point)[..., None], (last - zero_point)[..., None]
        off = torch.round(steps).clamp_(*ends).sub_(steps).square_()
        error = (off if costs is None else off.mul_(costs)).sum(2) * scale.square()
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, factor, best)
    return low * best, high * best


RANGES: dict[str, Range] = {"absmax": absmax, "mse": least_squares, "percentile": percentile}
