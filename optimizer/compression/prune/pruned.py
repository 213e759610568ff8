"""What a pruner makes of one layer."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pruned:
    """``weight`` float32 in the layer's shape, zero where ``mask`` (boolean, True survives) is False.

    ``bias_change`` float32 ``[out]`` keeps the mean of the layer's outputs; None where nothing is to be kept.
    """

    weight: Tensor
    mask: Tensor
    bias_change: Tensor | None = None
