"""What pruning layers does to the outputs, each to its share of a model of 60 % sparsity: one layer alone,
and layers together whose channels are tied.

Made of the statistics, once they are there: these measured layers at shares that were a first guess, and what
they found gives others.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from optimizer.compression.calibration.cache import IMAGES, digest
from optimizer.compression.calibration.moments import channels_last
from optimizer.compression.calibration.sensitivity import Trial, divergences, divergences_together
from optimizer.compression.calibration.statistics import (
    NEGLIGIBLE,
    REFERENCE,
    Statistics,
    collapse_copies,
    seen_and_held_out,
)
from optimizer.compression.prune.allocation import change_costs
from optimizer.compression.prune.compensated import prune
from optimizer.compression.prune.coupling import groups
from optimizer.model.layers import walk
from optimizer.progress import Report, quiet
from optimizer.records import GroupSensitivity
from optimizer.system.disk_cache import Parts, kept
from optimizer.system.threads import pinned_threads


@dataclass(frozen=True, slots=True)
class Alone:
    """Divergence of the outputs (nats) with one layer pruned and no other touched: as it was measured on
    images that no layer was fitted to, or as expected where that is next to nothing."""

    divergence: float
    measured: bool


def alone(
    model: nn.Module, images: Tensor, statistics: Statistics, report: Report = quiet
) -> dict[str, Alone]:
    """Each layer that ``statistics`` of the same ``model`` and ``images`` ``[N, C, H, W]`` know; read, or
    measured and kept."""

    @pinned_threads()
    def measure(_: Path | None) -> dict[str, Alone]:
        trials, held_out = _trials(model, images, statistics)
        expected = {
            name: statistics.divergence(
                name, change_costs(name, model.get_parameter(name).detach() - one.weight, statistics)
            )
            for name, one in trials.items()
        }
        least = NEGLIGIBLE * sum(expected.values())
        told = {name: one for name, one in trials.items() if expected[name] >= least}
        copied, held_out = channels_last(model, held_out)
        measured = divergences(copied, held_out, told, report)
        return {
            name: Alone(max(0.0, measured.get(name, expected[name])), name in measured) for name in trials
        }

    return kept(
        digest("layers alone", model, images[:IMAGES]),
        measure,
        lambda made: ({}, {name: asdict(one) for name, one in made.items()}),
        lambda parts: {name: Alone(**one) for name, one in parts[1].items()},
    )


def coupled(
    model: nn.Module, images: Tensor, statistics: Statistics, report: Report = quiet
) -> tuple[GroupSensitivity, ...]:
    """What coupled layers do to the outputs when all of them change; read, or measured and kept.

    Coupled are the layers that make or pass on the same channels: those that a residual sum adds up, and a
    depthwise convolution with the layer before it. Alone, one of a sum can seem to matter little, because the
    others carry the channel on. ``statistics`` is that of the same ``model`` and ``images`` ``[N, C, H, W]``.
    Raises UnavailableError without torch-pruning, WorkError for a model that it can't follow.
    """
    apart = alone(model, images, statistics, report)

    @pinned_threads()
    def measure(_: Path | None) -> tuple[GroupSensitivity, ...]:
        found = [
            (group, members)
            for group in groups(model, tuple(images.shape[1:]))
            if len(members := [one for one in group.makers if one in apart]) > 1
        ]
        trials, held_out = _trials(model, images, statistics)
        copied, held_out = channels_last(model, held_out)
        tied = {group.name: {name: trials[name] for name in members} for group, members in found}
        together = divergences_together(copied, held_out, tied, report)
        return tuple(
            GroupSensitivity(
                tuple(members),
                group.channels,
                group.held
                or (
                    "a head has queries, keys and values"
                    if group.attention
                    else "a depthwise convolution passes them on"
                ),
                max(0.0, together[group.name]),
                sum(apart[name].divergence for name in members),
            )
            for group, members in found
        )

    def unpack(parts: Parts) -> tuple[GroupSensitivity, ...]:
        found = (one | {"layers": tuple(one["layers"])} for one in parts[1]["groups"])
        return tuple(GroupSensitivity(**one) for one in found)

    return kept(
        digest("coupled layers, with heads", model, images[:IMAGES]),
        measure,
        lambda made: ({}, {"groups": [asdict(one) for one in made]}),
        unpack,
    )


def _trials(model: nn.Module, images: Tensor, statistics: Statistics) -> tuple[dict[str, Trial], Tensor]:
    """Every layer pruned to its share, and the images to tell by what that does."""
    seen, held_out = seen_and_held_out(collapse_copies(images[:IMAGES]))
    weights = {layer.name: layer.weight.detach() for layer in walk(model) if layer.name in statistics.moments}
    pruned = prune(weights, weights, REFERENCE, statistics)
    # A bias that was fitted to a single image would undo any change there.
    return {
        name: Trial(one.weight, None if held_out is seen else one.bias_change) for name, one in pruned.items()
    }, held_out
