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
from optimizer.engine.onnx_graph import Graph
from optimizer.engine.openvino_core import core
from optimizer.engine.openvino_graph import Converted, convert
from optimizer.engine.openvino_quantizers import WEIGHTED
from optimizer.errors import InputError
from optimizer.records import Execution, LayerExecution, Part

MAX_ELEMENTS = 2**28
"""Of a tensor inside a network, for one image: 1 GiB."""
AFFINE = {"Add", "Subtract", "Multiply", "Divide"}
"""What may follow a product and still be the same layer, where its other input is constant: bias, scale."""
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
    product, sorted: it may be transposed), and that of what it gives for one image, its bias added.

    ``clip`` are the ends of a ReLU, or another clip, that follows. Integer kernels take it with them: what
    they give is to be held against what another network gives once that is clipped too."""

    name: str
    kind: str
    weight: tuple[int, ...]
    shape: tuple[int, ...]
    clip: tuple[float, float] | None = None


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
    products, of_images = _products(graph), _of_images(graph)
    layers = []
    for name, node in products.items():
        end = _end(node, of_images)
        shape_of_one = tuple(end.output(0).get_shape()[1:])
        layers.append(InnerLayer(name, node.get_type_name(), _weight_shape(node), shape_of_one, _clip(end)))
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
        tuple(layers),
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
    if network.module is not None:
        return convert(network.module, shape).graph
    try:
        graph = core().read_model(network.onnx or network.ir)
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
    of_images, found = _of_images(graph), []
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        multiplies = kind in WEIGHTED or kind.endswith("ConvolutionBackpropData")
        if multiplies and _source(node, 1) not in of_images:
            found.append(node)
    names = [_layer_name(node.get_friendly_name()) for node in found]
    return {
        name if names.count(name) == 1 else node.get_friendly_name(): node
        for name, node in zip(names, found, strict=True)
    }


def _of_images(graph: Any) -> set[str]:
    """The operations that depend on the image, by name. Of one whose shape is known, a shape does not."""
    found: set[str] = set()
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        read = {_source(node, number) for number in range(node.get_input_size())}
        if kind == "Parameter" or (kind != "ShapeOf" and read & found):
            found.add(node.get_friendly_name())
    return found


def _source(node: Any, number: int) -> str:
    name: str = node.input_value(number).get_node().get_friendly_name()
    return name


def _layer_name(operation: str) -> str:
    """Without what OpenVINO adds when it reads ONNX or torch."""
    torch_module = re.match(r"__module\.(.+)/aten::", operation)
    return torch_module[1] if torch_module else operation.removesuffix("/WithoutBiases")


def _weight_shape(node: Any) -> tuple[int, ...]:
    shape = tuple(node.input_value(1).get_shape())
    return tuple(sorted(shape)) if node.get_type_name() == "MatMul" else shape


def _end(node: Any, of_images: set[str]) -> Any:
    """The operation that ends a layer: its product, or what adds its bias."""
    while True:
        readers = [target.get_node() for target in node.output(0).get_target_inputs()]
        if len(readers) != 1 or readers[0].get_type_name() not in AFFINE:
            return node
        others = {_source(readers[0], number) for number in range(2)} - {node.get_friendly_name()}
        shapes = {one.output(0).get_partial_shape().to_string() for one in (node, readers[0])}
        if others & of_images or len(shapes) > 1:
            return node
        node = readers[0]


def _clip(end: Any) -> tuple[float, float] | None:
    """The ends of what clips a layer's output, where nothing else reads it."""
    readers = [target.get_node() for target in end.output(0).get_target_inputs()]
    kinds = [reader.get_type_name() for reader in readers]
    if kinds == ["Relu"]:
        return 0.0, math.inf
    if kinds == ["Clamp"]:
        attributes = readers[0].get_attributes()
        return float(attributes["min"]), float(attributes["max"])
    return None


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
    of_images = _of_images(copied)
    ends = [_end(products[name], of_images).output(0) for name in names]
    shown = library.Model(ends, copied.get_parameters(), "inside")
    return _every_output(openvino.compile_graph(shown, sizes, "LATENCY", threads, "f32"))


# ONNX Runtime


def _by_onnxruntime(network: Network, shape: tuple[int, ...], threads: int, batch: int) -> Opened:
    model = _onnx_model(network, shape)
    _set_input(model, [batch, *shape])
    folded = not any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    content = model.SerializeToString()
    layers = _onnx_layers(model.graph)
    known = Graph(model, False, tuple(layers), nodes={name: name for name in layers})
    session, executed = _session(content, known, batch, threads, folded, list(shape))
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
            InnerLayer(name, kind, weight, end.shape[1:], _onnx_clip(model.graph, node.output[0]))
            for (name, (kind, weight, node)), end in zip(layers.items(), ends, strict=True)
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
        node.name = node.name or node.output[0]
        node.input[:] = ["images" if name == given.name else name for name in node.input]
    given.CopyFrom(helper.make_tensor_value_info("images", TensorProto.FLOAT, sizes))


def _session(
    content: bytes, graph: Graph, batch: int, threads: int, folded: bool, shape: list[int]
) -> tuple[Any, tuple[LayerExecution, ...]]:
    import onnx

    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        path = Path(folder, "optimised.onnx")
        try:
            session = onnxruntime.session_of(content, batch, threads, folded, path)
        except Exception as error:  # of its own kinds
            raise InputError(f"ONNX Runtime can't load it for images of {shape}: {_short(error)}") from error
        optimised = onnx.load(path, load_external_data=False).graph
    return session, onnxruntime.executed(optimised, graph)


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
        found[node.name] = kind, shape if convolves else tuple(sorted(shape)), end
    return found


def _onnx_clip(graph: Any, tensor: str) -> tuple[float, float] | None:
    """The ends of what clips a tensor, where nothing else reads it."""
    from onnx import helper, numpy_helper

    readers = [node for node in graph.node if tensor in node.input]
    if len(readers) != 1 or readers[0].op_type not in ("Relu", "Clip"):
        return None
    ends = [0.0, math.inf] if readers[0].op_type == "Relu" else [-math.inf, math.inf]
    for attribute in readers[0].attribute:  # before opset 11
        ends[attribute.name == "max"] = helper.get_attribute_value(attribute)
    constants = {one.name: one for one in graph.initializer}
    for place, name in enumerate(readers[0].input[1:3]):
        if name in constants:
            ends[place] = float(numpy_helper.to_array(constants[name]))
    return ends[0], ends[1]


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
