"""Outputs matched to those of the uncompressed model: what comes of them, and when it is not kept."""

import copy
from dataclasses import replace

import pytest
import torch
from by_request import compressed_model, inspect, score
from small_models import Small, divergence, untouched
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.compression.prune import matching
from optimizer.compression.prune.matching import matched
from optimizer.data.loading import load_images
from optimizer.errors import InputError
from optimizer.model.catalogue import LoadedModel
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec, Request

HALF = PruneSpec(sparsity=0.5)
MOST = Recipe(PruneSpec(sparsity=0.8))
MAX_MATCHED = Recipe(replace(MOST.prune, match=True))
DATA = DataSpec(limit=1_000)


def outputs(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """What a convolution gives, ``[out, N]``."""
    found: list[Tensor] = []
    handle = dict(model.named_modules())[layer].register_forward_hook(lambda *one: found.append(one[2]))
    with torch.no_grad():
        model(images)
    handle.remove()
    return found[0].transpose(0, 1).flatten(1)


def scaled(model: nn.Module, factor: float) -> nn.Module:
    twin = copy.deepcopy(model)
    for layer in walk(twin):
        layer.weight.data.mul_(factor)
    return twin


def test_means_and_variances_of_every_channel_come_back(small: Small, small_images: Tensor) -> None:
    dense, _ = fold_batch_norm(small("cnn"))
    changed = compress(dense, Recipe(HALF)).module
    found = matched(dense, changed, small_images)
    assert found is not None
    seen = small_images[:24]
    for layer in ("stem.0", "depthwise.0", "project.0"):
        wanted, now = (outputs(model, layer, seen) for model in (dense, found))
        torch.testing.assert_close(now.mean(1), wanted.mean(1), rtol=1e-3, atol=1e-3)
        gain = wanted.std(1) / outputs(changed, layer, seen).std(1)
        inside = (gain < matching.MAX_GAIN / 2) & (gain > 2 / matching.MAX_GAIN)
        torch.testing.assert_close(now.std(1)[inside], wanted.std(1)[inside], rtol=1e-2, atol=1e-3)
    for layer in walk(found):
        assert layer.weight.is_contiguous()


def test_a_network_that_was_only_scaled_comes_back_whole(small: Small, small_images: Tensor) -> None:
    dense, _ = fold_batch_norm(small("cnn"))
    found = matched(dense, scaled(dense, 0.5), small_images)
    assert found is not None
    with torch.no_grad():
        torch.testing.assert_close(found(small_images), dense(small_images), rtol=1e-3, atol=1e-3)


def test_zeros_stay_zero_and_both_models_stay_as_they_were(small: Small, small_images: Tensor) -> None:
    dense, _ = fold_batch_norm(small("cnn"))
    compressed = compress(dense, Recipe(HALF))
    with untouched(dense, compressed.module):
        found = matched(dense, compressed.module, small_images)
    assert found is not None
    for layer in walk(found):
        assert (layer.weight[~compressed.weights[layer.name].mask] == 0).all()


def test_what_does_not_help_is_not_kept(small: Small, small_images: Tensor) -> None:
    dense, _ = fold_batch_norm(small("cnn"))
    assert matched(dense, dense, small_images) is None
    with pytest.raises(InputError, match="15 images are too few to match outputs on: give at least 16"):
        matched(dense, dense, small_images[:15])


@pytest.mark.parametrize("name", ["shared", "tied", "encoder", "auxiliary"])
def test_layers_that_run_twice_or_never_are_left_alone(small: Small, small_images: Tensor, name: str) -> None:
    dense = small(name)
    found = matched(dense, scaled(dense, 0.7), small_images)
    assert found is not None
    weights = {layer.name: layer.weight for layer in walk(found)}
    for one in ("again.weight", "left.weight", "auxiliary.weight", "attention.in_proj_weight"):
        if one in weights:
            before = {layer.name: layer.weight for layer in walk(dense)}[one]
            torch.testing.assert_close(weights[one], 0.7 * before)


def divergence_of(resnet: LoadedModel, recipe: Recipe) -> float:
    images = load_images(resnet, DATA).evaluation.images[:300]
    module = compressed_model(Request("fashion-resnet", recipe, data=DATA)).module
    return divergence(fold_batch_norm(resnet.module)[0], module, images)


@pytest.mark.slow
def test_plain_magnitude_gains_by_it(resnet: LoadedModel) -> None:
    assert divergence_of(resnet, MAX_MATCHED) < 0.6 * divergence_of(resnet, MOST)
    one, other = (score(Request("fashion-resnet", recipe, data=DATA)) for recipe in (MOST, MAX_MATCHED))
    assert other.accuracy.correct > one.accuracy.correct
    told = inspect(Request("fashion-resnet", MAX_MATCHED, data=DATA))
    assert other.inspection.layers == one.inspection.layers == told.layers
    assert other.inspection.size.packed_bytes == told.size.packed_bytes


@pytest.mark.slow
def test_it_comes_before_rounding(resnet: LoadedModel) -> None:
    recipe = replace(MAX_MATCHED, quantize=QuantizeSpec(weight_bits=4))
    made = compressed_model(Request("fashion-resnet", recipe, data=DATA))
    assert made.recipe == recipe
    for weight in made.weights.values():
        assert weight.codes is not None
        assert torch.equal(weight.codes.values, weight.values)
        assert (weight.values[~weight.mask] == 0).all()
    assert divergence_of(resnet, recipe) < divergence_of(resnet, replace(MOST, quantize=recipe.quantize))


def test_compensated_pruning_has_no_use_for_it() -> None:
    spec = PruneSpec("compensated", 0.5, match=True)
    assert not spec.matches
    assert not Recipe(spec).canonical().prune.match
    assert Recipe(replace(HALF, match=True)).canonical().prune.match
    assert not Recipe(PruneSpec(match=True)).canonical().prune.match
    assert "batch norm re-estimated" in MAX_MATCHED.describe()
    assert "batch norm re-estimated" in Recipe(PruneSpec("channels", 0.2, match=True)).describe()
