"""Channels rotated so that pruning or rounding costs less.

Where nothing but sums stands between layers, as on the residual streams of inverted bottlenecks, a network
computes the same with its channels multiplied by any orthogonal matrix that the layers which make and read
them take into their weights (computational invariance: SliceGPT, arXiv 2401.15024; rotations for rounding:
QuaRot, arXiv 2404.00456; learnt ones: SpinQuant, arXiv 2405.16406). Here the matrix is found by gradient
descent on second-order costs of what is to be done to those weights. No image is run.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from optimizer.compression.calibration.moments import Moments
from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.equivalence import preserving
from optimizer.compression.prune.allocation import single_costs
from optimizer.compression.prune.compensated import growth
from optimizer.compression.prune.group import Group
from optimizer.compression.streams import streams
from optimizer.model.layers import Layer, walk, with_shared_bias
from optimizer.model.products import deep_copy
from optimizer.progress import Report, quiet, stop_if_cancelled
from optimizer.recipe.specs import Aim
from optimizer.system.threads import pinned_threads

STEPS = 200
RATE = 0.02
"""Of Adam (Kingma and Ba 2015), falling to 0 over the steps."""
PRUNED_SHARE = 0.7
"""Of all weights: one that costs as much as the last of them counts half in the end."""
SOFTENED, SOFTENED_FOR = 30.0, 0.7
"""At first one that costs so many times as much does, over that share of the steps less and less (graduated
non-convexity, Blake and Zisserman 1987): weights that are dear at the start can still become cheap."""
NORM = 6
"""Of a row: stands for the range of its grid, which its largest weights decide."""
PRUNING_COUNTS = 3
"""Times, against rounding, where both are to be done."""
MAX_CHANNELS = 1024
"""Of a group: a step takes time by the cube of them."""
MAX_ROWS = 1024
"""Of a layer that are looked at, drawn at random."""

Rotations = Mapping[Group, Tensor]
"""An orthogonal matrix for the channels of each group, float64 ``[channels, channels]``: ``matrix @ c``
stands where channels ``c`` stood."""


@dataclass(frozen=True, eq=False, slots=True)
class Reader:
    """A layer that reads the channels: ``weight`` ``[rows, s, channels]`` with ``s`` columns for each; of its
    matrix and of that one's inverse the blocks ``[s, channels, channels]`` of each of the ``s``; the
    ``effects`` ``[rows]`` of its rows."""

    weight: Tensor
    matrices: Tensor
    inverses: Tensor
    effects: Tensor

    def pruning_costs(self, rotation: Tensor) -> Tensor:
        """Of the loss of each weight, as :func:`optimizer.compression.prune.allocation.single_costs`."""
        diagonals = ((rotation @ self.inverses) * rotation).sum(2)
        costs: Tensor = (self.weight @ rotation.T).square() / diagonals * self.effects[:, None, None]
        return costs

    def rounding_cost(self, rotation: Tensor) -> Tensor:
        """Of all its weights, one column after the other making up for those before: each column then costs
        its pivot in Cholesky's factor. But for a factor that no rotation changes."""
        pivots = torch.linalg.cholesky(rotation @ self.matrices @ rotation.T).diagonal(dim1=1, dim2=2)
        ranges = squared_ranges((self.weight @ rotation.T).flatten(1))
        cost: Tensor = (ranges * self.effects).sum() * pivots.square().sum()
        return cost


@dataclass(frozen=True, eq=False, slots=True)
class Maker:
    """A layer that makes the channels: ``weight`` ``[channels, columns]``, the diagonal ``[columns]`` of the
    inverse of its matrix, the sum of that matrix's squared pivots, the ``effects`` ``[channels]`` of its
    rows."""

    weight: Tensor
    inverse: Tensor
    pivots: Tensor
    effects: Tensor

    def pruning_costs(self, rotation: Tensor) -> Tensor:
        effects = rotated_effects(self.effects, rotation)
        return (rotation @ self.weight).square() / self.inverse * effects[:, None]

    def rounding_cost(self, rotation: Tensor) -> Tensor:
        effects = rotated_effects(self.effects, rotation)
        return (squared_ranges(rotation @ self.weight) * effects).sum() * self.pivots


def squared_ranges(rows: Tensor) -> Tensor:
    """About the square of what the grid of each row ``[rows, columns]`` has to span, but for a factor."""
    return rows.abs().pow(NORM).mean(1).clamp(min=torch.finfo(rows.dtype).tiny).pow(2 / NORM)


