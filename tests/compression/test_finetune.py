"""What fine-tuning may and may not do, on small models that learn fast."""

import copy
from types import SimpleNamespace

import pytest
import small_models
import torch
from small_models import Counted, Small, half_gone, masks_and_grids, taught, untouched
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.compression.calibration.statistics import seen_and_held_out
from optimizer.compression.distillation import SHARPNESS, Checkpoint
from optimizer.compression.divergence import NO_CLASSIFIER, divergence, prepared
from optimizer.compression.finetune import look_steps, recover
from optimizer.compression.quantize.grid import Codes
from optimizer.compression.quantize.held import HeldGrid, moved
from optimizer.errors import InputError
from optimizer.model.catalogue import LoadedModel
from optimizer.model.layers import walk
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe


@pytest.mark.slow
def test_fine_tuning_keeps_the_masks_and_comes_nearer_to_the_dense_model(
    small: Small, small_images: Tensor
) -> None:
    teacher, student = small("cnn"), small("cnn")
    masks = half_gone(student)
    told: list[tuple[float | None, str]] = []
    found = recover(student, teacher, masks, small_images, 100, lambda *progress: told.append(progress))
    assert found.steps == 100
    assert found.step_seconds > 0
    assert found.after < 0.9 * found.before
    assert told[-1][0] == 1
    for name, mask in masks.items():
        assert (found.state[name][~mask] == 0).all()
        assert not torch.equal(found.state[name], dict(student.named_parameters())[name])


def test_both_models_are_left_as_they_were(small: Small, small_images: Tensor) -> None:
    teacher, student = small("cnn"), small("cnn")
    masks = half_gone(student)
    with untouched(teacher, student):
        recover(student, teacher, masks, small_images, 20)


