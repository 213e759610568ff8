"""int8 kernels that are chosen by timing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_runs import Ready
from torch import Tensor

from optimizer.compression.apply import compress
from optimizer.engine import openvino_core, openvino_kernels
from optimizer.engine.base import Runner
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.system import disk_cache

INT8 = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8))
Build = Callable[[Recipe], Runner]

pytestmark = pytest.mark.skipif(
    not openvino_kernels._families(), reason="no instruction set among whose kernels one could choose"
)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Nanoseconds that each operation takes on the kernel that OpenVINO chooses itself, and on those of each
    kind, in place of measured ones; nothing was chosen before."""
    told = {"own": 100.0, "jit": 100.0, "brgconv": 100.0}

    def of(compiled: dict[str, Any], images: np.ndarray) -> dict[str, dict[str, float]]:
        operations = [node.get_friendly_name() for node in compiled[""].get_runtime_model().get_ops()]
        kinds = {family: family.removeprefix("cpu:").partition("_")[0] or "own" for family in compiled}
        return {family: dict.fromkeys(operations, told[kind]) for family, kind in kinds.items()}

    monkeypatch.setattr(openvino_kernels, "_times", of)
    monkeypatch.setattr(openvino_kernels, "is_faster", lambda first, other: True)
    monkeypatch.setattr(openvino_kernels, "kept", disk_cache.kept)
    return told


@pytest.fixture
def build(ready: Ready, small_images: Tensor) -> Build:
    model, prepared = ready("openvino", "cnn")
    return lambda recipe: prepared(compress(model, recipe), small_images, threads=1, batch=1)


def kernels(runner: Runner) -> list[str]:
    """Those of the convolutions; the classifier's is not chosen."""
    return [layer.kernel for layer in runner.execution.layers[:-1]]


@pytest.mark.parametrize("kind", ["jit", "brgconv"])
def test_the_fastest_kernels_run_and_answer_alike_also_in_the_file(
    build: Build, times: dict[str, float], small_images: Tensor, tmp_path: Path, kind: str
) -> None:
    times[kind] = 94.0
    runner, image = build(INT8), small_images[:1].numpy()
    assert kind in {kernel.partition("_")[0] for kernel in kernels(runner)}  # of those that can run a layer
    assert runner.memory_probe
    runner.memory_probe(str(tmp_path))
    assert f"cpu:{kind}_" in (tmp_path / "model.xml").read_text()
    for answer in runner.infer(image), openvino_core.saved()(tmp_path, 1, image.shape)(image):
        np.testing.assert_allclose(answer, runner.score(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("nanoseconds", "whole"), [(96.0, True), (50.0, False)])
def test_what_gains_little_or_nothing_in_the_whole_network_stays(
    build: Build, times: dict[str, float], monkeypatch: pytest.MonkeyPatch, nanoseconds: float, whole: bool
) -> None:
    times["jit"] = nanoseconds
    monkeypatch.setattr(openvino_kernels, "is_faster", lambda first, other: whole)
    found = kernels(build(INT8))
    monkeypatch.setattr(openvino_kernels, "_families", tuple)
    assert found == kernels(build(INT8))


def test_kernels_are_chosen_once_for_layers_that_are_alike(
    build: Build, times: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    times["jit"] = 50.0
    found = kernels(build(INT8))
    monkeypatch.setattr(openvino_kernels, "_times", lambda *_: pytest.fail("timed again"))
    fewer = Recipe(quantize=QuantizeSpec(weight_bits=4, activation_bits=8))
    assert kernels(build(fewer)) == found


def test_each_operation_is_timed_and_float32_is_left_alone(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, choose = list[Any](), openvino_kernels._choose

    def chosen(*arguments: Any) -> dict[str, str]:
        graph, _, _, images, operations, _ = arguments
        asked.append(operations)
        times = openvino_kernels._times({"": graph_with_counters(graph, images)}, images)[""]
        assert operations.keys() <= times.keys()
        assert all(times[operation] > 0 for operation in operations)
        return choose(*arguments)

    monkeypatch.setattr(openvino_kernels, "_choose", chosen)
    monkeypatch.setattr(openvino_kernels, "kept", disk_cache.kept)
    build(Recipe()).ready()
    assert not asked
    build(INT8).ready()
    assert len(asked) == 1


def graph_with_counters(graph: Any, images: np.ndarray) -> Any:
    return openvino_core.compile_graph(graph, list(images.shape), "LATENCY", 1, "f32", PERF_COUNT=True)