def rotated_effects(effects: Tensor, rotation: Tensor) -> Tensor:
    """Of rows ``[channels]``, as far as they tell: how changes of two of them count together is not known."""
    return rotation.square() @ effects


@pinned_threads()
def rotations_for(
    model: nn.Module,
    input_shape: tuple[int, ...],
    aim: Aim,
    statistics: Statistics,
    report: Report = quiet,
) -> dict[Group, Tensor]:
    """A rotation for each group of channels of ``model`` (batch norm folded) that may have any, where the
    ``aim`` costs less by it."""
    layers, shared = {layer.name: layer for layer in walk(model)}, with_shared_bias(model)
    groups = [group for group in streams(model, input_shape) if _may_rotate(group, layers, shared)]
    dear, rotations = 0.0, {}
    if groups and statistics.moments and aim != "round":
        dear = _last_to_go(layers, statistics)
    for number, group in enumerate(groups):

        def progress(share: float, before: int = number) -> None:
            report((before + share) / len(groups), f"rotating channels: group {before} of {len(groups)}")

        readers, makers = _readers(group, layers, statistics), _makers(group, layers, statistics)
        parts: list[Reader | Maker] = [*readers, *makers]
        rotation = cheapest_rotation(group.channels, _cost(parts, aim, dear), progress) if parts else None
        if rotation is not None:
            rotations[group] = rotation
    return preserving(model, input_shape, rotations, rotated) if rotations else {}


def _may_rotate(group: Group, layers: Mapping[str, Layer], shared: Collection[str]) -> bool:
    """Whether the widths fit, and each bias is its layer's own."""
    return (
        group.channels <= MAX_CHANNELS
        and all(len(layers[name].weight) == group.channels for name in group.producers)
        and not any(name in shared for name in group.producers)
        and all(layers[name].weight.shape[1] % group.channels == 0 for name in group.consumers)
    )


def _last_to_go(layers: Mapping[str, Layer], statistics: Statistics) -> float:
    """What the last of ``PRUNED_SHARE`` of all weights costs."""
    costs = torch.cat(
        [
            single_costs(name, layer.weight.detach(), statistics).flatten()
            for name, layer in layers.items()
            if name in statistics.moments
        ]
    )
    return costs.kthvalue(max(1, round(PRUNED_SHARE * len(costs)))).values.item()


Cost = Callable[[Tensor, float], Tensor]
"""Of a rotation, differentiable, at a share (0 to 1) of the search."""


def pruning_cost(parts: Sequence[Reader | Maker], dear: float) -> Cost:
    """The mean over weights of ``c / (c + dear)``, their costs ``c``: it falls as weights come to cost either
    next to nothing or far more than those that go."""

    def cost(rotation: Tensor, share: float) -> Tensor:
        half = dear * SOFTENED ** max(0.0, 1 - share / SOFTENED_FOR)
        costs = (part.pruning_costs(rotation).flatten() for part in parts)
        return torch.cat([one / (one + half) for one in costs]).mean()

    return cost


def rounding_cost(parts: Sequence[Reader | Maker]) -> Cost:
    """The sum over layers."""

    def cost(rotation: Tensor, share: float) -> Tensor:
        return torch.stack([part.rounding_cost(rotation) for part in parts]).sum()

    return cost


def _cost(parts: Sequence[Reader | Maker], aim: Aim, dear: float) -> Cost:
    """Of what is to be done. Of both, products compare: what pruning costs at one sparsity says little of
    another's."""
    pruning, rounding = pruning_cost(parts, dear), rounding_cost(parts)
    costs: dict[Aim, Cost] = {
        "prune": pruning,
        "round": rounding,
        "both": lambda rotation, share: (
            rounding(rotation, share) * pruning(rotation, share) ** PRUNING_COUNTS
        ),
    }
    return costs[aim]