class Constants(nn.Module):
    """Of two constants, one is a buffer and one a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("held", torch.ones(16))
        self.frozen = nn.Parameter(torch.ones(16), requires_grad=False)
        self.body, self.head = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x.flatten(1))) * self.held * self.frozen)


def test_frozen_parameters_learn_and_buffers_stay(small_images: Tensor) -> None:
    torch.manual_seed(0)
    teacher = Constants().eval()
    student = copy.deepcopy(teacher)
    found = recover(student, teacher, half_gone(student), small_images, 40)
    assert found.after < found.before
    assert torch.equal(found.state["held"], teacher.held)
    assert not torch.equal(found.state["frozen"], teacher.frozen)


def test_what_a_state_holds_beside_tensors_is_no_trouble(small_images: Tensor) -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), Counted(64, 16), nn.ReLU(), Counted(16, 10)).eval()
    found = recover(student, copy.deepcopy(student), half_gone(student), small_images, 20)
    assert found.state.keys() == dict(student.named_parameters()).keys()


def test_without_a_budget_the_student_comes_back_as_it_is(small: Small, small_images: Tensor) -> None:
    student = small("cnn")
    masks = half_gone(student)
    found = recover(student, small("cnn"), masks, small_images, 0)
    assert found.steps == 0
    assert found.before == found.after
    assert all(torch.equal(found.state[name], tensor) for name, tensor in student.state_dict().items())


@pytest.mark.slow
def test_what_fine_tuning_makes_worse_is_not_kept(
    small: Small, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.compression.distillation.RATES", (100.0,))
    teacher = small("cnn")
    found = recover(teacher, teacher, {}, small_images, 60)
    assert found.after == found.before == pytest.approx(0, abs=1e-6)
    assert all(torch.equal(found.state[name], tensor) for name, tensor in teacher.state_dict().items())


def test_too_few_images_are_refused(small: Small, small_images: Tensor) -> None:
    model = small("cnn")
    with pytest.raises(InputError, match="3 images are too few to fine-tune on: give at least 16"):
        recover(model, model, {}, small_images[:3], 1)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 45])
def test_odd_input_is_no_trouble(small: Small, small_images: Tensor, steps: int) -> None:
    """Constant images, as few as are allowed, a layer of zeros, a layer of which nothing is left."""
    teacher, student = small("cnn"), small("cnn")
    masks = half_gone(student)
    dead, zeros = list(walk(student))[1:3]
    masks[dead.name] = torch.zeros_like(masks[dead.name])
    for layer in (dead, zeros):
        layer.weight.data.zero_()
    for images in (torch.full_like(small_images, 0.5), small_images[:16]):
        found = recover(student, teacher, masks, images, steps)
        assert found.after <= found.before
        assert all(tensor.isfinite().all() for tensor in found.state.values())
        assert (found.state[dead.name] == 0).all()


def test_the_images_held_out_are_those_that_nothing_was_refitted_to(
    small: Small, small_images: Tensor
) -> None:
    """By others, a network refitted to them seems too good to win anything."""
    teacher, student = small("cnn"), small("cnn")
    masks = half_gone(student)
    _, held_out = seen_and_held_out(small_images)
    found = recover(student, teacher, masks, small_images, 0)
    with torch.no_grad():
        wanted, logits = prepared(teacher(held_out)), student(held_out)
        apart = min(divergence(prepared(logits * by), wanted).item() for by in SHARPNESS)
    assert found.before == pytest.approx(apart / len(held_out))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 3])
def test_a_residual_network_pruned_by_magnitude_is_won_back_in_few_steps(
    resnet: LoadedModel, bits: int
) -> None:
    teacher, images, unseen = taught(resnet)
    pruned = compress(teacher, Recipe(PruneSpec(sparsity=0.85), QuantizeSpec(weight_bits=bits)))
    masks, grids = masks_and_grids(pruned)
    found = recover(pruned.module, teacher, masks, images, 60, grids=grids)
    before = small_models.divergence(teacher, pruned.module, unseen)
    pruned.module.load_state_dict(found.state)
    assert small_models.divergence(teacher, pruned.module, unseen) < 0.6 * before
    assert all((found.state[name][~mask] == 0).all() for name, mask in masks.items())


def rounded(model: nn.Module, bits: int) -> tuple[nn.Module, dict[str, Codes], dict[str, HeldGrid]]:
    """A copy on grids of so many bits, its codes, and the grids."""
    made = compress(model, Recipe(quantize=QuantizeSpec(weight_bits=bits)))
    codes = {name: weight.codes for name, weight in made.weights.items() if weight.codes}
    return made.module, codes, masks_and_grids(made)[1]


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_rounded_weights_stay_on_their_grids_bit_for_bit(
    small: Small, small_images: Tensor, masked: bool
) -> None:
    teacher, pruned = small("cnn"), small("cnn")
    masks = half_gone(pruned) if masked else {}
    student, codes, grids = rounded(pruned, 3)
    found = recover(student, teacher, masks, small_images, 100, grids=grids)
    assert found.after < 0.8 * found.before
    changed = 0
    for name, one in codes.items():
        now = moved(one, found.state[name])
        assert torch.equal(now.values, found.state[name])
        assert torch.equal(now.scale, one.scale)
        assert torch.equal(now.zero_point, one.zero_point)
        assert now.stored.min() >= -3
        assert now.stored.max() <= 3
        changed += int((now.centred != one.centred).sum())
    assert changed
    assert all((found.state[name][~mask] == 0).all() for name, mask in masks.items())


class Stopped(Exception):
    """Whatever ends a worker."""


STEPS = 60
LOOK = look_steps(STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 3])
@pytest.mark.parametrize("stop_at", [3 * LOOK, 5 * LOOK])
def test_one_that_was_stopped_ends_where_it_would_have_ended(
    small: Small, small_images: Tensor, stop_at: int, bits: int
) -> None:
    """Bit for bit, whatever torch is told of threads in between."""
    teacher, student = small("cnn"), small("cnn")
    masks, steps = half_gone(student), STEPS
    student, _, grids = rounded(student, bits)
    whole = recover(student, teacher, masks, small_images, steps, grids=grids)
    kept: list[Checkpoint] = []

    def stop(checkpoint: Checkpoint) -> None:
        kept.append(checkpoint)
        if checkpoint.step == stop_at:
            raise Stopped

    with pytest.raises(Stopped):
        recover(student, teacher, masks, small_images, steps, keep=stop, grids=grids)
    assert kept[-1].step == stop_at
    assert all(one.step % LOOK == 0 for one in kept)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        rest = recover(student, teacher, masks, small_images, steps, begun=kept[-1], grids=grids)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert (rest.before, rest.after) == (whole.before, whole.after)
    assert all(torch.equal(rest.state[name], tensor) for name, tensor in whole.state.items())


@pytest.mark.slow
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


def test_outputs_of_what_is_no_classifier_are_not_made_sharper(small: Small, small_images: Tensor) -> None:
    teacher, student = small("cnn"), small("cnn")
    for model in (teacher, student):
        setattr(model, NO_CLASSIFIER, True)
    masks = half_gone(student)
    found = recover(student, teacher, masks, small_images, 20)
    held_out = seen_and_held_out(small_images)[1]
    with torch.inference_mode():
        before, after = teacher(held_out), student(held_out)
    shares = (after - before).square().sum(1) / before.square().sum(1)
    assert found.before == pytest.approx(0.5 * shares.mean().item(), rel=1e-3)
    assert found.after < found.before
