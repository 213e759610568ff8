"""OpenVINO on the CPU, pinned to float32, and int8 kernels where weights and activations are 8-bit.

The graph is compiled anew for each recipe: constants edited after compiling are ignored by some layers.
"""

import importlib.util
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
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
    one_by_one,
    scoring_batch,
)
from optimizer.engine.faithful import check_follows
from optimizer.engine.openvino_batches import run_batches
from optimizer.engine.openvino_core import compile_graph, one_call, save_graph, saved
from optimizer.engine.openvino_given import of_images
from optimizer.engine.openvino_graph import Converted, convert, graph_of
from optimizer.engine.openvino_kernels import chosen, prioritised, told, total_ns
from optimizer.engine.openvino_quantizers import nodes_of, readers
from optimizer.engine.realised import UNTOLD, execution_of, simulated
from optimizer.errors import WorkError, one_line
from optimizer.methods.engines import use_another
from optimizer.records import Execution, KernelTime, LayerExecution, Role

EXECUTED = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
AFFINE = {"Add", "Subtract", "Multiply", "Divide"}
"""What may follow a product and still be the same layer, where its other input is constant: bias, scale."""
SCALING = {*AFFINE, "BatchNormInference"}
"""What is multiplied into the weight that comes before."""
TOGETHER_IN_ONE = "Subgraph"
"""What small layers of a small batch become: several of them, with what lies between, in one kernel."""


