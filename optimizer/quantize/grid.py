"""An integer grid: real value = scale x (code - zero point), one scale a channel or one in all."""

from dataclasses import dataclass

import torch
from torch import Tensor

from optimizer.recipe import QuantizeSpec


@dataclass(frozen=True, slots=True)
class Codes:
    """Integer codes less their zero point (so 0 is exactly zero), int16 in the weight's shape.

    ``scale`` float32 and ``zero_point`` int16 are ``[out, 1, ...]``, or ``[1, 1, ...]`` per tensor.
    """

    centred: Tensor
    scale: Tensor
    zero_point: Tensor

    @property
    def values(self) -> Tensor:
        return self.centred * self.scale


def code_range(spec: QuantizeSpec) -> tuple[int, int]:
    """Lowest and highest code: symmetric grids leave out the lowest, so that -w is as exact as w."""
    if spec.symmetric:
        top = 2 ** (spec.weight_bits - 1) - 1
        return -top, top
    return 0, 2**spec.weight_bits - 1


def extremes(weight: Tensor, spec: QuantizeSpec) -> tuple[Tensor, Tensor]:
    """Lowest and highest value to cover, ``[out, 1, ...]`` or ``[1, 1, ...]``; 0 is always covered."""
    axes = list(range(0 if spec.granularity == "tensor" else 1, weight.dim()))
    low, high = torch.aminmax(weight.flatten(axes[0]), dim=-1) if axes else (weight, weight)
    shape = [1 if axis in axes else size for axis, size in enumerate(weight.shape)]
    low, high = low.reshape(shape).clamp(max=0), high.reshape(shape).clamp(min=0)
    if spec.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    return low, high


def round_to_grid(weight: Tensor, low: Tensor, high: Tensor, spec: QuantizeSpec) -> Codes:
    """Nearest code of the grid that spans ``low`` to ``high``; values outside are clipped to its ends."""
    first, last = code_range(spec)
    scale = (high - low) / (last - first)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = torch.zeros_like(scale) if spec.symmetric else torch.round(-low / scale).clamp(first, last)
    code = torch.round(weight / scale + zero_point).clamp(first, last)
    return Codes((code - zero_point).to(torch.int16), scale, zero_point.to(torch.int16))
