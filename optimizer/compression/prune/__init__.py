"""Pruning: which weights survive, and with what value. One file an algorithm, and an entry in
:mod:`optimizer.methods.pruners`.

A pruner takes weights by layer name, the same as they were published (before batch norm was folded), a spec,
and the statistics of the model where the spec needs one. One that shrinks makes a smaller network instead
(:mod:`optimizer.compression.prune.channels`).
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.prune.pruned import Pruned
from optimizer.recipe import PruneSpec

Pruner = Callable[
    [Mapping[str, Tensor], Mapping[str, Tensor], PruneSpec, Statistics | None], dict[str, Pruned]
]

__all__ = ["Pruned", "Pruner"]
