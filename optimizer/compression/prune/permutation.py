"""Channels in an order in which an ``N:M`` pattern costs less.

Which inputs stand together in a group of M is left open by a network: its hidden channels, and those of a
residual stream, may be in any order, as long as all that makes or reads them has the same. An exchange of two
channels at a time finds an order in which more of what goes is cheap (channel permutations, Pool and Yu,
NeurIPS 2021; here by second-order costs in place of magnitudes). The network computes what it did before.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from optimizer.compression.calibration.moments import Moments
from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.equivalence import preserving
from optimizer.compression.prune.allocation import single_costs
from optimizer.compression.prune.coupling import movable
from optimizer.compression.prune.group import Group
from optimizer.compression.prune.patterns import Pattern, fits
from optimizer.errors import WorkError
from optimizer.model.layers import walk, with_shared_bias
from optimizer.model.products import deep_copy
from optimizer.progress import Report, quiet, stop_if_cancelled
from optimizer.system.threads import pinned_threads, thread_count

COSTS = 1 << 19
"""Of a group's weights that are looked at; of more, so many drawn at random tell as well."""
ROUNDS = 3
"""How often, on average, each two groups of M are tried for an exchange."""
WORTH = 1e-5
"""What an exchange has to save, of the cost of the two groups."""

Orders = Mapping[Group, Tensor]
"""Which channel of a group comes at each place, int64 ``[channels]``."""


@torch.no_grad()
@pinned_threads()
def orders_for(
    model: nn.Module,
    input_shape: tuple[int, ...],
    pattern: Pattern,
    statistics: Statistics,
    report: Report = quiet,
) -> dict[Group, Tensor]:
    """An order of the channels of each group of ``model`` (batch norm folded) that may have any, for an
    ``N:M`` pattern, where another than theirs costs less. Empty where none may: of a model that torch-pruning
    can't follow, too. Raises UnavailableError without torch-pruning."""
    layers = {layer.name: layer for layer in walk(model)}
    try:
        found = movable(model, input_shape)
    except WorkError:
        return {}
    shared, orders = with_shared_bias(model), {}
    for number, group in enumerate(found):
        stop_if_cancelled()
        report(number / len(found), "ordering channels for the pattern")
        if any(len(layers[name].weight) != group.channels or name in shared for name in group.makers):
            continue
        costs = [
            single_costs(name, weight, statistics).movedim(1, 0).reshape(group.channels, -1)
            for name, weight in ((name, layers[name].weight.detach()) for name in group.consumers)
            if name in statistics.moments
            and weight.shape[1] == group.channels
            and fits(weight.shape, pattern)
        ]
        if not costs:
            continue
        order = cheapest_order(torch.cat(costs, 1), pattern)
        if not torch.equal(order, torch.arange(group.channels)):
            orders[group] = order
    return preserving(model, input_shape, orders, permuted) if orders else {}


