import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_MODELS, SMALL_SHAPE
from factories import make_result
from torch import Tensor, nn

from optimizer import engines
from optimizer.architectures import ARCHITECTURES, IMAGE_SHAPE
from optimizer.cli import main
from optimizer.compress import CompressedModel, CompressedWeight, compress
from optimizer.engines import ENGINES, Runner, engine_named, openvino
from optimizer.engines.base import Build
from optimizer.engines.memory import measure_start
from optimizer.environment import check_precision, environment, precisions
from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.layers import fold_batch_norm, uses, walk
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import LayerExecution
from optimizer.resources import assets_dir
from optimizer.store import Store
from optimizer.subject import subject

Small = Callable[[str], nn.Module]
Ready = Callable[[str, str], tuple[nn.Module, Build]]

QUICK = [name for name in ENGINES if name != "compile"]
"""Engines that make a runner in less than a second; torch.compile has tests of its own below, and in
test_engine_parity."""

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
    ENGINES["compile"].problem() is not None, reason="no C++ compiler for torch.compile"
)


def run(engine: str, model: nn.Module, recipe: Recipe, calibration: Tensor, batch: int = 1) -> Runner:
    build = engine_named(engine).prepare(model, tuple(calibration.shape[1:]))  # type: ignore[arg-type]
    return build(compress(model, recipe), calibration, 1, batch)


