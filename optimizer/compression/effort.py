"""Best effort: within a budget of seconds, a compressed network learns to answer as the uncompressed one.

It is fine-tuning (:mod:`optimizer.compression.finetune`) with what can be left out left out, so that a step
takes a third of the time. The uncompressed network runs over the images and some mirrored and shifted copies
first, and what it answers and what its segments give is kept; so is what the first segments of the compressed
one give, which hold next to no weights, take most of the time, and stay as they are. Wide depthwise
convolutions stay too: the gradients of their few weights take longer than all else in their segment.

No labels, and nothing that was decided before changes: pruned weights stay pruned, rounded ones on their
grids. An eighth of the images is held out, the same that the statistics hold out; what answers those most
nearly as the uncompressed network does is kept, and that may be what was there before.

Another machine, or ending it early, gives another network: what came of it is kept
(:mod:`optimizer.compression.calibration.cache`), for as long as that cache is.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from optimizer.compression.calibration.moments import channels_last
from optimizer.compression.calibration.statistics import HELD_OUT, seen_and_held_out
from optimizer.compression.divergence import divergence, prepared
from optimizer.compression.finetune import drawn
from optimizer.compression.learner import Learner
from optimizer.compression.quantize.held import HeldGrid
from optimizer.compression.segments import outputs, segments
from optimizer.errors import InputError
from optimizer.model.layers import walk
from optimizer.progress import Report, is_enough, quiet, stop_if_cancelled
from optimizer.system.threads import pinned_threads
from optimizer.tasks.outputs import is_logits

VERSION = 2
"""Raised with every change of what comes out."""
BATCH = 16
TEACHER_SHARE = 0.2
"""Of the budget: what the uncompressed network's outputs on the images take."""
COPIES = 4
"""At most so many times the images are run, all but the first time mirrored and shifted."""
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
"""What a step may move a weight by at first, as a share of the root mean square of its tensor. They are tried
in this order, each from the start, as long as each does better than the one before."""
TRIAL_SHARE = 0.04
"""Of the budget, for each."""
ANSWERS_WEIGHT = 4.0
BLOCKS_WEIGHT = 2.0
"""What the answers count for, and what the segments' outputs do: the mean square of what is off, relative to
that of what is wanted. By their divergence (KL) answers would learn next to nothing of the classes that no
image shows, and lose those."""
AVERAGING = 3
"""What is kept is the mean over all steps, of which the ``t``-th counts for ``t^2`` (arXiv 1212.1824)."""
SHARPNESS = tuple(2 ** (power / 12) for power in range(-6, 13))
"""What logits may be multiplied by in the end: least squares makes them shrink."""
FROZEN_SHARE = 0.012
"""The first segments stay as they are where they hold together at most this share of the weights."""
FROZEN_KEPT = 0.5
"""And pruning left at least this share of each of their layers'."""
WIDE_KERNEL = 9
"""Depthwise convolutions of more weights a channel stay as they are."""
LOOKS = 8
"""How often the images held out are looked at."""
MIN_IMAGES = 16
MAX_BYTES = 2**31
"""Of the outputs that are kept."""


@dataclass(frozen=True, slots=True)
class Improved:
    """The state that is kept, and the seconds it took.

    ``before`` and ``after`` are divergences (KL, nats) on the images held out, of logits that are as sharp as
    suits them: being sharper or blunter makes no answer another.
    """

    state: dict[str, Tensor]
    before: float
    after: float
    seconds: float


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
) -> Improved:
    """Bring a copy of ``student`` nearer to ``teacher`` on ``images`` ``[N, C, H, W]``, for ``seconds`` of
    ``clock``; both models stay as they were.

    ``masks``, by layer name, are True where a weight survived. ``grids``, likewise, are those that the
    student's weights lie on, and are to stay on. Ends early where :func:`optimizer.progress.is_enough`.
    Raises InputError for a budget below 0, or fewer than 16 images.
    """
    if seconds < 0:
        raise InputError(f"{seconds:g} seconds of best effort are not allowed: give 0 (none) or more")
    if len(images) < MIN_IMAGES:
        raise InputError(
            f"{len(images)} images are too few for best effort: give at least {MIN_IMAGES}, or take fast"
        )
    budget = Budget(seconds, clock)
    model = copy.deepcopy(student).eval()
    laid_out, images = channels_last(teacher, images)
    if laid_out is not teacher:
        teacher = laid_out
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    parts, originals = _chains(model, teacher, images[:1])
    kept = {layer.weight: masks[layer.name] for layer in walk(model) if layer.name in masks}
    held = {layer.weight: grids[layer.name] for layer in walk(model) if grids and layer.name in grids}
    first = _first_to_learn(parts, kept)
    given = len(images)
    images, wanted = _kept_outputs(originals, first, images, budget)
    search = _Search(model, parts, first, images, given, wanted, kept, held, budget, report)
    search.run()
    return Improved(search.best, search.before, search.after, min(seconds, budget.spent))


