"""The kernel of each int8 convolution in OpenVINO's graph, chosen by timing.

oneDNN takes the first kernel of a fixed order that can run a layer: AMX's before those of AVX-512, however
small the layer. At small batches another is often faster. All multiply the same integers, so answers stay
what they are. OpenVINO puts first what a node's attribute ``primitives_priority`` names (its
``primitives_priority_attribute.hpp``), and keeps that in its files. EfficientNet-Lite0 at batch size 1 on
one thread of an Intel Xeon (family 6, model 167) took 0.55 of its float32 time with OpenVINO's choice, and
0.48 with this one.

Kernels for float32 differ in how they lay out activations, and to change that between layers costs more than
is won: those are left alone.
"""

import io
import tempfile
import timeit
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from optimizer.engine.base import Array
from optimizer.engine.faster import is_faster
from optimizer.engine.openvino_core import core
from optimizer.engine.openvino_quantizers import nodes_of
from optimizer.engine.realised import INT8
from optimizer.records import digest
from optimizer.system.disk_cache import kept
from optimizer.system.environment import environment

CONVOLUTIONS = ("Convolution", "GroupConvolution")
SETS = {"avx512f": "avx512", "avx2": "avx2"}
"""oneDNN's names of instruction sets, by ours, the best first."""
KINDS = ("jit", "brgconv")
SHAPES = ("_1x1", "_dw", "")
ROUNDS = 5
MOST_CALLS, SETTLING = 15, 3
"""Of a network in a round: those that are timed, and those before them."""
SECONDS = 3.0
"""For all timed calls; a slow network has fewer, and at least one in a round."""
GAIN = 0.95
"""Share of the time of OpenVINO's own choice that another must stay under, or it is not worth a change."""

Compile = Callable[..., Any]
"""From a graph and more settings to what OpenVINO makes of it, for the batch and the threads of the timed
call."""


def chosen(graph: Any, compiled: Any, compiling: Compile, images: Array, threads: int) -> dict[str, str]:
    """What is to come first for an operation, by its name; none where OpenVINO's own choice is as good.

    ``compiled`` is the graph as it is, for ``images`` ``[N, C, H, W]``. Kept on disk for all networks of
    equal layers, so that a recipe runs on the same kernels each time.
    """
    operations = _in_int8(graph, compiled)
    families = _families()
    if not operations or not families:
        return {}
    names = [name for several in operations.values() for name in several]
    content = digest([environment().key, threads, list(images.shape), families, _geometry(graph, names)])

    def choose(path: Path | None) -> list[str]:
        found = _choose(graph, compiled, compiling, images, operations, families)
        return [found.get(name, "") for name in names]

    first = kept(content, choose, lambda found: ({}, {"first": found}), lambda parts: parts[1]["first"])
    return {name: family for name, family in zip(names, first, strict=True) if family}


def prioritised(graph: Any, first: Mapping[str, str]) -> Any:
    """The graph with what is to come first for each operation. OpenVINO's Python can't set such an attribute,
    so it goes through the format of its files."""
    import openvino

    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(graph, path, compress_to_fp16=False)
        tree, weights = ElementTree.parse(path), np.fromfile(path.with_suffix(".bin"), np.uint8)
    for layer in tree.iter("layer"):
        if (name := layer.get("name", "")) in first:
            about = layer.find("rt_info")
            if about is None:
                about = ElementTree.Element("rt_info")
                layer.insert(1, about)  # after <data>
            ElementTree.SubElement(
                about, "attribute", {"name": "primitives_priority", "version": "0", "value": first[name]}
            )
    written = io.BytesIO()
    tree.write(written)
    return core().read_model(written.getvalue(), openvino.Tensor(weights))


def _families() -> tuple[str, ...]:
    """Kernels of one kind for every shape of layer, without AMX's, as OpenVINO reads them."""
    best = next((theirs for ours, theirs in SETS.items() if ours in environment().instruction_sets), "")
    if not best:
        return ()
    return tuple(",".join(f"cpu:{kind}_{best}{shape}" for shape in SHAPES) for kind in KINDS)


