"""Best effort: distillation (:mod:`optimizer.compression.distillation`) within a budget of seconds. What
is held to grids is rounded once more first, and what was pruned is refitted
(:mod:`optimizer.compression.asymmetric`).

Another machine, or ending it early, gives another network: what came of it is kept
(:mod:`optimizer.compression.calibration.cache`), for as long as that cache is.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from optimizer.compression.asymmetric import refined
from optimizer.compression.distillation import MIN_IMAGES, learning
from optimizer.compression.gradients import gradient_context
from optimizer.compression.quantize.held import HeldGrid
from optimizer.errors import InputError
from optimizer.progress import Report, is_enough, quiet, stop_if_cancelled
from optimizer.system.memory import kept_memory
from optimizer.system.threads import pinned_threads

VERSION = 8
"""Raised with every change of what comes out that is not one of fine-tuning too."""
REFINING_SHARE = 0.6
"""Of the budget at most, for rounding or refitting once more; layers that there is no time for stay."""
TEACHER_SHARE = 0.2
"""Of the budget: what the uncompressed network's outputs on the images take."""
TRIAL_SHARE = 0.04
LOOKS = 8
"""How often the images held out are looked at, beside the trials."""


@dataclass(frozen=True, slots=True)
class Improved:
    """The state that is kept, and the seconds it took; ``before`` and ``after`` as in
    :class:`optimizer.compression.distillation.Distillation`."""

    state: dict[str, Tensor]
    before: float
    after: float
    seconds: float


@dataclass(eq=False)
class Seconds:
    """So many seconds of ``clock`` from now on, or until who asked takes the best so far; learning begins
    when the share ``started`` is spent."""

    seconds: float
    clock: Callable[[], float]
    trial_share: float = TRIAL_SHARE
    started: float = 0.0
    begun: float = field(init=False)
    looks: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        self.begun = self.clock()

    @property
    def spent(self) -> float:
        return self.clock() - self.begun

    @property
    def share(self) -> float:
        return min(1.0, self.spent / self.seconds) if self.seconds else 1.0

    @property
    def over(self) -> bool:
        stop_if_cancelled()
        return is_enough() or self.share >= 1

    def has_shown(self, batches: int, given: int) -> bool:
        return self.over or self.share > self.started + TEACHER_SHARE

    def stepped(self) -> None:
        """Steps are not counted."""

    def look_due(self) -> bool:
        if self.share < self.looks / LOOKS:
            return False
        self.looks = int(self.share * LOOKS) + 1
        return True

    def words(self, divergences: str) -> str:
        return f"best effort: {divergences}, {max(0.0, self.seconds - self.spent):.0f} s left"


@kept_memory()
@pinned_threads()
def improve(
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    images: Tensor,
    seconds: float,
    report: Report = quiet,
    grids: Mapping[str, HeldGrid] | None = None,
    clock: Callable[[], float] = time.monotonic,
    refine: bool = True,
) -> Improved:
    """Bring a copy of ``student`` nearer to ``teacher``, for ``seconds`` of ``clock``; see
    :func:`optimizer.compression.distillation.learning`.

    Weights are rounded or refitted once more first (``refine``), which a network whose channels were scaled
    can't take.
    Ends early where :func:`optimizer.progress.is_enough`. Raises InputError for fewer than 16 images, or a
    student that can't learn.
    """
    if len(images) < MIN_IMAGES:
        raise InputError(
            f"{len(images)} images are too few for best effort: give at least {MIN_IMAGES}, or 0 seconds"
        )
    gradient_context(student, images[:1])  # refining it first would take minutes
    budget, made = Seconds(seconds, clock), student
    if refine and (grids or not all(mask.all() for mask in masks.values())):
        keep_going = partial(_keep_going, budget, report, "rounding" if grids else "refitting")
        made = refined(student, teacher, masks, grids or {}, images, keep_going)
        budget.started = budget.share
    run = learning(made, teacher, masks, images, budget, report, grids)
    if made is not student:
        run.compare(student, *([] if grids else [_halfway(student, made)]))
    run.run()
    return Improved(run.best, run.before, run.after, min(seconds, budget.spent))


@torch.no_grad()
def _halfway(student: nn.Module, refitted: nn.Module) -> nn.Module:
    """Between a network and what was refitted of it: the errors of the two are not alike, and partly cancel.
    On two sets of 250 images EfficientNet-Lite0 at 70 % was 0.72 and 0.92 nats from itself, refitted 0.69 and
    0.85, and halfway 0.66 and 0.80; networks that are small for the images are nearest refitted."""
    middle = copy.deepcopy(refitted)
    for one, before in zip(middle.parameters(), student.parameters(), strict=True):
        if one.is_floating_point():
            one.lerp_(before, 0.5)
    return middle


def _keep_going(budget: Seconds, report: Report, what: str, done: int, count: int) -> bool:
    report(budget.share, budget.words(f"{what} once more, layer {done + 1} of {count}"))
    return not budget.over and budget.share < REFINING_SHARE