def eager(model: nn.Module, recipe: Recipe, images: Tensor) -> np.ndarray:
    with torch.inference_mode():
        return compress(model, recipe).module(images).numpy()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the order of float32 sums. (bfloat16 kernels would be off by a hundred times as much.)"""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def weights_in(folder: Path) -> list[np.ndarray]:
    """What each convolution and matrix product of a saved graph multiplies with, worked out by hand."""
    import openvino  # after the engine: it decides what OpenVINO reports home

    graph = openvino.Core().read_model(folder / "model.xml")

    def value(node: Any) -> np.ndarray:
        kind = node.get_type_name()
        inputs = [source.get_source_output().get_node() for source in node.inputs()]
        if kind == "Constant":
            return np.array(node.get_data())
        if kind == "Convert":
            return value(inputs[0]).astype(np.float32)
        assert kind == "Multiply", kind
        return value(inputs[0]) * value(inputs[1])

    return [
        value(node.input_value(1).get_node())
        for node in graph.get_ordered_ops()
        if node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul")
    ]


@pytest.fixture(scope="module")
def builds() -> Callable[[str, str], Any]:
    """``builds(engine, model)``: prepared once for all tests here."""
    cache: dict[tuple[str, str], Any] = {}

    def prepared(engine: str, name: str) -> Any:
        if (engine, name) not in cache:
            cache[engine, name] = engine_named(engine).prepare(subject(name).module, IMAGE_SHAPE)
        return cache[engine, name]

    return prepared


READY: dict[tuple[str, str], tuple[nn.Module, Build]] = {}


@pytest.fixture
def ready(small: Small) -> Ready:
    """``ready(engine, name)``: a small model, batch norm folded, and what the engine made of it, once for all
    tests here. (An export to ONNX takes 2 s.) Leave the model as it is."""

    def made(engine: str, name: str) -> tuple[nn.Module, Build]:
        if (engine, name) not in READY:
            model, _ = fold_batch_norm(small(name))
            READY[engine, name] = model, engine_named(engine).prepare(model, SMALL_SHAPE)
        return READY[engine, name]

    return made


# Every engine


@pytest.mark.parametrize("engine", QUICK)
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_engines_compute_what_eager_torch_does(
    ready: Ready, small_images: Tensor, engine: str, name: str
) -> None:
    """Shared, tied and never-called layers, and attention's projections, all carry the recipe's weights."""
    model, build = ready(engine, name)
    for recipe in EXACT if name == "cnn" else EXACT[4:5]:
        runner = build(compress(model, recipe), small_images, 1, 1)
        close(runner.score(small_images.numpy()), eager(model, recipe, small_images))
        assert runner.execution.precisions.keys() == {"f32"}


@pytest.mark.parametrize("engine", QUICK)
@pytest.mark.parametrize(("batch", "recipe"), [(1, EXACT[3]), (3, ON_INT8_KERNELS[0])])
def test_infer_and_score_agree(
    ready: Ready, small_images: Tensor, engine: str, batch: int, recipe: Recipe
) -> None:
    model, build = ready(engine, "cnn")
    images = small_images.numpy()
    runner = build(compress(model, recipe), small_images, 1, batch)
    scored = runner.score(images)
    assert scored.shape == (len(images), 10)
    assert scored.dtype == np.float32
    timed = [runner.infer(images[start : start + batch]) for start in range(0, len(images), batch)]
    close(np.concatenate(timed), scored)


@pytest.mark.parametrize("engine", QUICK)
def test_scoring_takes_any_number_of_images_in_order(ready: Ready, engine: str) -> None:
    model, build = ready(engine, "cnn")
    images = torch.randn(503, *SMALL_SHAPE, generator=torch.Generator().manual_seed(5))
    runner = build(compress(model, Recipe()), images, 1, 1)
    expected = eager(model, Recipe(), images)
    for count in (1, 7, 50, 100, 503):
        close(runner.score(images[:count].numpy()), expected[:count])


@pytest.mark.parametrize("engine", QUICK)
def test_an_answer_is_not_overwritten_by_the_next(ready: Ready, small_images: Tensor, engine: str) -> None:
    model, build = ready(engine, "cnn")
    runner = build(compress(model, Recipe()), small_images, 1, 1)
    first = runner.infer(small_images[:1].numpy())
    kept = first.copy()
    runner.infer(small_images[1:2].numpy())
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("engine", QUICK)
def test_building_leaves_the_compressed_model_and_torch_as_they_were(
    small: Small, small_images: Tensor, engine: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A second runner of the same model gives the same answers, and nothing is printed."""
    model, _ = fold_batch_norm(small("cnn"))
    build = engine_named(engine).prepare(model, SMALL_SHAPE)
    compressed = compress(model, ON_INT8_KERNELS[1])
    before = {name: tensor.clone() for name, tensor in compressed.module.state_dict().items()}
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    scores = [build(compressed, small_images, 1, 1).score(small_images.numpy()) for _ in range(2)]
    close(scores[0], scores[1])
    assert all(torch.equal(before[name], tensor) for name, tensor in compressed.module.state_dict().items())
    assert not any(
        module._forward_pre_hooks or module._forward_hooks for module in compressed.module.modules()
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert capfd.readouterr().out == ""


def test_an_unknown_engine_is_refused_listing_the_known() -> None:
    with pytest.raises(InputError, match="unknown engine 'tvm': use one of openvino, onnxruntime, "):
        engine_named("tvm")


def test_an_engine_that_cannot_run_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = replace(ENGINES["openvino"], problem=lambda: "the package openvino is not installed")
    monkeypatch.setitem(engines.ENGINES, "openvino", missing)
    with pytest.raises(UnavailableError, match="engine openvino can't run here: the package openvino is not"):
        engine_named("openvino")


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_are_registered_under_their_own_name(engine: str) -> None:
    assert engine_named(engine).name == engine
    assert engine_named(engine).problem() is None


# The bundled models


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_openvino_agrees_with_eager_torch_on_the_bundled_models(
    builds: Callable[[str, str], Any], name: str
) -> None:
    if not (assets_dir() / f"{name}.safetensors").exists():
        pytest.skip(f"{name} is not in assets/ yet")
    images = torch.randn(40, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))
    for recipe in (EXACT[0], EXACT[3]):
        compressed = compress(subject(name).module, recipe)
        runner = builds("openvino", name)(compressed, images, 1, 1)
        close(runner.score(images.numpy()), eager(subject(name).module, recipe, images))
        layers = [layer.name for layer in walk(subject(name).module)]
        assert [layer.name for layer in runner.execution.layers] == layers
        assert runner.execution.precisions == {"f32": len(layers)}
        words = {32: (), 4: ("4-bit weights: the values are exact, the kernels are float32",)}
        assert runner.execution.simulated == words[recipe.quantize.weight_bits]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_8_bit_weights_and_activations_run_on_int8_kernels_in_the_bundled_models(
    builds: Callable[[str, str], Any], name: str
) -> None:
    if not (assets_dir() / f"{name}.safetensors").exists():
        pytest.skip(f"{name} is not in assets/ yet")
    images = torch.randn(16, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))
    runner = builds("openvino", name)(compress(subject(name).module, ON_INT8_KERNELS[0]), images, 1, 1)
    assert set(runner.execution.precisions) <= set(INT8), runner.execution.layers
    assert runner.execution.simulated == ()


