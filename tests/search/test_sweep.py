from dataclasses import replace
from itertools import product

import pytest
from factories import make_result

from optimizer.analysis.view import Failed
from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.recipe import NORMAL, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec, Request, Result, Settings
from optimizer.search.sweep import MAX_GRID, STARTER_BITS, STARTER_SPARSITIES, Grid, grid, neighbours, sweep

BASE = Request(
    "fashion-resnet",
    Recipe(
        PruneSpec(threshold=0.1, allocation="uniform"),
        QuantizeSpec(weight_bits=4, granularity="tensor", symmetric=False, range="mse"),
    ),
    "torch",
    DataSpec(limit=100, seed=3),
    Settings(threads=1, batch=2),
)


def points(requests: list[Request]) -> list[tuple[int, float]]:
    return [(each.recipe.quantize.weight_bits, each.recipe.prune.sparsity or 0.0) for each in requests]


def test_the_grid_is_every_sparsity_with_every_bit_width_and_the_baseline_comes_first() -> None:
    assert points(grid(BASE, (0.5, 0.0, 0.9), (4, 32, 8))) == [
        *((32, 0.0), (32, 0.5), (32, 0.9)),
        *((8, 0.0), (8, 0.5), (8, 0.9)),
        *((4, 0.0), (4, 0.5), (4, 0.9)),
    ]


def test_a_grid_without_the_baseline_s_recipe_has_none() -> None:
    assert points(grid(BASE, (0.5,), (8,))) == [(8, 0.5)]


def test_rounded_activations_leave_no_baseline_in_the_grid() -> None:
    base = Request("m", Recipe(quantize=QuantizeSpec(activation_bits=8)))
    requests = grid(base, (0.0,), (32, 8))
    assert points(requests) == [(32, 0.0), (8, 0.0)]
    assert not any(request.recipe.identity for request in requests)


def test_all_else_is_as_in_the_base() -> None:
    for request in grid(BASE, (0.0, 0.5), (32, 8)):
        assert (request.model, request.engine) == (BASE.model, BASE.engine)
        assert (request.data, request.settings) == (BASE.data, BASE.settings)
        prune, quantize = request.recipe.prune, request.recipe.quantize
        assert prune == (PruneSpec(sparsity=0.5, allocation="uniform") if prune.active else PruneSpec())
        if quantize.integer:
            assert quantize == QuantizeSpec(weight_bits=8, granularity="tensor", symmetric=False, range="mse")
        else:
            assert quantize == QuantizeSpec()


def test_a_grid_that_was_best_for_its_width_is_best_for_every_other() -> None:
    base = replace(BASE, recipe=NORMAL)
    found = {request.recipe.quantize.weight_bits: request.recipe for request in grid(base, (0.0,), (8, 4))}
    assert found[8].quantize == NORMAL.quantize.at(8)
    assert (found[8].quantize.symmetric, found[4].quantize.symmetric) == (True, False)


def test_a_value_given_twice_is_measured_once() -> None:
    assert points(grid(BASE, (0.5, 0.5), (8, 8))) == [(8, 0.5)]


def test_the_starter_sweep_is_a_grid_of_different_requests() -> None:
    requests = grid(BASE, STARTER_SPARSITIES, STARTER_BITS)
    assert sorted(points(requests)) == sorted(product(STARTER_BITS, STARTER_SPARSITIES))
    assert len(set(requests)) == len(requests)
    assert requests[0].recipe.identity


