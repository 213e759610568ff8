"""Images as tensors: the bundled set, or a folder of the user's, through the model's own preprocessing."""

import math
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from optimizer.classes import ClassMapping
from optimizer.environment import environment, threads_available
from optimizer.errors import InputError, WorkError
from optimizer.models import LoadedModel, Report, quiet
from optimizer.records import DataSpec
from optimizer.resources import asset
from optimizer.selection import BUNDLED_ARCHIVES, CALIBRATION_LIMIT, calibration_files, select

MEMORY_SHARE = 0.25
"""The images of one request may take this share of the machine's memory."""
MAX_PIXELS = 80_000_000
MAX_ASPECT = 100
"""Scaling the shorter side up would turn a longer strip into more pixels than ``MAX_PIXELS``."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The decoders used, whatever a file's name says: no others are reached by a hostile file."""
DECODERS = 4
NAMED_IN_NOTES = 3


@dataclass(frozen=True)
class Images:
    """``images`` float32 ``[N, C, H, W]``, preprocessed; ``labels`` int64 ``[N]``, or None without labels."""

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Datasets:
    """Disjoint evaluation and calibration images. Calibration images never carry labels.

    ``notes`` say in words what was skipped and what was drawn; ``mapping`` lists the class folders.
    """

    evaluation: Images
    calibration: Images
    notes: tuple[str, ...]
    mapping: ClassMapping


def load_images(model: LoadedModel, spec: DataSpec, progress: Report | None = None) -> Datasets:
    """Read the images that a spec names, in an order drawn with its seed.

    A file that is no image, damaged, or beyond ``MAX_PIXELS`` is skipped and counted in the notes. Raises
    InputError for a folder that can't be used (:func:`optimizer.selection.select`), for the bundled images
    with a model that was not made for them, and for images that take more than ``MEMORY_SHARE`` of the
    memory.
    """
    report = progress or quiet
    return _load_folder(model, spec, report) if spec.path is not None else _load_bundled(model, spec, report)


def _load_folder(model: LoadedModel, spec: DataSpec, report: Report) -> Datasets:
    report(None, f"listing {spec.path}")
    chosen = select(spec, model.classes, model.wordnet_ids)
    _check_memory(model, len(chosen.evaluation), len(chosen.calibration))
    images, kept, notes = _read(model, chosen.evaluation, "images", report)
    calibration, _, calibration_notes = _read(model, chosen.calibration, "calibration images", report)
    labels = None if chosen.labels is None else torch.tensor(chosen.labels)[kept]
    return Datasets(
        evaluation=Images(images, labels),
        calibration=Images(calibration, None),
        notes=(*chosen.notes, *notes, *calibration_notes),
        mapping=chosen.mapping,
    )


def _load_bundled(model: LoadedModel, spec: DataSpec, report: Report) -> Datasets:
    if not model.card.bundled_images:
        raise InputError(
            f"the bundled images are 28 x 28 clothes, not for {model.card.name}: give an image folder with "
            "its classes"
        )
    if spec.class_index is not None:
        raise InputError("a class index file goes with an image folder: give the folder too, or leave it out")
    report(None, "reading the bundled images")
    pixels, labels = _archive(BUNDLED_ARCHIVES[0])
    drawn = np.random.default_rng(spec.seed).permutation(len(pixels))[: spec.limit]
    notes: tuple[str, ...] = ()
    if len(drawn) < len(pixels):
        notes = (f"{len(drawn):,} of {len(pixels):,} images are evaluated, drawn with seed {spec.seed}",)
    if spec.calibration is None:
        calibration = _preprocess_all(model, _archive(BUNDLED_ARCHIVES[1])[0])
    else:
        files = calibration_files(spec)[:CALIBRATION_LIMIT]
        calibration, _, skipped = _read(model, files, "calibration images", report)
        notes += skipped
    return Datasets(
        evaluation=Images(_preprocess_all(model, pixels[drawn]), torch.from_numpy(labels[drawn])),
        calibration=Images(calibration, None),
        notes=notes,
        mapping=ClassMapping(),
    )


