from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pairs import sample
from small_models import SMALL_MODELS, Small, untouched
from torch import Tensor, nn

from optimizer.compression.apply import compress, compress_weights
from optimizer.errors import InputError
from optimizer.model.layers import walk
from optimizer.recipe import (
    GRANULARITIES,
    NORMAL,
    RANGES,
    WEIGHT_BITS,
    Override,
    PruneSpec,
    QuantizeSpec,
    Recipe,
)

SPARSE_AND_ROUNDED = [
    Recipe(
        PruneSpec(sparsity=0.6),
        QuantizeSpec(weight_bits=bits, symmetric=symmetric, granularity=granularity, range=range_),
    )
    for bits, symmetric, granularity, range_ in sample(WEIGHT_BITS, (True, False), GRANULARITIES, RANGES)
]
RECIPES = [
    Recipe(),
    Recipe(PruneSpec(sparsity=0.5, allocation="uniform")),
    Recipe(PruneSpec(threshold=0.1)),
    Recipe(quantize=QuantizeSpec(weight_bits=16)),
    Recipe(PruneSpec(sparsity=0.7), QuantizeSpec(weight_bits=3, symmetric=False, range="mse")),
    Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8)),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=Recipe.describe)
def test_the_original_is_left_as_it_was(small: Small, recipe: Recipe) -> None:
    model = small("cnn")
    model.stem.train()
    model.head.weight.requires_grad_(False)
    model.stem[0].register_forward_hook(lambda *_: None)
    with untouched(model), torch.no_grad():
        for tensor in compress(model, recipe).module.state_dict().values():
            tensor.fill_(9)


def test_the_copy_is_in_evaluation_mode(small: Small) -> None:
    assert not any(module.training for module in compress(small("cnn").train(), Recipe()).module.modules())


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_the_identity_recipe_changes_no_weight_and_no_output(
    small: Small, small_images: Tensor, name: str
) -> None:
    model = small(name)
    compressed = compress(model, Recipe())
    for layer in walk(model):
        weight = compressed.weights[layer.name]
        assert torch.equal(weight.values, layer.weight)
        assert weight.mask.all()
        assert weight.codes is None
        assert weight.threshold == -1
    with torch.inference_mode():
        assert torch.equal(compressed.module(small_images), model(small_images))


@pytest.mark.parametrize("name", SMALL_MODELS)
@pytest.mark.parametrize("recipe", RECIPES, ids=Recipe.describe)
def test_the_module_holds_the_weights_and_keeps_all_else(small: Small, name: str, recipe: Recipe) -> None:
    model = small(name)
    compressed = compress(model, recipe)
    layers = {layer.name for layer in walk(model)}
    assert compressed.weights.keys() == layers
    assert compressed.recipe == recipe
    for layer in walk(compressed.module):
        assert torch.equal(layer.weight, compressed.weights[layer.name].values)
    for other, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if other not in layers:
            assert (
                torch.equal(compressed.module.get_parameter(other), tensor)
                if isinstance(tensor, nn.Parameter)
                else torch.equal(compressed.module.get_buffer(other), tensor)
            )


@pytest.mark.parametrize("recipe", SPARSE_AND_ROUNDED, ids=lambda recipe: str(recipe.quantize)[22:-1])
def test_pruned_weights_stay_zero_on_every_grid(small: Small, recipe: Recipe) -> None:
    model = small("cnn")
    with torch.no_grad():
        model.head.weight.add_(0.3)  # so that an asymmetric grid's zero point is far from its middle
    compressed = compress(model, recipe)
    for layer in walk(compressed.module):
        weight = compressed.weights[layer.name]
        assert not layer.weight[~weight.mask].any()
        if weight.codes is not None:
            assert not weight.codes.centred[~weight.mask].any()
            assert torch.equal(weight.values, weight.codes.values)


def test_masks_of_a_recipe_do_not_depend_on_its_bits(small: Small) -> None:
    model = small("cnn")
    masks = [
        {name: weight.mask for name, weight in compress_weights(model, recipe).items()}
        for recipe in SPARSE_AND_ROUNDED[::5]
    ]
    assert all(torch.equal(mask, masks[0][name]) for found in masks[1:] for name, mask in found.items())


@given(st.lists(st.floats(-60_000, 60_000, width=32), min_size=4, max_size=4))
def test_16_bits_are_ieee_half(values: list[float]) -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(values).reshape(2, 2))
    rounded = compress(model, Recipe(quantize=QuantizeSpec(weight_bits=16))).module.weight
    expected = np.array(values, np.float32).astype(np.float16).astype(np.float32)
    assert rounded.flatten().tolist() == expected.tolist()


def test_a_weight_that_16_bits_cannot_hold_is_named() -> None:
    model = nn.Linear(2, 2)
    model.weight.data[0, 0] = -7e4
    with pytest.raises(InputError, match=r"weight has weights beyond 65,504, which 16 bits can't hold"):
        compress(model, Recipe(quantize=QuantizeSpec(weight_bits=16)))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_the_threshold_is_the_largest_magnitude_that_went(small: Small, allocation: str) -> None:
    model = small("cnn")
    found = compress_weights(model, Recipe(PruneSpec(sparsity=0.5, allocation=allocation)))
    for layer in walk(model):
        weight = found[layer.name]
        removed = layer.weight[~weight.mask].abs()
        assert weight.threshold == (removed.max().item() if removed.numel() else -1)
        assert torch.equal(weight.mask, layer.weight.abs() > weight.threshold)


