"""Compensated rounding against rounding to nearest, a reference in double precision, and its own laws."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import sample
from torch import Tensor

from optimizer.compression.calibration.moments import Moments, as_rows, damped, quadratic
from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.prune.pruned import Pruned
from optimizer.compression.quantize import compensated, ranges, targets
from optimizer.compression.quantize.columns import BLOCK, Coupling, Grid, lower_factor, round_in_turn
from optimizer.compression.quantize.compensated import (
    descend,
    feedback,
    feedback_on_masks,
    quantize,
    scale_factors,
)
from optimizer.compression.quantize.grid import GROUP, Codes, code_range
from optimizer.compression.quantize.nearest import round_to_nearest
from optimizer.compression.quantize.ranges import absmax
from optimizer.compression.quantize.targets import target_of
from optimizer.recipe import GRANULARITIES, RANGES, QuantizeSpec

SHAPES = [((6, 70), 1), ((8, 5, 3, 3), 1), ((6, 1, 3, 3), 6), ((6, 4, 2, 2), 3), ((1, 7), 1), ((4, 1), 1)]
"""Of a weight, and how many groups its layer has."""
CASES = [
    (
        shape,
        QuantizeSpec(
            "compensated", weight_bits=bits, granularity=granularity, symmetric=symmetric, range=range_
        ),
    )
    for shape, bits, granularity, symmetric, range_ in sample(
        SHAPES, (2, 3, 8), GRANULARITIES, (True, False), ("absmax", "mse")
    )
]
PLAIN = QuantizeSpec("compensated", weight_bits=3, symmetric=False, range="mse")


def covariance(groups: int, columns: int, seed: int, rank: int | None = None) -> Tensor:
    """Of inputs that depend on each other; singular where ``rank`` is below ``columns``."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(groups, columns, rank or 3 * columns, generator=generator)
    mixed = mixed + 2 * torch.randn(groups, 1, mixed.shape[2], generator=generator)
    return mixed @ mixed.mT / mixed.shape[2]


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def statistics_of(matrix: Tensor, biased: bool = True, mean: Tensor | None = None) -> Statistics:
    moments = Moments(matrix, torch.zeros(matrix.shape[:2]) if mean is None else mean, 0.0)
    return Statistics({"a": moments}, {}, frozenset({"a"} if biased else ()))


def whole(weight: Tensor) -> Pruned:
    return Pruned(weight, torch.ones(weight.shape, dtype=torch.bool))


def codes_of(
    weight: Tensor, matrix: Tensor, spec: QuantizeSpec = PLAIN, pruned: Pruned | None = None
) -> Codes:
    return quantize(weight, pruned or whole(weight), spec, "a", statistics_of(matrix)).codes


def cost(values: Tensor, weight: Tensor, matrix: Tensor) -> float:
    """What the outputs differ by once each row has its best scale: quantizing raises scales on purpose."""
    groups = len(matrix)
    matrix = damped(matrix).double()
    rows, dense = as_rows(values, groups).double(), as_rows(weight, groups).double()
    common = ((rows @ matrix) * dense).sum(2)
    return float((quadratic(dense, matrix) - common**2 / quadratic(rows, matrix).clamp(min=1e-30)).sum())


