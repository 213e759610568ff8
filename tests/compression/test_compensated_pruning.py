from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from optimizer.compression.calibration.moments import Moments, as_rows, quadratic
from optimizer.compression.calibration.statistics import SHARES, Statistics
from optimizer.compression.prune.allocation import removal_costs
from optimizer.compression.prune.compensated import (
    MAX_SCALE,
    bias_change,
    growth,
    match_slope,
    match_variance,
    prune,
    refit,
)
from optimizer.compression.prune.patterns import PATTERNS
from optimizer.errors import InputError
from optimizer.recipe import PruneSpec


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(samples: int, columns: int, seed: int = 0) -> Tensor:
    """Inputs ``[n, d]`` of different sizes and means that depend on each other."""
    mixing = random(columns, columns, seed=seed + 1) / columns**0.5 + torch.eye(columns)
    return random(samples, columns, seed=seed) @ mixing * torch.linspace(0.3, 3, columns) + 1


def moments_of(inputs: Tensor) -> Moments:
    """Of ``[G, n, d]``."""
    mean = inputs.mean(1)
    centred = inputs - mean.unsqueeze(1)
    return Moments(centred.mT @ centred / inputs.shape[1], mean, 0.0)


def spec(sparsity: float | None = None, **options: object) -> PruneSpec:
    made = {
        "threshold": None,
        "allocation": "measured",
        "pattern": "unstructured",
        **options,
    }
    return SimpleNamespace(sparsity=sparsity, share=sparsity or 0.0, **made)  # type: ignore[return-value]


def statistics_of(moments: dict[str, Moments], **effects: Tensor) -> Statistics:
    return Statistics(moments, effects, biased=frozenset(moments))


def network(seed: int = 0) -> tuple[dict[str, Tensor], Statistics]:
    """A pointwise, a depthwise and a linear layer."""
    weights = {
        "wide": random(24, 48, 1, 1, seed=seed),
        "depthwise": random(12, 1, 3, 3, seed=seed + 1),
        "head": random(10, 40, seed=seed + 2),
    }
    inputs = {
        "wide": correlated(300, 48, seed)[None],
        "depthwise": torch.stack([correlated(200, 9, seed + channel) for channel in range(12)]),
        "head": correlated(30, 40, seed)[None],  # fewer samples than columns: singular
    }
    effects = {"wide": 1.0, "depthwise": 3.0, "head": 0.5}
    return weights, statistics_of(
        {name: moments_of(one) for name, one in inputs.items()},
        **{name: torch.full((len(weights[name]),), effect) for name, effect in effects.items()},
    )


@pytest.mark.parametrize("columns", [9, 48])
def test_refit_against_dense_least_squares_of_each_row(columns: int) -> None:
    inputs = correlated(400, columns)
    matrix = (inputs.T @ inputs / len(inputs))[None]
    rows, kept = random(1, 5, columns), random(1, 5, columns, seed=4) > 0
    found = refit(rows, kept, matrix, steps=200)
    for row in range(5):
        left = kept[0, row]
        wanted = inputs @ rows[0, row]
        solution = torch.linalg.lstsq(inputs[:, left].double(), wanted.double().unsqueeze(1)).solution
        torch.testing.assert_close(found[0, row, left], solution.squeeze(1).float(), rtol=2e-3, atol=2e-3)
        assert (found[0, row, ~left] == 0).all()


def test_a_few_steps_lower_the_error_below_that_of_the_mask_alone() -> None:
    matrix = moments_of(correlated(400, 64)[None]).covariance
    rows, kept = random(1, 20, 64), random(1, 20, 64, seed=4) > 0
    errors = [quadratic(rows - refit(rows, kept, matrix, steps), matrix).sum() for steps in (0, 1, 6, 15)]
    torch.testing.assert_close(errors[0], quadratic(rows * ~kept, matrix).sum())
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.9 * errors[0]


@pytest.mark.parametrize("columns", [9, 48])
def test_refit_of_everything_and_of_nothing(columns: int) -> None:
    matrix = moments_of(correlated(400, columns)[None]).covariance
    rows = random(1, 4, columns)
    whole = refit(rows, torch.ones_like(rows, dtype=torch.bool), matrix)
    torch.testing.assert_close(whole, rows, rtol=1e-3, atol=1e-3)
    assert (refit(rows, torch.zeros_like(rows, dtype=torch.bool), matrix) == 0).all()
    assert (refit(torch.zeros_like(rows), rows > 0, matrix) == 0).all()


def test_matching_restores_the_variance_of_each_row() -> None:
    matrix = moments_of(correlated(400, 20)[None]).covariance
    rows = random(1, 6, 20)
    fitted = refit(rows, random(1, 6, 20, seed=5) > -0.5, matrix)
    matched = match_variance(rows, fitted, matrix)
    torch.testing.assert_close(quadratic(matched, matrix), quadratic(rows, matrix), rtol=1e-4, atol=1e-4)
    assert (match_variance(rows, torch.zeros_like(rows), matrix) == 0).all()
    torch.testing.assert_close(match_variance(rows, 1e-3 * rows, matrix), MAX_SCALE * 1e-3 * rows)


