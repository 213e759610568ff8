"""Layers pruned to their share, alone and together, against the network run anew."""

import pytest
import torch
from small_models import Cnn, divergence, half_never_on, with_trials
from torch import Tensor

from optimizer.compression.calibration import layer_sensitivity
from optimizer.compression.calibration.cache import statistics_of
from optimizer.compression.calibration.layer_sensitivity import alone, coupled
from optimizer.compression.calibration.sensitivity import Trial, divergences_together
from optimizer.compression.calibration.statistics import REFERENCE, seen_and_held_out
from optimizer.compression.prune.compensated import prune
from optimizer.data.loading import load_images
from optimizer.model.catalogue import LoadedModel
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.records import DataSpec


def test_each_layer_is_at_its_share_of_60_percent(small_images: Tensor) -> None:
    """As the statistics share it out: not as was guessed before anything was measured."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, _ = fold_batch_norm(Cnn().eval())
    known = statistics_of(model, small_images)
    weights = {layer.name: layer.weight.detach() for layer in walk(model)}
    pruned = prune(weights, weights, REFERENCE, known)
    held_out = seen_and_held_out(small_images)[1]
    found = alone(model, small_images, known)
    assert found.keys() == weights.keys()
    assert any(one.measured for one in found.values())
    for name, one in found.items():
        changed = with_trials(model, {name: Trial(pruned[name].weight, pruned[name].bias_change)})
        if one.measured:
            told = max(0.0, divergence(model, changed, held_out))
            assert one.divergence == pytest.approx(told, rel=1e-3, abs=1e-7), name


def test_channels_that_are_never_on_hide_no_layer_that_matters(small_images: Tensor) -> None:
    model = half_never_on()
    assert alone(model, small_images, statistics_of(model, small_images))["5.weight"].measured


@pytest.mark.slow
def test_on_the_residual_network_nothing_that_matters_has_no_effect(
    resnet: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum carries on what one of its layers lost; all of them at once is what the outputs tell."""
    folded, _ = fold_batch_norm(resnet.module)
    images = load_images(resnet, DataSpec()).calibration.images[:64]
    known = statistics_of(folded, images)
    found, apart = coupled(folded, images, known), alone(folded, images, known)
    residual = [group for group in found if group.tie == "a residual sum ties them to other layers"]
    assert len(residual) >= 3
    for group in found:
        assert len(group.layers) > 1
        assert group.together > 0, group
        assert group.together > 0.1 * max(apart[layer].divergence for layer in group.layers), group
    assert all(apart[layer.name].divergence > 0 for layer in walk(folded))
    assert any(group.together > group.apart for group in residual)
    weights = {layer.name: layer.weight.detach() for layer in walk(folded)}
    trials = {
        group.layers[0]: {name: Trial(0 * weights[name]) for name in group.layers} for group in found
    }  # they matter: the network is nothing without them
    assert min(divergences_together(folded, images[:16], trials).values()) > 0.5
    monkeypatch.setattr(layer_sensitivity, "groups", lambda *_: pytest.fail("they were measured again"))
    assert coupled(folded, images, known) == found
