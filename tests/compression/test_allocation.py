from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optimizer.compression.calibration.moments import Moments, damped
from optimizer.compression.calibration.statistics import SHARES, Statistics
from optimizer.compression.prune.allocation import (
    inverse_diagonal,
    inverse_of,
    obs_costs,
    removal_costs,
    removed_counts,
    weight_costs,
)
from optimizer.compression.prune.patterns import PATTERNS
from optimizer.errors import InputError

ALONE = PATTERNS["unstructured"]


def positive_definite(groups: int, columns: int, seed: int = 0) -> Tensor:
    samples = torch.randn(groups, 4 * columns, columns, generator=torch.Generator().manual_seed(seed))
    return samples.mT @ samples / samples.shape[1]


def statistics(matrices: dict[str, Tensor], effects: dict[str, Tensor]) -> Statistics:
    means = {name: torch.zeros(matrix.shape[:2]) for name, matrix in matrices.items()}
    moments = {name: Moments(matrix, means[name], 0.0) for name, matrix in matrices.items()}
    return Statistics(moments, effects, biased=frozenset(matrices))


def test_obs_costs_against_removing_each_weight_and_refitting_the_rest() -> None:
    matrix = positive_definite(2, 6).double()
    rows = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = obs_costs(rows, inverse_diagonal(matrix))
    for group in range(2):
        root = torch.linalg.cholesky(matrix[group]).T  # |root r|^2 is r M r
        for row in range(3):
            for gone in range(6):
                left = [column for column in range(6) if column != gone]
                wanted = root @ rows[group, row]
                values = torch.linalg.lstsq(root[:, left], wanted.unsqueeze(1)).solution
                error = (wanted - root[:, left] @ values.squeeze(1)).square().sum()
                assert found[group, row, gone] == pytest.approx(error.item(), rel=1e-6)


def test_with_uncorrelated_inputs_of_one_size_costs_are_squares() -> None:
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(2))
    found = weight_costs(
        {"a": weight},
        "measured",
        {"a": weight},
        statistics({"a": torch.eye(9)[None]}, {"a": torch.full((4,), 2.0)}),
    )
    torch.testing.assert_close(found["a"], 2.0 * 1.01 * weight.square())


def test_each_row_has_an_effect_of_its_own() -> None:
    weight = torch.ones(6, 1, 3, 3)  # depthwise: each output has a group of its own
    effects = {"a": torch.arange(6.0)}
    found = removal_costs("a", weight, statistics({"a": torch.eye(9).expand(6, 9, 9)}, effects))
    torch.testing.assert_close(found, 1.01 * torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 3, 3))


def test_inputs_that_never_change_make_their_weights_free() -> None:
    matrices = torch.stack([torch.eye(4), torch.zeros(4, 4)])
    found = removal_costs("a", torch.ones(2, 4), statistics({"a": matrices}, {"a": torch.ones(2)}))
    assert (found[0] > 0).all()
    assert (found[1] == 0).all()


def test_without_a_bias_a_constant_input_is_no_less_needed() -> None:
    moments = Moments(torch.zeros(1, 2, 2), torch.tensor([[3.0, 0.0]]), 0.0)
    plain = Statistics({"a": moments}, {"a": torch.ones(1)}, biased=frozenset())
    cost = removal_costs("a", torch.ones(1, 2), plain)[0]
    assert cost[0] > 50 * cost[1]


def test_inverses_are_worked_out_once_for_the_same_statistics() -> None:
    made = statistics({"a": positive_definite(1, 5)}, {})
    assert inverse_of("a", made) is inverse_of("a", made)
    torch.testing.assert_close(
        inverse_of("a", made)[0], torch.linalg.inv(damped(made.moments["a"].covariance))[0].diagonal()
    )


def test_costs_grow_with_the_share_that_goes_before() -> None:
    weight = torch.arange(1.0, 101.0).roll(30).reshape(10, 10)
    flat = statistics({"a": torch.eye(10)[None]}, {"a": torch.ones(10)})
    factors = tuple(float(2**step) for step in range(len(SHARES) + 1))
    found = removal_costs("a", weight, replace(flat, growth={"a": factors})) / removal_costs(
        "a", weight, flat
    )
    for value, factor in ((1, 1), (20, 1), (21, 2), (50, 4), (51, 8), (90, 32), (91, 64), (100, 64)):
        assert found[weight == value].item() == factor


