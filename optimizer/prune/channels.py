"""Channel pruning: whole channels go, so what stays is a smaller dense network that any engine runs faster.

Removing an output channel of one layer removes an input of the next, and all that stands between them: such
coupled groups are found by DepGraph (arXiv 2301.12900, package torch-pruning). Only groups that can go alone
do: hidden channels of inverted bottlenecks, of residual branches and of MLPs, and those between two plain
layers. What a residual sum ties to other layers, attention's channels, and the logits stay.

The compensated order is Optimal Brain Surgeon's over channels (Hassibi and Stork 1993; in blocks, arXiv
2203.07259): greedily, the one that costs least once the layers that read it make up for it goes first.
Orders are nested, so one plan answers for every ratio. How much each group loses follows from what its loss
was measured to do to the outputs, and the layers that read are refitted by least squares (after arXiv
1707.06168), all at once from the dense model's moments: refitting them in turn, each on inputs that are
already pruned, did worse.
"""

import copy
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from optimizer.calibrate import Moments, collect, damped
from optimizer.errors import InputError, UnavailableError, WorkError, unknown
from optimizer.layers import Layer, multiplications, uses, walk
from optimizer.models import Report, quiet
from optimizer.prune.matching import matched
from optimizer.sensitivity import Trial, divergences

ORDERS = ("magnitude", "compensated")
INSTALL = "pip install 'paretoscope[channels]'"
KEPT_SHARE = 16
"""A group keeps at least one channel of so many."""
SNAPPED_FROM = 4
"""Groups of at least so many multiples are snapped to them."""
REFERENCE_SHARE, REFERENCE_LOSS = 0.25, 0.03
"""A group's effect is measured with so many of its channels gone, or with so much of the variance of the
outputs that read it: enough to stand out from nothing.
"""
LEAST_EFFECT = 0.1
"""Of the median group's: a measured effect below is chance, and would let a group go whole."""
SENSITIVITY_IMAGES = 32
RIDGE = 0.01
"""Of the mean variance of the inputs: how strongly a refit is held to the weights as they were."""


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that must go together. Layers have the names of :func:`optimizer.layers.walk`.

    ``producers`` make ``channels`` outputs each, ``through`` (depthwise convolutions) pass every one on by
    itself, ``consumers`` read them. ``held`` says why they can't go; it is empty where they can.
    """

    name: str
    channels: int
    producers: tuple[str, ...]
    through: tuple[str, ...]
    consumers: tuple[str, ...]
    held: str = ""

    @property
    def makers(self) -> tuple[str, ...]:
        """The layers whose outputs these channels are, each once."""
        return tuple(dict.fromkeys((*self.producers, *self.through)))


@dataclass(frozen=True, eq=False, slots=True)
class Ranking:
    """One group's channels ``[channels]`` in the order in which they go, and the loss that each adds.

    Losses never fall along the order. In a compensated plan they are divergences of the model's outputs (KL,
    nats) and compare across groups; by magnitude they are norms of weights.
    """

    order: Tensor
    losses: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """All that does not depend on the ratio; it can be kept, and pickled.

    ``model`` is a copy of the dense one, each layer with a bias. ``macs`` are a channel's
    multiply-accumulates in all layers of its group. ``rankings`` and ``macs`` go by the names of the groups
    that are not held.
    """

    model: nn.Module
    images: Tensor
    order: str
    groups: tuple[Group, ...]
    rankings: Mapping[str, Ranking]
    macs: Mapping[str, int]
    moments: Mapping[str, Moments]

    @property
    def free(self) -> list[Group]:
        """The groups whose channels can go."""
        return [group for group in self.groups if not group.held]


@dataclass(frozen=True, eq=False, slots=True)
class Shrunk:
    """A smaller copy of the module, and the output channels that each changed layer kept, ascending.

    ``matched`` says whether outputs were matched to the dense model's, and that it helped.
    """

    module: nn.Module
    kept: dict[str, Tensor]
    matched: bool = False


def groups(model: nn.Module, input_shape: tuple[int, ...]) -> list[Group]:
    """Every coupled group of a model for inputs ``[C, H, W]``, in the order of its layers.

    A group is held where a residual sum, attention, a norm across channels, a split or the model's output
    ties it to something else, where one of its layers is grouped or used twice, and where the model does not
    run without one of its channels (a width that its own code relies on).

    Raises UnavailableError without torch-pruning, WorkError for a model that it can't follow.
    """
    graph = _dependencies(_trainable(model), input_shape)
    place = {name: index for index, name in enumerate(graph.modules)}
    found = sorted(
        (_described(graph, members) for members in graph.groups()), key=lambda one: place[one.name]
    )
    if _runs(model, input_shape, [group for group in found if not group.held]):
        return found
    fixed = "the model's own code relies on their number"
    return [
        replace(group, held=fixed) if not group.held and not _runs(model, input_shape, [group]) else group
        for group in found
    ]


def plan(
    model: nn.Module,
    images: Tensor,
    *,
    order: str = "compensated",
    moments: Mapping[str, Moments] | None = None,
    report: Report = quiet,
) -> Plan:
    """Rank the channels of every group of ``model`` (batch norm folded), once for all ratios.

    ``images`` ``[N, C, H, W]`` are for calibration, unlabelled. By magnitude there may be none of them
    (``[0, C, H, W]``): then biases don't take up the mean of what goes. ``moments`` are those of
    :func:`optimizer.calibrate.collect`, where they are known already.

    By magnitude, each group first loses the channels whose weights have the smallest L2 norm over all its
    layers, those that read them too, each layer's scaled to the same mean.

    Raises InputError for an unknown order, a compensated one without images, or a model none of whose
    channels can go; UnavailableError without torch-pruning; WorkError for a model that it can't follow.
    """
    if order not in ORDERS:
        raise unknown("order of channels", order, ORDERS)
    if order == "compensated" and not len(images):
        raise InputError("the compensated order works from calibration images: give some, or take magnitude")
    shape = tuple(images.shape[1:])
    dense = with_biases(model)
    found = groups(dense, shape)
    if moments is None:
        moments = collect(dense, images, report) if len(images) else {}
    if order == "compensated":
        found = [_held_if_wide(group, moments) for group in found]
    free = [group for group in found if not group.held]
    if not free:
        reasons = "; ".join(sorted({group.held for group in found})) or "it has no two layers in a row"
        raise InputError(f"no channels of this model can go alone ({reasons}): prune its weights instead")
    layers = {layer.name: layer for layer in walk(dense)}
    if order == "magnitude":
        rankings = {group.name: _by_magnitude(group, layers) for group in free}
    else:
        rankings = _by_cost(dense, images[:SENSITIVITY_IMAGES], free, moments, report)
    counts = multiplications(dense, shape)
    macs = {
        group.name: sum(counts[name] * layers[name].weight.numel() for name in _members(group))
        // group.channels
        for group in free
    }
    read = {name: moments[name] for group in free for name in group.consumers if name in moments}
    return Plan(dense, images, order, tuple(found), rankings, macs, read)


def shrink(
    plan: Plan, ratio: float, *, multiple: int = 1, match: bool = False, report: Report = quiet
) -> Shrunk:
    """A smaller copy of the planned model, without ``ratio`` (0 to below 1) of the channels that can go.

    By magnitude, that share of each group. Compensated, that share of the groups' multiply-accumulates,
    shared out so that the expected divergence of the outputs is least; and the layers that read what went
    are refitted. ``multiple`` (8 or 16 suit vector units) rounds what groups of at least four multiples
    keep. Every group keeps a sixteenth of its channels.

    ``match`` then gives each layer's outputs the mean and variance that they had in the dense model, channel
    by channel, which is what re-estimating batch norm does; kept if it brings the outputs on calibration
    images that it did not look at closer to the dense model's (KL).

    Raises InputError for a ratio outside 0 to 1, a multiple below 1, or a match with fewer than 16 images.
    """
    if not 0 <= ratio < 1:
        raise InputError(
            f"ratio {ratio:g} is out of range: it is the share of channels removed, from 0 to below 1 "
            "(0.25 removes a quarter)"
        )
    if multiple < 1:
        raise InputError(
            f"multiple {multiple} is not allowed: give 1 for any number of channels, or 8, or 16"
        )
    report(0.0, "removing channels")
    kept = kept_counts(plan, ratio, multiple)
    gone = {
        group: plan.rankings[group.name].order[: group.channels - kept[group.name]] for group in plan.free
    }
    gone = {group: channels for group, channels in gone.items() if len(channels)}
    masked = masked_model(plan, gone)
    touched = [name for group in plan.free for name in _members(group)]
    better = matched(plan.model, masked, plan.images, touched, report) if match and gone else None
    module = _without(better or masked, tuple(plan.images.shape[1:]), gone)
    left = {
        name: (~_chosen(channels, group.channels)).nonzero().flatten()
        for group, channels in gone.items()
        for name in (*group.producers, *group.through)
    }
    return Shrunk(module, left, better is not None)


def kept_counts(plan: Plan, ratio: float, multiple: int = 1) -> dict[str, int]:
    """How many channels each group that can go keeps, by name; never more at a higher ratio."""
    if plan.order == "magnitude" or ratio == 0:
        left = {group.name: group.channels - math.floor(ratio * group.channels + 0.5) for group in plan.free}
        return _snapped(plan, left, multiple)
    prices = {name: ranking.losses / plan.macs[name] for name, ranking in plan.rankings.items()}
    wanted = ratio * sum(group.channels * plan.macs[group.name] for group in plan.free)

    def counts(price: float) -> dict[str, int]:
        return _snapped(plan, {name: int((one > price).sum()) for name, one in prices.items()}, multiple)

    def removed(price: float) -> int:
        left = counts(price)
        return sum((group.channels - left[group.name]) * plan.macs[group.name] for group in plan.free)

    known = torch.cat([*prices.values()]).unique().tolist()
    low, high = 0, len(known) - 1
    while low < high:  # the lowest price at which enough goes
        middle = (low + high) // 2
        low, high = (low, middle) if removed(known[middle]) >= wanted else (middle + 1, high)
    return counts(known[low])


def _snapped(plan: Plan, left: Mapping[str, int], multiple: int) -> dict[str, int]:
    kept = {}
    for group in plan.free:
        count = max(left[group.name], math.ceil(group.channels / KEPT_SHARE))
        if count < group.channels and group.channels >= SNAPPED_FROM * multiple:
            count = max(multiple, multiple * math.floor(count / multiple + 0.5))
        kept[group.name] = min(count, group.channels)
    return kept


@torch.no_grad()
def masked_model(plan: Plan, gone: Mapping[Group, Tensor]) -> nn.Module:
    """A copy in which nothing reads the channels that are ``gone``, and what reads the others makes up for
    them.

    Its weights have the dense model's shapes; without those channels it computes the same.
    """
    model = copy.deepcopy(plan.model)
    layers = {layer.name: layer for layer in walk(model)}
    for group, channels in gone.items():
        for name in group.consumers:
            layer = layers[name]
            trial = _refitted(layer, channels, group, plan.moments.get(name), plan.order)
            layer.weight.copy_(trial.weight)
            if layer.bias is not None and trial.bias_change is not None:
                layer.bias.add_(trial.bias_change)
    return model


def with_biases(model: nn.Module) -> nn.Module:
    """A copy whose layers all have a bias: it takes up the mean of what goes."""
    copied = copy.deepcopy(model).eval()
    for layer in walk(copied):
        if layer.bias is None and isinstance(layer.module, (*CONVOLUTIONS, nn.Linear)):
            layer.module.bias = nn.Parameter(torch.zeros(len(layer.weight)), requires_grad=False)
    return copied


def _members(group: Group) -> tuple[str, ...]:
    return (*group.producers, *group.through, *group.consumers)


def _chosen(channels: Tensor, count: int) -> Tensor:
    """Bool ``[count]``, True at these channels."""
    return torch.zeros(count, dtype=torch.bool).index_fill(0, channels, True)


# Which channels are coupled


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
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
    r"(Relu|Hardtanh|Gelu|Silu|Sigmoid|Hardswish|Hardsigmoid|LeakyRelu|Elu|Softplus|Mish|Tanh|Clamp\w*|Mean|Max"
    r"Pool\w*|AvgPool\w*|AdaptiveAvgPool\w*|AdaptiveMaxPool\w*|ConstantPadNd|T|Addmm|Transpose|Permute|Clone|Squeeze|"
    r"Unsqueeze|Mul|Div|Add|Sub|Rsub|Alias|NativeDropout|ToCopy|Upsample\w*)Backward\d*"
)
"""Operations, as autograd names them, that treat each channel by itself."""


@dataclass(frozen=True, eq=False, slots=True)
class _Dependencies:
    """torch-pruning's graph, and the layers' modules and number of calls in one run, by name."""

    graph: Any
    modules: Mapping[str, nn.Module]
    calls: Mapping[str, int]
    names: Mapping[int, str]

    def groups(self) -> list[Any]:
        with _following():
            return list(self.graph.get_all_groups(root_module_types=(*CONVOLUTIONS, nn.Linear)))

    def remove(self, group: Group, channels: list[int]) -> None:
        module = self.modules[group.producers[0]]
        with _following():
            prune = self.graph.get_pruner_of_module(module).prune_out_channels
            self.graph.get_pruning_group(module, prune, channels).prune()


@contextmanager
def _following() -> Iterator[None]:
    """What torch-pruning needs around it, and its ways of giving up as one error."""
    with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about parameters outside of layers: their groups are held
        warnings.filterwarnings("error", "Maximum recursive depth")  # it would go on until memory is full
        try:
            yield
        except Exception as error:  # it runs the model's own code, and some models are too much for it
            reason = f"{type(error).__name__}: {error}"
            raise WorkError(
                f"torch-pruning can't follow this model's channels ({reason}): prune its weights instead"
            ) from error


def _trainable(model: nn.Module) -> nn.Module:
    """A copy that autograd can trace, which is how torch-pruning reads it."""
    with torch.inference_mode(False):
        copied = copy.deepcopy(model).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(True)
    return copied


def _dependencies(model: nn.Module, input_shape: tuple[int, ...]) -> _Dependencies:
    try:
        from torch_pruning import DependencyGraph  # type: ignore[import-untyped, import-not-found]
    except ImportError as error:
        raise UnavailableError(f"removing channels needs one more package ({error}): {INSTALL}") from error
    layers = list(uses(model))
    calls = {layer.name: 0 for layer in layers}

    def count(name: str, *_: Any) -> None:
        calls[name] += 1

    handles = [layer.module.register_forward_hook(partial(count, layer.name)) for layer in layers]
    try:
        with _following():
            inputs = (torch.zeros(1, *input_shape),)
            graph = DependencyGraph().build_dependency(model, example_inputs=inputs, verbose=False)
    finally:
        for handle in handles:
            handle.remove()
    names = {id(layer.module): layer.name for layer in layers}
    return _Dependencies(graph, {layer.name: layer.module for layer in layers}, calls, names)


def _described(graph: _Dependencies, members: Any) -> Group:
    """A group of torch-pruning's, in our words."""
    producers: list[str] = []
    through: list[str] = []
    consumers: list[str] = []
    for dependency, _ in members:
        module = dependency.target.module
        if id(module) not in graph.names:
            continue
        if isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.out_channels:
            part = through
        else:
            part = consumers if graph.graph.is_in_channel_pruning_fn(dependency.handler) else producers
        part.append(graph.names[id(module)])
    for part in (producers, through, consumers):
        part.sort(key=list(graph.modules).index)
    name = (*producers, *through, *consumers)[0]
    group = Group(name, len(members[0].idxs), tuple(producers), tuple(through), tuple(consumers))
    return replace(group, held=_held(graph, members, group))


