"""OpenVINO's graph of a compressed model: converted once, then given each recipe's weights and quantizers.

A torch module is converted once (seconds); each recipe takes a clone of the graph and puts its weights in
the place of the module's (milliseconds). For 8-bit activations quantizers are put in and calibrated on the
compressed model; the weights are then written in the recipe's own codes and scales, so their values are exact
and the int8 kernels run.
"""

import math
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from cachetools import LRUCache
from torch import Tensor, nn

from optimizer.compression.apply import CompressedModel, CompressedWeight
from optimizer.engine.base import Array
from optimizer.engine.openvino_given import Given, Rows, of_images, take_in
from optimizer.engine.openvino_quantizers import (
    WEIGHTED,
    Extremes,
    Quantizer,
    best_reach,
    insert,
    nncf_quantized,
    nodes_of,
    of_no_layer,
    place,
    ranges,
    seen,
    set_levels,
)
from optimizer.errors import WorkError, one_line
from optimizer.methods.engines import use_another
from optimizer.model.examples import examples, noise
from optimizer.model.layers import by_path, multiplications, uses, walk, whole_attention
from optimizer.records import Part

RANGE_IMAGES, REACH_IMAGES = 16, 32
"""Of the calibration images: from how many ranges are read for each recipe, beside those of the uncompressed
network from all of them; and on how many it is found, once, how far ranges are to reach."""
FOUND = 8
"""So many findings on calibration images are kept, of megabytes each."""
COMPARED_PIXELS = 1000
"""Calibration images are the same where so many values of each are."""

T = TypeVar("T")


