"""Image folders without opening an image: what lies in one, which class is which, and who is evaluated.

A folder has one subfolder a class (``n01440764/x.jpg``), or only images: then they have no labels. Hidden
files are passed over, links are followed. No torch here, so that pages can ask.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from optimizer.errors import InputError
from optimizer.records import DataSpec, digest
from optimizer.resources import asset

T = TypeVar("T")

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)
INDEX_NAMES = ("imagenet_class_index.json", "class_index.json")
INDEX_MAX_BYTES = 10_000_000
BUNDLED_ARCHIVES = ("fashion-test.npz", "fashion-calibration.npz")
CALIBRATION_LIMIT = 512
"""At most so many images of a folder calibrate: more change ranges little and cost memory."""
ROOTS_VARIABLE = "PARETOSCOPE_IMAGE_ROOTS"
OFFERED_SUBFOLDERS = 20
NAMED_IN_NOTES = 5


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies in an image folder, sorted.

    ``folders[i]`` is the class folder of ``images[i]``, or None in a flat folder. ``others`` are files whose
    name is not an image's, ``loose`` counts images beside the class folders.
    """

    path: Path
    images: tuple[Path, ...]
    folders: tuple[str | None, ...]
    others: tuple[Path, ...]
    loose: int = 0

    @property
    def classes(self) -> tuple[str, ...]:
        """The class folders that hold an image; none in a flat folder."""
        return tuple(dict.fromkeys(folder for folder in self.folders if folder is not None))


@dataclass(frozen=True, slots=True)
class MappedFolder:
    """A class folder, the model's output that it stands for, that output's name, and what told so."""

    folder: str
    index: int
    name: str
    by: str


@dataclass(frozen=True, slots=True)
class ClassMapping:
    """Class folders and the model's outputs. A subset of the model's classes is normal."""

    mapped: tuple[MappedFolder, ...] = ()
    unmapped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """The files to read. The two sets are disjoint, in drawn order, so that a prefix is a fair sample.

    ``labels`` has the output that is right for each evaluated file, or is None for a flat folder.
    """

    evaluation: tuple[Path, ...]
    labels: tuple[int, ...] | None
    calibration: tuple[Path, ...]
    mapping: ClassMapping
    notes: tuple[str, ...]


def list_folder(path: str | Path) -> Listing:
    """List an image folder. Raises InputError for one that is missing, unreadable or without images."""
    top = _expand(path)
    entries = _entries(top)
    files: list[tuple[Path, str | None]] = [
        (file, entry.name) for entry in entries if entry.is_dir() for file in _files(entry)
    ]
    beside: list[tuple[Path, str | None]] = [(entry, None) for entry in entries if not entry.is_dir()]
    flat = not any(map(_is_image, (file for file, _ in files)))
    images = [(file, folder) for file, folder in (beside if flat else files) if _is_image(file)]
    others = [f for f, _ in (*files, *beside) if not _is_image(f) and f.name not in INDEX_NAMES]
    if not images:
        content = f"no image, only {_named(others, 'other file')}" if others else "nothing"
        raise InputError(
            f"the image folder {top} holds {content}: give one with images ({', '.join(sorted(EXTENSIONS))})"
        )
    return Listing(
        path=top,
        images=tuple(file for file, _ in images),
        folders=tuple(folder for _, folder in images),
        others=tuple(others),
        loose=0 if flat else sum(_is_image(file) for file, _ in beside),
    )


def read_class_index(path: str | Path) -> list[tuple[str, int]]:
    """Pairs of a name (of a folder or a class) and the output it stands for, from the usual kinds of file.

    JSON: ``{"n01440764": {"index": 0, "name": "tench"}}``, ``{"0": ["n01440764", "tench"]}``,
    ``{"0": "tench"}`` or ``{"tench": 0}``. Text: one class a line, in the order of the outputs, as a name or
    as a WordNet id and names. Raises InputError.
    """
    file = _expand(path)
    if not file.is_file():
        raise InputError(f"the class index file {str(path)!r} does not exist: {_INDEX_FORMATS}")
    if file.stat().st_size > INDEX_MAX_BYTES:
        raise InputError(f"{file} has more than {INDEX_MAX_BYTES:,} bytes, too many for a class index file")
    is_json = file.suffix.lower() == ".json"
    try:
        text = file.read_text(encoding="utf-8-sig")
        entries = json.loads(text) if is_json else None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not a class index file ({error}): {_INDEX_FORMATS}") from error
    if not is_json:
        return [pair for index, line in enumerate(text.splitlines()) for pair in _line_names(line, index)]
    if not isinstance(entries, dict):
        raise InputError(f"{file} is not a class index file (not a JSON object): {_INDEX_FORMATS}")
    return [pair for key, value in entries.items() for pair in _entry_names(file, key, value)]