def _held(graph: _Dependencies, members: Any, group: Group) -> str:
    """Why a group may not go, empty where it may."""
    nodes = [dependency.target for dependency, _ in members]
    operations = {node: str(node.module._grad_fn) for node in nodes if hasattr(node.module, "_grad_fn")}
    layers = _members(group)
    modules = [graph.modules[name] for name in (*group.producers, *group.consumers)]
    if not group.consumers:
        return "they are the model's output"
    if not group.producers:
        return "they are the model's input"
    if any(
        re.match(r"(Add|Sub|Rsub)Backward", name) and len(node.inputs) > 1
        for node, name in operations.items()
    ):
        return "a residual sum ties them to other layers"
    for node in nodes:
        if type(node.module).__name__ in TIES:
            return TIES[type(node.module).__name__]
    for node, name in operations.items():
        if not CHANNELWISE.fullmatch(name) and not _multiplies_weight(node, name):
            return f"{name.partition('Backward')[0]} may mix them"
    if len(set(layers)) < len(layers) or any(graph.calls[name] != 1 for name in layers):
        return "one of their layers is used more than once"
    if any(isinstance(module, CONVOLUTIONS) and module.groups > 1 for module in modules):
        return "one of their convolutions is grouped"
    if not all(_in_order(graph, item, group.channels) for item in members):
        return "they are rearranged on the way"
    return ""


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


