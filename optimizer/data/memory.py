"""Images given in memory: arrays, tensors, or a dataset, in the place of a folder."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from traceback import format_exception_only
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from optimizer.data.classes import ClassMapping
from optimizer.data.duplicates import counted_once, digest_of
from optimizer.data.loading import Datasets, Images
from optimizer.data.selection import CALIBRATION_LIMIT
from optimizer.errors import InputError, one_line
from optimizer.formats import count
from optimizer.progress import Report, quiet
from optimizer.records import DataSpec

Given = Any
"""Images ``[N, ...]`` as an array or tensor, a pair of them and labels ``[N]``, or a ``Dataset``."""
PAIR = 2
LABELS_WANTED = (
    "give one whole number an image, the index of the model's output that is right, or leave them out: "
    "outputs are then compared with the uncompressed model's"
)
IMAGES_WANTED = (
    "give a folder, an array or tensor [N, C, H, W], a pair (images, labels), or a torch Dataset of pairs "
    "(image, label)"
)

IMAGE_DIMENSIONS = 4
"""Of a batch: at least a channel, a height and a width an image."""


def in_memory(data: Given, calibration: Given = None, report: Report = quiet) -> Datasets:
    """Evaluation images with their labels, if they have any, and calibration images.

    Without ``calibration`` a fifth of the images, up to 512, is drawn and set aside for it. Of a dataset at
    most 10,000 examples are read: drawn, or the first of an ``IterableDataset``. Of images that are equal one
    is evaluated, and none calibrates that is. Raises InputError for no example or one that the dataset fails
    at, images that are no floats, are not finite or differ in shape, labels that are not one whole number an
    image, and where no image is left to calibrate.
    """
    images, digests, notes = _counted_once(data, report)
    given = Datasets(images, Images(images.images[:0], None), notes, ClassMapping())
    if calibration is not None:
        return _calibrated(given, digests, _read(calibration, report)[0])
    usual, number = DataSpec(), len(images.images)
    aside = min(CALIBRATION_LIMIT, max(1, round(usual.calibration_share * number)))
    if aside == number:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise InputError(
            f"a single image can't both be evaluated and calibrate{why}: give more, or others as "
            "calibration=images"
        )
    order = torch.from_numpy(np.random.default_rng(usual.seed).permutation(number))
    return replace(
        given,
        evaluation=_rows(images, order[aside:]),
        calibration=Images(images.images[order[:aside]], None),
        notes=(*notes, f"{count(aside, 'image')} of those that were given set aside for calibration"),
    )


def calibrated(datasets: Datasets, calibration: Tensor) -> Datasets:
    """With other calibration images ``[N, ...]``, less those that are evaluated. Raises InputError where none
    is left."""
    return _calibrated(datasets, set(_digests(datasets.evaluation.images)), calibration)


def for_calibration(images: Given, report: Report = quiet) -> Datasets:
    """Calibration images alone: nothing is evaluated on."""
    read = _read(images, report)[0]
    return Datasets(Images(read[:0], None), Images(read, None), (), ClassMapping())


def for_evaluation(data: Given, report: Report = quiet) -> Datasets:
    """All of them evaluated, and none set aside."""
    images, _, notes = _counted_once(data, report)
    return Datasets(images, Images(images.images[:0], None), notes, ClassMapping())


def check_shape(datasets: Datasets, input_shape: tuple[int, ...], model: str) -> None:
    """Raises InputError for images that are not what the model takes."""
    for kind, images in (("", datasets.evaluation.images), ("calibration ", datasets.calibration.images)):
        if tuple(images.shape[1:]) != input_shape:
            raise InputError(
                f"{kind}images of shape {list(images.shape[1:])} don't fit {model}, which takes "
                f"{list(input_shape)}: preprocess them as the model wants it"
            )


def content(datasets: Datasets) -> str:
    """A digest of all images and labels."""
    digest = hashlib.sha256()
    for tensor in (datasets.evaluation.images, datasets.evaluation.labels, datasets.calibration.images):
        if tensor is not None:
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:20]


def _read(data: Given, report: Report) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    if isinstance(data, Dataset):
        images, labels, notes = _of_dataset(data, report)
    elif isinstance(data, tuple | list) and len(data) == PAIR:
        images, labels = data
        _check_pair(images, labels)
    else:
        images, labels = data, None
    return (found := _images(images)), _labels(labels, len(found)), notes


def _counted_once(data: Given, report: Report) -> tuple[Images, set[bytes], tuple[str, ...]]:
    """The images that equal none before them, with their labels; their digests; notes. Rows of a table and
    tokens may be equal and no copies: all of them count."""
    read, labels, notes = _read(data, report)
    images, digests = Images(read, labels), _digests(read)
    rows, left_out = counted_once(digests) if read.ndim >= IMAGE_DIMENSIONS else ([], ())
    if left_out:
        images = _rows(images, torch.tensor(rows))
    return images, set(digests), (*notes, *left_out)


def _digests(images: Tensor) -> list[bytes]:
    return [digest_of(row.shape, row) for row in images]


def _rows(images: Images, rows: Tensor) -> Images:
    return Images(images.images[rows], None if images.labels is None else images.labels[rows])


def _calibrated(datasets: Datasets, evaluated: set[bytes], calibration: Tensor) -> Datasets:
    """With other calibration images, less those whose digest is of an ``evaluated`` one."""
    others = torch.tensor([digest not in evaluated for digest in _digests(calibration)])
    if not others.any():
        spare = ", or leave it out" if len(evaluated) > 1 else ""
        raise InputError(
            f"every calibration image is also evaluated: give others as calibration=images{spare}"
        )
    if others.all():
        return replace(datasets, calibration=Images(calibration, None))
    number = int((~others).sum())
    note = f"{count(number, 'calibration image')} left out: evaluated images have the same content"
    return replace(datasets, calibration=Images(calibration[others], None), notes=(*datasets.notes, note))


def _check_pair(images: Any, labels: Any) -> None:
    """Raises InputError for two arrays of one kind: a list of two images, or of inputs and their targets."""
    both = [one.dtype for one in (images, labels) if isinstance(one, Tensor | np.ndarray)]
    if len(both) == PAIR and images.shape == labels.shape and all("float" in str(dtype) for dtype in both):
        raise InputError(
            f"two arrays of floats {list(images.shape)} are read as images and their labels: give several "
            "images as one array [N, ...], by torch.stack, and leave out targets that are no classes: "
            "outputs are then compared with the uncompressed model's"
        )


def _images(images: Any) -> Tensor:
    if isinstance(images, DataLoader):
        raise InputError("a DataLoader gives batches: give its .dataset")
    try:
        found = torch.as_tensor(_native(images))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{type(images).__name__} is no set of images: {IMAGES_WANTED}") from error
    if found.layout is not torch.strided:
        raise InputError(f"images are a tensor of layout {found.layout}: give a dense one, by .to_dense()")
    if not len(found.shape) or not len(found):
        raise InputError("there is no image in it: give at least 2, or 1 with others as calibration=images")
    if not found.is_floating_point():
        raise InputError(
            f"images are {found.dtype}: give them as the model takes them, floats after its preprocessing. "
            "Tokens are given as floats too, to a module whose forward begins with x = x.long()"
        )
    found = found.detach().cpu().float().contiguous()
    broken = len(found) - int(found.isfinite().reshape(len(found), -1).all(1).sum())
    if broken:  # an engine may answer them with numbers
        raise InputError(
            f"{broken:,} of {count(len(found), 'image')} have values that are not finite (NaN or infinity): "
            "look for a division by zero in their preprocessing, or leave them out"
        )
    return found


def _native(given: Any) -> Any:
    """An array as torch takes it, whatever its strides and byte order: flipped, or a file that is mapped."""
    if isinstance(given, np.ndarray):
        return np.require(given, given.dtype.newbyteorder("="), ("C", "W"))
    return given


def _labels(labels: Any, images: int) -> Tensor | None:
    if labels is None:
        return None
    try:
        found = torch.as_tensor(_native(np.asarray(labels)))
    except (TypeError, ValueError, RuntimeError) as error:  # text, objects, rows of different lengths
        raise InputError(f"labels can't be read ({error}): {LABELS_WANTED}") from error
    if found.shape == (images, 1):
        found = found[:, 0]
    if found.ndim != 1 or len(found) != images or found.is_floating_point():
        raise InputError(
            f"labels of shape {list(found.shape)} and type {found.dtype} don't fit {count(images, 'image')}: "
            f"{LABELS_WANTED}"
        )
    return found.long()


def _of_dataset(data: Dataset[Any], report: Report) -> tuple[Tensor, list[Any] | None, tuple[str, ...]]:
    examples, total, notes = _examples(data)
    images: list[Tensor] = []
    labels: list[Any] = []
    for number, example in enumerate(examples):
        if number % 100 == 0:
            report(number / total, f"reading the dataset: {number:,} of {total:,}")
        image, *rest = example if isinstance(example, tuple | list) else (example,)
        try:
            images.append(torch.as_tensor(_native(image)))
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the dataset gives {type(image).__name__} as an image: {_example_wanted(image)}"
            ) from error
        labels += [one.tolist() if isinstance(one, Tensor) else one for one in rest[:1]]
    if not images:
        raise InputError("the dataset has no example: give one of length 2 or more")
    if len({image.shape for image in images}) > 1:
        raise InputError(
            f"the dataset's images differ in shape ({list(images[0].shape)} and others): resize them to one"
        )
    labelled = len(labels) == len(images)
    return torch.stack(images), labels if labelled else None, notes if len(images) == total else ()


def _example_wanted(image: Any) -> str:
    if isinstance(image, Mapping | tuple | list):
        return (
            "wrap it in one that gives pairs (input, label), or inputs alone, each input one tensor of floats"
        )
    return (
        "have it give floats [C, H, W] as the model takes them, such as by transform=weights.transforms() of "
        "torchvision"
    )


def _examples(data: Dataset[Any]) -> tuple[Iterable[Any], int, tuple[str, ...]]:
    """Those to read, how many at most, and a note for where there are as many: datasets come sorted by
    class, so that a part of one is drawn."""
    usual = DataSpec()
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        note = f"the first {usual.limit:,} examples are used, of a dataset that can't be drawn from"
        return _streamed(data, usual.limit), usual.limit, (note,)
    length = len(data)
    if length <= usual.limit:
        return _indexed(data, range(length)), length, ()
    drawn = np.random.default_rng(usual.seed).permutation(length)[: usual.limit].tolist()
    note = f"{usual.limit:,} of {length:,} examples are used, drawn with seed {usual.seed}"
    return _indexed(data, drawn), usual.limit, (note,)


def _indexed(data: Dataset[Any], numbers: Iterable[int]) -> Iterator[Any]:
    """Raises InputError where the dataset has fewer examples than it says, or fails at one."""
    for number in numbers:
        try:
            example = data[number]
        except IndexError as error:
            raise InputError(
                f"the dataset says that it has {len(data):,} examples, and gives none for {number} "  # type: ignore[arg-type]
                f"({error}): give one whose length is right"
            ) from error
        except Exception as error:  # code of the user's own can raise anything
            raise _failed(number, error) from error
        yield example


def _streamed(data: Dataset[Any], most: int) -> Iterator[Any]:
    """Raises InputError where the dataset fails at an example."""
    number = 0
    try:
        for example in islice(iter(data), most):
            yield example
            number += 1
    except Exception as error:
        raise _failed(number, error) from error


def _failed(number: int, error: Exception) -> InputError:
    words = one_line("".join(format_exception_only(error)))
    return InputError(f"the dataset fails at example {number} ({words}): mend it, or leave that example out")
