"""Training that wins accuracy back: the pruned model learns to answer as the dense one does.

No labels: calibration images, flipped and shifted, are answered by the dense model, and the pruned one
follows (distillation, arXiv 1503.02531). Weights that were pruned stay pruned. An eighth of the images is
never trained on; the weights that do best on it are the ones that are kept, and those before any training
count too.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from optimizer.errors import InputError
from optimizer.layers import walk
from optimizer.models import Report, quiet

BATCH = 16
LEARNING_RATE = 3e-4
HELD_OUT = 8
"""One image of so many is held out."""
CHECK_SHARE = 0.1
"""How much of the budget lies between two looks at the images held out."""
SHIFT = 0.1
"""How far an image is moved at most, as a share of its width and height."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """The state that answers the images held out most like the dense model, and what it took.

    ``before`` and ``after`` are divergences (KL, nats) on those images.
    """

    state: dict[str, Tensor]
    before: float
    after: float
    steps: int


@dataclass(frozen=True, slots=True)
class Begun:
    """The best state of a training after ``spent`` of its seconds."""

    state: dict[str, Tensor]
    spent: float


def forget(begun: Begun) -> None:
    """Keeps nothing."""


def recover(
    student: nn.Module,
    teacher: nn.Module,
    masks: Mapping[str, Tensor],
    images: Tensor,
    seconds: float,
    report: Report = quiet,
    begun: Begun | None = None,
    keep: Callable[[Begun], None] = forget,
) -> Recovered:
    """Train a copy of ``student`` for ``seconds`` on ``images`` ``[N, C, H, W]``; both models stay as they
    were.

    ``masks``, by layer name, are True where a weight survived. With 0 seconds the student comes back as it
    is. ``keep`` is given the best so far at each look at it, and ``begun`` is such a one of the same
    training, stopped before its time: it goes on from there for what is left. Raises InputError for a budget
    below 0, or fewer than 16 images.
    """
    if seconds < 0:
        raise InputError(f"{seconds:g} seconds of training are not allowed: give 0 (none) or more")
    if len(images) < 2 * HELD_OUT:
        raise InputError(f"{len(images)} images are too few to train on: give at least {2 * HELD_OUT}")
    held_out, trained_on = images[::HELD_OUT], _without_every(images, HELD_OUT)
    model = copy.deepcopy(student).eval()  # batch norm, where any is left, keeps its statistics
    kept = {layer.weight: masks[layer.name] for layer in walk(model) if layer.name in masks}
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    wanted = _answers(teacher, held_out)
    before = best = _divergence(_answers(model, held_out), wanted)
    state, earlier, words = _state(model), 0.0, "training"
    if begun is not None and _fits(begun.state, state):
        model.load_state_dict(begun.state)
        now = _divergence(_answers(model, held_out), wanted)
        earlier, words = begun.spent, f"training, going on from {begun.spent:.0f} s that were kept"
        best, state = (now, _state(model)) if now < best else (best, state)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0)
    random = torch.Generator().manual_seed(0)
    start, steps, checked = time.monotonic() - earlier, 0, earlier
    while (spent := time.monotonic() - start) < seconds:
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * (1 - spent / seconds)
        _step(model, teacher, _draw(trained_on, random), optimiser)
        with torch.no_grad():
            for weight, mask in kept.items():
                weight.mul_(mask)
        steps += 1
        spent = time.monotonic() - start
        if spent - checked >= CHECK_SHARE * seconds or spent >= seconds:
            checked = spent
            now = _divergence(_answers(model, held_out), wanted)
            if now < best:
                best, state = now, _state(model)
            keep(Begun(state, min(spent, seconds)))
            told = f"{words}: {steps} steps, divergence {before:.3g} before and {best:.3g} now"
            report(min(1.0, spent / seconds), told)
    return Recovered(state, before, best, steps)


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
        wanted = functional.log_softmax(teacher(images), 1)
    answers = functional.log_softmax(model(images), 1)
    loss = functional.kl_div(answers, wanted, reduction="batchmean", log_target=True)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


@torch.inference_mode()
def _answers(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([functional.log_softmax(model(part), 1) for part in images.split(BATCH)])


def _divergence(answers: Tensor, wanted: Tensor) -> float:
    return functional.kl_div(answers, wanted, reduction="batchmean", log_target=True).item()
