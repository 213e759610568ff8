"""What is known of a model on some images before any recipe: what data-aware compression works from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optimizer.compression.calibration.moments import Moments, damped
from optimizer.recipe import PruneSpec

REFERENCE = PruneSpec("compensated", sparsity=0.6, allocation="measured")
"""The change whose effect is measured, one layer at a time."""
NEGLIGIBLE = 0.01
"""Layers that are expected to do less than this share of what all do are not measured: they are the early
ones, whose replays take longest."""
SHARES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
"""Of a layer's weights: what the loss of so many costs is looked at."""
HELD_OUT = 8
"""Every eighth calibration image is held out: layers are refitted to the inputs of the others."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of the layers' inputs, and what a change in each layer does to the outputs, by layer name.

    ``effects`` float32 ``[out]``: divergence of the outputs (KL, nats, mean over images) for each unit of
    ``change M change`` in each row. ``biased``: layers whose bias, theirs alone, takes up what a change does
    to the mean. ``growth``: how much more than the sum of their costs the weights between ``SHARES`` of a
    layer cost where all before them are gone too; see :func:`optimizer.compression.prune.compensated.growth`.
    ``logits``: layers whose outputs are a classifier's.
    Layers without moments (too wide, or never run) are in none of them.
    """

    moments: Mapping[str, Moments]
    effects: Mapping[str, Tensor]
    biased: frozenset[str]
    growth: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    logits: frozenset[str] = frozenset()

    def matrix(self, name: str) -> Tensor:
        """``M`` ``[G, d, d]``, damped: a change ``r`` of a row costs ``r M r`` at the layer's output."""
        moments = self.moments[name]
        return damped(moments.covariance if name in self.biased else moments.second)

    def divergence(self, name: str, costs: Tensor) -> float:
        """What the outputs diverge by (nats), predicted from ``r M r`` of each row ``[G, R]``."""
        return float((self.effects[name].reshape(costs.shape) * costs).sum())


def collapse_copies(images: Tensor) -> Tensor:
    """The images, or one where all are copies of it: copies tell no more."""
    return images[:1] if all(torch.equal(one, images[0]) for one in images) else images


def seen_and_held_out(images: Tensor) -> tuple[Tensor, Tensor]:
    """Those to read from, and every eighth, held out; a single image is both."""
    if len(images) < 2:
        return images, images
    if len(images) < HELD_OUT:
        return images[:-1], images[-1:]
    held_out = torch.arange(len(images)) % HELD_OUT == HELD_OUT - 1
    return images[~held_out], images[held_out]
