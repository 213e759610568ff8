"""Pruning that works from what the layers see: the cheapest weights go, the rest makes up for them.

Layer by layer it keeps ``r M r`` small, ``r`` the change of a row and ``M`` the second moments of its input
(:mod:`optimizer.compression.calibration.moments`). Which weights stay follows from second-order costs, their
values from least squares. Nothing is trained.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from optimizer.compression.calibration.moments import as_rows, quadratic
from optimizer.compression.calibration.statistics import SHARES, Statistics
from optimizer.compression.prune.allocation import (
    costs_by,
    counts_of,
    live_inputs,
    row_effects,
    shares_of,
    single_costs,
)
from optimizer.compression.prune.patterns import PATTERNS, Pattern, keep_mask
from optimizer.compression.prune.pruned import Pruned
from optimizer.progress import stop_if_cancelled
from optimizer.recipe import PruneSpec

STEPS = 6
"""Conjugate gradient steps: by 6 the outputs agree with the uncompressed model's as well as by 25."""
SOLVED_COLUMNS = 32
"""Narrower rows are solved exactly, each by a system of its own."""
MAX_ROWS = 128
"""Of each group, that tell how costs grow; by all of them it is the same within a few percent."""
MAX_SCALE = 2.0
"""A row that lost nearly all of its variance would only have its noise blown up by more."""


@torch.no_grad()
def prune(
    weights: Mapping[str, Tensor],
    published: Mapping[str, Tensor],
    spec: PruneSpec,
    statistics: Statistics | None,
) -> dict[str, Pruned]:
    """Each layer pruned as ``spec`` says and refitted; ``weights`` are those that run, batch norm folded.

    ``published`` are those before it was folded: thresholds and the allocations by magnitude look at them.
    Each row's outputs keep their variance, those of logits their slope; see :func:`match_variance` and
    :func:`match_slope`. Layers that the statistics lack lose their smallest published weights and keep the
    others as they are. Raises InputError for a sparsity that can't be met.
    """
    assert statistics is not None
    pattern = PATTERNS[spec.pattern]
    counts = counts_of(spec, published, weights, statistics)
    pruned = {}
    for name, weight in weights.items():
        stop_if_cancelled()
        if name not in statistics.moments:
            mask = _magnitude_mask(published[name], spec, pattern, counts[name])
            pruned[name] = Pruned(weight * mask, mask)
        else:
            pruned[name] = _prune_layer(
                name, weight, published[name], spec, pattern, counts[name], statistics
            )
    return pruned


def _magnitude_mask(published: Tensor, spec: PruneSpec, pattern: Pattern, count: int) -> Tensor:
    if spec.threshold is not None:
        return published.abs() > spec.threshold
    return keep_mask(published.square(), pattern, count)


def _prune_layer(
    name: str,
    weight: Tensor,
    published: Tensor,
    spec: PruneSpec,
    pattern: Pattern,
    count: int,
    statistics: Statistics,
) -> Pruned:
    matrix = statistics.matrix(name)
    rows = as_rows(weight, len(matrix))
    if spec.threshold is not None:
        mask = published.abs() > spec.threshold
    else:
        mask = keep_mask(costs_by(choice_costs, name, weight, statistics), pattern, count)
    kept = as_rows(mask, len(matrix))
    match = match_slope if name in statistics.logits else match_variance
    values = match(rows, refit(rows, kept, matrix), matrix)
    biased = name in statistics.biased
    change = bias_change(rows, values, statistics.moments[name].mean) if biased else None
    return Pruned(values.reshape(weight.shape), mask, change)