# OpenVINO


@pytest.mark.parametrize("recipe", ON_INT8_KERNELS, ids=Recipe.describe)
def test_codes_that_fit_a_byte_run_on_int8_kernels_with_exactly_their_values(
    small: Small, small_images: Tensor, tmp_path: Path, recipe: Recipe
) -> None:
    model, _ = fold_batch_norm(small("cnn"))
    runner = run("openvino", model, recipe, small_images)
    layers = [layer.name for layer in walk(model)]
    assert [layer.name for layer in runner.execution.layers] == layers
    assert {layer.precision for layer in runner.execution.layers} <= set(INT8), runner.execution.layers
    bits = recipe.quantize.weight_bits
    exact = f"{bits}-bit weights: the values are exact, the kernels are int8"
    assert runner.execution.simulated == (() if bits == 8 else (exact,))

    assert runner.memory_probe is not None
    runner.memory_probe(str(tmp_path))
    found = weights_in(tmp_path)
    expected = compress(model, recipe).weights
    assert len(found) == len(layers)
    for values, name in zip(found, layers, strict=True):
        assert np.array_equal(values.ravel(), expected[name].values.numpy().ravel())


@pytest.mark.parametrize("recipe", ROUNDED_ONLY, ids=Recipe.describe)
def test_weights_that_fit_no_byte_run_on_float32_kernels_and_it_says_so(
    small: Small, small_images: Tensor, recipe: Recipe
) -> None:
    model, _ = fold_batch_norm(small("cnn"))
    runner = run("openvino", model, recipe, small_images)
    assert runner.execution.precisions.keys() == {"f32"}
    words = "\n".join(runner.execution.simulated)
    assert "8-bit activations: rounded between float32 kernels" in words
    assert "not fit int8" in words
    bits = recipe.quantize.weight_bits
    assert (f"{bits}-bit weights: the values are exact, the kernels are float32" in words) is (bits < 32)
    float32 = eager(model, recipe, small_images)
    noise = np.linalg.norm(runner.score(small_images.numpy()) - float32) / np.linalg.norm(float32)
    assert 1e-4 < noise < 0.1


def test_a_layer_that_int8_did_not_reach_is_named(small: Small) -> None:
    ran = [LayerExecution("stem", "u8", "brgconv"), LayerExecution("head", "f32", "gemm")]
    recipe = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8))
    compressed = compress(small("cnn"), recipe)
    assert openvino.simulated(compressed, ran) == ["1 of 2 layers did not run on int8 kernels: head"]
    assert openvino.simulated(compressed, ran[:1]) == []


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize("bits", [6, 4])
def test_activations_of_fewer_bits_are_rounded_to_fewer_levels(
    small: Small, small_images: Tensor, engine: str, bits: int
) -> None:
    model, _ = fold_batch_norm(small("cnn"))
    float32 = eager(model, Recipe(), small_images)

    def noise(width: int) -> float:
        recipe = Recipe(quantize=QuantizeSpec(activation_bits=width))
        answers = run(engine, model, recipe, small_images)
        assert f"{width}-bit activations: rounded between float32 kernels" in " ".join(
            answers.execution.simulated
        )
        return float(np.linalg.norm(answers.score(small_images.numpy()) - float32) / np.linalg.norm(float32))

    assert 1.3 * noise(bits + 2) < noise(bits) < 6 * noise(bits + 2)