def _archive(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 ``[N, 28, 28]`` and labels int64 ``[N]`` of a bundled set."""
    path = asset(name)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return archive["images"], archive["labels"].astype(np.int64)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"the bundled images {path} are damaged ({error}): install paretoscope again"
        ) from error


def _preprocess_all(model: LoadedModel, pixels: np.ndarray) -> Tensor:
    mode = _mode(model)
    return torch.stack([model.preprocess(Image.fromarray(one).convert(mode)) for one in pixels])


def _read(
    model: LoadedModel, files: Sequence[Path], what: str, report: Report
) -> tuple[Tensor, list[int], tuple[str, ...]]:
    """Decode and preprocess: images ``[n, C, H, W]``, their positions in ``files``, and notes."""
    images = torch.empty(len(files), *model.card.input_shape)

    def read(position: int) -> str | None:
        """Fill one row, or say why it can't be filled."""
        try:
            image = _decode(files[position], _mode(model))
        except Exception as error:  # a damaged file can make a decoder raise anything
            return " ".join(str(error).split()) or type(error).__name__
        row = model.preprocess(image)
        if row.shape != images.shape[1:]:
            raise WorkError(
                f"the preprocessing of {model.card.name} gives {list(row.shape)}, its card says "
                f"{list(model.card.input_shape)}"
            )
        images[position] = row
        return None

    kept: list[int] = []
    skipped: list[str] = []
    with ThreadPoolExecutor(min(DECODERS, threads_available())) as pool:
        for position, problem in enumerate(pool.map(read, range(len(files)))):
            if position % 50 == 0:
                report(position / len(files), f"reading {what}: {position:,} of {len(files):,}")
            if problem is None:
                images[len(kept)] = images[position]  # rows up to here are written: close the gaps
                kept.append(position)
            else:
                skipped.append(f"{files[position].name} ({problem})")
    if not kept:
        raise InputError(f"none of the {len(files):,} {what} can be read: {_first(skipped)}")
    notes = (f"{len(skipped):,} of {len(files):,} {what} skipped: {_first(skipped)}",) if skipped else ()
    return images[: len(kept)], kept, notes


def _decode(file: Path, mode: str) -> Image.Image:
    """The first frame, in ``mode``. Raises whatever the decoder does."""
    if not file.is_file():
        raise ValueError("not a file")
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise ValueError(f"{width} x {height} pixels, one side more than {MAX_ASPECT} times the other")
        if image.mode == "F":
            raise ValueError("floating-point pixels, whose white is not known")
        if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off at 255
            grey = (np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8)
            return Image.fromarray(grey).convert(mode)
        if image.mode == "P":  # a palette may say what is transparent
            return image.convert("RGBA").convert(mode)
        return image.convert(mode)


def _mode(model: LoadedModel) -> str:
    return "L" if model.card.input_shape[0] == 1 else "RGB"


def _check_memory(model: LoadedModel, evaluation: int, calibration: int) -> None:
    image_bytes = 4 * math.prod(model.card.input_shape)
    allowed_bytes = MEMORY_SHARE * environment().memory_bytes
    needed_bytes = image_bytes * (evaluation + calibration)
    if needed_bytes <= allowed_bytes:
        return
    fits = int(allowed_bytes // image_bytes) - calibration
    advice = (
        f"set the image limit to {fits:,}"
        if fits > 0
        else "calibrate with fewer images, or take a smaller model"
    )
    raise InputError(
        f"{evaluation:,} images and {calibration:,} for calibration take {needed_bytes / 2**30:.1f} GiB as "
        f"input of {model.card.name}, more than {MEMORY_SHARE:.0%} of this machine's memory: {advice}"
    )


def _first(skipped: Sequence[str]) -> str:
    more = ["..."] if len(skipped) > NAMED_IN_NOTES else []
    return ", ".join([*skipped[:NAMED_IN_NOTES], *more])
