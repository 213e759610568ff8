"""Statistics say what matters to the outputs, whatever a network does with its layers."""

import copy
from contextlib import nullcontext

import pytest
import torch
from small_models import Indexed, Small, assert_same_statistics, half_never_on
from torch import Tensor, nn
from torch.nn import functional

from optimizer.compression.apply import compress
from optimizer.compression.asymmetric import refined
from optimizer.compression.calibration import making
from optimizer.compression.calibration.making import make
from optimizer.compression.calibration.sensitivity import Trial, divergences
from optimizer.compression.divergence import NO_CLASSIFIER
from optimizer.compression.prune.channels import shrink
from optimizer.compression.prune.compensated import prune
from optimizer.compression.prune.matching import matched
from optimizer.compression.prune.plan import plan
from optimizer.engine import engine_named
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.recipe import PruneSpec, Recipe


@pytest.fixture
def model(small: Small) -> nn.Module:
    return fold_batch_norm(small("cnn"))[0]


def test_every_layer_that_matters_has_an_effect(model: nn.Module, small_images: Tensor) -> None:
    made = make(model, small_images)
    assert made.biased == {"stem.0.weight", "depthwise.0.weight", "project.0.weight", "head.weight"}
    for name in made.moments:
        assert (made.effects[name] > 0).all(), name


class SharedBias(nn.Module):
    """Two convolutions of one bias, whose errors it can't both make up for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)
        self.b.bias = self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu().mean((2, 3)))


class PartOfBias(nn.Module):
    """Leaves out a part of its first layer's bias in each forward, as Swin V2's attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.first.bias.clone()
        bias[8:16].zero_()
        return self.head(functional.linear(x.flatten(1), self.first.weight, bias).relu())


def test_a_bias_that_the_forward_changes_takes_up_nothing_on_any_engine(small_images: Tensor) -> None:
    torch.manual_seed(5)
    model = PartOfBias().eval().requires_grad_(False)
    statistics = make(model, small_images)
    assert statistics.biased == {"head.weight"}
    compressed = compress(model, Recipe.of(sparsity=0.5), statistics=statistics)
    build = engine_named("openvino").prepare(model, tuple(small_images.shape[1:]))
    found = build(compressed, small_images, threads=1, batch=1).score(small_images.numpy())
    torch.testing.assert_close(torch.from_numpy(found), compressed.module(small_images))


def test_best_effort_leaves_a_bias_that_the_forward_changes(small_images: Tensor) -> None:
    torch.manual_seed(5)
    model = PartOfBias().eval().requires_grad_(False)
    pruned = compress(model, Recipe.of(sparsity=0.5), statistics=make(model, small_images))
    masks = {name: one.mask for name, one in pruned.weights.items()}
    made = refined(pruned.module, model, masks, {}, small_images, lambda done, count: True)
    assert torch.equal(made.first.bias, model.first.bias)
    assert not torch.equal(made.head.bias, pruned.module.head.bias)


def test_a_bias_that_layers_share_takes_up_nothing(small_images: Tensor) -> None:
    torch.manual_seed(5)
    model, images = SharedBias().eval().requires_grad_(False), small_images + 1
    statistics = make(model, images)
    assert statistics.biased == {"head.weight"}
    wanted = model(images)
    for recipe in (Recipe.of(sparsity=0.4), Recipe.of(weight_bits=3)):
        made = compress(model, recipe, statistics=statistics).module
        assert made.b.bias is made.a.bias
        assert torch.equal(made.b.bias, model.b.bias)
        assert (made(images) - wanted).norm() < 0.05 * wanted.norm()


def test_what_changes_the_bias_of_one_layer_leaves_those_that_share_it(small_images: Tensor) -> None:
    torch.manual_seed(5)
    model, images = SharedBias().eval().requires_grad_(False), small_images + 1
    pruned = copy.deepcopy(model)
    for layer in (pruned.a, pruned.b, pruned.head):
        layer.weight.mul_(layer.weight.abs() > layer.weight.abs().median())
    masks = {f"{name}.weight": getattr(pruned, name).weight != 0 for name in ("a", "b", "head")}
    refitted = refined(pruned, model, masks, {}, images, lambda done, count: True)
    better = matched(model, pruned, images)
    assert better is not None
    for made in (refitted, better):
        assert torch.equal(made.b.bias, model.b.bias)
        assert not torch.equal(made.head.bias, model.head.bias)
    smaller = shrink(plan(model, images), 0.4).module
    model.b.bias = nn.Parameter(model.b.bias.clone(), requires_grad=False)
    assert torch.equal(smaller(images), shrink(plan(model, images), 0.4).module(images))


def test_progress_is_reported(model: nn.Module, small_images: Tensor) -> None:
    told, shares = list[str](), list[float | None]()
    make(model, small_images, report=lambda share, words: (told.append(words), shares.append(share)))
    steps = [words.split(":")[0] for words in told]
    last = shares[shares.index(None) + 1 :]
    assert len({*last}) > len({*told[-len(last) :]}), "each layer counts, where one image takes minutes"
    assert [one for one, before in zip(steps, ["", *steps], strict=False) if one != before] == [
        "reading layer inputs",
        "measuring sensitivities",
        "pruning each layer on trial",  # else a large network seems to stand still
        "measuring sensitivities",
    ]


@pytest.mark.parametrize("images", [torch.zeros(4, 1, 8, 8), torch.ones(1, 1, 8, 8)])
def test_constant_images_and_a_single_one_are_survived(model: nn.Module, images: Tensor) -> None:
    made = make(model, images)
    assert all(torch.isfinite(one.covariance).all() for one in made.moments.values())
    assert all((effects >= 0).all() and effects.isfinite().all() for effects in made.effects.values())


