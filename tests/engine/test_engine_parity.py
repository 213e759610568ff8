"""Every engine that can run here answers as eager torch does: all bundled models and EfficientNet-Lite0.

Tolerances, against the span of the reference's logits (highest less lowest over all images):

- float32, whole and with half of the weights pruned and 4 bits for the others: 1e-4, and all predictions but
  one in 500. Engines sum in another order; a bfloat16 kernel would be off by 1e-2.
- int8 weights and activations: 2e-1 at the worst, 3e-2 in the mean, and 90 % of the predictions of which the
  reference is sure (its two best logits are 5 % of the span apart). Each engine chooses where activations are
  rounded and over which ranges.

OpenVINO meets each bundled network in both. Else each engine meets each network once, by turns, so that each
engine and each network is there in both (torch is the reference in float32; torch.compile takes half a minute
to compile: tests/engine/test_engine_compile.py has it meet a convolutional network, a transformer's block).

Images are Fashion-MNIST's evaluation images, and smoothed noise of 128 x 128 for EfficientNet-Lite0. Tests go
model by model, so that each is loaded, answered for by eager torch, and prepared for each engine once.
"""

import importlib.util
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import pytest
import torch
from by_request import open_model
from engine_runs import INT8 as INT8_KERNELS
from torch import Tensor

from optimizer.compression.apply import CompressedModel, compress
from optimizer.data.loading import load_images
from optimizer.engine import Runner
from optimizer.methods.engines import ENGINES
from optimizer.model.layers import walk
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec

MODELS = ("fashion-mlp", "fashion-resnet", "fashion-mobilenet", "fashion-vit", "efficientnet-lite0")
FOUR_BITS = Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=4))
RECIPES = {
    "float32": (Recipe(), FOUR_BITS),
    "int8": (Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8)),),
}
SIMULATED = {FOUR_BITS: ("4-bit weights: the values are exact, the kernels are float32",)}
"""What OpenVINO is to say of a recipe."""


def precisions(engine: str, row: int, column: int) -> list[str]:
    if engine == "torch":
        return ["int8"]
    if engine == "openvino" and MODELS[column] != "efficientnet-lite0":
        return ["float32", "int8"]
    return [("float32", "int8")[(row + column) % 2]]


MEETINGS = [
    pytest.param(
        name, engine, precision, marks=[] if (column, precision) == (0, "float32") else [pytest.mark.slow]
    )
    for column, name in enumerate(MODELS)
    for row, engine in enumerate(engine for engine in ENGINES if engine != "compile")
    for precision in precisions(engine, row, column)
]


@pytest.fixture(scope="module", autouse=True)
def _let_go() -> Iterator[None]:
    """And nothing here depends on which kernels are the fastest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimizer.engine.kernels.network.REPEATS", 1)
        patch.setattr("optimizer.engine.sparse.SURELY_SPARSE", 1.0)
        yield
    build_of.cache_clear()
    reference.cache_clear()


@lru_cache(maxsize=1)
def images_of(name: str) -> tuple[Tensor, Tensor]:
    """For evaluation and for calibration."""
    loaded = open_model(name).loaded
    if loaded.card.bundled_images:
        images = load_images(loaded, DataSpec(limit=200))
        return images.evaluation.images, images.calibration.images[:64]
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(46, loaded.card.input_shape[0], 12, 12, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (128, 128), mode="bicubic")
    return smooth[:30], smooth[30:]


@lru_cache(maxsize=3)
def reference(name: str, recipe: Recipe) -> tuple[CompressedModel, np.ndarray]:
    compressed = compress(open_model(name).module, recipe, open_model(name).published)
    with torch.inference_mode():
        return compressed, compressed.module(images_of(name)[0]).numpy()


@lru_cache(maxsize=len(ENGINES))
def build_of(engine: str, name: str) -> Callable[..., Runner]:
    shape = tuple(images_of(name)[0].shape[1:])
    return ENGINES[engine].load().prepare(open_model(name).module, shape)


@pytest.mark.parametrize(("name", "engine", "precision"), MEETINGS)
def test_an_engine_answers_as_torch_does(name: str, engine: str, precision: str) -> None:
    problem = ENGINES[engine].load().problem()
    if problem:
        pytest.skip(f"{engine}: {problem}")
    if name == "efficientnet-lite0" and importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        pytest.skip("the extra imagenet is not installed")
    images, calibration = images_of(name)
    for recipe in RECIPES[precision]:
        compressed, expected = reference(name, recipe)
        runner = build_of(engine, name)(compressed, calibration, threads=1, batch=1)
        found = runner.score(images.numpy())
        layers = [layer.name for layer in runner.execution.layers]
        assert layers == [layer.name for layer in walk(compressed.module)]
        rounded = precision == "int8" and ENGINES[engine].int8
        assert {*runner.execution.precisions} <= ({*INT8_KERNELS} if rounded else {"f32"})
        if engine == "openvino":
            assert runner.execution.simulated == SIMULATED.get(recipe, ())
        (are_alike if precision == "int8" else are_equal)(found, expected)


def are_equal(found: np.ndarray, expected: np.ndarray) -> None:
    span = expected.max() - expected.min()
    assert np.abs(found - expected).max() <= 1e-4 * span
    assert same(found, expected) >= 0.998


def are_alike(found: np.ndarray, expected: np.ndarray) -> None:
    """Activations of the reference are not rounded."""
    span = expected.max() - expected.min()
    apart = np.abs(found - expected) / span
    assert apart.max() <= 0.2
    assert 1e-5 < apart.mean() <= 0.03
    best = np.sort(expected, axis=1)[:, -2:]
    sure = best[:, 1] - best[:, 0] > 0.05 * span
    assert sure.any()
    assert same(found[sure], expected[sure]) >= 0.9


def same(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean(found.argmax(1) == expected.argmax(1)))