@pytest.mark.parametrize(
    ("sparsities", "bits", "words"),
    [
        ((), (8,), "at least one sparsity and one bit width"),
        ((0.5,), (), "at least one sparsity and one bit width"),
        ((0.5, 1.5), (8,), "sparsity 1.5 is out of range"),
        ((float("nan"),), (8,), "sparsity nan is out of range"),
        ((0.5,), (8, 9), "weight bits 9: use one of"),
        ([i / 1000 for i in range(MAX_GRID // 8 + 1)], (2, 3, 4, 5, 6, 7, 8, 16), "more than 2,000"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_runs(
    sparsities: list[float], bits: list[int], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Grid(BASE, tuple(sparsities), tuple(bits), (32,), ("torch",)).requests()


def test_failures_are_recorded_and_the_rest_go_on() -> None:
    requests = grid(BASE, (0.0, 0.5), (32, 8, 4))
    broken = {
        requests[1]: WorkError("the worker died twice"),
        requests[2]: InputError("no such model"),
        requests[4]: RuntimeError("out of memory"),
        requests[5]: UnavailableError("no network"),
    }

    def measure(request: Request) -> Result:
        if request in broken:
            raise broken[request]
        return make_result(request.recipe, images=16)

    outcomes = list(sweep(requests, measure))
    assert len(outcomes) == len(requests)
    for request, outcome in zip(requests, outcomes, strict=True):
        if request in broken:
            assert isinstance(outcome, Failed)
            assert outcome.request == request
            assert str(broken[request]) in outcome.message
        else:
            assert isinstance(outcome, Result)
            assert outcome.request.recipe == request.recipe


def test_a_sweep_measures_only_when_asked_for_the_next() -> None:
    measured: list[Request] = []

    def measure(request: Request) -> Result:
        measured.append(request)
        return make_result(request.recipe, images=16)

    outcomes = sweep(grid(BASE, (0.0, 0.5), (32,)), measure)
    assert measured == []
    next(outcomes)
    assert len(measured) == 1


def amounts(request: Request) -> tuple[float | None, int, int]:
    quantize = request.recipe.quantize
    return request.recipe.prune.sparsity, quantize.weight_bits, quantize.activation_bits


def test_neighbours_are_a_step_of_sparsity_or_of_bits_away() -> None:
    base = Request("fashion-mlp", Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=8)).canonical())
    assert {amounts(one) for one in neighbours(base)} == {
        *((0.51, 8, 32), (0.49, 8, 32)),
        *((0.5, 7, 32), (0.5, 16, 32)),
        (0.5, 8, 8),
    }
    assert all(replace(one, recipe=base.recipe) == base for one in neighbours(base))


@pytest.mark.parametrize(
    ("prune", "bits", "expected"),
    [
        (PruneSpec(), 32, {(None, 16, 32), (None, 32, 8)}),
        (PruneSpec(), 2, {(None, 3, 32), (None, 2, 8)}),
        (PruneSpec(sparsity=0.99), 32, {(0.98, 32, 32), (0.99, 16, 32), (0.99, 32, 8)}),
        (PruneSpec(sparsity=0.01), 32, {(0.02, 32, 32), (0.01, 16, 32), (0.01, 32, 8)}),
        (PruneSpec(threshold=0.1), 32, {(None, 16, 32), (None, 32, 8)}),
    ],
)
def test_there_are_no_neighbours_beyond_the_ends(
    prune: PruneSpec, bits: int, expected: set[tuple[float | None, int, int]]
) -> None:
    asked = Request("fashion-mlp", Recipe(prune, QuantizeSpec(weight_bits=bits)).canonical())
    found = neighbours(asked)
    assert {amounts(one) for one in found} == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize(("bits", "other"), [(8, {32}), (32, {8}), (4, set())])
def test_activations_of_8_bits_and_of_32_lie_side_by_side(bits: int, other: set[int]) -> None:
    spec = QuantizeSpec(weight_bits=8, activation_bits=bits)
    found = neighbours(Request("fashion-mlp", Recipe(quantize=spec).canonical()))
    assert {activations for _, _, activations in map(amounts, found)} - {bits} == other


def test_what_takes_long_has_no_neighbours() -> None:
    tuned = Recipe(PruneSpec(sparsity=0.5), finetune_steps=10).canonical()
    assert neighbours(Request("fashion-mlp", tuned)) == []
