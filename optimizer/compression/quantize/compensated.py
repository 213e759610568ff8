"""Rounding in which the weights that are yet to be rounded make up for those that were.

A layer's rows are rounded so that the change ``w - q`` of each costs little at the layer's output, ``(w - q)
M (w - q)``, not so that each weight is near. Columns are rounded one after the other, each with the error so
far fed back (GPTQ, arXiv 2210.17323, in the form of Babai's nearest plane, arXiv 2507.18553: one Cholesky
factor of M, no inverse); then each code in turn moves to where the cost is least with all others as they are
(coordinate descent, as in QuantEase, arXiv 2309.01885). Zeros of the mask stay zero. At few bits, short
rows are rounded on several grids each, and the one that costs least is kept.

In the end scales are raised. The least-squares scale of a rounded row is one that shrinks: of the dense
output it passes on a share ``c < 1``, and the shares of all layers multiply until the logits fade. The scale
that passes on all of it is ``1 / c`` as large. On EfficientNet-Lite0 at 3 bits the divergence of the logits
falls from 0.54 to 0.32 nats by it.
"""

from dataclasses import replace

import torch
from torch import Tensor

from optimizer.compression.calibration.moments import as_rows
from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.prune.pruned import Pruned
from optimizer.compression.quantize import nearest
from optimizer.compression.quantize.columns import Coupling, Grid, by_column, by_row, round_in_turn
from optimizer.compression.quantize.grid import Rounded, code_range, grid_between, packed, spread, units
from optimizer.compression.quantize.ranges import RANGES, absmax
from optimizer.compression.quantize.targets import RoundingTarget, target_of
from optimizer.recipe import QuantizeSpec

EXACT_ELEMENTS = 2**20
"""Pruned rows each get a factor of their own where all of them together have at most so many elements."""
UNBIASED = 0.85
"""How far scales go from least squares (0) to passing on all of the dense output (1), as a power. All the way
is as good where rounding errors are small, and worse where they are not: at 3 bits of a symmetric grid."""
MAX_GAIN = 2.0
SEARCHED_COLUMNS = 64
SEARCHED_WEIGHTS = 2**19
"""Of layers with no more weights, rows of at most so many columns are rounded on several grids each: longer
ones make up for more of what a grid costs them, and take longer."""
SEARCHED_BITS = 3
"""And at so many bits or fewer: at 4 it wins hardly anything."""
SEARCHED_SHARES = (1.0, 0.85, 0.7, 0.55)
"""Of the range of a row's weights at either end, in all pairs: the grids that are tried. On the half of the
photographs that calibrated nothing, the divergence of EfficientNet-Lite0's logits at 3 bits falls from 0.374
to 0.326 nats by them."""


