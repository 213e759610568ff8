"""Networks of files on ONNX Runtime: :func:`opened` loads one for images of one shape."""

import math
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import numpy as np

from optimizer.engine import onnxruntime, onnxruntime_session
from optimizer.engine.base import Array, Runner
from optimizer.engine.onnx_graph import Graph, readers_of
from optimizer.engine.opened import Answer, InnerLayer, Network, Opened, check_static, short
from optimizer.errors import InputError
from optimizer.records import Execution


def opened(network: Network, shape: tuple[int, ...], threads: int, batch: int) -> Opened:
    model = _model(network, shape)
    _set_input(model, [batch, *shape])
    folded = not any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    content = model.SerializeToString()
    layers = _layers(model.graph)
    nodes = {part: name for name, (*_, end) in layers.items() for part in (name, end.name)}
    known = Graph(model, False, tuple(layers), nodes=nodes)
    try:
        session, executed = onnxruntime.observed(content, batch, threads, folded, known)
    except Exception as error:  # of its own kinds
        raise InputError(f"ONNX Runtime can't load it for images of {list(shape)}: {short(error)}") from error
    names = [output.name for output in session.get_outputs()]

    def answer(images: Array) -> list[Array]:
        return [np.asarray(one, np.float32) for one in session.run(None, {"images": images})]

    try:
        outputs = answer(np.zeros((batch, *shape), np.float32))
        ends = _inside_of(model, batch, threads, folded, [*layers])(np.zeros((batch, *shape), np.float32))
    except Exception as error:  # of its own kinds
        raise InputError(f"ONNX Runtime can't run it on {[batch, *shape]}: {short(error)}") from error
    check_static({name: one.shape[:1] == (batch,) for name, one in zip(names, outputs, strict=True)})
    return Opened(
        tuple((name, one.shape[1:]) for name, one in zip(names, outputs, strict=True)),
        tuple(
            InnerLayer(name, kind, weight, end.shape[1:], _clip(model.graph, node.output[0]))
            for (name, (kind, weight, node)), end in zip(layers.items(), ends, strict=True)
        ),
        Runner(
            infer=lambda images: session.run(None, {"images": images})[0],
            score=lambda images: session.run(None, {"images": images})[0],
            executed=lambda: Execution(executed, ()),
            memory_probe=partial(onnxruntime_session.save_content, content, folded),
            loader=onnxruntime_session.saved,
        ),
        answer,
        partial(_inside_of, model, batch, threads, folded),
    )


def _model(network: Network, shape: tuple[int, ...]) -> Any:
    import onnx

    from optimizer.engine.onnx_export import export, taken_apart

    if network.ir is not None:
        raise InputError("ONNX Runtime can't run an OpenVINO IR: give engine openvino")
    if network.module is not None:
        return taken_apart(export(network.module, shape).model, network.parts)
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


OF_ONNX_WEIGHTS = {
    *("DequantizeLinear", "QuantizeLinear", "Transpose", "Identity", "Cast", "Sub", "Mul", "Reshape"),
}
"""What a weight may go through before a layer multiplies with it, or a bias before it is added."""


OnnxLayers = dict[str, tuple[str, tuple[int, ...], Any]]


QUANTIZED = {"QLinearConv": 6, "QLinearMatMul": 6, "QGemm": 7}
"""Operators whose output is codes, and which input is the output's scale; its zero point follows."""
SCALES = QUANTIZED | {"QLinearAdd": 6}
"""The same of what may add a bias to codes, too."""
ADDING = ["Add", "BatchNormalization", "QLinearAdd"]
ROUNDING = ("QuantizeLinear", "DequantizeLinear")
INTEGER = ("ConvInteger", "MatMulInteger")
"""Operators whose output is whole numbers: a Cast makes floats of them, and a Mul scales those."""


def _layers(graph: Any) -> OnnxLayers:
    """By name, each layer's kind, its weight's shape, and the node that ends it."""
    weights = {one.name: tuple(one.dims) for one in graph.initializer}
    readers = readers_of(graph)
    for node in graph.node:
        if node.op_type in OF_ONNX_WEIGHTS and all(name in weights for name in node.input if name):
            weights[node.output[0]] = weights[node.input[0]]
    for output in graph.output:
        readers.pop(output.name, None)  # nothing that follows it is all that reads it
    found: OnnxLayers = {}
    for node in graph.node:
        place = 3 if node.op_type in QUANTIZED else 1
        if node.op_type not in (*QUANTIZED, *INTEGER, "Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        if len(node.input) <= place or node.input[place] not in weights:
            continue
        if (end := _end(node, readers, weights)) is None:
            continue
        shape = weights[node.input[place]]
        convolves = "Conv" in node.op_type
        kind = "Convolution" if convolves else "MatMul"
        found[node.name] = kind, shape if convolves else tuple(sorted(shape)), end
    return found


def _end(node: Any, readers: dict[str, list[Any]], weights: Collection[str]) -> Any | None:
    """The node that ends a layer: its product, or what adds its bias, also once that was rounded. None where
    nothing makes floats of its whole numbers, or where it is not told what its codes stand for."""
    end, scaling = node, ["Cast", "Mul"] if node.op_type in INTEGER else []
    while True:
        before, following = end, readers.get(end.output[0], [])
        while not scaling and len(following) == 1 and following[0].op_type in ROUNDING:
            before = following[0]
            following = readers.get(before.output[0], [])
        if len(following) != 1 or following[0].op_type not in (scaling[:1] or ADDING):
            break
        if not (scaling or all(name in weights or name == before.output[0] for name in following[0].input)):
            break
        end, scaling = following[0], scaling[1:]
    told = end.op_type not in SCALES or len(end.input) > SCALES[end.op_type]
    return end if told and not scaling else None


def _clip(graph: Any, tensor: str) -> tuple[float, float] | None:
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


def _inside_of(model: Any, batch: int, threads: int, folded: bool, names: Sequence[str]) -> Answer:
    import onnx
    from onnx import numpy_helper

    if not names:  # ONNX Runtime runs no graph that gives nothing
        return lambda images: []
    shown = onnx.ModelProto.FromString(model.SerializeToString())
    layers = _layers(shown.graph)
    constants = {one.name: one for one in shown.graph.initializer}
    ends = [layers[name][2] for name in names]
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in {end.output[0] for end in ends})
    session = onnxruntime_session.session_of(shown.SerializeToString(), batch, threads, folded)
    grids = {
        end.output[0]: [
            numpy_helper.to_array(constants[name]).astype(np.float32)
            for name in end.input[SCALES[end.op_type] :][:2]
        ]
        for end in ends
        if end.op_type in SCALES
    }

    def answer(images: Array) -> list[Array]:
        wanted = [end.output[0] for end in ends]
        unique = list(dict.fromkeys(wanted))
        values = dict(zip(unique, session.run(unique, {"images": images}), strict=True))
        for name, (scale, zero) in grids.items():
            values[name] = (values[name].astype(np.float32) - zero) * scale
        return [np.asarray(values[name], np.float32) for name in wanted]

    return answer
