"""The bundled images as tensors."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import Paint, colour_model, predicted
from PIL import Image

from optimizer.data import loading, selection
from optimizer.data.example import example_image
from optimizer.data.loading import load_images
from optimizer.errors import InputError
from optimizer.model import catalogue
from optimizer.model.catalogue import LoadedModel
from optimizer.records import DataSpec
from optimizer.system.paths import asset, assets_dir

MIN_ACCURACY = {"fashion-mlp": 0.89, "fashion-resnet": 0.93, "fashion-mobilenet": 0.92, "fashion-vit": 0.89}


def test_the_bundled_set_is_whole(bundled: loading.Datasets) -> None:
    assert bundled.evaluation.images.shape == (10_000, 1, 28, 28)
    assert bundled.evaluation.labels is not None
    assert bundled.evaluation.labels.bincount().tolist() == [1000] * 10
    assert bundled.calibration.images.shape == (1000, 1, 28, 28)
    assert bundled.calibration.labels is None
    assert bundled.notes == ()


def test_the_bundled_sets_share_no_image(bundled: loading.Datasets) -> None:
    evaluation, calibration = (
        {image.numpy().tobytes() for image in images}
        for images in (bundled.evaluation.images, bundled.calibration.images)
    )
    assert not evaluation & calibration


def test_bundled_pixels_are_normalised_as_in_training(resnet: LoadedModel, bundled: loading.Datasets) -> None:
    """All at once, and one that a file has."""
    pixels = np.load(asset("fashion-calibration.npz"))["images"]
    expected = (torch.from_numpy(pixels).float().unsqueeze(1) / 255 - 0.286) / 0.353
    assert torch.equal(bundled.calibration.images, expected)
    for one, values in zip(pixels[:5], expected, strict=False):
        assert torch.equal(resnet.preprocess(Image.fromarray(one)), values)


def test_a_limit_draws_with_the_seed(resnet: LoadedModel, bundled: loading.Datasets) -> None:
    some = load_images(resnet, DataSpec(limit=50))
    assert torch.equal(some.evaluation.images, bundled.evaluation.images[:50])
    assert some.notes == ("50 of 10,000 images are evaluated, drawn with seed 0",)
    other = load_images(resnet, DataSpec(limit=50, seed=1))
    assert not torch.equal(some.evaluation.images, other.evaluation.images)
    assert len(some.evaluation.labels.unique()) > 5  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), MIN_ACCURACY.items())
def test_a_bundled_model_scores_as_its_card_says(name: str, least: float) -> None:
    if not (assets_dir() / f"{name}.json").exists():
        pytest.skip(f"{name} is not trained yet: run tools/train_bundled.py {name}")
    model = catalogue.load(name)
    assert model.card.published_top1 is not None
    assert model.card.published_top1 >= least
    some = load_images(model, DataSpec(limit=400)).evaluation
    assert some.labels is not None
    right = (predicted(model, some.images) == some.labels).double().mean().item()
    assert abs(right - model.card.published_top1) < 0.05  # over three standard errors of 400 images


def test_bundled_images_are_for_bundled_models_only() -> None:
    with pytest.raises(InputError, match="not for colours: give an image folder"):
        load_images(colour_model(), DataSpec())


def test_a_class_index_file_needs_a_folder(resnet: LoadedModel) -> None:
    with pytest.raises(InputError, match="goes with an image folder"):
        load_images(resnet, DataSpec(class_index="x.json"))


def test_a_folder_can_calibrate_the_bundled_evaluation(resnet: LoadedModel, paint: Paint) -> None:
    top = paint("own", 3, (255, 255, 255))
    loaded = load_images(resnet, DataSpec(calibration=str(top / "own"), limit=5))
    assert torch.allclose(loaded.calibration.images, torch.tensor((1 - 0.286) / 0.353))
    assert loaded.calibration.images.shape == (3, 1, 28, 28)


def test_a_damaged_bundled_set_is_refused(
    resnet: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = asset("fashion-test.npz").read_bytes()
    (tmp_path / "fashion-test.npz").write_bytes(whole[:100_000])
    monkeypatch.setattr(selection, "asset", lambda name: tmp_path / name)
    for read in (partial(load_images, resnet), example_image):
        with pytest.raises(InputError, match=r"fashion-test\.npz are damaged"):
            read(DataSpec())
