"""Networks of files, run as they are by OpenVINO or ONNX Runtime: all their outputs, the tensors inside, and
which kernels ran. Nothing is converted to torch, so what torch has no counterpart for runs too.
"""

import math
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from optimizer.engine import onnxruntime, openvino
from optimizer.engine.base import Array, Runner
from optimizer.engine.openvino_graph import Converted, convert
from optimizer.engine.openvino_quantizers import WEIGHTED
from optimizer.errors import InputError
from optimizer.records import Execution, LayerExecution, Part

MAX_ELEMENTS = 2**28
"""Of a tensor inside a network, for one image: 1 GiB."""
AFFINE = {"Add", "Subtract", "Multiply", "Divide"}
"""What may follow a product and still be the same layer, where its other input is constant: bias, scale."""
OF_WEIGHTS = {"Convert", "FakeQuantize", "Reshape", "Transpose", "Unsqueeze", "Squeeze", *AFFINE}
"""What may lie between a layer's weight and its product."""
Answer = Callable[[Array], list[Array]]
"""From images ``[batch, C, H, W]`` to one tensor of floats for each output."""


@dataclass(frozen=True)
class Network:
    """What can be run as it is: one of an ONNX file and an IR, as they were read and kept
    (:mod:`optimizer.model.added.files`), and a ``module`` whose batch norm is folded."""

    onnx: Path | None = None
    ir: Path | None = None
    module: nn.Module | None = None


@dataclass(frozen=True, slots=True)
class InnerLayer:
    """A convolution or product with weights: its operation's ``kind``, the shape of its ``weight`` (of a
    product, sorted: it may be transposed), and that of what it gives for one image, its bias added."""

    name: str
    kind: str
    weight: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Opened:
    """A network compiled for images of one shape. ``runner`` is what is timed; ``answer`` gives every output
    of the same compiled network. ``inside`` compiles it anew, to give what layers of these names give."""

    outputs: tuple[Part, ...]
    layers: tuple[InnerLayer, ...]
    runner: Runner
    answer: Answer
    inside: Callable[[Sequence[str]], Answer]


def open_network(
    network: Network, engine: str, shape: tuple[int, ...], threads: int, batch: int = 1
) -> Opened:
    """Compile for images ``[C, H, W]``. Raises InputError for a network that can't be run on them, or not by
    this engine, WorkError where a module can't be converted."""
    if engine not in ENGINES:
        raise InputError(f"files are run by {' or '.join(ENGINES)}, not by {engine!r}: give one of these")
    return ENGINES[engine](network, shape, threads, batch)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[-300:]


# OpenVINO


def _by_openvino(network: Network, shape: tuple[int, ...], threads: int, batch: int) -> Opened:
    graph = _graph(network, shape)
    products = _products(graph)
    layers = tuple(
        InnerLayer(
            name, node.get_type_name(), _weight_shape(node), tuple(_end(node).output(0).get_shape()[1:])
        )
        for name, node in products.items()
    )
    operations: dict[str, tuple[str, ...]] = {
        name: (node.get_friendly_name(),) for name, node in products.items()
    }
    sizes = [batch, *shape]
    try:
        compiled = openvino.compile_graph(graph, sizes, "LATENCY", threads, "f32")
    except Exception as error:  # of its own kinds
        raise InputError(f"OpenVINO can't compile it for {sizes}: {_short(error)}") from error
    executed = openvino.executed(compiled, Converted(graph, operations, {}, shape))
    infer = openvino.one_call(compiled)
    return Opened(
        tuple((_output_name(output), tuple(output.get_shape()[1:])) for output in graph.outputs),
        layers,
        Runner(
            infer=infer,
            score=infer,
            execution=Execution(executed, ()),
            memory_probe=lambda folder: openvino.save_graph(graph, Path(folder), "f32"),
            loader=openvino.saved,
        ),
        _every_output(compiled),
        partial(_inside_of, graph, sizes, threads),
    )


def _graph(network: Network, shape: tuple[int, ...]) -> Any:
    """For one image. Raises InputError where shapes inside don't fit, or are left open."""
    import openvino as library

    if network.module is not None:
        return convert(network.module, shape).graph
    try:
        graph = library.Core().read_model(network.onnx or network.ir)
        graph.reshape([1, *shape])
    except Exception as error:  # of its own kinds, for operators and shapes alike
        raise InputError(f"OpenVINO can't read it for images of {list(shape)}: {_short(error)}") from error
    for node in graph.get_ordered_ops():
        for output in node.outputs():
            sides = output.get_partial_shape()
            if sides.is_static and math.prod(output.get_shape()) > MAX_ELEMENTS:
                raise InputError(
                    f"{node.get_friendly_name()[:80]} gives {sides}: no tensor may have more than "
                    f"{MAX_ELEMENTS:,} values"
                )
    _check_static(
        {
            _output_name(output): output.get_partial_shape().is_static
            and output.get_partial_shape().rank.get_length() > 0
            and output.get_shape()[0] == 1
            for output in graph.outputs
        }
    )
    return graph


