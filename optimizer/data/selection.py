"""Who is evaluated and who calibrates, of image folders; and whether they are as they were.

Opens no image of a folder; reads some files to compare their content.
"""

import json
import os
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from optimizer.data.classes import ClassMapping, index_file, map_classes
from optimizer.data.folders import (
    INDEX_NAMES,
    RECENT_SECONDS,
    Listing,
    check_again,
    content,
    expand,
    is_uploaded,
    list_folder,
    named,
    place_of,
    stamp,
)
from optimizer.errors import InputError
from optimizer.formats import count
from optimizer.records import DataSpec, digest
from optimizer.system.paths import asset
from optimizer.system.recent import remembered

T = TypeVar("T")

BUNDLED_ARCHIVES = ("fashion-test.npz", "fashion-calibration.npz")
CALIBRATION_LIMIT = 512
"""At most so many images of a folder calibrate: more change ranges little and cost memory."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to read. The two sets are disjoint, in drawn order, so that a prefix is a fair sample.

    ``labels`` has the output that is right for each evaluated file, or is None for a flat folder. ``spare``
    files are in neither set: they calibrate where no file of ``calibration`` can be read.
    """

    evaluation: tuple[Path, ...]
    labels: tuple[int, ...] | None
    calibration: tuple[Path, ...]
    spare: tuple[Path, ...]
    mapping: ClassMapping
    notes: tuple[str, ...]


def select(
    spec: DataSpec, classes: Sequence[str] | None, wordnet_ids: Sequence[str] = (), unnamed: bool = False
) -> Selection:
    """Who is evaluated and who calibrates, of a folder. Opens no image, reads some to compare their content.

    Without ``classes`` (None) the folders are no labels; ``unnamed`` ones are the outputs' numbers. Raises
    InputError: no folder or none with images, no class that maps, a calibration folder that is the evaluation
    folder or holds nothing else, too few images to set some aside.
    """
    if spec.path is None:
        raise InputError("no image folder is given")
    check_again(spec.path)
    listing = list_folder(spec.path)
    if classes is None:
        if spec.class_index is not None:
            raise InputError("a class index file goes with a network that tells classes: leave it out")
        classes, listing = (), replace(listing, folders=(None,) * len(listing.images))
    mapping = map_classes(listing.classes, classes, wordnet_ids, spec.class_index, listing.path)
    if listing.classes and not mapping.mapped:
        raise _nothing_maps(listing, classes, unnamed)
    notes = _listing_notes(listing, mapping)
    outputs: dict[str | None, int] = {entry.folder: entry.index for entry in mapping.mapped}
    usable = [
        (file, outputs.get(folder, -1))
        for file, folder in _shuffled(list(zip(listing.images, listing.folders, strict=True)), spec.seed)
        if folder is None or folder in outputs
    ]
    if spec.calibration is not None:
        candidates = calibration_files(spec)
    else:
        aside = max(1, round(spec.calibration_share * len(usable)))
        if aside == len(usable):
            raise InputError(
                f"{place_of(listing.path)} has too few images to set a share of {spec.calibration_share:g} "
                "aside for calibration: give more images, another share, or a calibration folder"
            )
        candidates, usable = [file for file, _ in usable[:aside]], usable[aside:]
    if len(usable) > spec.limit:
        notes.append(f"{spec.limit:,} of {len(usable):,} images are evaluated, drawn with seed {spec.seed}")
    evaluation = tuple(file for file, _ in usable[: spec.limit])
    unused = () if spec.calibration is not None else tuple(file for file, _ in usable[spec.limit :])
    calibration, shared = without_shared(candidates, evaluation, CALIBRATION_LIMIT)
    if not calibration:
        raise InputError("every calibration image is also evaluated: give a folder of other images")
    if shared:
        notes.append(f"{count(shared, 'calibration image')} left out: evaluated images have the same content")
    if len(calibration) < len(candidates) - shared:
        notes.append(f"{len(calibration):,} of {len(candidates):,} calibration images are used")
    return Selection(
        evaluation=evaluation,
        labels=tuple(index for _, index in usable[: spec.limit]) if listing.classes else None,
        calibration=calibration,
        spare=(*candidates[len(calibration) + shared :], *unused),
        mapping=mapping,
        notes=tuple(notes),
    )


def calibration_files(spec: DataSpec) -> list[Path]:
    """The images of the calibration folder, drawn with the seed. Raises InputError."""
    if spec.calibration is None:
        raise InputError("no calibration folder is given")
    check_again(spec.calibration)
    listing = list_folder(spec.calibration)
    if spec.path is not None and os.path.realpath(listing.path) == os.path.realpath(expand(spec.path)):
        raise InputError(
            f"the calibration folder {spec.calibration} is the evaluation folder: give a folder of other "
            "images, or none, and a share of the images is set aside"
        )
    return _shuffled(listing.images, spec.seed)


