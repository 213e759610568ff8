"""One ONNX graph of a compressed model: what ONNX Runtime executes, and what is saved as ONNX.

A module is exported once, in float32 (:mod:`optimizer.engine.onnx_export`, seconds); each recipe takes a
copy of the graph and puts its weights and biases in the place of the module's (milliseconds). What int8
kernels take is in QDQ form (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html):
codes and a DequantizeLinear for weights, QuantizeLinear and DequantizeLinear for what is rounded at run time.

Everything else is written so that ONNX Runtime fuses nothing: anyone's session gives what was measured.
Weights of 8 bits or fewer are codes too, which Cast, Sub and Mul give back exactly, once, when a session is
made; those of 16 are halves and a Cast. Of a DequantizeLinear and a product it makes a kernel that rounds
activations to 8 bits (MatMulNBits, accuracy_level 4), or it dequantizes in every call; and beside rounded
activations it rounds float32 weights to 8 bits (WeightBiasQuantization).

Each step changes the same graph and relies on how the one before left it, so it stays one file.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optimizer.compression.apply import CompressedModel, CompressedWeight
from optimizer.compression.packing import narrow
from optimizer.engine.onnx_export import Exported, export
from optimizer.engine.torch import RoundActivations
from optimizer.model.layers import by_path

LAYER_OPERATIONS = ("Conv", "Gemm", "MatMul")
ACTIVATIONS = ("Relu", "Clip")
KEEPS_VALUES = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
"""Operations whose outputs are some of their inputs' values: one grid holds both."""
INT32 = 2**30
"""Room for a bias in an int32, with as much again for the sum of the products."""


@dataclass(frozen=True)
class Graph:
    """A compressed model as ONNX.

    ``weights``: for each tensor with a layer's weight or codes, the layer; ``nodes``: for each node that
    multiplies with it. ``rounded`` layers get rounded inputs; ``narrowed`` ones have weights in fewer bits
    than 32; ``int8`` ones have these codes, scales and zero points for integer kernels.
    """

    model: Any
    dynamic: bool
    running: tuple[str, ...]
    weights: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)
    rounded: set[str] = field(default_factory=set)
    narrowed: set[str] = field(default_factory=set)
    int8: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


def graph_of(exported: Exported, compressed: CompressedModel, calibration: Tensor, threads: int) -> Graph:
    """The graph of a compressed model; activation ranges are from ``calibration`` ``[N, C, H, W]``.

    8-bit activations are rounded where integer kernels want it: what layers take, what convolutions give
    (after their activation), and both sides of a residual addition. Fewer bits, or weights that no int8
    kernel takes, are rounded at the layers' inputs alone: other places would only cost accuracy.
    Raises WorkError.
    """
    if _misses(exported, compressed):  # the exporter folded something: it has to do so with the new values
        exported = export(compressed.module, exported.input_shape)
    model = copy.deepcopy(exported.model)
    made = Graph(model, exported.dynamic, exported.running)
    _put_values(model.graph, exported, compressed)
    _name_layers(made, exported.weights)
    bits = compressed.recipe.quantize.activation_bits
    if bits < 32:
        kernels = bits == 8 and any(compressed.weights[name].fits_int8 for name in exported.running)
        places = _places(model.graph, exported.weights, kernels)
        ranges = _ranges(model, {place.ranged for place in places}, calibration, threads, exported.dynamic)
        grids = _round(made, exported.weights, places, ranges, bits, kernels)
        if kernels:
            _narrow_biases(made, exported.weights, compressed, grids)
    _narrow_weights(made, exported.weights, compressed)
    return made


def _misses(exported: Exported, compressed: CompressedModel) -> bool:
    """Whether a value that the recipe changes has no initializer of its own. Of a layer that is never called,
    too: its weight may be masked, and the product be the model's own."""
    before = dict(exported.module.named_parameters(remove_duplicate=False))
    layers = by_path(compressed.module)
    covered = {name for name, _ in exported.weights.values()}
    for alias, after in compressed.module.named_parameters(remove_duplicate=False):
        known = layers[alias] in covered if alias in layers else alias in exported.others
        if not known and not torch.equal(before[alias], after):
            return True
    return False


def _put_values(graph: Any, exported: Exported, compressed: CompressedModel) -> None:
    from onnx import numpy_helper

    parameters = dict(compressed.module.named_parameters(remove_duplicate=False))
    for initializer in graph.initializer:
        if initializer.name in exported.weights:
            name, transposed = exported.weights[initializer.name]
            values = compressed.weights[name].values
            array = (values.T if transposed else values).contiguous().numpy()
        elif initializer.name in exported.others:
            array = parameters[initializer.name].detach().numpy()
        else:
            continue
        initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))


