"""Which channels must go together.

Removing an output channel of one layer removes an input of the next, and all that stands between them: such
coupled groups are found by DepGraph (arXiv 2301.12900, package torch-pruning). Only groups that can go alone
are free: hidden channels of inverted bottlenecks, of residual branches and of MLPs, those between two plain
layers, and attention's heads (:mod:`optimizer.compression.prune.heads`). What a residual sum ties to other
layers, and the logits are held.
"""

import copy
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from optimizer.compression.gradients import trainable
from optimizer.compression.prune.group import Group
from optimizer.compression.prune.heads import head_groups, remove_heads
from optimizer.errors import UnavailableError, WorkError, one_line
from optimizer.model.examples import answers, examples
from optimizer.model.layers import CONVOLUTIONS, hooked, uses, walk
from optimizer.model.unused import values_decide

INSTALL = "pip install torch-pruning"
TIES = {
    "LayerNorm": "they are normalised together",
    "GroupNorm": "they are normalised together",
    "MultiheadAttention": "attention mixes them",
    "_UnbindOp": "attention mixes them",
    "Parameter": "the model adds parameters of its own to them",
    "_ConcatOp": "they are joined with others",
    "_SplitOp": "they are split",
    "_SliceOp": "they are split",
    "_OutputOp": "they are the model's output",
}
"""Members of a group, by class, that keep it from going alone."""
CHANNELWISE = re.compile(
    r"(Relu|Hardtanh|Gelu|Erf|Silu|Sigmoid|Hardswish|Hardsigmoid|LeakyRelu|Elu|Softplus|Mish|Tanh|Clamp\w*|Mean|Max"
    r"Pool\w*|AvgPool\w*|AdaptiveAvgPool\w*|AdaptiveMaxPool\w*|ConstantPadNd|ReflectionPad\w*|ReplicationPad\w*|"
    r"T|Addmm|Transpose|Permute|Clone|Squeeze|Repeat|NativeBatchNorm|"
    r"Round|Floor|Ceil|Abs|Neg|Sign|Exp|Log|Sqrt|Rsqrt|Reciprocal|Sin|Cos|Pow|"
    r"Unsqueeze|Mul|Div|Add|Sub|Rsub|Alias|NativeDropout|ToCopy|Upsample\w*)Backward\d*"
)
"""Operations, as autograd names them, that treat each channel by itself, unless they go along channels."""
MIXED = "the model mixes them on the way"
USUAL_REASON = "as where its code shuffles them, like ShuffleNet's, or shifts windows over them, like Swin's"
MAX_TIMES = 100
"""That a group may come through one operation: in DenseNet-121 26."""
MAX_COPIES = 8
"""Of the widest layer's channels: more are no longer those of one layer."""
TOLERANCE = 1e-4
"""Of the outputs: more than they differ by rounding without channels that nothing reads."""


def groups(model: nn.Module, input_shape: tuple[int, ...]) -> list[Group]:
    """Every coupled group of a model for inputs ``[C, H, W]``, in the order of its layers.

    A group is held where a residual sum, attention, a norm across channels, a split or the model's output
    ties it to something else, where what is no layer makes or reads it (a transposed convolution), where one
    of its layers is grouped or used twice, where the model does not run without one of its channels (a width
    that its own code relies on), and where it gives something else without half of them than if nothing reads
    those (it takes a mean over channels).

    Raises UnavailableError without torch-pruning, WorkError for a model that it can't follow.
    """
    graph, coupled = _coupled(model, input_shape)
    place = {name: index for index, name in enumerate(graph.modules)}
    heads = head_groups(model, input_shape)
    makers = {name for group in heads for name in group.producers}
    found = [group for group in coupled if not makers.issuperset(group.makers)] + heads
    found.sort(key=lambda one: place[one.name])
    for goes_well, why in ((_runs, "the model's own code relies on their number"), (_keeps_apart, MIXED)):
        if not goes_well(model, input_shape, [group for group in found if not group.held]):
            found = [
                group if group.held or goes_well(model, input_shape, [group]) else replace(group, held=why)
                for group in found
            ]
    return found


