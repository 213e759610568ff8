"""Profiles of real networks, by each engine that has a profiler."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from by_request import opened
from engine_runs import Ready
from factories import recipe
from torch import nn

from optimizer.analysis.coverage import Part, conclusions, layer_precisions, parts, rows
from optimizer.compression.apply import compress
from optimizer.engine import Runner
from optimizer.engine.base import Build
from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.measurement import profile
from optimizer.methods.engines import ENGINES
from optimizer.model.layers import walk
from optimizer.recipe import Recipe
from optimizer.records import Execution, KernelTime, Request, Settings

PROFILED = [
    name for name in ("openvino", "onnxruntime", "torch", "compile") if not ENGINES[name].load().problem()
]
BY_ENGINE = pytest.mark.parametrize("engine", PROFILED)
INT8 = recipe(0, 8, 8)
IMAGE = np.random.default_rng(0).random((1, 1, 8, 8)).astype(np.float32)


def runner(prepared: tuple[nn.Module, Build], made: Recipe) -> Runner:
    model, build = prepared
    return build(compress(model, made), torch.rand(16, 1, 8, 8), threads=1, batch=1)


def profiled(prepared: tuple[nn.Module, Build], made: Recipe = Recipe()) -> tuple[KernelTime, ...]:  # noqa: B008
    built = runner(prepared, made)
    assert built.profile is not None
    with built.session():
        return built.profile(IMAGE, 5)


@pytest.mark.slow
@BY_ENGINE
@pytest.mark.parametrize("name", ["cnn", "encoder", "shared"])
def test_every_layer_is_in_the_profile_with_all_other_work(engine: str, name: str, ready: Ready) -> None:
    model, _ = ready(engine, name)
    told = profiled(ready(engine, name))
    layers = {layer for row in rows(told) for layer in row.layers}
    expected = {layer.name for layer in walk(model)}
    if engine == "torch":  # attention is one, under its first projection's name
        expected -= {"attention.out_proj.weight"}
    if engine == "compile":  # inductor computes the smallest layers in a kernel of its own, with what follows
        expected -= {"head.weight", "again.weight"} - layers
    assert layers == expected
    assert told[-1].role == "between"
    assert all(len(row.times_ns) == 1 and row.times_ns[0] >= 0 for row in told)
    assert sum(row.share for row in rows(told)) == pytest.approx(1)
    assert {row.precision for row in told if row.role == "layer"} == {"f32"}
    assert all(row.kernel for row in told)


def test_openvino_names_int8_kernels_and_what_quantizes_for_them(ready: Ready) -> None:
    told = profiled(ready("openvino", "cnn"), INT8)
    assert all(kinds <= {"u8", "i8"} for kinds in layer_precisions(told).values())
    assert "conversion" in {row.role for row in told}
    plain = profiled(ready("openvino", "cnn"))
    assert not [row for row in plain if row.role == "conversion" and any(row.times_ns)]


@pytest.mark.slow
@pytest.mark.skipif("onnxruntime" not in PROFILED, reason="onnxruntime is not installed")
def test_onnx_runtime_names_integer_kernels_and_what_converts_for_them(ready: Ready) -> None:
    told = profiled(ready("onnxruntime", "cnn"), INT8)
    layers = layer_precisions(told)
    assert {"stem.0.weight", "head.weight"} <= {name for name, kinds in layers.items() if kinds == {"u8"}}
    assert "QuantizeLinear" in {row.kernel for row in told if row.role == "conversion"}
    assert {row.kernel for row in told if row.name == "stem.0.weight"} == {"QLinearConv"}


def test_torch_times_the_rounding_of_activations_apart(ready: Ready) -> None:
    model, _ = ready("torch", "cnn")
    told = profiled(ready("torch", "cnn"), INT8)
    rounding = [row for row in told if row.role == "conversion"]
    assert [row.name for row in rounding] == [f"{layer.name}: input to 8 bits" for layer in walk(model)]
    assert all(row.times_ns[0] > 0 for row in rounding)
    assert {row.kernel for row in told if row.name == "head.weight"} == {"aten::addmm"}


def test_torch_names_the_precision_that_it_computes_in(ready: Ready) -> None:
    """Rounding alone is in float32."""
    half = replace(INT8, quantize=replace(INT8.quantize, precision="bf16"))
    told = profiled(ready("torch", "cnn"), half)
    assert {row.precision for row in told if row.role in ("layer", "other")} == {"bf16"}
    assert {row.precision for row in told if row.role == "conversion"} == {"f32"}
    assert {Part.HALF, Part.CONVERSION} <= parts(told).keys()
    assert Part.DENSE not in parts(told)


def test_torch_leaves_no_hook_behind(small) -> None:  # type: ignore[no-untyped-def]
    model = small("cnn")
    compressed = compress(model, Recipe())
    built = (
        ENGINES["torch"]
        .load()
        .prepare(model, (1, 8, 8))(compressed, torch.rand(4, 1, 8, 8), threads=1, batch=1)
    )
    assert built.profile is not None
    built.profile(IMAGE, 2)
    hooks = [hook for module in compressed.module.modules() for hook in module._forward_pre_hooks.values()]
    assert not hooks


@pytest.mark.slow
@BY_ENGINE
def test_a_recipe_is_profiled_beside_its_baseline(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "CALLS", 20)
    monkeypatch.setattr(profile, "PASSES", 2)
    told: list[str] = []
    request = Request("fashion-mlp", recipe(0.5), engine, settings=Settings(threads=1, batch=64))
    run = profile.profile(opened(request), request, lambda share, words: told.append(words))
    assert "profiling" in told
    assert run.removed_share == pytest.approx(0.5, abs=0.01)
    assert run.threads == 1
    assert set(layer_precisions(run.kernels)) == set(layer_precisions(run.baseline))
    assert all(len(row.times_ns) == 2 for row in run.kernels)
    assert set(parts(run.kernels)) <= {"dense fp32", "conversion", "other"}
    assert any("dense kernels multiply the zeros" in words for words in conclusions(run))


def test_what_can_not_be_profiled_is_said() -> None:
    silent = Runner(lambda images: images, lambda images: images, lambda: Execution((), ()))
    with pytest.raises(
        UnavailableError,
        match="engine mine has no profiler here: use openvino, onnxruntime, torch or compile",
    ):
        profile._profiled(silent, IMAGE, "mine")
    request = Request("fashion-mlp", settings=Settings(threads=99))
    with pytest.raises(InputError, match="99 threads"):
        profile.profile(opened(request), request)


def test_profiles_are_merged_by_place() -> None:
    def sample(time: int, number: int) -> tuple[KernelTime, ...]:
        return (
            KernelTime.of_layers(["a.weight"], "f32", "k", time),
            KernelTime(f"Transpose_{number}", "other", "f32", "k", (time + 1,)),
            KernelTime("never", "other", "f32", "k", (0,)),
            KernelTime.between_operations(0),
        )

    merged = profile.merged([sample(1, 22), sample(5, 23)])
    assert [(row.name, row.times_ns) for row in merged] == [
        ("a.weight", (1, 5)),
        ("Transpose_22", (2, 6)),
        ("between operations", (0, 0)),
    ]
    other = (replace(sample(1, 22)[0], precision="u8"), *sample(1, 22)[1:])
    with pytest.raises(WorkError, match="other operations"):
        profile.merged([sample(1, 22), other])
