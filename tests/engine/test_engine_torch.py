"""Eager torch: threads, and rounded activations."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from engine_runs import EXACT, ON_INT8_KERNELS, ROUNDED_ONLY, run
from small_models import SMALL_SHAPE, Small
from torch import Tensor, nn
from torch.nn.functional import linear

from optimizer.compression.apply import compress
from optimizer.engine import engine_named, problem_of
from optimizer.recipe import Recipe


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Watched(nn.Module):
    """Logs torch's thread count; fails on images of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(torch.get_num_threads())
        if x.min() == 1:
            raise RuntimeError("the kernel failed")
        return x.flatten(1)


@pytest.mark.usefixtures("two_threads")
def test_torch_runs_with_the_threads_asked_for_and_puts_the_old_count_back(small_images: Tensor) -> None:
    compressed = compress(Watched(), Recipe())
    runner = engine_named("torch").prepare(compressed.module, SMALL_SHAPE)(
        compressed, small_images, threads=1, batch=1
    )
    runner.score(small_images.numpy())
    with runner.session():
        runner.infer(small_images[:1].numpy())
    assert torch.get_num_threads() == 2
    with pytest.raises(RuntimeError, match="the kernel failed"):
        runner.score(np.ones((1, *SMALL_SHAPE), np.float32))
    assert torch.get_num_threads() == 2
    with pytest.raises(RuntimeError, match="the kernel failed"), runner.session():
        runner.infer(np.ones((1, *SMALL_SHAPE), np.float32))
    assert torch.get_num_threads() == 2
    assert set(compressed.module.seen) == {1}


class Echo(nn.Module):
    """A linear layer that does nothing: what comes out is what it multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64, bias=False)
        nn.init.eye_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-2.0, -1.0), (0.0, 0.0)])
def test_torch_rounds_activations_to_256_levels_between_the_calibration_extremes(
    low: float, high: float
) -> None:
    images = torch.linspace(low, high, 64 * 64).reshape(64, *SMALL_SHAPE)
    runner = run("torch", Echo().eval(), ROUNDED_ONLY[1], images)
    levels = runner.score(images.numpy())
    step = (max(high, 0) - min(low, 0)) / 255
    assert len(np.unique(levels)) <= 256
    assert np.abs(levels - images.flatten(1).numpy()).max() <= 0.51 * step
    beyond = runner.score((images * 2).numpy())
    assert levels.min() - step <= beyond.min()
    assert beyond.max() <= levels.max() + step
    assert not runner.score(np.zeros((1, *SMALL_SHAPE), np.float32)).any()


def test_torch_says_that_everything_below_float32_is_simulated(small: Small, small_images: Tensor) -> None:
    model = small("cnn")
    assert run("torch", model, EXACT[1], small_images).execution.simulated == ()
    weights, activations = run("torch", model, ON_INT8_KERNELS[1], small_images).execution.simulated
    assert weights == "4-bit weights: the values are exact, the kernels are float32"
    assert activations.startswith("8-bit activations: rounded between float32 kernels")
    words = run("torch", small("encoder"), ON_INT8_KERNELS[1], small_images).execution.simulated
    assert words[-1] == ("8-bit activations: 1 of 4 layers take them in float32: attention.out_proj.weight")


@pytest.mark.parametrize("engine", ["torch", "sparse", "compile", "onnxruntime"])
def test_layers_whose_inputs_no_rounding_reaches_are_named(engine: str, small_images: Tensor) -> None:
    """Torch's hooks see the inputs of modules that are called, and these are not; ONNX has them all."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(linear(x.flatten(1), self.first.weight, self.first.bias))

    if problem := problem_of(engine):
        pytest.skip(problem)
    words = run(engine, Functional().eval(), ROUNDED_ONLY[1], small_images).execution.simulated
    missed = "8-bit activations: 1 of 2 layers take them in float32: first.weight"
    assert (missed in words) == (engine != "onnxruntime")


def test_an_expert_that_no_calibration_image_reached_is_not_cut_off(small_images: Tensor) -> None:
    """Its inputs had a range of nothing, and each was rounded to zero."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(64, 3) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.experts[int(one.sum() > 0)](one[None]) for one in x.flatten(1)])

    model, images = Experts().eval(), -small_images.abs()
    runner = run("torch", model, ROUNDED_ONLY[1], images)
    with torch.inference_mode():
        np.testing.assert_allclose(runner.score((-images).numpy()), model(-images).numpy(), atol=1e-5)


def test_torch_rounds_query_key_and_value_alike(small_images: Tensor) -> None:
    """Attention over one token returns its value: only if that was rounded are there few levels."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(64, 1, bias=False, batch_first=True)
            with torch.no_grad():
                self.attention.in_proj_weight.copy_(torch.eye(64).repeat(3, 1))
                self.attention.out_proj.weight.copy_(torch.eye(64))

        def forward(self, x: Tensor) -> Tensor:
            token = x.flatten(1)[:, None]
            return self.attention(token, token, token, need_weights=False)[0][:, 0]

    levels = run("torch", Attention().eval(), ROUNDED_ONLY[1], small_images).score(small_images.numpy())
    step = float(small_images.max() - small_images.min()) / 255
    steps = levels / step
    assert np.abs(steps - np.round(steps)).max() < 0.02
    assert len(np.unique(np.round(steps))) > 100