@torch.no_grad()
def quantize(
    original: Tensor, pruned: Pruned, spec: QuantizeSpec, name: str, statistics: Statistics | None
) -> Rounded:
    """Codes that keep the outputs of the ``original`` weight ``[out, ...]`` on the mask of ``pruned``.

    A layer that the statistics have no moments of is rounded to nearest. The bias takes up what is left of
    the mean.
    """
    assert statistics is not None
    if name not in statistics.moments:
        return nearest.quantize(original, pruned, spec, name)
    mean, target = statistics.moments[name].mean, target_of(original, name, statistics)
    scale, zero_point = starting_grid(pruned.weight, spec, target.diagonal)
    if scale.shape[1] == 1 and searches_grids(original, spec):  # not where inputs lie in several groups
        scale, zero_point = with_others(scale, zero_point, pruned.weight, spec)
    tried = max(1, len(scale) // len(original))
    target = target.repeated(tried)
    weights = [part.repeat_interleave(tried, 0) for part in (pruned.weight, pruned.mask)]
    start, mask, *grid = (
        by_column(part, target.order)
        for part in (*weights, *against(scale, zero_point, weights[0].shape, spec))
    )
    together = spec.granularity == "tensor"
    codes, factor = round_columns(target, start, mask, Grid(*grid), together)
    scale = scale * (factor if together else factor.flatten()[:, None])
    if tried > 1:
        best = cheapest(codes * grid[0], target, tried)
        codes = codes.mT[torch.arange(len(codes))[:, None], best].mT.contiguous()
        rows = (best + torch.arange(len(best))[:, None] * mask.shape[2]).flatten()
        scale, zero_point = scale[rows], zero_point[rows]
    result = packed(by_row(codes, target.order).reshape(original.shape), scale, zero_point)
    if name not in statistics.biased:
        return Rounded(result)
    change = as_rows(original - result.values, len(mean)) @ mean[..., None]
    return Rounded(result, change.flatten())


def searches_grids(weight: Tensor, spec: QuantizeSpec) -> bool:
    """Whether rows are rounded on several grids each: short ones have few columns to make up for an error
    with, and much depends on the grid."""
    fits = weight[0].numel() <= SEARCHED_COLUMNS and weight.numel() <= SEARCHED_WEIGHTS
    return fits and spec.bits <= SEARCHED_BITS and spec.granularity != "tensor" and spec.range == "mse"


def with_others(
    scale: Tensor, zero_point: Tensor, weight: Tensor, spec: QuantizeSpec
) -> tuple[Tensor, Tensor]:
    """The grid ``[out, 1]`` of each row, and then those of SEARCHED_SHARES: ``[out x tried, 1]``."""
    low, high = absmax(units(weight, spec.granularity), spec)
    shares = torch.tensor(SEARCHED_SHARES)
    pairs = torch.stack((shares, shares)) if spec.symmetric else torch.cartesian_prod(shares, shares).T
    others = grid_between(low * pairs[0], high * pairs[1], spec)
    scale, zero_point = (
        torch.cat(both, 1).reshape(-1, 1) for both in zip((scale, zero_point), others, strict=True)
    )
    return scale, zero_point


def cheapest(values: Tensor, target: RoundingTarget, tried: int) -> Tensor:
    """Which of each ``tried`` rows of ``[G, d, R]`` costs least once it has its best scale: their places
    ``[G, R / tried]``."""
    product = target.coupling.product(values)
    fitted, _ = scale_factors(values, product, target.dense, target.wanted, together=False)
    off = values * fitted - target.dense
    costs = ((product * fitted - target.wanted) * off).sum(1).unflatten(1, (-1, tried))
    places: Tensor = costs.argmin(2) + torch.arange(costs.shape[1]) * tried
    return places


def starting_grid(weight: Tensor, spec: QuantizeSpec, diagonal: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point ``[out or 1, n]`` by the range of ``spec``, errors weighted by the ``diagonal``
    ``[G, d]`` of ``M``."""
    costs = diagonal[:, None].expand(as_rows(weight, len(diagonal)).shape)
    weights = units(weight, spec.granularity)
    low, high = RANGES[spec.range](weights, spec, units(costs.reshape(weight.shape), spec.granularity))
    return grid_between(low, high, spec)


def against(
    scale: Tensor, zero_point: Tensor, shape: torch.Size, spec: QuantizeSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Step, first and last centred code ``[out, d or 1]`` of a weight of ``shape``."""
    first, last = code_range(spec)
    flat = torch.Size((shape[0], shape[1:].numel()))
    step, zero = (spread(grid, flat).expand(shape[0], -1) for grid in (scale, zero_point))
    return step, first - zero, last - zero


def round_columns(
    target: RoundingTarget, start: Tensor, mask: Tensor, grid: Grid, together: bool
) -> tuple[Tensor, Tensor]:
    """Centred codes ``[G, d, R]`` as floats, and by what factor their scales are to change.

    ``start`` is where rounding starts from: the pruned weights, ``[G, d, R]`` in the order in which they are
    rounded. The factor is ``[G, 1, R]``, or ``[1, 1, 1]`` where all rows have one scale ``together``.
    """
    coupling, dense, wanted = target.coupling, target.dense, target.wanted
    codes, grid = fed_back(start, mask, coupling, grid)
    values = codes * grid.step
    product = coupling.product(values)
    fitted, _ = scale_factors(values, product, dense, wanted, together)
    grid = replace(grid, step=grid.step * fitted)
    codes = descend(codes, product * fitted - wanted, coupling, grid)
    values = codes * grid.step
    refitted, gain = scale_factors(values, coupling.product(values), dense, wanted, together)
    return codes, fitted * refitted * gain**UNBIASED


def fed_back(start: Tensor, mask: Tensor, coupling: Coupling, grid: Grid) -> tuple[Tensor, Grid]:
    """Codes ``[G, d, R]`` by :func:`feedback`, zero where ``mask`` is, and the grid that has no others
    there."""
    if mask.all():
        return feedback(start, coupling, grid), grid
    grid = replace(grid, first=grid.first * mask, last=grid.last * mask)
    exact = mask.numel() * mask.shape[1] <= EXACT_ELEMENTS
    codes = feedback_on_masks(start, mask, coupling, grid) if exact else feedback(start, coupling, grid)
    return codes, grid


def feedback(weights: Tensor, coupling: Coupling, grid: Grid) -> Tensor:
    """Codes ``[G, d, R]``, column after column, those that are yet to come making up for the errors."""
    if coupling.independent:
        return grid.nearest(weights)
    return round_in_turn(weights, weights, coupling.feedback_shares, grid)


def feedback_on_masks(weights: Tensor, mask: Tensor, coupling: Coupling, grid: Grid) -> Tensor:
    """The same with errors fed back to what is left of each row alone: every row has a matrix of its own."""
    groups, count, rows = weights.shape

    def apart(part: Tensor) -> Tensor:
        return part.mT.reshape(groups * rows, -1, 1)

    keep = apart(mask).to(weights.dtype)
    own = coupling.matrix.repeat_interleave(rows, 0) * keep * keep.mT + torch.diag_embed(1 - keep[..., 0])
    grids = Grid(apart(grid.step), apart(grid.first), apart(grid.last))
    return feedback(apart(weights), Coupling(own), grids).reshape(groups, rows, count).mT.contiguous()


def descend(codes: Tensor, slopes: Tensor, coupling: Coupling, grid: Grid) -> Tensor:
    """One sweep of coordinate descent over ``codes``; ``slopes`` are ``M (v - w)`` of their values and the
    dense rows, all ``[G, d, R]``."""
    values = codes * grid.step
    targets = values - slopes / coupling.diagonal
    if coupling.independent:
        return grid.nearest(targets)
    return round_in_turn(targets, values, coupling.descent_shares, grid)


def scale_factors(
    values: Tensor, product: Tensor, dense: Tensor, wanted: Tensor, together: bool
) -> tuple[Tensor, Tensor]:
    """Of each row ``[G, 1, R]``: the factor of least squares, and by how much more all of the signal passes.

    With rounded ``v`` and dense ``w``, of which ``product`` and ``wanted`` are ``M v`` and ``M w``: ``v M w /
    v M v``, and then ``w M w / v M w`` of the fitted ``v``, at least 1. Rows that are zero, or that have
    nothing in common with the dense ones, get 1.
    """
    dims = (0, 1, 2) if together else (1,)
    own, common, full = (
        part.sum(dims, keepdim=True) for part in (product * values, values * wanted, dense * wanted)
    )
    sound = (own > 0) & (common > 0)
    fitted = torch.where(sound, common / own, 1.0)
    gain = torch.where(sound, full / (common * fitted), 1.0)
    return fitted, gain.clamp(1, MAX_GAIN)
