"""What commands are given."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optimizer.system.paths import asset


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Twelve bundled images as a user's folder, with what such folders also hold."""
    with np.load(asset("fashion-test.npz")) as archive:
        images, labels = archive["images"], archive["labels"]
    folder = tmp_path / "photographs"
    for name, label in (("bag", 8), ("sandal", 5)):
        (folder / name).mkdir(parents=True)
        for number, index in enumerate(np.flatnonzero(labels == label)[:6]):
            Image.fromarray(images[index]).save(folder / name / f"{number}.png")
    (folder / "bag" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (folder / "bag" / "notes.txt").write_text("not a picture either")
    (folder / "unicorn").mkdir()
    Image.new("L", (28, 28)).save(folder / "unicorn" / "0.png")
    return folder
