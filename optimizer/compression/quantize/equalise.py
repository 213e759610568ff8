"""Cross-layer equalisation: channels get the same range in the layer that makes them and the one that reads.

After arXiv 1906.04721. A channel may be made ``s`` times smaller and read ``s`` times larger, and the network
computes the same, if only what keeps to scale stands between: ReLU, pooling, nothing. A clip (ReLU6) does
not, nor does a curve (GELU, SiLU) or a sum with something else.
"""

import copy
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional

from optimizer.compression.prune.pruned import Pruned
from optimizer.model.layers import CONVOLUTIONS, Layer, holders, uses
from optimizer.model.products import small_input
from optimizer.model.tracing import LayerTracer

SWEEPS = 20
CONVERGED = 1e-3
"""Pairs are equalised in turn until no scale changes by more, or so many times."""

ELEMENTWISE_MODULES = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout2d)
POOLING_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
ELEMENTWISE: frozenset[Any] = frozenset(
    {torch.relu, torch.relu_, functional.relu, functional.leaky_relu, functional.dropout, "relu", "relu_"}
)
POOLING: frozenset[Any] = frozenset(
    {
        *(functional.max_pool2d, functional.avg_pool2d),
        *(functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d),
    }
)
FLATTEN: frozenset[Any] = frozenset({torch.flatten, "flatten"})
MEAN: frozenset[Any] = frozenset({torch.mean, "mean"})
VALUELESS = frozenset({"device", "dim", "dtype", "ndim", "numel", "shape", "size"})
"""What the model's code may ask of a weight without reading its values."""
TOLERANCE = 1e-4
"""Of a layer's outputs: more than scaling changes in them by rounding."""


@dataclass(frozen=True, slots=True)
class LayerPair:
    """Two layers of which the second alone reads what the first makes, up to what keeps to scale."""

    first: Layer
    second: Layer


def pairs(model: nn.Module) -> list[LayerPair]:
    """Every pair of ``model`` (batch norm folded), in its order; none of a model that can't be traced."""
    try:
        graph = LayerTracer().trace(model)
    except Exception:  # tracing runs the model's own code
        return []
    layers = {layer.module_name: layer for layer in uses(model)}
    elsewhere = _read_elsewhere(model, graph)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    modules = dict(model.named_modules())

    def alone(node: torch.fx.Node) -> Layer | None:
        layer = layers.get(str(node.target)) if node.op == "call_module" else None
        if layer is None or id(layer.weight) in elsewhere or calls[node.target] > 1:
            return None
        return layer if isinstance(layer.module, (*CONVOLUTIONS, nn.Linear)) else None

    found = []
    for node in graph.nodes:
        first = alone(node)
        second = _reader(node, first, modules, alone) if first and id(first.bias) not in elsewhere else None
        if first and second and _scales(first, second) is not None:
            found.append(LayerPair(first, second))
    scaling = {one.name: _keeps_to_scale(one) for pair in found for one in (pair.first, pair.second)}
    return [pair for pair in found if scaling[pair.first.name] and scaling[pair.second.name]]


def _read_elsewhere(model: nn.Module, graph: torch.fx.Graph) -> set[int]:
    """By ``id``, the parameters that several modules hold, or whose values the model's own code reads."""
    parameters = dict(model.named_parameters())
    read = {
        id(parameters[str(node.target)])
        for node in graph.nodes
        if node.op == "get_attr" and str(node.target) in parameters
        for user in node.users
        if (user.args[1] if user.target is getattr else user.target) not in VALUELESS
    }
    return read | {one for one, times in holders(model).items() if times > 1}