@pytest.mark.parametrize("count", [1, 2])
def test_the_classifier_is_not_wiped_where_few_images_say_that_its_inputs_never_change(
    model: nn.Module, small_images: Tensor, count: int
) -> None:
    made = make(model, small_images[:count])
    assert (made.effects["head.weight"] > 0).all()
    weights = {layer.name: layer.weight.detach() for layer in walk(model)}
    pruned = prune(weights, weights, PruneSpec("compensated", 0.3, allocation="measured"), made)
    assert pruned["head.weight"].mask.float().mean() > 0.5


def test_few_images_that_no_layer_seems_to_matter_to_correct_what_is_expected_by_little(
    model: nn.Module, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 images two are held out; networks are sure of the class of most."""
    monkeypatch.setattr(
        making, "divergences", lambda model, images, trials, report: dict.fromkeys(trials, 0.0)
    )
    corrected = make(model, small_images[:16]).effects
    monkeypatch.setattr(making, "divergences", lambda *_: {})
    expected = make(model, small_images[:16]).effects
    assert any(not torch.equal(one, expected[name]) for name, one in corrected.items())
    assert all((one >= 0.49 * expected[name]).all() for name, one in corrected.items())


def test_copies_of_an_image_tell_what_it_tells(model: nn.Module, small_images: Tensor) -> None:
    one = small_images[:1]
    assert_same_statistics(make(model, one.repeat(24, 1, 1, 1)), make(model, one))


class Probe(nn.Module):
    """A linear head on what a backbone gives, in a ``way`` that gradients don't pass; a layer of its own is
    for nothing."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        self.way = way
        self.backbone = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.unread = nn.Linear(8, 3)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        contexts = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
        with contexts.get(self.way, nullcontext)():
            x = self.backbone(x).mean((2, 3))
        self.unread(x)
        answers: Tensor = self.head(x.detach() if self.way == "detached" else x)
        return answers.detach() if self.way == "nowhere" else answers


def probe(way: str = "") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Probe(way).eval()


def test_what_a_model_runs_without_gradients_has_the_same_effects(small_images: Tensor) -> None:
    made = make(probe("no_grad"), small_images)
    assert_same_statistics(made, make(probe(), small_images))
    assert not made.effects["unread.weight"].any()


@pytest.mark.parametrize("way", ["detached", "inference"])
def test_layers_that_no_gradient_reaches_are_measured(small_images: Tensor, way: str) -> None:
    made = make(probe(way), small_images)
    for name in ("backbone.0.weight", "backbone.2.weight"):
        assert (made.effects[name] > 0).all()
    assert not made.effects["unread.weight"].any()


def test_a_model_that_has_no_gradients_at_all_is_measured_whole(small_images: Tensor) -> None:
    made = make(probe("nowhere"), small_images)
    assert all(effects.all() for name, effects in made.effects.items() if name != "unread.weight")


def test_parameters_may_be_whole_numbers(small_images: Tensor) -> None:
    made = make(Indexed().eval(), small_images)
    assert all((effects > 0).all() for effects in made.effects.values())


class Branched(nn.Module):
    """Adds what a second layer makes of a first one that gives the same for every image."""

    def __init__(self, zeros: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.constant = nn.Conv2d(8, 8, 3, padding=1)
        self.after = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 10)
        self.vector = nn.Parameter(torch.randn(8, 1, 1))
        self.zeros = zeros
        if zeros:
            nn.init.zeros_(self.constant.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        same = torch.relu(self.constant(x)) if self.zeros else self.vector.expand_as(x)
        answers: Tensor = self.head(torch.relu(x + self.after(same)).mean((2, 3)))
        return answers


@pytest.mark.parametrize("zeros", [True, False])
def test_a_layer_that_sees_a_constant_is_free_and_the_others_are_measured(
    small_images: Tensor, zeros: bool
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = make(Branched(zeros).eval(), small_images)
    assert made.effects["after.weight"].max() < 1e-6 < made.effects["stem.weight"].min()
    assert all(effects.isfinite().all() for effects in made.effects.values())


def test_channels_that_are_never_on_hide_no_layer_that_matters(
    small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the made-up inputs of theirs that make a matrix one that can be inverted, the layer that reads them
    would matter so much more than all others that those were not measured."""
    measured: list[str] = []

    def spied(model: nn.Module, images: Tensor, trials: dict[str, Trial], report: object) -> dict[str, float]:
        measured.extend(trials)
        return divergences(model, images, trials)

    monkeypatch.setattr(making, "divergences", spied)
    make(half_never_on(), small_images)
    assert "5.weight" in measured


def test_which_layers_give_logits(small: Small, model: nn.Module) -> None:
    """Also through views; not where something is worked out of them, nor of what is no classifier."""

    def found(module: nn.Module, shape: tuple[int, ...] = (1, 1, 8, 8)) -> set[str]:
        return {*making.logits_of(module.eval(), torch.randn(shape))}

    assert found(model) == {"head.weight"}
    assert found(small("encoder")) == {"head.weight"}
    one_by_one = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Conv2d(4, 3, 1), nn.Flatten(), nn.Dropout())
    assert found(one_by_one) == {"1.weight"}
    assert not found(nn.Sequential(*one_by_one, nn.Softmax(1)))
    assert not found(one_by_one[:2])
    setattr(one_by_one, NO_CLASSIFIER, True)
    assert not found(one_by_one)
