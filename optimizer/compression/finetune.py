"""Fine-tuning that wins accuracy back: the pruned model learns to answer as the dense one does.

No labels: calibration images, flipped and shifted, are answered by the dense model, and the pruned one
follows (distillation, arXiv 1503.02531). Weights that were pruned stay pruned. An eighth of the images is
never trained on; the weights that do best on it are the ones that are kept, and those before any training
count too.

The budget is a number of steps: every step, the learning rate and the looks at the images held out follow
from it, and the outcome does not depend on how fast the machine is or on whether it was stopped in between.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from optimizer.compression.divergence import divergence, prepared
from optimizer.errors import InputError
from optimizer.model.layers import walk
from optimizer.progress import Report, quiet
from optimizer.system.threads import pinned_threads

BATCH = 16
LEARNING_RATE = 3e-4
HELD_OUT = 8
"""One image of so many is held out."""
LOOK_STEPS = 50
"""Steps between two looks at the images held out. A look takes about as long as a step."""
SHIFT = 0.1
"""How far an image is moved at most, as a share of its width and height."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """The state that answers the images held out most like the dense model, and what it took.

    ``before`` and ``after`` are divergences (KL, nats) on those images. ``step_seconds`` is what a step took,
    looks included; 0 without steps.
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

    ``state`` is the model's, ``best`` the one so far that is best on the images held out, with divergence
    ``divergence``; ``moments`` are the optimiser's, two for each parameter by name; ``random`` is the state
    of the generator that draws batches.
    """

    step: int
    state: dict[str, Tensor]
    best: dict[str, Tensor]
    divergence: float
    moments: dict[str, tuple[Tensor, Tensor]]
    random: Tensor


def forget(checkpoint: Checkpoint) -> None:
    """Keeps nothing."""


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
) -> Recovered:
    """Fine-tune a copy of ``student`` for ``steps`` on ``images`` ``[N, C, H, W]``; both models stay as they
    were.

    ``masks``, by layer name, are True where a weight survived. With 0 steps the student comes back as it is.
    ``keep`` is given a checkpoint at each look, and ``begun`` is such a one of the same fine-tuning, which
    was stopped: it goes on from there. Raises InputError for a budget below 0, or fewer than 16 images.
    """
    if steps < 0:
        raise InputError(f"{steps} fine-tuning steps are not allowed: give 0 (none) or more")
    if len(images) < 2 * HELD_OUT:
        raise InputError(f"{len(images)} images are too few to fine-tune on: give at least {2 * HELD_OUT}")
    held_out, trained_on = images[::HELD_OUT], _without_every(images, HELD_OUT)
    model = copy.deepcopy(student).eval()  # batch norm, where any is left, keeps its statistics
    kept = {layer.weight: masks[layer.name] for layer in walk(model) if layer.name in masks}
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    wanted = _answers(teacher, held_out)
    before = divergence = _divergence(_answers(model, held_out), wanted)
    best, first, words = _state(model), 0, "fine-tuning"
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0)
    random = torch.Generator().manual_seed(0)
    if begun is not None and begun.step <= steps and _fits(begun.state, best):
        first, best, divergence = begun.step, begun.best, begun.divergence
        words = f"fine-tuning, going on from step {first:,}"
        _restore(begun, model, optimiser, random)
    started = time.monotonic()
    for step in range(first + 1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * (1 - (step - 1) / steps)
        _step(model, teacher, _draw(trained_on, random), optimiser)
        with torch.no_grad():
            for weight, mask in kept.items():
                weight.mul_(mask)
        if step % LOOK_STEPS and step < steps:
            continue
        now = _divergence(_answers(model, held_out), wanted)
        if now < divergence:
            divergence, best = now, _state(model)
        if step < steps:
            keep(_checkpoint(step, model, best, divergence, optimiser, random))
        seconds = (time.monotonic() - started) / (step - first)
        message = f"{words}: {step:,} of {steps:,} steps, {seconds:.2g} s each"
        report(step / steps, f"{message}, divergence {before:.3g} before and {divergence:.3g} now")
    taken = (time.monotonic() - started) / max(1, steps - first)
    return Recovered(best, before, divergence, steps, taken if steps > first else 0.0)


def _checkpoint(
    step: int,
    model: nn.Module,
    best: dict[str, Tensor],
    divergence: float,
    optimiser: torch.optim.Optimizer,
    random: torch.Generator,
) -> Checkpoint:
    moments = {
        name: (
            optimiser.state[parameter]["exp_avg"].clone(),
            optimiser.state[parameter]["exp_avg_sq"].clone(),
        )
        for name, parameter in model.named_parameters()
        if optimiser.state[parameter]  # a parameter that no output depends on has no gradient
    }
    return Checkpoint(step, _state(model), best, divergence, moments, random.get_state())


def _restore(
    begun: Checkpoint, model: nn.Module, optimiser: torch.optim.Optimizer, random: torch.Generator
) -> None:
    model.load_state_dict(begun.state)
    random.set_state(begun.random)
    for name, parameter in model.named_parameters():
        if name in begun.moments:
            first, second = (moment.clone() for moment in begun.moments[name])
            optimiser.state[parameter] = {
                "step": torch.tensor(float(begun.step)),
                "exp_avg": first,
                "exp_avg_sq": second,
            }


def _fits(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether both are states of one kind of model."""
    return {name: one.shape for name, one in state.items()} == {
        name: one.shape for name, one in other.items()
    }


def _without_every(images: Tensor, step: int) -> Tensor:
    return images[[index for index in range(len(images)) if index % step]]


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _draw(images: Tensor, random: torch.Generator) -> Tensor:
    """A batch of images, half of them mirrored, all of them shifted by a little."""
    batch = images[torch.randint(len(images), (min(BATCH, len(images)),), generator=random)]
    if torch.rand((), generator=random) < 0.5:
        batch = batch.flip(-1)
    reach = [max(1, round(SHIFT * size)) for size in batch.shape[2:]]
    padded = functional.pad(batch, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    top, left = (int(torch.randint(2 * most + 1, (), generator=random)) for most in reach)
    return padded[:, :, top : top + batch.shape[2], left : left + batch.shape[3]]


def _step(model: nn.Module, teacher: nn.Module, images: Tensor, optimiser: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        wanted = prepared(teacher(images))
    loss = divergence(prepared(model(images)), wanted) / len(wanted)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


@torch.inference_mode()
def _answers(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([prepared(model(part)) for part in images.split(BATCH)])


def _divergence(answers: Tensor, wanted: Tensor) -> float:
    return divergence(answers, wanted).item() / len(wanted)
