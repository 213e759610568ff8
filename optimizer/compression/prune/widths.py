"""How many channels each group keeps at a ratio, nested: a higher one takes more of the same."""

import math
from collections.abc import Mapping

import torch

from optimizer.compression.prune.plan import ChannelPlan

KEPT_SHARE = 16
"""A group keeps at least one channel of so many."""
SNAPPED_FROM = 4
"""Groups of at least so many multiples are snapped to them."""


def kept_counts(plan: ChannelPlan, ratio: float, multiple: int = 1) -> dict[str, int]:
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


def _snapped(plan: ChannelPlan, left: Mapping[str, int], multiple: int) -> dict[str, int]:
    kept = {}
    for group in plan.free:
        count = max(left[group.name], math.ceil(group.channels / KEPT_SHARE))
        if count < group.channels and group.channels >= SNAPPED_FROM * multiple:
            count = max(multiple, multiple * math.floor(count / multiple + 0.5))
        kept[group.name] = min(count, group.channels)
    return kept