def _without(model: nn.Module, input_shape: tuple[int, ...], gone: Mapping[Group, Tensor]) -> nn.Module:
    """A copy of ``model`` without these channels of each group."""
    smaller = _trainable(model)
    graph = _dependencies(smaller, input_shape) if gone else None
    for group, channels in gone.items():
        assert graph is not None
        graph.remove(group, channels.tolist())
    for parameter in smaller.parameters():
        parameter.requires_grad_(False)
    return smaller


def _runs(model: nn.Module, input_shape: tuple[int, ...], some: Sequence[Group]) -> bool:
    """Whether the model still runs without one channel of each of these groups."""
    try:
        smaller = _without(model, input_shape, {group: torch.tensor([group.channels - 1]) for group in some})
        with torch.inference_mode():
            smaller(torch.zeros(1, *input_shape))
    except (UnavailableError, WorkError):
        raise
    except Exception:  # whatever the model's own code makes of a width that it did not expect
        return False
    return True


# In which order they go


def _held_if_wide(group: Group, moments: Mapping[str, Moments]) -> Group:
    if group.held or all(name in moments for name in group.consumers):
        return group
    return replace(group, held="a layer that reads them is too wide for second-order costs")


def _by_magnitude(group: Group, layers: Mapping[str, Layer]) -> Ranking:
    """Each layer's part of the norm counts alike: a layer that reads has other fan-in, and other scale."""
    made = [
        layers[name].weight.detach().flatten(1).square().sum(1) for name in (*group.producers, *group.through)
    ]
    weights = [layers[name].weight.detach() for name in group.consumers]
    read = [weight.reshape(len(weight), group.channels, -1).square().sum((0, 2)) for weight in weights]
    squares = torch.stack([one / one.mean().clamp(min=1e-30) for one in (*made, *read)]).sum(0)
    norms, order = squares.sqrt().sort(stable=True)
    return Ranking(order, norms)


