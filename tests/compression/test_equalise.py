"""Equalised networks compute the same, have even ranges, and round better where ranges were uneven."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from by_request import measure, open_model
from small_models import Small, Standardised
from torch import Tensor, nn

from optimizer.compression.apply import compress, compress_weights
from optimizer.compression.prune.pruned import Pruned
from optimizer.compression.quantize.equalise import equalised, pairs
from optimizer.measurement.compressed import NOTHING_TO_EQUALISE, notes_on_equalisation
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.recipe import Override, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec, Request, Settings

FOUR = QuantizeSpec(weight_bits=4, granularity="tensor")


EIGHT = replace(FOUR, weight_bits=8)


class Chain(nn.Module):
    """Convolution, depthwise convolution, convolution, and a linear layer behind a flattening or a mean."""

    def __init__(self, activation: Callable[[Tensor], Tensor], flatten: bool = True) -> None:
        super().__init__()
        self.activation, self.flatten = activation, flatten
        self.expand = nn.Conv2d(2, 6, 1)
        self.depthwise = nn.Conv2d(6, 12, 3, 2, 1, groups=6)
        self.project = nn.Conv2d(12, 4, 3, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(4 * 9 if flatten else 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.expand(x))
        x = self.activation(self.depthwise(x))
        x = self.pool(self.activation(self.project(x)))
        return self.head(x.flatten(1) if self.flatten else x.mean((2, 3)))


def uneven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Channels whose ranges differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    for layer in walk(model):
        shape = (-1, *(1,) * (layer.weight.dim() - 1))
        spread = torch.exp(2 * torch.randn(len(layer.weight), generator=generator)).reshape(shape)
        layer.weight.data.mul_(spread)
        layer.weight.requires_grad_(False)
        if layer.bias is not None:
            layer.bias.requires_grad_(False)
    return model.eval()


def whole(model: nn.Module) -> dict[str, Pruned]:
    return {
        layer.name: Pruned(layer.weight.detach(), torch.ones_like(layer.weight, dtype=torch.bool))
        for layer in walk(model)
    }


def with_weights(model: nn.Module, made: dict[str, Pruned]) -> nn.Module:
    for layer in walk(model):
        layer.weight.data = made[layer.name].weight
        change = made[layer.name].bias_change
        if layer.bias is not None and change is not None:
            layer.bias.data = layer.bias.data + change
    return model


def named(model: nn.Module) -> list[tuple[str, str]]:
    return [(pair.first.module_name, pair.second.module_name) for pair in pairs(model)]


CHAIN = [("expand", "depthwise"), ("depthwise", "project"), ("project", "head")]


@pytest.mark.parametrize("activation", [torch.relu, nn.functional.leaky_relu, nn.Identity()])
@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_network_computes_the_same(
    activation: Callable[[Tensor], Tensor], flatten: bool, seed: int
) -> None:
    model = uneven(Chain(activation, flatten), seed)
    images = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(seed))
    assert named(model) == CHAIN
    before = model(images)
    after = with_weights(model, equalised(pairs(model), whole(model)))(images)
    assert (after - before).norm() < 1e-4 * before.norm()


def test_ranges_of_a_channel_are_the_same_in_both_layers() -> None:
    model = uneven(Chain(torch.relu))
    made = {name: one.weight for name, one in equalised(pairs(model), whole(model)).items()}
    out = {name: weight.flatten(1).abs().amax(1) for name, weight in made.items()}
    depthwise = out["depthwise.weight"].reshape(6, 2).amax(1)
    project = made["project.weight"].abs().amax((0, 2, 3))
    head = made["head.weight"].reshape(5, 4, 9).abs().amax((0, 2))
    pair_of = [
        (out["expand.weight"], depthwise),
        (out["depthwise.weight"], project),
        (out["project.weight"], head),
    ]
    for made_by, read_by in pair_of:
        torch.testing.assert_close(made_by, read_by, rtol=0.05, atol=0)


def test_no_clip_curve_or_sum_may_stand_between(small: Small) -> None:
    assert named(Chain(nn.functional.relu6).eval()) == []
    assert named(Chain(nn.functional.gelu).eval()) == []
    folded, _ = fold_batch_norm(small("cnn"))
    assert named(folded) == [("depthwise.0", "project.0")], (
        "what a sum adds up, and the stem it also reads, stay"
    )
    assert named(small("shared")) == named(small("tied")) == [], "layers that are used twice"
    assert named(small("encoder")) == []


class Padded(nn.Conv2d):
    """As libraries do it: it pads by itself, and else is a convolution."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(nn.functional.pad(input, (1, 0, 1, 0)), self.weight, self.bias)


