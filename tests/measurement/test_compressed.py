"""What is counted of a recipe's weights."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.compression.calibration.cache import statistics_of
from optimizer.compression.calibration.statistics import Statistics
from optimizer.data.memory import for_calibration
from optimizer.measurement import compressed
from optimizer.measurement.compressed import (
    compressed_model,
    inspection_of,
    notes_on_calibration,
    notes_on_channels,
    notes_on_ties,
    notes_on_unread,
)
from optimizer.measurement.workspace import Workspace, open_model
from optimizer.model.catalogue import LoadedModel
from optimizer.model.own import own_model
from optimizer.progress import quiet
from optimizer.recipe import Override, PruneSpec, QuantizeSpec, Recipe


def recipe(bits: int) -> Recipe:
    return Recipe.of(sparsity=0.3, weight_bits=bits, pruning="magnitude", rounding="nearest")


@pytest.mark.parametrize("bits", [32, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_what_pruning_took_is_counted_apart_from_what_was_rounded_to_zero(
    resnet: LoadedModel, tied: bool, bits: int
) -> None:
    module = copy.deepcopy(resnet.module)
    if tied:
        for parameter in module.parameters():  # on a grid already
            step = parameter.detach().abs().max() / 7
            parameter.data = step * (parameter.detach() / step).round()
    workspace = Workspace(open_model(replace(resnet, module=module)))
    made = compressed_model(workspace, recipe(bits))
    found = inspection_of(workspace.model, made)
    removed = sum(int((~one.mask).sum()) for one in made.weights.values())
    assert found.pruned_percent == pytest.approx(100 * removed / found.size.elements)
    notes = notes_on_ties(recipe(bits), found)
    if not tied:
        assert found.pruned_percent == pytest.approx(30, abs=0.001)
        assert not notes
    else:
        assert found.pruned_percent > 30.1
        assert notes[0].startswith(f"{found.pruned_percent:.3g} % of the weights were pruned, not 30 %")


def test_whole_weights_of_small_layers_are_no_ties() -> None:
    workspace = Workspace(open_model(own_model(nn.Sequential(nn.Flatten(), nn.Linear(3, 1)), (3, 1, 1))))
    uniform = Recipe(PruneSpec(sparsity=0.5, allocation="uniform"))
    found = inspection_of(workspace.model, compressed_model(workspace, uniform))
    assert found.pruned_percent == pytest.approx(200 / 3)
    assert not notes_on_ties(uniform, found)


def test_each_layer_may_round_its_share_by_half_a_weight() -> None:
    """Two of three weights go of each of six layers."""
    layers = [one for _ in range(3) for one in (nn.Linear(3, 1), nn.Linear(1, 3, bias=False))]
    module = nn.Sequential(nn.Flatten(), *layers)
    workspace = Workspace(open_model(own_model(module, (3, 1, 1))))
    uniform = Recipe(PruneSpec(sparsity=0.5, allocation="uniform"))
    found = inspection_of(workspace.model, compressed_model(workspace, uniform))
    assert found.pruned_percent == pytest.approx(200 / 3)
    assert not notes_on_ties(uniform, found)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Recipe(PruneSpec(sparsity=0.5)), True),
        (Recipe(PruneSpec(sparsity=0.5), layers=(Override("1.weight", sparsity=0.9),)), False),
        (Recipe(PruneSpec(sparsity=0.5, pattern="2:4")), False),
        (Recipe(PruneSpec("channels", sparsity=0.5)), False),
        (Recipe(PruneSpec(threshold=0.5)), False),
    ],
)
def test_only_where_a_share_of_all_weights_was_asked_for_more_are_ties(asked: Recipe, told: bool) -> None:
    workspace = Workspace(open_model(own_model(nn.Sequential(nn.Flatten(), nn.Linear(300, 1)), (3, 10, 10))))
    found = inspection_of(workspace.model, compressed_model(workspace, Recipe(PruneSpec(sparsity=0.7))))
    assert found.pruned_percent == pytest.approx(70)
    assert bool(notes_on_ties(asked, found)) == told


def test_what_a_gain_of_zero_leaves_was_not_pruned_of_a_network_whose_outputs_were_matched() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    nn.init.zeros_(norm.weight[:4])
    module = nn.Sequential(nn.Conv2d(1, 8, 5), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 4))
    images = for_calibration(torch.randn(24, 1, 6, 6))
    workspace = Workspace(open_model(own_model(module, (1, 6, 6))), given=images)
    asked = Recipe(PruneSpec(sparsity=0.25, allocation="uniform", match=True))
    found = inspection_of(workspace.model, compressed_model(workspace, asked))
    assert found.pruned_percent == pytest.approx(25)
    assert found.size.nonzero < 0.75 * found.size.elements
    assert not notes_on_ties(asked, found)


class FewCanGo(nn.Module):
    """A small branch beside a layer whose channels are the outputs."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.first, self.second, self.wide = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(1, 4, side)

    def forward(self, x: Tensor) -> Tensor:
        kept: Tensor = self.second(torch.relu(self.first(x))).mean((2, 3)) + self.wide(x).mean((2, 3))
        return kept