def test_logits_keep_their_slope_and_other_outputs_their_variance() -> None:
    """On the inputs themselves: the line through what the row gave and what it gives rises by one."""
    weights, statistics = network()
    logits = replace(statistics, logits=frozenset({"head"}))
    half = spec(0.5, allocation="uniform")
    plain, matched = (prune(weights, weights, half, one) for one in (statistics, logits))
    assert torch.equal(plain["wide"].weight, matched["wide"].weight)
    assert torch.equal(plain["head"].mask, matched["head"].mask)
    rows, matrix = weights["head"][None], statistics.matrix("head")
    values = matched["head"].weight[None]
    torch.testing.assert_close(((rows @ matrix) * values).sum(2), quadratic(rows, matrix))
    assert (quadratic(values, matrix) > quadratic(rows, matrix)).all()
    assert torch.equal(match_slope(rows, torch.zeros_like(rows), matrix), torch.zeros_like(rows))
    torch.testing.assert_close(match_slope(rows, 0.1 * rows, matrix), MAX_SCALE**2 * 0.1 * rows)


def test_the_bias_change_restores_the_mean_of_the_outputs() -> None:
    weights, statistics = network()
    pruned = prune(weights, weights, spec(0.5), statistics)
    for name, one in pruned.items():
        mean = statistics.moments[name].mean
        before, after = (
            (as_rows(weight, len(mean)) * mean.unsqueeze(1)).sum(2).flatten()
            for weight in (weights[name], one.weight)
        )
        assert one.bias_change is not None
        torch.testing.assert_close(after + one.bias_change, before, rtol=1e-4, atol=1e-4)


