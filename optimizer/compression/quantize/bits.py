"""Mixed bits: how many each layer gets, so that the outputs change least with so many bits a weight on
average.

What a width does to a layer is predicted, not measured: the cost of rounding it, times the divergence of the
outputs that a unit of cost was measured to make. Sharing the bits out is then a multiple-choice knapsack.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optimizer.compression.calibration.moments import as_rows, quadratic
from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.quantize.columns import Coupling, Grid, by_column
from optimizer.compression.quantize.compensated import against, feedback, scale_factors, starting_grid
from optimizer.compression.quantize.nearest import round_to_nearest
from optimizer.recipe import QuantizeSpec

WIDTHS = (2, 3, 4, 5, 6, 7, 8)
SAMPLED_ROWS = 16
"""Outputs of a layer that are rounded to each width to predict what all of them will cost."""
MAX_ERROR = 1e30
"""Nats; more, or an infinity, is as bad."""

Errors = Mapping[str, Mapping[int, float]]
Costs = Callable[[Tensor, Tensor, list[QuantizeSpec]], list[Tensor]]
"""What rounding the rows of a weight ``[out, ...]`` costs ``[out]`` with each spec, given the second moments
of its input."""


def resolve(
    weights: Mapping[str, Tensor], spec: QuantizeSpec, statistics: Statistics
) -> dict[str, QuantizeSpec]:
    """The spec of each layer, ``spec.average_bits`` shared out among ``weights`` ``[out, ...]`` by name.

    Layers without statistics get the average, rounded down.
    """
    average = spec.average_bits
    assert average is not None
    sizes = {name: weight.numel() for name, weight in weights.items()}
    fixed = {name: math.floor(average) for name in weights if name not in statistics.effects}
    budget = average * sum(sizes.values()) - sum(width * sizes[name] for name, width in fixed.items())
    known = {name: weight for name, weight in weights.items() if name not in fixed}
    widths = fixed | allocate(errors(known, statistics, spec), sizes, budget)
    return {name: replace(spec, weight_bits=widths[name], average_bits=None) for name in weights}


@torch.no_grad()
def errors(
    weights: Mapping[str, Tensor], statistics: Statistics, spec: QuantizeSpec
) -> dict[str, dict[int, float]]:
    """Predicted divergence of the outputs (nats), for each layer and each of ``WIDTHS``, rounded alone."""
    return {
        name: rounding_errors(weight, statistics.matrix(name), statistics.effects[name], spec)
        for name, weight in weights.items()
    }


def rounding_errors(weight: Tensor, matrix: Tensor, effects: Tensor, spec: QuantizeSpec) -> dict[int, float]:
    """``r M r`` times ``effects`` ``[out]``, summed over the rows of ``weight`` ``[out, ...]``, by width.

    Measured on ``SAMPLED_ROWS`` rows (all, where channels share a range or have inputs of their own) that are
    rounded to every width at once; the others cost the same relative to the square of their extent.
    """
    rows = len(weight)
    sampled = torch.arange(rows)
    if len(matrix) == 1 and rows > SAMPLED_ROWS and spec.granularity != "tensor":
        sampled = torch.linspace(0, rows - 1, SAMPLED_ROWS).long()
    specs = [replace(spec, weight_bits=width, average_bits=None) for width in WIDTHS]
    predict: Costs = spec.quantizer.load_costs()
    costs = predict(weight[sampled], matrix, specs)
    extents = weight.flatten(1).abs().amax(1).square() * effects
    seen = float(extents[sampled].sum())
    share = float(extents.sum()) / seen if seen > 0 else 1.0
    return {width: share * float(cost @ effects[sampled]) for width, cost in zip(WIDTHS, costs, strict=True)}


def nearest_costs(weight: Tensor, matrix: Tensor, specs: list[QuantizeSpec]) -> list[Tensor]:
    """``r M r`` ``[out]`` of the rows of a weight ``[out, ...]``, rounded to nearest by each of ``specs``."""
    changes = (as_rows(round_to_nearest(weight, spec).values - weight, len(matrix)) for spec in specs)
    return [quadratic(change, matrix).flatten() for change in changes]


def compensated_costs(weight: Tensor, matrix: Tensor, specs: list[QuantizeSpec]) -> list[Tensor]:
    """The same with errors fed back: copies of the weight are rounded side by side, as so many more rows."""
    order, coupling = Coupling.ordered(matrix)
    dense = by_column(weight, order)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    grids = [against(*starting_grid(weight, spec, diagonal), weight.shape, spec) for spec in specs]
    parts = ([by_column(part, order) for part in grid] for grid in grids)
    grid = Grid(*(torch.cat(part, 2) for part in zip(*parts, strict=True)))
    copies = dense.repeat(1, 1, len(specs))
    values = feedback(copies, coupling, grid) * grid.step
    wanted = coupling.product(dense).repeat(1, 1, len(specs))
    fitted, _ = scale_factors(values, coupling.product(values), copies, wanted, together=False)
    changes = values * fitted - copies  # small: the difference of two products would lose its digits
    costs = (coupling.product(changes) * changes).sum(1)
    return [part.flatten() for part in costs.chunk(len(specs), 1)]


def allocate(errors: Errors, sizes: Mapping[str, int], budget_bits: float) -> dict[str, int]:
    """Widths of the least summed error among those whose bits, times ``sizes``, stay within the budget.

    Exact: layer by layer all sums of bits are kept but those that another beats in both bits and error, and
    those that can't end better than a solution that is known already. What is still to come costs at least
    what it does when bits are not rationed but have a price (a Lagrange multiplier).
    """
    if not errors:
        return {}
    options = {
        name: (
            np.array([width * sizes[name] for width in by_width], np.float64),
            np.array([min(max(0.0, error), MAX_ERROR) for error in by_width.values()]),
        )
        for name, by_width in errors.items()
    }
    price, known = _price(list(options.values()), budget_bits)
    rest = np.cumsum([(error + price * bits).min() for bits, error in reversed(options.values())])[::-1]
    states = _States(np.zeros(1), np.zeros(1))
    steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for (bits, error), after in zip(options.values(), (*rest[1:], 0.0), strict=True):
        bound = known - after + 1e-9 * (1 + known)  # and what rounding may do: it may be met exactly
        states, chosen = _extended(states, bits, error, price, budget_bits, bound)
        steps.append(chosen)
    at = int(states.error.argmin())
    widths = {}
    for (name, by_width), (before, choice) in zip(
        reversed(list(errors.items())), reversed(steps), strict=True
    ):
        widths[name] = list(by_width)[choice[at]]
        at = before[at]
    return widths


@dataclass(frozen=True, slots=True)
class _States:
    """Sums of bits, rising, and of error, falling, over the layers so far."""

    bits: npt.NDArray[np.float64]
    error: npt.NDArray[np.float64]


def _extended(
    states: _States,
    bits: npt.NDArray[np.float64],
    error: npt.NDArray[np.float64],
    price: float,
    budget_bits: float,
    bound: float,
) -> tuple[_States, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """States with one more layer; and for each from which state, by which option. See :func:`allocate`.

    ``bound`` is for the error at the price of the bits, less those of the budget.
    """
    sums = (states.bits[:, None] + bits).ravel()
    totals = (states.error[:, None] + error).ravel()
    kept = np.flatnonzero((sums <= budget_bits) & (totals + price * (sums - budget_bits) <= bound))
    kept = kept[np.lexsort((totals[kept], sums[kept]))]
    lowest = np.minimum.accumulate(totals[kept])
    kept = kept[np.concatenate([[True], totals[kept][1:] < lowest[:-1]])]
    before, choice = np.divmod(kept, len(bits))
    return _States(sums[kept], totals[kept]), (before, choice)


def _price(
    options: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]], budget_bits: float
) -> tuple[float, float]:
    """The price of a bit at which layers that each buy what is best for them just keep to the budget.

    By bisection; and the error that they end with, which is no less than the least.
    """

    def bought(price: float) -> tuple[float, float]:
        best = [int((error + price * bits).argmin()) for bits, error in options]
        sums = [(bits[at], error[at]) for (bits, error), at in zip(options, best, strict=True)]
        return sum(bits for bits, _ in sums), sum(error for _, error in sums)

    low, high = 0.0, 1e-12
    while bought(high)[0] > budget_bits:
        low, high = high, high * 8
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if bought(middle)[0] <= budget_bits else (middle, high)
    return high, bought(high)[1]