def without_shared(
    candidates: Iterable[Path], evaluation: Iterable[Path], count: int
) -> tuple[tuple[Path, ...], int]:
    """The first ``count`` candidates whose content no evaluated file has, and how many were passed over.

    Only files of equal size are read.
    """
    by_size: dict[int, list[Path]] = defaultdict(list)
    for file in evaluation:
        if (size_bytes := stamp(file)[0]) >= 0:  # reading a pipe would wait for ever
            by_size[size_bytes].append(file)
    contents: dict[int, set[str]] = {}
    kept: list[Path] = []
    shared = 0
    for file in candidates:
        if len(kept) == count:
            break
        size_bytes = stamp(file)[0]
        if size_bytes not in contents:
            contents[size_bytes] = {content(other) for other in by_size.get(size_bytes, ())}
        if contents[size_bytes] and content(file) in contents[size_bytes]:
            shared += 1
        else:
            kept.append(file)
    return tuple(kept), shared


def bundled_set(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 ``[N, 28, 28]`` and labels int64 ``[N]`` of a bundled set. Raises InputError."""
    path = asset(name)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return archive["images"], archive["labels"].astype(np.int64)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"the bundled images {path} are damaged ({error}): install paretoscope again"
        ) from error


def check_at_hand(spec: DataSpec) -> None:
    """Raises InputError for images that were given in memory: no others are to take their place."""
    if spec.content:
        raise InputError(
            "these images were given in memory, and are here no more: ask again from Python, with them"
        )


def fingerprint(spec: DataSpec) -> str:
    """Changes when an image or the class index file is added, removed or changed.

    Of folders the names, sizes and times of change are looked at, of the bundled images the content. Raises
    InputError as :func:`list_folder` does.
    """
    if spec.content:
        return spec.content
    parts: list[object] = []
    if spec.path is None:
        archives = [asset(name) for name in BUNDLED_ARCHIVES]
        parts.append([_archive_digest(archive, *stamp(archive)) for archive in archives])
    else:
        index = expand(spec.class_index) if spec.class_index else index_file(expand(spec.path))
        parts.append(None if index is None else [index.name, *stamp(index)])
    for path in (spec.path, spec.calibration):
        if path is not None:
            listing = list_folder(path)
            top = str(listing.path)
            parts.append([(str(file).removeprefix(top), *stamp(file)) for file in listing.images])
    return digest(parts)


def recent_fingerprint(spec: DataSpec) -> str:
    """The same, up to RECENT_SECONDS old and shared by all who ask: enough to look a result up. What measures
    looks anew."""
    return spec.content or _recent(spec.path, spec.calibration, spec.class_index)


@remembered(RECENT_SECONDS)
def _recent(path: str | None, calibration: str | None, class_index: str | None) -> str:
    return fingerprint(DataSpec(path, calibration, class_index))


@lru_cache(maxsize=8)
def _archive_digest(archive: Path, size_bytes: int, mtime_ns: int) -> str:
    return content(archive)


def _shuffled(items: Sequence[T], seed: int) -> list[T]:
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items))]


def _listing_notes(listing: Listing, mapping: ClassMapping) -> list[str]:
    notes = []
    if listing.others:
        notes.append(f"{named(listing.others, 'file')} skipped: not an image by name")
    if listing.loose:
        notes.append(f"{count(listing.loose, 'image')} beside the class folders left out")
    if mapping.unmapped:
        notes.append(
            f"{named(mapping.unmapped, 'class folder')} left out: no output of the model has that name"
        )
    return notes


def _nothing_maps(listing: Listing, classes: Sequence[str], unnamed: bool) -> InputError:
    folders, outputs = f"{named(listing.classes, 'folder')} in {place_of(listing.path)}", len(classes)
    given = is_uploaded(listing.path)
    # With their own names: one of the classes' names, as many have it, would not find them either.
    example = json.dumps(
        {folder: index for index, folder in enumerate(listing.classes[:2])}, ensure_ascii=False
    )
    if given:
        index = f"put {' or '.join(INDEX_NAMES)} beside them into the ZIP file, such as {example}"
    else:
        index = (
            f"give a class index file with these names: JSON such as {example}, or a text file with one a "
            "line, in the order of the outputs"
        )
    if unnamed:
        return InputError(
            f"the {folders} can't be matched to the model's {outputs:,} outputs: it has no class names. Add "
            f"the model again with class names, give {outputs:,} class folders (they are taken in "
            f"alphabetical order), name them by the outputs' numbers (0 to {outputs - 1}), or {index}"
        )
    name = "Name" if given else "Give the folder whose subfolders are classes, name"
    return InputError(
        f"none of the {folders} is a class of the model, which has {named(classes, 'class', 'classes')}. "
        f"{name} them by WordNet id or class name, or {index}"
    )
