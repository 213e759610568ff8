"""Activation quantizers in OpenVINO's graph: placed by NNCF once a network, given ranges for each recipe.

Where quantizers belong depends on the graph alone, and to find it takes NNCF longer than all else that an
8-bit recipe needs. Their ranges depend on its weights: they are read off the recipe's own graph on few
images, and off the uncompressed one on many, on symmetric grids as NNCF has them. How far they reach is what
suits the network best.
"""

import io
import logging
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optimizer.engine.base import Array
from optimizer.engine.openvino_batches import run_batches
from optimizer.engine.openvino_core import core
from optimizer.errors import WorkError, one_line

WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")
BITS = 8
"""NNCF's grids; fewer bits take fewer levels between the same ends."""
WIDER_BELOW = np.float32(2**BITS / (2**BITS - 2))
"""By how much a signed grid reaches further below zero: it has 128 steps there, 127 above."""
MIN_HIGH, MIN_SHARE = 8e-5, 0.01
"""The least upper end, where an activation is zero on all images; and of a channel, as a share of the largest
one's."""
HEADROOM = np.float32(2)
"""How many times as far as on these images a channel's grid of 8 bits reaches, up to the largest channel's: a
channel has few values, other images have larger ones, and to clip those costs more than coarser steps.
(EfficientNet-Lite0 on 64 photographs, KL of the outputs of 370 others: 0.008 nats without, 0.0022 with it.
On 6 bits or fewer it wins nothing.)"""
REACHES = (0.0, 0.5, 1.0)
"""How far ranges may reach, see :func:`ranges`."""
AT_ONCE = 4
"""Images whose outputs are held at once: those of a segmentation are large."""


@dataclass(frozen=True, slots=True)
class Quantizer:
    """One quantizer: the inputs that read through it, each an operation's name and the input's number.

    ``shape`` is that of its range: ``(1, C, 1, 1)`` before a depthwise convolution, else ``()``. Those of one
    ``group`` have the same range, as the inputs of a concatenation do.
    """

    inputs: tuple[tuple[str, int], ...]
    shape: tuple[int, ...]
    group: int


@dataclass(frozen=True, slots=True)
class Extremes:
    """The lowest values and largest magnitudes of an activation: of each image ``[N, ranges]``, or of all of
    them ``[ranges]``."""

    low: Array
    magnitude: Array

    def __getitem__(self, images: slice) -> "Extremes":
        return Extremes(self.low[images], self.magnitude[images])

    def over_images(self, reach: float) -> "Extremes":
        """Their mean over images, with ``reach`` 1 their extremes; between, what lies between."""
        return Extremes(
            (1 - reach) * self.low.mean(0) + reach * self.low.min(0),
            (1 - reach) * self.magnitude.mean(0) + reach * self.magnitude.max(0),
        )

    def with_room_for(self, before: "Extremes", common: "Extremes") -> "Extremes":
        """With room for the extremes ``before`` compression, which are of more images: scaled, since on the
        ``common`` images they were others."""
        total = common.magnitude.sum()
        ratio = self.magnitude.sum() / total if total > 0 else np.float32(1)
        return Extremes(
            np.minimum(self.low, ratio * before.low), np.maximum(self.magnitude, ratio * before.magnitude)
        )


def of_no_layer(graph: Any, layers: Collection[str]) -> list[str]:
    """The operations that multiply with a weight and are none of the ``layers``', by name: with a buffer, or
    with what the model works out. No recipe rounds those weights, and NNCF would."""
    return [
        node.get_friendly_name()
        for node in graph.get_ops()
        if node.get_type_name() in WEIGHTED
        and node.get_friendly_name() not in layers
        and any(_constant(one.get_source_output().get_node()) for one in node.inputs())
    ]


def place(graph: Any, noise: Array, others: Sequence[str]) -> tuple[Quantizer, ...] | None:
    """Where NNCF would put quantizers, but before ``others``. None where their ranges are not to be had by
    :func:`ranges`: they are not symmetric.

    Quantizers of one range are told by having it in common on an image of ``noise``. Raises WorkError where
    NNCF can't.
    """
    graph = graph.clone()
    for number, node in enumerate(graph.get_ops()):
        if node.get_type_name() == "Clamp":  # else all that reach a common bound would have it in common
            node.set_attribute("max", node.get_attributes()["max"] * (1 + number / 1000))
    quantized = nncf_quantized(graph, noise, others)
    groups: dict[bytes, int] = {}
    found: list[Quantizer] = []
    for node in _grids(quantized):
        low, high = (node.input_value(end).get_node().get_data() for end in (1, 2))
        if low.any() and not np.allclose(low, -high * WIDER_BELOW):
            return None
        inputs = tuple(
            (target.get_node().get_friendly_name(), target.get_index())
            for target in node.output(0).get_target_inputs()
        )
        dead = high.max() < 1.01 * MIN_HIGH  # on this image, by chance: a range of its own
        common = str(inputs).encode() if dead else high.tobytes()
        found.append(Quantizer(inputs, high.shape, groups.setdefault(common, len(groups))))
    return tuple(found)