def test_bias_changes_reach_the_kernels(small: Small, small_images: Tensor) -> None:
    for name in ("cnn", "encoder", "shared", "tied"):
        model, _ = fold_batch_norm(small(name))
        weights = {
            layer.name: CompressedWeight(
                layer.weight.detach(),
                torch.ones_like(layer.weight, dtype=torch.bool),
                None,
                -1.0,
                bias_change=torch.linspace(-1, 1, layer.weight.shape[0]) if layer.bias is not None else None,
            )
            for layer in walk(model)
        }
        module = copy.deepcopy(model)
        with torch.no_grad():
            for layer in uses(module):
                change = weights[layer.name].bias_change
                if layer.bias is not None and change is not None:
                    layer.bias.add_(change)
        built = openvino.prepare(model, small_images.shape[1:])(
            CompressedModel(module, Recipe(), weights), small_images, 1, 1
        )
        with torch.inference_mode():
            np.testing.assert_allclose(
                built.score(small_images.numpy()), module(small_images).numpy(), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("name", ["encoder", "shared", "tied"])
def test_int8_reaches_attention_shared_and_tied_layers(
    small: Small, small_images: Tensor, tmp_path: Path, name: str
) -> None:
    model = small(name)
    runner = run("openvino", model, ON_INT8_KERNELS[1], small_images)
    assert {layer.precision for layer in runner.execution.layers} <= set(INT8), runner.execution.layers
    assert runner.memory_probe is not None
    runner.memory_probe(str(tmp_path))
    found = weights_in(tmp_path)
    values = [
        weight.values.numpy().ravel() for weight in compress(model, ON_INT8_KERNELS[1]).weights.values()
    ]
    assert all(any(np.array_equal(one.ravel(), value) for value in values) for one in found)
    float32 = eager(model, EXACT[3], small_images)
    noise = np.linalg.norm(runner.score(small_images.numpy()) - float32) / np.linalg.norm(float32)
    assert 0 < noise < 0.1


@pytest.mark.parametrize("name", ["cnn", "encoder", "shared", "tied"])
def test_the_sparse_engine_rounds_inputs_of_every_kind_of_layer(
    small: Small, small_images: Tensor, name: str
) -> None:
    model, _ = fold_batch_norm(small(name))
    answers = run("sparse", model, ON_INT8_KERNELS[1], small_images).score(small_images.numpy())
    expected = run("torch", model, ON_INT8_KERNELS[1], small_images).score(small_images.numpy())
    np.testing.assert_allclose(answers, expected, atol=0.02 * np.abs(expected).max())


def test_many_models_are_scored_and_let_go(small: Small, small_images: Tensor) -> None:
    """Where a callback of a finished request was still waiting for Python, letting go waited for ever."""
    model, _ = fold_batch_norm(small("cnn"))
    build = engine_named("openvino").prepare(model, SMALL_SHAPE)
    for _ in range(40):
        build(compress(model, Recipe()), small_images, 1, 1).score(small_images.numpy())


def test_a_layer_that_never_runs_is_left_out_of_what_was_executed(small: Small, small_images: Tensor) -> None:
    runner = run("openvino", small("auxiliary"), Recipe(), small_images)
    assert [layer.name for layer in runner.execution.layers] == ["body.weight", "head.weight"]


class Unconvertible(nn.Module):
    """An operation that OpenVINO has no kernel for."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        square = self.head(x.flatten(1))[:, :, None] * torch.eye(8)
        return torch.linalg.slogdet(square)[1][:, None]


class Branching(nn.Module):
    """What it computes depends on the images: no graph holds that."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(x.flatten(1))
        return logits if logits.sum().item() > 0 else -logits


class Masked(nn.Module):
    """Multiplies with its weight times a mask: no constant of the graph is the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.flatten(1), self.head.weight * 2) + self.head(x.flatten(1))


def test_a_model_that_openvino_cannot_convert_is_a_failure_in_words() -> None:
    with pytest.raises(
        WorkError, match="OpenVINO can't convert this model.*slogdet.*Use engine torch"
    ) as info:
        engine_named("openvino").prepare(Unconvertible().eval(), SMALL_SHAPE)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("onnxruntime", "torch can't export this model to ONNX.*Use engine torch"),
        pytest.param(
            "compile", "torch.compile can't compile this model.*Use engine torch", marks=needs_compiler
        ),
    ],
)
def test_a_model_that_other_engines_cannot_take_is_a_failure_in_words(
    small_images: Tensor, engine: str, words: str
) -> None:
    with pytest.raises(WorkError, match=words) as info:
        run(engine, Branching().eval(), Recipe(), small_images).score(small_images.numpy())
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "onnxruntime"], "engine onnxruntime can't run here: no package onnxruntime"),
        (["--engine", "tvm"], "unknown engine 'tvm': use one of openvino"),
        (["--threads", "999"], "999 threads are more than this machine's"),
        (["--batch", "0"], "batch 0 is too small: at least 1 image"),
        (["--precision", "f8"], "unknown precision 'f8': use one of f32, bf16, f16"),
    ],
)
def test_bad_input_is_told_and_other_engines_results_stay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    store = Store()
    store.put(make_result(model="fashion-mlp", engine="torch"))
    missing = replace(ENGINES["onnxruntime"], problem=lambda: "no package onnxruntime (pip install it)")
    monkeypatch.setitem(engines.ENGINES, "onnxruntime", missing)
    assert main(["measure", "fashion-mlp", "--limit", "50", "--quick", *options]) == 2
    assert words in capsys.readouterr().err
    assert [result.request.engine for result in store.results(model="fashion-mlp")] == ["torch"]


REPORTING = """
import sys, threading, torch
from optimizer.compress import compress
from optimizer.engines import engine_named
from optimizer.recipe import QuantizeSpec, Recipe
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8)).eval().requires_grad_(False)
recipe = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8))
build = engine_named("openvino").prepare(model, (1, 8, 8))
build(compress(model, recipe), torch.zeros(2, 1, 8, 8), 1, 1)
assert sys.modules["openvino_telemetry"] is None
assert "nncf" in sys.modules
"""


def test_libraries_report_nothing_home(tmp_path: Path) -> None:
    """Left alone, OpenVINO's converter and NNCF send events to Google Analytics, without asking."""
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", REPORTING], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_failed_conversion_leaves_torch_s_attention_as_it_was() -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(WorkError):
        engine_named("openvino").prepare(Unconvertible().eval(), SMALL_SHAPE)
    assert torch.backends.mha.get_fastpath_enabled()