def plain_grid(weight: Tensor, levels: int = 7, step: float = 0.4) -> Grid:
    """For ``[G, d, R]``: a step a row, as many codes on either side of zero."""
    steps = step * (1 + torch.arange(weight.shape[2]) / 10).expand(len(weight), 1, -1)
    ends = torch.full_like(steps, levels // 2)
    return Grid(steps, -ends, ends)


@pytest.mark.parametrize(("groups", "rows"), [(1, 1), (1, 5), (6, 4)])
def test_a_single_column_is_rounded_to_nearest(groups: int, rows: int) -> None:
    weight = drawn((groups, 1, rows), groups)
    grid = plain_grid(weight)
    assert torch.equal(feedback(weight, Coupling(covariance(groups, 1, 0)), grid), grid.nearest(weight))


@pytest.mark.parametrize("seed", range(5))
def test_columns_that_have_nothing_in_common_are_rounded_to_nearest(seed: int) -> None:
    weight = drawn((2, 9, 4), seed)
    matrix = torch.diag_embed(0.1 + drawn((2, 9), seed + 1).abs())
    grid = plain_grid(weight)
    coupling = Coupling(matrix)
    assert torch.equal(feedback(weight, coupling, grid), grid.nearest(weight))
    codes = grid.nearest(weight) + 1
    slopes = matrix @ (codes * grid.step - weight)
    assert torch.equal(descend(codes, slopes, coupling, grid), grid.nearest(weight))
    almost = Coupling(matrix + 1e-12)  # the same by the way that feeds errors back
    assert torch.equal(feedback(weight, almost, grid), grid.nearest(weight))


@pytest.mark.slow
@given(
    st.integers(0, 1000),
    st.sampled_from((1, 3)),
    st.sampled_from((1, 2, BLOCK, BLOCK + 1, 2 * BLOCK + 3)),
    st.integers(1, 4),
    st.booleans(),
)
def test_columns_rounded_in_turn_are_those_of_a_plain_loop(
    seed: int, groups: int, columns: int, rows: int, each: bool
) -> None:
    """Of numbers that float32 adds and multiplies exactly, in any order; with steps and limits of each row,
    or of ``each`` column too, as groups and masks have them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (groups, columns, rows)
    those = shape if each else (groups, 1, rows)
    targets, start = (torch.randint(-99, 99, shape, generator=generator) / 16 for _ in range(2))
    shares = torch.randint(-2, 3, (groups, columns, columns), generator=generator) / 4
    steps = 2.0 ** torch.randint(-2, 1, those, generator=generator)
    ends = torch.randint(0, 5, those, generator=generator).float()
    grid = Grid(steps, -ends, ends)
    found = round_in_turn(targets, start, shares, grid)
    aims, begun, share = (part.double().numpy() for part in (targets, start, shares))
    step, end = (part.expand(shape).double().numpy() for part in (steps, ends))
    errors, codes = np.zeros(shape), np.zeros(shape)
    for j in range(columns):
        fed = (share[:, j, :j, None] * errors[:, :j]).sum(1)
        codes[:, j] = np.clip(np.rint((aims[:, j] + fed) / step[:, j]), -end[:, j], end[:, j])
        errors[:, j] = begun[:, j] - codes[:, j] * step[:, j]
    np.testing.assert_array_equal(found.numpy(), codes)


def by_inverse(weight: Tensor, matrix: Tensor, grid: Grid) -> Tensor:
    """GPTQ as it was published: columns are rounded and taken out of the inverse. ``[d, R]``, double."""
    weight, inverse = weight.double().clone(), torch.linalg.inv(matrix.double())
    codes = torch.zeros_like(weight)
    for j in range(len(weight)):
        codes[j] = (weight[j] / grid.step[0, 0]).round().clamp(grid.first[0, 0], grid.last[0, 0])
        error = (weight[j] - codes[j] * grid.step[0, 0]) / inverse[j, j]
        weight[j:] -= inverse[j:, j, None] * error
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


@pytest.mark.parametrize("columns", [5, BLOCK, 2 * BLOCK + 3])
def test_feedback_is_gptq(columns: int) -> None:
    weight, matrix = drawn((1, columns, 6)), damped(covariance(1, columns, 1))
    grid = plain_grid(weight)
    found, expected = feedback(weight, Coupling(matrix), grid)[0], by_inverse(weight[0], matrix[0], grid)
    assert (found != expected).float().mean() < 0.005  # in float32 a tie may fall to the other side


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 40), st.sampled_from((1, 3)))
def test_descending_never_costs_a_row_anything(seed: int, columns: int, groups: int) -> None:
    weight, matrix = drawn((groups, columns, 4), seed), damped(covariance(groups, columns, seed))
    grid = plain_grid(weight)
    before = feedback(weight, Coupling(matrix), grid)
    after = descend(before, matrix @ (before * grid.step - weight), Coupling(matrix), grid)
    costs = [quadratic((codes * grid.step - weight).mT, matrix) for codes in (before, after)]
    assert (costs[1] <= costs[0] * (1 + 1e-4) + 1e-6).all()
    assert ((after >= grid.first) & (after <= grid.last)).all()


def test_descending_crosses_blocks_as_it_would_without() -> None:
    columns = BLOCK + 5
    weight, matrix = drawn((1, columns, 3)), damped(covariance(1, columns, 1))
    grid = plain_grid(weight)
    codes = grid.nearest(weight)
    found = descend(codes, matrix @ (codes * grid.step - weight), Coupling(matrix), grid)
    for j in range(columns):
        slope = (matrix[:, j : j + 1].double() @ (codes * grid.step - weight).double())[:, 0]
        best = codes[:, j] - slope / matrix[0, j, j] / grid.step[:, 0]
        codes[:, j] = best.round().clamp(grid.first[:, 0], grid.last[:, 0]).float()
    assert (found != codes).float().mean() < 0.01


@settings(max_examples=20)
@given(st.integers(0, 300), st.sampled_from((2, 3, 4)), st.booleans())
def test_the_outputs_never_differ_by_more_than_with_rounding_to_nearest(
    seed: int, bits: int, symmetric: bool
) -> None:
    weight, matrix = drawn((12, 20), seed), covariance(1, 20, seed)
    spec = QuantizeSpec("compensated", weight_bits=bits, symmetric=symmetric, range="mse")
    plain = round_to_nearest(weight, spec).values
    assert cost(codes_of(weight, matrix, spec).values, weight, matrix) <= cost(plain, weight, matrix) * 1.02


def test_the_outputs_differ_by_much_less_where_inputs_depend_on_each_other() -> None:
    weight, matrix = drawn((64, 8, 3, 3)), covariance(1, 72, 1)
    plain = round_to_nearest(weight, PLAIN).values
    assert cost(codes_of(weight, matrix).values, weight, matrix) < 0.4 * cost(plain, weight, matrix)


@pytest.mark.parametrize(("layer", "spec"), CASES, ids=str)
def test_codes_are_on_the_grid_and_zeros_of_the_mask_stay(
    layer: tuple[tuple[int, ...], int], spec: QuantizeSpec
) -> None:
    shape, groups = layer
    weight = drawn(shape)
    columns = weight[0].numel()
    mask = drawn(shape, 1) > -0.5
    mask[0] = False
    pruned = Pruned(weight * mask, mask)
    before = weight.clone()
    codes = codes_of(weight, covariance(groups, columns, 2), spec, pruned)
    first, last = code_range(spec)
    assert torch.equal(weight, before)
    assert codes.centred.shape == weight.shape
    assert codes.centred.dtype == codes.zero_point.dtype == torch.int16
    assert codes.scale.dtype == torch.float32
    assert ((codes.stored >= first) & (codes.stored <= last)).all()
    assert not codes.values[~mask].any()
    assert (codes.scale > 0).all()
    assert codes.scale.isfinite().all()
    plain = round_to_nearest(weight, spec)
    assert codes.scale.shape == plain.scale.shape == codes.zero_point.shape


@pytest.mark.parametrize("granularity", ["channel", "group"])
def test_groups_of_a_convolution_are_layers_of_their_own(granularity: str) -> None:
    weight, matrix = drawn((6, 4, 5, 5)), covariance(3, 100, 1)
    spec = QuantizeSpec("compensated", weight_bits=3, granularity=granularity, symmetric=False, range="mse")
    together = codes_of(weight, matrix, spec).values
    for group in range(3):
        part = slice(2 * group, 2 * group + 2)
        alone = codes_of(weight[part], matrix[group : group + 1], spec).values
        torch.testing.assert_close(together[part], alone, rtol=1e-4, atol=1e-5)


def test_a_scale_for_a_group_of_inputs_costs_less_than_one_for_all() -> None:
    """Inputs of different size, and so weights; the last group is smaller."""
    columns = 3 * GROUP + 10
    weight = drawn((16, columns)) * torch.logspace(-1.5, 0, columns)
    matrix = covariance(1, columns, 1) / torch.outer(*[torch.logspace(-1.5, 0, columns)] * 2)
    costs = {}
    for granularity in ("channel", "group"):
        spec = QuantizeSpec(
            "compensated", weight_bits=3, granularity=granularity, symmetric=False, range="mse"
        )
        costs[granularity] = cost(codes_of(weight, matrix, spec).values, weight, matrix)
    assert costs["group"] < 0.5 * costs["channel"]


def test_pruned_rows_are_rounded_as_if_their_other_columns_were_not_there() -> None:
    weight, matrix = drawn((2, 8, 3)), damped(covariance(2, 8, 1))
    mask = drawn((2, 8, 3), 5) > -0.3
    grid = plain_grid(weight)
    found = feedback_on_masks(
        weight * mask, mask, Coupling(matrix), Grid(grid.step, grid.first * mask, grid.last * mask)
    )
    for group, row in product(range(2), range(3)):
        kept = mask[group, :, row]
        own = matrix[group][kept][:, kept][None]
        alone = Grid(
            *(part[group : group + 1, :, row : row + 1] for part in (grid.step, grid.first, grid.last))
        )
        expected = feedback(weight[group, kept, row][None, :, None], Coupling(own), alone)
        assert torch.equal(found[group, kept, row], expected[0, :, 0])
        assert not found[group, ~kept, row].any()


def row_costs(weight: Tensor, matrix: Tensor, spec: QuantizeSpec) -> Tensor:
    """Of each row at its best scale, double."""
    values, wanted = (part.flatten(1) for part in (codes_of(weight, matrix, spec).values, weight))
    each = matrix.repeat_interleave(len(weight) // len(matrix), 0)
    return torch.tensor(
        [
            cost(one[None], other[None], own[None])
            for one, other, own in zip(values, wanted, each, strict=True)
        ]
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("shape", "groups"), [((40, 1, 3, 3), 40), ((24, 3, 3, 3), 1), ((8, 4, 2, 2), 4)])
def test_each_short_row_gets_the_best_of_the_grids_that_are_tried(
    shape: tuple[int, ...], groups: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, matrix = drawn(shape), covariance(groups, math.prod(shape[1:]), 1)
    spec = QuantizeSpec("compensated", weight_bits=3, symmetric=symmetric, range="mse")
    best = row_costs(weight, matrix, spec)
    monkeypatch.setattr(compensated, "SEARCHED_COLUMNS", 0)
    alone = row_costs(weight, matrix, spec)
    assert (best <= alone * (1 + 1e-3) + 1e-6).all()
    assert best.sum() < 0.95 * alone.sum()
    shares = compensated.SEARCHED_SHARES
    ends = torch.stack(absmax(weight.flatten(1)[:, None], spec))
    for low, high in zip(shares, shares, strict=True) if symmetric else product(shares, shares):
        one = ends * torch.tensor((low, high)).reshape(2, 1, 1)
        monkeypatch.setitem(ranges.RANGES, "mse", lambda *_, one=one: (one[0], one[1]))
        assert (best <= row_costs(weight, matrix, spec) * (1 + 1e-3) + 1e-6).all()


@pytest.mark.slow
def test_rows_of_a_depthwise_convolution_cost_hardly_more_than_by_brute_force() -> None:
    """Against all codes of three columns on steps of every size."""
    weight, matrix = drawn((12, 1, 1, 3)), covariance(12, 3, 2)
    spec = QuantizeSpec("compensated", weight_bits=2, symmetric=False, range="mse")
    found = row_costs(weight, matrix, spec)
    codes = torch.tensor(list(product(range(-3, 4), repeat=3)), dtype=torch.float32)
    codes = codes[(codes.amax(1).clamp(min=0) - codes.amin(1).clamp(max=0)) <= 3]  # zero is on every grid
    least = torch.tensor(
        [
            min(cost(one[None], row.reshape(1, 3), own[None]) for one in codes)
            for row, own in zip(weight, matrix, strict=True)
        ]
    )
    assert (found >= least * (1 - 1e-4) - 1e-6).all()
    assert found.sum() < 1.5 * least.sum()


@pytest.mark.parametrize("exact", [0, 2**20])
def test_a_pruned_weight_is_rounded_towards_the_original(exact: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compensated, "EXACT_ELEMENTS", exact)
    weight, matrix = drawn((32, 40)), covariance(1, 40, 1)
    mask = drawn((32, 40), 3).abs() > 0.4
    pruned = Pruned(weight * mask, mask)
    plain = round_to_nearest(pruned.weight, PLAIN).values
    found = codes_of(weight, matrix, PLAIN, pruned).values
    assert cost(found, weight, matrix) < 0.5 * cost(plain, weight, matrix)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [spec for _, spec in CASES], ids=str)
def test_singular_statistics_dead_inputs_and_layers_of_zeros(spec: QuantizeSpec) -> None:
    weight = drawn((5, 12))
    dead = covariance(1, 12, 1)
    dead[:, :4], dead[:, :, :4] = 0, 0
    matrices = (torch.zeros(1, 12, 12), covariance(1, 12, 1, rank=2), dead, 1e-20 * dead, 1e12 * dead)
    for matrix, values in product(matrices, (weight, 1e-12 * weight, 1e6 * weight, weight[:1])):
        rounded = codes_of(values, matrix, spec).values
        assert rounded.isfinite().all()
        assert rounded.any()
    assert not codes_of(torch.zeros(5, 12), dead, spec).values.any()
    weight[1] = 0
    assert not codes_of(weight, dead, spec).values[1].any()


def test_eight_bits_are_as_good_as_none() -> None:
    weight, matrix = drawn((16, 30)), covariance(1, 30, 1)
    for symmetric in (True, False):
        spec = QuantizeSpec("compensated", weight_bits=8, symmetric=symmetric, range="mse")
        values = codes_of(weight, matrix, spec).values
        torch.testing.assert_close(values, weight, rtol=0, atol=0.03)
        assert cost(values, weight, matrix) < 1e-4 * quadratic(weight[None], matrix).sum()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_rounded_rows_pass_on_all_of_the_dense_output(
    granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compensated, "UNBIASED", 1.0)
    weight, matrix = drawn((16, 1, 70)), covariance(1, 70, 1)
    spec = QuantizeSpec("compensated", weight_bits=3, granularity=granularity, symmetric=False, range="mse")
    values = codes_of(weight, matrix, spec).values.flatten(1)
    products = weight.flatten(1) @ damped(matrix)[0]
    passed, full = ((products * rows).sum(1) for rows in (values, weight.flatten(1)))
    if granularity == "tensor":
        passed, full = passed.sum(), full.sum()
    torch.testing.assert_close(passed, full, rtol=1e-3, atol=0)


def test_scale_factors_of_rows_without_a_signal_are_1() -> None:
    dense = torch.stack([torch.ones(4), torch.ones(4), torch.zeros(4)], 1)[None]
    values = torch.stack([torch.zeros(4), -torch.ones(4), torch.ones(4)], 1)[None]
    matrix = torch.eye(4)[None] + 0.1
    fitted, gain = scale_factors(values, matrix @ values, dense, matrix @ dense, together=False)
    assert fitted.flatten().tolist() == gain.flatten().tolist() == [1, 1, 1]


def test_the_bias_takes_up_what_rounding_does_to_the_mean() -> None:
    weight, matrix = drawn((6, 2, 3, 3)), covariance(3, 18, 1)
    mean = drawn((3, 18), 4)
    rounded = quantize(weight, whole(weight), PLAIN, "a", statistics_of(matrix, mean=mean))
    assert rounded.bias_change is not None
    before, after = (
        torch.stack([row.flatten() @ mean[channel // 2] for channel, row in enumerate(values)])
        for values in (weight, rounded.codes.values)
    )
    torch.testing.assert_close(after + rounded.bias_change, before, rtol=1e-4, atol=1e-4)


def test_without_a_bias_the_mean_counts_as_a_change_of_the_outputs() -> None:
    weight, matrix = drawn((8, 30)), covariance(1, 30, 1)
    mean = 3 + drawn((1, 30), 4)
    shifts = []
    for biased in (True, False):
        rounded = quantize(weight, whole(weight), PLAIN, "a", statistics_of(matrix, biased, mean))
        assert (rounded.bias_change is None) != biased
        shifts.append(float(((rounded.codes.values - weight) @ mean[0]).square().sum()))
    assert shifts[1] < 0.2 * shifts[0]


def test_a_layer_that_the_statistics_lack_is_rounded_to_nearest() -> None:
    weight = drawn((4, 9))
    pruned = Pruned(weight * 0.5, torch.ones(4, 9, dtype=torch.bool), torch.ones(4))
    rounded = quantize(weight, pruned, PLAIN, "b", statistics_of(covariance(1, 9, 1)))
    assert torch.equal(rounded.codes.values, round_to_nearest(pruned.weight, PLAIN).values)
    assert rounded.bias_change is pruned.bias_change


@pytest.mark.slow
@pytest.mark.parametrize("kept_bytes", [0, 2**20])
@pytest.mark.parametrize(("shape", "groups"), [((8, 70), 1), ((8, 1, 3, 3), 8)])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_recipes_share_is_worked_out_once_for_a_weight(
    shape: tuple[int, ...],
    groups: int,
    granularity: str,
    kept_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(targets, "MAX_KEPT_BYTES", kept_bytes)
    weight, other = drawn(shape), drawn(shape, 1)
    matrix = covariance(groups, weight[0].numel(), 1)
    shared = statistics_of(matrix)
    for one in (weight, weight, other, weight):
        mask = drawn(shape, 2) > -0.5
        for pruned in (whole(one), Pruned(one * mask, mask)):
            for bits in (3, 4):
                spec = QuantizeSpec("compensated", weight_bits=bits, range="mse", granularity=granularity)
                found, expected = (
                    quantize(one, pruned, spec, "a", known).codes for known in (shared, statistics_of(matrix))
                )
                assert torch.equal(found.values, expected.values)
    assert (target_of(weight, "a", shared) is target_of(weight, "a", shared)) == bool(kept_bytes)


def test_what_is_kept_of_layers_is_bounded_and_of_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, matrix = drawn((8, 30)), covariance(1, 30, 1)
    moments = Moments(matrix, torch.zeros(1, 30), 0.0)
    model, another = (Statistics({name: moments for name in "ab"}, {}, frozenset("ab")) for _ in range(2))
    monkeypatch.setattr(targets, "MAX_KEPT_BYTES", 1.5 * target_of(weight, "a", model).nbytes)

    def is_kept(name: str, statistics: Statistics) -> bool:
        return target_of(weight, name, statistics) is target_of(weight, name, statistics)

    assert is_kept("a", model)
    assert not is_kept("b", model)
    first = target_of(weight, "a", model)
    assert is_kept("b", another)
    assert target_of(weight, "a", model) is not first


def test_a_matrix_that_rounding_left_not_quite_positive_is_damped() -> None:
    matrix = torch.eye(6)[None].clone()
    matrix[0, 0, 1] = matrix[0, 1, 0] = 1.00001
    assert lower_factor(matrix).isfinite().all()


@pytest.mark.parametrize("range_", RANGES)
def test_every_range_is_a_starting_point(range_: str) -> None:
    weight, matrix = drawn((16, 40)), covariance(1, 40, 1)
    spec = QuantizeSpec("compensated", weight_bits=4, range=range_)
    plain = round_to_nearest(weight, spec).values
    assert cost(codes_of(weight, matrix, spec).values, weight, matrix) < 0.6 * cost(plain, weight, matrix)
