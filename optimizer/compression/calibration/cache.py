"""Statistics of models on images, plans, orders and rotations of channels, and networks that learnt: made
once, kept, and read by every position of a slider."""

import copy
import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from optimizer.compression.calibration.making import make
from optimizer.compression.calibration.moments import Moments
from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.distillation import VERSION as DISTILLATION_VERSION
from optimizer.compression.distillation import Checkpoint
from optimizer.compression.effort import VERSION as EFFORT_VERSION
from optimizer.compression.effort import improve
from optimizer.compression.finetune import fits, recover
from optimizer.compression.prune.group import Group
from optimizer.compression.prune.patterns import PATTERNS
from optimizer.compression.prune.permutation import orders_for
from optimizer.compression.prune.plan import ChannelPlan, plan, with_biases
from optimizer.compression.prune.ranking import Ranking
from optimizer.compression.quantize.held import HeldGrid
from optimizer.compression.rotation import rotations_for
from optimizer.compression.streams import Stream
from optimizer.errors import UnavailableError
from optimizer.model import identity
from optimizer.model.layers import tensors
from optimizer.progress import Report, quiet
from optimizer.recipe.specs import Aim
from optimizer.system.disk_cache import Parts, beside, kept, read, write
from optimizer.system.threads import pinned_threads

VERSION = 12
"""Raised with every change of what statistics, plans, orders or rotations hold or how they come about."""
Channels = TypeVar("Channels", Group, Stream)
IMAGES = 256
"""Calibration images that statistics are taken of."""


def statistics_of(model: nn.Module, images: Tensor, report: Report = quiet) -> Statistics:
    """The statistics of ``model`` (batch norm folded) on calibration images ``[N, C, H, W]``: read, or made
    and kept.

    Where the data folder can't be written they are made and not kept. Raises InputError without images.
    """
    images = images[:IMAGES]
    content = digest("study", model, images)
    return kept(content, lambda _: make(model, images, report), _packed_statistics, _unpacked_statistics)


def plan_of(
    model: nn.Module,
    images: Tensor,
    order: str,
    moments: Mapping[str, Moments] | None = None,
    report: Report = quiet,
) -> ChannelPlan:
    """The channel plan :func:`optimizer.compression.prune.plan.plan` makes, in ``order``: read, or made and
    kept.

    ``moments`` are those of the statistics of the same model and images, where there is one: they are kept
    there. Raises as :func:`optimizer.compression.prune.plan.plan` does.
    """
    images = images[:IMAGES]

    def pack(made: ChannelPlan) -> Parts:
        tensors = {f"order {name}": one.order for name, one in made.rankings.items()}
        tensors |= {f"losses {name}": one.losses for name, one in made.rankings.items()}
        facts: dict[str, Any] = {"groups": [asdict(group) for group in made.groups], "macs": dict(made.macs)}
        facts["read"] = sorted(made.moments)
        if moments is None:
            more, facts["shrinkage"] = _packed_moments(made.moments)
            tensors |= more
        return tensors, facts

    def unpack(parts: Parts) -> ChannelPlan:
        tensors, facts = parts
        described = tuple(map(_group, facts["groups"]))
        rankings = {
            name: Ranking(tensors[f"order {name}"], tensors[f"losses {name}"]) for name in facts["macs"]
        }
        found = _unpacked_moments(tensors, facts["shrinkage"]) if moments is None else moments
        consumed = {name: found[name] for name in facts["read"]}
        return ChannelPlan(with_biases(model), images, order, described, rankings, facts["macs"], consumed)

    @pinned_threads()
    def make_plan(_: Path | None) -> ChannelPlan:
        return plan(model, images, order=order, moments=moments, report=report)

    return kept(digest(f"plan with heads and erf by {order}", model, images), make_plan, pack, unpack)


def orders_of(
    model: nn.Module, images: Tensor, pattern: str, statistics: Statistics, report: Report = quiet
) -> dict[Group, Tensor]:
    """The orders of channels that :func:`optimizer.compression.prune.permutation.orders_for` finds for a
    pattern by the model's ``statistics`` on these images: read, or found and kept. Without torch-pruning
    there are none, and nothing is kept."""
    content = digest(f"channel orders for {pattern}", model, images[:IMAGES])
    shape = tuple(images.shape[1:])
    return _kept_changes(
        content, _group, lambda: orders_for(model, shape, PATTERNS[pattern], statistics, report)
    )