def _check_static(outputs: dict[str, bool]) -> None:
    for name, rows in outputs.items():
        if not rows:
            raise InputError(
                f"its output {name[:60]!r} does not have one row of a fixed size for each image: export it "
                "without what follows the network, such as the selection of boxes"
            )


def _output_name(output: Any) -> str:
    names = sorted(output.get_names())
    return names[0] if names else _layer_name(output.get_node().input_value(0).get_node().get_friendly_name())


def _products(graph: Any) -> dict[str, Any]:
    """Its convolutions and products with a weight, by name, in the order of the network."""
    found = []
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        multiplies = kind in WEIGHTED or kind.endswith("ConvolutionBackpropData")
        if multiplies and _is_weight(node.input_value(1).get_node()):
            found.append(node)
    names = [_layer_name(node.get_friendly_name()) for node in found]
    return {
        name if names.count(name) == 1 else node.get_friendly_name(): node
        for name, node in zip(names, found, strict=True)
    }


def _layer_name(operation: str) -> str:
    """Without what OpenVINO adds when it reads ONNX or torch."""
    torch_module = re.match(r"__module\.(.+)/aten::", operation)
    return torch_module[1] if torch_module else operation.removesuffix("/WithoutBiases")


def _is_weight(node: Any) -> bool:
    kind = node.get_type_name()
    if kind not in OF_WEIGHTS:
        return bool(kind == "Constant")
    return all(_is_weight(one.get_source_output().get_node()) for one in node.inputs())


def _weight_shape(node: Any) -> tuple[int, ...]:
    shape = tuple(node.input_value(1).get_shape())
    return tuple(sorted(shape)) if node.get_type_name() == "MatMul" else shape


def _end(node: Any) -> Any:
    """The operation that ends a layer: its product, or what adds its bias."""
    while True:
        following = [target.get_node() for target in node.output(0).get_target_inputs()]
        if len(following) != 1 or following[0].get_type_name() not in AFFINE:
            return node
        others = [one.get_source_output().get_node() for one in following[0].inputs()]
        constant = [other for other in others if other.get_friendly_name() != node.get_friendly_name()]
        if len(constant) != 1 or not _is_weight(constant[0]):
            return node
        if following[0].output(0).get_partial_shape() != node.output(0).get_partial_shape():
            return node
        node = following[0]


def _every_output(compiled: Any) -> Answer:
    request, count = compiled.create_infer_request(), len(compiled.outputs)

    def answer(images: Array) -> list[Array]:
        request.infer([np.ascontiguousarray(images, np.float32)], share_inputs=True)
        return [np.array(request.get_output_tensor(number).data, np.float32) for number in range(count)]

    return answer


def _inside_of(graph: Any, sizes: list[int], threads: int, names: Sequence[str]) -> Answer:
    import openvino as library

    copied = graph.clone()
    products = _products(copied)
    ends = [_end(products[name]).output(0) for name in names]
    shown = library.Model(ends, copied.get_parameters(), "inside")
    return _every_output(openvino.compile_graph(shown, sizes, "LATENCY", threads, "f32"))


# ONNX Runtime


def _by_onnxruntime(network: Network, shape: tuple[int, ...], threads: int, batch: int) -> Opened:
    model = _onnx_model(network, shape)
    _set_input(model, [batch, *shape])
    folded = not any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    content = model.SerializeToString()
    session, executed = _session(content, batch, threads, folded, list(shape))
    layers = _onnx_layers(model.graph)
    names = [output.name for output in session.get_outputs()]

    def answer(images: Array) -> list[Array]:
        return [np.asarray(one, np.float32) for one in session.run(None, {"images": images})]

    try:
        outputs = answer(np.zeros((batch, *shape), np.float32))
        ends = _inside_onnx(model, batch, threads, folded, [*layers])(np.zeros((batch, *shape), np.float32))
    except Exception as error:  # of its own kinds
        raise InputError(f"ONNX Runtime can't run it on {[batch, *shape]}: {_short(error)}") from error
    _check_static({name: one.shape[:1] == (batch,) for name, one in zip(names, outputs, strict=True)})
    return Opened(
        tuple((name, one.shape[1:]) for name, one in zip(names, outputs, strict=True)),
        tuple(
            InnerLayer(name, kind, weight, end.shape[1:])
            for (name, (kind, weight, _)), end in zip(layers.items(), ends, strict=True)
        ),
        Runner(
            infer=lambda images: session.run(None, {"images": images})[0],
            score=lambda images: session.run(None, {"images": images})[0],
            execution=Execution(executed, ()),
            memory_probe=partial(onnxruntime.save_content, content, folded),
            loader=onnxruntime.saved,
        ),
        answer,
        partial(_inside_onnx, model, batch, threads, folded),
    )


