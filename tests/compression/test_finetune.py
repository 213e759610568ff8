"""What fine-tuning may and may not do, on small models that learn fast."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from optimizer.compression.finetune import LOOK_STEPS, Checkpoint, recover
from optimizer.errors import InputError
from optimizer.model.layers import walk

Small = Callable[[str], nn.Module]


def half_gone(model: nn.Module) -> dict[str, Tensor]:
    """Prune every second weight in place, and give the masks."""
    masks = {}
    for layer in walk(model):
        mask = (torch.arange(layer.weight.numel()) % 2 == 0).reshape(layer.weight.shape)
        masks[layer.name] = mask
        layer.weight.data *= mask
    return masks


def test_fine_tuning_keeps_the_masks_and_comes_nearer_to_the_dense_model(
    small: Small, small_images: Tensor
) -> None:
    teacher, student = small("cnn"), small("cnn")
    masks = half_gone(student)
    told: list[tuple[float | None, str]] = []
    found = recover(student, teacher, masks, small_images, 300, lambda *progress: told.append(progress))
    assert found.steps == 300
    assert found.step_seconds > 0
    assert found.after < 0.9 * found.before
    assert told[-1][0] == 1
    for name, mask in masks.items():
        assert (found.state[name][~mask] == 0).all()
        assert not torch.equal(found.state[name], dict(student.named_parameters())[name])


def test_both_models_are_left_as_they_were(small: Small, small_images: Tensor) -> None:
    teacher, student = small("cnn"), small("cnn")
    masks = half_gone(student)
    before = [
        {name: tensor.clone() for name, tensor in one.state_dict().items()} for one in (teacher, student)
    ]
    random = torch.get_rng_state()
    recover(student, teacher, masks, small_images, 20)
    for model, state in zip((teacher, student), before, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        assert not model.training
        assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_without_a_budget_the_student_comes_back_as_it_is(small: Small, small_images: Tensor) -> None:
    student = small("cnn")
    masks = half_gone(student)
    found = recover(student, small("cnn"), masks, small_images, 0)
    assert found.steps == 0
    assert found.before == found.after
    assert all(torch.equal(found.state[name], tensor) for name, tensor in student.state_dict().items())


def test_what_fine_tuning_makes_worse_is_not_kept(
    small: Small, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.compression.finetune.LEARNING_RATE", 100.0)
    teacher = small("cnn")
    found = recover(teacher, teacher, {}, small_images, 60)
    assert found.after == found.before == pytest.approx(0, abs=1e-6)
    assert all(torch.equal(found.state[name], tensor) for name, tensor in teacher.state_dict().items())


def test_bad_budgets_and_too_few_images_are_refused(small: Small, small_images: Tensor) -> None:
    model = small("cnn")
    with pytest.raises(InputError, match="-1 fine-tuning steps are not allowed: give 0"):
        recover(model, model, {}, small_images, -1)
    with pytest.raises(InputError, match="3 images are too few to fine-tune on: give at least 16"):
        recover(model, model, {}, small_images[:3], 1)


class Stopped(Exception):
    """Whatever ends a worker."""


@pytest.mark.parametrize("stop_at", [LOOK_STEPS, 2 * LOOK_STEPS])
def test_one_that_was_stopped_ends_where_it_would_have_ended(
    small: Small, small_images: Tensor, stop_at: int
) -> None:
    """Bit for bit, whatever torch is told of threads in between."""
    teacher, student = small("cnn"), small("cnn")
    masks, steps = half_gone(student), 2 * LOOK_STEPS + 20
    whole = recover(student, teacher, masks, small_images, steps)
    kept: list[Checkpoint] = []

    def stop(checkpoint: Checkpoint) -> None:
        kept.append(checkpoint)
        if checkpoint.step == stop_at:
            raise Stopped

    with pytest.raises(Stopped):
        recover(student, teacher, masks, small_images, steps, keep=stop)
    assert [one.step for one in kept] == list(range(LOOK_STEPS, stop_at + 1, LOOK_STEPS))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        rest = recover(student, teacher, masks, small_images, steps, begun=kept[-1])
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert (rest.before, rest.after) == (whole.before, whole.after)
    assert all(torch.equal(rest.state[name], tensor) for name, tensor in whole.state.items())


def test_the_outcome_does_not_depend_on_the_clock(
    small: Small, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, student = small("cnn"), small("cnn")
    masks = half_gone(student)
    usual = recover(student, teacher, masks, small_images, 60)
    clock = iter(range(0, 10**9, 10_000))
    monkeypatch.setattr("optimizer.compression.finetune.time", SimpleNamespace(monotonic=lambda: next(clock)))
    slow = recover(student, teacher, masks, small_images, 60)
    assert slow.steps == usual.steps
    assert all(torch.equal(slow.state[name], tensor) for name, tensor in usual.state.items())
