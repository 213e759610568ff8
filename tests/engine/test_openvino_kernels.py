"""int8 kernels that are chosen by timing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_runs import Ready
from small_models import SMALL_SHAPE
from torch import Tensor

from optimizer.compression.apply import compress
from optimizer.engine import openvino, openvino_core, openvino_kernels
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


@pytest.mark.parametrize("streams", [1, 2])
def test_what_serves_runs_on_the_fastest_kernels_too(
    build: Build, times: dict[str, float], monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    """It ran on OpenVINO's own choice, beside a list of the kernels that it did not run on."""
    times["jit"] = 50.0
    runner, compiled = build(INT8), list[Any]()
    expected, compile_graph = kernels(runner), openvino_core.compile_graph

    def compiling(*arguments: Any, **more: Any) -> Any:
        compiled.append(compile_graph(*arguments, **more))
        return compiled[-1]

    monkeypatch.setattr(openvino, "compile_graph", compiling)
    assert runner.serve
    service = runner.serve(batch=1, threads=2, streams=streams)
    told = map(openvino_kernels.told, compiled[-1].get_runtime_model().get_ops())
    found = sorted(one["primitiveType"] for one in told if one["layerType"] == "Convolution")
    assert found == sorted(expected)
    assert (np.diff(service.run(np.zeros((1, *SMALL_SHAPE), np.float32), 3)) > 0).all()


@dataclass
class Queue:
    """OpenVINO's, with streams whose requests take known milliseconds of a clock of its own."""

    takes: list[float]
    now: float = 0.0
    begun: int = 0
    ends: dict[int, float] = field(default_factory=dict)
    latencies: dict[int, float] = field(default_factory=dict)

    def get_idle_request_id(self) -> int:
        stream = next((one for one in (0, 1) if one not in self.ends), None)
        if stream is None:
            stream = min(self.ends, key=self.ends.__getitem__)
            self.now = max(self.now, self.ends[stream])
        return stream

    def start_async(self, images: object, share_inputs: bool) -> None:
        stream = self.get_idle_request_id()
        self.latencies[stream] = self.takes[self.begun]
        self.ends[stream], self.begun = self.now + self.takes[self.begun], self.begun + 1

    def wait_all(self) -> None:
        self.now = max(self.ends.values())

    def __getitem__(self, stream: int) -> "Queue":
        self.latency = self.latencies[stream]
        return self


def test_a_stream_that_is_free_takes_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the other one is busy: waited for in turn, the short ones would seem to take 10 ms too."""
    takes = [10.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    queue = Queue(takes)
    monkeypatch.setattr(openvino.time, "perf_counter_ns", lambda: round(1e6 * queue.now))
    times = openvino._at_once(queue, np.zeros(1), len(takes)) / 1e6
    assert (times[:, 1] - times[:, 0]).tolist() == takes
    assert times[:, 0].tolist() == [0, 0, 1, 3, 6, 10]


def graph_with_counters(graph: Any, images: np.ndarray) -> Any:
    return openvino_core.compile_graph(graph, list(images.shape), "LATENCY", 1, "f32", PERF_COUNT=True)
