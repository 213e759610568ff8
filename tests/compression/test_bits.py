"""Mixed bits: the knapsack against enumeration, and what it is given against rounding for real."""

import time
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from optimizer.compression.calibration.moments import Moments, as_rows, quadratic
from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.prune.pruned import Pruned
from optimizer.compression.quantize.bits import (
    SAMPLED_ROWS,
    WIDTHS,
    Errors,
    allocate,
    errors,
    resolve,
    rounding_errors,
)
from optimizer.methods.quantizers import QUANTIZERS
from optimizer.recipe import GRANULARITIES, QuantizeSpec

costs = st.floats(0, 10) | st.sampled_from((0.0, 1.0, 2.0))
widths = st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=4, unique=True)
layers = st.lists(
    st.tuples(
        st.integers(1, 30), widths.flatmap(lambda some: st.fixed_dictionaries(dict.fromkeys(some, costs)))
    ),
    min_size=1,
    max_size=5,
)


def summed(found: dict[str, int], given_errors: Errors) -> float:
    return sum(given_errors[name][width] for name, width in found.items())


def bits_of(found: dict[str, int], sizes: dict[str, int]) -> int:
    return sum(width * sizes[name] for name, width in found.items())


@pytest.mark.slow
@given(layers, st.floats(0, 1))
def test_the_allocation_is_the_best_of_all(
    drawn: list[tuple[int, dict[int, float]]], generosity: float
) -> None:
    sizes = {f"layer {index}": size for index, (size, _) in enumerate(drawn)}
    given_errors = {f"layer {index}": by_width for index, (_, by_width) in enumerate(drawn)}
    fewest = sum(min(given_errors[name]) * size for name, size in sizes.items())
    most = sum(max(given_errors[name]) * size for name, size in sizes.items())
    budget = fewest + generosity * (most - fewest)
    found = allocate(given_errors, sizes, budget)
    assert bits_of(found, sizes) <= budget
    every = (dict(zip(sizes, choice, strict=True)) for choice in product(*given_errors.values()))
    least = min(summed(one, given_errors) for one in every if bits_of(one, sizes) <= budget)
    assert summed(found, given_errors) == pytest.approx(least, rel=1e-6, abs=1e-6)


