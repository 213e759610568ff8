"""Replays against whole runs of a model that was really changed."""

from collections.abc import Mapping

import pytest
import torch
from small_models import IN_PLACE_WAYS, SMALL_MODELS, Small, divergence, twins, untouched, with_trials
from torch import Tensor, nn
from torch.nn import functional

from optimizer.compression.calibration.curvature import row_effects
from optimizer.compression.calibration.moments import collect
from optimizer.compression.calibration.sensitivity import Trial, divergences, divergences_together
from optimizer.compression.divergence import NO_CLASSIFIER
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk


def trials(model: nn.Module) -> dict[str, Trial]:
    made = {}
    for layer in walk(model):
        change = None if layer.bias is None else 0.1 * torch.ones_like(layer.bias)
        made[layer.name] = Trial(0.5 * layer.weight.detach(), change)
    return made


def by_hand(model: nn.Module, images: Tensor, trials: Mapping[str, Trial]) -> float:
    return divergence(model, with_trials(model, trials), images)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_a_replay_tells_what_a_whole_run_tells(small: Small, small_images: Tensor, name: str) -> None:
    model, _ = fold_batch_norm(small(name))
    made = trials(model)
    with untouched(model):
        found = divergences(model, small_images[:10], made)
    for layer, trial in made.items():
        assert found[layer] == pytest.approx(by_hand(model, small_images[:10], {layer: trial}), abs=1e-5)


def test_on_a_residual_network_no_layer_that_matters_has_none(small: Small, small_images: Tensor) -> None:
    model, _ = fold_batch_norm(small("cnn"))
    assert min(divergences(model, small_images[:10], trials(model)).values()) > 1e-6


def test_a_divergence_is_never_below_0(small: Small, small_images: Tensor) -> None:
    """As rounding makes some, where a layer stays as it is but for the last bits."""
    model, _ = fold_batch_norm(small("cnn"))
    same = {layer.name: Trial(layer.weight.detach() * (1 + 2e-7)) for layer in walk(model)}
    found = [divergences(model, small_images[n : n + 1], same).values() for n in range(10)]
    assert min(map(min, found)) == 0


def test_layers_that_change_together_are_replayed_together(small: Small, small_images: Tensor) -> None:
    model, _ = fold_batch_norm(small("cnn"))
    made = trials(model)
    images = small_images[:10]
    pairs = {"sum": ("stem.0.weight", "project.0.weight"), "ends": ("head.weight", "depthwise.0.weight")}
    together = {name: {one: made[one] for one in pair} for name, pair in pairs.items()}
    found = divergences_together(model, images, together)
    for name, parts in together.items():
        assert found[name] == pytest.approx(by_hand(model, images, parts), rel=1e-4, abs=1e-5)


class Fickle(nn.Module):
    """Can't be traced: which way it goes depends on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        return self.head(x if x.sum() > 0 else -x)


def test_a_model_that_cant_be_traced_runs_whole(small_images: Tensor) -> None:
    model = Fickle().eval()
    made = trials(model)
    found = divergences(model, small_images[:4], made)
    for layer, trial in made.items():
        assert found[layer] == pytest.approx(by_hand(model, small_images[:4], {layer: trial}), abs=1e-5)


class Asking(nn.Sequential):
    """Its code asks what it was given: what stands for an input where it is traced is neither None nor a
    tensor."""

    def __init__(self, small: nn.Module, loss: bool) -> None:
        super().__init__(small)
        self.loss = loss

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        if self.loss:
            logits: Tensor = self[0](images)
            return logits if targets is None else functional.cross_entropy(logits, targets)
        return 3 * self[0](images) if isinstance(images, Tensor) else self[0](images)


@pytest.mark.parametrize("loss", [True, False])
def test_what_a_model_s_code_asks_is_answered_as_where_it_runs(
    small: Small, small_images: Tensor, loss: bool
) -> None:
    model, notes = fold_batch_norm(Asking(small("cnn"), loss).eval(), (1, 8, 8))
    assert not notes
    made = trials(model)
    for name, found in divergences(model, small_images[:10], made).items():
        assert found == pytest.approx(by_hand(model, small_images[:10], {name: made[name]}), abs=1e-5)


def test_a_layer_that_never_runs_has_no_effect(small: Small, small_images: Tensor) -> None:
    model = small("auxiliary")
    assert divergences(model, small_images[:4], trials(model))["auxiliary.weight"] == 0


@pytest.mark.parametrize("way", IN_PLACE_WAYS)
def test_what_changes_in_place_tells_the_same(small_images: Tensor, way: str) -> None:
    images, models = small_images[:10], twins(way)
    found, expected = (divergences(one, images, trials(one)) for one in models)
    assert found == pytest.approx(expected, rel=1e-5)
    moments = collect(models[1], small_images)
    effects, wanted = (row_effects(one, images, moments, set(moments)) for one in models)
    for name, one in wanted.items():
        torch.testing.assert_close(effects[name], one)


def test_activations_in_place_cost_no_more(small_images: Tensor) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)
    )
    runs: list[nn.Module] = []
    model[0].register_forward_hook(lambda module, inputs, output: runs.append(module))
    divergences(model.eval(), small_images[:4], {"2.weight": Trial(torch.zeros(4, 4, 3, 3))})
    # Twice where the graph is held against the model, where changes are looked for, and before the trial.
    assert len(runs) == 4


def test_outputs_of_what_is_no_classifier_are_held_against_their_own_size(
    small: Small, small_images: Tensor
) -> None:
    model, _ = fold_batch_norm(small("cnn"))
    setattr(model, NO_CLASSIFIER, True)
    made, images = trials(model), small_images[:8]
    found = divergences(model, images, made)
    for name, trial in made.items():
        changed = with_trials(model, {name: trial})
        with torch.inference_mode():
            before, after = model(images), changed(images)
        shares = (after - before).square().sum(1) / before.square().sum(1)
        assert found[name] == pytest.approx(0.5 * shares.mean().item(), rel=1e-3)