@torch.no_grad()
def _keeps_to_scale(layer: Layer) -> bool:
    """Whether outputs of a random input follow the scales of the weight's rows and of its inputs. A library's
    own class may standardise its weight, or add to what it gives."""
    module: Any = copy.deepcopy(layer.module)
    if not isinstance(module, CONVOLUTIONS) or type(module) in CONVOLUTIONS:  # linear ones are traced through
        return True
    flat = (-1, *(1 for _ in module.kernel_size))
    random = torch.Generator().manual_seed(0)
    images = torch.randn(1, *small_input(module), generator=random)
    rows, columns = (0.5 + torch.rand(n, generator=random) for n in (module.out_channels, module.in_channels))
    read = columns.reshape(module.groups, 1, -1).expand(-1, len(rows) // module.groups, -1)
    scaled = copy.deepcopy(module)
    scaled.weight.mul_(rows.reshape(*flat, 1) * read.reshape(len(rows), *flat))
    if scaled.bias is not None:
        scaled.bias.mul_(rows)
    try:
        expected = module(images * columns.reshape(flat)) * rows.reshape(flat)
        return bool((scaled(images) - expected).norm() <= TOLERANCE * expected.norm())
    except Exception:  # its own code: it may want another input
        return False


def _reader(node: torch.fx.Node, first: Layer, modules: Mapping[str, nn.Module], alone: Any) -> Layer | None:
    """The layer that alone reads what ``node`` makes; None where something else does, or changes it."""
    spatial = isinstance(first.module, CONVOLUTIONS)
    while len(node.users) == 1:
        (node,) = node.users
        if len(node.all_input_nodes) != 1:
            return None
        if layer := alone(node):
            return layer if spatial == isinstance(layer.module, CONVOLUTIONS) else None
        what: Any = type(modules[str(node.target)]) if node.op == "call_module" else node.target
        if what in ELEMENTWISE or what in ELEMENTWISE_MODULES:
            continue
        if spatial and (what in POOLING or what in POOLING_MODULES):
            continue
        averages = isinstance(first.module, nn.Conv2d) and _averages(node, what)
        if not spatial or not (averages or _flattens(node, what, modules)):
            return None
        spatial = False
    return None


def _flattens(node: torch.fx.Node, what: Any, modules: Mapping[str, nn.Module]) -> bool:
    """Whether channels, and all that lies in each, become the columns of a linear layer."""
    if what is nn.Flatten:
        module = modules[str(node.target)]
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    return bool(what in FLATTEN and start == 1) and len(node.args) <= 2 and "end_dim" not in node.kwargs


def _averages(node: torch.fx.Node, what: Any) -> bool:
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    kept = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    return what in MEAN and not kept and dims in ((2, 3), [2, 3], (-2, -1), [-2, -1], (-1, -2), [-1, -2])


def _scales(first: Layer, second: Layer) -> int | None:
    """Weights in a row of ``second`` that read one channel of ``first``; None if that comes out uneven."""
    if isinstance(second.module, CONVOLUTIONS) and second.module.groups > 1:
        depthwise = second.module.groups == second.module.in_channels == len(first.weight)
        return second.weight[0].numel() if depthwise else None
    size, rest = divmod(second.weight[0].numel(), len(first.weight))
    return None if rest else size


@torch.no_grad()
def equalised(found: Collection[LayerPair], pruned: Mapping[str, Pruned]) -> dict[str, Pruned]:
    """Weights by layer name, those of each pair scaled so that every channel has one range in both.

    What a layer's bias changes by makes up for the scale too. Channels without a weight in either of the two
    stay as they are.
    """
    made = dict(pruned)
    for _ in range(SWEEPS):
        most = 1.0
        for pair in found:
            scale = _equalise(pair, made)
            most = max(most, float(torch.maximum(scale, 1 / scale).max()))
        if most < 1 + CONVERGED:
            break
    return made


def _equalise(pair: LayerPair, made: dict[str, Pruned]) -> Tensor:
    """What each channel ``[C]`` is divided by in the first and multiplied with in the second."""
    first, second = made[pair.first.name], made[pair.second.name]
    channels = len(first.weight)
    reading = _by_channel(second.weight, channels)
    ranges = first.weight.flatten(1).abs().amax(1), reading.abs().amax((0, 2))
    live = (ranges[0] > 0) & (ranges[1] > 0)
    scale = torch.where(live, (ranges[0] / ranges[1].clamp(min=1e-30)).sqrt(), torch.ones(channels))
    bias = pair.first.bias
    change = first.bias_change
    if bias is not None:
        held = bias.detach() if change is None else bias.detach() + change
        change = held / scale - bias.detach()
    shape = (-1, *(1,) * (first.weight.dim() - 1))
    made[pair.first.name] = replace(first, weight=first.weight / scale.reshape(shape), bias_change=change)
    grown = (reading * scale[:, None]).reshape(-1, channels, reading.shape[2])
    made[pair.second.name] = replace(second, weight=_back(grown, second.weight))
    return scale


def _by_channel(weight: Tensor, channels: int) -> Tensor:
    """``[out, C, columns of a channel]``; ``[m, C, k]`` of a depthwise weight of ``m`` outputs a channel."""
    if _depthwise(weight, channels):
        return weight.reshape(channels, -1, weight[0].numel()).transpose(0, 1)
    return weight.reshape(len(weight), channels, -1)


def _depthwise(weight: Tensor, channels: int) -> bool:
    return weight.dim() > 2 and weight.shape[1] == 1 and channels > 1


def _back(grown: Tensor, like: Tensor) -> Tensor:
    if _depthwise(like, grown.shape[1]):
        return grown.transpose(0, 1).reshape(like.shape)
    return grown.reshape(like.shape)
