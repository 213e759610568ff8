"""Channels rotated so that pruning or rounding costs less.

Where nothing but sums and norms stands between layers, as on the residual streams of transformers and of
inverted bottlenecks, a network computes the same with its channels multiplied by any orthogonal matrix that
the layers which make and read them take into their weights (computational invariance: SliceGPT, arXiv
2401.15024; rotations for rounding: QuaRot, arXiv 2404.00456; learnt ones: SpinQuant, arXiv 2405.16406). Here
the matrix is found by stochastic gradient descent on second-order costs of what is to be done to those
weights. No image is run.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from optimizer.compression.calibration.moments import Moments
from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.equivalence import preserving
from optimizer.compression.norms import Normed, absorbable, absorbed, absorbed_statistics
from optimizer.compression.prune.allocation import single_costs
from optimizer.compression.prune.compensated import growth
from optimizer.compression.streams import Stream, attention_streams, streams
from optimizer.model.layers import Layer, walk, with_shared_bias
from optimizer.progress import Report, quiet, stop_if_cancelled
from optimizer.recipe.specs import Aim
from optimizer.system.threads import pinned_threads

STEPS = 100
RATE = 0.04
"""Of Adam (Kingma and Ba 2015), falling to 0 over the steps."""
BATCH = 256
"""Rows of each layer that a step looks at, others each time."""
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
"""Of a stream: a step takes time by the cube of them."""

Rotations = Mapping[Stream, Tensor]
"""An orthogonal matrix for the channels of each stream, float64 ``[channels, channels]``, with blocks for
heads: ``matrix @ c`` stands where channels ``c`` stood."""


@dataclass(frozen=True, eq=False, slots=True)
class Reader:
    """A layer that reads the channels: ``weight`` ``[rows, s, channels]`` with ``s`` columns for each;
    factors ``[s, channels, n]`` of each of the ``s`` blocks of its matrix (``F F'``), and of that one's
    inverse; the ``effects`` ``[rows]`` of its rows; the ``share`` of all its rows that these are."""

    weight: Tensor
    factors: Tensor
    inverses: Tensor
    effects: Tensor
    share: float = 1

    def of(self, head: slice) -> Self:
        """Channels of one head, in place of all."""
        factors, inverses = self.factors[:, head], self.inverses[:, head]
        return replace(self, weight=self.weight[..., head], factors=factors, inverses=inverses)

    def batch(self, step: int) -> Self:
        """Rows for a step, in place of all."""
        some = _batch(len(self.weight), step)
        weight, effects = self.weight[some], self.effects[some]
        return replace(self, weight=weight, effects=effects, share=len(weight) / len(self.weight))

    def pruning_costs(self, rotation: Tensor) -> Tensor:
        """Of the loss of each weight, as :func:`optimizer.compression.prune.allocation.single_costs`."""
        diagonals = (rotation @ self.inverses).square().sum(2)
        costs: Tensor = (self.weight @ rotation.T).square() / diagonals * self.effects[:, None, None]
        return costs

    def rounding_cost(self, rotation: Tensor) -> Tensor:
        """Of all its weights, but for a factor that no rotation changes."""
        ranges = squared_ranges((self.weight @ rotation.T).flatten(1))
        cost: Tensor = (ranges * self.effects).sum() / self.share * squared_pivots(rotation, self.factors)
        return cost


@dataclass(frozen=True, eq=False, slots=True)
class Maker:
    """A layer that makes the channels: ``weight`` ``[columns, channels]``, the diagonal ``[columns]`` of the
    inverse of its matrix, the sum of that matrix's squared pivots, the ``effects`` ``[channels]`` of its
    rows."""

    weight: Tensor
    inverse: Tensor
    pivots: Tensor
    effects: Tensor

    def of(self, head: slice) -> Self:
        """Channels of one head, in place of all."""
        return replace(self, weight=self.weight[:, head], effects=self.effects[head])

    def batch(self, step: int) -> Self:
        """Columns for a step, in place of all."""
        some = _batch(len(self.weight), step)
        return replace(self, weight=self.weight[some], inverse=self.inverse[some])

    def pruning_costs(self, rotation: Tensor) -> Tensor:
        effects = rotated_effects(self.effects, rotation)
        return (self.weight @ rotation.T).square() / self.inverse[:, None] * effects

    def rounding_cost(self, rotation: Tensor) -> Tensor:
        effects = rotated_effects(self.effects, rotation)
        return (squared_ranges(rotation @ self.weight.T) * effects).sum() * self.pivots


def _batch(rows: int, step: int) -> slice:
    """About ``BATCH`` rows, after a few steps all."""
    parts = max(1, rows // BATCH)
    part = step % parts
    return slice(part * rows // parts, (part + 1) * rows // parts)


def squared_ranges(rows: Tensor) -> Tensor:
    """About the square of what the grid of each row ``[rows, columns]`` has to span, but for a factor."""
    powers = rows.square() ** (NORM // 2)
    return powers.mean(1).clamp(min=torch.finfo(rows.dtype).tiny) ** (2 / NORM)


def squared_pivots(rotation: Tensor, factors: Tensor) -> Tensor:
    """The sum of the squared pivots in Cholesky's factors of rotated matrices ``F F'``, of their ``factors``
    ``[s, channels, channels]``: what columns cost that are rounded one after the other, each making up for
    those before.

    A squared pivot is the least of ``v R F F' R' v'`` over rows ``v`` that have 1 at its place and 0 after
    it, so that its gradient is that at the best ``v``, held (the envelope theorem).
    """
    mixed = rotation @ factors
    with torch.no_grad():
        lower = torch.linalg.cholesky(mixed @ mixed.mT)
        unit = lower / lower.diagonal(dim1=1, dim2=2)[:, None]
        best = torch.linalg.solve_triangular(unit, torch.eye(len(rotation)).expand_as(unit), upper=False)
    total: Tensor = (best @ mixed).square().sum()
    return total


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
) -> dict[Stream, Tensor]:
    """A rotation for each stream of ``model`` (batch norm folded) that may have any, where the ``aim`` costs
    less by it; then, for pruning, one for each head of attention, which rounding wins nothing by."""
    layers, shared = {layer.name: layer for layer in walk(model)}, with_shared_bias(model)
    residual = [one for one in streams(model, input_shape) if _may_rotate(one, model, layers, shared)]
    heads = attention_streams(model, input_shape) if aim != "round" else []
    heads = [one for one in heads if shared.isdisjoint(one.producers)]
    number = len(residual) + len(heads)

    def said(done: float) -> None:
        report(done / number, f"rotating channels: group {min(int(done) + 1, number)} of {number}")

    normed = _normed(residual)
    known = absorbed_statistics(statistics, model, normed)
    found = _searched(residual, absorbed(model, normed), known, aim, said)
    if heads:
        network, known = rotated(model, found), _rotated_moments(statistics, model, found)
        found |= _searched(heads, network, known, aim, lambda done: said(len(residual) + done))
    return preserving(model, input_shape, found, rotated) if found else {}


def _searched(
    some: Sequence[Stream],
    network: nn.Module,
    statistics: Statistics,
    aim: Aim,
    progress: Callable[[float], None],
) -> dict[Stream, Tensor]:
    """Rotations of ``some`` streams of the ``network``, those that win anything; ``progress`` in streams."""
    layers = {layer.name: layer for layer in walk(network)}
    dear = _last_to_go(layers, statistics) if some and statistics.moments and aim != "round" else 0.0
    cost, found = _cost(aim, dear), {}
    for number, stream in enumerate(some):
        parts: Parts = [*_readers(stream, layers, statistics), *_makers(stream, layers, statistics)]
        size, share, blocks = stream.channels // stream.heads, 1 / stream.heads, []
        for head in range(stream.heads if parts else 0):

            def searched(done: float, before: float = number + head * share, share: float = share) -> None:
                progress(before + done * share)

            own = [part.of(slice(head * size, (head + 1) * size)) for part in parts]
            blocks.append(cheapest_rotation(_basis(size, stream.centred), own, cost, searched))
        if any(block is not None for block in blocks):
            identity = torch.eye(size, dtype=torch.float64)
            found[stream] = torch.block_diag(*(identity if one is None else one for one in blocks))
    return found


def _may_rotate(
    stream: Stream, model: nn.Module, layers: Mapping[str, Layer], shared: Collection[str]
) -> bool:
    """Whether the widths fit, each bias is its layer's own, and norms leave their scales to layers."""
    parameters = dict(model.named_parameters())
    return (
        stream.channels <= MAX_CHANNELS
        and all(len(layers[name].weight) == stream.channels for name in stream.producers)
        and not any(name in shared for name in stream.producers)
        and all(layers[name].weight.shape[1] % stream.channels == 0 for name in stream.consumers)
        and all(parameters[name].shape[-1] == stream.channels for name in stream.added)
        and not any(name in shared for name, _ in stream.normed)
        and absorbable(model, layers, stream.normed)
    )


def _normed(found: Iterable[Stream]) -> Normed:
    return [one for stream in found for one in stream.normed]


def _basis(channels: int, centred: bool) -> Tensor:
    """Orthonormal directions that mixtures may be of, float64 ``[channels, directions]``: all, or those of
    which the mean over channels is 0 (of Householder's reflection that takes the first channel there)."""
    identity = torch.eye(channels, dtype=torch.float64)
    if not centred:
        return identity
    mirror = torch.full((channels,), channels**-0.5, dtype=torch.float64)
    mirror[0] += 1
    return (identity - 2 * torch.outer(mirror, mirror) / mirror.square().sum())[:, 1:]


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


Parts = Sequence[Reader | Maker]
"""Of a group, or batches of them."""
Cost = Callable[[Tensor, Parts, float], Tensor]
"""Of a rotation to some parts, differentiable, at a share (0 to 1) of the search."""


def pruning_cost(dear: float) -> Cost:
    """The mean over weights of ``c / (c + dear)``, their costs ``c``: it falls as weights come to cost either
    next to nothing or far more than those that go."""

    def cost(rotation: Tensor, parts: Parts, share: float) -> Tensor:
        half = dear * SOFTENED ** max(0.0, 1 - share / SOFTENED_FOR)
        costs = torch.cat([part.pruning_costs(rotation).flatten() for part in parts])
        mean: Tensor = (costs / (costs + half)).mean()
        return mean

    return cost


def rounding_cost(rotation: Tensor, parts: Parts, share: float) -> Tensor:
    """The sum over layers, the same all along the search."""
    return torch.stack([part.rounding_cost(rotation) for part in parts]).sum()


def _cost(aim: Aim, dear: float) -> Cost:
    """Of what is to be done. Of both, products compare: what pruning costs at one sparsity says little of
    another's."""
    pruning = pruning_cost(dear)
    costs: dict[Aim, Cost] = {
        "prune": pruning,
        "round": rounding_cost,
        "both": lambda *at: rounding_cost(*at) * pruning(*at) ** PRUNING_COUNTS,
    }
    return costs[aim]


def cheapest_rotation(
    basis: Tensor, parts: Parts, cost: Cost, progress: Callable[[float], None] = lambda share: None
) -> Tensor | None:
    """A rotation with little ``cost`` to the ``parts``, float64 ``[channels, channels]``, of the directions
    in ``basis`` ``[channels, directions]`` alone; None where it costs no less than the channels as they
    stand, or nothing can be told. The same each time.

    From a random one, each step by Cayley's map of a skew matrix, which Adam chooses by the gradient where
    the rotation has come to (dynamic trivialisation, Lezcano-Casado 2019, arXiv 1909.09501).
    """
    channels, directions = basis.shape
    identity, standing = torch.eye(directions), torch.eye(channels, dtype=torch.float64) - basis @ basis.T

    def whole(part: Tensor) -> Tensor:
        """Of all channels, where ``part`` ``[directions, directions]`` rotates those of the basis."""
        if directions == channels:
            return part
        return basis.to(part) @ part @ basis.to(part).T + standing.to(part)

    with torch.no_grad():
        as_they_stand = cost(torch.eye(channels), parts, 1)
    if not as_they_stand > 0:
        return None
    random = torch.Generator().manual_seed(0)
    found = torch.linalg.qr(torch.randn(directions, directions, generator=random))[0]
    update = _adam(found)
    for step in range(STEPS):
        stop_if_cancelled()
        progress(step / STEPS)
        with torch.inference_mode(False), torch.enable_grad():
            at = found.clone().requires_grad_()
            batches = [part.batch(step) for part in parts]
            (slope,) = torch.autograd.grad(cost(whole(at), batches, step / STEPS).log(), at)
        # By a skew matrix S: Cayley's map makes (I + S)^-1 (I - S) of it, about I - 2 S.
        skew = update(found @ slope.T - slope @ found.T, RATE * (1 - step / STEPS))
        found = torch.linalg.solve(identity + skew, (identity - skew) @ found)
    # Orthogonal but for float32's rounding, which the network is to be spared.
    exact, triangle = torch.linalg.qr(found.double())
    with torch.no_grad():
        less = bool(cost(whole(found), parts, 1) < as_they_stand)
    return whole(exact * triangle.diagonal().sign()) if less else None


def _adam(like: Tensor) -> Callable[[Tensor, float], Tensor]:
    """Adam's changes by gradients and rates, one after the other. (Its class imports a compiler, for 1 s.)"""
    mean, square, steps = torch.zeros_like(like), torch.zeros_like(like), torch.zeros(())

    def update(gradient: Tensor, rate: float) -> Tensor:
        change = torch.zeros_like(like)
        adam(
            params=[change],
            grads=[gradient],
            exp_avgs=[mean],
            exp_avg_sqs=[square],
            max_exp_avg_sqs=[],
            state_steps=[steps],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=0,
            eps=1e-8,
            maximize=False,
        )
        return change

    return update


def _readers(stream: Stream, layers: Mapping[str, Layer], statistics: Statistics) -> list[Reader]:
    found = []
    for name in sorted({*stream.consumers} & statistics.moments.keys()):
        weight = layers[name].weight.detach().unflatten(1, (stream.channels, -1)).flatten(2)
        rows = _shuffled(len(weight))
        matrix = statistics.matrix(name)[0]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
        factors, inverses = (
            torch.linalg.cholesky(one.view(*weight.shape[1:] * 2).diagonal(dim1=1, dim2=3).movedim(2, 0))
            for one in (matrix, inverse)
        )
        effects = statistics.effects[name][rows]
        found.append(Reader(weight[rows].transpose(1, 2).contiguous(), factors, inverses, effects))
    return found


def _makers(stream: Stream, layers: Mapping[str, Layer], statistics: Statistics) -> list[Maker]:
    found = []
    for name, rows in sorted(stream.rows, key=str):
        if name in statistics.moments:
            weight = layers[name].weight.detach()[rows].flatten(1).T
            columns = _shuffled(len(weight))
            factor = torch.linalg.cholesky(statistics.matrix(name)[0])
            inverse = torch.cholesky_inverse(factor).diagonal()[columns]
            pivots = factor.diagonal().square().sum()
            found.append(Maker(weight[columns], inverse, pivots, statistics.effects[name][rows]))
    return found


def _shuffled(count: int) -> Tensor:
    """The same each time."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def rotated(model: nn.Module, rotations: Rotations) -> nn.Module:
    """A copy of ``model`` with the channels of each stream rotated, and scales of norms in the layers."""
    copied = absorbed(model, _normed(rotations))
    layers, parameters = {layer.name: layer for layer in walk(copied)}, dict(copied.named_parameters())
    for stream, rotation in rotations.items():
        for name, rows in stream.rows:
            layer = layers[name]
            layer.weight.data[rows] = _along(layer.weight.data[rows], rotation, 0)
            if layer.bias is not None:
                layer.bias.data[rows] = _along(layer.bias.data[rows], rotation, 0)
        for name in stream.consumers:
            layers[name].weight.data = _along(layers[name].weight.data, rotation, 1)
        for name in stream.added:
            values = parameters[name].data
            parameters[name].data = _along(values, rotation, values.dim() - 1)
    return copied


def rotated_statistics(
    statistics: Statistics, model: nn.Module, rotations: Rotations, network: nn.Module
) -> Statistics:
    """The statistics of the rotated ``network``, of those of the ``model``: nothing is run anew."""
    changed = _rotated_moments(statistics, model, rotations)
    names = changed.growth.keys() & {name for stream in rotations for name in stream.members}
    weights = {layer.name: layer.weight.detach() for layer in walk(network)}
    anew = {name: growth(name, weights[name], changed) for name in names}
    return replace(changed, growth={**changed.growth, **anew})


def _rotated_moments(statistics: Statistics, model: nn.Module, rotations: Rotations) -> Statistics:
    """Moments and effects of the rotated network; how costs grow is left as it was."""
    known = absorbed_statistics(statistics, model, _normed(rotations))
    moments, effects = dict(known.moments), dict(known.effects)
    for stream, rotation in rotations.items():
        for name, rows in stream.rows:
            if name in moments:
                effects[name] = effects[name].clone()
                effects[name][rows] = rotated_effects(effects[name][rows], rotation.float())
        for name in moments.keys() & {*stream.consumers}:
            one = moments[name]
            covariance = _along(_along(one.covariance, rotation, 1), rotation, 2)
            moments[name] = Moments(covariance, _along(one.mean, rotation, 1), one.shrinkage)
    return replace(known, moments=moments, effects=effects)


def _along(values: Tensor, rotation: Tensor, axis: int) -> Tensor:
    """``values`` with the channels along an axis, of one column or several side by side each, rotated."""
    channels = values.double().unflatten(axis, (len(rotation), -1)).movedim(axis, -1)
    mixed: Tensor = (channels @ rotation.T).movedim(-1, axis).reshape(values.shape)
    return mixed.to(values.dtype).contiguous()