@dataclass(frozen=True)
class Converted:
    """The uncompressed graph, and for each layer the operations that multiply with its weight.

    ``additions``: the addition of a bias that follows an operation, where one does. ``any_batch``: the graph
    can be given any number of images, else one at a time. ``rows``: which rows of the weight an operation
    multiplies with, where not with all of them. ``noise``: two images whose values differ.
    """

    graph: Any
    operations: dict[str, tuple[str, ...]]
    additions: dict[str, str]
    input_shape: tuple[int, ...]
    any_batch: bool = True
    rows: dict[str, Rows] = field(default_factory=dict)
    noise: Array = field(default_factory=lambda: np.zeros(0, np.float32), repr=False, compare=False)

    def rows_of(self, operation: str) -> slice:
        """Which rows of its layer's weight it multiplies with."""
        return slice(*self.rows.get(operation, (None, None)))

    @cached_property
    def quantizers(self) -> tuple[Quantizer, ...] | None:
        """Where activations are quantized, found when it is first asked for (a second or more)."""
        return place(self.graph, self.noise[:1], self.others)

    @cached_property
    def others(self) -> list[str]:
        """Operations that multiply with a weight which is no layer's."""
        return of_no_layer(self.graph, {*chain.from_iterable(self.operations.values())})

    @cached_property
    def _found(self) -> LRUCache[tuple[object, int], Any]:
        return LRUCache(FOUND)

    def seen(self, calibration: Array) -> list[Extremes]:
        """What passes its quantizers on these images, read when it is first asked for (a second or more)."""
        return self._once("seen", calibration, lambda: seen(self.graph, self.quantizers or (), calibration))

    def reach(self, calibration: Array, bits: int) -> float:
        """How far the ranges of its quantizers reach, by the uncompressed network on the first of these
        images: the same for every recipe, and found when it is first asked for (seconds)."""

        def best() -> float:
            images, shown = calibration[:REACH_IMAGES], self.seen(calibration)
            return best_reach(self.graph, self.quantizers or (), images, shown, bits)

        return self._once(bits, calibration, best)

    def _once(self, name: object, calibration: Array, find: Callable[[], T]) -> T:
        pixels = calibration.reshape(len(calibration), -1)
        some = pixels[:, :: max(1, pixels.shape[1] // COMPARED_PIXELS)]
        key = name, zlib.crc32(np.ascontiguousarray(some).data)
        if key not in self._found:
            self._found[key] = find()
        found: T = self._found[key]
        return found


def convert(model: nn.Module, input_shape: tuple[int, ...]) -> Converted:
    """Convert once. Raises WorkError when OpenVINO can't, or when a layer can't be found in its graph."""
    running = [name for name, runs in multiplications(model, input_shape).items() if runs]
    # The others have no runs: a classifier for training only, as Inception's.
    example = examples(model, input_shape)
    graph = _graph(model, example)
    operations, rows = _operations(graph, model), dict[str, Rows]()
    sharing = Counter(layer.name for layer in uses(model))
    # Of those that share a weight some may be found alone: a batch norm is folded into what it follows.
    if hidden := [name for name in running if len(operations.get(name, ())) < sharing[name]]:
        weights = {name: model.get_parameter(name).detach() for name in hidden}
        graph = _graph(Given(model, hidden), example, *weights.values())
        operations = _operations(graph, model, Given.prefix)
        for product in take_in(graph, {name: weight.numpy() for name, weight in weights.items()}):
            # Once each, also where its name told already: what a bias is shifted by would be added twice.
            found = (*operations.get(product.layer, ()), product.operation)
            operations[product.layer] = (*dict.fromkeys(found),)
            if product.rows != (0, len(weights[product.layer])):
                rows[product.operation] = product.rows
    for name in running:
        if name not in operations:
            raise WorkError(
                f"layer {name} is not in OpenVINO's graph as a convolution or matrix product, "
                f"so its weights can't be replaced. {use_another('openvino')}"
            )
    any_batch, varied = _takes_two(graph, input_shape), noise(model, input_shape, 2).numpy()
    converted = Converted(graph, operations, {}, input_shape, any_batch, rows, varied)
    _check_weights(converted, model)
    return replace(converted, additions=_additions(converted, model))


def _graph(module: nn.Module, *example: Tensor) -> Any:
    """The graph for one image and, behind it, weights. Raises WorkError."""
    import openvino

    # As OpenVINO traces by itself, but not a second time: outputs are compared with other weights and images.
    trace_options = {"check_trace": False}
    try:
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        # What torch says of its own tracer is no concern of a user's.
        with whole_attention(), warnings.catch_warnings(action="ignore"):
            traced = TorchScriptPythonDecoder(module, example_input=example, trace_kwargs=trace_options)
            graph = openvino.convert_model(traced, example_input=example)
        graph.reshape({number: [*one.shape] for number, one in enumerate(example)})
    except Exception as error:  # the converter raises whatever its frontend or the model raises
        raise WorkError(
            f"OpenVINO can't convert this model: {one_line(error)}. {use_another('openvino')}"
        ) from error
    return graph


def _operations(graph: Any, model: nn.Module, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """By layer, the operations that multiply with its weight, of a graph that has this prefix to all names of
    the model's parameters."""
    aliases = {f"{prefix}{alias}": name for alias, name in by_path(model).items()}
    operations: dict[str, tuple[str, ...]] = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() in WEIGHTED:
            for name in {aliases[alias] for alias in _weight_names(node) if alias in aliases}:
                operations[name] = (*operations.get(name, ()), node.get_friendly_name())
    return operations


def _takes_two(graph: Any, input_shape: tuple[int, ...]) -> bool:
    """Whether two images fit through the graph, and an answer comes for each."""
    two = graph.clone()
    try:
        two.reshape([2, *input_shape])
    except RuntimeError:
        return False
    shapes = [output.get_partial_shape() for output in two.outputs]
    return all(shape.is_static and list(shape.to_shape())[:1] == [2] for shape in shapes)


def _weight_names(node: Any) -> list[str]:
    """Parameter paths that a node's weight may have, from the names that the torch frontend gives."""
    constant = node.input_value(1).get_node().get_friendly_name()
    operation = node.get_friendly_name().partition("/")[0]
    return [constant.removeprefix("self."), f"{operation.removeprefix('__module.')}.weight"]


def _check_weights(converted: Converted, model: nn.Module) -> None:
    """A wrong match would give wrong accuracy in silence: compare every weight once."""
    nodes = nodes_of(converted.graph)
    weights = {layer.name: layer.weight.detach().numpy() for layer in walk(model)}
    for name, operations in converted.operations.items():
        for operation in operations:
            source = nodes[operation].input_value(1).get_node()
            if source.get_type_name() != "Constant" or not np.array_equal(
                source.get_data().ravel(), weights[name][converted.rows_of(operation)].ravel()
            ):
                raise WorkError(
                    f"layer {name} has other weights in OpenVINO's graph than in torch, so they can't be "
                    f"replaced. {use_another('openvino')}"
                )


def _additions(converted: Converted, model: nn.Module) -> dict[str, str]:
    """By operation, what adds its layer's bias. (The converter leaves out a bias of zeros.)"""
    nodes = nodes_of(converted.graph)
    found: dict[str, str] = {}
    for layer in uses(model):
        if layer.bias is None:
            continue
        values = layer.bias.detach().numpy()
        for operation in converted.operations.get(layer.name, ()):
            own = values[converted.rows_of(operation)]
            for target in nodes[operation].output(0).get_target_inputs():
                if _adds(target.get_node(), own):
                    found[operation] = target.get_node().get_friendly_name()
    return found


def _adds(node: Any, values: Array) -> bool:
    if node.get_type_name() != "Add":
        return False
    constant = node.input_value(1).get_node()
    return constant.get_type_name() == "Constant" and np.array_equal(constant.get_data().ravel(), values)


def graph_of(prepared: Converted, compressed: CompressedModel, calibration: Tensor) -> Any:
    """The graph with the weights and biases of a compressed model, and quantizers where its recipe has
    activations of 8 bits or fewer, calibrated on images ``[N, C, H, W]``. Raises WorkError where NNCF
    can't."""
    bits = compressed.recipe.quantize.activation_bits
    graph = prepared.graph.clone()
    _replace_weights(graph, prepared, compressed, as_codes=False)
    _shift_biases(graph, prepared, compressed)
    if bits <= 8:
        graph = _quantize_activations(graph, prepared, calibration.numpy(), bits)
        # Activations of fewer bits: codes would make int8 kernels of some layers alone.
        _replace_weights(graph, prepared, compressed, as_codes=bits == 8)
        _select_by_rows(graph)
    if compressed.recipe.quantize.precision != "f32":
        _take_whole_numbers(graph)
    return graph


def _take_whole_numbers(graph: Any) -> None:
    """Have images that are only read as whole numbers, as tokens are, be given as such: OpenVINO rounds an
    input of floats to the precision that it computes in, and they would be others."""
    from openvino import Type

    (images,) = graph.get_parameters()
    readers = [reader.get_node() for reader in images.output(0).get_target_inputs()]
    if all(one.get_type_name() == "Convert" and one.get_element_type().is_integral() for one in readers):
        images.set_element_type(Type.i64)
        graph.validate_nodes_and_infer_types()


def _select_by_rows(graph: Any) -> None:
    """Have what selects one of a dimension, as ``[:, -1]`` does, take a row of one and squeeze it: OpenVINO
    2026.4 scales what an int8 kernel gives behind the selection, with the dimension that is gone by then."""
    from openvino import PartialShape
    from openvino import opset13 as ops

    for node in graph.get_ordered_ops():
        selects = node.get_type_name() == "Gather" and node.get_input_partial_shape(1) == PartialShape([])
        if selects and of_images(node):
            users = node.output(0).get_target_inputs()
            values, index, axis = (node.input_value(number) for number in range(3))
            rows = ops.gather(values, ops.unsqueeze(index, np.array(0)), axis)
            selected = ops.squeeze(rows, axis)
            for user in users:
                user.replace_source_output(selected.output(0))


def taken_apart(graph: Any, parts: Sequence[Part]) -> Any:
    """A graph that gives each of the ``parts`` under its own name, of one whose output is several, one behind
    the other."""
    import openvino
    from openvino import opset13 as ops

    if not parts:
        return graph
    joined = graph.outputs[0].get_node().input_value(0)
    split = ops.variadic_split(joined, -1, [math.prod(shape) for _, shape in parts])
    outputs = []
    for (name, shape), row in zip(parts, split.outputs(), strict=True):
        output = ops.reshape(row, np.array([-1, *shape]), False).output(0)
        output.set_names({name})
        outputs.append(output)
    return openvino.Model(outputs, graph.get_parameters(), graph.get_friendly_name())


def _replace_weights(graph: Any, prepared: Converted, compressed: CompressedModel, as_codes: bool) -> None:
    nodes = nodes_of(graph)
    for name, operations in prepared.operations.items():
        weight = compressed.weights[name]
        made: dict[tuple[Rows | None, bool], Any] = {}  # those that multiply with the same share it
        for operation in operations:
            node, rows = nodes[operation], prepared.rows_of(operation)
            # What multiplies a learned query is worked out for good: OpenVINO can't do that from codes.
            in_codes = as_codes and weight.fits_int8 and of_images(node.input_value(0).get_node())
            key, shape = (prepared.rows.get(operation), in_codes), list(node.input_value(1).get_shape())
            if key not in made:
                values = weight.values[rows]
                made[key] = _int8_constant(weight, rows, shape) if in_codes else _constant(values, shape)
            if not as_codes and operation not in prepared.rows:
                for other in _other_readers(node, operations):  # such as an embedding that is tied to it
                    other.replace_source_output(made[key].output(0))
            node.input(1).replace_source_output(made[key].output(0))


def _other_readers(node: Any, operations: Sequence[str]) -> list[Any]:
    """The inputs of what is none of these operations that read the weight of one of them."""
    readers = node.input_value(1).get_target_inputs()
    return [one for one in readers if one.get_node().get_friendly_name() not in operations]


def _shift_biases(graph: Any, prepared: Converted, compressed: CompressedModel) -> None:
    """Into the additions that are there, so that the graph stays the one that engines know to fuse."""
    from openvino import opset13 as ops

    nodes = nodes_of(graph)
    for name, operations in prepared.operations.items():
        whole = compressed.weights[name].bias_change
        if whole is None:
            continue
        for operation in operations:
            change = whole[prepared.rows_of(operation)]
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


def _int8_constant(weight: CompressedWeight, rows: slice, shape: list[int]) -> Any:
    """int8 codes of these rows, a conversion and a scale a channel: the pattern that OpenVINO turns into int8
    kernels."""
    from openvino import opset13 as ops

    assert weight.codes is not None
    centred = weight.codes.centred[rows]
    codes = centred.to(torch.int8).numpy().reshape(shape)
    scale = weight.codes.scale.numpy().ravel()
    channels = scale[rows] if scale.size > 1 else np.repeat(scale, len(centred))
    leading = shape[:1] if shape[0] == len(channels) else shape[:2]  # outputs, or groups and each one's
    channels = channels.reshape([*leading, *[1] * (len(shape) - len(leading))])
    return ops.multiply(ops.convert(ops.constant(codes), np.float32), ops.constant(channels))


def _quantize_activations(graph: Any, prepared: Converted, calibration: Array, bits: int) -> Any:
    """With quantizers where NNCF places them, and ranges that reach as far as suits the network. Its own
    grids are of 8 bits; fewer take fewer levels between the same ends."""
    placed = prepared.quantizers
    if placed is None:
        graph = nncf_quantized(graph, calibration, prepared.others)
        set_levels(graph, bits)
    else:
        reach, before = prepared.reach(calibration, bits), prepared.seen(calibration)
        own = seen(graph, placed, calibration[:RANGE_IMAGES])
        insert(graph, placed, ranges(placed, own, reach, bits, before), bits)
    return graph
