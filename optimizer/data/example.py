"""One image to look at, before a model is there to preprocess it. No torch."""

from PIL import Image

from optimizer.data.decoding import Allowance, decoded
from optimizer.data.folders import check_again, list_folder
from optimizer.data.selection import BUNDLED_ARCHIVES, bundled_set
from optimizer.errors import InputError
from optimizer.records import DataSpec

MAX_SIDE = 1024
"""Pixels: of a larger one a smaller copy is shown."""
MAX_TRIED = 5


def example_image(spec: DataSpec) -> Image.Image:
    """The first image of a folder that can be read, or a bundled one. Raises InputError."""
    if spec.path is None:
        return Image.fromarray(bundled_set(BUNDLED_ARCHIVES[0])[0][0]).convert("RGB")
    check_again(spec.path)
    for path in list_folder(spec.path).images[:MAX_TRIED]:
        try:
            with decoded(path, "RGB", Allowance.of_this_machine()) as image:
                copy = image.copy()
        except Exception:  # a damaged file can make a decoder raise anything
            continue
        copy.thumbnail((MAX_SIDE, MAX_SIDE))
        return copy
    raise InputError(f"none of the first {MAX_TRIED} images in {spec.path} can be read")