def rotations_of(
    model: nn.Module, images: Tensor, aim: Aim, statistics: Statistics, report: Report = quiet
) -> dict[Stream, Tensor]:
    """The rotations that :func:`optimizer.compression.rotation.rotations_for` finds by the model's
    ``statistics`` on these images: read, or found and kept, as :func:`orders_of`."""
    content = digest(f"rotations to {aim}", model, images[:IMAGES])
    shape = tuple(images.shape[1:])
    return _kept_changes(content, _stream, lambda: rotations_for(model, shape, aim, statistics, report))


def _kept_changes(
    content: str,
    described: Callable[[Mapping[str, Any]], Channels],
    find: Callable[[], dict[Channels, Tensor]],
) -> dict[Channels, Tensor]:
    """What is done to channels: read, or found and kept; nothing without torch-pruning."""

    def pack(changes: Mapping[Channels, Tensor]) -> Parts:
        return {one.name: change for one, change in changes.items()}, {"channels": [*map(asdict, changes)]}

    def unpack(parts: Parts) -> dict[Channels, Tensor]:
        return {one: parts[0][one.name] for one in map(described, parts[1]["channels"])}

    try:
        return kept(content, lambda _: find(), pack, unpack)
    except UnavailableError:
        return {}


def fine_tuned(
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    images: Tensor,
    steps: int,
    report: Report = quiet,
    took: Callable[[float], None] = lambda seconds: None,
    grids: Mapping[str, HeldGrid] | None = None,
) -> tuple[nn.Module, int]:
    """The student after :func:`optimizer.compression.finetune.recover`, and the steps that were made: read,
    or fine-tuned and kept; both stay as they were.

    One that is stopped leaves its last checkpoint; the next goes on from there, and ends where it would have
    ended without the stop. ``took`` is told the seconds of a step, where any was made.
    """
    content = _learning_digest(f"{steps} steps", student, teacher, masks, images, grids)

    def make_state(path: Path | None) -> tuple[State, float]:
        def keep(checkpoint: Checkpoint) -> None:
            if path:
                with suppress(OSError):
                    write(beside(path), _packed_checkpoint(checkpoint), durable=False)

        begun = _begun(beside(path)) if path else None
        found = recover(student, teacher, masks, images, steps, report, begun, keep, grids)
        if found.step_seconds:
            took(found.step_seconds)
        return found.state, found.steps

    module, made = _kept_state(content, student, make_state)
    return module, int(made)


def improved(
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    images: Tensor,
    seconds: float,
    report: Report = quiet,
    grids: Mapping[str, HeldGrid] | None = None,
    refine: bool = True,
) -> tuple[nn.Module, float]:
    """The student after :func:`optimizer.compression.effort.improve`, and the seconds that it took: read, or
    made and kept; both stay as they were."""
    what = f"effort {EFFORT_VERSION} {seconds} s{'' if refine else ', unrefined'}"
    content = _learning_digest(what, student, teacher, masks, images, grids)

    def make_state(_: Path | None) -> tuple[State, float]:
        found = improve(student, teacher, masks, images, seconds, report, grids, refine=refine)
        return found.state, found.seconds

    return _kept_state(content, student, make_state)


def _learning_digest(
    what: str,
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    images: Tensor,
    grids: Mapping[str, HeldGrid] | None,
) -> str:
    models = f"{digest('student', student, images)} {digest('teacher', teacher, images)}"
    described = f"distillation {DISTILLATION_VERSION} {what} {models}"
    tensors = {f"mask {name}": one for name, one in masks.items()}  # which few bits may not tell
    for name, grid in (grids or {}).items():
        tensors |= {f"{part} {name}": getattr(grid, part) for part in ("step", "first", "last")}
    return _digest_of(described, tensors)


State = dict[str, Tensor]


def _kept_state(
    content: str, model: nn.Module, make_state: Callable[[Path | None], tuple[State, float]]
) -> tuple[nn.Module, float]:
    """A copy of ``model`` in the state that is kept, or made and kept, and how much of the budget it took."""
    module = copy.deepcopy(model)

    def unpack(parts: Parts) -> tuple[State, float]:
        if not fits(parts[0], tensors(model)):
            raise ValueError("a state of another model")
        return dict(parts[0]), float(parts[1]["took"])

    state, took = kept(content, make_state, lambda made: (made[0], {"took": made[1]}), unpack)
    module.load_state_dict(state, strict=False)
    return module, took


