"""Fine-tuning: distillation (:mod:`optimizer.compression.distillation`) for a number of steps.

Every step, the learning rate and the looks at the images held out follow from that number: the outcome does
not depend on how fast the machine is, or on whether it was stopped in between.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from optimizer.compression.distillation import BATCH, MIN_IMAGES, Checkpoint, learning
from optimizer.compression.quantize.held import HeldGrid
from optimizer.errors import InputError
from optimizer.formats import significant
from optimizer.model.layers import tensors
from optimizer.progress import Report, is_enough, quiet, stop_if_cancelled
from optimizer.system.memory import kept_memory
from optimizer.system.threads import pinned_threads

TRIAL_SHARE = 20
"""A trial of a step size takes one in so many of the steps, within TRIAL_STEPS."""
TRIAL_STEPS = (4, 25)
SHOWN_SHARE = 0.25
"""Batches that the uncompressed network runs on, for each step: one takes about as long as a step."""
MIN_TRIED = 40
"""Fewer steps are not spent on trials."""
LOOKS = 8
LOOK_STEPS = (10, 50)
"""The images held out are looked at so often, with at least and at most so many steps between two looks: one
takes about as long as a step."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """The state that is kept, and what it took: fewer ``steps`` than asked for where they were ended by who
    asked, with the best until then.

    ``before`` and ``after`` as in :class:`optimizer.compression.distillation.Distillation`. ``step_seconds``
    is what a step took, looks and the uncompressed network's outputs included; 0 without steps.
    """

    state: dict[str, Tensor]
    before: float
    after: float
    steps: int
    step_seconds: float = 0.0


def look_steps(steps: int) -> int:
    """Steps between two looks at the images held out."""
    least, most = LOOK_STEPS
    return min(most, max(least, steps // LOOKS))


@dataclass(eq=False)
class Steps:
    """So many steps, of which ``made`` were made before, or until who asked takes the best so far."""

    steps: int
    made: int
    before: int = field(init=False)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.before, self.began = self.made, time.monotonic()

    @property
    def trial_share(self) -> float:
        least, most = TRIAL_STEPS
        return min(most, max(least, self.steps // TRIAL_SHARE)) / self.steps if self.steps >= MIN_TRIED else 0

    @property
    def share(self) -> float:
        return self.made / self.steps if self.steps else 1.0

    @property
    def over(self) -> bool:
        stop_if_cancelled()
        return is_enough() or self.made >= self.steps

    @property
    def step_seconds(self) -> float:
        made = self.made - self.before
        return (time.monotonic() - self.began) / made if made else 0.0

    def has_shown(self, batches: int, given: int) -> bool:
        stop_if_cancelled()
        return is_enough() or (batches >= SHOWN_SHARE * self.steps and batches * BATCH >= given)

    def stepped(self) -> None:
        self.made += 1

    def look_due(self) -> bool:
        return self.made % look_steps(self.steps) == 0 and self.made < self.steps

    def words(self, divergences: str) -> str:
        begun = f", going on from step {self.before:,}" if self.before else ""
        made = f"{self.made:,} of {self.steps:,} steps"
        took = f", {significant(self.step_seconds, 2)} s each" if self.made > self.before else ""
        return f"fine-tuning{begun}: {made}{took}, {divergences}"


@kept_memory()
@pinned_threads()
def recover(
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    images: Tensor,
    steps: int,
    report: Report = quiet,
    begun: Checkpoint | None = None,
    keep: Callable[[Checkpoint], None] = lambda checkpoint: None,
    grids: Mapping[str, HeldGrid] | None = None,
) -> Recovered:
    """Bring a copy of ``student`` nearer to ``teacher`` by ``steps``; see
    :func:`optimizer.compression.distillation.learning`.

    With 0 steps the student comes back as it is. ``keep`` is given a checkpoint at each look, and ``begun``
    is such a one of the same fine-tuning, which was stopped: it goes on from there. Raises InputError for
    fewer than 16 images, or a student that can't learn.
    """
    if len(images) < MIN_IMAGES:
        raise InputError(f"{len(images)} images are too few to fine-tune on: give at least {MIN_IMAGES}")
    if begun is not None and (begun.step > steps or not fits(begun.best, tensors(student))):
        begun = None
    budget = Steps(steps, begun.step if begun else 0)
    run = learning(student, teacher, masks, images, budget, report, grids)
    run.run(begun, keep)
    return Recovered(run.best, run.before, run.after, budget.made, budget.step_seconds)


def fits(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether both are states of one kind of model."""
    return {name: one.shape for name, one in state.items()} == {
        name: one.shape for name, one in other.items()
    }
