"""Channel pruning: whole channels and attention heads go, so what stays is a smaller dense network that any
engine runs faster.

Each step is a file: which channels must go together (:mod:`optimizer.compression.prune.coupling`), in which
order they go (:mod:`optimizer.compression.prune.ranking`), the plan of both
(:mod:`optimizer.compression.prune.plan`), how many go (:mod:`optimizer.compression.prune.widths`), and what
makes up for them (:mod:`optimizer.compression.prune.readers`). Here they go.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optimizer.compression.prune.coupling import MIXED, groups, without
from optimizer.compression.prune.group import Group
from optimizer.compression.prune.matching import matched
from optimizer.compression.prune.plan import ChannelPlan, with_biases
from optimizer.compression.prune.readers import refitted
from optimizer.compression.prune.widths import kept_counts
from optimizer.errors import InputError
from optimizer.model.layers import walk
from optimizer.progress import Report, quiet
from optimizer.recipe import PruneSpec
from optimizer.system.threads import pinned_threads


@dataclass(frozen=True, eq=False, slots=True)
class Shrunk:
    """A smaller copy of the module, and the output channels that each changed layer kept, ascending.

    ``matched`` says whether outputs were matched to the dense model's, and that it helped.
    """

    module: nn.Module
    kept: dict[str, Tensor]
    matched: bool = False


def remove_channels(
    model: nn.Module, spec: PruneSpec, plan_in: Callable[[str], ChannelPlan], report: Report = quiet
) -> nn.Module:
    """The model without the channels of ``spec``: a :data:`optimizer.compression.prune.Shrinker`."""
    plan = plan_in("compensated" if spec.allocation == "measured" else "magnitude")
    return shrink(plan, spec.share, multiple=spec.snap, match=spec.match, report=report).module


@pinned_threads()
def shrink(
    plan: ChannelPlan, ratio: float, *, multiple: int = 1, match: bool = False, report: Report = quiet
) -> Shrunk:
    """A smaller copy of the planned model, without ``ratio`` (0 to below 1) of the channels that can go.

    By magnitude, that share of each group. Compensated, that share of the groups' multiply-accumulates,
    shared out so that the expected divergence of the outputs is least; and the layers that read what went
    are refitted. ``multiple`` (8 or 16 suit vector units) rounds what groups of at least four multiples
    keep. Every group keeps a sixteenth of its channels.

    ``match`` then gives each layer's outputs the mean and variance that they had in the dense model, channel
    by channel, which is what re-estimating batch norm does; kept if it brings the outputs on calibration
    images that it did not look at closer to the dense model's (KL).

    Raises InputError for a match with fewer than 16 images.
    """
    report(0.0, "removing channels")
    gone = plan.gone(kept_counts(plan, ratio, multiple))
    masked = masked_model(plan, gone)
    touched = [name for group in plan.free for name in group.members]
    better = matched(plan.model, masked, plan.images, touched, report) if match and gone else None
    module = without(better or masked, tuple(plan.images.shape[1:]), gone)
    widths = {layer.name: len(layer.weight) for layer in walk(plan.model)}
    left = {
        name: group.staying(channels)[group.places(widths[name])].nonzero().flatten()
        for group, channels in gone.items()
        for name in (*group.producers, *group.through)
    }
    return Shrunk(module, left, better is not None)


def shrink_to(
    model: nn.Module, shapes: Mapping[str, Sequence[int]], input_shape: tuple[int, ...]
) -> nn.Module:
    """A copy of ``model`` (batch norm folded) as :func:`shrink` makes them, for values to be put into: its
    layers' weights have ``shapes``, by name, and every layer has a bias. Which channels stay is left open.

    ``input_shape`` is ``[C, H, W]``. Raises InputError for shapes that taking channels out does not give,
    UnavailableError without torch-pruning, WorkError for a model that it can't follow.
    """
    dense = with_biases(model)
    widths = {layer.name: tuple(layer.weight.shape) for layer in walk(dense)}
    if odd := [name for name, shape in widths.items() if len(shapes.get(name, ())) != len(shape)]:
        raise InputError(f"{odd[0]} is {list(shapes.get(odd[0], ()))}, taken from {list(widths[odd[0]])}")
    if all(tuple(shapes[name]) == shape for name, shape in widths.items()):
        return dense
    gone = {}
    for group in groups(dense, input_shape):
        name = group.makers[0] if group.makers else ""
        held = group.held not in ("", MIXED)  # mixed channels were once taken out all the same
        if held or shapes[name][0] == widths[name][0]:
            continue
        left, rest = divmod(group.channels * shapes[name][0], widths[name][0])
        if rest or not 0 < left < group.channels:
            raise InputError(
                f"{name} has {shapes[name][0]} of {widths[name][0]} outputs, which can only go together as "
                f"{group.channels}"
            )
        gone[group] = torch.arange(left, group.channels)
    return without(dense, input_shape, gone)


@torch.no_grad()
def masked_model(plan: ChannelPlan, gone: Mapping[Group, Tensor]) -> nn.Module:
    """A copy in which nothing reads the channels that are ``gone``, and what reads the others makes up for
    them.

    Its weights have the dense model's shapes; without those channels it computes the same.
    """
    model = copy.deepcopy(plan.model)
    layers = {layer.name: layer for layer in walk(model)}
    for group, channels in gone.items():
        for name in group.consumers:
            layer = layers[name]
            trial = refitted(layer, channels, group, plan.moments.get(name), plan.order)
            layer.weight.copy_(trial.weight)
            if layer.bias is not None and trial.bias_change is not None:
                layer.bias.add_(trial.bias_change)
    return model
