"""ONNX Runtime: int8 in QDQ form."""

from dataclasses import replace

import pytest
import torch
from engine_runs import ON_INT8_KERNELS, ROUNDED_ONLY, Ready, close, eager, off, run
from small_models import SMALL_SHAPE
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from optimizer.compression.apply import compress
from optimizer.engine import engine_named
from optimizer.errors import WorkError
from optimizer.model.folding import fold_batch_norm
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ON_INT8_KERNELS, ids=Recipe.describe)
@pytest.mark.parametrize("name", ["cnn", "encoder", "shared", "tied"])
def test_onnx_runtime_runs_every_layer_on_int8_kernels(
    ready: Ready, small_images: Tensor, name: str, recipe: Recipe
) -> None:
    model, build = ready("onnxruntime", name)
    runner = build(compress(model, recipe), small_images, threads=1, batch=1)
    float32 = eager(
        model, replace(recipe, quantize=replace(recipe.quantize, activation_bits=32)), small_images
    )
    assert 1e-4 < off(runner.score(small_images.numpy()), float32) < 0.1
    assert {layer.precision for layer in runner.execution.layers} == {"u8"}, runner.execution.layers


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ROUNDED_ONLY, ids=Recipe.describe)
def test_onnx_runtime_says_what_no_int8_kernel_takes(
    ready: Ready, small_images: Tensor, recipe: Recipe
) -> None:
    model, build = ready("onnxruntime", "cnn")
    runner = build(compress(model, recipe), small_images, threads=1, batch=1)
    assert runner.execution.precisions.keys() == {"f32"}
    assert "not fit int8" in " ".join(runner.execution.simulated)


@pytest.mark.slow
def test_linear_layers_with_batch_norm_run_on_int8_kernels(small_images: Tensor) -> None:
    """The exporter would fold it, and no layer's weight be left to be found in the graph."""
    first, second = (nn.Linear(64, 16), nn.BatchNorm1d(16)), (nn.Linear(16, 8), nn.BatchNorm1d(8))
    model, notes = fold_batch_norm(nn.Sequential(nn.Flatten(), *first, nn.ReLU(), *second), SMALL_SHAPE)
    assert notes == ()
    assert run("onnxruntime", model, ON_INT8_KERNELS[0], small_images).execution.precisions == {"u8": 2}


@pytest.mark.slow
def test_a_channel_of_next_to_nothing_keeps_its_bias_in_int8(small_images: Tensor) -> None:
    """In units of its tiny scale the bias is beyond an int32."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    with torch.no_grad():
        model[0].weight[1] *= 1e-9
        model[0].bias.fill_(2.0)
    float32 = eager(model, Recipe(), small_images)
    build = engine_named("onnxruntime").prepare(model, SMALL_SHAPE)
    for recipe in ON_INT8_KERNELS[0], ON_INT8_KERNELS[2]:
        runner = build(compress(model, recipe), small_images, threads=1, batch=1)
        assert off(runner.score(small_images.numpy()), float32) < 0.1
        assert runner.execution.precisions == {"u8": 2}


def test_a_weight_that_equals_its_transpose_is_put_in_as_it_is_multiplied() -> None:
    """Rounded row by row, it does so no more."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8).eval().requires_grad_(False)
    model.weight += model.weight.T.clone()
    tokens, recipe = torch.randn(4, 5, 8), Recipe(quantize=QuantizeSpec(weight_bits=3))
    build = engine_named("onnxruntime").prepare(model, (5, 8))
    found = build(compress(model, recipe), tokens, threads=1, batch=1).score(tokens.numpy())
    close(found, eager(model, recipe, tokens))


class OneImage(nn.Module):
    """Its code asks for the batch's size, so it can be exported for one image only."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)) if x.shape[0] == 1 else torch.cat([self(one) for one in x.split(1)])


@pytest.mark.slow
def test_a_model_that_takes_one_image_at_a_time(small_images: Tensor) -> None:
    model = OneImage().eval()
    build, uncompressed = engine_named("onnxruntime").prepare(model, SMALL_SHAPE), compress(model, Recipe())
    runner = build(uncompressed, small_images, threads=1, batch=1)
    close(runner.score(small_images.numpy()), eager(model, Recipe(), small_images))
    with pytest.raises(WorkError, match="one image at a time, not for a batch size of 4: use batch size 1"):
        build(uncompressed, small_images, threads=1, batch=4)


@pytest.mark.slow
def test_activations_that_are_fused_hide_no_layer(small_images: Tensor) -> None:
    activations = nn.LeakyReLU(0.1), nn.Sigmoid(), nn.Hardsigmoid(), nn.Tanh(), nn.ReLU6()
    layers = [part for one in activations for part in (nn.Conv2d(1, 1, 3, padding=1), one)]
    runner = run("onnxruntime", nn.Sequential(*layers).eval(), Recipe(), small_images)
    assert runner.execution.precisions == {"f32": len(activations)}
    times = runner.profile(small_images[:1].numpy(), 1)
    assert sum(one.role == "layer" for one in times) == len(activations)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_fixed_scale_that_is_fused_hides_no_layer(engine: str, small_images: Tensor) -> None:
    norm = FrozenBatchNorm2d(16)
    norm.running_var.uniform_(0.5, 2)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(576, 4)).eval()
    execution = run(engine, model, Recipe(), small_images).execution
    assert execution.precisions == {"f32": 2}


class Masked(nn.Module):
    """Multiplies with a part of a convolution's weight, and never calls the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)
        self.register_buffer("mask", torch.arange(9).reshape(3, 3) < 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x, self.own.weight * self.mask, self.own.bias)
        return self.head(torch.relu(x).mean((2, 3)))


@torch.inference_mode()
def test_a_weight_that_is_masked_first_is_the_recipes(small_images: Tensor) -> None:
    torch.manual_seed(0)
    model = Masked().eval()
    compressed = compress(model, Recipe(PruneSpec(sparsity=0.5)))
    runner = engine_named("onnxruntime").prepare(model, SMALL_SHAPE)(
        compressed, small_images, threads=1, batch=1
    )
    close(runner.score(small_images.numpy()), compressed.module(small_images).numpy())


class Asks(nn.Module):
    """Asks with other values than it reads, as detectors that attend do."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.places = nn.Parameter(torch.linspace(-1, 1, 64).reshape(8, 8))

    def forward(self, images: Tensor) -> Tensor:
        values = images.flatten(1, 2)
        asked = values + self.places
        return self.head(self.attention(asked, asked, values, need_weights=False)[0].mean(1))


@pytest.mark.slow
def test_a_layer_whose_weight_is_split_is_not_passed_off_as_int8(small_images: Tensor) -> None:
    torch.manual_seed(0)
    runner = run("onnxruntime", Asks().eval(), ON_INT8_KERNELS[0], small_images)
    said = "8-bit activations: 1 of 3 layers take them in float32: attention.in_proj_weight"
    assert said in runner.execution.simulated