def test_layers_that_the_statistics_lack_cost_what_is_typical() -> None:
    weights = {name: torch.full((2, 4), value) for name, value in (("a", 1.0), ("b", 2.0), ("c", 1e6))}
    eye = torch.eye(4)[None]
    one = torch.ones(2)
    found = weight_costs(weights, "measured", weights, statistics({"a": eye, "b": eye}, {"a": one, "b": one}))
    assert found["c"].mean() == pytest.approx(found["a"].mean().item())
    alone = weight_costs(weights, "measured", weights, statistics({}, {}))
    assert all(cost.mean() == pytest.approx(1) for cost in alone.values())


def test_costs_by_magnitude_look_at_the_published_weights() -> None:
    published = {"a": torch.tensor([[1.0, -2.0]]), "b": torch.tensor([[10.0, 20.0]]), "c": torch.zeros(1, 2)}
    assert weight_costs(published, "global")["b"].tolist() == [[100.0, 400.0]]
    found = weight_costs(published, "normalised")
    torch.testing.assert_close(found["a"], found["b"])
    assert found["c"].tolist() == [[0.0, 0.0]]


layers = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(0, 99)), min_size=1, max_size=5
)


def tied_costs(drawn: list[tuple[int, ...]]) -> dict[str, Tensor]:
    """Of four values only, so that most tie."""
    return {
        str(index): torch.randint(0, 4, (out, columns), generator=torch.Generator().manual_seed(seed)).float()
        for index, (out, columns, seed) in enumerate(drawn)
    }


@given(layers, st.floats(0, 1))
def test_the_total_is_met_and_no_layer_is_emptied(drawn: list[tuple[int, ...]], sparsity: float) -> None:
    costs = tied_costs(drawn)
    total = sum(one.numel() for one in costs.values())
    if round(sparsity * total) > total - len(costs):
        with pytest.raises(InputError, match="can't be met"):
            removed_counts(costs, sparsity, ALONE)
        return
    counts = removed_counts(costs, sparsity, ALONE)
    assert sum(counts.values()) == round(sparsity * total)
    assert all(0 <= counts[name] < one.numel() for name, one in costs.items())


@settings(max_examples=40)
@given(layers, st.floats(0, 0.6), st.sampled_from(["1x4", "4x4", "16x1"]))
def test_blocks_meet_the_total_within_one_of_them(
    drawn: list[tuple[int, ...]], sparsity: float, name: str
) -> None:
    costs, pattern = tied_costs(drawn), PATTERNS[name]
    wanted = round(sparsity * sum(one.numel() for one in costs.values()))
    try:
        counts = removed_counts(costs, sparsity, pattern)
    except InputError:
        return
    assert abs(sum(counts.values()) - wanted) <= pattern.outputs * pattern.inputs
    assert all(0 <= counts[layer] < one.numel() for layer, one in costs.items())


@given(layers, st.floats(0, 0.5), st.floats(0, 0.2))
def test_more_sparsity_takes_more_of_every_layer(
    drawn: list[tuple[int, ...]], sparsity: float, more: float
) -> None:
    costs = {
        name: torch.cat([one, torch.full((1, one.shape[1]), 9.0)]) for name, one in tied_costs(drawn).items()
    }
    try:
        less, rest = (removed_counts(costs, share, ALONE) for share in (sparsity, sparsity + more))
    except InputError:
        return
    assert all(less[name] <= rest[name] for name in costs)


def test_the_cheap_layer_loses_more() -> None:
    costs = {"cheap": torch.rand(10, 10), "dear": 100 + torch.rand(10, 10)}
    assert removed_counts(costs, 0.4, ALONE) == {"cheap": 80, "dear": 0}
    assert removed_counts(costs, 0.4, ALONE, uniform=True) == {"cheap": 40, "dear": 40}
    assert removed_counts(costs, 0.6, ALONE) == {"cheap": 99, "dear": 21}


def test_uniform_keeps_one_weight_of_each_layer() -> None:
    assert removed_counts({"a": torch.ones(1, 1), "b": torch.ones(2, 5)}, 0.99, ALONE, uniform=True) == {
        "a": 0,
        "b": 9,
    }


def test_a_sparsity_that_can_not_be_met_says_what_can() -> None:
    costs = {name: torch.rand(2, 5) for name in "ab"}
    with pytest.raises(InputError, match=r"sparsity 0.95 can't be met: 19 of 20 .* 18 can.*at most 0.9$"):
        removed_counts(costs, 0.95, ALONE)
    assert sum(removed_counts(costs, 0.9, ALONE).values()) == 18