def test_bias_changes_are_in_the_order_of_the_outputs() -> None:
    rows = torch.arange(12.0).reshape(2, 3, 2)
    found = bias_change(rows, torch.zeros_like(rows), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert found.tolist() == [0.0, 2.0, 4.0, 7.0, 9.0, 11.0]


@settings(max_examples=15)
@given(
    st.floats(0, 0.97),
    st.sampled_from(["uniform", "global", "normalised", "measured"]),
)
def test_totals_masks_and_zeros(sparsity: float, allocation: str) -> None:
    weights, statistics = network()
    pruned = prune(weights, weights, spec(sparsity, allocation=allocation), statistics)
    total = sum(weight.numel() for weight in weights.values())
    gone = sum(int((~one.mask).sum()) for one in pruned.values())
    assert abs(gone - round(sparsity * total)) <= (len(weights) if allocation == "uniform" else 0)
    for name, one in pruned.items():
        assert one.weight.shape == one.mask.shape == weights[name].shape
        assert one.mask.any()
        assert (one.weight[~one.mask] == 0).all()
        assert one.weight.isfinite().all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern(pattern: str) -> None:
    weights, statistics = network()
    pruned = prune(weights, weights, spec(0.5, pattern=pattern), statistics)
    if PATTERNS[pattern].kept:
        zeros = {name: int((~one.mask).sum()) for name, one in pruned.items()}
        assert zeros == {"wide": 24 * 48 // 2, "depthwise": 0, "head": 0}
        torch.testing.assert_close(pruned["head"].weight, weights["head"], rtol=1e-3, atol=1e-3)
    else:
        total = sum(weight.numel() for weight in weights.values())
        assert abs(sum(int((~one.mask).sum()) for one in pruned.values()) - total / 2) <= 64


def test_with_uncorrelated_inputs_of_one_size_it_is_magnitude_pruning_with_variances_kept() -> None:
    weight = random(8, 40)
    statistics = statistics_of({"a": Moments(torch.eye(40)[None], torch.zeros(1, 40), 0.0)}, a=torch.ones(8))
    pruned = prune({"a": weight}, {"a": weight}, spec(0.5), statistics)["a"]
    limit = weight.abs().flatten().sort().values[159]
    assert torch.equal(pruned.mask, weight.abs() > limit)
    kept = weight * pruned.mask
    scale = (weight.square().sum(1) / kept.square().sum(1)).sqrt().clamp(max=MAX_SCALE)
    torch.testing.assert_close(pruned.weight, kept * scale[:, None])


def test_refitting_errs_less_than_masking() -> None:
    weights, statistics = network()
    pruned = prune(weights, weights, spec(0.6, allocation="uniform"), statistics)
    matrix, rows = statistics.matrix("wide"), as_rows(weights["wide"], 1)
    kept = as_rows(pruned["wide"].mask, 1)
    masked = quadratic(rows * ~kept, matrix).sum()
    assert quadratic(rows - refit(rows, kept, matrix), matrix).sum() < 0.8 * masked


def test_masks_of_the_same_statistics_are_nested_over_the_sparsities() -> None:
    weights, statistics = network()
    some, more = (prune(weights, weights, spec(share), statistics) for share in (0.4, 0.7))
    assert all((some[name].mask | ~more[name].mask).all() for name in weights)


def test_a_row_that_matters_more_keeps_more() -> None:
    weight = random(20, 40)
    moments = {"a": moments_of(correlated(400, 40)[None])}
    effects = torch.ones(20)
    effects[3] = 1000.0
    statistics = statistics_of(moments, a=effects)
    kept = prune({"a": weight}, {"a": weight}, spec(0.7), statistics)["a"].mask.sum(1)
    assert kept[3] > 36
    assert kept.sum() == 240


@pytest.mark.parametrize("dead", ["inputs", "weights", "all inputs", "one group"])
def test_dead_layers_and_inputs(dead: str) -> None:
    weights, statistics = network()
    moments = dict(statistics.moments)
    wide = moments["wide"].covariance.clone()
    if dead == "inputs":
        wide[:, ::2] = 0
        wide[:, :, ::2] = 0
    elif dead == "weights":
        weights["wide"] = torch.zeros_like(weights["wide"])
    elif dead == "all inputs":
        wide = torch.zeros_like(wide)
    else:
        groups = moments["depthwise"].covariance.clone()
        groups[4] = 0
        moments["depthwise"] = Moments(groups, moments["depthwise"].mean, 0.0)
    moments["wide"] = Moments(wide, moments["wide"].mean, 0.0)
    pruned = prune(weights, weights, spec(0.5), replace(statistics, moments=moments))
    total = sum(weight.numel() for weight in weights.values())
    assert sum(int((~one.mask).sum()) for one in pruned.values()) == round(0.5 * total)
    for one in pruned.values():
        assert one.weight.isfinite().all()
        assert one.bias_change is not None
        assert one.bias_change.isfinite().all()
        assert one.mask.any()
    if dead == "inputs":
        kept = pruned["wide"].mask.flatten(1)
        assert kept[:, ::2].sum() < 0.2 * kept[:, 1::2].sum()
    if dead == "one group":
        assert not pruned["depthwise"].mask[4].any()
        assert pruned["depthwise"].mask[5].any()


def test_layers_without_a_bias_keep_it_so() -> None:
    weights, statistics = network()
    plain = replace(statistics, biased=frozenset())
    assert all(one.bias_change is None for one in prune(weights, weights, spec(0.5), plain).values())


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1x4"])
def test_layers_that_the_statistics_lack_are_pruned_by_magnitude(pattern: str) -> None:
    weights, statistics = network()
    weights["unseen"] = random(16, 32)
    pruned = prune(weights, weights, spec(0.5, pattern=pattern), statistics)["unseen"]
    assert pruned.bias_change is None
    assert torch.equal(pruned.weight, weights["unseen"] * pruned.mask)
    assert 0 < pruned.mask.sum() < 512
    if pattern == "unstructured":
        assert pruned.weight[pruned.mask].abs().min() >= weights["unseen"][~pruned.mask].abs().max()


def test_a_threshold_looks_at_the_published_weights_and_the_rest_is_refitted() -> None:
    weights, statistics = network()
    weights["unseen"] = random(3, 4)
    published = {name: 2 * weight for name, weight in weights.items()}
    pruned = prune(weights, published, spec(threshold=1.0), statistics)
    for name, one in pruned.items():
        assert torch.equal(one.mask, weights[name].abs() > 0.5)
        assert torch.equal(one.weight, weights[name] * one.mask) == (name == "unseen")


def test_an_impossible_sparsity_is_refused() -> None:
    weights, statistics = network()
    with pytest.raises(InputError, match="can't be met"):
        prune(weights, weights, spec(0.9999), statistics)


@pytest.mark.parametrize("name", ["wide", "head"])
def test_costs_sum_to_what_the_weights_cost_together(name: str) -> None:
    """Summed alone they are a fraction of it, the smaller the more the inputs are correlated."""
    weights, statistics = network()
    weight, count = weights[name], weights[name].numel()
    grown = replace(statistics, growth={name: growth(name, weight, statistics)})
    costs = removal_costs(name, weight, grown).flatten().sort().values
    alone = removal_costs(name, weight, statistics).flatten().sort().values
    matrix = statistics.matrix(name)
    rows = as_rows(weight, len(matrix))
    lost = statistics.divergence(name, quadratic(rows, matrix))
    assert costs.sum() == pytest.approx(lost, rel=0.02)
    assert alone.sum() < 0.8 * lost
    uniform = prune({name: weight}, {name: weight}, spec(SHARES[3], allocation="uniform"), statistics)
    values = refit(rows, as_rows(uniform[name].mask, len(matrix)), matrix)
    lost = statistics.divergence(name, quadratic(rows - values, matrix))
    assert costs[: round(SHARES[3] * count)].sum() == pytest.approx(lost, rel=0.02)


def test_channels_without_inputs_say_nothing_of_the_growth() -> None:
    """Their matrix is made up to be one that can be inverted."""
    weights, statistics = network()
    weight, moments = weights["depthwise"], statistics.moments["depthwise"]
    alive = growth("depthwise", weight, statistics)
    moments.covariance[4] = 0
    with_dead = growth("depthwise", weight, statistics)
    assert max(with_dead) < 2 * max(alive)
