"""Distillation: a compressed network learns to answer as the uncompressed one (arXiv 1503.02531).

The uncompressed network runs over the images and some mirrored and shifted copies first, and what it answers
and what its segments give is kept; so is what the first segments of the compressed one give, which hold next
to no weights, take most of the time, and stay as they are. Wide depthwise convolutions stay too: the
gradients of their few weights take longer than all else in their segment.

No labels, and nothing that was decided before changes: pruned weights stay pruned, rounded ones on their
grids. Buffers stay, and parameters move, also frozen ones: a frozen backbone, once pruned, has the most to
win back. An eighth of the images is held out, the same that the statistics hold out; what answers those most
nearly as the uncompressed network does is kept, and that may be what was there before.

How long it takes is up to a budget: seconds (:mod:`optimizer.compression.effort`) or steps
(:mod:`optimizer.compression.finetune`).

One class: its steps share the networks, what is kept of them and the best so far, so it stays one file.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from optimizer.compression.calibration.moments import both_channels_last
from optimizer.compression.calibration.statistics import HELD_OUT, seen_and_held_out
from optimizer.compression.divergence import divergence, is_classifier, prepared
from optimizer.compression.gradients import gradient_context
from optimizer.compression.learner import Learner, Moments
from optimizer.compression.quantize.held import HeldGrid
from optimizer.compression.segments import chains, outputs
from optimizer.model.layers import tensors, walk
from optimizer.progress import Report
from optimizer.tasks.outputs import is_logits

VERSION = 2
"""Raised with every change of what comes out."""
BATCH = 16
COPIES = (4, 16)
"""At most so many times the images are run, all but the first time mirrored and shifted: the more, the less
memory the outputs take."""
SHIFT = 0.1
"""How far an image is moved at most, as a share of its width and height."""
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""What a step may move a weight by at first, as a share of the root mean square of its tensor. They are tried
in this order, each from the start, as long as each does better than the one before."""
RATE = 1e-3
"""Where there is no time to try."""
ANSWERS_WEIGHT = 4.0
BLOCKS_WEIGHT = 2.0
"""What the answers count for, and what the segments' outputs do: the mean square of what is off, relative to
that of what is wanted."""
DIVERGENCE_WEIGHT = 2.0
MIN_SHOWN = 0.5
"""What the answers' divergence (KL) counts for, where the images show at least this share of the classes: by
it next to nothing is learnt of the others, and those are lost."""
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
MIN_IMAGES = 16
MAX_HELD_OUT = 64
"""More of them would take longer to look at, and tell hardly more."""
MAX_WORSE = 1.1
"""Of what was rounded once more: differences of divergences that are no larger tell little, on so few images.
What was only refitted and is further off has lost on others too."""
MAX_BYTES = 2**31
"""Of the outputs that are kept."""


class Budget(Protocol):
    """How long a network learns."""

    @property
    def trial_share(self) -> float:
        """Of the budget, for each of RATES; 0 where there is no time to try."""

    @property
    def share(self) -> float:
        """What is spent of it, 0 to 1."""

    @property
    def over(self) -> bool:
        """Looked at before every step. Raises Cancelled."""

    def has_shown(self, batches: int, given: int) -> bool:
        """Whether the uncompressed network has run long enough after so many batches, of which so many are no
        copies."""

    def stepped(self) -> None:
        """Told after every step."""

    def look_due(self) -> bool:
        """Whether the images held out are to be looked at now."""

    def words(self, divergences: str) -> str:
        """How far it is, and what was won so far."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that learning depends on after ``step`` steps, the first ``tried`` of which tried step sizes: going
    on from it gives bit for bit what going on without a stop does.

    ``started`` is the share of the budget that the trials took, ``rate`` what they found. ``now`` are what
    learns, of rounded weights those behind their codes, and ``mean`` is their running mean. ``best`` is the
    state to be kept so far, with divergence ``divergence`` on the images held out if its logits are
    multiplied by ``sharpness``. ``moments`` are the optimiser's, and ``random`` the state of the generator
    that draws batches.
    """

    step: int
    tried: int
    started: float
    rate: float
    now: tuple[Tensor, ...]
    mean: tuple[Tensor, ...]
    best: dict[str, Tensor]
    divergence: float
    sharpness: float
    moments: Moments
    random: Tensor


