"""Channels in another order for N:M patterns: the search by brute force, and the network as it was."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import divergence
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.compression.calibration import cache
from optimizer.compression.calibration.cache import orders_of
from optimizer.compression.calibration.making import make
from optimizer.compression.prune import permutation
from optimizer.compression.prune.coupling import movable
from optimizer.compression.prune.patterns import PATTERNS, Pattern, fits
from optimizer.compression.prune.permutation import (
    cheapest_order,
    orders_for,
    permuted,
    permuted_statistics,
)
from optimizer.errors import WorkError
from optimizer.measurement.compressed import build_of, compressed_model, network_of
from optimizer.measurement.workspace import Workspace, open_workspace
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec

SHAPE = (3, 12, 12)
N_OF_M = [pytest.param(PATTERNS[name], id=name) for name in ("2:4", "4:8")]


def lost(costs: Tensor, pattern: Pattern) -> Tensor:
    """What a pattern takes of costs ``[channels, R]``: of each M in a row all but the N dearest."""
    groups = costs.T.reshape(-1, pattern.inputs)
    return groups.sum() - groups.topk(pattern.kept or 0).values.sum()


class Residual(nn.Module):
    """An inverted bottleneck and a wide block on a residual stream, and a head that reads each channel's
    four pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.expand = nn.Conv2d(16, 32, 1, bias=False)
        self.depthwise = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.between = nn.BatchNorm2d(32)
        self.project = nn.Conv2d(32, 16, 1)
        self.wide = nn.Conv2d(16, 48, 3, 1, 1)
        self.back = nn.Conv2d(48, 16, 3, 1, 1)
        self.hidden = nn.Linear(16 * 4, 32)
        self.head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.project(torch.relu(self.between(self.depthwise(nn.functional.relu6(self.expand(x))))))
        x = x + self.back(torch.relu(self.wide(x)))
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


class Shuffled(nn.Module):
    """Its own code reads channels by their places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3)
        self.second = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x[:, ::2] * x[:, 1::2]))
        return self.head(x.mean((2, 3)))


class Branching(nn.Module):
    """The values of its input decide which layer reads the channels of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3)
        self.bright = nn.Conv2d(32, 16, 1)
        self.dark = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        second = self.bright if float(x.mean()) > 0 else self.dark
        return self.head(torch.relu(second(torch.relu(self.first(x)))).mean((2, 3)))


class Faint(nn.Module):
    """A branch that hardly counts, of whose channels each has a gain that is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3)
        self.second = nn.Conv2d(32, 32, 1)
        self.back = nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 16)
        self.register_buffer("gains", torch.rand(32, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x + 1e-4 * self.back(torch.relu(self.second(x)) * self.gains)
        return self.head(x.mean((2, 3)))


class Single(Shuffled):
    """It takes no float64, and is given none."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return super().forward(x)


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = kind().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                values.data.uniform_(0.5, 1.5)
    return model