@dataclass(eq=False)
class Budget:
    """So many seconds of ``clock`` from now on, or until who asked takes the best so far."""

    seconds: float
    clock: Callable[[], float]
    begun: float = field(init=False)

    def __post_init__(self) -> None:
        self.begun = self.clock()

    @property
    def spent(self) -> float:
        return self.clock() - self.begun

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - self.spent)

    @property
    def over(self) -> bool:
        """Looked at before every step."""
        stop_if_cancelled()
        return is_enough() or self.spent >= self.seconds


def _chains(model: nn.Module, teacher: nn.Module, image: Tensor) -> tuple[list[nn.Module], list[nn.Module]]:
    """The segments of both, joined where their outputs differ in shape (channels were removed)."""
    chains = segments(model, image), segments(teacher, image)
    if len(chains[0]) != len(chains[1]):
        return [model], [teacher]
    joined: tuple[list[nn.Module], list[nn.Module]] = [], []
    parts: tuple[list[nn.Module], list[nn.Module]] = [], []
    values = [image, image]
    for index, pair in enumerate(zip(*chains, strict=True)):
        for side, part in enumerate(pair):
            values[side] = outputs(part, values[side])
            parts[side].append(part)
        if values[0].shape == values[1].shape or index + 1 == len(chains[0]):
            for side in (0, 1):
                joined[side].append(nn.Sequential(*parts[side]))
                parts[side].clear()
    return joined