def _onnx_model(network: Network, shape: tuple[int, ...]) -> Any:
    import onnx

    from optimizer.engine.onnx_export import export

    if network.ir is not None:
        raise InputError("ONNX Runtime can't run an OpenVINO IR: give engine openvino")
    if network.module is not None:
        return export(network.module, shape).model
    assert network.onnx is not None
    return onnx.load(network.onnx)


def _set_input(model: Any, sizes: list[int]) -> None:
    """Under the name that every ONNX graph's input has here, in the shape that it is run in."""
    from onnx import TensorProto, helper

    (given,) = model.graph.input
    for node in model.graph.node:
        node.input[:] = ["images" if name == given.name else name for name in node.input]
    given.CopyFrom(helper.make_tensor_value_info("images", TensorProto.FLOAT, sizes))


def _session(
    content: bytes, batch: int, threads: int, folded: bool, shape: list[int]
) -> tuple[Any, tuple[LayerExecution, ...]]:
    import onnx

    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        path = Path(folder, "optimised.onnx")
        try:
            session = onnxruntime.session_of(content, batch, threads, folded, path)
        except Exception as error:  # of its own kinds
            raise InputError(f"ONNX Runtime can't load it for images of {shape}: {_short(error)}") from error
        optimised = onnx.load(path, load_external_data=False).graph
    return session, tuple(
        LayerExecution(node.name or node.output[0], *onnxruntime.how(node))
        for node in optimised.node
        if node.op_type in onnxruntime.MULTIPLYING
    )


OF_ONNX_WEIGHTS = {"DequantizeLinear", "QuantizeLinear", "Transpose", "Identity"}
OnnxLayers = dict[str, tuple[str, tuple[int, ...], Any]]
QUANTIZED = {"QLinearConv": 6, "QLinearMatMul": 6}
"""Operators whose output is codes, and which input is the output's scale; its zero point follows."""


def _onnx_layers(graph: Any) -> OnnxLayers:
    """By name, each layer's kind, its weight's shape, and the node that ends it."""
    weights = {one.name: tuple(one.dims) for one in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
        if node.op_type in OF_ONNX_WEIGHTS and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    ends = {output.name for output in graph.output}
    found: OnnxLayers = {}
    for node in graph.node:
        place = {"QLinearConv": 3, "QLinearMatMul": 3}.get(node.op_type, 1)
        if node.op_type not in (*QUANTIZED, "Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        if len(node.input) <= place or node.input[place] not in weights:
            continue
        end = node
        while end.output[0] not in ends and node.op_type not in QUANTIZED:
            following = readers.get(end.output[0], [])
            if len(following) != 1 or following[0].op_type not in ("Add", "BatchNormalization"):
                break
            if not all(name in weights or name == end.output[0] for name in following[0].input):
                break
            end = following[0]
        shape = weights[node.input[place]]
        convolves = "Conv" in node.op_type
        kind = "Convolution" if convolves else "MatMul"
        found[node.name or node.output[0]] = kind, shape if convolves else tuple(sorted(shape)), end
    return found


def _inside_onnx(model: Any, batch: int, threads: int, folded: bool, names: Sequence[str]) -> Answer:
    import onnx
    from onnx import numpy_helper

    shown = onnx.ModelProto.FromString(model.SerializeToString())
    layers = _onnx_layers(shown.graph)
    constants = {one.name: one for one in shown.graph.initializer}
    ends = [layers[name][2] for name in names]
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in {end.output[0] for end in ends})
    session = onnxruntime.session_of(shown.SerializeToString(), batch, threads, folded)
    grids = {
        end.output[0]: [
            numpy_helper.to_array(constants[name]).astype(np.float32)
            for name in end.input[QUANTIZED[end.op_type] :][:2]
        ]
        for end in ends
        if end.op_type in QUANTIZED
    }

    def answer(images: Array) -> list[Array]:
        wanted = [end.output[0] for end in ends]
        unique = list(dict.fromkeys(wanted))
        values = dict(zip(unique, session.run(unique, {"images": images}), strict=True))
        for name, (scale, zero) in grids.items():
            values[name] = (values[name].astype(np.float32) - zero) * scale
        return [np.asarray(values[name], np.float32) for name in wanted]

    return answer


ENGINES: dict[str, Callable[[Network, tuple[int, ...], int, int], Opened]] = {
    "openvino": _by_openvino,
    "onnxruntime": _by_onnxruntime,
}