@torch.no_grad()
def growth(name: str, weight: Tensor, statistics: Statistics) -> tuple[float, ...]:
    """What the loss of the weights between ``SHARES`` of a layer costs after that of those before, refitted
    each time, relative to the sum of what the loss of each alone costs. It never falls."""
    stop_if_cancelled()
    matrix = statistics.matrix(name)
    groups, order = len(matrix), costs_by(choice_costs, name, weight, statistics)
    singles = single_costs(name, weight, statistics)
    step = -(-len(weight) // (groups * MAX_ROWS))
    effects = row_effects(name, statistics)[:, ::step, 0]
    rows = as_rows(weight, groups)[:, ::step] * live_inputs(name, statistics)
    places, seen = (as_rows(one, groups)[:, ::step].flatten() for one in (shares_of(singles), singles))
    sums = torch.zeros(len(SHARES) + 1).index_add_(0, places, seen)
    totals = [0.0]
    for share in SHARES:
        kept = keep_mask(
            order, PATTERNS["unstructured"], min(round(share * order.numel()), order.numel() - 1)
        )
        values = refit(rows, as_rows(kept, groups)[:, ::step], matrix)
        totals.append(float((quadratic(rows - values, matrix) * effects).sum()))
    totals.append(float((quadratic(rows, matrix) * effects).sum()))
    factors = [0.0]
    for (before, after), alone in zip(pairwise(totals), sums.tolist(), strict=True):
        factors.append(max(factors[-1], (after - before) / alone if alone > 0 else 0.0))
    return tuple(factors[1:])


def choice_costs(rows: Tensor, inverse: Tensor) -> Tensor:
    """``w^2 / sqrt([M^-1]_jj)``: the geometric mean of second-order cost and square. By it weights go.

    Rows ``[G, R, d]``, the inverse's diagonals ``[G, d]``. By the second-order cost alone, masks count on the
    compensation that each single removal would get: errors then grow faster over the depth of a network.
    """
    return rows.square() * inverse.rsqrt().unsqueeze(1)


def refit(rows: Tensor, kept: Tensor, matrix: Tensor, steps: int = STEPS) -> Tensor:
    """The ``v``, zero where not ``kept``, with least ``(v - w) M (v - w)`` for each row ``w``.

    Rows and ``kept`` ``[G, R, d]``, matrix ``[G, d, d]`` positive definite. Rows of at most
    ``SOLVED_COLUMNS`` are exact; others take ``steps`` of conjugate gradients, preconditioned by the
    diagonal, all rows at once.
    """
    mask = kept.to(rows.dtype)
    if rows.shape[2] <= SOLVED_COLUMNS:
        return _solve(rows, mask, matrix)
    diagonal = matrix.diagonal(dim1=1, dim2=2).unsqueeze(1)
    tiny = torch.finfo(rows.dtype).tiny
    values = rows * mask
    residual = ((rows - values) @ matrix) * mask
    direction = residual / diagonal
    size = (residual * direction).sum(2, keepdim=True)
    for _ in range(steps):
        image = (direction @ matrix) * mask
        length = size / (direction * image).sum(2, keepdim=True).clamp(min=tiny)
        values = values + length * direction
        residual = residual - length * image
        scaled = residual / diagonal
        before, size = size, (residual * scaled).sum(2, keepdim=True)
        direction = scaled + size / before.clamp(min=tiny) * direction
    return values


def _solve(rows: Tensor, mask: Tensor, matrix: Tensor) -> Tensor:
    """Each row's own system: ``M`` among the kept columns, the identity elsewhere."""
    systems = matrix.unsqueeze(1) * mask.unsqueeze(3) * mask.unsqueeze(2) + torch.diag_embed(1 - mask)
    solved: Tensor = torch.linalg.solve(systems, ((rows @ matrix) * mask).unsqueeze(3))
    return solved.squeeze(3) * mask


def match_variance(rows: Tensor, refitted: Tensor, matrix: Tensor, now: Tensor | None = None) -> Tensor:
    """``refitted``, each row scaled, up to ``MAX_SCALE``, so that ``v M v`` is the ``w M w`` that it had, or
    ``v N v`` with ``now`` the matrix of the inputs that it has by now.

    Least squares makes outputs shrink, layer upon layer, until the logits of a deep network hardly differ.
    All ``[G, R, d]``, matrices ``[G, d, d]``. It helped a convolutional network at every sparsity, and hurt a
    vision transformer at a high one: the divergence on images that were not calibrated on tells.
    """
    before, after = quadratic(rows, matrix), quadratic(refitted, matrix if now is None else now)
    scale = (before / after.clamp(min=torch.finfo(after.dtype).tiny)).sqrt().clamp(max=MAX_SCALE)
    return refitted * scale.unsqueeze(2)


def match_slope(rows: Tensor, refitted: Tensor, matrix: Tensor) -> Tensor:
    """``refitted`` ``[G, R, d]``, each row scaled, up to the square of ``MAX_SCALE``, so that its outputs
    rise by 1 where those of ``rows`` do: ``v M w`` is ``w M w``.

    Of logits the few that are large decide, and these keep their size by that: with variance kept, those of
    EfficientNet-Lite0's classifier without five in six of its weights diverge by 0.165 nats, by this 0.10.
    """
    before = quadratic(rows, matrix)
    together = ((rows @ matrix) * refitted).sum(2)
    scale = before / together.clamp(min=torch.finfo(together.dtype).tiny)
    return refitted * scale.clamp(max=MAX_SCALE**2).unsqueeze(2)


def bias_change(rows: Tensor, refitted: Tensor, mean: Tensor) -> Tensor:
    """What the bias takes up so that the outputs keep their mean, ``[G * R]``.

    Rows ``[G, R, d]``, mean ``[G, d]``.
    """
    return ((rows - refitted) * mean.unsqueeze(1)).sum(2).flatten()
