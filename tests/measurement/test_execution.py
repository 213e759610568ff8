"""Precision and kernels are read off the network that is timed, and scoring never depends on a timing."""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from by_request import close_all, measure
from engine_runs import ON_INT8_KERNELS, PRUNED, QUICK, Ready, close
from small_models import SMALL_SHAPE
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.engine import csr, engine_named, faster, onnxruntime, openvino, sparse
from optimizer.engine.kernels import network
from optimizer.engine.kernels.matrix import Algorithm
from optimizer.recipe import PruneSpec, Recipe
from optimizer.records import DataSpec, LayerExecution, Request, Settings

BATCH = 3


def test_openvino_s_facts_are_those_of_the_timed_batch(
    ready: Ready, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in names the kernel by the batch that its graph was compiled for."""

    def by_batch(compiled: Any, *_: object) -> tuple[LayerExecution, ...]:
        return (LayerExecution("head.weight", "f32", f"batch {compiled.input(0).shape[0]}"),)

    monkeypatch.setattr(openvino, "executed", by_batch)
    model, build = ready("openvino", "cnn")
    runner = build(compress(model, Recipe()), small_images, threads=1, batch=BATCH)
    assert [layer.kernel for layer in runner.execution.layers] == [f"batch {BATCH}"]
    assert runner.scored
    assert [layer.kernel for layer in runner.scored()] == ["batch 50"]


@pytest.mark.slow
def test_onnx_runtime_s_facts_are_those_of_the_timed_batch(
    ready: Ready, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = onnxruntime._observed

    def by_batch(content: bytes, batch: int, *others: Any) -> Any:
        session, layers = observed(content, batch, *others)
        return session, tuple(replace(layer, kernel=f"batch {batch}") for layer in layers)

    monkeypatch.setattr(onnxruntime, "_observed", by_batch)
    model, build = ready("onnxruntime", "cnn")
    runner = build(compress(model, Recipe()), small_images, threads=1, batch=BATCH)
    assert {layer.kernel for layer in runner.execution.layers} == {f"batch {BATCH}"}


@pytest.mark.parametrize("engine", QUICK)
@pytest.mark.parametrize("recipe", [Recipe(PRUNED), ON_INT8_KERNELS[0]], ids=Recipe.describe)
def test_scoring_runs_in_the_precisions_that_are_timed(
    ready: Ready, small_images: Tensor, engine: str, recipe: Recipe
) -> None:
    model, build = ready(engine, "cnn")
    runner = build(compress(model, recipe), small_images, threads=1, batch=BATCH)
    assert runner.scored_otherwise == ()


@pytest.mark.slow
def test_a_layer_that_is_scored_in_another_precision_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    executed = openvino.executed

    def rounded_when_timed(compiled: Any, *others: Any) -> tuple[LayerExecution, ...]:
        first, *rest = executed(compiled, *others)
        timed = compiled.input(0).shape[0] == 1
        return (replace(first, precision="u8") if timed else first, *rest)

    monkeypatch.setattr(openvino, "executed", rounded_when_timed)
    request = Request(
        "fashion-mlp",
        Recipe(PruneSpec(sparsity=0.5)),
        data=DataSpec(limit=20),
        settings=Settings(threads=1),
    )
    close_all()
    result = measure(request)
    close_all()
    first = result.execution.layers[0]
    assert first.precision == "u8"
    assert any(
        words == f"accuracy: 1 layer ran in another precision than when timed ({first.name})"
        for words in result.notes
    )


@pytest.mark.slow
@pytest.mark.parametrize("favourite", range(4))
def test_the_sparse_engine_scores_alike_whichever_kernels_are_the_fastest(
    ready: Ready, small_images: Tensor, monkeypatch: pytest.MonkeyPatch, favourite: int
) -> None:
    if problem := sparse.kernels.problem():
        pytest.skip(problem)
    model, build = ready("sparse", "cnn")
    compressed = compress(model, Recipe(PruneSpec(sparsity=0.7)))
    images = small_images.numpy()
    expected = build(compressed, small_images, threads=1, batch=1).score(images)

    def fastest(planned: Any, *_: object) -> dict[str, Algorithm]:
        choices = {
            item.name: list(item.work.algorithms) for item in planned.items if hasattr(item.work, "ways")
        }
        return {name: algorithms[favourite % len(algorithms)] for name, algorithms in choices.items()}

    monkeypatch.setattr(network, "fastest", fastest)
    runner = build(compressed, small_images, threads=1, batch=1)
    assert np.array_equal(runner.score(images), expected)
    close(np.concatenate([runner.infer(images[index : index + 1]) for index in range(len(images))]), expected)


@pytest.mark.parametrize("whole_is_faster", [False, True])
def test_the_sparse_engine_scores_alike_whoever_executes_the_network(
    ready: Ready, small_images: Tensor, monkeypatch: pytest.MonkeyPatch, whole_is_faster: bool
) -> None:
    if problem := sparse.kernels.problem():
        pytest.skip(problem)
    model, build = ready("sparse", "cnn")
    compressed, images = compress(model, Recipe(PRUNED)), small_images.numpy()
    expected = build(compressed, small_images, threads=1, batch=1).score(images)
    seconds = iter([0.0, 1.0] * faster.COMPARED if not whole_is_faster else [1.0, 0.0] * faster.COMPARED)
    monkeypatch.setattr(faster, "timeit", SimpleNamespace(timeit=lambda *_, **__: next(seconds)))
    runner = build(compressed, small_images, threads=1, batch=1)
    assert whole_is_faster == any("OpenVINO" in layer.kernel for layer in runner.execution.layers)
    assert np.array_equal(runner.score(images), expected)


@pytest.mark.parametrize("csr_is_faster", [False, True])
def test_without_kernels_scoring_does_not_depend_on_which_layers_are_faster(
    small_images: Tensor, monkeypatch: pytest.MonkeyPatch, csr_is_faster: bool
) -> None:
    monkeypatch.setattr(sparse.kernels, "problem", lambda: "none here")
    monkeypatch.setattr(
        csr, "_seconds", lambda layer, _: 0.0 if isinstance(layer, csr.CsrLayer) == csr_is_faster else 1.0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10)).eval()
    compressed = compress(model, Recipe(PruneSpec(sparsity=0.9)))
    runner = engine_named("sparse").prepare(model, SMALL_SHAPE)(compressed, small_images, threads=1, batch=1)
    kernels: Mapping[str, str] = {layer.name: layer.kernel for layer in runner.execution.layers}
    assert csr_is_faster == any("CSR" in kernel for kernel in kernels.values())
    with torch.inference_mode():
        expected = compressed.module(small_images).numpy()
    assert np.array_equal(runner.score(small_images.numpy()), expected)


@pytest.mark.slow
def test_layers_that_are_one_kernel_when_timed_are_read_off_it(ready: Ready, small_images: Tensor) -> None:
    """OpenVINO makes one kernel of small linear layers and a single image, and one each of many images."""
    for recipe, precision in ((Recipe(), "f32"), (ON_INT8_KERNELS[0], "i8")):
        model, build = ready("openvino", "shared")
        runner = build(compress(model, recipe), small_images, threads=1, batch=1)
        assert {layer.precision for layer in runner.execution.layers} <= {precision, "u8"}
        assert "unknown" not in {layer.kernel for layer in runner.execution.layers}
        assert runner.scored
        assert "unknown" not in {layer.kernel for layer in runner.scored()}