# torch


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
    runner = engine_named("torch").prepare(compressed.module, SMALL_SHAPE)(compressed, small_images, 1, 1)
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
    assert "attention's output projection" in words[-1]


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


# A fresh process: resident memory and cold start


def test_resident_memory_is_at_least_the_weights() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100_000), nn.Linear(100_000, 10)).eval()
    weights_bytes = sum(4 * parameter.numel() for parameter in model.parameters())
    runner = run("torch", model, Recipe(), torch.zeros(1, *SMALL_SHAPE))
    began = time.perf_counter_ns()
    start = measure_start(runner, 1, (1, *SMALL_SHAPE))
    assert start is not None
    assert start.memory_bytes > 0.9 * weights_bytes
    assert 0 < start.cold_start_ns < time.perf_counter_ns() - began


@pytest.mark.parametrize(("engine", "bits"), [("openvino", 8), ("onnxruntime", 8), ("onnxruntime", 32)])
def test_every_loader_starts_what_was_saved(
    ready: Ready, small_images: Tensor, engine: str, bits: int, tmp_path: Path
) -> None:
    model, build = ready(engine, "cnn")
    recipe = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=bits))
    runner = build(compress(model, recipe), small_images, 1, 1)
    assert measure_start(runner, 1, (1, *SMALL_SHAPE)) is not None
    assert runner.memory_probe is not None
    assert runner.loader is not None
    runner.memory_probe(str(tmp_path))
    images = small_images[:1].numpy()
    found = runner.loader()(tmp_path, 1, images.shape)(images)
    close(np.asarray(found[0]), runner.infer(images))  # type: ignore[index]


