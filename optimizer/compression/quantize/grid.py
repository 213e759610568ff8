"""Integer grids: real value = scale x (code - zero point). One scale in all, a channel, or a group of
inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from optimizer.recipe import QuantizeSpec

GROUP = 64
"""Consecutive inputs of an output that share a scale at granularity ``group``; the last may be fewer."""


@dataclass(frozen=True, slots=True)
class Codes:
    """Integer codes less their zero point (so 0 is exactly zero), int16 in the weight's shape.

    ``scale`` float32 and ``zero_point`` int16 are ``[out, 1, ...]``, ``[1, 1, ...]`` per tensor, or ``[out,
    n]`` where the inputs of a channel lie in ``n > 1`` groups of ``GROUP``.
    """

    centred: Tensor
    scale: Tensor
    zero_point: Tensor

    @property
    def values(self) -> Tensor:
        """What the layer multiplies with, float32."""
        return self.centred * spread(self.scale, self.centred.shape)

    @property
    def stored(self) -> Tensor:
        """The codes with their zero point, int16: those that are written to a file."""
        return self.centred + spread(self.zero_point, self.centred.shape)

    @property
    def grouped(self) -> bool:
        """Whether a channel has several scales, which int8 kernels do not take."""
        return self.scale[0].numel() > 1


@dataclass(frozen=True, slots=True)
class Rounded:
    """What a quantizer makes of one layer. ``bias_change`` float32 ``[out]`` is to be added to its bias.

    It makes up for all that pruning and rounding did to the mean; None where there is nothing to be added.
    """

    codes: Codes
    bias_change: Tensor | None = None


def code_range(spec: QuantizeSpec) -> tuple[int, int]:
    """Lowest and highest code: symmetric grids leave out the lowest, so that -w is as exact as w."""
    if spec.symmetric:
        top = 2 ** (spec.weight_bits - 1) - 1
        return -top, top
    return 0, 2**spec.weight_bits - 1


def units(weight: Tensor, granularity: str) -> Tensor:
    """A weight ``[out, ...]`` as ``[out or 1, n, width]``: what has a scale of its own is in the last
    dimension.

    The last group of a channel is filled up with zeros, which every grid has.
    """
    if granularity == "tensor":
        return weight.reshape(1, 1, -1)
    rows = weight.reshape(len(weight), 1, -1)
    if granularity == "channel" or rows.shape[2] <= GROUP:
        return rows
    return functional.pad(rows, (0, -rows.shape[2] % GROUP)).reshape(len(weight), -1, GROUP)


def spread(grid: Tensor, shape: torch.Size) -> Tensor:
    """Scales or zero points ``[out or 1, n, ...]`` as they stand against a weight of ``shape``."""
    if grid[0].numel() == 1:
        return grid.reshape(-1, *[1] * (len(shape) - 1))
    columns = shape[1:].numel()
    return grid.repeat_interleave(GROUP, 1)[:, :columns].reshape(shape)


def grid_between(low: Tensor, high: Tensor, spec: QuantizeSpec) -> tuple[Tensor, Tensor]:
    """Scale and zero point, float32 in the shape of ``low`` and ``high``, of the grid that spans them."""
    first, last = code_range(spec)
    scale = (high - low) / (last - first)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = torch.zeros_like(scale) if spec.symmetric else torch.round(-low / scale).clamp(first, last)
    return scale, zero_point


def nearest_codes(weight: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantizeSpec) -> Codes:
    """Nearest codes of ``weight`` on grids ``[out or 1, n]``; values outside are clipped to the ends."""
    first, last = code_range(spec)
    zero = spread(zero_point, weight.shape)
    code = torch.round(weight / spread(scale, weight.shape) + zero).clamp(first, last)
    return packed(code - zero, scale, zero_point)


def packed(centred: Tensor, scale: Tensor, zero_point: Tensor) -> Codes:
    """Codes from floats, with one scale a channel or in all in as many dimensions as the weight has."""
    if scale.shape[1] == 1:
        scale, zero_point = spread(scale, centred.shape), spread(zero_point, centred.shape)
    return Codes(centred.to(torch.int16), scale, zero_point.to(torch.int16))
