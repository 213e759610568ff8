"""What training may and may not do, on small models that learn fast."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from optimizer.errors import InputError
from optimizer.layers import walk
from optimizer.recover import recover

Small = Callable[[str], nn.Module]


def half_gone(model: nn.Module) -> dict[str, Tensor]:
    """Prune every second weight in place, and give the masks."""
    masks = {}
    for layer in walk(model):
        mask = (torch.arange(layer.weight.numel()) % 2 == 0).reshape(layer.weight.shape)
        masks[layer.name] = mask
        layer.weight.data *= mask
    return masks


def test_training_keeps_the_masks_and_comes_nearer_to_the_dense_model(
    small: Small, small_images: Tensor
) -> None:
    teacher, student = small("cnn"), small("cnn")
    masks = half_gone(student)
    told: list[tuple[float | None, str]] = []
    found = recover(student, teacher, masks, small_images, 1.0, lambda *progress: told.append(progress))
    assert found.steps > 0
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
    recover(student, teacher, masks, small_images, 0.2)
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


def test_what_training_makes_worse_is_not_kept(
    small: Small, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.recover.LEARNING_RATE", 100.0)
    teacher = small("cnn")
    found = recover(teacher, teacher, {}, small_images, 0.3)
    assert found.after == found.before == pytest.approx(0, abs=1e-6)
    assert all(torch.equal(found.state[name], tensor) for name, tensor in teacher.state_dict().items())


def test_bad_budgets_and_too_few_images_are_refused(small: Small, small_images: Tensor) -> None:
    model = small("cnn")
    with pytest.raises(InputError, match="-1 seconds of training are not allowed: give 0"):
        recover(model, model, {}, small_images, -1)
    with pytest.raises(InputError, match="3 images are too few to train on: give at least 16"):
        recover(model, model, {}, small_images[:3], 1)