def _name_layers(made: Graph, weights: Mapping[str, tuple[str, bool]]) -> None:
    for tensor, (name, _) in weights.items():
        made.weights[tensor] = made.weights[f"{tensor}_codes"] = name
    for node, name in _multiplying(made.model.graph, weights):
        made.nodes[node.name] = name


def _multiplying(graph: Any, weights: Mapping[str, tuple[str, bool]]) -> Iterator[tuple[Any, str]]:
    """Every node that multiplies with a layer's weight, and the layer."""
    for node in graph.node:
        if node.op_type in LAYER_OPERATIONS and len(node.input) > 1 and node.input[1] in weights:
            yield node, weights[node.input[1]][0]


# Where activations are rounded


@dataclass(frozen=True)
class _Place:
    """A tensor to be rounded over the range of ``ranged``, for one node (by name) or for all that read it."""

    tensor: str
    ranged: str
    reader: str | None = None


def _places(graph: Any, weights: Mapping[str, tuple[str, bool]], kernels: bool) -> list[_Place]:
    """With ``kernels`` everywhere that int8 kernels want it, else at the layers' inputs alone."""
    if not kernels:
        return [_Place(node.input[0], node.input[0], node.name) for node, _ in _multiplying(graph, weights)]
    makers = {output: node for node in graph.node for output in node.output}
    constants = {initializer.name for initializer in graph.initializer}
    outputs = {output.name for output in graph.output}
    layers = {node.name for node, _ in _multiplying(graph, weights)}
    after = _after_activation(graph)
    rounded: dict[str, None] = {}

    def origin(tensor: str) -> str:
        while tensor in makers and makers[tensor].op_type in KEEPS_VALUES:
            tensor = makers[tensor].input[0]
        return tensor

    for node in graph.node:
        if node.name in layers:
            rounded[node.input[0]] = None
            if node.op_type == "Conv":
                rounded[after(node.output[0])] = None
        elif (
            node.op_type == "Add"
            and not constants & set(node.input)
            and any(origin(tensor) in rounded for tensor in node.input)
        ):
            rounded |= dict.fromkeys([*node.input, after(node.output[0])])
    return [
        _Place(tensor, origin(tensor) if origin(tensor) in rounded else tensor)
        for tensor in rounded
        if tensor not in outputs
    ]


def readers_of(graph: Any) -> dict[str, list[Any]]:
    """The nodes that read each tensor, in their order."""
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    return readers


def _after_activation(graph: Any) -> Callable[[str], str]:
    """From a tensor to what the activation makes of it that alone reads it; a kernel does both at once."""
    readers = readers_of(graph)

    def after(tensor: str) -> str:
        found = readers.get(tensor, [])
        return str(found[0].output[0]) if len(found) == 1 and found[0].op_type in ACTIVATIONS else tensor

    return after


def _ranges(
    model: Any, tensors: Iterable[str], calibration: Tensor, threads: int, dynamic: bool
) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each tensor over the images; 0 is always covered."""
    import onnxruntime
    from onnx import helper

    watched = copy.deepcopy(model)
    names = sorted(tensors)
    inner = [name for name in names if name != "images"]
    watched.graph.output.extend([helper.make_empty_tensor_value_info(name) for name in inner])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    spans = dict.fromkeys(names, (0.0, 0.0))
    for images in np.split(
        calibration.numpy(), np.arange(8, len(calibration), 8) if dynamic else range(1, len(calibration))
    ):
        answers = session.run(inner, {"images": images}) if inner else []
        for name, values in [*zip(inner, answers, strict=True), ("images", images)]:
            if name in spans:
                low, high = spans[name]
                spans[name] = min(low, float(values.min())), max(high, float(values.max()))
    return spans


def _round(
    made: Graph,
    weights: Mapping[str, tuple[str, bool]],
    places: list[_Place],
    ranges: Mapping[str, tuple[float, float]],
    bits: int,
    kernels: bool,
) -> dict[str, float]:
    """Put the roundings in, for int8 ``kernels`` or as numbers alone. Returns for each node of a rounded
    layer the scale of its input's grid."""
    graph, constants = made.model.graph, list(made.model.graph.initializer)
    by_reader = {
        (place.tensor, place.reader): place for place in places if ranges[place.ranged] != (0.0, 0.0)
    }
    nodes: list[Any] = []
    added: dict[str, str] = {}
    scales: dict[str, float] = {}
    layers = {node.name: name for node, name in _multiplying(graph, weights)}
    for node in graph.node:
        for index, tensor in enumerate(node.input):
            place = by_reader.get((tensor, None)) or by_reader.get((tensor, node.name))
            if place is None or (place.reader and index):
                continue
            grid = RoundActivations(*ranges[place.ranged], bits)
            if tensor not in added:
                added[tensor] = f"{tensor}_rounded"
                inserted, needed = _rounding(tensor, added[tensor], grid, kernels)
                nodes += inserted
                constants += needed
            node.input[index] = added[tensor]
            if index == 0 and node.name in layers:
                made.rounded.add(layers[node.name])
                scales[node.name] = float(np.float32(grid.scale))
        nodes.append(node)
    _replace(graph.initializer, constants)
    _replace(graph.node, nodes)
    return scales