def learning(
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    images: Tensor,
    budget: Budget,
    report: Report,
    grids: Mapping[str, HeldGrid] | None = None,
) -> "Distillation":
    """A copy of ``student``, ready to be brought nearer to ``teacher`` on ``images`` ``[N, C, H, W]``; both
    models stay as they were.

    ``masks``, by layer name, are True where a weight survived. ``grids``, likewise, are those that the
    student's weights lie on, and are to stay on. Raises InputError for a student that can't learn.
    """
    context = gradient_context(student, images[:1])
    model = copy.deepcopy(student).eval()  # batch norm, where any is left, keeps its statistics
    teacher, images = both_channels_last(teacher, model, images)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    parts, originals = chains(model, teacher, images[:1])
    kept = {layer.weight: masks[layer.name] for layer in walk(model) if layer.name in masks}
    held = {layer.weight: grids[layer.name] for layer in walk(model) if grids and layer.name in grids}
    first = _first_to_learn(parts, kept)
    given = len(images)
    images, wanted = _kept_outputs(originals, first, images, budget, is_classifier(teacher))
    return Distillation(model, parts, first, images, given, wanted, kept, held, budget, report, context)


def _kept_outputs(
    parts: Sequence[nn.Module], first: int, images: Tensor, budget: Budget, classifier: bool
) -> tuple[Tensor, dict[int, Tensor]]:
    """The images, then mirrored and shifted copies of those that are not held out, as many as there is time
    for; and what the parts from ``first`` on give for them, by place, of the last prepared.

    Large outputs are left out where they would not fit into memory with the small ones.
    """
    sizes, value = [], images[:1]
    for part in parts:
        value = outputs(part, value)
        sizes.append(value.nbytes)
    least, most = COPIES
    fitting = int(MAX_BYTES / (len(images) * sum(sizes[first:])))
    copies = max(least, min(most, fitting))
    room, found = MAX_BYTES / (copies * len(images)), dict[int, list[Tensor]]()
    for index in sorted(range(first, len(parts)), key=lambda one: (one + 1 < len(parts), sizes[one])):
        room -= sizes[index]
        if room > 0 or not found:
            found[index] = []
    learnt_from, _ = seen_and_held_out(images)
    random = torch.Generator().manual_seed(0)
    changed = (drawn(learnt_from, random) for _ in range((copies - 1) * len(images) // BATCH))
    taken: list[Tensor] = []
    for batch in chain(images.split(BATCH), changed):
        value = batch
        for index, part in enumerate(parts):
            value = outputs(part, value)
            if index in found:
                found[index].append(value)
        taken.append(batch)
        if budget.has_shown(len(taken), len(images)):
            break
    whole = {index: torch.cat(values) for index, values in found.items()}
    return torch.cat(taken), whole | {len(parts) - 1: prepared(whole[len(parts) - 1], classifier)}


def drawn(images: Tensor, random: torch.Generator) -> Tensor:
    """A batch of examples; of images half are mirrored, and all are shifted by a little."""
    batch = images[torch.randint(len(images), (min(BATCH, len(images)),), generator=random)]
    if images.dim() != 4:
        return batch
    mirrored = torch.rand(len(batch), generator=random) < 0.5
    batch[mirrored] = batch[mirrored].flip(-1)
    down, across = (max(1, round(SHIFT * size)) for size in batch.shape[2:])
    padded = functional.pad(batch, (across, across, down, down), mode="replicate")
    top, left = (int(torch.randint(2 * most + 1, (), generator=random)) for most in (down, across))
    return padded[:, :, top : top + batch.shape[2], left : left + batch.shape[3]]


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
class Distillation:
    """The ``parts`` of ``model`` from ``first`` on learn to give what is ``wanted`` after each on ``images``,
    the first ``given`` of which are no copies.

    ``kept`` has the masks of weights, ``held`` the grids of those that were rounded; ``best`` is the state
    that answers the images held out most nearly as is wanted. ``before`` and ``after`` are divergences (KL,
    nats) on those, of logits that are as sharp as suits them: being sharper or blunter makes no answer
    another. ``suits`` is how sharp that is of what all began from, ``sharpness`` of the best. Gradients are
    had within the ``context`` of :func:`optimizer.compression.gradients.gradient_context`.
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
    context: Callable[[], AbstractContextManager[None]]
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    inputs: Tensor = field(init=False)
    divergence_weight: float = field(init=False)
    best: dict[str, Tensor] = field(init=False)
    sharpness: float = field(init=False, default=1.0)
    suits: float = field(init=False)
    logits: bool = field(init=False)
    before: float = field(init=False)
    after: float = field(init=False)

    def __post_init__(self) -> None:
        indices = torch.arange(len(self.images))
        held_out = (indices % HELD_OUT == HELD_OUT - 1) & (indices < self.given)
        self.seen, self.held_out = indices[~held_out], indices[held_out][:MAX_HELD_OUT]
        self.answers = self.wanted[len(self.parts) - 1]
        self.logits = is_classifier(self.model) and is_logits(self.answers)
        shown = _shown(self.answers[: self.given]) if self.logits else 0.0
        self.divergence_weight = DIVERGENCE_WEIGHT if shown >= MIN_SHOWN else 0.0
        self.begin()

    def begin(self) -> None:
        """From the state that the model has."""
        self.inputs = self.images
        for part in self.parts[: self.first]:
            self.inputs = outputs(part, self.inputs)
        self.before, self.suits = self.divergence()
        self.after, self.best = self.before, _state(self.model)

    def compare(self, original: nn.Module, *between: nn.Module) -> None:
        """``original``, which the model was made of, is what was there before. All begins from one of
        ``between`` where that answers more nearly than the model, and from ``original`` where that does so by
        far; where by little, it is the best so far."""
        before, *others = (
            self.apart(outputs(one, self.images[self.held_out]))[0] for one in (original, *between)
        )
        nearest, start = min([(self.after, None), *zip(others, between, strict=True)], key=lambda one: one[0])
        if not nearest < (MAX_WORSE if self.held else 1.0) * before:
            start = original
        if start is not None:
            self.model.load_state_dict(start.state_dict())
            self.begin()
        if start is original:
            return
        if before < self.after:
            self.best, self.after = _state(original), before
        else:
            self.sharpness = self.suits
        self.before = before

    def run(
        self, begun: Checkpoint | None = None, keep: Callable[[Checkpoint], None] = lambda checkpoint: None
    ) -> None:
        """Until the budget is spent. ``keep`` is given a checkpoint at each look, and ``begun`` is such a one
        of the same network on the same images, which was stopped: it goes on from there."""
        self.tell()
        learner = Learner(self.learning(), self.kept, self.held)
        if begun is None:
            rate, tried = self.rate_found(learner)
            started, step, mean = self.budget.share, tried, learner.state()
        else:
            rate, tried, started, step = begun.rate, begun.tried, begun.started, begun.step
            self.best, self.after, self.sharpness = begun.best, begun.divergence, begun.sharpness
            learner.set_state(begun.now)
            learner.set_moments(begun.moments)
            self.random.set_state(begun.random)
            mean = [one.clone() for one in begun.mean]
        while not self.budget.over:
            self.descend(learner, rate, started, 1 - started)
            step += 1
            for average, one in zip(mean, learner.state(), strict=True):
                average.lerp_(one, AVERAGING / (AVERAGING + step - tried - 1))
            if self.budget.look_due():
                now = learner.state()
                learner.set_state(mean)
                self.keep_better()
                learner.set_state(now)
                moments, random = learner.moments(), self.random.get_state()
                known = tuple(now), tuple(one.clone() for one in mean), self.best, self.after, self.sharpness
                keep(Checkpoint(step, tried, started, rate, *known, moments, random))
                self.tell()
        learner.set_state(mean)
        self.keep_better()
        self.sharpen()
        self.tell()

    def descend(self, learner: Learner, rate: float, begun: float, length: float) -> None:
        """A step that is the smaller the more of ``length`` of the budget is spent since the share
        ``begun``."""
        done = (self.budget.share - begun) / max(length, 1e-9)
        with self.context():
            self.loss().backward()
        learner.descend(rate * max(0.0, 1 - done))
        self.budget.stepped()

    def learning(self) -> list[nn.Parameter]:
        """What the parts from ``first`` on hold, those before do not, and is worth its time."""
        known = {one for part in self.parts[: self.first] for one in part.parameters()}
        for layer in walk(self.model):
            if layer.kind == "depthwise convolution" and layer.weight[0].numel() > WIDE_KERNEL:
                known |= set(layer.module.parameters())  # torch works out the gradients of both at once
        own = dict.fromkeys(one for part in self.parts[self.first :] for one in part.parameters())
        return [one for one in own if one not in known and one.is_floating_point()]

    def loss(self) -> Tensor:
        """Of some images: how far the answers are from those wanted, and the outputs of the parts."""
        some = self.seen[torch.randint(len(self.seen), (BATCH,), generator=self.random)]
        value, distances = self.inputs[some], []
        for index in range(self.first, len(self.parts) - 1):
            value = self.parts[index](value)
            if index in self.wanted:
                distances.append(_relative(value, self.wanted[index][some]))
        answers, wanted = self.parts[-1](value), self.answers[some]
        apart = ANSWERS_WEIGHT * _relative(*map(self.centred, (answers, wanted)))
        if self.divergence_weight:
            apart = apart + self.divergence_weight * divergence(prepared(answers), wanted) / len(wanted)
        return apart + BLOCKS_WEIGHT * torch.stack(distances).mean() if distances else apart

    def centred(self, answers: Tensor) -> Tensor:
        """Logits less what all of an example have in common, which makes no answer another."""
        return answers - answers.mean(1, keepdim=True) if self.logits else answers

    def rate_found(self, learner: Learner) -> tuple[float, int]:
        """The one of RATES that did best in a short trial, and the steps of all trials; all is put back as it
        was."""
        start, random = learner.state(), self.random.get_state()
        length, found, steps = self.budget.trial_share, list[float](), 0
        for rate in RATES if length else ():
            begun = self.budget.share
            while not self.budget.over and self.budget.share - begun < length * (1 - 1e-6):
                self.descend(learner, rate, begun, length)
                steps += 1
            found.append(self.keep_better())
            self.tell()
            learner.set_state(start)
            learner.optimiser.state.clear()
            self.random.set_state(random)
            if self.budget.over or (len(found) > 1 and not found[-1] < found[-2]):
                break
        return (RATES[min(range(len(found)), key=lambda index: found[index])] if found else RATE), steps

    def divergence(self) -> tuple[float, float]:
        """On the images held out, with logits as sharp as suits them; and what they are multiplied by."""
        value = self.inputs[self.held_out]
        for part in self.parts[self.first :]:
            value = outputs(part, value)
        return self.apart(value)

    def apart(self, value: Tensor) -> tuple[float, float]:
        """The same of what a network gives for them."""
        wanted = self.answers[self.held_out]
        found = {
            factor: divergence(prepared(value * factor, self.logits), wanted, self.logits)
            .nan_to_num(math.inf)
            .item()
            / len(value)
            for factor in (SHARPNESS if self.logits else (1.0,))
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
        self.model.load_state_dict(self.best, strict=False)
        wanted = self.sharpness * outputs(self.model, self.images[:1])
        with torch.no_grad():
            for one in (last.weight, last.bias):
                if one is not None:
                    one.mul_(self.sharpness)
        if torch.allclose(outputs(self.model, self.images[:1]), wanted, rtol=1e-3, atol=1e-3):
            self.best = _state(self.model)

    def tell(self) -> None:
        divergences = f"divergence {self.before:.3g} before and {self.after:.3g} so far"
        self.report(min(1.0, self.budget.share), self.budget.words(divergences))


def _shown(answers: Tensor) -> float:
    """The share of the classes that are the answer to any example."""
    return len(answers.argmax(1).unique()) / answers.shape[1]


def _relative(outputs: Tensor, wanted: Tensor) -> Tensor:
    """The square of what is off, as a share of the square of what is wanted."""
    return (outputs - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: one.detach().clone(memory_format=torch.contiguous_format)
        for name, one in tensors(model).items()
    }
