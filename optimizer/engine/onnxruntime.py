"""ONNX Runtime on the CPU: float32, and int8 kernels where weights and activations are 8-bit.

A torch module is exported once; each recipe puts its weights into a copy of that graph
(:mod:`optimizer.engine.onnx_graph`), which is also what is saved as ONNX. A session optimises the graph
when it is made: weights that wait in fewer bits become float32 there, and roundings between integer kernels
go. What really runs is read off the optimised graph.
"""

import json
import re
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from optimizer.compression.apply import CompressedModel
from optimizer.engine.base import (
    Array,
    Build,
    Engine,
    Runner,
    Service,
    in_batches,
    one_by_one,
    scoring_batch,
)
from optimizer.engine.exporting import advice
from optimizer.engine.faithful import check_follows
from optimizer.engine.onnx_export import Exported, export, lacking
from optimizer.engine.onnx_graph import Graph, graph_of, readers_of
from optimizer.engine.onnxruntime_session import save_content, saved, session_of
from optimizer.engine.realised import UNTOLD, execution_of, simulated
from optimizer.errors import WorkError, one_line
from optimizer.methods.engines import use_another
from optimizer.records import Execution, KernelTime, LayerExecution, Role

INTEGER_KERNELS = {
    *("QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger"),
    *("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
}
MULTIPLYING = INTEGER_KERNELS | {
    "Conv",
    "FusedConv",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
    "MatMulNBits",
}
BLOCKED = "com.microsoft.nchwc"


def prepare(model: nn.Module, input_shape: tuple[int, ...]) -> Build:
    """Export once, and build from the exported graph. Raises WorkError when torch can't."""
    try:
        from_graph = partial(build, export(model, input_shape))
    except WorkError as error:
        raise WorkError(f"{error}. {advice('onnxruntime', error)}") from error
    check_follows(from_graph, model, input_shape, "onnxruntime")
    return from_graph


def build(
    exported: Exported, compressed: CompressedModel, calibration: Tensor, *, threads: int, batch: int
) -> Runner:
    graph = graph_of(exported, compressed, calibration, threads)
    _check_batch(graph, batch)
    content = graph.model.SerializeToString()
    folded = not graph.int8
    at_once = scoring_batch(exported.input_shape) if graph.dynamic else 1
    # Each is made when it is first asked for: what is scored may not be timed, nor the other way round.
    timed = cache(lambda: _observed(content, batch, threads, folded, graph))
    scoring = cache(lambda: _observed(content, at_once, threads, folded, graph))

    def infer(images: Array) -> Array:
        session, _ = timed()
        logits: Array = session.run(None, {"images": images})[0]  # contiguous images are read where they are
        return logits

    def score(images: Array) -> Array:
        session, _ = scoring()
        return in_batches(lambda chunk: session.run(None, {"images": chunk})[0], images, at_once)

    def execution() -> Execution:
        _, layers = timed()
        return Execution(layers, simulated(compressed, layers, "onnxruntime", _unrounded(compressed, graph)))

    return Runner(
        infer=infer,
        score=score,
        executed=execution,
        scored=lambda: scoring()[1],
        memory_probe=partial(save_content, content, folded),
        profile=partial(_profile, content, graph, folded, threads),
        serve=partial(_serve, content, graph, folded),
        loader=saved,
    )


def _unrounded(compressed: CompressedModel, graph: Graph) -> list[str]:
    """The layers that no rounding reaches: those whose weight is split first, as by an attention that reads
    other values than it asks with."""
    rounds, reached = compressed.recipe.quantize.rounds_activations, set(graph.nodes.values())
    return [name for name in graph.running if rounds and name not in reached]


def _serve(content: bytes, graph: Graph, folded: bool, *, batch: int, threads: int, streams: int) -> Service:
    """One request at a time, whatever ``streams`` is."""
    _check_batch(graph, batch)
    session = session_of(content, batch, threads, folded)
    return Service(one_by_one(lambda images: session.run(None, {"images": images})[0]))


def _check_batch(graph: Graph, batch: int) -> None:
    if batch > 1 and not graph.dynamic:
        raise WorkError(
            f"torch exports this model to ONNX for one image at a time, not for a batch size of {batch}: "
            "use batch size 1, or another engine"
        )


CONVERTING = {"QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput", "Cast"}
FIRST_CALLS = 3
"""Calls that a profile leaves out: memory is planned in the first."""


def _profile(
    content: bytes, graph: Graph, folded: bool, threads: int, images: Array, calls: int
) -> tuple[KernelTime, ...]:
    """What ONNX Runtime's profiler tells of each node, in whole microseconds: the mean of the middle half."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        path = Path(folder, "optimised.onnx")
        session = session_of(content, len(images), threads, folded, path, profile=Path(folder, "profile"))
        run = one_by_one(lambda images: session.run(None, {"images": images}))
        walls = np.diff(run(images, FIRST_CALLS + calls))
        events = json.loads(Path(session.end_profiling()).read_text())
        optimised = onnx.load(path, load_external_data=False).graph
    results = _results(graph)
    nodes = {node.name: (_layer_of(node, graph, results), *_how(node)) for node in optimised.node}
    taken: dict[str, list[int]] = {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event["cat"] == "Node" and name != event["name"]:
            taken.setdefault(name, []).append(1000 * event["dur"])
    kinds = {event["name"].removesuffix("_kernel_time"): event["args"].get("op_name") for event in events}
    exported, rows = {node.name for node in graph.model.graph.node}, []
    for name, times in taken.items():
        layer, precision, kernel = nodes.get(name, (None, "", kinds[name]))
        converts = kinds[name] in CONVERTING or (kinds[name] == "Transpose" and name not in exported)
        role: Role = "conversion" if converts else "other"
        if kinds[name].startswith("QLinear"):
            precision = "u8"
        settled = np.sort(times[FIRST_CALLS:])
        quarter = len(settled) // 4
        # Cut off by half of one, on average.
        middle = round(settled[quarter : len(settled) - quarter].mean() + 500)
        rows.append(
            KernelTime.of_layers([layer], precision, kernel, middle)
            if layer
            else KernelTime(name, role, precision, kernel, (middle,))
        )
    between = round(np.median(walls[FIRST_CALLS:])) - sum(row.times_ns[0] for row in rows)
    return (*rows, KernelTime.between_operations(between))


def _observed(
    content: bytes, batch: int, threads: int, folded: bool, graph: Graph
) -> tuple[Any, tuple[LayerExecution, ...]]:
    try:
        return observed(content, batch, threads, folded, graph)
    except Exception as error:  # of ONNX Runtime's own kinds
        raise WorkError(
            f"ONNX Runtime can't load this model: {one_line(error, 300)}. {use_another('onnxruntime')}"
        ) from error


def observed(
    content: bytes, batch: int, threads: int, folded: bool, graph: Graph
) -> tuple[Any, tuple[LayerExecution, ...]]:
    """A session, and how it runs each layer. Raises what ONNX Runtime does."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        path = Path(folder, "optimised.onnx")
        session = session_of(content, batch, threads, folded, path)
        return session, executed(onnx.load(path, load_external_data=False).graph, graph)


def executed(optimised: Any, graph: Graph) -> tuple[LayerExecution, ...]:
    """Precision and kernel of each layer in an optimised graph.

    A kernel is a layer's if it multiplies with that layer's weight or codes, or where those were laid out
    anew, if it has the name of the layer's node, or of what that node gave before or after an activation or
    an addition was fused to it.
    """
    results = _results(graph)
    ran: dict[str, list[tuple[str, str]]] = {}
    for node in optimised.node:
        if layer := _layer_of(node, graph, results):
            ran.setdefault(layer, []).append(_how(node))
    return tuple(execution_of(name, ran.get(name, [UNTOLD])) for name in graph.running)


def _layer_of(node: Any, graph: Graph, results: dict[str, str]) -> str | None:
    if node.op_type not in MULTIPLYING:
        return None
    known = [graph.weights[tensor] for tensor in node.input if tensor in graph.weights]
    known += [results[name] for name in (_plain(node.name), *node.output) if name in results]
    return known[0] if known else None


def _how(node: Any) -> tuple[str, str]:
    if node.op_type in INTEGER_KERNELS:
        return "u8", node.op_type
    return "f32", f"{node.op_type} (NCHWc)" if node.domain == BLOCKED else node.op_type


def _plain(name: str) -> str:
    """A node's name without what ONNX Runtime adds when it rewrites one."""
    return re.sub(r"(_nchwc|_token_\d+)+$", "", name).removeprefix("fused ")


def _results(graph: Graph) -> dict[str, str]:
    """The layer of each of its nodes, and of each tensor that they give or that may be fused to them."""
    readers, found = readers_of(graph.model.graph), dict(graph.nodes)
    for node in graph.model.graph.node:
        if node.name not in graph.nodes:
            continue
        tensor = node.output[0]
        while True:
            found.setdefault(tensor, graph.nodes[node.name])
            following = readers.get(tensor, [])
            if len(following) != 1 or following[0].op_type not in FUSED:
                break
            tensor = following[0].output[0]
    return found


FUSED = {
    *("Add", "BatchNormalization", "Mul"),
    *("Clip", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Tanh"),
}
"""What ONNX Runtime computes in the kernel of the convolution or product before it (its transformers
ConvAddFusion, ConvBNFusion, ConvMulFusion, ConvActivationFusion, GemmActivationFusion
and NchwcTransformer)."""


ENGINE = Engine(lacking, prepare)