@needs_compiler
def test_compiling_from_nothing_is_part_of_a_cold_start(small_images: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU()).eval()
    start = measure_start(run("compile", model, Recipe(), small_images), 1, (1, *SMALL_SHAPE))
    assert start is not None
    assert start.cold_start_ns > 5e8  # a C++ compiler ran: other engines start such a model in a hundredth


def test_a_runner_without_a_loader_has_no_figures(small: Small, small_images: Tensor) -> None:
    runner = run("torch", small("cnn"), Recipe(), small_images)
    assert measure_start(replace(runner, memory_probe=None), 1, (1, *SMALL_SHAPE)) is None
    assert measure_start(replace(runner, loader=None), 1, (1, *SMALL_SHAPE)) is None


def test_a_process_that_fails_is_a_failure_in_words(small: Small, small_images: Tensor) -> None:
    runner = run("torch", small("cnn"), Recipe(), small_images)
    empty = replace(runner, memory_probe=lambda folder: None)
    with pytest.raises(WorkError, match=r"(?s)memory could not be measured.*model.pt"):
        measure_start(empty, 1, (1, *SMALL_SHAPE))


# ONNX Runtime


@pytest.mark.parametrize("recipe", ON_INT8_KERNELS, ids=Recipe.describe)
@pytest.mark.parametrize("name", ["cnn", "encoder", "shared", "tied"])
def test_onnx_runtime_runs_every_layer_on_int8_kernels(
    ready: Ready, small_images: Tensor, name: str, recipe: Recipe
) -> None:
    model, build = ready("onnxruntime", name)
    runner = build(compress(model, recipe), small_images, 1, 1)
    float32 = eager(
        model, replace(recipe, quantize=replace(recipe.quantize, activation_bits=32)), small_images
    )
    noise = np.linalg.norm(runner.score(small_images.numpy()) - float32) / np.linalg.norm(float32)
    assert 1e-4 < noise < 0.1
    assert {layer.precision for layer in runner.execution.layers} == {"u8"}, runner.execution.layers


@pytest.mark.parametrize("recipe", ROUNDED_ONLY, ids=Recipe.describe)
def test_onnx_runtime_says_what_no_int8_kernel_takes(
    ready: Ready, small_images: Tensor, recipe: Recipe
) -> None:
    model, build = ready("onnxruntime", "cnn")
    runner = build(compress(model, recipe), small_images, 1, 1)
    assert runner.execution.precisions.keys() == {"f32"}
    assert "not fit int8" in " ".join(runner.execution.simulated)


def test_a_channel_of_next_to_nothing_keeps_its_bias_in_int8(small_images: Tensor) -> None:
    """In units of its tiny scale the bias is beyond an int32."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    with torch.no_grad():
        model[0].weight[1] *= 1e-9
        model[0].bias.fill_(2.0)
    float32 = eager(model, Recipe(), small_images)
    for recipe in ON_INT8_KERNELS[0], ON_INT8_KERNELS[2]:
        runner = run("onnxruntime", model, recipe, small_images)
        noise = np.linalg.norm(runner.score(small_images.numpy()) - float32) / np.linalg.norm(float32)
        assert noise < 0.1
        assert runner.execution.precisions == {"u8": 2}


class OneImage(nn.Module):
    """Its code asks for the batch's size, so it can be exported for one image only."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)) if x.shape[0] == 1 else torch.cat([self(one) for one in x.split(1)])