def movable(model: nn.Module, input_shape: tuple[int, ...]) -> list[Group]:
    """The groups whose channels may stand in any order, as far as the graph of a model for inputs
    ``[C, H, W]`` tells: those that can go, and those that only a residual sum holds. Raises what
    :func:`groups` does."""
    _, coupled = _coupled(model, input_shape)
    return [group for group in coupled if group.only_summed or not group.held]


def without(model: nn.Module, input_shape: tuple[int, ...], gone: Mapping[Group, Tensor]) -> nn.Module:
    """A copy of ``model`` without these channels of each group."""
    smaller = trainable(model)
    channels = {group: some for group, some in gone.items() if not group.attention}
    graph = _dependencies(smaller, input_shape) if channels else None
    for group, some in channels.items():
        assert graph is not None
        graph.remove(group, some.tolist())
    for group, some in gone.items():
        if group.attention:  # last: torch-pruning does not know what is left of attention
            remove_heads(smaller, group, some)
    for parameter in smaller.parameters():
        parameter.requires_grad_(False)
    return smaller


@dataclass(frozen=True, eq=False, slots=True)
class _Dependencies:
    """torch-pruning's graph, and the layers' modules and number of calls in one run, by name. The ``widest``
    layer has so many inputs or outputs."""

    graph: Any
    modules: Mapping[str, nn.Module]
    calls: Mapping[str, int]
    names: Mapping[int, str]
    widest: int

    def groups(self) -> list[Any]:
        """Of every layer that can be followed."""
        nodes, follow = [*self.graph.module2node.values()], self.graph.get_pruning_group
        for node in nodes:
            node.dependencies = _Links(node.dependencies)
            node.dependencies.most = MAX_COPIES * self.widest

        def bounded(*root: Any) -> Any:
            for node in nodes:
                node.dependencies.times = 0
            try:
                return follow(*root)
            except _EndlessError:
                return ()

        self.graph.get_pruning_group = bounded
        with _following():
            return list(self.graph.get_all_groups(root_module_types=(*CONVOLUTIONS, nn.Linear)))

    def remove(self, group: Group, channels: list[int]) -> None:
        module = self.modules[group.producers[0]]
        with _following():
            prune = self.graph.get_pruner_of_module(module).prune_out_channels
            self.graph.get_pruning_group(module, prune, channels).prune()


class _EndlessError(Exception):
    """A group comes back to the same operation again and again, each time with its channels in another
    order, as queries, keys and values of one layer may: torch-pruning would follow it for hours."""


class _Links(list[Any]):
    """The dependencies of a node, followed so many times for one group, and for at ``most`` so many channels
    at once."""

    times, most = 0, 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        if self.times > MAX_TIMES:
            raise _EndlessError
        for link in super().__iter__():
            link.index_mapping = [
                one if one is None or isinstance(one, _Bounded) else _Bounded(one, self.most)
                for one in link.index_mapping
            ]
            yield link


@dataclass(frozen=True, slots=True)
class _Bounded:
    """What maps channels of one layer to those of another. It gives up where they become more each time, as
    in a product of a layer's outputs with themselves."""

    mapping: Any
    most: int

    def __call__(self, channels: Any) -> Any:
        times = 1 if getattr(self.mapping, "reverse", False) else getattr(self.mapping, "_stride", 1)
        if len(channels) * times > self.most:
            raise _EndlessError
        return self.mapping(channels)


@contextmanager
def _following() -> Iterator[None]:
    """What torch-pruning needs around it, and its ways of giving up as one error."""
    with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about parameters outside of layers: their groups are held
        warnings.filterwarnings("error", "Maximum recursive depth")  # it would go on until memory is full
        try:
            yield
        except Exception as error:  # it runs the model's own code, and some models are too much for it
            # torch's own words may help; others are of how torch-pruning works inside.
            reason = one_line(error, 200) if type(error) is RuntimeError else USUAL_REASON
            raise WorkError(
                f"torch-pruning can't follow this model's channels ({reason}): prune its weights instead"
            ) from error