def map_classes(
    folders: Sequence[str],
    classes: Sequence[str],
    wordnet_ids: Sequence[str] = (),
    class_index: str | None = None,
    beside: Path | None = None,
) -> ClassMapping:
    """Find the model's output for each class folder.

    Asked in this order: the class index file, the WordNet ids, the class names (case, spaces and punctuation
    don't matter, and any of several names with commas between will do), then a class index file found in the
    folder ``beside`` or next to it. A name that two outputs share maps to neither. Raises InputError for a
    class index file that can't be read or points past the model's outputs.
    """
    finders = [("WordNet id", _finder(_numbered(wordnet_ids))), ("name", _finder(_numbered(classes)))]
    if class_index is not None:
        entries = read_class_index(class_index)
        for name, index in entries:
            if not 0 <= index < len(classes):
                raise InputError(
                    f"the class index file {class_index} gives {name!r} the output {index}, but the model "
                    f"has outputs 0 to {len(classes) - 1}: is the file for another model?"
                )
        finders.insert(0, ("class index file", _finder(entries)))

    def found(folder: str) -> MappedFolder | None:
        hits = ((by, find(folder)) for by, find in finders)
        return next((MappedFolder(folder, i, classes[i], by) for by, i in hits if i is not None), None)

    found_file = _index_file(beside) if beside is not None and class_index is None else None
    if found_file is not None and not all(map(found, folders)):
        entries = read_class_index(found_file)
        if all(0 <= index < len(classes) for _, index in entries):  # else it belongs to another model
            finders.append((found_file.name, _finder(entries)))
    mapped = {folder: found(folder) for folder in folders}
    return ClassMapping(
        mapped=tuple(entry for entry in mapped.values() if entry is not None),
        unmapped=tuple(folder for folder, entry in mapped.items() if entry is None),
    )


def select(spec: DataSpec, classes: Sequence[str], wordnet_ids: Sequence[str] = ()) -> Selection:
    """Who is evaluated and who calibrates, of a folder. Opens no image, reads some to compare their content.

    Raises InputError: no folder or none with images, no class that maps, a calibration folder that is the
    evaluation folder or holds nothing else, too few images to set some aside.
    """
    if spec.path is None:
        raise InputError("no image folder is given")
    listing = list_folder(spec.path)
    mapping = map_classes(listing.classes, classes, wordnet_ids, spec.class_index, listing.path)
    if listing.classes and not mapping.mapped:
        raise _nothing_maps(listing, classes)
    notes = _listing_notes(listing, mapping)
    outputs: dict[str | None, int] = {entry.folder: entry.index for entry in mapping.mapped}
    usable = [
        (file, outputs.get(folder, -1))
        for file, folder in _drawn(list(zip(listing.images, listing.folders, strict=True)), spec.seed)
        if folder is None or folder in outputs
    ]
    if spec.calibration is not None:
        candidates = calibration_files(spec)
    else:
        aside = max(1, round(spec.calibration_share * len(usable)))
        if aside == len(usable):
            raise InputError(
                f"{listing.path} has too few images to set a share of {spec.calibration_share:g} aside for "
                "calibration: give more images, another share, or a calibration folder"
            )
        candidates, usable = [file for file, _ in usable[:aside]], usable[aside:]
    if len(usable) > spec.limit:
        notes.append(f"{spec.limit:,} of {len(usable):,} images are evaluated, drawn with seed {spec.seed}")
    evaluation = tuple(file for file, _ in usable[: spec.limit])
    calibration, shared = without_shared(candidates, evaluation, CALIBRATION_LIMIT)
    if not calibration:
        raise InputError("every calibration image is also evaluated: give a folder of other images")
    if shared:
        notes.append(
            f"{_count(shared, 'calibration image')} left out: evaluated images have the same content"
        )
    if len(calibration) < len(candidates) - shared:
        notes.append(f"{len(calibration):,} of {len(candidates):,} calibration images are used")
    return Selection(
        evaluation=evaluation,
        labels=tuple(index for _, index in usable[: spec.limit]) if listing.classes else None,
        calibration=calibration,
        mapping=mapping,
        notes=tuple(notes),
    )


def calibration_files(spec: DataSpec) -> list[Path]:
    """The images of the calibration folder, drawn with the seed. Raises InputError."""
    if spec.calibration is None:
        raise InputError("no calibration folder is given")
    listing = list_folder(spec.calibration)
    if spec.path is not None and listing.path.samefile(_expand(spec.path)):
        raise InputError(
            f"the calibration folder {spec.calibration} is the evaluation folder: give a folder of other "
            "images, or none, and a share of the images is set aside"
        )
    return _drawn(listing.images, spec.seed)