class Adapted(nn.Conv2d):
    """It adds to what it gives."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("kind", "scales"), [(nn.Conv2d, True), (Padded, True), (Standardised, False), (Adapted, False)]
)
def test_a_convolution_of_a_library_must_keep_to_scale(kind: type[nn.Conv2d], scales: bool) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), kind(8, 16, 1, groups=8), nn.ReLU(), kind(16, 5, 1))
    assert named(plain) == ([("0", "2"), ("2", "4")] if scales else [])


class ReadTwice(nn.Module):
    """Three linear layers, of which something else reads the second's weight, or its data type."""

    def __init__(self, read: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.read = read
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.embedding = nn.Embedding(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self, self.c(self.b(self.a(x).relu()).relu()))


READS = {
    "not": lambda model, x: x,
    "type": lambda model, x: x.to(model.b.weight.dtype) + model.b.weight.shape[0],
    "transposed": lambda model, x: nn.functional.linear(x, model.b.weight.t()),
    "penalty": lambda model, x: x * model.b.weight.square().mean(),
    "bias": lambda model, x: x + model.b.bias,
}


@pytest.mark.parametrize("read", READS)
def test_what_is_read_elsewhere_keeps_its_scale(read: str) -> None:
    """A layer's bias only changes with its rows: it may be read where its columns are scaled."""
    model = uneven(ReadTwice(READS[read]))
    before = [("a", "b"), ("b", "c")]
    assert named(model) == {"not": before, "type": before, "bias": before[:1]}.get(read, [])
    images = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    wanted = model(images)
    torch.testing.assert_close(with_weights(model, equalised(pairs(model), whole(model)))(images), wanted)


def test_what_modules_share_keeps_its_scale() -> None:
    model = ReadTwice(READS["not"])
    model.embedding.weight = model.b.weight
    assert named(model) == []
    model = ReadTwice(READS["not"])
    model.c.bias = model.a.bias
    assert named(model) == [("b", "c")]


def test_the_bundled_networks() -> None:
    counts = {
        name: len(pairs(open_model(name).module))
        for name in ("fashion-mlp", "fashion-resnet", "fashion-mobilenet", "fashion-vit")
    }
    assert counts == {"fashion-mlp": 2, "fashion-resnet": 4, "fashion-mobilenet": 0, "fashion-vit": 0}


def test_channels_without_a_weight_stay_as_they_are() -> None:
    model = uneven(Chain(torch.relu))
    model.expand.weight.data[0] = 0
    model.project.weight.data[:, 3] = 0
    images = torch.randn(3, 2, 16, 16)
    before = model(images)
    made = equalised(pairs(model), whole(model))
    assert all(one.weight.isfinite().all() for one in made.values())
    after = with_weights(model, made)(images)
    assert (after - before).norm() < 1e-4 * before.norm()


def test_a_network_that_was_made_uneven_rounds_as_well_as_before() -> None:
    """The same function with its channels out of scale, as training leaves them (section 3 of the paper)."""
    images = torch.randn(8, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    even = Chain(torch.relu).requires_grad_(False)
    wanted = even(images)
    made = copy.deepcopy(even)
    scale = torch.tensor([100.0, 10, 1, 1, 0.1, 0.01])
    made.expand.weight.mul_(scale[:, None, None, None])
    made.expand.bias.mul_(scale)
    made.depthwise.weight.div_(scale.repeat_interleave(2)[:, None, None, None])
    torch.testing.assert_close(made(images), wanted, rtol=1e-3, atol=1e-4)

    def error(model: nn.Module, equalise: bool) -> float:
        recipe = Recipe(quantize=replace(EIGHT, equalise=equalise))
        return (compress(model, recipe).module(images) - wanted).norm().item()

    assert error(made, True) < 0.1 * error(made, False)
    assert error(made, True) == pytest.approx(error(even, True), rel=0.2)


def test_pruned_weights_stay_zero_and_masks_the_same() -> None:
    model = uneven(Chain(torch.relu))
    recipe = Recipe(PruneSpec(sparsity=0.5), replace(FOUR, equalise=True))
    plain, made = (compress_weights(model, one) for one in (Recipe(recipe.prune), recipe))
    for name, weight in made.items():
        assert torch.equal(weight.mask, plain[name].mask)
        assert (weight.values[~weight.mask] == 0).all()
        assert weight.threshold == plain[name].threshold


def test_layers_that_are_rounded_otherwise_are_not_touched() -> None:
    model = uneven(Chain(torch.relu))
    spec = replace(FOUR, equalise=True)
    apart = (Override("depthwise.weight", weight_bits=32),)
    made = compress_weights(model, Recipe(quantize=spec, layers=apart))
    assert torch.equal(made["depthwise.weight"].values, model.depthwise.weight)
    plain = compress_weights(model, Recipe(quantize=FOUR, layers=apart))
    assert torch.equal(made["expand.weight"].values, plain["expand.weight"].values)
    assert not torch.equal(made["project.weight"].values, plain["project.weight"].values)


def test_it_is_of_rounding_to_nearest_only() -> None:
    assert not QuantizeSpec("compensated", 4, equalise=True).equalises
    assert not Recipe(quantize=QuantizeSpec("compensated", 4, equalise=True)).canonical().quantize.equalise
    assert not Recipe(quantize=QuantizeSpec(weight_bits=16, equalise=True)).canonical().quantize.equalise
    made = Recipe(quantize=replace(FOUR, equalise=True))
    assert made.canonical() == made
    assert "equalised" in made.describe()


EQUALISED = Recipe(quantize=replace(FOUR, equalise=True))


@pytest.mark.slow
def test_nothing_to_equalise_is_said() -> None:
    request = Request("fashion-mobilenet", EQUALISED, data=DataSpec(limit=50), settings=Settings(threads=1))
    assert NOTHING_TO_EQUALISE in measure(request).notes


def test_nothing_is_said_where_something_is_equalised_or_nothing_is_asked_for() -> None:
    model = uneven(Chain(torch.relu))
    assert notes_on_equalisation(model, EQUALISED) == notes_on_equalisation(model, Recipe()) == ()
