"""Best effort: pruning in stages comes nearer than in one, holds its share, and is done once."""

from dataclasses import replace

import pytest
import torch
from by_request import compressed_model
from torch import Tensor, nn

from optimizer.compression import staged
from optimizer.compression.apply import compress
from optimizer.compression.calibration import cache
from optimizer.compression.calibration.cache import make, pruned_in_stages
from optimizer.compression.divergence import divergence, prepared
from optimizer.compression.staged import prune_in_stages
from optimizer.data.loading import load_images
from optimizer.model.catalogue import LoadedModel, load
from optimizer.model.layers import fold_batch_norm, walk
from optimizer.progress import Asker, Cancelled, asked_by
from optimizer.recipe import NORMAL, QuantizeSpec, Recipe
from optimizer.records import DataSpec, Request

BEST = Recipe(replace(NORMAL.prune, sparsity=0.9, effort="best"))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {layer.name: layer.weight.detach() for layer in walk(model)}


def test_stages_come_nearer_on_images_that_none_was_fitted_to(resnet: LoadedModel) -> None:
    model, _ = fold_batch_norm(resnet.module)
    images = load_images(resnet, DataSpec(limit=200))
    seen = images.calibration.images[:: len(images.calibration.images) // 96][:96]  # they are sorted by class
    unseen, known, before = images.evaluation.images, make(model, seen), weights(model)
    kept = {name: one.clone() for name, one in before.items()}

    def apart(pruned: nn.Module) -> float:
        with torch.no_grad():
            return divergence(prepared(pruned(unseen)), prepared(model(unseen))).item()

    told: list[str] = []
    found = prune_in_stages(model, BEST, before, known, make, seen, lambda _, words: told.append(words))
    assert apart(found) < 0.5 * apart(compress(model, BEST, before, known).module)
    left = sum(int(one.count_nonzero()) for one in weights(found).values())
    assert left == pytest.approx(0.1 * sum(one.numel() for one in before.values()), abs=1)
    assert all(torch.equal(kept[name], one) for name, one in weights(model).items())
    assert "pruning in stages: 1 of 1" in told
    assert any(words.startswith("pruning in stages: 3 of 3, divergence") for words in told)


@pytest.fixture
def one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "STAGES", (1,))


def test_it_is_done_once(one_stage: None, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("fashion-mlp")
    model, images = loaded.module, load_images(loaded, DataSpec(limit=20)).calibration.images[:16]
    known, before = make(model, images), weights(model)
    first = pruned_in_stages(model, BEST, before, known, images)
    monkeypatch.setattr(cache, "prune_in_stages", lambda *_: pytest.fail("it was done again"))
    again = pruned_in_stages(model, BEST, before, known, images)
    assert all(torch.equal(one, weights(first)[name]) for name, one in weights(again).items())


def test_it_ends_when_it_is_not_wanted_any_more(resnet: LoadedModel) -> None:
    model, _ = fold_batch_norm(resnet.module)
    images = load_images(resnet, DataSpec(limit=20)).calibration.images[:16]
    known = make(model, images)
    with asked_by(Asker(lambda _: None, lambda: True)), pytest.raises(Cancelled):
        prune_in_stages(model, BEST, weights(model), known, make, images)


def test_a_recipe_of_best_effort_is_rounded_and_fine_tuned_on_its_masks(one_stage: None) -> None:
    data, quantize = DataSpec(limit=60), QuantizeSpec("compensated", weight_bits=4)
    best = Recipe(replace(BEST.prune, sparsity=0.5))
    pruned, rounded, tuned = (
        compressed_model(Request("fashion-mlp", recipe, data=data)).weights
        for recipe in (
            best,
            replace(best, quantize=quantize),
            replace(best, quantize=quantize, finetune_steps=4),
        )
    )
    elements = sum(one.mask.numel() for one in pruned.values())
    assert sum(int(one.mask.sum()) for one in pruned.values()) == pytest.approx(0.5 * elements, abs=1)
    for name, one in pruned.items():
        for other in (rounded[name], tuned[name]):
            assert torch.equal(other.mask, one.mask)
            assert not other.values[~one.mask].any()
        assert torch.equal(tuned[name].codes.scale, rounded[name].codes.scale)
