"""Whether a network that was rewritten computes what it did before."""

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from optimizer.model.examples import agree, answers
from optimizer.model.products import deep_copy
from optimizer.progress import stop_if_cancelled

TOLERANCE = 1e-6
"""Of the outputs in float64, which the same network in other words leaves as they are but for rounding; parts
of some models compute in float32 whatever they are given."""

Channels = TypeVar("Channels", bound=Hashable)
"""Some of a network's that are changed together."""


def preserving(
    model: nn.Module,
    input_shape: tuple[int, ...],
    changes: Mapping[Channels, Tensor],
    rewritten: Callable[[nn.Module, Mapping[Channels, Tensor]], nn.Module],
) -> dict[Channels, Tensor]:
    """Those ``changes`` that leave the outputs of ``model`` for an input ``[C, H, W]`` as they are: all of
    them where they do so together, else each that does by itself. ``rewritten`` makes a copy with changes.
    Where another changes them, something between the layers is not as it was read."""
    try:
        network, tolerance = deep_copy(model).double(), TOLERANCE
        before = answers(network, input_shape, torch.float64)
    except Exception:  # the model's own code: it may take no float64
        network, tolerance = model, None
        before = answers(network, input_shape)
    dtype = torch.float32 if tolerance is None else torch.float64

    def holds(some: Mapping[Channels, Tensor]) -> bool:
        stop_if_cancelled()
        after = answers(rewritten(network, some), input_shape, dtype)
        return agree(before, after) if tolerance is None else agree(before, after, tolerance)

    if holds(changes):
        return dict(changes)
    return {one: change for one, change in changes.items() if holds({one: change})}