def _dependencies(model: nn.Module, input_shape: tuple[int, ...]) -> _Dependencies:
    try:
        from torch_pruning import DependencyGraph  # type: ignore[import-untyped, import-not-found]
    except ImportError as error:
        raise UnavailableError(f"removing channels needs one more package ({error}): {INSTALL}") from error
    with torch.inference_mode(False):
        inputs = (examples(model, input_shape),)
    layers = list(uses(model))
    calls = {layer.name: 0 for layer in layers}

    def count(name: str, *_: Any) -> None:
        calls[name] += 1

    counted = (layer.module.register_forward_hook(partial(count, layer.name)) for layer in layers)
    with hooked(counted), _following():
        graph = DependencyGraph().build_dependency(model, example_inputs=inputs, verbose=False)
    names = {id(layer.module): layer.name for layer in layers}
    widest = max((max(len(one.weight), one.weight[0].numel()) for one in layers), default=0)
    return _Dependencies(graph, {layer.name: layer.module for layer in layers}, calls, names, widest)


def _coupled(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[_Dependencies, list[Group]]:
    """The graph of a model, and every coupled group that it tells of. Raises what :func:`groups` does."""
    graph = _dependencies(trainable(model), input_shape)
    if not all(graph.calls.values()) and values_decide(model, input_shape):
        raise WorkError(
            "which layers this model runs depends on the values of its input, and torch-pruning follows "
            "channels through those that one input runs: prune its weights instead"
        )
    return graph, [_described(graph, members) for members in graph.groups() if _layers(graph, members)]


def _layers(graph: _Dependencies, members: Any) -> list[Any]:
    """Those of a group's members that are layers."""
    return [item for item in members if id(item.dep.target.module) in graph.names]


def _described(graph: _Dependencies, members: Any) -> Group:
    """A group of torch-pruning's, in our words."""
    producers: list[str] = []
    through: list[str] = []
    consumers: list[str] = []
    for dependency, _ in _layers(graph, members):
        module = dependency.target.module
        if isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.out_channels:
            part = through
        else:
            part = consumers if graph.graph.is_in_channel_pruning_fn(dependency.handler) else producers
        part.append(graph.names[id(module)])
    for part in (producers, through, consumers):
        part.sort(key=list(graph.modules).index)
    name = (*producers, *through, *consumers)[0]
    group = Group(name, len(members[0].idxs), tuple(producers), tuple(through), tuple(consumers))
    nodes = [dependency.target for dependency, _ in members]
    operations = {node: str(node.module._grad_fn) for node in nodes if hasattr(node.module, "_grad_fn")}
    if held := _held(graph, nodes, group):
        return replace(group, held=held)
    summed = any(
        re.match(r"(Add|Sub|Rsub)Backward", name) and len(node.inputs) > 1
        for node, name in operations.items()
    )
    mixed = _mixed(graph, members, operations, group)
    if summed:
        return replace(group, held="a residual sum ties them to other layers", only_summed=not mixed)
    return replace(group, held=mixed)


def _held(graph: _Dependencies, nodes: list[Any], group: Group) -> str:
    """Why a group may not go, whatever lies between its layers; empty where it may."""
    if others := [type(node.module).__name__ for node in nodes if _multiplies_unseen(graph, node.module)]:
        return f"a {others[0]} makes or reads them, whose weights no recipe touches"
    if not group.consumers:
        return "they are the model's output"
    return "" if group.producers else "they are the model's input"


def _mixed(graph: _Dependencies, members: Any, operations: Mapping[Any, str], group: Group) -> str:
    """Why a group's channels are not each by itself; empty where they are."""
    layers = group.members
    modules = [graph.modules[name] for name in (*group.producers, *group.consumers)]
    for dependency, _ in members:
        if (name := type(dependency.target.module).__name__) in TIES:
            return TIES[name]
    for node, name in operations.items():
        if not CHANNELWISE.fullmatch(name) and not _multiplies_weight(node, name):
            return f"an operation that autograd calls {name.partition('Backward')[0]} may mix them"
    if len(set(layers)) < len(layers) or any(graph.calls[name] != 1 for name in layers):
        return "one of their layers is used more than once"
    if any(isinstance(module, CONVOLUTIONS) and module.groups > 1 for module in modules):
        return "one of their convolutions is grouped"
    if not all(_in_order(graph, item, group.channels) for item in members):
        return "they are rearranged on the way"
    return ""


def _multiplies_unseen(graph: _Dependencies, module: Any) -> bool:
    """Whether it has weights that mix channels and is no layer: neither ranking nor refitting would see
    them."""
    if id(module) in graph.names or type(module).__name__ in TIES or not isinstance(module, nn.Module):
        return False
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _multiplies_weight(node: Any, name: str) -> bool:
    """Whether a product of matrices is a linear layer's without bias, and not one of activations."""
    factors = [factor for factor in node.inputs if "TBackward" in str(factor.module)]
    return name.startswith("MmBackward") and any(not factor.inputs for factor in factors)


def _in_order(graph: _Dependencies, item: Any, channels: int) -> bool:
    """Whether channel ``c`` is the ``c``-th block, all of one size, of what a member of the group has in
    all.
    """
    size, rest = divmod(len(item.idxs), channels)
    places = sorted(zip(item.idxs, item.root_idxs, strict=True))
    if graph.graph.is_in_channel_pruning_fn(item.dep.handler):
        width = graph.graph.get_in_channels(item.dep.target.module)
        if width is not None and width != len(places):
            return False
    return not rest and all(place // size == root for place, root in places)


def _unprinted() -> redirect_stderr[io.StringIO]:
    """A module that torch.fx made prints where it fails, before it raises."""
    return redirect_stderr(io.StringIO())


def _runs(model: nn.Module, input_shape: tuple[int, ...], some: Sequence[Group]) -> bool:
    """Whether the model still runs without one channel of each of these groups."""
    inputs = examples(model, input_shape)
    try:
        smaller = without(model, input_shape, {group: torch.tensor([group.channels - 1]) for group in some})
        with _unprinted(), torch.inference_mode():
            smaller(inputs)
    except (UnavailableError, WorkError):
        raise
    except Exception:  # whatever the model's own code makes of a width that it did not expect
        return False
    return True


def _keeps_apart(model: nn.Module, input_shape: tuple[int, ...], some: Sequence[Group]) -> bool:
    """Whether the model without half of the channels of each of these groups gives what it gives if nothing
    reads them. True where that can't be told."""
    gone = {group: torch.arange(1, group.channels, 2) for group in some if group.channels > 1}
    if not gone:
        return True
    for kind, tolerance in ((torch.float64, TOLERANCE), (torch.float32, 10 * TOLERANCE)):
        with suppress(Exception), _unprinted():  # the model's own code: it may take no float64, or no half
            left, expected = (
                [one.double().nan_to_num(0, 0, 0) for one in answers(network.to(kind), input_shape, kind)]
                for network in (without(model, input_shape, gone), _unread(model, gone))
            )
            return all(
                torch.linalg.norm(one - other) <= tolerance * torch.linalg.norm(other)
                for one, other in zip(left, expected, strict=True)
            )
    return True


def _unread(model: nn.Module, gone: Mapping[Group, Tensor]) -> nn.Module:
    """A copy in which nothing reads these channels of each group."""
    copied = copy.deepcopy(model).eval()
    layers = {layer.name: layer.weight for layer in walk(copied)}
    for group, some in gone.items():
        for weight in (layers[name] for name in group.consumers):
            kept = group.staying(some).repeat_interleave(weight[0].numel() // group.channels)
            weight.data = weight.data * kept.reshape(weight[0].shape)
    return copied
