"""Folders of painted images, and the bundled ones as they are loaded."""

from pathlib import Path

import pytest
from image_folders import COLOURS, Paint
from PIL import Image

from optimizer.data.loading import Datasets, load_images
from optimizer.model.catalogue import LoadedModel
from optimizer.records import DataSpec


@pytest.fixture
def paint(tmp_path: Path) -> Paint:
    """Make images of one colour each, a little different in size so that no two files are equal."""
    painted = iter(range(1, 10_000))

    def make(folder: str, count: int, colour: tuple[int, ...] = (9, 9, 9), suffix: str = "png") -> Path:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = Image.new("RGB", (40, 30 + next(painted)), colour)
            image.save(tmp_path / folder / f"{number}.{suffix}", quality=95)
        return tmp_path

    return make


@pytest.fixture
def colours(paint: Paint) -> Path:
    for name, colour in COLOURS.items():
        top = paint(f"set/{name}", 4, colour)
    return top / "set"


@pytest.fixture(scope="session")
def bundled(resnet: LoadedModel) -> Datasets:
    return load_images(resnet, DataSpec())