def _kept_outputs(
    parts: Sequence[nn.Module], first: int, images: Tensor, budget: Budget
) -> tuple[Tensor, dict[int, Tensor]]:
    """The images, then mirrored and shifted copies of those that are not held out, as many as there is time
    for; and what the parts from ``first`` on give for them, by place, of the last prepared.

    Large outputs are left out where they would not fit into memory with the small ones.
    """
    sizes, value = [], images[:1]
    for part in parts:
        value = outputs(part, value)
        sizes.append(value.nbytes)
    room, found = MAX_BYTES / (COPIES * len(images)), dict[int, list[Tensor]]()
    for index in sorted(range(first, len(parts)), key=lambda one: (one + 1 < len(parts), sizes[one])):
        room -= sizes[index]
        if room > 0 or not found:
            found[index] = []
    learnt_from, _ = seen_and_held_out(images)
    random = torch.Generator().manual_seed(0)
    copies = (drawn(learnt_from, random) for _ in range((COPIES - 1) * len(images) // BATCH))
    taken: list[Tensor] = []
    for batch in chain(images.split(BATCH), copies):
        value = batch
        for index, part in enumerate(parts):
            value = outputs(part, value)
            if index in found:
                found[index].append(value)
        taken.append(batch)
        if budget.over or budget.spent > TEACHER_SHARE * budget.seconds:
            break
    whole = {index: torch.cat(values) for index, values in found.items()}
    return torch.cat(taken), whole | {len(parts) - 1: prepared(whole[len(parts) - 1])}


def _first_to_learn(parts: Sequence[nn.Module], kept: Mapping[nn.Parameter, Tensor]) -> int:
    """The first part that learns, see FROZEN_SHARE; its inputs then never change."""
    sizes = [sum(one.numel() for one in part.parameters()) for part in parts]
    for index, part in enumerate(parts[:-1]):
        spared = all(_is_spared(one, kept) for one in part.parameters())
        if not spared or sum(sizes[: index + 1]) > FROZEN_SHARE * sum(sizes):
            return index
    return len(parts) - 1


def _is_spared(parameter: nn.Parameter, kept: Mapping[nn.Parameter, Tensor]) -> bool:
    """Whether pruning left at least half of it."""
    return parameter not in kept or bool(kept[parameter].float().mean() >= FROZEN_KEPT)


@dataclass(eq=False)
class _Search:
    """The ``parts`` of ``model`` from ``first`` on learn to give what is ``wanted`` after each on ``images``,
    the first ``given`` of which are no copies.

    ``kept`` has the masks of weights, ``held`` the grids of those that were rounded; ``best`` is the state
    that answers the images held out most nearly as is wanted.
    """

    model: nn.Module
    parts: Sequence[nn.Module]
    first: int
    images: Tensor
    given: int
    wanted: Mapping[int, Tensor]
    kept: Mapping[nn.Parameter, Tensor]
    held: Mapping[nn.Parameter, HeldGrid]
    budget: Budget
    report: Report
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    inputs: Tensor = field(init=False)
    best: dict[str, Tensor] = field(init=False)
    sharpness: float = field(init=False, default=1.0)
    before: float = field(init=False)
    after: float = field(init=False)

    def __post_init__(self) -> None:
        indices = torch.arange(len(self.images))
        held_out = (indices % HELD_OUT == HELD_OUT - 1) & (indices < self.given)
        self.seen, self.held_out = indices[~held_out], indices[held_out]
        self.answers = self.wanted[len(self.parts) - 1]
        self.inputs = self.images
        for part in self.parts[: self.first]:
            self.inputs = outputs(part, self.inputs)
        self.before, _ = self.divergence()
        self.after, self.best = self.before, _state(self.model)

    def run(self) -> None:
        self.tell()
        learner = Learner(self.learning(), self.kept, self.held)
        rate = self.rate_found(learner)
        begun, left, looks, steps = self.budget.spent, max(self.budget.left, 1e-9), 1, 0
        average = learner.state()
        while not self.budget.over and (done := (self.budget.spent - begun) / left) < 1:
            if done >= looks / LOOKS:
                looks += 1
                now = learner.state()
                learner.set_state(average)
                self.keep_better()
                learner.set_state(now)
                self.tell()
            learner.descend(self.loss(), rate * (1 - done))
            steps += 1
            for mean, one in zip(average, learner.state(), strict=True):
                mean.lerp_(one, AVERAGING / (AVERAGING + steps - 1))
        learner.set_state(average)
        self.keep_better()
        self.sharpen()
        self.tell()

    def learning(self) -> list[nn.Parameter]:
        """What the parts from ``first`` on hold, those before do not, and is worth its time."""
        known = {one for part in self.parts[: self.first] for one in part.parameters()}
        for layer in walk(self.model):
            if layer.kind == "depthwise convolution" and layer.weight[0].numel() > WIDE_KERNEL:
                known |= set(layer.module.parameters())  # torch works out the gradients of both at once
        own = dict.fromkeys(one for part in self.parts[self.first :] for one in part.parameters())
        return [one for one in own if one not in known]

    def loss(self) -> Tensor:
        """Of some images: how far the answers are from those wanted, and the outputs of the parts."""
        some = self.seen[torch.randint(len(self.seen), (BATCH,), generator=self.random)]
        value, distances = self.inputs[some], []
        for index in range(self.first, len(self.parts) - 1):
            value = self.parts[index](value)
            if index in self.wanted:
                distances.append(_relative(value, self.wanted[index][some]))
        apart = ANSWERS_WEIGHT * _relative(_centred(self.parts[-1](value)), _centred(self.answers[some]))
        return apart + BLOCKS_WEIGHT * torch.stack(distances).mean() if distances else apart

    def rate_found(self, learner: Learner) -> float:
        """The one of RATES that did best in a short trial; all is put back as it was."""
        start, random = learner.state(), self.random.get_state()
        found: list[float] = []
        for rate in RATES:
            begun = self.budget.spent
            while not self.budget.over:
                done = (self.budget.spent - begun) / (TRIAL_SHARE * self.budget.seconds)
                if done >= 1:
                    break
                learner.descend(self.loss(), rate * (1 - done))
            found.append(self.keep_better())
            self.tell()
            learner.set_state(start)
            learner.optimiser.state.clear()
            self.random.set_state(random)
            if self.budget.over or (len(found) > 1 and not found[-1] < found[-2]):
                break
        return RATES[min(range(len(found)), key=lambda index: found[index])]

    def divergence(self) -> tuple[float, float]:
        """On the images held out, with logits as sharp as suits them; and what they are multiplied by."""
        value = self.inputs[self.held_out]
        for part in self.parts[self.first :]:
            value = outputs(part, value)
        wanted = self.answers[self.held_out]
        found = {
            factor: divergence(prepared(value * factor), wanted).nan_to_num(math.inf).item() / len(value)
            for factor in (SHARPNESS if is_logits(value) else (1.0,))
        }
        best = min(found, key=lambda factor: found[factor])
        return found[best], best

    def keep_better(self) -> float:
        now, sharpness = self.divergence()
        if now < self.after:
            self.after, self.sharpness, self.best = now, sharpness, _state(self.model)
        return now

    def sharpen(self) -> None:
        """Make the logits of the best as sharp as suits them, where the last layer makes them, on no grid."""
        last = list(walk(self.model))[-1]
        if last.weight in self.held:
            return
        self.model.load_state_dict(self.best)
        wanted = self.sharpness * outputs(self.model, self.images[:1])
        with torch.no_grad():
            for one in (last.weight, last.bias):
                if one is not None:
                    one.mul_(self.sharpness)
        if torch.allclose(outputs(self.model, self.images[:1]), wanted, rtol=1e-3, atol=1e-3):
            self.best = _state(self.model)

    def tell(self) -> None:
        self.report(
            min(1.0, self.budget.spent / max(self.budget.seconds, 1e-9)),
            f"best effort: divergence {self.before:.3g} before and {self.after:.3g} so far, "
            f"{self.budget.left:.0f} s left",
        )


def _centred(outputs: Tensor) -> Tensor:
    """Logits less what all of an example have in common, which makes no answer another."""
    return outputs - outputs.mean(1, keepdim=True) if is_logits(outputs) else outputs


def _relative(outputs: Tensor, wanted: Tensor) -> Tensor:
    """The square of what is off, as a share of the square of what is wanted."""
    return (outputs - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.state_dict().items()}
