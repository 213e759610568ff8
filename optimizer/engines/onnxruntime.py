"""ONNX Runtime on the CPU: float32, and int8 kernels where weights and activations are 8-bit.

A torch module is exported once; each recipe puts its weights into a copy of that graph
(:mod:`optimizer.engines.onnx_graph`), which is also what a user takes away. A session optimises the graph
when it is made: weights that wait in fewer bits become float32 there, and roundings between integer kernels
go. What really runs is read off the optimised graph.
"""

import re
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from optimizer.compress import CompressedModel
from optimizer.engines.base import Array, Build, Engine, Runner, in_batches
from optimizer.engines.onnx_graph import Exported, Graph, export, graph_of, lacking
from optimizer.engines.realised import simulated
from optimizer.errors import WorkError
from optimizer.records import Execution, LayerExecution

SCORING_ELEMENTS = 320_000
LARGEST_BATCH = 50
"""Images are scored in batches of about so many input values, which stay in the cache."""

INTEGER_KERNELS = {
    *("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger"),
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


def prepare(model: nn.Module, input_shape: tuple[int, int, int]) -> Build:
    """Export once, and build from the exported graph. Raises WorkError when torch can't."""
    try:
        return partial(build, export(model, input_shape))
    except WorkError as error:
        raise WorkError(f"{error}. Use engine torch for it.") from error


def build(
    exported: Exported, compressed: CompressedModel, calibration: Tensor, threads: int, batch: int
) -> Runner:
    graph = graph_of(exported, compressed, calibration, threads)
    if batch > 1 and not graph.dynamic:
        raise WorkError(
            f"torch exports this model to ONNX for one image at a time, not for a batch of {batch}: use "
            "batch 1, or another engine"
        )
    content = graph.model.SerializeToString()
    folded = not graph.int8
    most = min(LARGEST_BATCH, max(1, SCORING_ELEMENTS // int(np.prod(exported.input_shape))))
    scoring_batch = most if graph.dynamic else 1
    scoring, layers = _observed(content, scoring_batch, threads, folded, graph)

    @cache
    def timed() -> Any:
        """Made when it is first timed: configurations that share a measurement never are."""
        return session_of(content, batch, threads, folded)

    def infer(images: Array) -> Array:
        logits: Array = timed().run(None, {"images": images})[0]  # contiguous images are read where they are
        return logits

    return Runner(
        infer=infer,
        score=lambda images: in_batches(
            lambda chunk: scoring.run(None, {"images": chunk})[0], images, scoring_batch
        ),
        execution=Execution(layers, tuple(simulated(compressed, layers))),
        memory_probe=partial(_save, content, folded),
    )


def session_of(
    model: bytes | str, batch: int, threads: int, folded: bool, optimised: Path | None = None
) -> Any:
    """A session for batches of one size, so that shapes are known when the graph is optimised.

    ``folded``: a DequantizeLinear of constants is done when the session is made. By itself ONNX Runtime
    leaves it to every call, for kernels that take it with them, and without those it takes longer than the
    product.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # Threads of a session that waits would take the cores of the one that runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.disable_quant_qdq", "1" if folded else "0")
    options.add_free_dimension_override_by_name("batch", batch)
    if optimised:
        options.optimized_model_filepath = str(optimised)
    # A product and a sum made one have no int8 kernel for sums in float32, as transformers have them.
    without = [] if folded else ["MatMulAddFusion"]
    return onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=without
    )


def _observed(
    content: bytes, batch: int, threads: int, folded: bool, graph: Graph
) -> tuple[Any, tuple[LayerExecution, ...]]:
    """A session, and how it runs each layer."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        path = Path(folder) / "optimised.onnx"
        try:
            session = session_of(content, batch, threads, folded, path)
        except Exception as error:  # of ONNX Runtime's own kinds
            reason = " ".join(str(error).split())[:300]
            raise WorkError(
                f"ONNX Runtime can't load this model: {reason}. Use engine torch for it."
            ) from error
        return session, executed(onnx.load(path).graph, graph)


def executed(optimised: Any, graph: Graph) -> tuple[LayerExecution, ...]:
    """Precision and kernel of each layer in an optimised graph.

    A kernel is a layer's if it multiplies with that layer's weight or codes, or where those were laid out
    anew, if it has the name of the layer's node, or of what that node gave before or after an activation or
    an addition was fused to it.
    """
    results = _results(graph)
    ran: dict[str, list[tuple[str, str]]] = {}
    for node in optimised.node:
        if node.op_type not in MULTIPLYING:
            continue
        known = [graph.weights[tensor] for tensor in node.input if tensor in graph.weights]
        known += [results[name] for name in (_plain(node.name), *node.output) if name in results]
        if known:
            ran.setdefault(known[0], []).append(_how(node))
    layers = []
    for name in graph.running:
        kernels = ran.get(name, [("unknown", "unknown")])
        precision, kernel = (" and ".join(dict.fromkeys(words)) for words in zip(*kernels, strict=True))
        layers.append(LayerExecution(name, precision, kernel))
    return tuple(layers)


def _how(node: Any) -> tuple[str, str]:
    if node.op_type in INTEGER_KERNELS:
        return "u8", node.op_type
    return "f32", f"{node.op_type} (NCHWc)" if node.domain == BLOCKED else node.op_type


def _plain(name: str) -> str:
    """A node's name without what ONNX Runtime adds when it rewrites one."""
    return re.sub(r"(_nchwc|_token_\d+)+$", "", name).removeprefix("fused ")


def _results(graph: Graph) -> dict[str, str]:
    """The layer of each of its nodes, and of each tensor that they give or that may be fused to them."""
    readers: dict[str, list[Any]] = {}
    for node in graph.model.graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    found = dict(graph.nodes)
    for node in graph.model.graph.node:
        if node.name not in graph.nodes:
            continue
        tensor = node.output[0]
        while True:
            found.setdefault(tensor, graph.nodes[node.name])
            following = readers.get(tensor, [])
            if len(following) != 1 or following[0].op_type not in ("Relu", "Clip", "Add"):
                break
            tensor = following[0].output[0]
    return found


def _save(content: bytes, folded: bool, folder: str) -> None:
    (Path(folder) / "model.onnx").write_bytes(content)
    (Path(folder) / "folded").write_text("1" if folded else "0")


ENGINE = Engine(name="onnxruntime", label="ONNX Runtime", problem=lacking, prepare=prepare)
