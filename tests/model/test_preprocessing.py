"""From an image to what a network takes, held to torchvision's own transforms."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from optimizer.errors import InputError
from optimizer.model.added.architectures import default_preprocessing
from optimizer.model.preprocessing import (
    IMAGENET,
    INTERPOLATIONS,
    MAX_SIDE,
    PRESETS,
    Preprocessing,
    image_shape,
)

SIDES = st.integers(1, 90)
UNIT = st.floats(0.0625, 1)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@settings(max_examples=60)
@given(
    SIDES,
    SIDES,
    SIDES,
    SIDES,
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
    st.tuples(UNIT, UNIT, UNIT),
)
def test_it_is_torchvision_s_bit_for_bit(
    width: int, height: int, crop: int, resize: int, interpolation: str, std: tuple[float, float, float]
) -> None:
    ours = Preprocessing((crop, crop), resize, mean=std[::-1], std=std, interpolation=interpolation)
    theirs = ImageClassification(
        crop_size=crop,
        resize_size=resize,
        mean=std[::-1],
        std=std,
        interpolation=InterpolationMode(interpolation),
    )
    image = picture(width, height)
    assert torch.equal(torch.from_numpy(ours(image)), theirs(image))


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_an_architecture_s_default_is_its_weights_own(name: str) -> None:
    image = picture(300, 280)
    theirs = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    assert torch.equal(torch.from_numpy(default_preprocessing(name)(image)), theirs(image))


def test_channels_range_and_stretch() -> None:
    image = picture(8, 6)
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)
    assert np.array_equal(Preprocessing((6, 8), range=255)(image), pixels)
    assert np.array_equal(Preprocessing((6, 8), channels="BGR", range=255)(image), pixels[::-1])
    stretched = Preprocessing((3, 5), channels="grey", mean=(0.5,), std=(0.25,))
    assert stretched(image).shape == stretched.input_shape == (1, 3, 5)
    grey = np.asarray(image.convert("L").resize((5, 3), INTERPOLATIONS["bilinear"]), np.float32)
    assert np.allclose(stretched(image)[0], (grey / 255 - 0.5) / 0.25)
    assert stretched.picture(image).size == (5, 3)
    assert "values from −2 to 2" in stretched.describe()


@pytest.mark.parametrize("channels", ["RGB", "BGR", "grey"])
def test_mean_and_deviation_go_with_the_channels(channels: str) -> None:
    changed = IMAGENET.with_channels(channels)
    assert changed.channels == channels
    assert len(changed.mean) == changed.input_shape[0]
    image = picture(40, 40)
    if channels == "BGR":
        assert np.array_equal(changed(image), IMAGENET(image)[::-1])


def test_presets_are_told_apart() -> None:
    image = picture(224, 224)
    assert len({preset(image).tobytes() for preset in PRESETS.values()}) == len(PRESETS)


@pytest.mark.parametrize(
    ("size", "resize"),
    [
        ((224, 224), 256),
        ((320, 320), 366),
        ((384, 384), 439),
        ((32, 32), 37),
        ((320, 480), None),
    ],
)
def test_at_another_size_no_border_is_black(size: tuple[int, int], resize: int | None) -> None:
    changed = IMAGENET.at_size(size)
    assert changed == replace(IMAGENET, size=size, resize=resize)
    assert IMAGENET.at_size_of(Preprocessing(size)) == changed
    for sides in ((40, 30), (30, 40), (30, 30)):
        assert changed(Image.new("RGB", sides, "white")).min() > 2
    stretched = Preprocessing((224, 224))
    assert stretched.at_size(size) == stretched.at_size_of(changed) == Preprocessing(size)
    assert IMAGENET.at_size_of(Preprocessing(size, resize=5)).resize == 5
    assert IMAGENET.at_size((MAX_SIDE, MAX_SIDE)).resize == MAX_SIDE


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (0, 5)},
        {"size": (5, 10**6)},
        {"resize": -1},
        {"resize": 10**9},
        {"channels": "HSV"},
        {"range": 2},
        {"interpolation": "magic"},
        {"mean": (0.0,)},
        {"std": (0.0, 1.0, 1.0)},
        {"std": (float("nan"), 1.0, 1.0)},
        {"mean": (float("inf"), 1.0, 1.0)},
    ],
)
def test_what_can_t_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Preprocessing(**({"size": (8, 8)} | wrong))  # type: ignore[arg-type]


def test_a_long_strip_is_not_scaled_to_more_than_memory_holds() -> None:
    large = Preprocessing((1024, 1024), resize=1024).with_channels("grey")
    assert large(Image.new("L", (20, 1000))).shape == (1, 1024, 1024)
    with pytest.raises(InputError, match="20 x 2000 pixels would be scaled to 1,024 x 102,400, more than"):
        large(Image.new("L", (20, 2000)))


@pytest.mark.parametrize("shape", ["3x8x9", " 3 X 8x9", "1x3x8x9", (3, 8, 9), [3.0, 8, np.int64(9)]])
def test_a_shape_is_read_as_it_is_written_or_given(shape: Any) -> None:
    assert image_shape(shape) == (3, 8, 9)


@pytest.mark.parametrize(
    "shape",
    [
        "",
        "3x8",
        "3x8x",
        "2x8x9",
        "9x3x8x8",
        "0x3x224x224",
        "3x0x9",
        "3x-8x9",
        "axbxc",
        "²x3x3",
        f"3x3x{'9' * 5_000}",
        (3, 8),
        (2, 8, 9),
    ],
)
def test_what_is_no_shape_of_images_is_refused_with_an_example(shape: Any) -> None:
    with pytest.raises(InputError, match="^input shape .* is not allowed: .* such as ") as refused:
        image_shape(shape)
    assert str(refused.value).endswith("3x224x224" if isinstance(shape, str) else "(3, 224, 224)")
    assert len(str(refused.value)) < 250