def without_shared(
    candidates: Iterable[Path], evaluation: Iterable[Path], count: int
) -> tuple[tuple[Path, ...], int]:
    """The first ``count`` candidates whose content no evaluated file has, and how many were passed over.

    Only files of equal size are read.
    """
    by_size: dict[int, list[Path]] = defaultdict(list)
    for file in evaluation:
        if (size_bytes := _stamp(file)[0]) >= 0:  # reading a pipe would wait for ever
            by_size[size_bytes].append(file)
    contents: dict[int, set[str]] = {}
    kept: list[Path] = []
    shared = 0
    for file in candidates:
        if len(kept) == count:
            break
        size_bytes = _stamp(file)[0]
        if size_bytes not in contents:
            contents[size_bytes] = {_content(other) for other in by_size.get(size_bytes, ())}
        if contents[size_bytes] and _content(file) in contents[size_bytes]:
            shared += 1
        else:
            kept.append(file)
    return tuple(kept), shared


def fingerprint(spec: DataSpec) -> str:
    """Changes when an image or the class index file is added, removed or changed.

    Of folders the names, sizes and times of change are looked at, of the bundled images the content. Raises
    InputError as :func:`list_folder` does.
    """
    parts: list[object] = []
    if spec.path is None:
        archives = [asset(name) for name in BUNDLED_ARCHIVES]
        parts.append([_archive_digest(archive, *_stamp(archive)) for archive in archives])
    else:
        index = _expand(spec.class_index) if spec.class_index else _index_file(_expand(spec.path))
        parts.append(None if index is None else [index.name, *_stamp(index)])
    for path in (spec.path, spec.calibration):
        if path is not None:
            listing = list_folder(path)
            top = str(listing.path)
            parts.append([(str(file).removeprefix(top), *_stamp(file)) for file in listing.images])
    return digest(parts)


def allowed_roots() -> tuple[Path, ...]:
    """The folders that the operator opens to visitors of the page (``PARETOSCOPE_IMAGE_ROOTS``), resolved."""
    named = os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep)
    return tuple(Path(os.path.realpath(_expand(root))) for root in named if root.strip())


def check_allowed(path: str | Path) -> Path:
    """The resolved path, if it and every link in it lead below an allowed root. Raises InputError."""
    roots = allowed_roots()
    try:
        real = Path(os.path.realpath(_expand(path)))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a path ({error})") from error
    for place in _reached(real):
        if not any(place.is_relative_to(root) for root in roots):
            allowed = ", ".join(map(str, roots)) or f"none, until the operator sets {ROOTS_VARIABLE}"
            raise InputError(f"{str(path)!r} leads outside the folders that are allowed here: {allowed}")
    return real


def image_folders(root: Path) -> list[Path]:
    """Image folders to offer: ``root`` and the folders in it, of those that hold images or class folders.

    Looks two levels deep. The subfolders of a set with many classes are classes and are not offered.
    """
    with contextlib.suppress(InputError):
        own = [root] if _holds_images(root) else []
        children = [entry for entry in _entries(root) if entry.is_dir()]
        if own and len(children) > OFFERED_SUBFOLDERS:
            return own
        return [*own, *filter(_holds_images, children)]
    return []


def _holds_images(folder: Path) -> bool:
    with contextlib.suppress(InputError):
        entries = _entries(folder)
        subfolders = [entry for entry in entries if entry.is_dir()][:OFFERED_SUBFOLDERS]
        return any(map(_is_image, [*entries, *(file for place in subfolders for file in _entries(place))]))
    return False


# Files


def _expand(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))  # leaves an unknown ~user alone, where Path.expanduser raises


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in EXTENSIONS


