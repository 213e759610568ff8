"""The Pareto frontier and its hypervolume, over losses: lower is better in every column.

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


def hypervolume(losses: ArrayLike, reference: ArrayLike) -> float:
    """Volume that the rows of ``losses`` ``[N, D]`` dominate below ``reference`` ``[D]``, exactly.

    Rows that are not below the reference in every column add nothing. A sweep in two columns; in more,
    slices along the last column (HSO: While et al., "A faster algorithm for calculating hypervolume",
    2006), so meant for the few columns a chart has. Raises InputError on shapes that don't
    match and on a reference that is not finite.
    """
    rows = _as_rows(losses)
    corner = np.asarray(reference, float)
    if corner.shape != rows.shape[1:] or not np.isfinite(corner).all():
        raise InputError(
            f"reference {reference!r} does not fit losses of shape {list(rows.shape)}: "
            "give one finite number a column"
        )
    return _volume(rows[(rows < corner).all(axis=1)], corner)


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


def _volume(points: NDArray[np.float64], corner: NDArray[np.float64]) -> float:
    if not len(points):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - points.min())
    points = np.unique(points[pareto_mask(points)], axis=0)
    if len(corner) == 2:
        widths = np.diff(points[:, 0], append=corner[0])
        return float(widths @ (corner[1] - points[:, 1]))
    points = points[np.argsort(points[:, -1])]
    depths = np.diff(points[:, -1], append=corner[-1])
    slices = (_volume(points[: i + 1, :-1], corner[:-1]) for i in range(len(points)))
    return float(sum(depth * area for depth, area in zip(depths, slices, strict=True) if depth > 0))
