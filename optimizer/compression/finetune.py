"""Fine-tuning that wins accuracy back: the pruned model learns to answer as the dense one does.

No labels: calibration images, all that there are, flipped and shifted, are answered by the dense model, and
the pruned one follows (distillation, arXiv 1503.02531), in its answers and in what its blocks put out.
Weights that were pruned stay pruned. An eighth of the images is never trained on, the same that the
statistics hold out: pruning refits the layers to the others, and answers those almost as before. Of the
weights that do better on it than those before any training, the last are kept that are not clearly worse than
the best: so few images tell little, and what learnt longer generalises better in doubt.

A step moves each tensor by a share of its own size (:mod:`optimizer.compression.learner`). Which share is
found by trying: it differs more than tenfold between a network of thumbnails and a deep one of photographs.

The budget is a number of steps: every step, the learning rate and the looks at the images held out follow
from it, and the outcome does not depend on how fast the machine is or on whether it was stopped in between.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from optimizer.compression.blocks import blocks, distance, outputs_of
from optimizer.compression.calibration.moments import channels_last
from optimizer.compression.calibration.statistics import HELD_OUT, seen_and_held_out
from optimizer.compression.divergence import divergence, prepared
from optimizer.compression.learner import Learner
from optimizer.compression.quantize.held import HeldGrid
from optimizer.errors import InputError
from optimizer.model.layers import walk
from optimizer.progress import Report, is_enough, quiet, stop_if_cancelled
from optimizer.system.threads import pinned_threads

VERSION = 2
"""Raised with every change of what comes out."""
BATCH = 16
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""What a step may move a weight by at first, as a share of the root mean square of its tensor. They are tried
in this order, each from the start, as long as each does better than the one before."""
RATE = 1e-3
"""Where there are too few steps to try."""
TRIAL_SHARE = 20
"""A trial takes one in so many of the steps, within TRIAL_STEPS."""
TRIAL_STEPS = (4, 25)
MIN_TRIED = 40
"""Fewer steps are not spent on trials."""
BLOCKS_WEIGHT = 2.0
"""What the blocks' outputs count for beside the answers."""
FROZEN_SHARE = 0.012
"""The first layers stay as they are where they hold together at most this share of the weights."""
FROZEN_KEPT = 0.5
"""And pruning left at least this share of each. They are the ones whose gradients take longest."""
LOOKS = 8
LOOK_STEPS = (10, 50)
"""The images held out are looked at so often, with at least and at most so many steps between two looks: one
takes about as long as a step."""
MAX_HELD_OUT = 64
"""More of them would take longer to look at, and tell hardly more."""
SHIFT = 0.1
"""How far an image is moved at most, as a share of its width and height."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """The state that is kept, and what it took: fewer ``steps`` than asked for where they were ended by who
    asked, with the best until then.

    ``before`` and ``after`` are divergences (KL, nats) on the images held out. ``step_seconds`` is what a
    step took, looks included; 0 without steps.
    """

    state: dict[str, Tensor]
    before: float
    after: float
    steps: int
    step_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that fine-tuning depends on after ``step`` steps: going on from it gives bit for bit what going on
    without a stop does.

    ``state`` is the model's, with the weights behind codes in place of these, ``best`` the one to be kept so
    far, with divergence ``divergence`` on the images held out; ``lowest`` are the divergences of each of
    those when their mean was lowest; ``rate`` is the one found; ``updates`` and ``moments``, two for each
    parameter by name, are the optimiser's; ``random`` is the state of the generator that draws batches.
    """

    step: int
    state: dict[str, Tensor]
    best: dict[str, Tensor]
    divergence: float
    lowest: Tensor
    rate: float
    updates: int
    moments: dict[str, tuple[Tensor, Tensor]]
    random: Tensor


def forget(checkpoint: Checkpoint) -> None:
    """Keeps nothing."""