def test_tied_weights_stay_tied(small: Small) -> None:
    module = compress(small("tied"), RECIPES[4]).module
    assert module.right.weight is module.left.weight
    assert not torch.equal(module.left.weight, small("tied").left.weight)


def test_weights_alone_are_those_of_the_whole_model(small: Small) -> None:
    model = small("encoder")
    alone, whole = compress_weights(model, RECIPES[4]), compress(model, RECIPES[4]).weights
    assert alone.keys() == whole.keys()
    for name in alone:
        assert torch.equal(alone[name].values, whole[name].values)


def test_a_recipe_that_needs_data_says_so_when_there_is_none(small: Small) -> None:
    with pytest.raises(InputError, match="works from calibration images: give some, or take magnitude"):
        compress(small("cnn"), Recipe(PruneSpec("compensated", 0.5)))


def test_an_override_by_magnitude_needs_no_images_where_the_rest_is_not_pruned(small: Small) -> None:
    model = small("cnn")
    layer, *others = [layer.name for layer in walk(model)]
    override = Override(layer, sparsity=0.25, pruning="magnitude")
    recipe = replace(NORMAL, layers=(override,)).canonical()
    assert recipe.prune.pruner.needs_data
    assert not recipe.needs_data
    weights = compress_weights(model, recipe)
    assert 0 < (~weights[layer].mask).sum() < weights[layer].mask.numel()
    for name in others:
        assert weights[name].mask.all()
        torch.testing.assert_close(weights[name].values, model.get_parameter(name).detach(), rtol=0, atol=0)


def test_an_override_of_no_layer_lists_the_layers(small: Small) -> None:
    with pytest.raises(InputError, match=r"unknown layer 'neck.weight': use one of stem\.0\.weight"):
        compress(small("cnn"), Recipe(layers=(Override("neck.weight", sparsity=0.5),)))


def test_layers_apart_have_what_is_theirs_and_the_rest_shares_the_rest(small: Small) -> None:
    model = small("cnn")
    apart = (Override("stem.0.weight", sparsity=0.25), Override("head.weight", weight_bits=8))
    recipe = Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=4), apart)
    found = compress_weights(model, recipe)
    stem = found.pop("stem.0.weight")
    assert (~stem.mask).sum() == round(0.25 * stem.mask.numel())
    assert stem.bits == 4
    assert {name: weight.bits for name, weight in found.items()} == {
        "depthwise.0.weight": 4,
        "project.0.weight": 4,
        "head.weight": 8,
    }
    rest = torch.cat([weight.mask.flatten() for weight in found.values()])
    assert abs((~rest).sum() - 0.5 * len(rest)) <= 1


def test_published_weights_say_what_is_pruned_and_the_model_s_own_what_is_left(small: Small) -> None:
    """Batch norm folded into a channel scales it: that must not decide which of its weights survive."""
    model = small("cnn")
    published = {layer.name: layer.weight.detach().clone() for layer in walk(model)}
    with torch.no_grad():
        for layer in walk(model):
            layer.weight.mul_(
                torch.linspace(0.1, 10, len(layer.weight)).reshape(-1, *[1] * (layer.weight.dim() - 1))
            )
    recipe = Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=8))
    found = compress(model, recipe, published).weights
    expected = compress_weights(small("cnn"), recipe)
    for layer in walk(model):
        weight = found[layer.name]
        assert torch.equal(weight.mask, expected[layer.name].mask)
        assert weight.threshold == expected[layer.name].threshold
        assert weight.codes is not None
        survivors = (layer.weight * weight.mask).detach()
        torch.testing.assert_close(weight.values, survivors, rtol=0, atol=weight.codes.scale.max().item())


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_a_pattern_that_fits_no_layer_says_so(small: Small, pattern: str) -> None:
    with pytest.raises(
        InputError, match=f"pattern {pattern} fits no layer.*outputs in multiples of 8.*of 16"
    ):
        compress(small("cnn"), Recipe(PruneSpec(pattern=pattern)))
    weights = compress(small("tied"), Recipe(PruneSpec(pattern=pattern))).weights
    assert any(not weight.mask.all() for weight in weights.values()), "one that fits is enough"
    assert any(weight.mask.all() for weight in weights.values())


def test_a_pattern_is_looked_for_where_it_holds(small: Small) -> None:
    """The only layers that it fits have something else to themselves."""
    model = small("tied")
    fitting = ("first.weight", "left.weight")
    apart = tuple(Override(name, sparsity=0.5) for name in fitting)
    with pytest.raises(InputError, match="fits no layer"):
        compress(model, Recipe(PruneSpec(pattern="2:4"), layers=apart))
    compress(model, Recipe(PruneSpec(pattern="4x4", sparsity=0.5), layers=apart))