def set_levels(graph: Any, bits: int) -> None:
    """Give the activations of a graph that NNCF has quantized grids of so many ``bits``."""
    for node in _grids(graph):
        node.set_attribute("levels", 2**bits)


def _grids(graph: Any) -> Iterator[Any]:
    """The operations that quantize activations."""
    for node in graph.get_ops():
        if node.get_type_name() == "FakeQuantize" and not _constant(node.input_value(0).get_node()):
            yield node


def _constant(node: Any) -> bool:
    """Whether an operation gives the same whatever the images, as a weight does."""
    return all(one.get_input_size() or one.get_type_name() == "Constant" for one in behind(node, shapes=True))


def seen(graph: Any, placed: Sequence[Quantizer], images: Array) -> list[Extremes]:
    """What would pass each quantizer on images ``[N, C, H, W]``, one by one. The lowest value of what can't
    be negative is given as 0, which takes no time to find."""
    import openvino
    from openvino import opset13 as ops

    graph = graph.clone()
    nodes = nodes_of(graph)
    found, widths = [], []
    for quantizer in placed:
        operation, number = quantizer.inputs[0]
        source = nodes[operation].input_value(number)
        dimensions = quantizer.shape or (1,) * len(source.get_partial_shape())
        axes = np.array([axis for axis, size in enumerate(dimensions) if size == 1])
        width = math.prod(dimensions)
        for reduce in (ops.reduce_min, ops.reduce_max):
            if reduce is ops.reduce_min and _never_negative(source.get_node()):
                found.append(ops.constant(np.zeros((1, width), np.float32)))
            else:
                found.append(ops.reshape(reduce(source, axes), [1, -1], False))
            widths.append(width)
    probe = openvino.Model([ops.concat(found, 1)], graph.get_parameters())
    told = run_batches(_compiled(probe), 1, images)
    parts = np.split(told, np.cumsum(widths)[:-1], 1)
    return [Extremes(low, np.maximum(-low, high)) for low, high in zip(parts[::2], parts[1::2], strict=True)]


def _never_negative(node: Any) -> bool:
    kind: str = node.get_type_name()
    return kind == "Relu" or (kind == "Clamp" and float(node.get_attributes()["min"]) >= 0)


def ranges(
    placed: Sequence[Quantizer],
    compressed: Sequence[Extremes],
    reach: float = 0.0,
    bits: int = BITS,
    uncompressed: Sequence[Extremes] = (),
) -> list[tuple[Array, Array]]:
    """Lower and upper end of each quantizer of so many ``bits``, those of a group alike.

    ``reach`` 0 gives NNCF's: of whole activations the mean of the images' extremes. With 1 they are those of
    all images, and nothing is clipped; between, they lie between. Ranges of channels have these always, and
    HEADROOM.

    The extremes of the ``uncompressed`` network, where they are given, are of the same images and of more
    that follow. They widen the range, scaled by how much larger or smaller those of the compressed network
    are on the common images. (EfficientNet-Lite0 pruned to half, KL of its outputs for 244 other photographs:
    0.0131 nats by 16 images alone, 0.0028 by 64, 0.0018 by 16 and 128 of the uncompressed one.)
    """
    groups: dict[int, list[Extremes]] = {}
    for number, (quantizer, own) in enumerate(zip(placed, compressed, strict=True)):
        own_reach = 1.0 if quantizer.shape else reach
        ends = own.over_images(own_reach)
        if uncompressed:
            before = uncompressed[number]
            common = before[: len(own.low)].over_images(own_reach)
            ends = ends.with_room_for(before.over_images(own_reach), common)
        if quantizer.shape and bits == BITS:
            magnitude = np.minimum(HEADROOM * ends.magnitude, ends.magnitude.max())
            ends = replace(ends, magnitude=magnitude)
        groups.setdefault(quantizer.group, []).append(ends)
    return [_ends(quantizer.shape, groups[quantizer.group]) for quantizer in placed]


