"""Columns of a layer's rows rounded one after the other, each to make up for the errors of those before it.

With codes of the columns before it fixed, the best value of a column is linear in their errors. Feeding back
(GPTQ) and coordinate descent differ only in the shares of the errors that a column takes, and in where it
would lie without any: :func:`round_in_turn` does both.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from optimizer.compression.calibration.moments import as_rows, damped

BLOCK = 128
"""Columns whose error is fed back one at a time; to those further on it is fed back by one product a
block."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Grids of ``R`` rows of ``d`` columns: step and centred codes ``first`` to ``last``, ``[G, d or 1,
    R]``."""

    step: Tensor
    first: Tensor
    last: Tensor

    def nearest(self, weights: Tensor) -> Tensor:
        """Codes ``[G, d, R]`` of weights ``[G, d, R]``."""
        return torch.round(weights / self.step).clamp(self.first, self.last)

    def columns(self, count: int) -> tuple[np.ndarray, ...]:
        """Step, first and last ``[d, G, R]`` of ``count`` columns."""
        return tuple(columns_first(part.expand(-1, count, -1)) for part in (self.step, self.first, self.last))


@dataclass(frozen=True, eq=False)
class Coupling:
    """How the columns of ``G`` groups make up for each other: ``matrix`` ``M`` ``[G, d, d]``, positive
    definite, in the order in which they are rounded."""

    matrix: Tensor

    @classmethod
    def ordered(cls, matrix: Tensor) -> tuple[Tensor, "Coupling"]:
        """The order ``[G, d]`` by descending diagonal of ``matrix`` ``[G, d, d]``, and the coupling in it."""
        order = matrix.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
        return order, cls(in_order(matrix, order))

    @property
    def diagonal(self) -> Tensor:
        """``[G, d, 1]``."""
        return self.matrix.diagonal(dim1=1, dim2=2)[:, :, None]

    @cached_property
    def independent(self) -> bool:
        """Whether no column's error can be made up for by another's: few samples can shrink a covariance that
        far."""
        if self.matrix[:, 0, 1:].any():  # as in nearly all: no need to look at the rest
            return False
        return bool(self.matrix.count_nonzero() == self.diagonal.count_nonzero())

    @cached_property
    def feedback_shares(self) -> Tensor:
        """What column ``j`` takes of the error of column ``i < j`` ``[G, j, i]``, where the columns after
        ``j`` will make up for what is left.

        With ``M = U U^T``, U upper triangular, a row's cost is the sum over columns of ``(U_jj r_j + sum over
        i < j of U_ij r_i)^2``: the best value of column ``j`` is where that is zero.
        """
        upper = lower_factor(self.matrix.flip(1, 2)).flip(1, 2)
        return (upper / upper.diagonal(dim1=1, dim2=2)[:, None]).mT.contiguous()

    @property
    def descent_shares(self) -> Tensor:
        """The same where the columns after ``j`` stay as they are."""
        return self.matrix / self.diagonal

    def product(self, weights: Tensor) -> Tensor:
        """``M w`` ``[G, d, R]``."""
        return self.diagonal * weights if self.independent else self.matrix @ weights


def round_in_turn(targets: Tensor, start: Tensor, shares: Tensor, grid: Grid) -> Tensor:
    """Codes ``[G, d, R]``: of each column the nearest to its target and its shares of the errors so far.

    ``targets`` and ``start`` are ``[G, d, R]``; the error of a column is what its rounded value lacks of
    ``start``. ``shares`` ``[G, d, d]`` are looked at below the diagonal alone.
    """
    count = start.shape[1]
    errors, codes = torch.zeros_like(start), torch.empty_like(start)
    grids = grid.columns(count)
    for first in range(0, count, BLOCK):
        block = slice(first, min(first + BLOCK, count))
        aims = torch.baddbmm(targets[:, block], shares[:, block, :first], errors[:, :first])
        _round_block(
            columns_first(aims),
            columns_first(start[:, block]),
            columns_first(shares[:, block, None, block]),
            tuple(part[block] for part in grids),
            columns_first(errors[:, block]),
            columns_first(codes[:, block]),
        )
    return codes


def _round_block(
    aims: np.ndarray,
    start: np.ndarray,
    shares: np.ndarray,
    grids: tuple[np.ndarray, ...],
    errors: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Fill in errors and codes of some columns ``[b, G, R]``; ``shares`` are ``[b, G, 1, b]``. (Columns are
    short: here a call counts. One of numpy takes a third of one of torch, and ``dot`` a fifth of ``matmul``,
    where there is one group.)"""
    so_far = errors.swapaxes(0, 1)
    alone = len(so_far) == 1
    columns = zip(aims, start, shares, *grids, errors, codes, strict=True)
    for before, (aim, value, share, step, first, last, error, code) in enumerate(columns):
        if before and alone:
            aim[0] += share[0, 0, :before].dot(so_far[0, :before])
        elif before:
            aim += np.matmul(share[:, :, :before], so_far[:, :before])[:, 0]
        np.divide(aim, step, out=code)
        np.rint(code, out=code)
        np.maximum(code, first, out=code)
        np.minimum(code, last, out=code)
        np.multiply(code, step, out=error)
        np.subtract(value, error, out=error)


def columns_first(columns: Tensor) -> np.ndarray:
    """``[G, d, ...]`` as ``[d, G, ...]``, in the same memory."""
    turned: np.ndarray = columns.transpose(0, 1).numpy()
    return turned


def lower_factor(matrix: Tensor) -> Tensor:
    """Cholesky factor ``[G, d, d]``; damped once more where float32 left a wide matrix not quite positive."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.linalg.cholesky(damped(matrix, 0.1)) if failed.any() else factor


def in_order(matrix: Tensor, order: Tensor) -> Tensor:
    """Rows and columns of ``[G, d, d]`` in the order ``[G, d]``. (One gather: twice as fast as two.)"""
    count = matrix.shape[1]
    places = order[:, :, None] * count + order[:, None]
    return matrix.flatten(1).gather(1, places.flatten(1)).reshape(matrix.shape)


def by_column(weight: Tensor, order: Tensor) -> Tensor:
    """A weight ``[out, ...]`` as ``[G, d, R]`` in order, so that a column is contiguous; ``[G, 1, R]`` if
    ``d`` is 1."""
    columns = as_rows(weight, len(order)).mT
    return columns if columns.shape[1] == 1 else reordered(columns.contiguous(), order)


def by_row(columns: Tensor, order: Tensor) -> Tensor:
    """``[G, d, R]`` in order as rows ``[G, R, d]`` as they were."""
    return reordered(columns, order.argsort(1)).mT


def reordered(columns: Tensor, order: Tensor) -> Tensor:
    """Columns ``[G, d, R]``, contiguous, in the order ``[G, d]``. (Of one group several times as fast.)"""
    if len(order) == 1:
        return columns.index_select(1, order[0])
    return columns.take_along_dim(order[:, :, None], 1)
