"""OpenVINO on the CPU, pinned to float32, and int8 kernels where weights and activations are 8-bit.

A torch module is converted once (seconds); each recipe clones the converted graph, swaps in its weights
(milliseconds) and compiles it anew, since constants edited after compiling are ignored by some layers. For
8-bit activations NNCF places the activation quantizers and calibrates them on the compressed model; the
weights are then written in the recipe's own codes and scales, so their values are exact and the int8
kernels run.
"""

import importlib.util
import io
import logging
import os
import re
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optimizer.compress import CompressedModel, CompressedWeight
from optimizer.engines.base import (
    BETWEEN,
    BETWEEN_KERNEL,
    Array,
    Build,
    Engine,
    Load,
    Runner,
    Service,
    one_by_one,
)
from optimizer.engines.realised import simulated
from optimizer.errors import WorkError
from optimizer.layers import multiplications, uses, walk
from optimizer.records import TOGETHER, Execution, KernelTime, LayerExecution, Role

# OpenVINO's converter and NNCF report their use to Google Analytics, and write to the home folder for that,
# unless this package is missing. Nothing is to leave the machine: it counts as missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# oneDNN keeps the code of the last 1,024 kernels, and int8 kernels hold their scales: a sweep would fill it
# with a megabyte a configuration that no other one uses. Enough for the float32 kernels of a network.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")
EXECUTED = ("Convolution", "FullyConnected", "MatMul")
SCORING_ELEMENTS = 320_000
LARGEST_BATCH = 50
"""Images are scored in batches of about so many input values: two photographs, fifty thumbnails. Larger
batches leave the cache and score slower."""


@dataclass(frozen=True)
class Converted:
    """The uncompressed graph, and for each layer the operations that multiply with its weight.

    ``additions``: the addition of a bias that follows an operation, where one does.
    """

    graph: Any
    operations: dict[str, tuple[str, ...]]
    additions: dict[str, str]
    input_shape: tuple[int, int, int]


