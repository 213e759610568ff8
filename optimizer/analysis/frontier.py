"""The Pareto frontier, over losses: lower is better in every column.

Ties stay on the frontier; a row with a missing value (NaN) is never on it.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from optimizer.errors import InputError


def pareto_mask(losses: ArrayLike) -> NDArray[np.bool_]:
    """Which rows of ``losses`` ``[N, D]`` no other row dominates, as a boolean ``[N]``.

    A row dominates another when it is nowhere larger and somewhere smaller. O(N log N) in two columns,
    O(N F) for a frontier of F rows in more. Raises InputError when ``losses`` is not two-dimensional.
    """
    rows = _as_rows(losses)
    known = ~np.isnan(rows).any(axis=1)
    # Equal rows share a fate. In lexicographic order only an earlier row can dominate a later one.
    points, of_row = np.unique(rows[known], axis=0, return_inverse=True)
    mask = np.zeros(len(rows), bool)
    mask[known] = _unique_mask(points)[of_row.reshape(-1)]
    return mask


def _as_rows(losses: ArrayLike) -> NDArray[np.float64]:
    rows = np.asarray(losses, float)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"losses of shape {list(rows.shape)}: give one row a result and one column a metric")
    return rows + 0.0  # -0.0 becomes 0.0, so that equal rows are equal bit by bit


def _unique_mask(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The frontier of distinct rows in lexicographic order."""
    mask = np.zeros(len(points), bool)
    if points.shape[1] == 2:
        lowest_before = np.minimum.accumulate(np.concatenate(([np.inf], points[:-1, 1])))
        mask[:] = points[:, 1] < lowest_before
        mask[:1] = True  # even at infinity nothing comes before the first
        return mask
    left = np.arange(len(points))
    while len(left):
        best = left[0]
        mask[best] = True
        left = left[(points[left] < points[best]).any(axis=1)]
    return mask
