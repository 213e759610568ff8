"""OpenVINO's graph of layers that have a form of their own there."""

import numpy as np
import pytest
import torch
from engine_runs import INT8, ON_INT8_KERNELS, off
from small_models import Standardised
from torch import nn

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
