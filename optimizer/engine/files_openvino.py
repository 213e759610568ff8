"""Networks of files on OpenVINO: :func:`opened` compiles one for images of one shape."""

import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.engine import openvino, openvino_core
from optimizer.engine.base import Array, Runner
from optimizer.engine.opened import Answer, InnerLayer, Network, Opened, check_static, short
from optimizer.engine.openvino_core import core
from optimizer.engine.openvino_graph import Converted, convert, taken_apart
from optimizer.engine.openvino_quantizers import WEIGHTED, readers
from optimizer.errors import InputError
from optimizer.records import Execution

MAX_ELEMENTS = 2**28
"""Of a tensor inside a network, for one image: 1 GiB."""


ROUNDING = {"FakeQuantize", "Convert"}


def opened(network: Network, shape: tuple[int, ...], threads: int, batch: int) -> Opened:
    graph = _graph(network, shape)
    of_images = _of_images(graph)
    products = _products(graph, of_images)
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
        compiled = openvino_core.compile_graph(graph, sizes, "LATENCY", threads, "f32")
    except Exception as error:  # of its own kinds
        raise InputError(f"OpenVINO can't compile it for {sizes}: {short(error)}") from error
    executed = openvino.executed(compiled, graph, Converted(graph, operations, {}, shape))
    infer = openvino_core.one_call(compiled)
    return Opened(
        tuple((_output_name(output), tuple(output.get_shape()[1:])) for output in graph.outputs),
        tuple(layers),
        Runner(
            infer=infer,
            score=infer,
            executed=lambda: Execution(executed, ()),
            memory_probe=lambda folder: openvino_core.save_graph(graph, Path(folder), "f32"),
            loader=openvino_core.saved,
        ),
        _every_output(compiled),
        partial(_inside_of, graph, sizes, threads),
    )


def _graph(network: Network, shape: tuple[int, ...]) -> Any:
    """For one image. Raises InputError where shapes inside don't fit, or are left open."""
    if network.module is not None:
        return taken_apart(convert(network.module, shape).graph, network.parts)
    try:
        graph = core().read_model(network.onnx or network.ir)
        graph.reshape([1, *shape])
    except Exception as error:  # of its own kinds, for operators and shapes alike
        raise InputError(f"OpenVINO can't read it for images of {list(shape)}: {short(error)}") from error
    for node in graph.get_ordered_ops():
        for output in node.outputs():
            sides = output.get_partial_shape()
            if sides.is_static and math.prod(output.get_shape()) > MAX_ELEMENTS:
                raise InputError(
                    f"{node.get_friendly_name()[:80]} gives {sides}: no tensor may have more than "
                    f"{MAX_ELEMENTS:,} values"
                )
    check_static(
        {
            _output_name(output): output.get_partial_shape().is_static
            and output.get_partial_shape().rank.get_length() > 0
            and output.get_shape()[0] == 1
            for output in graph.outputs
        }
    )
    return graph


def _output_name(output: Any) -> str:
    names = sorted(output.get_names())
    return names[0] if names else _layer_name(output.get_node().input_value(0).get_node().get_friendly_name())


def _products(graph: Any, of_images: set[str]) -> dict[str, Any]:
    """Its convolutions and products with a weight, by name, in the order of the network."""
    found = []
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
    """The operation that ends a layer: its product, or what adds its bias, also once that was rounded. To a
    product of whole numbers, as of inputs that are each rounded by a range of its own, belongs what scales
    it."""
    end, whole, rounded = node, node.get_output_element_type(0).is_integral(), False
    while len(found := _readers(node)) == 1:
        before, node = node, found[0]
        kind = node.get_type_name()
        if kind in ROUNDING:
            rounded = rounded or not whole
            continue
        if kind not in openvino.AFFINE:
            break
        others = {_source(node, number) for number in range(2)} - {before.get_friendly_name()}
        shapes = {one.output(0).get_partial_shape().to_string() for one in (before, node)}
        scales = whole and kind == "Multiply"
        if (others & of_images and not scales) or len(shapes) > 1:
            break
        whole = whole and not scales
        if kind == "Add" or not rounded:
            end = node
    return end


def _readers(node: Any) -> list[Any]:
    return [one.get_node() for one in readers(node)]


def _clip(end: Any) -> tuple[float, float] | None:
    """The ends of what clips a layer's output, where nothing else reads it."""
    found = _readers(end)
    kinds = [reader.get_type_name() for reader in found]
    if kinds == ["Relu"]:
        return 0.0, math.inf
    if kinds == ["Clamp"]:
        attributes = found[0].get_attributes()
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
    of_images = _of_images(copied)
    products = _products(copied, of_images)
    ends = [_end(products[name], of_images).output(0) for name in names]
    shown = library.Model(ends, copied.get_parameters(), "inside")
    return _every_output(openvino_core.compile_graph(shown, sizes, "LATENCY", threads, "f32"))
