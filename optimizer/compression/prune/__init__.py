"""Pruning: which weights survive, and with what value. One file an algorithm, and the dict that names them.

A pruner takes weights by layer name, the same as they were published (before batch norm was folded), a spec,
and the study of the model where the spec needs one.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from optimizer.compression.calibration.statistics import Study
from optimizer.compression.prune import compensated, magnitude
from optimizer.compression.prune.pruned import Pruned
from optimizer.recipe import PruneSpec

Pruner = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], PruneSpec, Study | None], dict[str, Pruned]]

PRUNERS: dict[str, Pruner] = {
    "magnitude": magnitude.prune,  # the seed idea: a weight survives if ``|w| > threshold``
    "compensated": compensated.prune,  # the cheapest by second-order cost go, and the rest is refitted
}
"""Method ``channels`` is not among them: it makes a smaller network
(:mod:`optimizer.compression.prune.channels`)."""

__all__ = ["PRUNERS", "Pruned", "Pruner"]