def test_a_model_that_takes_one_image_at_a_time(small_images: Tensor) -> None:
    model = OneImage().eval()
    runner = run("onnxruntime", model, Recipe(), small_images)
    close(runner.score(small_images.numpy()), eager(model, Recipe(), small_images))
    with pytest.raises(WorkError, match="one image at a time, not for a batch of 4: use batch 1"):
        run("onnxruntime", model, Recipe(), small_images, batch=4)


# torch.compile


@needs_compiler
def test_a_recipe_compiles_nothing_anew(small: Small, small_images: Tensor) -> None:
    model, _ = fold_batch_norm(small("cnn"))
    build = engine_named("compile").prepare(model, SMALL_SHAPE)
    images = small_images.numpy()
    build(compress(model, Recipe()), small_images, 1, 1).score(images)
    from torch._dynamo import config

    with config.patch(error_on_recompile=True):
        for recipe in EXACT[1:4]:
            runner = build(compress(model, recipe), small_images, 1, 1)
            close(runner.score(images), eager(model, recipe, small_images))


@needs_compiler
def test_compiled_layers_round_their_inputs_as_eager_ones_do(small: Small, small_images: Tensor) -> None:
    model, _ = fold_batch_norm(small("cnn"))
    recipe = ON_INT8_KERNELS[1]
    found = run("compile", model, recipe, small_images)
    expected = run("torch", model, recipe, small_images).score(small_images.numpy())
    apart = np.abs(found.score(small_images.numpy()) - expected)
    assert np.median(apart) < 1e-5
    assert "rounded between float32 kernels" in " ".join(found.execution.simulated)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch._inductor import cpp_builder

    from optimizer.engines import compile

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "/bin/false")
    assert "can't compile what inductor writes" in str(compile.problem.__wrapped__())

    def none() -> str:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    assert "no C++ compiler" in str(compile.problem.__wrapped__())


# Precisions


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_bfloat16_really_runs(small: Small, small_images: Tensor, engine: str) -> None:
    if "bf16" not in precisions(environment()):
        pytest.skip("this CPU has no instructions for bfloat16")
    model, _ = fold_batch_norm(small("cnn"))
    runner = run(engine, model, Recipe(quantize=QuantizeSpec(precision="bf16")), small_images)
    float32 = eager(model, Recipe(), small_images)
    answers = runner.score(small_images.numpy())
    assert answers.dtype == np.float32
    assert 1e-4 < np.linalg.norm(answers - float32) / np.linalg.norm(float32) < 0.05
    assert runner.execution.precisions == {"bf16": 4}
    assert runner.execution.simulated == ()


def test_a_precision_that_an_engine_has_not_is_simulated(ready: Ready, small_images: Tensor) -> None:
    model, build = ready("onnxruntime", "cnn")
    recipe = Recipe(quantize=QuantizeSpec(precision="bf16"))
    runner = build(compress(model, recipe), small_images, 1, 1)
    assert runner.execution.precisions == {"f32": 4}
    assert "bfloat16: 4 of 4 layers did not run in it" in " ".join(runner.execution.simulated)
    close(runner.score(small_images.numpy()), eager(model, Recipe(), small_images))


def test_a_precision_that_the_cpu_has_not_is_refused() -> None:
    old = replace(environment(), cpu="Old", instruction_sets=("avx2",))
    check_precision("f32", old)
    with pytest.raises(InputError, match=r"f16 needs avx512_fp16 or amx_fp16 .*\(Old\): use f32"):
        check_precision("f16", old)
    check_precision("bf16", replace(old, instruction_sets=("avx512_bf16",)))
