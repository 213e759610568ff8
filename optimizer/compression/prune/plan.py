"""A channel plan: all that is worked out once, before it is known how many channels are to go.

Orders are nested, so one plan answers for every ratio.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from optimizer.compression.calibration.moments import Moments, collect
from optimizer.compression.prune.coupling import groups
from optimizer.compression.prune.group import Group
from optimizer.compression.prune.ranking import Ranking, by_cost, by_magnitude
from optimizer.errors import InputError
from optimizer.model.layers import CONVOLUTIONS, multiplications, walk, with_shared_bias
from optimizer.progress import Report, quiet

ORDERS = ("magnitude", "compensated")
SENSITIVITY_IMAGES = 32


@dataclass(frozen=True, eq=False, slots=True)
class ChannelPlan:
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

    def gone(self, kept: Mapping[str, int]) -> dict[Group, Tensor]:
        """The channels that go where groups keep so many, by name; without the groups that keep all."""
        return {
            group: self.rankings[group.name].order[: group.channels - kept[group.name]]
            for group in self.free
            if kept[group.name] < group.channels
        }


def plan(
    model: nn.Module,
    images: Tensor,
    *,
    order: str = "compensated",
    moments: Mapping[str, Moments] | None = None,
    report: Report = quiet,
) -> ChannelPlan:
    """Rank the channels of every group of ``model`` (batch norm folded), once for all ratios.

    ``images`` ``[N, C, H, W]`` are for calibration, unlabelled. By magnitude there may be none of them
    (``[0, C, H, W]``): then biases don't take up the mean of what goes. ``moments`` are those of
    :func:`optimizer.compression.calibration.moments.collect`, where they are known already.

    By magnitude, each group first loses the channels whose weights have the smallest L2 norm over all its
    layers, those that read them too, each layer's scaled to the same mean.

    Raises InputError for a compensated order without images, or a model none of whose channels can go;
    UnavailableError without torch-pruning; WorkError for a model that it can't follow.
    """
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
        rankings = {group.name: by_magnitude(group, layers) for group in free}
    else:
        rankings = by_cost(dense, images[:SENSITIVITY_IMAGES], free, moments, report)
    counts = multiplications(dense, shape)
    macs = {
        group.name: sum(counts[name] * layers[name].weight.numel() for name in group.members)
        // group.channels
        for group in free
    }
    read = {name: moments[name] for group in free for name in group.consumers if name in moments}
    return ChannelPlan(dense, images, order, tuple(found), rankings, macs, read)


def with_biases(model: nn.Module) -> nn.Module:
    """A copy whose layers all have a bias of their own: it takes up the mean of what goes."""
    copied = copy.deepcopy(model).eval()
    shared = with_shared_bias(copied)
    for layer in walk(copied):
        missing = layer.bias is None or layer.name in shared
        if missing and isinstance(layer.module, (*CONVOLUTIONS, nn.Linear)):
            bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach().clone()
            layer.module.bias = nn.Parameter(bias, requires_grad=False)
    return copied


def _held_if_wide(group: Group, moments: Mapping[str, Moments]) -> Group:
    if group.held or all(name in moments for name in group.consumers):
        return group
    return replace(group, held="a layer that reads them is too wide for second-order costs")