def look_steps(steps: int) -> int:
    """Steps between two looks at the images held out."""
    least, most = LOOK_STEPS
    return min(most, max(least, steps // LOOKS))


@pinned_threads()
def recover(
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    images: Tensor,
    steps: int,
    report: Report = quiet,
    begun: Checkpoint | None = None,
    keep: Callable[[Checkpoint], None] = forget,
    grids: Mapping[str, HeldGrid] | None = None,
) -> Recovered:
    """Fine-tune a copy of ``student`` for ``steps`` on ``images`` ``[N, C, H, W]``; both models stay as they
    were.

    ``masks``, by layer name, are True where a weight survived. ``grids``, likewise, are those that the
    student's weights lie on, and are to stay on. With 0 steps the student comes back as it is. ``keep`` is
    given a checkpoint at each look, and ``begun`` is such a one of the same fine-tuning, which was stopped:
    it goes on from there. Raises InputError for a budget below 0, or fewer than 16 images.
    """
    if steps < 0:
        raise InputError(f"{steps} fine-tuning steps are not allowed: give 0 (none) or more")
    if len(images) < 2 * HELD_OUT:
        raise InputError(f"{len(images)} images are too few to fine-tune on: give at least {2 * HELD_OUT}")
    model = copy.deepcopy(student).eval()  # batch norm, where any is left, keeps its statistics
    laid_out, images = channels_last(teacher, images)
    if laid_out is not teacher:
        teacher = laid_out
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained_on, held_out = seen_and_held_out(images)
    held_out = held_out[:MAX_HELD_OUT]
    wanted = _answers(teacher, held_out)

    def look() -> Tensor:
        pairs = zip(_answers(model, held_out).split(1), wanted.split(1), strict=True)
        return torch.stack([divergence(now, dense) for now, dense in pairs])

    lowest = look()
    before = after = lowest.mean().item()
    best, first, rate, words = _state(model), 0, RATE, "fine-tuning"
    made = 0
    kept = {layer.weight: masks[layer.name] for layer in walk(model) if layer.name in masks}
    grids = grids or {}
    held = {layer.weight: grids[layer.name] for layer in walk(model) if layer.name in grids}
    run = _Run(model, teacher, kept, held, trained_on)
    started = time.monotonic()
    with run.watched():
        if begun is not None and begun.step <= steps and _fits(begun.state, best):
            first, best, after = begun.step, begun.best, begun.divergence
            lowest, rate = begun.lowest, begun.rate
            words = f"fine-tuning, going on from step {first:,}"
            run.restore(begun)
            made = first
        tried = 0
        if not first and steps >= MIN_TRIED:
            rate, tried = run.rate_found(steps, look, report)
        for step in range(first + tried + 1, steps + 1):
            run.step(rate * (1 - (step - 1) / steps))
            made = step
            last = step == steps or is_enough()
            if step % look_steps(steps) and not last:
                continue
            now = look()
            if now.mean() < before and not _is_lower(lowest, now):
                after, best = now.mean().item(), _state(model)
            if now.mean() < lowest.mean():
                lowest = now
            if not last:
                keep(run.checkpoint(step, best, after, lowest, rate))
            seconds = (time.monotonic() - started) / (step - first)
            message = f"{words}: {step:,} of {steps:,} steps, {seconds:.2g} s each"
            report(step / steps, f"{message}, divergence {before:.3g} before and {after:.3g} now")
            if last:
                break
    taken = (time.monotonic() - started) / max(1, made - first)
    return Recovered(best, before, after, made, taken if made > first else 0.0)


@dataclass(eq=False)
class _Run:
    """A model that learns from ``teacher`` on ``images``.

    ``kept`` has the masks of its weights, ``held`` the grids of those that were rounded; ``paths`` are the
    blocks that are matched, and ``outputs`` what those of the model and of the teacher put out last.
    """

    model: nn.Module
    teacher: nn.Module
    kept: Mapping[nn.Parameter, Tensor]
    held: Mapping[nn.Parameter, HeldGrid]
    images: Tensor
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    learner: Learner = field(init=False)
    paths: tuple[str, ...] = field(init=False)
    outputs: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] = field(init=False, default=({}, {}))

    def __post_init__(self) -> None:
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        for parameter in _leading(self.model, self.kept):
            parameter.requires_grad_(False)
        learning = (one for one in self.model.parameters() if one.requires_grad)
        self.learner = Learner(learning, self.kept, self.held)
        self.paths = blocks(self.teacher)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While blocks' outputs are noted."""
        with outputs_of(self.model, self.paths) as own, outputs_of(self.teacher, self.paths) as wanted:
            self.outputs = own, wanted
            yield

    def step(self, rate: float) -> None:
        stop_if_cancelled()
        images = drawn(self.images, self.random)
        with torch.no_grad():
            wanted = prepared(self.teacher(images))
        loss = divergence(prepared(self.model(images)), wanted) / len(wanted)
        loss = loss + BLOCKS_WEIGHT * distance(*self.outputs)
        self.learner.descend(loss, rate)

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """The model's, with the weights behind codes in place of these."""
        exact = {
            name: self.learner.behind[one]
            for name, one in self.model.named_parameters(remove_duplicate=False)
            if one in self.learner.behind
        }
        return _state(self.model) | {name: one.contiguous() for name, one in exact.items()}

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(state)
        self.learner.round()

    def rate_found(self, steps: int, look: Callable[[], Tensor], report: Report) -> tuple[float, int]:
        """The smallest of RATES that does not clearly worse than the best in a trial, and the steps that all
        trials took. All is put back as it was."""
        least, most = TRIAL_STEPS
        trial = min(most, max(least, steps // TRIAL_SHARE))
        start, random = self.state(), self.random.get_state()
        found: list[Tensor] = []
        for rate in RATES:
            report(len(found) * trial / steps, f"fine-tuning: finding the step size, trying {rate:g}")
            for step in range(trial):  # slowing down, as in the end: what a large rate shakes up settles
                self.step(rate * (1 - step / trial))
            found.append(look())
            self.set_state(start)
            self.learner.optimiser.state.clear()
            self.random.set_state(random)
            if is_enough() or (len(found) > 1 and not found[-1].mean() < found[-2].mean()):
                break
        best = min(found, key=lambda one: one.mean().nan_to_num(math.inf).item())
        chosen = next(rate for rate, one in zip(RATES, found, strict=False) if not _is_lower(best, one))
        return chosen, len(found) * trial

    def checkpoint(
        self, step: int, best: dict[str, Tensor], after: float, lowest: Tensor, rate: float
    ) -> Checkpoint:
        moments, updates = {}, 0
        for name, parameter in self.model.named_parameters():
            known = self.learner.optimiser.state.get(parameter)
            if known:  # what is frozen, or no output depends on, has no gradient
                moments[name] = known["exp_avg"].clone(), known["exp_avg_sq"].clone()
                updates = int(known["step"])
        state, random = self.state(), self.random.get_state()
        return Checkpoint(step, state, best, after, lowest, rate, updates, moments, random)

    def restore(self, begun: Checkpoint) -> None:
        self.set_state(begun.state)
        self.random.set_state(begun.random)
        for name, parameter in self.model.named_parameters():
            if name in begun.moments:
                first, second = (torch.empty_like(parameter).copy_(one) for one in begun.moments[name])
                self.learner.optimiser.state[parameter] = {
                    "step": torch.tensor(float(begun.updates)),
                    "exp_avg": first,
                    "exp_avg_sq": second,
                }


def _leading(model: nn.Module, kept: Mapping[nn.Parameter, Tensor]) -> Iterator[nn.Parameter]:
    """The parameters of the first layers, see FROZEN_SHARE."""
    layers = list(walk(model))
    most, taken = FROZEN_SHARE * sum(layer.weight.numel() for layer in layers), 0
    for layer in layers:
        taken += layer.weight.numel()
        if taken > most or layer.weight not in kept or kept[layer.weight].float().mean() < FROZEN_KEPT:
            return
        yield from (one for one in (layer.weight, layer.bias) if one is not None)


def _is_lower(one: Tensor, other: Tensor) -> bool:
    """Whether divergences ``[N]`` of some images are, by more than their standard error, lower than others of
    the same ones."""
    gain = other - one
    return bool(gain.mean() > gain.std() / math.sqrt(len(gain)))


def _fits(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether both are states of one kind of model."""
    return {name: one.shape for name, one in state.items()} == {
        name: one.shape for name, one in other.items()
    }


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


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


@torch.inference_mode()
def _answers(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([prepared(model(part)) for part in images.split(BATCH)])
