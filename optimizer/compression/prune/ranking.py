"""In which order a group's channels go, and the loss that each adds: by magnitude, or by second-order cost.

The second is Optimal Brain Surgeon's over channels (Hassibi and Stork 1993; in blocks, arXiv 2203.07259):
greedily, the one that costs least once the layers that read it make up for it goes first. How groups compare
follows from what the loss of a part of each was measured to do to the outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optimizer.compression.calibration.moments import Moments, damped, solved
from optimizer.compression.calibration.sensitivity import divergences
from optimizer.compression.prune.group import Group
from optimizer.compression.prune.readers import refitted
from optimizer.model.layers import Layer, walk
from optimizer.progress import Report

REFERENCE_SHARE, REFERENCE_LOSS = 0.25, 0.03
"""A group's effect is measured with so many of its channels gone, or with so much of the variance of the
outputs that read it: enough to stand out from nothing.
"""
MIN_EFFECT = 0.1
"""Of the median group's: a measured effect below is chance, and would let a group go whole."""


@dataclass(frozen=True, eq=False, slots=True)
class Ranking:
    """One group's channels ``[channels]`` in the order in which they go, and the loss that each adds.

    Losses never fall along the order. In a compensated plan they are divergences of the model's outputs (KL,
    nats) and compare across groups; by magnitude they are norms of weights.
    """

    order: Tensor
    losses: Tensor


def by_magnitude(group: Group, layers: Mapping[str, Layer]) -> Ranking:
    """Each layer's part of the norm counts alike: a layer that reads has other fan-in, and other scale."""
    made = [_of_channels(layers[name].weight.detach(), group) for name in (*group.producers, *group.through)]
    weights = [layers[name].weight.detach() for name in group.consumers]
    read = [weight.reshape(len(weight), group.channels, -1).square().sum((0, 2)) for weight in weights]
    squares = torch.stack([one / one.mean().clamp(min=1e-30) for one in (*made, *read)]).sum(0)
    norms, order = squares.sqrt().sort(stable=True)
    return Ranking(order, norms)


def _of_channels(weight: Tensor, group: Group) -> Tensor:
    """Sums of squares ``[channels]`` of what makes them."""
    rows = weight.flatten(1).square().sum(1)
    return rows.new_zeros(group.channels).index_add(0, group.places(len(rows)), rows)


def by_cost(
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
            trials[name] = refitted(layers[name], gone, group, moments[name], "compensated")
    found = divergences(model, images, trials, report)
    effects = {
        group.name: sum(max(0.0, found[name]) for name in group.consumers) / max(shares[group.name], 1e-12)
        for group in free
    }
    least = MIN_EFFECT * torch.tensor(list(effects.values())).median().item()
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
        total: Tensor = (solved(corners.permute(2, 0, 1), blocks) * blocks).sum((1, 2))
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
        # It can be solved with, and stays out of the rest.
        self.inverse[columns, columns] = torch.eye(self.size)

    def keep(self, blocks: Tensor) -> None:
        columns = blocks.repeat_interleave(self.size)
        self.weight, self.inverse = self.weight[:, columns], self.inverse[columns][:, columns]
