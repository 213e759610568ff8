"""Image folders on disk, without opening an image: what lies in one, and which may be opened.

A folder has one subfolder a class (``n01440764/x.jpg``), or only images: then they have no labels. Hidden
files are passed over, links are followed. No torch here, so that pages can ask.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.errors import InputError

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)
INDEX_NAMES = ("imagenet_class_index.json", "class_index.json")
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


def list_folder(path: str | Path) -> Listing:
    """List an image folder. Raises InputError for one that is missing, unreadable or without images."""
    top = expand(path)
    entries = _entries(top)
    files: list[tuple[Path, str | None]] = [
        (file, entry.name) for entry in entries if entry.is_dir() for file in _files(entry)
    ]
    beside: list[tuple[Path, str | None]] = [(entry, None) for entry in entries if not entry.is_dir()]
    flat = not any(map(_is_image, (file for file, _ in files)))
    images = [(file, folder) for file, folder in (beside if flat else files) if _is_image(file)]
    others = [f for f, _ in (*files, *beside) if not _is_image(f) and f.name not in INDEX_NAMES]
    if not images:
        content = f"no image, only {named(others, 'other file')}" if others else "nothing"
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


def allowed_roots() -> tuple[Path, ...]:
    """The folders that the operator opens to visitors of the page (``PARETOSCOPE_IMAGE_ROOTS``), resolved."""
    named = os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep)
    return tuple(Path(os.path.realpath(expand(root))) for root in named if root.strip())


def check_allowed(path: str | Path) -> Path:
    """The resolved path, if it and every link in it lead below an allowed root. Raises InputError."""
    roots = allowed_roots()
    try:
        real = Path(os.path.realpath(expand(path)))
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


def expand(path: str | Path) -> Path:
    """With the home folder in the place of ``~``. (Path.expanduser raises for an unknown ``~user``.)"""
    return Path(os.path.expanduser(path))


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


def stamp(file: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns; -1 for what is no file, such as a dead link or a pipe."""
    try:
        status = file.stat()
    except OSError:
        return -1, -1
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, -1)


def content(file: Path) -> str:
    """A digest of the content, or the path of a file that can't be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return str(file)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 file`` or ``1,200 files``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def named(names: Sequence[Path | str], noun: str, plural: str | None = None) -> str:
    """How many, and the first few: ``7 files (a.txt, b.txt, c.txt, d.txt, e.txt, ...)``."""
    first = [name.name if isinstance(name, Path) else name for name in names[:NAMED_IN_NOTES]]
    more = ["..."] if len(names) > len(first) else []
    return f"{count(len(names), noun, plural)} ({', '.join([*first, *more])})"
