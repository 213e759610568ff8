"""How an image becomes what a network takes, as plain data: kept in a card, shown on a page. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from optimizer.errors import InputError, shown, unknown, whole_number

MAX_SIDE = 4096
"""Pixels; of what a network takes, and of what is cropped to that."""
MAX_SCALED = 80_000_000
"""Pixels that an image may be scaled to before its middle is cropped: a long strip becomes many."""
CROP_SHARE = 0.875
"""Of a photograph's shorter side, what ImageNet's usual preprocessing keeps."""
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CHANNELS = {"RGB": 3, "BGR": 3, "grey": 1}
"""By the order in which the network takes them."""
RANGES = (1, 255)
"""What a white pixel is before mean and standard deviation."""


def image_shape(given: str | Sequence[int]) -> tuple[int, ...]:
    """``(C, H, W)`` of one image, of numbers or as it is written: ``3x224x224``, also with a batch of
    1 before it. Raises InputError for what is no shape of images."""
    if isinstance(given, str):
        shape, example = _shape_written(given), "3x224x224"
    else:
        shape, example = tuple(whole_number("input_shape", side) for side in given), "(3, 224, 224)"
    if len(shape) != 3 or shape[0] not in CHANNELS.values() or min(shape) < 1:
        raise InputError(
            f"input shape {shown(given)} is not allowed: a file takes channels (1 or 3), height and width, "
            f"such as {example}"
        )
    return shape


def _shape_written(text: str) -> tuple[int, ...]:
    try:
        sides = tuple(int(side) for side in text.lower().split("x"))
    except ValueError:  # no digits, or thousands of them
        return ()
    return sides[1:] if len(sides) == 4 and sides[0] == 1 else sides


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From an image to ``[C, H, W]`` float32.

    The shorter side is scaled to ``resize`` pixels and the middle is cropped to ``size`` (height, width);
    without ``resize`` the whole image is stretched to ``size``. White is then ``range``, ``mean`` is taken
    off and the rest is divided by ``std``, a number a channel in the order of ``channels``. Raises InputError
    for what can't be.
    """

    size: tuple[int, int]
    resize: int | None = None
    channels: str = "RGB"
    range: int = 1
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not all(1 <= side <= MAX_SIDE for side in (*self.size, self.resize or 1)):
            raise InputError(
                f"input size {list(self.size)}, resized to {self.resize}: give sides of 1 to {MAX_SIDE}"
            )
        if self.channels not in CHANNELS:
            raise unknown("channel order", self.channels, CHANNELS)
        if self.range not in RANGES:
            raise InputError(f"range {self.range} is not allowed: white is {' or '.join(map(str, RANGES))}")
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, INTERPOLATIONS)
        wanted = CHANNELS[self.channels]
        if not len(self.mean) == len(self.std) == wanted:
            raise InputError(
                f"{len(self.mean)} means and {len(self.std)} standard deviations: give {wanted} of each"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise InputError("mean and standard deviation have to be finite, and the latter above 0")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one example."""
        return CHANNELS[self.channels], *self.size

    def picture(self, image: Image.Image) -> Image.Image:
        """What is left of an image: its middle, at the network's size, grey where it takes one channel.

        Raises InputError for a strip that would be scaled to more than MAX_SCALED pixels.
        """
        image = image.convert("L" if self.channels == "grey" else "RGB")
        height, width = self.size
        kind = INTERPOLATIONS[self.interpolation]
        if self.resize is None:
            return image if image.size == (width, height) else image.resize((width, height), kind)
        shorter, longer = sorted(image.size)
        long_side = int(self.resize * longer / shorter)
        if self.resize * long_side > MAX_SCALED:
            raise InputError(
                f"{image.width} x {image.height} pixels would be scaled to {self.resize:,} x {long_side:,}, "
                f"more than {MAX_SCALED:,}"
            )
        scaled = (self.resize, long_side) if image.width <= image.height else (long_side, self.resize)
        if image.size != scaled:
            image = image.resize(scaled, kind)
        left, top = map(_margin, image.size, (width, height))
        return image.crop((left, top, left + width, top + height))  # what lies outside is black

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Float32 ``[C, H, W]``."""
        pixels = np.asarray(self.picture(image), np.float32).reshape(*self.size, -1)
        pixels = pixels[..., ::-1] if self.channels == "BGR" else pixels
        values = pixels.transpose(2, 0, 1) / np.float32(255 / self.range)
        values = values - np.asarray(self.mean, np.float32)[:, None, None]
        found: np.ndarray = np.ascontiguousarray(values / np.asarray(self.std, np.float32)[:, None, None])
        return found

    def at_size(self, size: tuple[int, int]) -> "Preprocessing":
        """For another size, and where this one crops, with a crop in proportion. Without one where the new
        sides differ: how much of an image lies within them depends on its own sides."""
        if size == self.size or self.resize is None:
            return replace(self, size=size)
        scaled = min(MAX_SIDE, round(self.resize * min(size) / min(self.size)))
        return replace(self, size=size, resize=scaled if size[0] == size[1] else None)

    def at_size_of(self, other: "Preprocessing") -> "Preprocessing":
        """With the size of another, and where this one crops with its crop, or as :meth:`at_size`."""
        scaled = self.at_size(other.size)
        return replace(scaled, resize=other.resize) if self.resize and other.resize else scaled

    @classmethod
    def written(cls, mean: str, std: str, **others: Any) -> "Preprocessing":
        """With mean and standard deviation as they are typed, with commas between. Raises InputError."""
        try:
            means, deviations = (
                tuple(float(part) for part in text.split(",") if part.strip()) for text in (mean, std)
            )
        except ValueError as error:
            raise InputError(
                f"mean {mean!r} and standard deviation {std!r}: give numbers with commas between"
            ) from error
        return cls(mean=means, std=deviations, **others)

    def with_channels(self, channels: str | None) -> "Preprocessing":
        """For another order of channels, mean and standard deviation with it. None: as it is."""
        if channels is None or channels == self.channels:
            return self
        mean, std = self.mean, self.std
        if CHANNELS[channels] == 1:
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        elif len(mean) == 1:
            mean, std = mean * 3, std * 3
        else:
            mean, std = mean[::-1], std[::-1]
        return replace(self, channels=channels, mean=mean, std=std)

    def describe(self) -> str:
        """In words, for who has to tell whether it is the right one."""
        height, width = self.size
        how = (
            f"the shorter side to {self.resize}, the middle {width} x {height}"
            if self.resize
            else f"the whole image to {width} x {height}"
        )
        low, high = (
            [(white - mean) / std for mean, std in zip(self.mean, self.std, strict=True)]
            for white in (0, self.range)
        )
        reach = f"{min(low):.3g} to {max(high):.3g}".replace("-", "−")
        return f"{how} ({self.interpolation}), {self.channels}, values from {reach}"


def _margin(have: int, want: int) -> int:
    """Pixels before the middle; negative where there are too few. As torchvision's ``center_crop``."""
    return round((have - want) / 2) if have >= want else -((want - have) // 2)


IMAGENET = Preprocessing(
    (224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear"
)
"""What most networks for photographs were trained with."""
PRESETS: dict[str, Preprocessing] = {
    "ImageNet": IMAGENET,
    "−1 to 1": Preprocessing((224, 224), mean=(0.5,) * 3, std=(0.5,) * 3),
    "0 to 1": Preprocessing((224, 224)),
    "0 to 255, BGR": Preprocessing((224, 224), channels="BGR", range=255),
}
"""Usual ones by name; the size is the network's."""


def of_torchvision(transforms: Any) -> Preprocessing:
    """What the ``transforms`` of torchvision's weights of a classifier do."""
    side = transforms.crop_size[0]
    return Preprocessing(
        (side, side),
        resize=transforms.resize_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )
