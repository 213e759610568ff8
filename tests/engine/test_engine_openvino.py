"""OpenVINO: the graph, int8 kernels, and what can't be converted."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import (
    EXACT,
    INT8,
    ON_INT8_KERNELS,
    ROUNDED_ONLY,
    Ready,
    eager,
    off,
    run,
    with_shifted_biases,
)
from small_models import SMALL_SHAPE, Small
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.engine import engine_named, openvino
from optimizer.engine.realised import UNTOLD
from optimizer.errors import WorkError
from optimizer.model.layers import walk
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import LayerExecution


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


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ON_INT8_KERNELS, ids=Recipe.describe)
def test_codes_that_fit_a_byte_run_on_int8_kernels_with_exactly_their_values(
    ready: Ready, small_images: Tensor, tmp_path: Path, recipe: Recipe
) -> None:
    model, build = ready("openvino", "cnn")
    runner = build(compress(model, recipe), small_images, threads=1, batch=1)
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


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ROUNDED_ONLY, ids=Recipe.describe)
def test_weights_that_fit_no_byte_run_on_float32_kernels_and_it_says_so(
    ready: Ready, small_images: Tensor, recipe: Recipe
) -> None:
    model, build = ready("openvino", "cnn")
    runner = build(compress(model, recipe), small_images, threads=1, batch=1)
    assert runner.execution.precisions.keys() == {"f32"}
    words = "\n".join(runner.execution.simulated)
    assert "8-bit activations: rounded between float32 kernels" in words
    assert "not fit int8" in words
    bits = recipe.quantize.weight_bits
    assert (f"{bits}-bit weights: the values are exact, the kernels are float32" in words) is (bits < 32)
    float32 = eager(model, recipe, small_images)
    assert 1e-4 < off(runner.score(small_images.numpy()), float32) < 0.1


def test_a_layer_that_int8_did_not_reach_is_named(small: Small) -> None:
    ran = [LayerExecution("stem", "u8", "brgconv"), LayerExecution("head", "f32", "gemm")]
    recipe = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8))
    compressed = compress(small("cnn"), recipe)
    for layers, words in (
        (ran, ("1 of 2 layers did not run on int8 kernels: head",)),
        (ran[:1], ()),
        (
            [ran[0], LayerExecution("head", *UNTOLD)],
            ("1 of 2 layers ran on kernels that are not told: head",),
        ),
    ):
        assert openvino.simulated(compressed, layers, "openvino") == words


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_activations_of_fewer_bits_are_rounded_to_fewer_levels(
    ready: Ready, small_images: Tensor, engine: str
) -> None:
    model, build = ready(engine, "cnn")
    float32 = eager(model, Recipe(), small_images)

    def noise(width: int) -> float:
        recipe = Recipe(quantize=QuantizeSpec(activation_bits=width))
        runner = build(compress(model, recipe), small_images, threads=1, batch=1)
        words = f"{width}-bit activations: rounded between float32 kernels"
        assert words in " ".join(runner.execution.simulated)
        return off(runner.score(small_images.numpy()), float32)

    eight, six, four = noise(8), noise(6), noise(4)
    assert 1.3 * eight < six < 6 * eight
    assert 1.3 * six < four < 6 * six


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "encoder", "shared", "tied"])
def test_bias_changes_reach_the_kernels(ready: Ready, small_images: Tensor, name: str) -> None:
    model, build = ready("openvino", name)
    made = with_shifted_biases(model, Recipe())
    built = build(made, small_images, threads=1, batch=1)
    with torch.inference_mode():
        np.testing.assert_allclose(
            built.score(small_images.numpy()), made.module(small_images).numpy(), rtol=1e-4, atol=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encoder", "shared", "tied"])
def test_int8_reaches_attention_shared_and_tied_layers(
    ready: Ready, small_images: Tensor, tmp_path: Path, name: str
) -> None:
    model, build = ready("openvino", name)
    runner = build(compress(model, ON_INT8_KERNELS[1]), small_images, threads=1, batch=1)
    assert {layer.precision for layer in runner.execution.layers} <= set(INT8), runner.execution.layers
    assert runner.memory_probe is not None
    runner.memory_probe(str(tmp_path))
    found = weights_in(tmp_path)
    values = [
        weight.values.numpy().ravel() for weight in compress(model, ON_INT8_KERNELS[1]).weights.values()
    ]
    assert all(any(np.array_equal(one.ravel(), value) for value in values) for one in found)
    float32 = eager(model, EXACT[3], small_images)
    assert 0 < off(runner.score(small_images.numpy()), float32) < 0.1


@pytest.mark.slow
def test_a_kernel_that_has_lost_the_names_of_its_operations_is_known_by_its_weight(
    ready: Ready, small_images: Tensor
) -> None:
    """A scale of the whole weight takes the place of the product by which attention's outputs are made."""
    model, build = ready("openvino", "encoder")
    runner = build(compress(model, ON_INT8_KERNELS[3]), small_images, threads=1, batch=1)
    assert runner.execution.precisions.keys() <= {*INT8}, runner.execution.layers
    assert runner.profile is not None
    timed = {name for row in runner.profile(small_images[:1].numpy(), 1) for name in row.layers}
    assert timed == {layer.name for layer in walk(model)}


