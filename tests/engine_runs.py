"""Recipes to run on engines, and how."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optimizer.compression.apply import CompressedModel, compress
from optimizer.engine import Runner, engine_named
from optimizer.engine.base import Build
from optimizer.methods.engines import ENGINES
from optimizer.model.layers import uses
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe

Ready = Callable[[str, str], tuple[nn.Module, Build]]

QUICK = [name for name in ENGINES if name != "compile"]
"""Engines that make a runner in less than a second; torch.compile has tests of its own, in
test_engine_compile and test_engine_parity."""

INT8 = ("i8", "u8")
PRUNED = PruneSpec(sparsity=0.5, allocation="uniform")
EXACT = [
    Recipe(),
    Recipe(PRUNED),
    Recipe(quantize=QuantizeSpec(weight_bits=16)),
    Recipe(PRUNED, QuantizeSpec(weight_bits=4)),
    Recipe(PRUNED, QuantizeSpec(weight_bits=2, symmetric=False, granularity="tensor", range="mse")),
    Recipe(quantize=QuantizeSpec(weight_bits=8, symmetric=False)),
]
ON_INT8_KERNELS = [
    Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8)),
    Recipe(PRUNED, QuantizeSpec(weight_bits=4, activation_bits=8)),
    Recipe(quantize=QuantizeSpec(weight_bits=6, activation_bits=8, symmetric=False)),
    Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8, granularity="tensor", range="mse")),
]
ROUNDED_ONLY = [
    Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8, symmetric=False)),
    Recipe(quantize=QuantizeSpec(weight_bits=32, activation_bits=8)),
    Recipe(PRUNED, QuantizeSpec(weight_bits=16, activation_bits=8)),
]


needs_compiler = pytest.mark.skipif(
    ENGINES["compile"].load().problem() is not None, reason="no C++ compiler for torch.compile"
)


def run(engine: str, model: nn.Module, recipe: Recipe, calibration: Tensor, batch: int = 1) -> Runner:
    build = engine_named(engine).prepare(model, tuple(calibration.shape[1:]))  # type: ignore[arg-type]
    return build(compress(model, recipe), calibration, threads=1, batch=batch)


def eager(model: nn.Module, recipe: Recipe, images: Tensor) -> np.ndarray:
    with torch.inference_mode():
        return compress(model, recipe).module(images).numpy()


def with_shifted_biases(model: nn.Module, recipe: Recipe) -> CompressedModel:
    """A recipe that changes the bias of every layer."""
    made = compress(model, recipe)
    for layer in uses(made.module):
        change = torch.linspace(-1, 1, len(layer.weight))
        made.weights[layer.name] = replace(made.weights[layer.name], bias_change=change)
        assert layer.bias is not None
        with torch.no_grad():
            layer.bias.add_(change)
    return made


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """How far, as a share of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the order of float32 sums. (bfloat16 kernels would be off by a hundred times as much.)"""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
