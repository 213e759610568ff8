"""OpenVINO's graph of layers that have a form of their own there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_runs import INT8, ON_INT8_KERNELS, off
from small_models import Standardised
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.engine import openvino
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe


@pytest.mark.slow
@torch.inference_mode()
def test_groups_of_several_outputs_run_on_int8_kernels() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=8), nn.ReLU(), nn.Flatten()
    model, image = nn.Sequential(*layers, nn.Linear(64, 5)).eval(), torch.randn(1, 4, 6, 6)
    model[0].weight *= torch.linspace(0.2, 3, 8).reshape(-1, 1, 1, 1)  # no channel has another's scale
    build = openvino.prepare(model, (4, 6, 6))
    for recipe in ON_INT8_KERNELS[0], ON_INT8_KERNELS[3]:  # a scale for each channel, and one for all
        compressed = compress(model, recipe)
        runner, expected = build(compressed, image, threads=1, batch=1), compressed.module(image).numpy()
        assert off(runner.infer(image.numpy()), expected) < 0.05, recipe
        assert {layer.precision for layer in runner.execution.layers} <= {*INT8}, runner.execution.layers


@pytest.mark.slow
def test_activations_below_8_bits_run_in_float32_in_every_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.Linear(16, 5))
    compressed = compress(model.eval(), Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=6)))
    images = torch.randn(8, 3, 6, 6)
    runner = openvino.prepare(model, (3, 6, 6))(compressed, images, threads=1, batch=1)
    assert runner.execution.precisions == {"f32": 3}
    assert "6-bit activations: rounded between float32 kernels" in runner.execution.simulated
    assert 1e-3 < off(runner.score(images.numpy()), compressed.module(images).detach().numpy()) < 0.2


@pytest.mark.slow
@torch.inference_mode()
def test_a_weight_that_is_standardised_first_stays_and_the_others_are_replaced() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Standardised(8, 8, 3), nn.Flatten(), nn.Linear(32, 5)).eval()
    compressed, images = compress(model, Recipe(PruneSpec(sparsity=0.5))), torch.randn(2, 3, 6, 6)
    assert list(compressed.weights) == ["0.weight", "3.weight"]
    runner = openvino.prepare(model, (3, 6, 6))(compressed, images, threads=1, batch=2)
    expected = compressed.module(images).numpy()
    np.testing.assert_allclose(runner.infer(images.numpy()), expected, rtol=1e-3, atol=1e-4)


class Last(nn.Module):
    """Selects the last token's, or the first row of an image's, of what a layer without a bias gives."""

    def __init__(self, first: nn.Module, second: nn.Module, dimension: int) -> None:
        super().__init__()
        self.first, self.second, self.dimension = first, second, dimension

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).select(self.dimension, -1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Last(nn.Linear(32, 64), nn.Linear(64, 10, bias=False), 1), (7, 32)),
        (Last(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3, bias=False), 2), (3, 8, 8)),
    ],
)
@torch.inference_mode()
def test_what_is_selected_of_an_int8_layer_has_torchs_shape(
    model: nn.Module, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """In OpenVINO 2026.4's own form tokens had a dimension more, and images did not compile."""
    compressed = compress(model.eval(), ON_INT8_KERNELS[0])
    images = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    runner, expected = openvino.prepare(model, shape)(compressed, images, threads=1, batch=1), model(images)
    assert {layer.precision for layer in runner.execution.layers} <= {*INT8}
    assert runner.memory_probe
    assert runner.loader
    runner.memory_probe(str(tmp_path))
    saved = runner.loader()(tmp_path, 1, (1, *shape))
    for found in (
        runner.score(images.numpy())[:1],
        runner.infer(images[:1].numpy()),
        saved(images[:1].numpy()),
    ):
        assert found.shape == expected[:1].shape
        assert off(found, expected[:1].numpy()) < 0.05