def _by_cost(
    model: nn.Module, images: Tensor, free: Sequence[Group], moments: Mapping[str, Moments], report: Report
) -> dict[str, Ranking]:
    """Second-order rankings, their losses scaled to what the loss of a part of each group does to the
    outputs.
    """
    layers = {layer.name: layer for layer in walk(model)}
    rankings, shares, trials = {}, {}, {}
    for index, group in enumerate(free):
        report(index / len(free), f"ranking channels: group {index} of {len(free)}")
        rankings[group.name] = _second_order(group, layers, moments)
        rows = sum(len(layers[name].weight) for name in group.consumers)
        losses = rankings[group.name].losses.cumsum(0) / rows
        count = max(1, round(REFERENCE_SHARE * group.channels), int((losses < REFERENCE_LOSS).sum()))
        count = min(count, group.channels - 1) or 1
        shares[group.name] = losses[count - 1].item() * rows
        for name in group.consumers:
            gone = rankings[group.name].order[:count]
            trials[name] = _refitted(layers[name], gone, group, moments[name], "compensated")
    found = divergences(model, images, trials, report)
    effects = {
        group.name: sum(max(0.0, found[name]) for name in group.consumers) / max(shares[group.name], 1e-12)
        for group in free
    }
    least = LEAST_EFFECT * torch.tensor(list(effects.values())).median().item()
    return {
        name: Ranking(ranking.order, ranking.losses * max(effects[name], least))
        for name, ranking in rankings.items()
    }