def _rounding(source: str, target: str, grid: RoundActivations, kernels: bool) -> tuple[list[Any], list[Any]]:
    """Nodes that round ``source`` into ``target``, and the constants they take. Without ``kernels`` the last
    one clips, if only to part a DequantizeLinear from what it would be fused with."""
    from onnx import helper, numpy_helper

    factors: dict[str, np.ndarray] = {
        f"{target}_scale": np.array(grid.scale, np.float32),
        f"{target}_zero_point": np.array(grid.zero_point, np.uint8),
    }
    codes, values = f"{target}_codes", target if kernels else f"{target}_wide"
    nodes = [
        helper.make_node("QuantizeLinear", [source, *factors], [codes], codes),
        helper.make_node("DequantizeLinear", [codes, *factors], [values], values),
    ]
    ends: dict[str, np.ndarray] = {}
    if not kernels:  # codes have 8 bits: what lies beyond the grid's last one is clipped to it
        for name, code in (("first", 0), ("last", grid.last)):
            ends[f"{target}_{name}"] = np.array((code - grid.zero_point) * np.float32(grid.scale), np.float32)
        nodes.append(helper.make_node("Clip", [values, *ends], [target], target))
    return nodes, [numpy_helper.from_array(array, key) for key, array in (factors | ends).items()]


# Narrow weights


def _narrow_weights(
    made: Graph, weights: Mapping[str, tuple[str, bool]], compressed: CompressedModel
) -> None:
    """Put codes, or halves, and the nodes that make float32 of them in the place of weights.

    Those in float32 stay, and so do grids by group of inputs.
    """
    from onnx import numpy_helper

    graph = made.model.graph
    constants = {initializer.name: initializer for initializer in graph.initializer}
    first = []
    for tensor, (name, transposed) in weights.items():
        weight = compressed.weights[name]
        if weight.bits == 32 or (weight.codes is not None and weight.codes.grouped):
            continue
        parts = made.int8.get(name) or _stored_parts(weight)
        in_qdq = ".scale" in parts and bool(made.int8) and name in made.rounded
        make = _dequantizing if in_qdq else _widening
        nodes, arrays = make(tensor, parts, transposed)
        first += nodes
        del constants[tensor]
        constants |= {
            key: numpy_helper.from_array(np.ascontiguousarray(array), key) for key, array in arrays.items()
        }
        made.narrowed.add(name)
    _replace(graph.initializer, list(constants.values()))
    _replace(graph.node, [*first, *graph.node])


def _stored_parts(weight: CompressedWeight) -> dict[str, np.ndarray]:
    return {suffix: part.numpy() for suffix, part in narrow(weight, weight.bits).items()}


Made = tuple[list[Any], dict[str, np.ndarray]]
"""Nodes, and the constants they take."""


def _dequantizing(tensor: str, parts: Mapping[str, np.ndarray], transposed: bool) -> Made:
    """One node, for kernels that take codes as they are."""
    from onnx import helper

    codes, by_channel = parts[""], parts[".scale"].size > 1
    arrays = {f"{tensor}_codes": codes.T if transposed else codes}
    for suffix in (".scale", ".zero_point"):
        if suffix in parts:
            part = parts[suffix]
            arrays[tensor + suffix.replace(".", "_")] = part.ravel() if by_channel else part.reshape(())
    axis: dict[str, Any] = {"axis": codes.ndim - 1 if transposed else 0} if by_channel else {}
    return [helper.make_node("DequantizeLinear", list(arrays), [tensor], f"{tensor}_values", **axis)], arrays


