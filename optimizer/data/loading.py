"""Images as tensors: the bundled set, or a folder of the user's, through the model's own preprocessing."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from optimizer.data.classes import ClassMapping, read_class_index
from optimizer.data.decoding import DECODERS, Allowance, decoded, is_turned
from optimizer.data.duplicates import copies, counted_once, digest_of
from optimizer.data.folders import expand, list_folder, place_of
from optimizer.data.selection import (
    BUNDLED_ARCHIVES,
    CALIBRATION_LIMIT,
    bundled_set,
    calibration_files,
    check_at_hand,
    fingerprint,
    select,
    without_shared,
)
from optimizer.errors import InputError, WorkError, one_line
from optimizer.formats import count, format_share
from optimizer.model.catalogue import LoadedModel
from optimizer.model.sources import imagenet
from optimizer.model.sources.bundled import GreyTransform
from optimizer.progress import Report, quiet
from optimizer.records import DataSpec, ModelCard
from optimizer.system.environment import environment, threads_available

MEMORY_SHARE = 0.25
"""The images that one process holds may take this share of the memory that a container leaves it. There are
two workers, so all images together take at most half."""
MAX_HELD = 2
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

    @property
    def size_bytes(self) -> int:
        """Bytes of the images in memory."""
        return self.evaluation.images.nbytes + self.calibration.images.nbytes


def load_images(
    model: LoadedModel, spec: DataSpec, progress: Report | None = None, read: int | None = None
) -> Datasets:
    """Read the images that a spec names, in an order drawn with its seed; of those to evaluate the first
    ``read``, or all. Calibration images are the same either way, up to those that only look like one that is
    not read.

    A file that is no image, damaged, or beyond ``MAX_PIXELS`` is skipped and counted in the notes. Raises
    InputError for a folder that can't be used (:func:`optimizer.data.selection.select`), for images that were
    given in memory, for the bundled images with a model that was not made for them, and for images that take
    more than ``MEMORY_SHARE`` of the memory. Of a folder's images that are equal one is evaluated, and none
    calibrates that is a copy of an evaluated one.
    """
    check_at_hand(spec)
    report = progress or quiet
    load = _load_bundled if spec.path is None else _load_folder
    return load(model, spec, report, read)


def held_images(model: LoadedModel, spec: DataSpec, files: str, read: int | None = None) -> Datasets:
    """:func:`load_images`, held for the next who asks, until others need the memory.

    ``files`` is the fingerprint of the images (:func:`optimizer.data.selection.fingerprint`). Raises
    InputError also where they changed while they were read.
    """
    key = (model.card.name, model.card.version, spec, files, read)
    datasets = _held.pop(key, None)
    if datasets is None:
        datasets = load_images(model, spec, read=read)
        if fingerprint(spec) != files:
            raise InputError(f"the images in {spec.path} changed while they were read: try again")
    _held[key] = datasets
    while len(_held) > MAX_HELD:
        _forget_oldest()
    return datasets


_held: dict[tuple[str, str, DataSpec, str, int | None], Datasets] = {}
"""The one asked for longest ago comes first."""


def _forget_oldest() -> None:
    del _held[next(iter(_held))]


def _load_folder(model: LoadedModel, spec: DataSpec, report: Report, limit: int | None) -> Datasets:
    report(None, f"listing {place_of(expand(spec.path or ''))}")
    names, wordnet_ids = classes_of(model, spec)
    chosen = select(spec, names, wordnet_ids, unnamed=not model.classes)
    evaluation = chosen.evaluation[:limit]
    _make_room(model, len(evaluation), len(chosen.calibration))
    read = _read(model, evaluation, "images", report)
    read.check()
    images, positions, notes = _counted_once(read)
    labels = None if chosen.labels is None else torch.tensor(chosen.labels)[positions]
    calibration = _calibration(model, chosen.calibration, chosen.spare, chosen.evaluation, report)
    if spec.calibration is None and not len(calibration.images) and len(images) > 1:
        aside = min(max(1, round(spec.calibration_share * len(images))), len(images) - 1)
        calibration = replace(calibration, images=images[-aside:])
        images, labels = images[:-aside], None if labels is None else labels[:-aside]
        notes += (f"{count(aside, 'image')} set aside for calibration in place of those that can't be read",)
    calibration.check()
    without, copied = _without_copies(calibration, images)
    covered = () if labels is None else _coverage(labels, model.card.classes)
    return Datasets(
        evaluation=Images(images, labels),
        calibration=Images(without, None),
        notes=(
            *chosen.notes,
            *_order_of(() if model.classes else names or ()),
            *read.notes,
            *notes,
            *covered,
            *calibration.notes,
            *copied,
        ),
        mapping=chosen.mapping,
    )


def classes_of(model: LoadedModel, spec: DataSpec) -> tuple[Sequence[str] | None, Sequence[str]]:
    """Names of the model's classes, and their WordNet ids; None and none for a network without classes.

    Where they are not known, 1,000 outputs are ImageNet's classes if most folders are. Else they are those
    of the class index file, if one is given; as many folders as outputs are numbered in alphabetical order,
    as ``torchvision.datasets.ImageFolder`` does.
    """
    if not model.card.classes:
        return None, ()
    if model.classes:
        return model.classes, model.wordnet_ids
    folders = sorted(list_folder(spec.path or "").classes)
    if model.card.classes == imagenet.CLASSES and imagenet.has_folders(folders):
        return imagenet.class_names(), imagenet.wordnet_ids()
    numbers = list(map(str, range(model.card.classes)))
    if spec.class_index is not None:
        named = {index: name for name, index in read_class_index(spec.class_index, folders)}
        return [named.get(int(number), number) for number in numbers], ()
    return folders if len(folders) == len(numbers) else numbers, ()


def _order_of(names: Sequence[str]) -> tuple[str, ...]:
    """In words that classes are in another order than the numbers which are their names, where they are."""
    if not all(name.isdecimal() for name in names) or list(names) == sorted(names, key=int):
        return ()
    place = next(place for place, name in enumerate(names) if int(name) != place)
    return (
        f"folders named by numbers are in alphabetical order, as ImageFolder has them: {names[place]!r} is "
        f"the model's output {place}. Where they are numbers of outputs, give a class index file",
    )


def _calibration(
    model: LoadedModel,
    files: Sequence[Path],
    spare: Sequence[Path],
    evaluated: Sequence[Path],
    report: Report,
) -> "_Read":
    """The calibration images; where none can be read as many spare ones, of which none is ``evaluated``."""
    read = _read(model, files, "calibration images", report)
    while spare and not len(read.images):
        others, spare = spare[: len(files)], spare[len(files) :]
        instead = _read(model, without_shared(others, evaluated, len(others))[0], "spare images", report)
        if number := len(instead.images):
            verb = "takes" if number == 1 else "take"
            note = f"{count(number, 'other image')} {verb} the place of calibration images that can't be read"
            read = replace(instead, notes=(*read.notes, *instead.notes, note))
    return read


def _counted_once(read: "_Read") -> tuple[Tensor, list[int], tuple[str, ...]]:
    """The images that are no copy of one before, pixel for pixel; their positions among the files; notes."""
    rows, notes = counted_once(read.digests)
    for place, row in enumerate(rows):  # in place: the images may fill what memory there is for them
        if place != row:
            read.images[place] = read.images[row]
    return read.images[: len(rows)], [read.positions[row] for row in rows], notes


def _without_copies(calibration: "_Read", evaluated: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """The calibration images that are none of the evaluated ones, scaled or encoded anew; and notes."""
    copied = copies(calibration.images, evaluated)
    if copied.all():
        raise InputError(
            "every calibration image is a copy of an evaluated one: give a folder of other images"
        )
    if not copied.any():
        return calibration.images, ()
    number = int(copied.sum())
    return calibration.images[~copied], (
        f"{count(number, 'calibration image')} left out: evaluated images look the same",
    )


def _coverage(labels: Tensor, classes: int) -> tuple[str, ...]:
    """In words which classes the images cover, unless they are all of them and equally often there."""
    each = labels.bincount(minlength=classes)
    each = each[each > 0]
    least, most = int(each.min()), int(each.max())
    if len(each) == classes and least == most:
        return ()
    often = count(least, "image") if least == most else f"{least:,} to {most:,} images"
    return (f"{len(each):,} of {count(classes, 'class', 'classes')} covered, {often} a class",)


def check_has_images(card: ModelCard, spec: DataSpec) -> None:
    """Raises InputError for the bundled images with a model that was not made for them."""
    if spec.path is None and not spec.content and not card.bundled_images:
        what = "with its classes" if card.classes else "of what it takes"
        raise InputError(
            f"the bundled images are 28 x 28 clothes, not for {card.name}: give an image folder {what}"
        )


def _load_bundled(model: LoadedModel, spec: DataSpec, report: Report, limit: int | None) -> Datasets:
    check_has_images(model.card, spec)
    if spec.class_index is not None:
        raise InputError("a class index file goes with an image folder: give the folder too, or leave it out")
    report(None, "reading the bundled images")
    pixels, labels = bundled_set(BUNDLED_ARCHIVES[0])
    sampled = np.random.default_rng(spec.seed).permutation(len(pixels))[: spec.limit]
    notes: tuple[str, ...] = ()
    if len(sampled) < len(pixels):
        notes = (f"{len(sampled):,} of {len(pixels):,} images are evaluated, drawn with seed {spec.seed}",)
    evaluation = _preprocess_all(model, pixels[sampled[:limit]])
    if spec.calibration is None:
        calibration = _preprocess_all(model, bundled_set(BUNDLED_ARCHIVES[1])[0])
    else:
        files = calibration_files(spec)
        read = _calibration(model, files[:CALIBRATION_LIMIT], files[CALIBRATION_LIMIT:], (), report)
        read.check()
        calibration, copied = _without_copies(read, evaluation)
        notes += (*read.notes, *copied)
    return Datasets(
        evaluation=Images(evaluation, torch.from_numpy(labels[sampled[:limit]])),
        calibration=Images(calibration, None),
        notes=notes,
        mapping=ClassMapping(),
    )


def _preprocess_all(model: LoadedModel, pixels: np.ndarray) -> Tensor:
    mode, preprocess = _mode(model), model.preprocess
    if isinstance(preprocess, GreyTransform) and pixels.shape[1:] == (preprocess.size, preprocess.size):
        return preprocess.of_pixels(pixels)
    return torch.stack([preprocess(Image.fromarray(one).convert(mode)) for one in pixels])


@dataclass(frozen=True)
class _Read:
    """Images ``[n, C, H, W]``, their positions among the files and digests (:func:`digest_of`), and notes.

    ``problem`` says why there is none.
    """

    images: Tensor
    positions: list[int]
    digests: list[bytes]
    notes: tuple[str, ...]
    problem: str

    def check(self) -> None:
        """Raises InputError where there is no image."""
        if not len(self.images):
            raise InputError(self.problem)


def _read(model: LoadedModel, files: Sequence[Path], what: str, report: Report) -> _Read:
    """Decode and preprocess."""
    images = torch.empty(len(files), *model.card.input_shape)
    allowance = Allowance.of_this_machine()
    turned = [False] * len(files)

    def read(position: int) -> bytes | str:
        """Fill one row and give its digest, or say why it can't be filled."""
        try:
            with decoded(files[position], _mode(model), allowance) as image:
                row = model.preprocess(image)
                if row.shape == images.shape[1:]:
                    images[position] = row
                    turned[position] = is_turned(image)
                    return digest_of(image.size, images[position])
        except Exception as error:  # a damaged file can make a decoder raise anything
            return one_line(error)
        raise WorkError(
            f"the preprocessing of {model.card.name} gives {list(row.shape)}, its card says "
            f"{list(model.card.input_shape)}"
        )

    kept: list[int] = []
    digests: list[bytes] = []
    skipped: list[str] = []
    with ThreadPoolExecutor(min(DECODERS, threads_available())) as pool:
        for position, read_or_not in enumerate(pool.map(read, range(len(files)))):
            if position % 50 == 0:
                report(position / len(files), f"reading {what}: {position:,} of {len(files):,}")
            if isinstance(read_or_not, bytes):
                images[len(kept)] = images[position]  # rows up to here are written: close the gaps
                kept.append(position)
                digests.append(read_or_not)
            else:
                skipped.append(f"{files[position].name} ({read_or_not})")
    notes = []
    if skipped:
        notes.append(f"{len(skipped):,} of {len(files):,} {what} skipped: {_first(skipped)}")
    if number := sum(turned):
        notes.append(
            f"{number:,} of {len(files):,} {what} read as stored, as torchvision does, though their EXIF "
            "orientation says to turn them"
        )
    problem = f"none of the {len(files):,} {what} can be read: {_first(skipped)}"
    return _Read(images[: len(kept)], kept, digests, tuple(notes), problem)


def _mode(model: LoadedModel) -> str:
    return "L" if model.card.input_shape[0] == 1 else "RGB"


def _make_room(model: LoadedModel, evaluation: int, calibration: int) -> None:
    """Let go of images that are held where these would not fit beside them. Raises InputError where they
    don't fit alone."""
    image_bytes = 4 * math.prod(model.card.input_shape)
    allowed_bytes = MEMORY_SHARE * environment().memory_bytes
    needed_bytes = image_bytes * (evaluation + calibration)
    while _held and needed_bytes + sum(held.size_bytes for held in _held.values()) > allowed_bytes:
        _forget_oldest()
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
        f"input of {model.card.name}, more than {format_share(MEMORY_SHARE)} of this machine's memory: "
        f"{advice}"
    )


def _first(skipped: Sequence[str]) -> str:
    more = ["..."] if len(skipped) > NAMED_IN_NOTES else []
    return ", ".join([*skipped[:NAMED_IN_NOTES], *more])
