"""How many weights each layer loses for a sparsity of the whole model.

Every weight gets a cost that is comparable over the layers; the cheapest go, wherever they are. Costs don't
depend on the sparsity, so those of one model serve every position of a slider, and the choices are nested.
"""

from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from optimizer.compression.calibration.moments import as_rows, quadratic
from optimizer.compression.calibration.statistics import SHARES, Statistics
from optimizer.compression.prune.patterns import PATTERNS, Pattern, block_costs, cheapest, nearest_count
from optimizer.errors import InputError
from optimizer.recipe import PruneSpec


def weight_costs(
    published: Mapping[str, Tensor],
    allocation: str,
    weights: Mapping[str, Tensor] | None = None,
    statistics: Statistics | None = None,
) -> dict[str, Tensor]:
    """What the loss of each weight costs, by layer and in its shape, at least 0.

    ``global`` (and ``uniform``, for the order within a layer) take the squares of the ``published`` weights,
    those before batch norm was folded; ``normalised`` relative to the layer's mean square. ``measured`` is
    the divergence of the model's outputs (nats) that comes from the second-order cost of ``weights``, those
    that run; see :func:`removal_costs`. Layers that the statistics lack get squares there, scaled so that
    their mean is the median of the other layers' means.
    """
    squares = {name: weight.square() for name, weight in published.items()}
    if allocation == "normalised":
        return {name: _normalised(square) for name, square in squares.items()}
    if allocation != "measured":
        return squares
    assert statistics is not None
    assert weights is not None
    known = {
        name: _costs_of(name, weight, statistics)
        for name, weight in weights.items()
        if name in statistics.moments
    }
    typical = torch.tensor([cost.mean() for cost in known.values()] or [1.0]).median()
    return {name: known[name] if name in known else _normalised(squares[name]) * typical for name in weights}


_COSTS: WeakKeyDictionary[Statistics, dict[str, tuple[Tensor, Tensor]]] = WeakKeyDictionary()
"""By layer a copy of its weight and :func:`removal_costs`, twice the memory of the weights, as long as the
statistics are kept."""


def _costs_of(name: str, weight: Tensor, statistics: Statistics) -> Tensor:
    known = _COSTS.setdefault(statistics, {})
    if name not in known or not torch.equal(known[name][0], weight):
        known[name] = weight.clone(), removal_costs(name, weight, statistics)
    return known[name][1]


def counts_of(
    spec: PruneSpec,
    published: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    statistics: Statistics | None,
) -> dict[str, int]:
    """Weights that each layer loses; 0 where that follows from a threshold or from the pattern."""
    pattern = PATTERNS[spec.pattern]
    if spec.threshold is not None or pattern.kept is not None:
        return dict.fromkeys(weights, 0)
    costs = weight_costs(published, spec.allocation, weights, statistics)
    return removed_counts(costs, spec.share, pattern, uniform=spec.allocation == "uniform")


def removed_counts(
    costs: Mapping[str, Tensor], sparsity: float, pattern: Pattern, uniform: bool = False
) -> dict[str, int]:
    """Weights that each layer loses, ``round(sparsity * all)`` in total: the cheapest over the whole model.

    With ``uniform`` it is the same share of each layer, and only their sizes count. Each layer keeps its
    dearest weight or block at least. The total is exact where weights go alone, and within a block where they
    go in blocks. Raises InputError for a sparsity that can't be met.
    """
    if uniform:
        return {name: min(round(sparsity * one.numel()), one.numel() - 1) for name, one in costs.items()}
    total = sum(one.numel() for one in costs.values())
    wanted = round(sparsity * total)
    blocks = {name: block_costs(one, pattern) for name, one in costs.items()}
    means = torch.cat([_without_dearest(one) for one, _ in blocks.values()])
    sizes = torch.cat([size.flatten() for _, size in blocks.values()])
    alone = pattern.outputs * pattern.inputs == 1
    allowed = means.numel() - len(costs) if alone else int(sizes[means.isfinite()].sum())
    if not 0 <= wanted <= allowed:
        raise InputError(
            f"sparsity {sparsity:g} can't be met: {wanted:,} of {total:,} weights would go, and {allowed:,} "
            f"can, since each of the {len(costs)} layers keeps a weight or a block: give at most "
            f"{int(1e4 * allowed / total) / 1e4:g}"
        )
    goes = cheapest(means, wanted if alone else nearest_count(means, sizes, wanted))
    layers = [one.numel() for one, _ in blocks.values()]
    parts = zip(costs, goes.split(layers), sizes.split(layers), strict=True)
    return {name: int(size[gone].sum(dtype=torch.float64)) for name, gone, size in parts}