def problem() -> str | None:
    for package in ("openvino", "nncf"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed (pip install {package})"
    return None


def prepare(model: nn.Module, input_shape: tuple[int, ...]) -> Build:
    """Convert once, and build from the converted graph. Raises WorkError where OpenVINO can't."""
    converted = convert(model, input_shape)
    try:
        check_follows(partial(build, converted), model, input_shape, "openvino")
    except WorkError:
        if not converted.any_batch:
            raise
        converted = replace(converted, any_batch=False)  # images may have been mixed
        check_follows(partial(build, converted), model, input_shape, "openvino")
    return partial(build, converted)


def build(
    prepared: Converted, compressed: CompressedModel, calibration: Tensor, *, threads: int, batch: int
) -> Runner:
    _check_batch(prepared, batch)
    graph = graph_of(prepared, compressed, calibration)
    at_once = scoring_batch(prepared.input_shape) if prepared.any_batch else 1
    precision, int8 = compressed.recipe.quantize.precision, compressed.recipe.quantize.activation_bits == 8
    shape = [batch, *prepared.input_shape]

    def compiling(size: int, hint: str) -> Any:
        try:
            return compile_graph(graph, [size, *shape[1:]], hint, threads, precision)
        except RuntimeError as error:  # it may lack kernels for what quantizers make of a graph
            raise WorkError(
                f"OpenVINO can't compile this model after this recipe: {one_line(error)}. "
                f"{use_another('openvino')}"
            ) from error

    @cache
    def timed() -> tuple[Any, Any]:
        """The graph with the kernels that a timed call runs on, and what it is compiled to."""
        plain = compiling(batch, "LATENCY")
        return (
            _on_fastest_kernels(prepared, graph, plain, batch, threads, precision) if int8 else (graph, plain)
        )

    @cache
    def call() -> Callable[[Array], Array]:
        return one_call(timed()[1])

    @cache
    def scoring() -> Any:
        """Compiled when it first scores: a second baseline build, or a configuration of which only the speed
        is asked, never does."""
        return compiling(at_once, "THROUGHPUT")

    def execution() -> Execution:
        fast, compiled = timed()
        layers = executed(compiled, fast, prepared)
        return Execution(layers, simulated(compressed, layers, "openvino"))

    return Runner(
        infer=lambda images: call()(images),
        score=lambda images: run_batches(scoring(), at_once, images),
        executed=execution,
        scored=lambda: executed(scoring(), graph, prepared),
        memory_probe=lambda folder: save_graph(timed()[0], Path(folder), precision),
        loader=saved,
        profile=lambda images, calls: _profile(timed()[0], prepared, threads, precision, images, calls),
        serve=partial(_serve, prepared, graph, precision, int8),
    )


def _on_fastest_kernels(
    prepared: Converted, graph: Any, plain: Any, batch: int, threads: int, precision: str
) -> tuple[Any, Any]:
    """The graph with int8 kernels chosen by timing, and what it is compiled to: both as they are where
    OpenVINO's choice is as good."""
    images = prepared.noise[np.arange(batch) % len(prepared.noise)]

    def compiling(graph: Any, **more: Any) -> Any:
        return compile_graph(graph, [*images.shape], "LATENCY", threads, precision, **more)

    first = chosen(graph, plain, compiling, images, threads)
    if not first:
        return graph, plain
    fast = prioritised(graph, first)
    return fast, compiling(fast)


def _check_batch(prepared: Converted, batch: int) -> None:
    if batch > 1 and not prepared.any_batch:
        raise WorkError(
            f"OpenVINO converts this model for one image at a time, not for a batch size of {batch}: use "
            "batch size 1, or another engine"
        )


def _serve(
    prepared: Converted, graph: Any, precision: str, int8: bool, *, batch: int, threads: int, streams: int
) -> Service:
    """One stream answers as the timed call does, on the kernels that are the fastest for this batch and these
    threads; more take as many requests at once, on those of a stream's share of the threads."""
    _check_batch(prepared, batch)
    shape, share = [batch, *prepared.input_shape], threads // streams
    if streams == 1 or int8:
        compiled = compile_graph(graph, shape, "LATENCY", share, precision)
        if int8:
            graph, compiled = _on_fastest_kernels(prepared, graph, compiled, batch, share, precision)
        if streams == 1:
            return Service(one_by_one(one_call(compiled)))
    import openvino

    compiled = compile_graph(graph, shape, "THROUGHPUT", threads, precision, NUM_STREAMS=streams)
    return Service(partial(_at_once, openvino.AsyncInferQueue(compiled, streams)))


def _at_once(queue: Any, images: Array, requests: int) -> Array:
    """A request as soon as any stream is free, timed by OpenVINO's own clock: were streams waited for in
    turn, those that are done early would stand still."""
    times = np.empty((requests, 2), np.int64)
    running: dict[int, int] = {}

    def note_end(stream: int) -> None:
        if (number := running.get(stream)) is not None:
            times[number, 1] = times[number, 0] + max(1, round(1e6 * queue[stream].latency))

    for number in range(requests):
        stream = queue.get_idle_request_id()  # which start_async takes, too
        note_end(stream)
        running[stream], times[number, 0] = number, time.perf_counter_ns()
        queue.start_async([images], share_inputs=True)
    queue.wait_all()
    for stream in running:
        note_end(stream)
    return times


CONVERSIONS = {"Convert", "FakeQuantize", "Reorder"}
FIRST_CALLS = 3
"""Calls that a profile leaves out: kernels are made in the first, and threads are started."""


def _profile(
    graph: Any, prepared: Converted, threads: int, precision: str, images: Array, calls: int
) -> tuple[KernelTime, ...]:
    names = _Names(graph, prepared)
    types = {name: node.get_type_name() for name, node in nodes_of(graph).items()}

    def timed(name: str, node: Any, time_ns: int) -> KernelTime:
        info = told(node)
        how = info["runtimePrecision"], info["primitiveType"]
        if layers := dict.fromkeys(names.layers(node, info)):
            return KernelTime.of_layers(layers, *how, time_ns)
        fused = info["originalLayersNames"].split(",")
        converts = info["layerType"] in CONVERSIONS or {types.get(one) for one in fused} <= CONVERSIONS
        role: Role = "conversion" if converts else "other"
        return KernelTime(name, role, *how, (time_ns,))

    compiled = compile_graph(graph, [*images.shape], "LATENCY", threads, precision, PERF_COUNT=True)
    request = compiled.create_infer_request()
    run = one_by_one(lambda images: request.infer([images], share_inputs=True))
    run(images, FIRST_CALLS)
    before = total_ns(request, FIRST_CALLS)
    walls = np.diff(run(images, calls))
    after, nodes = total_ns(request, FIRST_CALLS + calls), nodes_of(compiled.get_runtime_model())
    spent = {name: max(0, round((total - before[name]) / calls)) for name, total in after.items()}
    between = round(np.median(walls)) - sum(spent.values())
    rows = (timed(name, nodes[name], taken) for name, taken in spent.items())
    return (*rows, KernelTime.between_operations(between))


def executed(compiled: Any, graph: Any, prepared: Converted) -> tuple[LayerExecution, ...]:
    """Precision and kernel of each layer, read off what a ``graph`` was compiled to."""
    names, ran = _Names(graph, prepared), dict[str, list[tuple[str, str]]]()
    for node in compiled.get_runtime_model().get_ops():
        info = told(node)
        for layer in names.layers(node, info):
            ran.setdefault(layer, []).append((info["runtimePrecision"], info["primitiveType"]))
    return tuple(execution_of(name, ran.get(name, [UNTOLD])) for name in prepared.operations)


class _Names:
    """By which names the layers of a graph are found among the operations that it is executed as.

    Those are fused, and take the name of one of what they are made of (a bias makes ``head/linear/MatMul``
    into ``head/linear/Add``), so what is compared is the call that they come from. A kernel of several layers
    names all that is in it: one that only adds a layer's bias does not run that layer. Where all names are
    lost, as where a scale of the whole weight takes the product's place, that of the weight's values is left,
    or of what turns them around; where a batch norm is multiplied into the weight, that of what follows.
    """

    def __init__(self, graph: Any, prepared: Converted) -> None:
        nodes = nodes_of(graph)
        self.exactly = {name: layer for layer, names in prepared.operations.items() for name in names}
        self.sites = {_call_site(name): layer for name, layer in self.exactly.items()}
        self.weights = {_values(nodes[name]): layer for name, layer in self.exactly.items()}
        self.weights |= {f"{name}/transpose_b": layer for name, layer in self.exactly.items()}
        self.followers = {
            follower: layer
            for name, layer in self.exactly.items()
            for follower in _scaled_and_shifted(nodes[name])
        }

    def layers(self, node: Any, info: Mapping[str, str]) -> list[str]:
        """Those whose products an executed operation computes."""
        kind, fused = info.get("layerType"), info.get("originalLayersNames", "").split(",")
        if kind == TOGETHER_IN_ONE:
            return [self.exactly[one] for one in fused if one in self.exactly]
        if kind not in EXECUTED:
            return []
        read = [source.get_source_output().get_node().get_friendly_name() for source in node.inputs()]
        known = (self.sites, map(_call_site, fused)), (self.followers, fused), (self.weights, read)
        found = (dict.fromkeys(layers[name] for name in names if name in layers) for layers, names in known)
        return next(filter(None, map(list, found)), [])


def _scaled_and_shifted(product: Any) -> Iterator[str]:
    """The names of what multiplies the results of an operation by constants, or adds them, one after the
    other."""
    node = product
    while len(found := readers(node)) == 1:
        (reader,) = found
        node = reader.get_node()
        others = [one for one in node.inputs() if one.get_index() != reader.get_index()]
        given = (one.get_source_output().get_node() for one in others)
        if node.get_type_name() not in SCALING or any(map(of_images, given)):
            return
        yield str(node.get_friendly_name())


def _values(product: Any) -> str:
    """The name of the constant that an operation's weight is made of."""
    node = product.input_value(1).get_node()
    while node.get_input_size():
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name())


def _call_site(operation: str) -> str:
    """``head/linear`` of ``head/linear/MatMul``, ``head/linear_1`` of ``head/linear/MatMul_1/Multiply``."""
    found = re.match(r"(.*?aten::\w+)/[A-Za-z]+(_\d+)?(/|$)", operation)
    return f"{found[1]}{found[2] or ''}" if found else operation


ENGINE = Engine(problem, prepare)
