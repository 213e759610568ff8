"""Which part of the weights a grid covers. Weights come as ``[out, n, width]``."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from optimizer.compression.quantize.grid import GROUP, code_range, grid_between, units
from optimizer.compression.quantize.ranges import PERCENTILE, RANGES, SHRINK_FACTORS, WEIGHTED_FACTORS
from optimizer.recipe import RANGES as NAMES
from optimizer.recipe import QuantizeSpec

GRIDS = [
    QuantizeSpec(weight_bits=bits, symmetric=symmetric)
    for bits, symmetric in product((2, 4, 8), (True, False))
]


def weights(seed: int = 0) -> Tensor:
    drawn = torch.randn(5, 3, 40, generator=torch.Generator().manual_seed(seed))
    drawn[1, 2] = drawn[1, 2].abs()  # of one sign
    drawn[3, 0] = 0
    return drawn


def error(values: Tensor, low: Tensor, high: Tensor, spec: QuantizeSpec, costs: Tensor | float) -> Tensor:
    """Summed cost of rounding to nearest, ``[out, n]``, in double precision."""
    first, last = code_range(spec)
    scale, zero = (part[..., None].double() for part in grid_between(low, high, spec))
    codes = torch.round(values.double() / scale + zero).clamp(first, last)
    return (((codes - zero) * scale - values) ** 2 * costs).sum(2)


def test_the_names_are_those_of_a_recipe() -> None:
    assert tuple(RANGES) == NAMES


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("spec", GRIDS, ids=str)
def test_every_range_covers_zero_and_nothing_that_is_not_there(name: str, spec: QuantizeSpec) -> None:
    values = weights()
    low, high = RANGES[name](values, spec, None)
    assert low.shape == high.shape == (5, 3)
    assert (low <= 0).all()
    assert (high >= 0).all()
    most = values.abs().amax(2)
    assert (high <= most).all()
    assert (-low <= most).all()
    if spec.symmetric:
        assert torch.equal(low, -high)
    else:
        assert low[1, 2] == 0


@pytest.mark.parametrize("spec", GRIDS, ids=str)
def test_the_least_squares_range_is_the_best_of_all_that_are_tried(spec: QuantizeSpec) -> None:
    values = weights()
    costs = torch.rand(5, 3, 40, generator=torch.Generator().manual_seed(1))
    widest = RANGES["absmax"](values, spec, None)
    for given, factors in ((None, SHRINK_FACTORS), (costs, WEIGHTED_FACTORS)):
        counted = 1.0 if given is None else given
        found = error(values, *RANGES["mse"](values, spec, given), spec, counted)
        every = [error(values, *(end * factor for end in widest), spec, counted) for factor in factors]
        assert (found <= torch.stack(every).amin(0) * (1 + 1e-4) + 1e-12).all()


def test_costs_may_be_one_for_each_input() -> None:
    spec = QuantizeSpec(weight_bits=3)
    costs = torch.rand(40, generator=torch.Generator().manual_seed(1))
    low, _ = RANGES["mse"](weights(), spec, costs)
    expected, _ = RANGES["mse"](weights(), spec, costs.expand(5, 3, 40))
    assert torch.equal(low, expected)


def test_what_costs_nothing_is_not_covered() -> None:
    """One weight sticks out, and its input never varies."""
    values = torch.linspace(-1, 1, 40).reshape(1, 1, 40).clone()
    values[..., -1] = 4
    costs = torch.ones(40)
    spec = QuantizeSpec(weight_bits=4)
    costs[-1] = 1e-9
    assert RANGES["mse"](values, spec, costs)[1].item() == 1.0
    costs[-1] = 1e9
    assert RANGES["mse"](values, spec, costs)[1].item() == 4.0


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_percentile_is_that_of_the_magnitudes(symmetric: bool) -> None:
    values = torch.randn(2, 1, 5000, generator=torch.Generator().manual_seed(0))
    values[0] = values[0].abs()
    low, high = RANGES["percentile"](values, QuantizeSpec(weight_bits=4, symmetric=symmetric), None)
    limit = np.quantile(values.abs().numpy(), PERCENTILE, axis=2)
    np.testing.assert_allclose(high.numpy(), limit, rtol=1e-6)
    np.testing.assert_allclose(low.numpy(), -limit * [[symmetric], [1]], rtol=1e-6)
    assert ((values.abs() > high[..., None]).sum(2) == 5).all()


def test_units_are_what_has_a_scale_of_its_own() -> None:
    weight = torch.arange(3 * 2 * 3 * 15.0).reshape(3, 2, 3, 15)
    assert units(weight, "tensor").shape == (1, 1, 270)
    assert units(weight, "channel").shape == (3, 1, 90)
    grouped = units(weight, "group")
    assert grouped.shape == (3, 2, GROUP)
    assert torch.equal(grouped.flatten(1)[:, :90], weight.flatten(1))
    assert not grouped.flatten(1)[:, 90:].any()
    assert units(weight[:, :1], "group").shape == (3, 1, 45)