def removal_costs(name: str, weight: Tensor, statistics: Statistics) -> Tensor:
    """Divergence of the outputs (nats) from the loss of each weight on top of the cheaper ones of its layer,
    the rest of its row making up for them, in the weight's shape.

    :func:`single_costs` times the growth of its share, where the statistics know it: where inputs are
    correlated, a weight can be made up for while those like it are there, and hardly once they are gone.
    """
    costs = single_costs(name, weight, statistics)
    if name not in statistics.growth:
        return costs
    return costs * torch.tensor(statistics.growth[name])[shares_of(costs)]


def single_costs(name: str, weight: Tensor, statistics: Statistics) -> Tensor:
    """Divergence of the outputs (nats) from the loss of each weight alone, the rest of its row making up for
    it.

    ``effect * w^2 / [M^-1]_jj`` (Optimal Brain Surgeon, Hassibi and Stork 1993), in the weight's shape.
    """
    return costs_by(obs_costs, name, weight, statistics)


def costs_by(
    costs: Callable[[Tensor, Tensor], Tensor], name: str, weight: Tensor, statistics: Statistics
) -> Tensor:
    """Costs as :func:`obs_costs` has them, times the effect of each row, in the weight's shape."""
    rows = as_rows(weight, len(statistics.moments[name].mean))
    found = costs(rows, inverse_of(name, statistics)) * row_effects(name, statistics)
    return (found * live_inputs(name, statistics)).reshape(weight.shape)


def shares_of(costs: Tensor) -> Tensor:
    """Between which of ``SHARES`` each weight goes, where the cheapest go first: 0 to ``len(SHARES)``."""
    places = [min(round(share * costs.numel()), costs.numel() - 1) for share in SHARES]
    limits = np.partition(costs.numpy(), places, axis=None)[places]
    return torch.bucketize(costs.contiguous(), torch.from_numpy(limits), right=True)


def obs_costs(rows: Tensor, inverse: Tensor) -> Tensor:
    """``w^2 / [M^-1]_jj``: the least that ``r M r`` can be with weight ``j`` gone and the others free.

    Rows ``[G, R, d]``, the inverse's diagonals ``[G, d]``, out ``[G, R, d]``.
    """
    return rows.square() / inverse.unsqueeze(1)


_INVERSES: WeakKeyDictionary[Statistics, dict[str, Tensor]] = WeakKeyDictionary()
"""Every position of a slider asks for them again, and they are a third of its work."""


def inverse_of(name: str, statistics: Statistics) -> Tensor:
    """Diagonals ``[G, d]`` of the inverses of a layer's matrix; worked out once for the same statistics."""
    known = _INVERSES.setdefault(statistics, {})
    if name not in known:
        known[name] = inverse_diagonal(statistics.matrix(name))
    return known[name]


def inverse_diagonal(matrix: Tensor) -> Tensor:
    """Diagonals ``[G, d]`` of the inverses of ``matrix`` ``[G, d, d]``, positive definite."""
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix)).diagonal(dim1=1, dim2=2).clone()


def row_effects(name: str, statistics: Statistics) -> Tensor:
    """Effects of a layer's rows ``[G, R, 1]``."""
    return statistics.effects[name].reshape(len(statistics.moments[name].mean), -1, 1)


def live_inputs(name: str, statistics: Statistics) -> Tensor:
    """0 for inputs ``[G, 1, d]`` that never change (without a bias: are never but 0), else 1.

    Their weights cost nothing, and the damped matrix does not tell.
    """
    moments = statistics.moments[name]
    size = moments.covariance.diagonal(dim1=1, dim2=2)
    if name not in statistics.biased:
        size = size + moments.mean.square()
    return (size > 0).float().unsqueeze(1)


def change_costs(name: str, change: Tensor, statistics: Statistics) -> Tensor:
    """``r M r`` of each row ``[G, R]`` of a ``change`` of a layer's weight, at its outputs."""
    rows = as_rows(change, len(statistics.moments[name].mean)) * live_inputs(name, statistics)
    return quadratic(rows, statistics.matrix(name))


def _normalised(squares: Tensor) -> Tensor:
    mean = squares.mean()
    return squares / mean if mean > 0 else squares


def _without_dearest(means: Tensor) -> Tensor:
    """Flat costs in which the dearest can't go."""
    flat = means.flatten().clone()
    flat[flat.argmax()] = torch.inf
    return flat