def problem() -> str | None:
    for package in ("openvino", "nncf"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed (pip install {package})"
    return None


def prepare(model: nn.Module, input_shape: tuple[int, int, int]) -> Build:
    """Convert once, and build from the converted graph."""
    return partial(build, convert(model, input_shape))


def convert(model: nn.Module, input_shape: tuple[int, int, int]) -> Converted:
    """Convert once. Raises WorkError when OpenVINO can't, or when a layer can't be found in its graph."""
    import openvino

    try:
        # What torch says of its own tracer is no concern of a user's.
        with _whole_attention_projections(), warnings.catch_warnings(action="ignore"):
            graph = openvino.convert_model(model, example_input=torch.zeros(1, *input_shape))
        graph.reshape([1, *input_shape])
    except Exception as error:  # the converter raises whatever its frontend or the model raises
        raise WorkError(
            f"OpenVINO can't convert this model: {_one_line(error)}. Use engine torch for it."
        ) from error
    names = {id(layer.weight): layer.name for layer in walk(model)}
    aliases = {
        alias: names[id(parameter)]
        for alias, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in names
    }
    operations: dict[str, tuple[str, ...]] = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() in WEIGHTED:
            for name in {aliases[alias] for alias in _weight_names(node) if alias in aliases}:
                operations[name] = (*operations.get(name, ()), node.get_friendly_name())
    for name, runs in multiplications(model, input_shape).items():
        if runs and name not in operations:  # without runs: a classifier for training only, as Inception's
            raise WorkError(
                f"layer {name} is not in OpenVINO's graph as a convolution or matrix product, "
                "so its weights can't be replaced. Use engine torch for this model."
            )
    converted = Converted(graph, operations, _additions(graph, operations, model), input_shape)
    _check_weights(converted, model)
    return converted


@contextmanager
def _whole_attention_projections() -> Iterator[None]:
    """Keep torch off its fused attention while tracing: it cuts the joint projection into three."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _weight_names(node: Any) -> list[str]:
    """Parameter paths that a node's weight may have, from the names that the torch frontend gives."""
    constant = node.input_value(1).get_node().get_friendly_name()
    operation = node.get_friendly_name().partition("/")[0]
    return [constant.removeprefix("self."), f"{operation.removeprefix('__module.')}.weight"]


def _check_weights(converted: Converted, model: nn.Module) -> None:
    """A wrong match would give wrong accuracy in silence: compare every weight once."""
    nodes = _nodes(converted.graph)
    weights = {layer.name: layer.weight.detach().numpy().ravel() for layer in walk(model)}
    for name, operations in converted.operations.items():
        for operation in operations:
            source = nodes[operation].input_value(1).get_node()
            if source.get_type_name() != "Constant" or not np.array_equal(
                source.get_data().ravel(), weights[name]
            ):
                raise WorkError(
                    f"layer {name} has other weights in OpenVINO's graph than in torch, so they can't be "
                    "replaced. Use engine torch for this model."
                )


def _additions(graph: Any, operations: dict[str, tuple[str, ...]], model: nn.Module) -> dict[str, str]:
    """By operation, what adds its layer's bias. (The converter leaves out a bias of zeros.)"""
    nodes = _nodes(graph)
    found: dict[str, str] = {}
    for layer in uses(model):
        if layer.bias is None:
            continue
        values = layer.bias.detach().numpy()
        for operation in operations.get(layer.name, ()):
            for target in nodes[operation].output(0).get_target_inputs():
                if _adds(target.get_node(), values):
                    found[operation] = target.get_node().get_friendly_name()
    return found


def _adds(node: Any, values: Array) -> bool:
    if node.get_type_name() != "Add":
        return False
    constant = node.input_value(1).get_node()
    return constant.get_type_name() == "Constant" and np.array_equal(constant.get_data().ravel(), values)


def _nodes(graph: Any) -> dict[str, Any]:
    return {node.get_friendly_name(): node for node in graph.get_ops()}


def build(
    prepared: Converted, compressed: CompressedModel, calibration: Tensor, threads: int, batch: int
) -> Runner:
    graph = prepared.graph.clone()
    _replace_weights(graph, prepared, compressed, as_codes=False)
    _shift_biases(graph, prepared, compressed)
    if compressed.recipe.quantize.activation_bits <= 8:
        graph = _quantize_activations(graph, calibration.numpy(), compressed.recipe.quantize.activation_bits)
        _replace_weights(graph, prepared, compressed, as_codes=True)

    scoring_batch = min(LARGEST_BATCH, max(1, SCORING_ELEMENTS // int(np.prod(prepared.input_shape))))
    precision = compressed.recipe.quantize.precision
    scoring = _compile(graph, [scoring_batch, *prepared.input_shape], "THROUGHPUT", threads, precision)

    @cache
    def timed() -> Any:
        """Compiled when it is first timed: configurations that share a measurement never are."""
        shape = [batch, *prepared.input_shape]
        return _compile(graph, shape, "LATENCY", threads, precision).create_infer_request()

    def infer(images: Array) -> Array:
        logits: Array = timed().infer([images], share_inputs=True)[0]
        return logits

    layers = _executed(scoring, prepared)
    return Runner(
        infer=infer,
        score=_scorer(scoring, scoring_batch),
        execution=Execution(layers, tuple(simulated(compressed, layers))),
        memory_probe=lambda folder: _save(graph, Path(folder), precision),
        loader=saved,
        profile=_profiler(graph, prepared, [batch, *prepared.input_shape], threads, precision),
        serve=partial(_serve, graph, prepared.input_shape, precision),
    )


def _replace_weights(graph: Any, prepared: Converted, compressed: CompressedModel, as_codes: bool) -> None:
    nodes = _nodes(graph)
    for name, operations in prepared.operations.items():
        weight = compressed.weights[name]
        shape = list(nodes[operations[0]].input_value(1).get_shape())
        if as_codes and weight.fits_int8:
            replacement = _int8_constant(weight, shape)
        else:
            replacement = _constant(weight.values, shape)
        for operation in operations:
            nodes[operation].input(1).replace_source_output(replacement.output(0))


def _shift_biases(graph: Any, prepared: Converted, compressed: CompressedModel) -> None:
    """Into the additions that are there, so that the graph stays the one that engines know to fuse."""
    from openvino import opset13 as ops

    nodes = _nodes(graph)
    for name, operations in prepared.operations.items():
        change = compressed.weights[name].bias_change
        if change is None:
            continue
        for operation in operations:
            if operation in prepared.additions:
                addition = nodes[prepared.additions[operation]]
                bias = torch.tensor(addition.input_value(1).get_node().get_data())
                shifted = _constant(bias + change.reshape(bias.shape), list(bias.shape))
                addition.input(1).replace_source_output(shifted.output(0))
                continue
            output = nodes[operation].output(0)
            users = output.get_target_inputs()
            beside = (
                0 if nodes[operation].get_type_name() == "MatMul" else len(output.get_partial_shape()) - 2
            )
            added = ops.add(output, _constant(change, [len(change), *[1] * beside]))
            for user in users:
                user.replace_source_output(added.output(0))


def _constant(values: Tensor, shape: list[int]) -> Any:
    from openvino import opset13 as ops

    return ops.constant(np.ascontiguousarray(values.numpy()).reshape(shape))


def _int8_constant(weight: CompressedWeight, shape: list[int]) -> Any:
    """int8 codes, a conversion and a scale a channel: the pattern that OpenVINO turns into int8 kernels."""
    from openvino import opset13 as ops

    assert weight.codes is not None
    codes = weight.codes.centred.to(torch.int8).numpy().reshape(shape)
    scale = weight.codes.scale.numpy().ravel()
    channels = scale if scale.size > 1 else np.repeat(scale, weight.codes.centred.shape[0])
    channels = channels.reshape([len(channels)] + [1] * (len(shape) - 1))
    return ops.multiply(ops.convert(ops.constant(codes), np.float32), ops.constant(channels))


def _quantize_activations(graph: Any, calibration: Array, bits: int) -> Any:
    """NNCF's post-training quantization without its bias correction: biases are the recipe's business.

    Its grids are of 8 bits; fewer take fewer levels between the same ends.
    """
    kind_of_logger = logging.getLoggerClass()
    import nncf

    logging.setLoggerClass(kind_of_logger)  # importing NNCF sets its own for every logger made later
    nncf.set_log_level(logging.ERROR)
    dataset = nncf.Dataset([calibration[index : index + 1] for index in range(len(calibration))])
    transformer = any(node.get_type_name() == "ScaledDotProductAttention" for node in graph.get_ops())
    try:
        with redirect_stdout(io.StringIO()):  # where it draws its progress
            quantized = nncf.quantize(
                graph,
                dataset,
                subset_size=len(calibration),
                # symmetric grids: for a transformer NNCF's own choice is an eighth slower, and no more exact
                preset=nncf.QuantizationPreset.PERFORMANCE,
                model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    disable_bias_correction=True,
                    smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
                ),
            )
    except Exception as error:  # NNCF wraps errors of many kinds
        raise WorkError(f"NNCF can't quantize the activations of this model: {_one_line(error)}") from error
    for node in quantized.get_ops():
        if (
            node.get_type_name() == "FakeQuantize"
            and node.input_value(0).get_node().get_type_name() != "Constant"
        ):
            node.set_attribute("levels", 2**bits)
    return quantized


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _compile(graph: Any, shape: list[int], hint: str, threads: int, precision: str, **more: Any) -> Any:
    import openvino

    batched = graph.clone()
    batched.reshape(shape)
    return openvino.Core().compile_model(batched, "CPU", _settings(hint, threads, precision) | more)


def _settings(hint: str, threads: int, precision: str) -> dict[str, Any]:
    """Left alone, OpenVINO computes in bfloat16 where the CPU can."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
    }


def _scorer(compiled: Any, batch: int) -> Callable[[Array], Array]:
    """Images in batches over every stream; the last batch is filled up and cut.

    Requests are waited for in turn, without callbacks: a callback needs the interpreter's lock, which a
    thread that lets go of the compiled model holds while it waits for the callback's thread.
    """
    streams = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    requests = [compiled.create_infer_request() for _ in range(streams)]

    def score(images: Array) -> Array:
        logits = np.empty((len(images), compiled.output(0).shape[1]), np.float32)
        running: deque[tuple[Any, int, Array]] = deque()  # with what each reads: it is not copied

        def finish_oldest() -> Any:
            request, start, _ = running.popleft()
            request.wait()
            part = logits[start : start + batch]
            part[:] = request.get_output_tensor().data[: len(part)]
            return request

        free = list(requests)
        for start in range(0, len(images), batch):
            chunk = images[start : start + batch]
            if len(chunk) < batch:
                chunk = np.concatenate([chunk, np.zeros((batch - len(chunk), *chunk.shape[1:]), np.float32)])
            request = free.pop() if free else finish_oldest()
            request.start_async([chunk], share_inputs=True)
            running.append((request, start, chunk))
        while running:
            finish_oldest()
        return logits

    return score


def _serve(
    graph: Any, input_shape: tuple[int, ...], precision: str, batch: int, threads: int, streams: int
) -> Service:
    """One stream answers as the timed call does; more take as many requests at once."""
    shape = [batch, *input_shape]
    if streams == 1:
        request = _compile(graph, shape, "LATENCY", threads, precision).create_infer_request()
        return Service(one_by_one(lambda images: request.infer([images], share_inputs=True)[0]))
    compiled = _compile(graph, shape, "THROUGHPUT", threads, precision, NUM_STREAMS=streams)
    waiting = [compiled.create_infer_request() for _ in range(streams)]

    def run(images: Array, requests: int) -> Array:
        begun, taken = np.empty(requests, np.int64), np.empty(requests, np.int64)
        for number in range(requests + streams):
            request, oldest = waiting[number % streams], number - streams
            if 0 <= oldest < requests:
                request.wait()
                taken[oldest] = time.perf_counter_ns() - begun[oldest]
            if number < requests:
                begun[number] = time.perf_counter_ns()
                request.start_async([images], share_inputs=True)
        return taken

    return Service(run)


CONVERSIONS = {"Convert", "FakeQuantize", "Reorder"}
FIRST_CALLS = 3
"""Calls that a profile leaves out: kernels are made in the first, and threads are started."""


def _profiler(
    graph: Any, prepared: Converted, shape: list[int], threads: int, precision: str
) -> Callable[[Array, int], tuple[KernelTime, ...]]:
    exactly = {name: layer for layer, names in prepared.operations.items() for name in names}
    layers = {_call_site(name): layer for name, layer in exactly.items()}
    types = {name: node.get_type_name() for name, node in _nodes(graph).items()}

    def described(name: str, node: Any) -> tuple[str, Role, str, str]:
        info = {key: str(value.value) for key, value in node.get_rt_info().items()}
        fused = info["originalLayersNames"].split(",")
        how = info["runtimePrecision"], info["primitiveType"]
        if info["layerType"] in EXECUTED:
            for layer in (layers[site] for site in map(_call_site, fused) if site in layers):
                return layer, "layer", *how
        several = dict.fromkeys(exactly[one] for one in fused if one in exactly)
        if several:  # one kernel of them all
            return TOGETHER.join(several), "layer", *how
        converts = info["layerType"] in CONVERSIONS or {types.get(one) for one in fused} <= CONVERSIONS
        return name, "conversion" if converts else "other", *how

    def profile(images: Array, calls: int) -> tuple[KernelTime, ...]:
        compiled = _compile(graph, shape, "LATENCY", threads, precision, PERF_COUNT=True)
        request = compiled.create_infer_request()
        for _ in range(FIRST_CALLS):
            request.infer([images], share_inputs=True)
        before, walls = _total_ns(request, FIRST_CALLS), []
        for _ in range(calls):
            begun = time.perf_counter_ns()
            request.infer([images], share_inputs=True)
            walls.append(time.perf_counter_ns() - begun)
        after, nodes = _total_ns(request, FIRST_CALLS + calls), _nodes(compiled.get_runtime_model())
        spent = {name: max(0, round((total - before[name]) / calls)) for name, total in after.items()}
        between = max(0, round(np.median(walls)) - sum(spent.values()))
        return (
            *(KernelTime(*described(name, nodes[name]), (taken,)) for name, taken in spent.items()),
            KernelTime(BETWEEN, "other", "", BETWEEN_KERNEL, (between,)),
        )

    return profile


def _total_ns(request: Any, calls: int) -> dict[str, float]:
    """Nanoseconds in each operation so far, fused ones left out. What OpenVINO tells is the mean of all calls
    since compiling, in whole microseconds, cut off: on average by a half. (Below one it says "not run", too,
    of what is run.)"""
    return {
        one.node_name: calls * 1000 * (microseconds + 0.5 if microseconds else 0)
        for one in request.profiling_info
        if one.exec_type != "undef"
        for microseconds in (one.real_time // timedelta(microseconds=1),)
    }


def _executed(compiled: Any, prepared: Converted) -> tuple[LayerExecution, ...]:
    """Precision and kernel of each layer, read off the executed graph.

    Operations are fused there and take the name of one of them (a bias makes ``head/linear/MatMul`` into
    ``head/linear/Add``), so what is compared is the call that they come from.
    """
    ran: dict[str, tuple[str, str]] = {}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if "layerType" not in info or str(info["layerType"].value) not in EXECUTED:
            continue
        how = str(info["runtimePrecision"].value), str(info["primitiveType"].value)
        for name in str(info["originalLayersNames"].value).split(","):
            ran[_call_site(name)] = how
    layers = []
    for name, operations in prepared.operations.items():
        kernels = [ran.get(_call_site(operation), ("unknown", "unknown")) for operation in operations]
        precision, kernel = (" and ".join(dict.fromkeys(words)) for words in zip(*kernels, strict=True))
        layers.append(LayerExecution(name, precision, kernel))
    return tuple(layers)


def _call_site(operation: str) -> str:
    """``head/linear`` of ``head/linear/MatMul``, ``head/linear_1`` of ``head/linear/MatMul_1/Multiply``."""
    found = re.match(r"(.*?aten::\w+)/[A-Za-z]+(_\d+)?(/|$)", operation)
    return f"{found[1]}{found[2] or ''}" if found else operation


def _save(graph: Any, folder: Path, precision: str) -> None:
    import openvino

    openvino.save_model(graph, folder / "model.xml", compress_to_fp16=False)
    (folder / "precision").write_text(precision)


def saved() -> Load:
    """The loader of what a runner's ``memory_probe`` writes."""
    import openvino

    core = openvino.Core()

    def load(folder: Path, threads: int, shape: tuple[int, ...]) -> Callable[[Array], object]:
        settings = _settings("LATENCY", threads, (folder / "precision").read_text())
        compiled = core.compile_model(folder / "model.xml", "CPU", settings)
        return lambda images: compiled([images])

    return load


ENGINE = Engine(name="openvino", label="OpenVINO", problem=problem, prepare=prepare)
