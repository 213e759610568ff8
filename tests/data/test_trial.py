"""A preprocessing that is tried: in little memory, and whatever its images are."""

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import colour_model, noise
from PIL import Image
from torch import Tensor, nn

from optimizer.data.trial import alternatives, try_preprocessing
from optimizer.model.preprocessing import Preprocessing
from optimizer.records import DataSpec

CHOSEN = Preprocessing((4, 4))


def images_held() -> int:
    return sum(isinstance(one, Image.Image) for one in gc.get_objects())


class Watching(nn.Module):
    """Answers what never is right, and notes how many images are in memory meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[int] = []
        self.asked: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.held.append(images_held())
        self.asked.append(len(images))
        return torch.eye(4)[[3] * len(images)]


@pytest.mark.slow
def test_one_image_is_in_memory_at_a_time(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / "red").mkdir(exist_ok=True)
        noise(number).save(tmp_path / "red" / f"{number}.png")
    (tmp_path / "red" / "damaged.png").write_bytes(b"no image")
    module = Watching()
    model = replace(colour_model(), module=module)
    before = images_held()
    trial = try_preprocessing(model, CHOSEN, DataSpec(str(tmp_path), calibration_share=0.01))
    assert (trial.right, trial.better) == (0, "")
    assert 11 <= trial.total <= 12, "one calibrates, which may be the damaged one"
    assert max(module.held) <= before + 3, "it, and what is not collected yet"
    assert module.asked == [1] * trial.total + [len(alternatives(CHOSEN))] * trial.total


def test_each_alternative_is_held_against_the_chosen_one(tmp_path: Path) -> None:
    """A model of the three colours whose channels were in the other order."""
    for colour, place in (("blue", 0), ("red", 2)):  # as BGR
        (tmp_path / colour).mkdir()
        for number in range(12):
            pixels = np.zeros((8, 8 + number, 3), np.uint8)
            pixels[..., place] = 200 + number
            Image.fromarray(pixels).save(tmp_path / colour / f"{number}.png")
    spec = DataSpec(str(tmp_path), calibration_share=0.1)
    trial = try_preprocessing(colour_model(), CHOSEN, spec)
    assert (trial.right, trial.better_right) == (0, trial.total)
    assert trial.better == "the channels in the order BGR"
    trial = try_preprocessing(colour_model(), CHOSEN.with_channels("BGR"), spec)
    assert (trial.right, trial.better) == (trial.total, "")