def _widening(tensor: str, parts: Mapping[str, np.ndarray], transposed: bool) -> Made:
    """Nodes of which ONNX Runtime makes a float32 constant when it loads the graph."""
    from onnx import TensorProto, helper

    codes = parts[""]
    arrays = {f"{tensor}_codes": codes.T if transposed else codes}
    steps: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Cast", [f"{tensor}_codes"], {"to": TensorProto.FLOAT})
    ]
    for operation, suffix in (("Sub", "zero_point"), ("Mul", "scale")):
        if (part := parts.get(f".{suffix}")) is not None:
            spread = part.astype(np.float32).reshape(-1, *[1] * (codes.ndim - 1))
            arrays[f"{tensor}_{suffix}"] = spread.T if transposed else spread
            steps.append((operation, [f"{tensor}_{operation.lower()}_of", f"{tensor}_{suffix}"], {}))
    results = [*(given[0] for _, given, _ in steps[1:]), tensor]
    return [
        helper.make_node(operation, given, [result], f"{result}_values", **options)
        for (operation, given, options), result in zip(steps, results, strict=True)
    ], arrays


def _kernel_parts(weight: CompressedWeight, least: np.ndarray) -> dict[str, np.ndarray]:
    """Codes less their zero point, as int8 kernels want them, with scales of at least ``least`` ``[out]``.

    A channel of next to nothing has a scale so small that its bias would not fit the kernels' int32: its
    codes are halved, and its scale doubled, until it does. That moves its output by about 1e-7 of the bias
    for each weight, and leaves all other channels' values as they are.
    """
    assert weight.codes is not None
    centred, scale = weight.codes.centred.numpy(), weight.codes.scale.numpy().ravel()
    doubled = np.exp2(np.ceil(np.log2(np.maximum(1, least / scale)))).astype(np.float32)
    if scale.size == 1:
        doubled = doubled.max(keepdims=True)
    codes = np.rint(centred / doubled.reshape(-1, *[1] * (centred.ndim - 1)))
    return {
        "": codes.astype(np.int8),
        ".scale": scale * doubled,
        ".zero_point": np.zeros(scale.size, np.int8),
    }


def _narrow_biases(
    made: Graph,
    weights: Mapping[str, tuple[str, bool]],
    compressed: CompressedModel,
    scales: Mapping[str, float],
) -> None:
    """int32 biases where int8 kernels are to run: in units of the input's and the weight's scales.

    Notes in ``made.int8`` the codes of the layers that have all that is needed.
    """
    from onnx import helper, numpy_helper

    graph = made.model.graph
    constants = {initializer.name: initializer for initializer in graph.initializer}
    nodes: dict[str, list[Any]] = {}
    for node, name in _multiplying(graph, weights):
        nodes.setdefault(name, []).append(node)
    first = []
    for name, users in nodes.items():
        added = {node.name: node.input[2] for node in users if len(node.input) > 2 and node.input[2]}
        if not compressed.weights[name].fits_int8 or any(node.name not in scales for node in users):
            continue
        if any(bias not in constants for bias in added.values()):
            continue
        biases = {node: numpy_helper.to_array(constants[bias]) for node, bias in added.items()}
        needed = [np.abs(bias) / (scales[node] * INT32) for node, bias in biases.items()]
        least = np.max(needed, axis=0) if needed else np.zeros(1)
        made.int8[name] = _kernel_parts(compressed.weights[name], least)
        for node in users:
            if node.name not in biases:
                continue
            units = scales[node.name] * made.int8[name][".scale"].astype(np.float64)
            target = f"{node.name}_bias"
            arrays = {
                f"{target}_codes": np.rint(biases[node.name] / units).astype(np.int32),
                f"{target}_scale": np.broadcast_to(units, biases[node.name].shape).astype(np.float32),
            }
            constants |= {key: numpy_helper.from_array(array, key) for key, array in arrays.items()}
            first.append(helper.make_node("DequantizeLinear", list(arrays), [target], target, axis=0))
            node.input[2] = target
    used = {tensor for node in (*graph.node, *first) for tensor in node.input}
    _replace(graph.initializer, [one for key, one in constants.items() if key in used])
    _replace(graph.node, [*first, *graph.node])


def _replace(field: Any, messages: list[Any]) -> None:
    """The content of a repeated protobuf field, which may be among ``messages``."""
    kept = copy.deepcopy(messages)
    del field[:]
    field.extend(kept)