@pytest.mark.parametrize(("side", "told"), [(9, True), (1, False)])
def test_it_is_told_where_the_channels_that_can_go_are_a_small_part(side: int, told: bool) -> None:
    torch.manual_seed(0)
    images = for_calibration(torch.randn(24, 1, 12, 12))
    workspace = Workspace(open_model(own_model(FewCanGo(side), (1, 12, 12))), given=images)
    made = compressed_model(workspace, Recipe(PruneSpec("channels", sparsity=0.5, allocation="uniform")))
    notes = notes_on_channels(workspace.model, made, inspection_of(workspace.model, made))
    words = "50 % of the channels that can go is 2.9 % of layer weights: 1 of 3 layers gave up channels"
    assert notes == ((words,) if told else ())


@pytest.mark.parametrize(("rounding", "calls"), [("compensated", 1), ("nearest", 0)])
def test_what_lost_channels_is_rounded_by_what_its_own_layers_see(
    rounding: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[nn.Module] = []

    def noted(network: nn.Module, *others: Any) -> Statistics:
        seen.append(network)
        return statistics_of(network, *others)

    monkeypatch.setattr(compressed, "statistics_of", noted)
    torch.manual_seed(0)
    images = for_calibration(torch.randn(24, 1, 12, 12))
    workspace = Workspace(open_model(own_model(FewCanGo(1), (1, 12, 12))), given=images)
    channels, rounded = PruneSpec("channels", sparsity=0.5, allocation="uniform"), QuantizeSpec(rounding, 3)
    made = compressed_model(workspace, Recipe(channels, rounded))
    small = [one for one in seen if one.get_parameter("first.weight").shape[0] == 2]
    assert len(small) == calls
    statistics = statistics_of(small[0], workspace.statistics_images, quiet) if small else None
    network = compressed_model(workspace, Recipe(channels)).module
    alone = compress(network, Recipe(quantize=rounded), statistics=statistics)
    for name, weight in made.weights.items():
        assert torch.equal(weight.values, alone.weights[name].values)


@pytest.mark.parametrize(("percent", "told"), [(56, True), (40, False)])
def test_it_is_told_where_channels_that_went_have_far_more_of_the_weights(percent: int, told: bool) -> None:
    """A fifth of what each layer reads and gives is 36 % of its weights."""
    torch.manual_seed(0)
    images = for_calibration(torch.randn(24, 1, 12, 12))
    workspace = Workspace(open_model(own_model(FewCanGo(1), (1, 12, 12))), given=images)
    made = compressed_model(workspace, Recipe(PruneSpec("channels", sparsity=0.2, allocation="uniform")))
    found = inspection_of(workspace.model, made)
    layers = tuple(replace(one, elements=100, pruned=percent) for one in found.layers)
    notes = notes_on_channels(workspace.model, made, replace(found, layers=layers))
    words = (
        "20 % of the channels that can go is 56 % of layer weights: "
        "those that went have many weights for their multiply-accumulates"
    )
    assert notes == ((words,) if told else ())


@pytest.mark.parametrize(
    ("images", "recipe", "told"),
    [
        (8, Recipe.of(sparsity=0.5), True),
        (8, Recipe.of(weight_bits=8, activation_bits=8, rounding="nearest"), True),
        (8, Recipe.of(sparsity=0.5, pruning="magnitude"), False),
        (32, Recipe.of(sparsity=0.5), False),
    ],
)
def test_it_is_told_where_a_recipe_rests_on_few_images(images: int, recipe: Recipe, told: bool) -> None:
    notes = notes_on_calibration(torch.arange(images), recipe)
    assert bool(notes) is told
    assert not told or notes[0].startswith("only 8 calibration images:")


def test_it_is_told_where_all_calibration_images_are_the_same() -> None:
    (note,) = notes_on_calibration(torch.zeros(300, 1, 2, 2), Recipe.of(sparsity=0.5))
    assert note.startswith("only 1 calibration image (all 300 are the same): ")


class OwnProducts(nn.Module):
    """Its code multiplies with the weights of its layers: of the first, or of both."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.first, self.second, self.both = nn.Linear(16, 8), nn.Linear(8, 4), both

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x @ self.first.weight.T).relu()
        return hidden @ self.second.weight.T if self.both else self.second(hidden)


@pytest.mark.parametrize("both", [False, True])
def test_layers_that_calibration_images_tell_nothing_of_are_told_and_go_by_magnitude(both: bool) -> None:
    torch.manual_seed(0)
    images, asked = for_calibration(torch.randn(64, 16)), Recipe.of(sparsity=0.5)
    workspace = Workspace(open_model(own_model(OwnProducts(both), (16,))), given=images)
    (note,) = notes_on_unread(workspace, asked)
    named = "first.weight, second.weight" if both else "first.weight"
    assert note.startswith(f"calibration images tell nothing of {named}, which magnitude prunes")
    assert notes_on_unread(workspace, Recipe.of(sparsity=0.5, pruning="magnitude")) == ()
    weights = compressed_model(workspace, asked.canonical()).weights
    smallest_kept = workspace.model.published["first.weight"][weights["first.weight"].mask].abs().min()
    assert (workspace.model.published["first.weight"].abs() >= smallest_kept).equal(
        weights["first.weight"].mask
    )
    zeros = sum(int((~one.mask).sum()) for one in weights.values())
    assert zeros == (16 * 8 + 8 * 4) // 2


def test_a_model_says_once_what_no_recipe_changes() -> None:
    """80 % of layer weights pruned is less of all, where many are elsewhere."""
    model = nn.Sequential(nn.ConvTranspose2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 1))
    assert open_model(own_model(model, (1, 2, 2))).notes == (
        "38 % of this model's weights are in layers that no recipe prunes or rounds: 0 (ConvTranspose2d)",
    )
