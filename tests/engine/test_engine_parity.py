"""Every engine that can run here answers as eager torch does: all bundled models and EfficientNet-Lite0.

Tolerances, against the span of the reference's logits (highest less lowest over all images):

- float32, whole and with half of the weights pruned: 1e-4, and all predictions but one in 500. Engines sum in
  another order; a bfloat16 kernel would be off by 1e-2.
- int8 weights and activations: 2e-1 at the worst, 3e-2 in the mean, and 90 % of the predictions of which the
  reference is sure (its two best logits are 5 % of the span apart). Each engine chooses where activations are
  rounded and over which ranges.

Each engine meets each network once, in float32 or in int8 by turns, so that each engine and each network is
there in both (torch is the reference in float32; torch.compile takes half a minute to compile: it meets a
convolutional network and a transformer's block in tests/engine/test_engine_compile.py).

Images are Fashion-MNIST's evaluation images, and smoothed noise for EfficientNet-Lite0. Tests go model
by model, so that each is loaded, answered for by eager torch, and prepared for each engine once.
"""

import importlib.util
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import pytest
import torch
from by_request import open_model
from torch import Tensor

from optimizer.compression.apply import CompressedModel, compress
from optimizer.data.loading import load_images
from optimizer.methods.engines import ENGINES
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec

MODELS = ("fashion-mlp", "fashion-resnet", "fashion-mobilenet", "fashion-vit", "efficientnet-lite0")
ALWAYS = {"torch": "int8"}
FLOAT32 = {"whole": Recipe(), "half pruned": Recipe(PruneSpec(sparsity=0.5))}
INT8 = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8))


def met_in(precision: str) -> pytest.MarkDecorator:
    """The engines and networks that meet in it. Of the module's scope: pytest puts the tests of one network
    together."""
    pairs = [
        pytest.param(engine, name, marks=[pytest.mark.slow] if column else [])
        for row, engine in enumerate(engine for engine in ENGINES if engine != "compile")
        for column, name in enumerate(MODELS)
        if ALWAYS.get(engine, ("float32", "int8")[(row + column) % 2]) == precision
    ]
    return pytest.mark.parametrize(("engine", "name"), pairs, scope="module")


@pytest.fixture(scope="module", autouse=True)
def _let_go() -> Iterator[None]:
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
    coarse = torch.randn(46, loaded.card.input_shape[0], 14, 14, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, loaded.card.input_shape[1:], mode="bicubic")
    return smooth[:30], smooth[30:]


def evaluated(name: str, recipe: Recipe) -> Tensor:
    """Photographs take a second each; many are needed to find some of which the reference is sure."""
    images = images_of(name)[0]
    return images[:10] if name == "efficientnet-lite0" and recipe != INT8 else images


@lru_cache(maxsize=len(FLOAT32) + 1)
def reference(name: str, recipe: Recipe) -> tuple[CompressedModel, np.ndarray]:
    compressed = compress(open_model(name).module, recipe, open_model(name).published)
    with torch.inference_mode():
        return compressed, compressed.module(evaluated(name, recipe)).numpy()


@lru_cache(maxsize=len(ENGINES))
def build_of(engine: str, name: str) -> Callable[..., object]:
    return ENGINES[engine].load().prepare(open_model(name).module, open_model(name).input_shape)


def answers(engine: str, name: str, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Of the engine and of the reference, whose activations are not rounded."""
    problem = ENGINES[engine].load().problem()
    if problem:
        pytest.skip(f"{engine}: {problem}")
    if name == "efficientnet-lite0" and importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        pytest.skip("the extra imagenet is not installed")
    calibration = images_of(name)[1]
    compressed, expected = reference(name, recipe)
    runner = build_of(engine, name)(compressed, calibration, threads=1, batch=1)
    return runner.score(evaluated(name, recipe).numpy()), expected  # type: ignore[attr-defined]


def same(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean(found.argmax(1) == expected.argmax(1)))


@met_in("float32")
def test_float32(engine: str, name: str) -> None:
    for words, recipe in FLOAT32.items():
        found, expected = answers(engine, name, recipe)
        span = expected.max() - expected.min()
        assert np.abs(found - expected).max() <= 1e-4 * span, words
        assert same(found, expected) >= 0.998, words


@pytest.mark.slow
@met_in("int8")
def test_int8(engine: str, name: str) -> None:
    found, expected = answers(engine, name, INT8)
    span = expected.max() - expected.min()
    apart = np.abs(found - expected) / span
    assert apart.max() <= 0.2
    assert 1e-5 < apart.mean() <= 0.03
    best = np.sort(expected, axis=1)[:, -2:]
    sure = best[:, 1] - best[:, 0] > 0.05 * span
    assert sure.any()
    assert same(found[sure], expected[sure]) >= 0.9