def _in_int8(graph: Any, compiled: Any) -> dict[str, list[str]]:
    """The convolutions that each executed int8 kernel runs, by that one's name."""
    convolutions = {name for name, node in nodes_of(graph).items() if node.get_type_name() in CONVOLUTIONS}
    found: dict[str, list[str]] = {}
    for node in compiled.get_runtime_model().get_ops():
        info = told(node)
        if info.get("layerType") == "Convolution" and info["runtimePrecision"] in INT8:
            fused = info["originalLayersNames"].split(",")
            if names := [name for name in fused if name in convolutions]:
                found[node.get_friendly_name()] = names
    return found


def _geometry(graph: Any, names: list[str]) -> list[object]:
    """What decides how long the convolutions of those names take, but for the batch."""
    nodes = nodes_of(graph)
    return [
        [
            nodes[name].get_type_name(),
            *(list(one.get_shape()) for one in nodes[name].input_values()),
            {key: str(value) for key, value in nodes[name].get_attributes().items()},
        ]
        for name in names
    ]


def _choose(
    graph: Any,
    compiled: Any,
    compiling: Compile,
    images: Array,
    operations: Mapping[str, list[str]],
    families: tuple[str, ...],
) -> dict[str, str]:
    everywhere = [name for several in operations.values() for name in several]
    graphs = {"": graph} | {
        family: prioritised(graph, dict.fromkeys(everywhere, family)) for family in families
    }
    times = _times({family: compiling(one, PERF_COUNT=True) for family, one in graphs.items()}, images)
    found = dict[str, str]()
    for kernel, names in operations.items():
        taken = {family: own[kernel] for family, own in times.items() if kernel in own}
        best = min(taken, key=lambda family: taken[family])
        if best and taken[best] <= GAIN * taken[""]:
            found |= dict.fromkeys(names, best)
    if not found:
        return {}
    calls = [_call(one, images) for one in (compiling(prioritised(graph, found)), compiled)]
    answer, before = (call() for call in calls)
    as_before = np.allclose(answer, before, rtol=1e-3, atol=1e-3 * np.abs(before).max())
    return found if as_before and is_faster(*calls) else {}


def _call(compiled: Any, images: Array) -> Callable[[], Array]:
    request = compiled.create_infer_request()

    def call() -> Array:
        answer: Array = request.infer([images], share_inputs=True)[0].copy()
        return answer

    return call


def _times(compiled: Mapping[str, Any], images: Array) -> dict[str, dict[str, float]]:
    """Nanoseconds that each operation takes, by its name, in each network; these are visited in turns."""
    requests = {name: one.create_infer_request() for name, one in compiled.items()}
    made, taken = dict.fromkeys(requests, 0), {name: dict[str, list[float]]() for name in requests}

    def call(name: str, times: int) -> None:
        for _ in range(times):
            requests[name].infer([images], share_inputs=True)
        made[name] += times

    for name in requests:
        call(name, 1)  # kernels are made in the first
    seconds = sum(timeit.timeit(partial(call, name, 1), number=1) for name in requests)
    calls = min(MOST_CALLS, max(1, int(SECONDS / ROUNDS / seconds)))
    random = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for name in random.permutation(list(requests)):
            call(name, min(SETTLING, calls))
            before = total_ns(requests[name], made[name])
            call(name, calls)
            for operation, total in total_ns(requests[name], made[name]).items():
                taken[name].setdefault(operation, []).append((total - before[operation]) / calls)
    return {
        name: {operation: float(np.median(all_of_it)) for operation, all_of_it in own.items()}
        for name, own in taken.items()
    }


def told(node: Any) -> dict[str, str]:
    """What OpenVINO tells of an operation that it executes."""
    return {key: str(value.value) for key, value in node.get_rt_info().items()}


def total_ns(request: Any, calls: int) -> dict[str, float]:
    """Nanoseconds in each operation so far, fused ones left out. What OpenVINO tells is the mean of all calls
    since compiling, in whole microseconds, cut off: on average by a half. (Below one it says "not run", too,
    of what is run.)"""
    return {
        one.node_name: calls * 1000 * (microseconds + 0.5 if microseconds else 0)
        for one in request.profiling_info
        if one.exec_type != "undef"
        for microseconds in (one.real_time // timedelta(microseconds=1),)
    }
