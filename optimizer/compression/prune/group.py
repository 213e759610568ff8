"""Channels, or attention heads, that must go together."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that must go together. Layers have the names of :func:`optimizer.model.layers.walk`.

    ``producers`` make ``channels`` outputs each, ``through`` (depthwise convolutions) pass every one on by
    itself, ``consumers`` read them. ``held`` says why they can't go; it is empty where they can.
    ``only_summed`` says that nothing but a residual sum holds them: they may stand in any order.

    Heads of the attention at ``attention`` (a module's path, else empty) are channels of several outputs, one
    after the other ``parts`` times: 3 where queries, keys and values are made by one layer.
    """

    name: str
    channels: int
    producers: tuple[str, ...]
    through: tuple[str, ...]
    consumers: tuple[str, ...]
    held: str = ""
    parts: int = 1
    attention: str = ""
    only_summed: bool = False

    @property
    def makers(self) -> tuple[str, ...]:
        """The layers whose outputs these channels are, each once."""
        return tuple(dict.fromkeys((*self.producers, *self.through)))

    @property
    def members(self) -> tuple[str, ...]:
        """All its layers: one that makes the channels and reads them is there twice."""
        return (*self.producers, *self.through, *self.consumers)

    def staying(self, gone: Tensor) -> Tensor:
        """Bool ``[channels]``, False at those that are ``gone``."""
        return torch.ones(self.channels, dtype=torch.bool).index_fill(0, gone, False)

    def places(self, outputs: int) -> Tensor:
        """To which channel each of the ``outputs`` of one of its makers belongs, ``[outputs]``."""
        return (
            torch.arange(self.channels)
            .repeat_interleave(outputs // self.parts // self.channels)
            .repeat(self.parts)
        )
