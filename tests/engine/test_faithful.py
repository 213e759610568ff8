"""An engine's first answers are compared with torch's, whatever the engine."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_models import Branching
from torch import Tensor, nn

from optimizer.compression.apply import CompressedModel, compress
from optimizer.engine import engine_named, faithful
from optimizer.engine.base import Build, Engine, Runner
from optimizer.errors import WorkError
from optimizer.model.examples import hold
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe

SHAPE = (1, 2, 3)
PRUNED = Recipe(PruneSpec(sparsity=0.5))
REFUSED = "on OpenVINO this model does not give torch's answers.*Use engine torch, .*; onnxruntime, sparse"


def network(scale: float = 1.0, bias: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight *= scale
        layer.bias.copy_(layer.bias * scale + bias)
    return nn.Sequential(nn.Flatten(), layer).eval()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[CompressedModel], nn.Module]], Build]:
    """A build of an engine that runs another network than it is given."""

    def with_engine(misread: Callable[[CompressedModel], nn.Module]) -> Build:
        def prepare(model: nn.Module, input_shape: tuple[int, ...]) -> Build:
            def build(compressed: CompressedModel, calibration: Tensor, **how: Any) -> Runner:
                other = compress(misread(compressed), Recipe())
                return engine_named("torch").prepare(model, input_shape)(other, calibration, **how)

            return build

        engine = Engine(lambda: None, prepare)
        monkeypatch.setattr(faithful, "engine_named", lambda _: engine)
        return faithful.prepare("openvino", network(), SHAPE)

    return with_engine


def score(build: Build, recipe: Recipe, model: nn.Module | None = None) -> np.ndarray:
    images = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    compressed = compress(model or network(), recipe)
    answers: np.ndarray = build(compressed, images, threads=1, batch=1).score(images.numpy())
    return answers


@pytest.mark.parametrize("recipe", [Recipe(), PRUNED])
@pytest.mark.parametrize("scale", [1.0, 1e-7])
def test_answers_that_are_not_torchs_are_a_failure_in_words(built: Any, recipe: Recipe, scale: float) -> None:
    """However small they are."""
    build = built(lambda _: network(-scale))
    with pytest.raises(WorkError, match=REFUSED):
        score(build, recipe, network(scale))


def test_the_first_recipe_is_compared_as_the_uncompressed_model_is(built: Any) -> None:
    build = built(lambda compressed: compressed.module if compressed.recipe.identity else network())
    score(build, Recipe())
    with pytest.raises(WorkError, match=REFUSED):
        score(build, PRUNED)


def test_where_both_are_no_number_they_agree_and_where_one_is_they_do_not(built: Any) -> None:
    score(built(lambda compressed: compressed.module), Recipe(), network(bias=float("nan")))
    with pytest.raises(WorkError, match=REFUSED):
        score(built(lambda _: network(bias=float("nan"))), Recipe())


@pytest.mark.parametrize(
    ("misread", "reason"),
    [
        (lambda compressed: network(-1.0), "does not give torch's answers"),
        (lambda compressed: network(), "can't take other weights"),
    ],
    ids=["whatever its weights are", "other weights alone"],
)
def test_why_other_weights_are_not_followed(misread: Any, reason: str) -> None:
    def build(compressed: CompressedModel, calibration: Tensor, **how: Any) -> Runner:
        other = compress(misread(compressed), Recipe())
        return engine_named("torch").prepare(network(), SHAPE)(other, calibration, **how)

    with pytest.raises(WorkError, match=reason):
        faithful.check_follows(build, network(), SHAPE, "openvino")


@pytest.mark.parametrize(("wrong_from", "follows"), [(32, False), (50, True)])
def test_a_whole_batch_is_compared(wrong_from: int, follows: bool) -> None:
    """OpenVINO 2026.4 computes some graphs wrongly from the 33rd image of a batch on."""

    def build(compressed: CompressedModel, calibration: Tensor, **how: Any) -> Runner:
        runner = engine_named("torch").prepare(network(), SHAPE)(compressed, calibration, **how)
        before = np.arange(50)[:, None] < wrong_from
        return replace(runner, score=lambda images: runner.score(images) * before[: len(images)])

    with nullcontext() if follows else pytest.raises(WorkError, match="does not give torch's answers"):
        faithful.check_follows(build, network(), SHAPE, "openvino")


def test_kernels_that_round_activations_are_not_held_to_torchs_answers(built: Any) -> None:
    score(built(lambda _: network(-1.0)), Recipe(quantize=QuantizeSpec(activation_bits=8)))


@pytest.mark.parametrize("quantize", [QuantizeSpec(activation_bits=8), QuantizeSpec(precision="bf16")])
def test_their_shape_is_held_to_torchs(built: Any, quantize: QuantizeSpec) -> None:
    """OpenVINO 2026.4 gives answers of int8 kernels a dimension more where one of a dimension is selected."""
    deeper = nn.Sequential(network(), nn.Unflatten(1, (1, 4))).eval()
    with pytest.raises(WorkError, match=r"on OpenVINO .* shape \[5, 1, 4\], not torch's \[5, 4\]"):
        score(built(lambda _: deeper), Recipe(quantize=quantize))


def test_what_once_agreed_is_not_compared_again(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(faithful, "check_answers", lambda *_: compared.append(1))
    build = built(lambda compressed: compressed.module)
    for recipe in (Recipe(), PRUNED, Recipe(), Recipe(PruneSpec(sparsity=0.7))):
        score(build, recipe)
    assert len(compared) == 2


def test_torch_is_the_measure(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a model that draws random numbers: it does not answer alike twice."""
    monkeypatch.setattr(faithful, "check_answers", lambda *_: pytest.fail("compared with itself"))
    built(lambda compressed: compressed.module)
    score(faithful.prepare("torch", network(), SHAPE), Recipe())


def test_every_answer_is_compared_where_values_choose_what_runs() -> None:
    """The first and the last image have the same layer: between them, one has the other."""
    model, images = Branching(4, 2).eval(), torch.ones(3, 4)
    hold(model, (4,), images)
    build = faithful.prepare("openvino", model, (4,))
    runner = build(compress(model, Recipe()), images, threads=1, batch=1)
    runner.score(images.numpy())
    images[1] = -1
    with pytest.raises(WorkError, match="depends on the values of its input.*: use engine torch"):
        runner.score(images.numpy())


def test_torch_scores_one_image_at_a_time_where_values_choose_what_runs() -> None:
    """Else all of a batch would go where its sum does."""
    model, images = Branching(4, 2).eval(), torch.cat([torch.ones(3, 4), -torch.ones(2, 4)])
    hold(model, (4,), images)
    runner = faithful.prepare("torch", model, (4,))(compress(model, Recipe()), images, threads=1, batch=1)
    expected = torch.cat([model(image) for image in images.split(1)])
    assert np.allclose(runner.score(images.numpy()), expected.detach())
