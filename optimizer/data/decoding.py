"""One image file, decoded: the first frame, in the model's mode, within what memory allows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT, TiffImageFile

from optimizer.data.folders import open_file
from optimizer.system.environment import environment

MAX_PIXELS = 80_000_000
MAX_ASPECT = 100
"""Scaling the shorter side up would turn a longer strip into more pixels than ``MAX_PIXELS``."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The decoders used, whatever a file's name says: no others are reached by a hostile file."""
DECODERS = 4
BYTES_PER_PIXEL = 10
"""At most so many while a file is decoded and converted (a progressive JPEG, a palette), as measured."""
BYTES_PER_PIXEL_WEBP = 16
DECODING_SHARE = 0.125
"""The decoders of one process may take this share of the memory, whatever they decode."""
STRIP_ROWS = 64
SIGNED = 2
"""The ``SAMPLEFORMAT`` of a TIFF file of integers with a sign."""


class Allowance:
    """So many bytes for those who decode at once: small images side by side, large ones one after another."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._free = total_bytes
        self._changed = Condition()

    @classmethod
    def of_this_machine(cls) -> "Allowance":
        """DECODING_SHARE of the memory, and never more than the largest image takes."""
        return cls(min(int(DECODING_SHARE * environment().memory_bytes), MAX_PIXELS * BYTES_PER_PIXEL_WEBP))

    @contextmanager
    def take(self, needed_bytes: int) -> Iterator[None]:
        """Wait for so many bytes, at most ``total_bytes``, and give them back."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= needed_bytes)
            self._free -= needed_bytes
        try:
            yield
        finally:
            with self._changed:
                self._free += needed_bytes
                self._changed.notify_all()


@contextmanager
def decoded(file: Path, mode: str, allowance: Allowance) -> Iterator[Image.Image]:
    """The image of a file in ``mode`` ("L" or "RGB"), while its memory is ours. Raises whatever the decoder
    does, and ValueError for a file that is none, too large, or of another kind."""
    with open_file(file) as opened:
        try:
            image = Image.open(opened, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ValueError("cannot identify image file") from error
        with image:
            width, height = image.size
            _check(image, allowance)
            with allowance.take(width * height * _bytes_per_pixel(image)):
                yield _converted(image, mode)


def is_turned(image: Image.Image) -> bool:
    """Whether its metadata say that a decoded image is to be turned or mirrored. Pillow has done so with a
    TIFF."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except Exception:  # damaged metadata can raise anything, and cost no image
        return False


def _check(image: Image.Image, allowance: Allowance) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height} pixels, one side more than {MAX_ASPECT} times the other")
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose white is not known")
    if image.mode == "I" and isinstance(image, TiffImageFile):
        signed = "signed " if image.tag_v2.get(SAMPLEFORMAT, (1,))[0] == SIGNED else ""
        raise ValueError(f"{signed}integer pixels of {_bits(image)} bits, whose white is not known")
    fits = allowance.total_bytes // _bytes_per_pixel(image)
    if width * height > fits:
        raise ValueError(f"{width} x {height} pixels, more than {fits:,}, which fit this machine's memory")


def _bytes_per_pixel(image: Image.Image) -> int:
    return BYTES_PER_PIXEL_WEBP if image.format == "WEBP" else BYTES_PER_PIXEL


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        image.load()
        return image
    if image.mode.startswith("I"):  # more than 8 bits a pixel, which Pillow would cut off at 255
        return Image.fromarray(_eight_bits(image)).convert(mode)
    if image.mode == "P":  # a palette may say what is transparent
        return image.convert("RGBA").convert(mode)
    return image.convert(mode)


def _bits(image: Image.Image) -> int:
    """Bits a pixel of a grey image of integers: those that a TIFF file says, and else 16, which a PNG file
    has and a PGM file is scaled to."""
    return int(image.tag_v2[BITSPERSAMPLE][0]) if isinstance(image, TiffImageFile) else 16


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Uint8 ``[H, W]`` of a grey image with more bits a pixel, rounded, some rows at a time."""
    width, height = image.size
    white = 2 ** _bits(image) - 1
    grey = np.empty((height, width), np.uint8)
    for top in range(0, height, STRIP_ROWS):
        bottom = min(top + STRIP_ROWS, height)
        strip = np.asarray(image.crop((0, top, width, bottom)), dtype=np.int64)
        grey[top:bottom] = (255 * strip + white // 2) // white
    return grey
