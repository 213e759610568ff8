"""Learning of networks whose own code stands in the way of gradients, or bars it."""

import copy
from contextlib import nullcontext

import pytest
import torch
from small_models import half_gone, twins
from torch import Tensor, nn

from optimizer.compression.effort import improve
from optimizer.compression.finetune import recover
from optimizer.errors import InputError


@pytest.mark.parametrize("way", ["gate", "view"])
def test_what_changes_in_place_learns_the_same(small_images: Tensor, way: str) -> None:
    found = []
    for teacher, student in zip(twins(way), twins(way), strict=True):
        found.append(recover(student, teacher, half_gone(student), small_images, 10))
    assert found[0].after < found[0].before
    # Adam makes much of last bits, which depend on where in memory a sum begins.
    assert found[0].after == pytest.approx(found[1].after, rel=0.01)
    for name, one in found[1].state.items():
        torch.testing.assert_close(found[0].state[name], one, rtol=0.01, atol=1e-3)


class Barred(nn.Module):
    """Can't be traced; gradients of its layers are kept from its outputs in a ``way``."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.head = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        contexts = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
        with contexts.get(self.way, nullcontext)():
            x = self.first(x.flatten(1))
            if self.way == "clamped":
                self.head.bias.clamp_(-1, 1)
            answers = self.head(x if x.sum() > 0 else -x)
        return answers.detach() if self.way == "detached" else answers


def test_what_runs_without_gradients_learns(small_images: Tensor) -> None:
    torch.manual_seed(0)
    teacher = Barred("no_grad").eval()
    student = copy.deepcopy(teacher)
    found = recover(student, teacher, half_gone(student), small_images, 40)
    assert found.after < found.before


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("detached", "its code keeps gradients from its outputs"),
        ("inference", ""),
        ("clamped", "a leaf Variable"),
    ],
)
def test_what_cant_learn_is_told_before_any_time_is_spent(
    small_images: Tensor, monkeypatch: pytest.MonkeyPatch, way: str, reason: str
) -> None:
    model = Barred(way).eval().requires_grad_(False)
    monkeypatch.setattr(
        "optimizer.compression.effort.refined", lambda *_: pytest.fail("it was refined first")
    )
    for learn in (recover, improve):
        with pytest.raises(
            InputError, match=rf"can't learn \({reason}.*leave best effort and fine-tuning out"
        ):
            learn(model, model, {"first.weight": torch.zeros(8, 64, dtype=torch.bool)}, small_images, 10)
