"""Grids that fine-tuning keeps: codes move on them, scales and zero points stay as they are.

What learns is a weight behind each code, which is rounded to it whenever the network runs (straight-through
estimation, arXiv 1308.3432). It begins in the middle: one that began where it was before it was rounded, near
the next code, would go there by the first steps' noise, and undo what rounding made up for.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from optimizer.compression.quantize.grid import Codes, code_range, spread
from optimizer.recipe import QuantizeSpec

BEYOND = 0.5
"""How many steps of the grid beyond its ends it may go: further out it would not soon come back."""


@dataclass(frozen=True, slots=True)
class HeldGrid:
    """One layer's grid, all float32 in shapes that stand against its weight; ``first`` and ``last`` are codes
    less the zero point."""

    step: Tensor
    first: Tensor
    last: Tensor

    def inside(self, weight: Tensor) -> Tensor:
        """``weight``, where it is not so far out that it would stay there."""
        return weight.clamp((self.first - BEYOND) * self.step, (self.last + BEYOND) * self.step)

    def nearest(self, weight: Tensor) -> Tensor:
        """The values on the grid that ``weight`` is rounded to."""
        return torch.round(weight / self.step).clamp(self.first, self.last) * self.step


def held_grid(codes: Codes, spec: QuantizeSpec) -> HeldGrid:
    """The grid that ``codes`` lie on."""
    step, zero = (spread(one, codes.centred.shape) for one in (codes.scale, codes.zero_point))
    first, last = code_range(spec)
    return HeldGrid(step, first - zero.float(), last - zero.float())


def moved(codes: Codes, values: Tensor) -> Codes:
    """Codes on the same grid for ``values`` that lie on it."""
    centred = torch.round(values / spread(codes.scale, values.shape))
    return replace(codes, centred=centred.to(torch.int16))
