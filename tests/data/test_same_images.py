"""Images that show the same: evaluated once, and never calibrated with as well."""

import io
import re
from pathlib import Path

import pytest
import torch
from image_folders import colour_model, noise, predicted, shared_folder
from PIL import Image

from optimizer.data import loading
from optimizer.data.duplicates import copies
from optimizer.data.loading import load_images
from optimizer.errors import InputError
from optimizer.records import DataSpec


def test_equal_images_are_evaluated_once(tmp_path: Path) -> None:
    """Equal pixels in files that differ."""
    for number in range(6):
        noise(number).save(tmp_path / f"{number}.png")
        noise(number).save(tmp_path / f"{number}.bmp")
    noise(9).save(tmp_path / "9.png")
    (tmp_path / "other").mkdir()
    noise(10).save(tmp_path / "other" / "10.png")
    evaluated = tmp_path / "set"
    evaluated.mkdir()
    for file in tmp_path.glob("*.*"):
        file.rename(evaluated / file.name)
    loaded = load_images(colour_model(size=16), DataSpec(str(evaluated), str(tmp_path / "other")))
    assert len(loaded.evaluation.images) == 7
    assert len(loaded.evaluation.images.flatten(1).unique(dim=0)) == 7
    assert loaded.notes == ("6 images left out: equal to another one that is evaluated, which counts once",)


def test_labels_stay_with_their_images_where_equal_ones_go(colours: Path) -> None:
    for file in sorted(colours.glob("*/0.png")):
        Image.open(file).save(file.with_suffix(".bmp"))
    model = colour_model()
    loaded = load_images(model, DataSpec(str(colours), calibration_share=0.01))
    assert "3 images left out" in "; ".join(loaded.notes)
    assert torch.equal(predicted(model, loaded.evaluation.images), loaded.evaluation.labels)  # type: ignore[arg-type]
    assert len(loaded.evaluation.images) == 11


def test_a_copy_of_an_evaluated_image_does_not_calibrate(tmp_path: Path) -> None:
    large = (256, 192)
    for folder in ("set", "other"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        noise(number, large).save(tmp_path / "set" / f"{number}.png")
    noise(0, large).save(tmp_path / "other" / "encoded.jpg", quality=60)
    noise(1, large).resize((512, 384), Image.Resampling.BICUBIC).save(tmp_path / "other" / "larger.png")
    noise(2, large).resize((128, 96), Image.Resampling.BICUBIC).save(
        tmp_path / "other" / "smaller.webp", quality=90
    )
    spec = DataSpec(str(tmp_path / "set"), str(tmp_path / "other"))
    with pytest.raises(InputError, match="every calibration image is a copy of an evaluated one"):
        load_images(colour_model(size=64), spec)
    noise(7, large).save(tmp_path / "other" / "own.png")
    loaded = load_images(colour_model(size=64), spec)
    assert len(loaded.calibration.images) == 1
    assert loaded.notes == ("3 calibration images left out: evaluated images look the same",)


@pytest.mark.slow
def test_no_photograph_is_taken_for_another() -> None:
    files = sorted(shared_folder("imagenet-sample").glob("*/*.jpg"))
    images = torch.stack([colour_model(size=64).preprocess(Image.open(file)) for file in files])
    assert not copies(images[::2], images[1::2]).any()
    again = []
    for file in files[::50]:
        buffer = io.BytesIO()
        Image.open(file).resize((200, 200)).save(buffer, "JPEG", quality=75)
        again.append(colour_model(size=64).preprocess(Image.open(buffer)))
    assert copies(torch.stack(again), images[::50]).all()


def test_no_bundled_image_is_taken_for_another(bundled: loading.Datasets) -> None:
    assert not copies(bundled.calibration.images, bundled.evaluation.images).any()


def test_what_the_images_cover_is_said(colours: Path) -> None:
    for file in sorted((colours / "red").iterdir())[1:]:
        file.unlink()
    for file in (colours / "blue").iterdir():
        file.unlink()
    (note,) = load_images(colour_model(), DataSpec(str(colours), calibration_share=0.01)).notes
    assert re.fullmatch(r"\d of 3 classes covered, \d( to \d)? images? a class", note)
