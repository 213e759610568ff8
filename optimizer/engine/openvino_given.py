"""Layers that can't be told from OpenVINO's graph once it is converted: their weights are given to it.

Cross-attention cuts its joint projection into two or three products, and what multiplies a learned query is
worked out for good: of either no weight is left to be replaced. So such weights are inputs of the model while
it is converted. Then each product with them takes its own rows, as a constant.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from optimizer.engine.base import Array
from optimizer.engine.openvino_core import core
from optimizer.engine.openvino_quantizers import WEIGHTED, behind, nodes_of

Rows = tuple[int, int]
"""The first row of a weight, and the one behind the last."""


class Given(nn.Module):
    """A model that takes some of its parameters, by path, behind its images. The weights are the model's."""

    prefix = "model."
    """Of what it calls the model's parameters."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model, {id(one): one for one in (*model.parameters(), *model.buffers())})
        weights = [self.model.get_parameter(name) for name in names]
        self.places = [
            [
                (module, attribute)
                for module in self.model.modules()
                for attribute, own in module.named_parameters(recurse=False, remove_duplicate=False)
                if own is weight
            ]
            for weight in weights
        ]
        for module, attribute in (place for places in self.places for place in places):
            delattr(module, attribute)

    def forward(self, images: Tensor, *weights: Tensor) -> Any:
        for places, weight in zip(self.places, weights, strict=True):
            for module, attribute in places:
                setattr(module, attribute, weight)
        return self.model(images)


@dataclass(frozen=True)
class Product:
    """An operation, by its name, that multiplies with rows of a layer's weight."""

    layer: str
    operation: str
    rows: Rows


def take_in(graph: Any, weights: Mapping[str, Array]) -> list[Product]:
    """Make constants of the ``weights``, by layer, that a graph takes as its last inputs, and of the biases
    that were cut along with them. Returns the products of the layers that are understood: all of whose rows
    are multiplied with, each by an operation of its own."""
    from openvino import opset13 as ops

    if len(graph.get_parameters()) != 1 + len(weights):  # the converter left one out
        return []
    parameters = dict(zip(weights, graph.get_parameters()[1:], strict=True))
    cuts = [(name, node) for name, one in parameters.items() for node in _products(one)]
    biases = [add for _, node in cuts for add in _cut_additions(node)]
    numbers = {
        name: np.ascontiguousarray(
            np.broadcast_to(
                np.arange(len(weight), dtype=np.float32).reshape(-1, *[1] * (weight.ndim - 1)), weight.shape
            )
        )
        for name, weight in weights.items()
    }
    asked = [(node.get_friendly_name(), 1) for node in [*(node for _, node in cuts), *biases]]
    values, of_rows = (_values(graph, asked, given) for given in (weights, numbers))
    for node, value in zip([*(node for _, node in cuts), *biases], values, strict=True):
        node.input(1).replace_source_output(ops.constant(value).output(0))
    for name, parameter in parameters.items():
        parameter.output(0).replace(ops.constant(weights[name]).output(0))
        graph.remove_parameter(parameter)
    graph.validate_nodes_and_infer_types()
    found = [
        Product(name, node.get_friendly_name(), rows)
        for (name, node), numbers_of_it in zip(cuts, of_rows[: len(cuts)], strict=True)
        if (rows := _rows(numbers_of_it, weights[name].shape))
    ]
    whole = {name for name, weight in weights.items() if _all_of(name, len(weight), cuts, found)}
    return [one for one in found if one.layer in whole]


def _products(parameter: Any) -> list[Any]:
    """The operations that multiply with an input of the graph, or with what it is split into."""
    found = []
    for target in parameter.output(0).get_target_inputs():
        node = target.get_node()
        outputs = node.outputs() if _splits(node) and target.get_index() == 0 else []
        readers = [target, *(one for output in outputs for one in output.get_target_inputs())]
        found += [
            reader.get_node()
            for reader in readers
            if reader.get_node().get_type_name() in WEIGHTED and reader.get_index() == 1
        ]
    return found


def _splits(node: Any) -> bool:
    return node.get_type_name() in ("Split", "VariadicSplit")


def _cut_additions(product: Any) -> list[Any]:
    """What adds a part of a constant, a bias, to a product."""
    users = [target.get_node() for target in product.output(0).get_target_inputs()]
    additions = [node for node in users if node.get_type_name() == "Add"]
    cut = [node.input_value(1).get_node() for node in additions]
    return [
        node
        for node, source in zip(additions, cut, strict=True)
        if _splits(source) and source.input_value(0).get_node().get_type_name() == "Constant"
    ]


def _values(graph: Any, asked: Sequence[tuple[str, int]], weights: Mapping[str, Array]) -> list[Array]:
    """What inputs of operations hold, each by the operation's name and the input's number, given these for
    weights. Which rows it is depends on the shape of the images alone."""
    import openvino

    graph = graph.clone()
    nodes = nodes_of(graph)
    outputs = [nodes[name].input_value(number) for name, number in asked]
    images = np.zeros(graph.get_parameters()[0].get_shape(), np.float32)
    probe = openvino.Model(outputs, graph.get_parameters())
    compiled = core().compile_model(probe, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = compiled([images, *weights.values()])
    return [answers[number].copy() for number in range(len(asked))]


def _rows(numbers: Array, shape: tuple[int, ...]) -> Rows | None:
    """Which rows of a weight of that shape they are, each of whose values is the number of its row; None
    where they are not whole, or not one after the other."""
    first = int(numbers.flat[0])
    expected = np.arange(first, first + len(numbers)).reshape(-1, *[1] * (len(shape) - 1))
    whole = numbers.shape[1:] == shape[1:] and bool((numbers == expected).all())
    return (first, first + len(numbers)) if whole else None


def _all_of(name: str, rows: int, cuts: Sequence[tuple[str, Any]], found: Sequence[Product]) -> bool:
    """Whether every operation with that layer's weight is understood, and all of its rows are multiplied."""
    own = [one.rows for one in found if one.layer == name]
    understood = len(own) == sum(layer == name for layer, _ in cuts)
    return understood and {row for first, end in own for row in range(first, end)} == {*range(rows)}


def of_images(node: Any) -> bool:
    """Whether what an operation gives depends on the values of the images, not on their shape alone."""
    return any(one.get_type_name() == "Parameter" for one in behind(node, shapes=False))
