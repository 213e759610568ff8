"""What rounding a layer aims at, which all recipes of a model share: worked out once, and kept for the next
recipe."""

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.quantize.columns import Coupling, by_column

MAX_KEPT_BYTES = 160 * 2**20
"""Of one model at a time."""


@dataclass(frozen=True, eq=False)
class RoundingTarget:
    """Of a layer: the ``diagonal`` ``[G, d]`` of ``M``; the ``order`` ``[G, d]``, by descending diagonal, in
    which its columns are rounded; how they are coupled; and in that order the ``dense`` rows and what is
    ``wanted`` of them, ``M w``, both ``[G, d, R]``."""

    diagonal: Tensor
    order: Tensor
    coupling: Coupling
    dense: Tensor
    wanted: Tensor

    @property
    def nbytes(self) -> int:
        """With the factor, which is worked out later."""
        return 2 * self.coupling.matrix.nbytes + self.dense.nbytes + self.wanted.nbytes

    def repeated(self, times: int) -> "RoundingTarget":
        """Each row so many times."""
        if times == 1:
            return self
        dense, wanted = (part.repeat_interleave(times, 2) for part in (self.dense, self.wanted))
        return replace(self, dense=dense, wanted=wanted)


_KEPT: WeakKeyDictionary[Statistics, dict[str, RoundingTarget]] = WeakKeyDictionary()


def target_of(original: Tensor, name: str, statistics: Statistics) -> RoundingTarget:
    """Of a layer and its ``original`` weight ``[out, ...]``.

    As many layers of the model that is rounded are kept as MAX_KEPT_BYTES hold; the first ones stay, since a
    recipe goes through all of them in turn: what was used last is needed last.
    """
    if statistics not in _KEPT:
        _KEPT.clear()  # of another model
    kept = _KEPT.setdefault(statistics, {})
    known = kept.get(name)
    if known is not None:
        dense = by_column(original, known.order)
        if torch.equal(known.dense, dense):
            return known
        return replace(known, dense=dense, wanted=known.coupling.product(dense))
    matrix = statistics.matrix(name)
    order, coupling = Coupling.ordered(matrix)
    dense = by_column(original, order).clone()
    diagonal = matrix.diagonal(dim1=1, dim2=2).clone()
    made = RoundingTarget(diagonal, order, coupling, dense, coupling.product(dense))
    if made.nbytes + sum(one.nbytes for one in list(kept.values())) <= MAX_KEPT_BYTES:
        kept[name] = made
    return made