def _second_order(group: Group, layers: Mapping[str, Layer], moments: Mapping[str, Moments]) -> Ranking:
    """Losses in shares of the variance of what reads the group, summed over outputs."""
    rows, inverses = [], []
    for name in group.consumers:
        matrix = damped(moments[name].covariance)[0]
        weight = layers[name].weight.detach().flatten(1)
        deviation = ((weight @ matrix) * weight).sum(1).clamp(min=1e-12).sqrt()
        rows.append((weight / deviation[:, None]).reshape(len(weight), group.channels, -1))
        inverses.append(torch.cholesky_inverse(torch.linalg.cholesky(matrix)))
    order, losses = removal_order(rows, inverses)
    return Ranking(order, losses.cummax(0).values)


def removal_order(rows: Sequence[Tensor], inverses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Greedy Optimal Brain Surgeon over blocks of columns, for all readers of the blocks at once.

    For each reader: ``rows`` ``[out, n, b]`` and ``inverses`` of its inputs' covariance ``[n b, n b]``.
    Gives the blocks ``[n]`` in the order in which they go, and what each removal adds to the mean square of
    what the readers put out (summed over rows) when the columns that stay make up for it.
    """
    readers = [
        _Reader(weight.flatten(1).clone(), inverse.clone(), weight.shape[2])
        for weight, inverse in zip(rows, inverses, strict=True)
    ]
    blocks = rows[0].shape[1]
    names, gone = torch.arange(blocks), torch.zeros(blocks, dtype=torch.bool)
    order, costs = [], []
    for _ in range(blocks):
        cost = torch.stack([reader.costs() for reader in readers]).sum(0).masked_fill(gone, torch.inf)
        index = int(cost.argmin())
        order.append(names[index])
        costs.append(cost[index].clamp(min=0))
        gone[index] = True
        for reader in readers:
            reader.remove(index)
        if gone.sum() > max(16, len(gone) // 5):  # what is gone only takes time
            for reader in readers:
                reader.keep(~gone)
            names, gone = names[~gone], gone[~gone]
    return torch.stack(order), torch.stack(costs)


@dataclass(slots=True)
class _Reader:
    """A layer's weight ``[out, d]`` and inverse ``[d, d]`` as blocks of ``size`` columns go."""

    weight: Tensor
    inverse: Tensor
    size: int

    def costs(self) -> Tensor:
        """Of each block ``j``: ``w_j ([H^-1]_jj)^-1 w_j``, summed over rows."""
        if self.size == 1:
            return self.weight.square().sum(0) / self.inverse.diagonal()
        blocks = self.weight.unflatten(1, (-1, self.size)).permute(1, 2, 0)
        count = len(blocks)
        corners = self.inverse.reshape(count, self.size, count, self.size).diagonal(dim1=0, dim2=2)
        solved = torch.linalg.solve(corners.permute(2, 0, 1), blocks)
        total: Tensor = (solved * blocks).sum((1, 2))
        return total

    def remove(self, index: int) -> None:
        """The columns that stay take over what they can."""
        columns = slice(index * self.size, (index + 1) * self.size)
        spread = torch.linalg.solve(self.inverse[columns, columns], self.inverse[columns])
        self.weight.addmm_(self.weight[:, columns].clone(), spread, alpha=-1)
        self.inverse.addmm_(self.inverse[:, columns].clone(), spread, alpha=-1)
        self.weight[:, columns] = 0
        self.inverse[:, columns] = 0
        self.inverse[columns] = 0
        self.inverse[columns, columns] = torch.eye(
            self.size
        )  # it can be solved with, and stays out of the rest

    def keep(self, blocks: Tensor) -> None:
        columns = blocks.repeat_interleave(self.size)
        self.weight, self.inverse = self.weight[:, columns], self.inverse[columns][:, columns]


# What those that stay make up for


def refit(weight: Tensor, kept: Tensor, covariance: Tensor, ridge: float = RIDGE) -> Tensor:
    """The weight ``[out, d]`` with 0 in columns outside ``kept`` (bool ``[d]``), the others making up for
    them.

    Least squares of what changes in the outputs for inputs of this ``covariance`` ``[d, d]``, held to the
    weight as it was by ``ridge`` times the mean variance.
    """
    inside = covariance[kept][:, kept]
    inside = damped(inside.unsqueeze(0), ridge)[0]
    lost = weight[:, ~kept] @ covariance[~kept][:, kept]
    fitted = torch.zeros_like(weight)
    fitted[:, kept] = weight[:, kept] + torch.cholesky_solve(lost.T, torch.linalg.cholesky(inside)).T
    return fitted


def _refitted(layer: Layer, gone: Tensor, group: Group, moments: Moments | None, order: str) -> Trial:
    """A layer that no longer reads some channels: the others refitted, or as they were, by magnitude."""
    weight = layer.weight.detach().flatten(1)
    kept = ~_chosen(gone, group.channels).repeat_interleave(weight.shape[1] // group.channels)
    if moments is None:
        fitted, change = weight * kept, None
    else:
        fitted = refit(weight, kept, moments.covariance[0]) if order == "compensated" else weight * kept
        change = (weight - fitted) @ moments.mean[0]
    return Trial(fitted.reshape(layer.weight.shape), change)