def _entries(folder: Path) -> list[Path]:
    """What is visible in a folder, sorted. Raises InputError in words."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except FileNotFoundError as error:
        raise InputError(f"the image folder {str(folder)!r} does not exist: check the path") from error
    except NotADirectoryError as error:
        raise InputError(f"{str(folder)!r} is a file: give the folder that holds the images") from error
    except (OSError, ValueError) as error:
        raise InputError(f"the image folder {str(folder)!r} can't be read ({error})") from error


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder from ``top`` down and the visible files in it, links followed, no folder twice."""

    def refuse(error: OSError) -> None:
        raise InputError(f"the folder {error.filename} can't be read ({error.strerror})") from error

    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(top, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link upwards
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield folder, sorted(name for name in names if not name.startswith("."))


def _files(top: Path) -> Iterator[Path]:
    return (Path(folder, name) for folder, names in _walk(top) for name in names)


def _reached(real: Path) -> Iterator[Path]:
    """A resolved path, and where the links below it lead."""
    yield real
    if real.is_dir():
        for folder, names in _walk(real):
            for place in (folder, *(os.path.join(folder, name) for name in names)):
                if os.path.islink(place):
                    yield Path(os.path.realpath(place))


def _stamp(file: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns; -1 for what is no file, such as a dead link or a pipe."""
    try:
        status = file.stat()
    except OSError:
        return -1, -1
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, -1)


def _content(file: Path) -> str:
    """A digest of the content, or the path of a file that can't be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return str(file)


@lru_cache(maxsize=8)
def _archive_digest(archive: Path, size_bytes: int, mtime_ns: int) -> str:
    return _content(archive)


def _drawn(items: Sequence[T], seed: int) -> list[T]:
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items))]


# Classes

_INDEX_FORMATS = (
    'use JSON such as {"tench": 0}, {"n01440764": {"index": 0, "name": "tench"}} or '
    '{"0": ["n01440764", "tench"]}, or a text file with one class name a line'
)


def _index_file(folder: Path) -> Path | None:
    places = (place / name for place in (folder, folder.absolute().parent) for name in INDEX_NAMES)
    return next(filter(Path.is_file, places), None)


def _line_names(line: str, index: int) -> list[tuple[str, int]]:
    """A line such as ``tench`` or ``n01440764 tench, Tinca tinca``."""
    wordnet = re.match(r"(n\d{8})\s+(.*)", line)
    names = wordnet.groups() if wordnet else (line.strip(),)
    return [(name, index) for name in names if name]


def _entry_names(file: Path, key: str, value: object) -> list[tuple[str, int]]:
    match value:
        case {"index": int(index), "name": str(name)}:
            return [(key, index), (name, index)]
        case int(index) | {"index": int(index)} if not isinstance(index, bool):
            return [(key, index)]
        case str(name) if key.isdecimal():
            return [(name, int(key))]
        case [str(), *_] if key.isdecimal():
            return [(str(name), int(key)) for name in value]
    raise InputError(f"{file} is not a class index file (entry {key!r} says no output): {_INDEX_FORMATS}")


def _numbered(names: Iterable[str]) -> list[tuple[str, int]]:
    return [(name, index) for index, name in enumerate(names)]


def _finder(entries: list[tuple[str, int]]) -> Callable[[str], int | None]:
    """Look a folder up, looser and looser: as written, plain, as any of the names between commas."""
    exact = _unambiguous(entries)
    whole = _unambiguous([(_plain(name), index) for name, index in entries])
    parts = _unambiguous([(_plain(part), index) for name, index in entries for part in name.split(",")])

    def find(folder: str) -> int | None:
        plain = _plain(folder)
        return exact.get(folder, whole.get(plain, parts.get(plain)))

    return find


def _unambiguous(entries: list[tuple[str, int]]) -> dict[str, int]:
    outputs: dict[str, set[int]] = defaultdict(set)
    for name, index in entries:
        outputs[name].add(index)
    return {name: indices.pop() for name, indices in outputs.items() if name and len(indices) == 1}


def _plain(name: str) -> str:
    """Letters and digits in one case: ``Ankle boot``, ``ankle_boot`` and ``ankle-boot`` are one name."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))


# Words


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _named(names: Sequence[Path | str], noun: str, plural: str | None = None) -> str:
    """How many, and the first few: ``7 files (a.txt, b.txt, c.txt, d.txt, e.txt, ...)``."""
    first = [name.name if isinstance(name, Path) else name for name in names[:NAMED_IN_NOTES]]
    more = ["..."] if len(names) > len(first) else []
    return f"{_count(len(names), noun, plural)} ({', '.join([*first, *more])})"


def _listing_notes(listing: Listing, mapping: ClassMapping) -> list[str]:
    notes = []
    if listing.others:
        notes.append(f"{_named(listing.others, 'file')} skipped: not an image by name")
    if listing.loose:
        notes.append(f"{_count(listing.loose, 'image')} beside the class folders left out")
    if mapping.unmapped:
        notes.append(
            f"{_named(mapping.unmapped, 'class folder')} left out: no output of the model has that name"
        )
    return notes


def _nothing_maps(listing: Listing, classes: Sequence[str]) -> InputError:
    return InputError(
        f"none of the {_named(listing.classes, 'folder')} in {listing.path} is a class of the model, which "
        f"has {_named(classes, 'class', 'classes')}. Give the folder whose subfolders are classes, name them "
        f"by WordNet id or class name, or give a class index file: {_INDEX_FORMATS}"
    )