def images(number: int = 24) -> Tensor:
    return torch.rand(number, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pattern", N_OF_M)
@given(seed=st.integers(0, 999), ties=st.booleans())
def test_what_an_exchange_costs_is_what_the_mask_loses(pattern: Pattern, seed: int, ties: bool) -> None:
    size, count = pattern.inputs, pattern.inputs - (pattern.kept or 0)
    random = torch.Generator().manual_seed(seed)
    costs = torch.rand(size + 1, 6, generator=random, dtype=torch.float64)
    costs = (3 * costs).round() if ties else costs
    group, newcomer = costs[:size], costs[size]
    now, left, limit = permutation._without_each(group[None], count)
    assert torch.isclose(now[0], lost(group, pattern))
    for place in range(size):
        exchanged = torch.cat([group[:place], newcomer[None], group[place + 1 :]])
        found = left[0, place] + torch.minimum(limit[0, place], newcomer).sum()
        assert torch.isclose(found, lost(exchanged, pattern))


@given(seed=st.integers(0, 999), groups=st.integers(1, 6), rows=st.integers(1, 9))
def test_an_order_has_every_channel_once_and_never_costs_more(seed: int, groups: int, rows: int) -> None:
    costs = torch.rand(4 * groups, rows, generator=torch.Generator().manual_seed(seed)) ** 4
    order = cheapest_order(costs, PATTERNS["2:4"])
    assert sorted(order.tolist()) == list(range(4 * groups))
    assert lost(costs[order], PATTERNS["2:4"]) <= lost(costs, PATTERNS["2:4"]) * (1 + 1e-6)
    assert torch.equal(order, cheapest_order(costs, PATTERNS["2:4"]))


def test_of_two_groups_the_order_found_is_nearly_the_best_there_is() -> None:
    splits = [(0, *others) for others in itertools.combinations(range(1, 8), 3)]
    found, best = 0.0, 0.0
    for seed in range(20):
        costs = torch.rand(8, 5, generator=torch.Generator().manual_seed(seed))
        found += float(lost(costs[cheapest_order(costs, PATTERNS["2:4"])], PATTERNS["2:4"]))
        best += min(
            float(lost(costs[[*split, *(set(range(8)) - {*split})]], PATTERNS["2:4"])) for split in splits
        )
    assert best <= found <= 1.03 * best


@pytest.mark.parametrize("pattern", N_OF_M)
def test_cheap_channels_that_stand_together_are_spread(pattern: Pattern) -> None:
    """Half of the channels cost next to nothing, the first half: as they stand, a pattern takes dear ones."""
    costs = torch.ones(64, 8)
    costs[:32] = 1e-3
    assert lost(costs, pattern) > 100
    assert torch.isclose(lost(costs[cheapest_order(costs, pattern)], pattern), costs[:32].sum(), rtol=0.05)


def test_the_network_and_its_statistics_are_the_same_in_another_order() -> None:
    folded, _ = fold_batch_norm(made(Residual), SHAPE)
    statistics = make(folded, images())
    orders = orders_for(folded, SHAPE, PATTERNS["2:4"], statistics)
    weights = {layer.name: layer.weight for layer in walk(folded)}
    assert {name for group in orders for name in group.makers} == weights.keys() - {"head.weight"}
    other = permuted(folded, orders)
    assert torch.allclose(other(images()), folded(images()), atol=1e-5)
    assert not any(torch.equal(layer.weight, weights[layer.name]) for layer in walk(other))
    derived, taken = permuted_statistics(statistics, orders), make(other, images())
    for name in weights:
        assert torch.allclose(derived.matrix(name), taken.matrix(name), rtol=1e-3, atol=1e-5)
        # Their sum is measured by trial, of a random model near noise.
        one, two = (each.effects[name] / each.effects[name].sum() for each in (derived, taken))
        assert torch.allclose(one, two, rtol=1e-2)


def test_channels_that_are_read_by_their_places_stay() -> None:
    model = made(Shuffled)
    orders = orders_for(model, SHAPE, PATTERNS["2:4"], make(model, images()))
    assert [group.makers for group in orders] == [("second.weight",)]
    assert torch.allclose(permuted(model, orders)(images()), model(images()), atol=1e-5)


def test_a_model_that_takes_float32_alone_is_ordered_too() -> None:
    model = made(Single)
    orders = orders_for(model, SHAPE, PATTERNS["2:4"], make(model, images()))
    assert [group.makers for group in orders] == [("second.weight",)]


def test_nothing_moves_where_values_decide_what_runs() -> None:
    """One input shows the readers of one branch only."""
    model = made(Branching)
    assert orders_for(model, SHAPE, PATTERNS["2:4"], make(model, images())) == {}


def test_what_hardly_reaches_the_outputs_is_looked_at_as_well() -> None:
    model = made(Faint)
    orders = orders_for(model, SHAPE, PATTERNS["2:4"], make(model, images()))
    assert [group.makers for group in orders] == [("first.weight", "back.weight")]


def test_an_order_that_is_theirs_already_is_none() -> None:
    """Nothing that goes costs anything."""
    model = made(Shuffled)
    known = make(model, images())
    known = replace(known, effects={name: torch.zeros_like(one) for name, one in known.effects.items()})
    assert orders_for(model, SHAPE, PATTERNS["2:4"], known) == {}


def test_channels_with_a_batch_norm_of_their_own_stay() -> None:
    """One that was not folded; the others move."""
    model = made(Residual)
    orders = orders_for(model, SHAPE, PATTERNS["2:4"], make(model, images()))
    assert "wide.weight" in {name for group in orders for name in group.makers}
    assert "expand.weight" not in {name for group in orders for name in group.makers}


def test_a_group_that_was_read_wrongly_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another order of it gives other outputs, and that of the others stays."""
    folded, _ = fold_batch_norm(made(Residual), SHAPE)
    wrong = [replace(group, through=()) for group in movable(folded, SHAPE)]
    monkeypatch.setattr(permutation, "movable", lambda *_: wrong)
    orders = orders_for(folded, SHAPE, PATTERNS["2:4"], make(folded, images()))
    kept = {name for group in orders for name in group.makers}
    assert "expand.weight" not in kept
    assert {"wide.weight", "stem.weight"} <= kept
    assert torch.allclose(permuted(folded, orders)(images()), folded(images()), atol=1e-5)


def test_without_a_graph_of_the_model_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise WorkError("torch-pruning can't follow it")

    monkeypatch.setattr(permutation, "movable", fails)
    model = made(Shuffled)
    assert orders_for(model, SHAPE, PATTERNS["2:4"], make(model, images())) == {}


def test_orders_are_found_once_and_read_back(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that there are none."""
    for kind in (Residual, Branching):
        folded, _ = fold_batch_norm(made(kind), SHAPE)
        known = make(folded, images())
        found = orders_of(folded, images(), "2:4", known)
        with monkeypatch.context() as patch:
            patch.setattr(cache, "orders_for", lambda *_: pytest.fail("they were found again"))
            again = orders_of(folded, images(), "2:4", known)
        assert [*again] == [*found]
        assert all(torch.equal(again[group], order) for group, order in found.items())
        assert bool(found) == (kind is Residual)


def test_that_torch_pruning_was_missing_is_not_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(Shuffled)
    known = make(model, images())
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch_pruning", None)
        assert orders_of(model, images(), "2:4", known) == {}
    assert len(orders_of(model, images(), "2:4", known)) == 1


@pytest.fixture(scope="module")
def fashion() -> Workspace:
    return open_workspace("fashion-vit", DataSpec())


PATTERNED = Recipe(PruneSpec("compensated", pattern="2:4"))


@pytest.mark.slow
def test_a_pattern_costs_the_bundled_network_less(fashion: Workspace) -> None:
    """Divergence of the outputs on images that nothing was taken from."""
    model, unseen = fashion.model, fashion.images.evaluation.images[:500]
    as_it_stands = compress(model.module, PATTERNED, model.published, fashion.statistics()).module
    ordered = compressed_model(fashion, PATTERNED)
    before, after = (divergence(model.module, one, unseen) for one in (as_it_stands, ordered.module))
    assert after < 0.9 * before
    assert any("in another order" in note for note in ordered.notes)
    for name, weight in ordered.weights.items():
        if fits(weight.mask.shape, PATTERNS["2:4"]):
            assert (weight.mask.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all(), name


@pytest.mark.slow
def test_what_is_built_saved_and_shown_has_the_same_order(fashion: Workspace) -> None:
    recipe, some = (
        replace(PATTERNED, quantize=QuantizeSpec(weight_bits=8)),
        fashion.images.evaluation.images[:64],
    )
    made = compressed_model(fashion, recipe)
    built = build_of(fashion, recipe, "openvino")(made, some, threads=1, batch=1)
    with torch.inference_mode():
        expected = made.module(some)
    assert torch.allclose(torch.from_numpy(built.score(some.numpy())), expected, atol=1e-3)
    network = {layer.name: layer for layer in walk(network_of(fashion, recipe))}
    for layer in walk(made.module):
        kept = made.weights[layer.name].mask
        before, after = network[layer.name].weight[kept], layer.weight[kept]
        assert torch.corrcoef(torch.stack([before, after]))[0, 1] > 0.9, layer.name