@thread_count(1)
def cheapest_order(costs: Tensor, pattern: Pattern) -> Tensor:
    """An order of channels in which an ``N:M`` pattern takes little of their ``costs`` ``[channels, R]``, of
    ``R`` rows each; int64 ``[channels]``, a multiple of M. The same each time.

    In each round all groups of M are paired at random, and each pair exchanges those two channels by which it
    saves most.
    """
    assert pattern.kept is not None
    size, lost = pattern.inputs, pattern.inputs - pattern.kept
    random = torch.Generator().manual_seed(0)
    rows = max(1, COSTS // len(costs))
    if costs.shape[1] > rows:
        costs = costs[:, torch.randperm(costs.shape[1], generator=random)[:rows]]
    costs = costs.contiguous()
    groups = torch.arange(len(costs)).reshape(-1, size)
    pairs = len(groups) // 2
    for _ in range(ROUNDS * len(groups) if pairs else 0):
        stop_if_cancelled()
        drawn = torch.randperm(len(groups), generator=random)[: 2 * pairs]
        ours, theirs = groups[drawn[:pairs]], groups[drawn[pairs:]]
        one, other = costs[ours], costs[theirs]
        now_one, left_one, limit_one = _without_each(one, lost)
        now_other, left_other, limit_other = _without_each(other, lost)
        after = left_one.unsqueeze(2) + left_other.unsqueeze(1)
        for place in range(size):
            after[:, place] += torch.minimum(limit_one[:, place, None], other).sum(2)
            after[:, place] += torch.minimum(limit_other, one[:, place, None]).sum(2)
        least, places = after.flatten(1).min(1)
        pair = (least < (now_one + now_other) * (1 - WORTH)).nonzero().flatten()
        from_one, from_other = places[pair] // size, places[pair] % size
        ours[pair, from_one], theirs[pair, from_other] = theirs[pair, from_other], ours[pair, from_one]
        groups[drawn[:pairs]], groups[drawn[pairs:]] = ours, theirs
    return groups.flatten()


def _without_each(costs: Tensor, lost: int) -> tuple[Tensor, Tensor, Tensor]:
    """What groups of ``costs`` ``[P, M, R]`` lose ``[P]``: the ``lost`` cheapest of every row. And, without
    each of their channels, what the ``lost - 1`` cheapest cost ``[P, M]``, and the next one ``[P, M, R]``: a
    channel that comes in its place is lost where it is cheaper than that.
    """
    ranked = _ranked(costs)
    last, next_one = ranked[lost - 1].unsqueeze(1), ranked[lost].unsqueeze(1)
    now = torch.stack([part.sum(1) for part in ranked[:lost]]).sum(0)
    left = now.unsqueeze(1) - torch.minimum(costs, last).sum(2)
    # A cost is at most the last that is lost, or at least the next: that of the two which it is not stays.
    return now, left, last + next_one - costs.clamp(last, next_one)


def _ranked(costs: Tensor) -> list[Tensor]:
    """Of costs ``[P, M, R]`` the cheapest of each group and row, the next, and so on: M tensors ``[P, R]``.
    Neighbours change places, as in odd-even sort: a library's sort takes ten times as long over so few."""
    parts = list(costs.unbind(1))
    for number in range(len(parts)):
        for at in range(number % 2, len(parts) - 1, 2):
            lower, upper = parts[at], parts[at + 1]
            parts[at], parts[at + 1] = torch.minimum(lower, upper), torch.maximum(lower, upper)
    return parts


@torch.no_grad()
def permuted(model: nn.Module, orders: Orders) -> nn.Module:
    """A copy of ``model`` with the channels of each group in its order."""
    copied = deep_copy(model)
    layers = {layer.name: layer for layer in walk(copied)}
    weights = permuted_weights({name: layer.weight.detach() for name, layer in layers.items()}, orders)
    for name, layer in layers.items():
        layer.weight.data = weights[name]
    for group, order in orders.items():
        for name in group.makers:
            if (bias := layers[name].bias) is not None:
                bias.data = bias.data[order]
    return copied


def permuted_weights(weights: Mapping[str, Tensor], orders: Orders) -> dict[str, Tensor]:
    """Layers' weights ``[out, in, ...]``, by name, with the channels of each group in its order."""
    found = dict(weights)
    for group, order in orders.items():
        for name in group.makers:
            found[name] = found[name][order]
        for name in group.consumers:
            found[name] = found[name][:, _columns(order, found[name].shape[1])]
    return found


def permuted_statistics(statistics: Statistics, orders: Orders) -> Statistics:
    """The statistics of the :func:`permuted` model, of those of the model: nothing is run anew."""
    moments, effects = dict(statistics.moments), dict(statistics.effects)
    for group, order in orders.items():
        for name in moments.keys() & {*group.makers}:
            effects[name] = effects[name][order]
        for name in moments.keys() & {*group.through}:
            one = moments[name]
            moments[name] = Moments(one.covariance[order], one.mean[order], one.shrinkage)
        for name in moments.keys() & {*group.consumers}:
            one = moments[name]
            at = _columns(order, one.mean.shape[1])
            moments[name] = Moments(one.covariance[:, at][:, :, at], one.mean[:, at], one.shrinkage)
    return replace(statistics, moments=moments, effects=effects)


def _columns(order: Tensor, columns: int) -> Tensor:
    """Which of so many columns come at each place where channels, of several columns side by side each, are
    put into an order."""
    each = columns // len(order)
    return (order.unsqueeze(1) * each + torch.arange(each)).flatten()