FACTS: dict[str, Callable[[Any], Any]] = {
    "step": int,
    "tried": int,
    "started": float,
    "rate": float,
    "divergence": float,
    "sharpness": float,
}
"""Of a checkpoint."""


def _packed_checkpoint(checkpoint: Checkpoint) -> Parts:
    tensors = {f"best {name}": one for name, one in checkpoint.best.items()} | {"random": checkpoint.random}
    for kind, values in (("now", checkpoint.now), ("mean", checkpoint.mean)):
        tensors |= {f"{kind} {index}": one.contiguous() for index, one in enumerate(values)}
    for index, parts in checkpoint.moments.items():
        tensors |= {f"moment{order} {index}": one.contiguous() for order, one in enumerate(parts)}
    return tensors, {name: getattr(checkpoint, name) for name in FACTS}


def _begun(path: Path) -> Checkpoint | None:
    """None where nothing was begun, or it is damaged."""
    parts = read(path)
    if parts is None:
        return None
    tensors, facts = parts

    def named(kind: str) -> State:
        return {
            name.removeprefix(f"{kind} "): one for name, one in tensors.items() if name.startswith(f"{kind} ")
        }

    def in_order(kind: str) -> tuple[Tensor, ...]:
        found = named(kind)
        return tuple(found[str(index)] for index in range(len(found)))

    with suppress(KeyError, TypeError, ValueError):
        orders = [named(f"moment{order}") for order in range(3)]
        return Checkpoint(
            now=in_order("now"),
            mean=in_order("mean"),
            best=named("best"),
            moments={int(at): (one, orders[1][at], orders[2][at]) for at, one in orders[0].items()},
            random=tensors["random"],
            **{name: kind(facts[name]) for name, kind in FACTS.items()},
        )
    return None


def digest(what: str, model: nn.Module, images: Tensor) -> str:
    """The name of what is kept of a model on images. Neither a module's class nor its weights tell what it
    computes: its code and what it holds count too."""
    return _digest_of(f"{VERSION} {what} {identity.content(model)} {tuple(images.shape)}", {"": images})


def _digest_of(described: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(described.encode())
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().data)
    return digest.hexdigest()[:20]


def _packed_moments(moments: Mapping[str, Moments]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors, and the shrinkage of each."""
    tensors = {f"covariance {name}": one.covariance for name, one in moments.items()}
    tensors |= {f"mean {name}": one.mean for name, one in moments.items()}
    return tensors, {name: one.shrinkage for name, one in moments.items()}


def _unpacked_moments(tensors: Mapping[str, Tensor], shrinkage: Mapping[str, float]) -> dict[str, Moments]:
    return {
        name: Moments(tensors[f"covariance {name}"], tensors[f"mean {name}"], share)
        for name, share in shrinkage.items()
    }


def _packed_statistics(statistics: Statistics) -> Parts:
    tensors, shrinkage = _packed_moments(statistics.moments)
    tensors |= {f"effects {name}": one for name, one in statistics.effects.items()}
    return tensors, {
        "shrinkage": shrinkage,
        "biased": sorted(statistics.biased),
        "growth": dict(statistics.growth),
        "logits": sorted(statistics.logits),
    }


def _unpacked_statistics(parts: Parts) -> Statistics:
    tensors, facts = parts
    moments = _unpacked_moments(tensors, facts["shrinkage"])
    effects = {name: tensors[f"effects {name}"] for name in moments}
    growths = {name: tuple(one) for name, one in facts["growth"].items()}
    biased, logits = (frozenset(facts[one]) for one in ("biased", "logits"))
    return Statistics(moments, effects, biased, growths, logits)


def _group(plain: Mapping[str, Any]) -> Group:
    return Group(**{**plain, **_tuples(plain)})


def _stream(plain: Mapping[str, Any]) -> Stream:
    normed = tuple((name, norm) for name, norm in plain["normed"])
    return Stream(**{**plain, **_tuples(plain), "normed": normed})


def _tuples(plain: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(value) for name, value in plain.items() if isinstance(value, list)}