@pytest.mark.slow
def test_many_models_are_scored_and_let_go(small_images: Tensor) -> None:
    """Where a callback of a finished request was still waiting for Python, letting go waited for ever."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)).eval()
    build = engine_named("openvino").prepare(model, SMALL_SHAPE)
    for _ in range(20):
        build(compress(model, Recipe()), small_images, threads=1, batch=1).score(small_images.numpy())


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


def test_a_model_that_openvino_cannot_convert_is_a_failure_in_words() -> None:
    """And torch's attention is as it was."""
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(
        WorkError,
        match="OpenVINO can't convert this model.*slogdet.*Use engine torch, .*; onnxruntime, sparse",
    ) as info:
        engine_named("openvino").prepare(Unconvertible().eval(), SMALL_SHAPE)
    assert "\n" not in str(info.value)
    assert torch.backends.mha.get_fastpath_enabled()


REPORTING = """
import sys, threading, torch
from optimizer.compression.apply import compress
from optimizer.engine import engine_named
from optimizer.recipe import QuantizeSpec, Recipe
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8)).eval().requires_grad_(False)
recipe = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8))
build = engine_named("openvino").prepare(model, (1, 8, 8))
build(compress(model, recipe), torch.zeros(2, 1, 8, 8), threads=1, batch=1)
assert sys.modules["openvino_telemetry"] is None
assert "nncf" in sys.modules
"""


INTERRUPTED = """
import gc, os, signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
images = torch.zeros(2, 1, 8, 8)

def runner():
    made = build(compress(model, Recipe()), images, threads=1, batch=1)
    made.infer(images[:1].numpy())
    return made

first, second, third = runner(), runner(), runner()
for _ in range(2):
    del first, second
    gc.collect()
    first = runner()
    del third
    gc.collect()
    second, third = first, runner()
del first, second, third
gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
def test_libraries_report_nothing_home_and_ctrl_c_interrupts_after_networks_have_come_and_gone(
    tmp_path: Path,
) -> None:
    """In one process. Left alone, OpenVINO's converter and NNCF send events to Google Analytics, without
    asking; and each of several cores of OpenVINO would take the stack that signals are delivered on along
    with it."""
    posix = os.name == "posix"
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", REPORTING + INTERRUPTED * posix],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n" * posix), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == []


class Mixing(nn.Module):
    """Of several images at once each answer depends on all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            return torch.cat([self(one) for one in x.split(1)])
        rows = self.head(x.flatten(1))
        return rows * (1 + rows.mean(0, keepdim=True))


class Recurrent(nn.Module):
    """As text recognisers are exported: with room for the columns of one image."""

    def __init__(self) -> None:
        super().__init__()
        self.columns, self.head = nn.LSTM(8, 4, bidirectional=True), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            return torch.cat([self(one) for one in x.split(1)])
        return self.head(self.columns(x.reshape(8, 1, 8))[0].permute(1, 0, 2).reshape(1, 64))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Mixing, Recurrent])
def test_a_model_that_takes_one_image_at_a_time_is_scored_so(
    small_images: Tensor, kind: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    build = openvino.prepare(model, SMALL_SHAPE)
    for activation_bits in (32, 8):
        recipe = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=activation_bits))
        runner = build(compress(model, recipe), small_images, threads=1, batch=1)
        single = np.concatenate([runner.infer(one[None].numpy()) for one in small_images])
        assert np.allclose(runner.score(small_images.numpy()), single, atol=1e-5)
        assert np.abs(single - eager(model, recipe, small_images)).mean() < 0.05 * np.ptp(single)
    with pytest.raises(WorkError, match="one image at a time, not for a batch size of 4: use batch size 1"):
        build(compress(model, Recipe()), small_images, threads=1, batch=4)
    assert runner.serve is not None
    with pytest.raises(WorkError, match="one image at a time"):
        runner.serve(batch=2, threads=1, streams=1)


def test_a_graph_that_does_not_compile_is_an_error_in_words(
    ready: Ready, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mixture of experts may not once it is quantized: OpenVINO's own words are of several lines."""
    model, build = ready("openvino", "cnn")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Exception from core.cpp:\ncould not append an elementwise post-op\n")

    monkeypatch.setattr(openvino, "compile_graph", fail)
    runner, said = (
        build(compress(model, Recipe()), small_images, threads=1, batch=1),
        "core.cpp: could not append",
    )
    for use in (runner.ready, partial(runner.score, small_images.numpy())):
        with pytest.raises(WorkError, match=rf"{said} .* post-op\. Use engine torch,"):
            use()


def test_accuracy_waits_for_nothing_that_a_timed_call_alone_needs(
    ready: Ready, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, build = ready("openvino", "cnn")
    hints, compile_graph = list[str](), openvino.compile_graph

    def compiling(graph: Any, shape: list[int], hint: str, *settings: Any, **more: Any) -> Any:
        hints.append(hint)
        return compile_graph(graph, shape, hint, *settings, **more)

    monkeypatch.setattr(openvino, "compile_graph", compiling)
    runner = build(compress(model, Recipe()), small_images, threads=1, batch=1)
    runner.score(small_images.numpy())
    assert hints == ["THROUGHPUT"]
    runner.ready()
    runner.infer(small_images[:1].numpy())
    assert hints == ["THROUGHPUT", "LATENCY"]
