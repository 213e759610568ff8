"""OpenVINO's core, one for the process, and graphs compiled by it. Without torch: a fresh process that loads
a graph needs none, and importing it takes a second or more."""

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.engine.base import Array, Load
from optimizer.progress import stop_if_cancelled

# oneDNN keeps the code of the last 1,024 kernels, and int8 kernels hold their scales: a sweep would fill it
# with a megabyte a configuration that no other one uses. Enough for the float32 kernels of a network.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

# OpenVINO's converter and NNCF report their use to Google Analytics, and write to the home folder for that,
# unless this package is missing. Nothing is to leave the machine: it counts as missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@cache
def core() -> Any:
    """A core gives the main thread a stack for signals, with room for AMX's registers, and takes it away when
    it goes. Of several cores the last to go may leave one that is mapped no more: then Ctrl-C ends the
    process with SIGSEGV (OpenVINO 2026.4)."""
    import openvino

    return openvino.Core()


def one_call(compiled: Any) -> Callable[[Array], Array]:
    """Images are read where they are. ``request.infer([images])`` takes 0.03 to 0.09 ms around a call, this
    0.01 to 0.06. (Asynchronous, a call runs in a thread of its network's own, and takes 2 to 4 % longer.)"""
    import openvino

    request = compiled.create_infer_request()
    answers, wanted = request.get_output_tensor(0).data, request.get_input_tensor(0).data.dtype

    def infer(images: Array) -> Array:
        if images.dtype != wanted or not images.flags.carray:
            images = np.require(images, wanted, ("C_CONTIGUOUS", "WRITEABLE"))
        request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
        request.infer(share_outputs=True)
        logits: Array = answers.copy()
        return logits

    return infer


def compile_graph(graph: Any, shape: list[int], hint: str, threads: int, precision: str, **more: Any) -> Any:
    stop_if_cancelled()  # nothing ends it once it has begun
    batched = graph.clone()
    batched.reshape(shape)
    settings = {
        "INFERENCE_PRECISION_HINT": precision,  # left alone, it computes in bfloat16 where the CPU can
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
    }
    return core().compile_model(batched, "CPU", settings | more)


def save_graph(graph: Any, folder: Path, precision: str) -> None:
    import openvino

    openvino.save_model(graph, folder / "model.xml", compress_to_fp16=False)
    (folder / "precision").write_text(precision)


def saved() -> Load:
    """The loader of what a runner's ``memory_probe`` writes."""

    def load(folder: Path, threads: int, shape: tuple[int, ...]) -> Callable[[Array], Array]:
        graph, precision = core().read_model(folder / "model.xml"), (folder / "precision").read_text()
        return one_call(compile_graph(graph, list(shape), "LATENCY", threads, precision))

    return load
