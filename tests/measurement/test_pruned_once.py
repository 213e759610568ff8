"""Bit widths of one sparsity share what was pruned, and all activations and precisions its weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from optimizer.compression import apply
from optimizer.compression.apply import compress
from optimizer.measurement import compressed
from optimizer.measurement.compressed import compressed_model
from optimizer.measurement.workspace import Workspace, open_model
from optimizer.model.catalogue import LoadedModel
from optimizer.recipe import Override, Recipe


@pytest.fixture
def pruned(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that weights were pruned for."""
    asked = list[Recipe]()
    really = apply.prune_weights

    def prune(weights: object, scored: object, recipe: Recipe, statistics: object) -> object:
        asked.append(recipe)
        return really(weights, scored, recipe, statistics)  # type: ignore[arg-type]

    for module in (apply, compressed):
        monkeypatch.setattr(module, "prune_weights", prune)
    return asked


def recipe(sparsity: float, bits: int, *layers: Override) -> Recipe:
    plain = Recipe.of(sparsity=sparsity, weight_bits=bits, pruning="magnitude", rounding="nearest")
    return replace(plain, layers=layers)


def test_other_bit_widths_round_what_was_pruned_before(resnet: LoadedModel, pruned: list[Recipe]) -> None:
    workspace = Workspace(open_model(resnet))
    made = [compressed_model(workspace, recipe(0.5, bits)) for bits in (8, 4, 32, 3)]
    assert len(pruned) == 1 + 1  # one for the uncompressed model's size
    for one in made:
        alone = compress(workspace.model.module, one.recipe, workspace.model.published)
        for name, weight in one.weights.items():
            assert torch.equal(weight.values, alone.weights[name].values)
            assert torch.equal(weight.mask, alone.weights[name].mask)


@pytest.mark.parametrize("changed", [{"activation_bits": 8}, {"activation_bits": 4}, {"precision": "bf16"}])
@pytest.mark.parametrize("bits", [32, 4])
def test_activations_and_precision_leave_weights_as_they_are(
    bits: int, changed: dict[str, Any], resnet: LoadedModel, pruned: list[Recipe]
) -> None:
    workspace, plain = Workspace(open_model(resnet)), recipe(0.5, bits).canonical()
    other = replace(plain, quantize=replace(plain.quantize, **changed)).canonical()
    first, second = compressed_model(workspace, plain), compressed_model(workspace, other)
    assert (first.recipe, second.recipe) == (plain, other)
    assert first.module is second.module
    assert len(pruned) == 1 + 1
    alone = compress(workspace.model.module, other, workspace.model.published)
    for name, weight in second.weights.items():
        assert torch.equal(weight.values, alone.weights[name].values)


def test_another_sparsity_or_one_of_a_layer_is_pruned_anew(resnet: LoadedModel, pruned: list[Recipe]) -> None:
    workspace = Workspace(open_model(resnet))
    apart = Override("9.weight", sparsity=0.1)
    asked = [recipe(0.5, 8), recipe(0.6, 8), recipe(0.5, 8, apart), recipe(0.5, 4, apart)]
    shares = [
        float((compressed_model(workspace, one).weights["9.weight"].values == 0).float().mean())
        for one in asked
    ]
    assert len(pruned) == 1 + 3
    assert shares[2] == pytest.approx(0.1, abs=0.01)


def test_what_is_too_large_is_pruned_each_time(
    resnet: LoadedModel, pruned: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed, "MAX_PRUNED_BYTES", 1000)
    workspace = Workspace(open_model(resnet))
    for bits in (8, 4):
        compressed_model(workspace, recipe(0.5, bits))
    assert len(pruned) == 1 + 2