def network(count: int, seed: int) -> tuple[dict[str, int], dict[str, dict[int, float]]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {f"layer {i}": int(torch.randint(1, 60, (), generator=generator)) for i in range(count)}
    scales = torch.randn(count, generator=generator).exp().tolist()
    noise = torch.rand(count, len(WIDTHS), generator=generator).tolist()
    given_errors = {
        name: {
            width: scale * 4.0**-width * (0.5 + share) for width, share in zip(WIDTHS, shares, strict=True)
        }
        for name, scale, shares in zip(sizes, scales, noise, strict=True)
    }
    return sizes, given_errors


@pytest.mark.slow
@pytest.mark.parametrize("average", [2.3, 3, 4.5, 7.9])
def test_forty_layers_against_a_table_of_every_sum(average: float) -> None:
    sizes, given_errors = network(40, 1)
    budget = average * sum(sizes.values())
    table = {0: 0.0}
    for name, size in sizes.items():
        after: dict[int, float] = {}
        for bits, error in table.items():
            for width, more in given_errors[name].items():
                total = bits + width * size
                if total <= budget and error + more < after.get(total, float("inf")):
                    after[total] = error + more
        table = after
    found = allocate(given_errors, sizes, budget)
    assert bits_of(found, sizes) <= budget
    assert summed(found, given_errors) == pytest.approx(min(table.values()), rel=1e-9)


def test_two_hundred_layers_of_real_sizes_take_no_time() -> None:
    sizes, given_errors = network(200, 2)
    sizes = {name: size * 40_009 + 7 for name, size in sizes.items()}
    started = time.process_time()
    found = allocate(given_errors, sizes, 4 * sum(sizes.values()))
    assert time.process_time() - started < 5
    assert 3.99 < bits_of(found, sizes) / sum(sizes.values()) <= 4


def test_the_ends_of_the_scale() -> None:
    sizes, given_errors = network(6, 3)
    total = sum(sizes.values())
    assert set(allocate(given_errors, sizes, 2 * total).values()) == {2}
    plenty = allocate({name: {w: 4.0**-w for w in WIDTHS} for name in sizes}, sizes, 8 * total)
    assert set(plenty.values()) == {8}
    assert allocate({}, {}, 0) == {}


def test_errors_that_are_no_numbers_do_no_harm() -> None:
    odd = {
        "a": {2: float("inf"), 4: 1.0},
        "b": {2: float("nan"), 4: -1.0},
        "c": {2: float("inf"), 4: float("inf")},
    }
    assert allocate(odd, {"a": 1, "b": 1, "c": 1}, 8)["a"] == 4


# What widths cost


def example(name: str = "plain") -> tuple[Tensor, Tensor]:
    """A weight and the covariance of its inputs."""
    generator = torch.Generator().manual_seed(len(name))
    shape, groups = {
        "plain": ((4 * SAMPLED_ROWS, 30), 1),
        "few rows": ((5, 6, 3, 3), 1),
        "depthwise": ((20, 1, 3, 3), 20),
        "grouped": ((12, 5, 3, 3), 3),
        "wide": ((40, 150), 1),
    }[name]
    weight = torch.randn(shape, generator=generator)
    weight = weight * torch.rand((shape[0], *[1] * (len(shape) - 1)), generator=generator).add(0.2)
    columns = weight[0].numel()
    mixed = torch.randn(groups, columns, 3 * columns, generator=generator)
    mixed = mixed + torch.randn(groups, 1, 3 * columns, generator=generator)
    return weight, mixed @ mixed.mT / (3 * columns)


def statistics_of(
    layers: dict[str, tuple[Tensor, Tensor]], effects: dict[str, float] | None = None
) -> Statistics:
    moments = {
        name: Moments(matrix, torch.zeros(matrix.shape[:2]), 0.0) for name, (_, matrix) in layers.items()
    }
    effects = effects or dict.fromkeys(layers, 1.0)
    by_row = {name: torch.full((len(weight),), effects[name]) for name, (weight, _) in layers.items()}
    return Statistics(moments, by_row, frozenset(layers))


EXAMPLES = ("plain", "few rows", "depthwise", "grouped", "wide")


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("method", QUANTIZERS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_predicted_costs_are_near_those_of_rounding_for_real(
    name: str, method: str, granularity: str
) -> None:
    weight, matrix = example(name)
    statistics = statistics_of({name: (weight, matrix)})
    spec = QuantizeSpec(method, average_bits=4, granularity=granularity, symmetric=False, range="mse")
    effects = torch.rand(len(weight), generator=torch.Generator().manual_seed(0))
    predicted = rounding_errors(weight, statistics.matrix(name), effects, spec)
    assert tuple(predicted) == WIDTHS
    for width in (3, 5, 8):
        pruned = Pruned(weight, torch.ones(weight.shape, dtype=torch.bool))
        one = QuantizeSpec(method, weight_bits=width, granularity=granularity, symmetric=False, range="mse")
        values = QUANTIZERS[method].load()(weight, pruned, one, name, statistics).codes.values
        change = as_rows(values - weight, len(matrix))
        real = float(quadratic(change, statistics.matrix(name)).flatten() @ effects)
        assert predicted[width] == pytest.approx(real, rel=0.5)


@pytest.mark.parametrize("name", EXAMPLES)
def test_more_bits_cost_less(name: str) -> None:
    weight, matrix = example(name)
    spec = QuantizeSpec("compensated", average_bits=4, range="mse")
    statistics = statistics_of({name: (weight, matrix)})
    found = rounding_errors(weight, statistics.matrix(name), statistics.effects[name], spec)
    values = [found[width] for width in WIDTHS]
    assert all(more > 2 * fewer for more, fewer in pairwise(values))


def test_errors_grow_with_the_measured_effects_of_each_layer_and_row() -> None:
    layers = {name: example(name) for name in ("plain", "few rows")}
    weights = {name: weight for name, (weight, _) in layers.items()}
    spec = QuantizeSpec("compensated", average_bits=4)
    once, more = (
        errors(weights, statistics_of(layers, {"plain": 1.0, "few rows": one}), spec) for one in (1.0, 3.0)
    )
    assert more["plain"] == once["plain"]
    assert more["few rows"] == pytest.approx({width: 3 * error for width, error in once["few rows"].items()})
    statistics = statistics_of(layers)
    rows = [torch.eye(5)[row] for row in range(5)]
    alone = [rounding_errors(weights["few rows"], statistics.matrix("few rows"), row, spec) for row in rows]
    for width in WIDTHS:
        assert sum(one[width] for one in alone) == pytest.approx(once["few rows"][width], rel=1e-4)


@pytest.mark.parametrize("method", QUANTIZERS)
def test_layers_that_matter_more_get_more_bits_within_the_average(method: str) -> None:
    layers = {name: example("plain") for name in ("vital", "idle", "normal")}
    statistics = statistics_of(layers, {"vital": 100.0, "idle": 0.0, "normal": 1.0})
    weights = {name: weight for name, (weight, _) in layers.items()}
    spec = QuantizeSpec(method, average_bits=4.5, symmetric=False, range="mse")
    found = resolve(weights, spec, statistics)
    bits = {name: one.weight_bits for name, one in found.items()}
    assert bits["vital"] > bits["normal"] > bits["idle"] == 2
    assert sum(bits.values()) <= 3 * 4.5
    for one in found.values():
        assert one.average_bits is None
        assert (one.method, one.symmetric, one.range) == (method, False, "mse")


def test_layers_that_the_statistics_lack_get_the_average_rounded_down() -> None:
    layers = {name: example(name) for name in ("plain", "few rows")}
    weights = {name: weight for name, (weight, _) in layers.items()} | {"unknown": torch.ones(50, 50)}
    spec = QuantizeSpec("compensated", average_bits=3.5)
    found = resolve(weights, spec, statistics_of(layers))
    assert found["unknown"].weight_bits == 3
    used = sum(found[name].weight_bits * weight.numel() for name, weight in weights.items())
    assert used <= 3.5 * sum(weight.numel() for weight in weights.values())
    assert set(resolve({"unknown": torch.ones(5, 5)}, spec, statistics_of(layers))) == {"unknown"}


def test_layers_of_zeros_take_the_fewest_bits() -> None:
    _, matrix = example("plain")
    layers = {"zeros": (torch.zeros(8, 30), matrix), "plain": example("plain")}
    weights = {name: weight for name, (weight, _) in layers.items()}
    found = resolve(weights, QuantizeSpec("compensated", average_bits=4), statistics_of(layers))
    assert found["zeros"].weight_bits == 2


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """``--json`` writes to standard output: solvers that speak there break it."""
    sizes, given_errors = network(20, 4)
    allocate(given_errors, sizes, 3.3 * sum(sizes.values()))
    assert capfd.readouterr() == ("", "")
