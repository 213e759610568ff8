"""Channels rotated for pruning and rounding: the network as it was, costs by hand, and what it wins."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import divergence_from, run
from torch import Tensor, nn

from optimizer.compression import rotation
from optimizer.compression.apply import compress
from optimizer.compression.calibration import cache
from optimizer.compression.calibration.cache import rotations_of
from optimizer.compression.calibration.making import make
from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.prune.allocation import inverse_diagonal
from optimizer.compression.rotation import (
    Maker,
    Reader,
    cheapest_rotation,
    pruning_cost,
    rotated,
    rotated_statistics,
    rotations_for,
    squared_pivots,
    squared_ranges,
)
from optimizer.compression.streams import streams
from optimizer.measurement.compressed import build_of, compressed_model, network_of
from optimizer.measurement.workspace import open_workspace
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.recipe import Override, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec

SHAPE = (3, 12, 12)


class Bottlenecks(nn.Module):
    """Two inverted bottlenecks on one linear stream, whose end is read pixel by pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.first = nn.Conv2d(16, 12, 1)
        self.norm = nn.BatchNorm2d(12)
        self.expand = nn.Conv2d(12, 32, 3, 1, 1, bias=False)
        self.depthwise = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.project = nn.Conv2d(32, 12, 1)
        self.hidden = nn.Linear(12 * 4, 24)
        self.head = nn.Linear(24, 10)

    def begin(self, x: Tensor) -> Tensor:
        return self.norm(self.first(torch.relu(self.stem(x))))

    def block(self, x: Tensor) -> Tensor:
        return x + self.project(nn.functional.relu6(self.depthwise(nn.functional.relu6(self.expand(x)))))

    def end(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(torch.relu(self.hidden(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.block(self.begin(x)))


class Curved(Bottlenecks):
    """The same, with a curve on the stream."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.begin(x))
        x = self.block(x)
        return self.end(x)


class Shifted(Bottlenecks):
    """The same, with a number added to each channel of the stream."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.begin(x) + 0.5
        x = self.block(x)
        return self.end(x)


def made(kind: type[nn.Module]) -> nn.Module:
    """Its batch norm folded."""
    torch.manual_seed(0)
    model = kind().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                values.data.uniform_(0.5, 1.5)
    return fold_batch_norm(model, SHAPE)[0]


def images(number: int = 24) -> Tensor:
    return torch.rand(number, *SHAPE, generator=torch.Generator().manual_seed(1))


def orthogonal(channels: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(channels, channels, generator=random, dtype=torch.float64))[0]


def matrix(columns: int, seed: int) -> Tensor:
    """Positive definite."""
    inputs = torch.randn(4 * columns, columns, generator=torch.Generator().manual_seed(seed))
    return inputs.T @ inputs / len(inputs) + 0.1 * torch.eye(columns)


STREAM = ("first.weight", "project.weight")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return made(Bottlenecks)


@pytest.fixture(scope="module")
def known(network: nn.Module) -> Statistics:
    return make(network, images())


@given(seed=st.integers(0, 999))
def test_costs_after_a_rotation_are_those_of_rotated_weights(seed: int) -> None:
    """Of a layer of 4 channels with 3 columns for each, and of one that makes them."""
    random = torch.Generator().manual_seed(seed)
    rotation_matrix, effects = orthogonal(4, seed).float().contiguous(), torch.rand(5, generator=random)
    weight, inputs = torch.randn(5, 4, 3, generator=random), matrix(12, seed)
    blocks = [
        one.reshape(4, 3, 4, 3).diagonal(dim1=1, dim2=3).movedim(2, 0) for one in (inputs, inputs.inverse())
    ]
    reader = Reader(weight.transpose(1, 2), *map(torch.linalg.cholesky, blocks), effects)
    every = torch.kron(rotation_matrix, torch.eye(3))
    expected = (weight.flatten(1) @ every.T).square() / inverse_diagonal((every @ inputs @ every.T)[None])
    found = reader.pruning_costs(rotation_matrix).transpose(1, 2).flatten(1)
    assert torch.allclose(found, expected * effects[:, None], rtol=1e-3)

    weight, inputs = torch.randn(4, 6, generator=random), matrix(6, seed)
    maker = Maker(weight.T, inverse_diagonal(inputs[None])[0], torch.tensor(1.0), effects[:4])
    expected = (rotation_matrix @ weight).square() / inverse_diagonal(inputs[None])
    shares = (rotation_matrix @ torch.diag(effects[:4]) @ rotation_matrix.T).diagonal()
    assert torch.allclose(maker.pruning_costs(rotation_matrix).T, expected * shares[:, None], rtol=1e-3)


def test_rounding_costs_what_columns_one_after_the_other_cost() -> None:
    """Every column's error, made up for by those that are yet to come, costs its squared pivot."""
    weight, inputs, effects = torch.randn(6, 1, 5), matrix(5, 1), torch.rand(6)
    reader = reader_of(weight, inputs, effects)
    pivots = [1 / inputs[: at + 1, : at + 1].inverse()[at, at] for at in range(5)]
    expected = (squared_ranges(weight[:, 0]) * effects).sum() * sum(pivots)
    assert torch.isclose(reader.rounding_cost(torch.eye(5)), expected, rtol=1e-4)


@given(seed=st.integers(0, 999))
def test_the_slope_of_pivots_is_that_of_small_changes(seed: int) -> None:
    rotation_matrix, factors = (
        orthogonal(4, seed),
        torch.linalg.cholesky(torch.stack([matrix(4, seed + 1), matrix(4, seed + 2)]).double()),
    )
    at = rotation_matrix.contiguous().requires_grad_()
    assert torch.autograd.gradcheck(lambda one: squared_pivots(one, factors), at)


@given(columns=st.integers(1, 2000))
def test_batches_come_to_all_rows(columns: int) -> None:
    """Of a layer that reads and one that makes, each as often as the others, in batches of about a size."""
    numbers = torch.arange(columns).float()
    reader = Reader(numbers.view(-1, 1, 1), torch.eye(1)[None], torch.eye(1)[None], numbers)
    maker = Maker(numbers[:, None], numbers, torch.tensor(1.0), torch.ones(1))
    steps = range(max(1, columns // rotation.BATCH))
    for parts in ([reader.batch(step) for step in steps], [maker.batch(step) for step in steps]):
        assert torch.equal(torch.cat([part.weight.flatten() for part in parts]), numbers)
        assert all(len(part.weight) < 2 * rotation.BATCH for part in parts)
    assert sum(reader.batch(step).share for step in steps) == pytest.approx(1)


def reader_of(weight: Tensor, inputs: Tensor, effects: Tensor) -> Reader:
    """A layer of one column for each channel."""
    factors, inverses = map(torch.linalg.cholesky, (inputs[None], inputs.inverse()[None]))
    return Reader(weight, factors, inverses, effects)


def test_a_rotation_that_makes_weights_sparse_is_found() -> None:
    """Rows with one weight each, hidden by a rotation."""
    sparse = torch.diag(torch.rand(6) + 1).repeat(4, 1)
    hidden = sparse @ orthogonal(6, 3).float()
    reader = reader_of(hidden[:, None], torch.eye(6), torch.ones(24))
    found = cheapest_rotation(torch.eye(6, dtype=torch.float64), [reader], pruning_cost(0.1))
    assert found is not None
    assert torch.allclose(found @ found.T, torch.eye(6, dtype=torch.float64), atol=1e-12)
    rows = (hidden @ found.float().T).abs().sort().values
    assert (rows[:, :-1] < 0.1 * rows[:, -1:]).all()
    again = cheapest_rotation(torch.eye(6, dtype=torch.float64), [reader], pruning_cost(0.1))
    assert again is not None
    assert torch.equal(found, again)


def test_channels_that_cost_nothing_stay() -> None:
    reader = reader_of(torch.zeros(3, 1, 4), torch.eye(4), torch.ones(3))
    assert cheapest_rotation(torch.eye(4, dtype=torch.float64), [reader], pruning_cost(1.0)) is None


@pytest.mark.parametrize("aim", ["prune", "round"])
def test_the_network_and_its_statistics_are_the_same(
    network: nn.Module, known: Statistics, aim: rotation.Aim
) -> None:
    rotations = rotations_for(network, SHAPE, aim, known)
    assert [(group.producers, group.consumers) for group in rotations] == [
        (STREAM, ("expand.weight", "hidden.weight"))
    ]
    other = rotated(network, rotations)
    assert torch.allclose(other(images()), network(images()), atol=1e-5)
    weights = {layer.name: layer.weight for layer in walk(network)}
    moved = {layer.name for layer in walk(other) if not torch.equal(layer.weight, weights[layer.name])}
    assert moved == {*STREAM, "expand.weight", "hidden.weight"}
    derived, taken = rotated_statistics(known, network, rotations, other), make(other, images())
    for name in weights:
        assert torch.allclose(derived.matrix(name), taken.matrix(name), rtol=1e-2, atol=1e-3), name
    for name in ("expand.weight", "hidden.weight"):
        assert derived.growth[name] == pytest.approx(taken.growth[name], rel=0.1), name
    for name in STREAM:
        assert torch.isclose(derived.effects[name].sum(), known.effects[name].sum())


class Twice(Bottlenecks):
    """The same, with a block that is run twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.begin(x)
        for _ in range(2):
            x = self.block(x)
        return self.end(x)


class Given(Bottlenecks):
    """The same, whose stream is also an output."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = self.begin(x)
        return x, self.end(x)


class Branching(Bottlenecks):
    """The same, but for the values of its input."""

    def forward(self, x: Tensor) -> Tensor:
        bright = float(x.mean()) > 100
        x = self.begin(x)
        if bright:
            x = self.block(x)
        return self.end(x)


class Chain(nn.Module):
    """Linear layers one after the other, and a difference of two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 6, 1, bias=False)
        self.third = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(x) - self.third(x)
        return self.head(x.mean((2, 3)))


def test_streams_of_a_chain() -> None:
    found = [(group.producers, group.consumers) for group in streams(made(Chain), SHAPE)]
    assert found == [
        (("first.weight",), ("second.weight", "third.weight")),
        (("second.weight", "third.weight"), ("head.weight",)),
    ]


@pytest.mark.parametrize("kind", [Curved, Shifted, Twice, Given, Branching])
def test_what_more_than_sums_stands_in_is_no_stream(kind: type[nn.Module]) -> None:
    assert streams(made(kind), SHAPE) == []


def test_a_batch_norm_of_its_own_ends_a_stream() -> None:
    assert streams(Bottlenecks().eval(), SHAPE) == []


@pytest.mark.parametrize("kind", [Curved, Shifted])
def test_channels_between_which_stands_more_than_sums_stay(kind: type[nn.Module]) -> None:
    model = made(kind)
    assert rotations_for(model, SHAPE, "prune", make(model, images())) == {}


def test_a_stream_that_was_read_wrongly_is_left_as_it_is(
    known: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rotation gives other outputs."""
    model, wrong = made(Curved), streams(made(Bottlenecks), SHAPE)
    assert len(wrong) == 1
    monkeypatch.setattr(rotation, "streams", lambda *_: wrong)
    assert rotations_for(model, SHAPE, "prune", make(model, images())) == {}


def test_statistics_that_say_nothing_rotate_nothing(network: nn.Module, known: Statistics) -> None:
    silent = replace(known, effects={name: torch.zeros_like(one) for name, one in known.effects.items()})
    for aim in ("prune", "round"):
        assert rotations_for(network, SHAPE, aim, silent) == {}
        assert rotations_for(network, SHAPE, aim, Statistics({}, {}, frozenset())) == {}


def test_rotations_are_found_once_and_read_back(
    home: Path, network: nn.Module, known: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rotations_of(network, images(), "prune", known)
    assert len(found) == 1
    monkeypatch.setattr(cache, "rotations_for", lambda *_: pytest.fail("they were found again"))
    again = rotations_of(network, images(), "prune", known)
    assert [*again] == [*found]
    assert all(torch.equal(again[group], one) for group, one in found.items())


COMPENSATED = PruneSpec("compensated", 0.5, allocation="measured")
ROUNDED = QuantizeSpec("compensated", 4, symmetric=False, range="mse")


@pytest.mark.parametrize(
    ("recipe", "aim"),
    [
        (Recipe(COMPENSATED), "prune"),
        (Recipe(PruneSpec("compensated", pattern="2:4")), "prune"),
        (Recipe(COMPENSATED, ROUNDED), "both"),
        (Recipe(COMPENSATED, replace(ROUNDED, weight_bits=8)), "prune"),
        (Recipe(quantize=ROUNDED), "round"),
        (Recipe(quantize=replace(ROUNDED, weight_bits=32, average_bits=4)), "round"),
        (
            Recipe(quantize=QuantizeSpec("compensated"), layers=(Override("head.weight", weight_bits=3),)),
            "round",
        ),
        (Recipe(), None),
        (Recipe(quantize=QuantizeSpec("compensated", 5)), None),
        (Recipe(quantize=QuantizeSpec("nearest", 4)), None),
        (Recipe(PruneSpec(sparsity=0.5)), None),
        (Recipe(PruneSpec(sparsity=0.5), ROUNDED), None),
        (Recipe(PruneSpec("compensated", threshold=0.01)), None),
        (Recipe(PruneSpec("compensated", 0.5)), None),
        (Recipe(PruneSpec("channels", 0.2, allocation="measured"), ROUNDED), None),
    ],
)
def test_what_is_rotated_for(recipe: Recipe, aim: rotation.Aim | None) -> None:
    """Where images decide what goes and how it is rounded, and nothing looks at magnitudes."""
    assert recipe.rotates_to == aim


def test_layers_that_are_looked_at_as_they_stand_stay() -> None:
    by_magnitude = Override("a.weight", pruning="magnitude")
    nearest, wider = Override("b.weight", rounding="nearest"), Override("c.weight", weight_bits=8)
    recipe = Recipe(COMPENSATED, ROUNDED, layers=(by_magnitude, nearest, wider))
    assert (recipe.rotates_to, recipe.unrotated) == ("both", {"a.weight", "b.weight"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipes", "at_most"),
    [
        ("fashion-mobilenet", [Recipe(replace(COMPENSATED, sparsity=0.7))], 0.25),
        ("fashion-mobilenet", [Recipe(PruneSpec("compensated", pattern="2:4"))], 0.75),
        (
            "fashion-mobilenet",
            [
                Recipe(quantize=replace(ROUNDED, weight_bits=3, symmetric=symmetric, range=range_))
                for symmetric in (False, True)
                for range_ in ("mse", "absmax")
            ],
            1,
        ),
        ("fashion-vit", [Recipe(replace(COMPENSATED, sparsity=0.7))], 0.35),
        ("fashion-vit", [Recipe(replace(COMPENSATED, pattern="4x4"))], 0.4),
        ("fashion-vit", [Recipe(PruneSpec("compensated", pattern="2:4"))], 0.75),
        ("fashion-vit", [Recipe(quantize=replace(ROUNDED, weight_bits=bits)) for bits in (3, 4)], 0.95),
    ],
)
def test_bundled_networks_with_streams_keep_more(name: str, recipes: list[Recipe], at_most: float) -> None:
    """Divergence of the outputs on images that nothing was taken from; of rounding, which comes out a tenth
    better or worse by chance, summed over grids."""
    workspace = open_workspace(name, DataSpec())
    model, unseen = workspace.model, workspace.images.evaluation.images[:1000]
    before, after, expected = 0.0, 0.0, run(model.module, unseen)
    for recipe in recipes:
        as_it_stands = compress(model.module, recipe, model.published, workspace.statistics()).module
        made = compressed_model(workspace, recipe)
        before += divergence_from(expected, as_it_stands, unseen)
        after += divergence_from(expected, made.module, unseen)
        assert any("rotated" in note for note in made.notes)
    assert after < at_most * before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion-mobilenet", "fashion-vit"])
def test_what_is_built_and_saved_is_the_rotated_network(name: str) -> None:
    fashion = open_workspace(name, DataSpec())
    recipe, some = Recipe(COMPENSATED), fashion.images.evaluation.images[:64]
    made = compressed_model(fashion, recipe)
    built = build_of(fashion, recipe, "openvino")(made, some, threads=1, batch=1)
    with torch.inference_mode():
        expected = made.module(some)
        assert torch.allclose(network_of(fashion, recipe)(some), fashion.model.module(some), atol=1e-4)
    assert torch.allclose(torch.from_numpy(built.score(some.numpy())), expected, atol=1e-3)
    gone = [(layer.weight == 0).flatten() for layer in walk(made.module)]
    assert torch.cat(gone).float().mean() == pytest.approx(0.5, abs=1e-3)