def cheapest_rotation(
    channels: int, cost: Cost, progress: Callable[[float], None] = lambda share: None
) -> Tensor | None:
    """A rotation with little ``cost``, float64 ``[channels, channels]``; None where it costs no less than the
    channels as they stand, or nothing can be told. The same each time.

    From a random one, by Cayley's map of a skew matrix, which Adam changes.
    """
    identity = torch.eye(channels)
    with torch.no_grad():
        as_they_stand = cost(identity, 1)
    if not as_they_stand > 0:
        return None
    start = torch.linalg.qr(torch.randn(channels, channels, generator=torch.Generator().manual_seed(0)))[0]
    with torch.inference_mode(False), torch.enable_grad():
        free = torch.zeros(channels, channels, requires_grad=True)
        optimizer = torch.optim.Adam([free], lr=RATE)

        def rotation() -> Tensor:
            skew = (free - free.T) / 2
            moved: Tensor = torch.linalg.solve(identity + skew, identity - skew) @ start
            return moved

        for step in range(STEPS):
            stop_if_cancelled()
            progress(step / STEPS)
            optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
            optimizer.zero_grad()
            cost(rotation(), step / STEPS).log().backward()
            optimizer.step()
        found = rotation().detach()
    # Orthogonal but for float32's rounding, which the network is to be spared.
    basis, triangle = torch.linalg.qr(found.double())
    with torch.no_grad():
        return basis * triangle.diagonal().sign() if cost(found, 1) < as_they_stand else None


def _readers(group: Group, layers: Mapping[str, Layer], statistics: Statistics) -> list[Reader]:
    found = []
    for name in sorted({*group.consumers} & statistics.moments.keys()):
        weight = layers[name].weight.detach().reshape(len(layers[name].weight), group.channels, -1)
        rows = _drawn(len(weight))
        matrix = statistics.matrix(name)[0]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
        matrices, inverses = (
            one.reshape(*weight.shape[1:], *weight.shape[1:])
            .diagonal(dim1=1, dim2=3)
            .movedim(2, 0)
            .contiguous()
            for one in (matrix, inverse)
        )
        found.append(Reader(weight[rows].transpose(1, 2), matrices, inverses, statistics.effects[name][rows]))
    return found


def _makers(group: Group, layers: Mapping[str, Layer], statistics: Statistics) -> list[Maker]:
    found = []
    for name in sorted({*group.producers} & statistics.moments.keys()):
        weight = layers[name].weight.detach().flatten(1)
        columns = _drawn(weight.shape[1])
        factor = torch.linalg.cholesky(statistics.matrix(name)[0])
        inverse = torch.cholesky_inverse(factor).diagonal()[columns]
        pivots = factor.diagonal().square().sum()
        found.append(Maker(weight[:, columns], inverse, pivots, statistics.effects[name]))
    return found


def _drawn(count: int) -> Tensor:
    """So many rows or columns, or some of them."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[:MAX_ROWS] if count > MAX_ROWS else torch.arange(count)


@torch.no_grad()
def rotated(model: nn.Module, rotations: Rotations) -> nn.Module:
    """A copy of ``model`` with the channels of each group rotated."""
    copied = deep_copy(model)
    layers = {layer.name: layer for layer in walk(copied)}
    for group, rotation in rotations.items():
        for name in group.producers:
            layer = layers[name]
            layer.weight.data = _along(layer.weight.data, rotation, 0)
            if layer.bias is not None:
                layer.bias.data = _along(layer.bias.data, rotation, 0)
        for name in group.consumers:
            layers[name].weight.data = _along(layers[name].weight.data, rotation, 1)
    return copied


def rotated_statistics(statistics: Statistics, rotations: Rotations, network: nn.Module) -> Statistics:
    """The statistics of the rotated ``network``, of those of the model: nothing is run anew."""
    moments, effects = dict(statistics.moments), dict(statistics.effects)
    for group, rotation in rotations.items():
        for name in moments.keys() & {*group.producers}:
            effects[name] = rotated_effects(effects[name], rotation.float())
        for name in moments.keys() & {*group.consumers}:
            one = moments[name]
            covariance = _along(_along(one.covariance, rotation, 1), rotation, 2)
            moments[name] = Moments(covariance, _along(one.mean, rotation, 1), one.shrinkage)
    changed = replace(statistics, moments=moments, effects=effects)
    names = statistics.growth.keys() & {name for group in rotations for name in group.members}
    weights = {layer.name: layer.weight.detach() for layer in walk(network)}
    return replace(
        changed,
        growth={**statistics.growth, **{name: growth(name, weights[name], changed) for name in names}},
    )


def _along(values: Tensor, rotation: Tensor, axis: int) -> Tensor:
    """``values`` with the channels along an axis, of one column or several side by side each, rotated."""
    channels = values.double().unflatten(axis, (len(rotation), -1)).movedim(axis, -1)
    mixed: Tensor = (channels @ rotation.T).movedim(-1, axis).flatten(axis, axis + 1)
    return mixed.to(values.dtype).contiguous()