def best_reach(
    graph: Any, placed: Sequence[Quantizer], images: Array, shown: Sequence[Extremes], bits: int
) -> float:
    """That of REACHES with which grids of so many ``bits``, by what the graph has ``shown``, change the
    outputs for ``images`` least.

    Networks differ in it: clipping what is rare makes all other steps finer, and costs whatever depended on
    what was clipped.
    """
    float32 = _compiled(graph)
    quantized, errors = [], np.zeros(len(REACHES))
    for reach in REACHES:
        other = graph.clone()
        insert(other, placed, ranges(placed, shown, reach, bits), bits)
        quantized.append(_compiled(other))
    for first in range(0, len(images), AT_ONCE):
        some = images[first : first + AT_ONCE]
        expected = run_batches(float32, 1, some)
        errors += [np.square(run_batches(one, 1, some) - expected).sum() for one in quantized]
    return REACHES[int(errors.argmin())]


def _compiled(graph: Any) -> Any:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}
    return core().compile_model(graph, "CPU", settings)


def _ends(shape: tuple[int, ...], activations: Sequence[Extremes]) -> tuple[Array, Array]:
    """Ends of one grid for several activations."""
    high = np.array([one.magnitude for one in activations]).max(0)
    high = np.maximum(high, max(MIN_HIGH, high.max() * MIN_SHARE)).astype(np.float32).reshape(shape)
    signed = any(one.low.min() < 0 for one in activations)
    return -high * WIDER_BELOW if signed else np.zeros_like(high), high


def insert(graph: Any, placed: Sequence[Quantizer], ends: Sequence[tuple[Array, Array]], bits: int) -> None:
    """Put quantizers of so many ``bits`` into a graph, between their ``ends``."""
    from openvino import opset13 as ops

    nodes = nodes_of(graph)
    for quantizer, (low, high) in zip(placed, ends, strict=True):
        targets = [nodes[operation].input(number) for operation, number in quantizer.inputs]
        grid = ops.fake_quantize(targets[0].get_source_output(), low, high, low, high, 2**bits)
        for target in targets:
            target.replace_source_output(grid.output(0))


def nncf_quantized(graph: Any, images: Array, others: Sequence[str]) -> Any:
    """NNCF's post-training quantization on images ``[N, C, H, W]`` of all operations but ``others``, without
    its bias correction: biases are the recipe's business. Raises WorkError where NNCF can't."""
    kind_of_logger = logging.getLoggerClass()
    import nncf

    logging.setLoggerClass(kind_of_logger)  # importing NNCF sets its own for every logger made later
    nncf.set_log_level(logging.ERROR)
    dataset = nncf.Dataset([images[index : index + 1] for index in range(len(images))])
    transformer = any(node.get_type_name() == "ScaledDotProductAttention" for node in graph.get_ops())
    try:
        with redirect_stdout(io.StringIO()):  # where it draws its progress
            return nncf.quantize(
                graph,
                dataset,
                subset_size=len(images),
                # symmetric grids: for a transformer NNCF's own choice is an eighth slower, and no more exact
                preset=nncf.QuantizationPreset.PERFORMANCE,
                model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                ignored_scope=nncf.IgnoredScope(names=[*others], validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    disable_bias_correction=True,
                    smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
                ),
            )
    except Exception as error:  # NNCF wraps errors of many kinds
        raise WorkError(f"NNCF can't quantize the activations of this model: {one_line(error)}") from error


def nodes_of(graph: Any) -> dict[str, Any]:
    """Operations by name."""
    return {node.get_friendly_name(): node for node in graph.get_ops()}


def readers(node: Any) -> list[Any]:
    """The inputs that read the values of an operation: of what a bias of an ONNX file is added to, OpenVINO
    reads the shape besides."""
    found = node.output(0).get_target_inputs()
    return [one for one in found if one.get_node().get_type_name() != "ShapeOf"]


def behind(node: Any, shapes: bool) -> Iterator[Any]:
    """An operation, and all that it is worked out of; with ``shapes`` also what only a shape is taken of. Not
    by recursion: a deep network has more operations in a row than Python nests calls."""
    seen, waiting = set[str](), [node]
    while waiting:
        one = waiting.pop()
        name = one.get_friendly_name()
        if name not in seen:
            seen.add(name)
            yield one
            if shapes or one.get_type_name() != "ShapeOf":
                waiting += [given.get_source_output().get_node() for given in one.inputs()]
