"""Pruning: which weights survive, and with what value. One file an algorithm, and an entry in
:mod:`optimizer.methods.pruners`.

A pruner takes weights by layer name, the same as they were published (before batch norm was folded), a spec,
and the statistics of the model where the spec needs one.

One that shrinks takes the uncompressed model (batch norm folded), the spec, a function that gives the
model's channel plan in one of :data:`optimizer.compression.prune.plan.ORDERS` (worked out once and kept), and
where to report. It gives a smaller network, whose layers keep their names, and leaves the model as it was.
"""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.prune.plan import ChannelPlan
from optimizer.compression.prune.pruned import Pruned
from optimizer.progress import Report
from optimizer.recipe import PruneSpec

Pruner = Callable[
    [Mapping[str, Tensor], Mapping[str, Tensor], PruneSpec, Statistics | None], dict[str, Pruned]
]
Shrinker = Callable[[nn.Module, PruneSpec, Callable[[str], ChannelPlan], Report], nn.Module]

__all__ = ["Pruned", "Pruner", "Shrinker"]
