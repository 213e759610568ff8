"""Pruning: which weights survive. One file an algorithm, and the dict that names them.

A pruner takes the weights of a model by name and a spec, and returns a mask for each: True survives.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from optimizer.prune import magnitude
from optimizer.recipe import PruneSpec

Pruner = Callable[[Mapping[str, Tensor], PruneSpec], dict[str, Tensor]]

PRUNERS: dict[str, Pruner] = {"magnitude": magnitude.masks}
