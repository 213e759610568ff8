"""Image folders on disk, without opening an image: what lies in one, and which may be opened.

A folder has one subfolder a class (``n01440764/x.jpg``), or only images: then they have no labels. Hidden
files are passed over, links are followed. No torch here, so that pages can ask.
"""

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from os import PathLike
from pathlib import Path

from optimizer.errors import InputError
from optimizer.formats import count
from optimizer.system.paths import READ_FLAGS, home_path
from optimizer.system.recent import remembered
from optimizer.system.uploads import IMAGES

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)
INDEX_NAMES = ("imagenet_class_index.json", "class_index.json")
ROOTS_VARIABLE = "PARETOSCOPE_IMAGE_ROOTS"
OFFERED_SUBFOLDERS = 20
WORDNET_ID = re.compile(r"n\d{8}")
NAMED_IN_NOTES = 5
RECENT_SECONDS = 5.0
"""A page asks about its folders many times a rerun: an answer holds so long, whoever asks. What opens a file
asks anew (:func:`open_file`), and so does what measures (:func:`optimizer.data.selection.fingerprint`)."""
UPLOADED = re.compile(r"[^/\\~]+ [0-9a-f]{12}")
"""What a set of images that was uploaded is called."""


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
    inner = [entry for entry in entries if _is_folder(entry)]
    names = {entry.name for entry in inner}
    files: list[tuple[Path, str | None]] = [(file, entry.name) for entry in inner for file in _files(entry)]
    beside: list[tuple[Path, str | None]] = [(Path(e.path), None) for e in entries if e.name not in names]
    flat = not any(is_image(file.name) for file, _ in files)
    images = [(file, folder) for file, folder in (beside if flat else files) if is_image(file.name)]
    others = [f for f, _ in (*files, *beside) if not is_image(f.name) and f.name not in INDEX_NAMES]
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
        loose=0 if flat else sum(is_image(file.name) for file, _ in beside),
    )


def opened_roots() -> tuple[Path, ...]:
    """The folders that the operator opens to visitors of the page (``PARETOSCOPE_IMAGE_ROOTS``), resolved."""
    named = os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep)
    return tuple(Path(absolute(root)) for root in named if root.strip())


def joined_roots(folders: Iterable[str], option: str) -> str:
    """Folders that the operator names with an ``option``, as :func:`opened_roots` reads them.

    Raises InputError for one that is not there, and one that would be read as two.
    """
    roots = []
    for folder in folders:
        root = absolute(folder)
        if not os.path.isdir(root):
            raise InputError(f"{option} {folder} is not a folder: give one that is there")
        if os.pathsep in root:
            raise InputError(
                f"{option} {folder} can't be opened: {os.pathsep!r} stands between folders, and its "
                "path has one. Rename it, or open a folder above"
            )
        roots.append(root)
    return os.pathsep.join(roots)


def uploads_root() -> Path:
    """Where the images lie that visitors uploaded (:mod:`optimizer.data.uploaded`); it need not be there."""
    return Path(os.path.realpath(home_path() / IMAGES))


def is_uploaded(folder: Path) -> bool:
    """Whether it is a set of images that a visitor uploaded."""
    return Path(os.path.realpath(folder)).parent == uploads_root()


def place_of(folder: Path) -> str:
    """A folder as its user knows it: a set of images that were uploaded by its name."""
    return f"the uploaded set {folder.name}" if is_uploaded(folder) else str(folder)


def allowed_roots() -> tuple[Path, ...]:
    """What visitors of the page may open: :func:`opened_roots`, and what was uploaded."""
    return (*opened_roots(), uploads_root())


def check_allowed(path: str | Path) -> Path:
    """The resolved path, if it and every link in it lead below an allowed root. Raises InputError.

    The answer is up to RECENT_SECONDS old; :func:`open_file` checks again.
    """
    return _checked(str(path), allowed_roots())


def _check(path: str, roots: tuple[Path, ...]) -> Path:
    try:
        real = Path(os.path.realpath(expand(path)))
    except (OSError, ValueError) as error:
        raise InputError(f"{path!r} is not a path ({error})") from error
    for place in _reached(real):
        if _root_of(place, roots) is None:
            if UPLOADED.fullmatch(path):
                raise InputError(f"the uploaded set {path!r} is not here any more: choose or upload another")
            allowed = ", ".join(map(str, opened_roots())) or f"none, until the operator sets {ROOTS_VARIABLE}"
            raise InputError(f"{path!r} leads outside the folders that are allowed here: {allowed}")
    return real


_checked = remembered(RECENT_SECONDS)(_check)


def open_file(file: Path) -> BufferedReader:
    """Open a regular file for reading.

    A file below an allowed root, as its path is written, has to lie below one still: a link that was put in
    place since it was checked is not followed. (A path outside the roots comes from a command line, whose
    user may read what they may read.) Raises OSError, and InputError for one that leads outside or is no
    regular file.
    """
    roots = allowed_roots()
    if _is_restricted(file, roots):
        real = Path(os.path.realpath(file))
        root = _root_of(real, roots)
        if root is None:
            raise InputError(f"{file.name} leads outside the folders that are allowed here")
        descriptor = _open_below(root, real)
    else:
        descriptor = os.open(file, READ_FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{file.name} is not a file")
    return os.fdopen(descriptor, "rb")


def is_within(place: Path, given: Path) -> bool:
    """Whether a place, links followed, lies where somebody may look who may give the path ``given``."""
    roots = allowed_roots()
    return not _is_restricted(given, roots) or _root_of(Path(os.path.realpath(place)), roots) is not None


def check_again(path: str | Path) -> None:
    """Raises InputError where a folder that a visitor gave has come to lead outside the allowed roots."""
    roots = allowed_roots()
    if _is_restricted(expand(path), roots):
        _check(str(path), roots)


def _is_restricted(path: Path, roots: tuple[Path, ...]) -> bool:
    """Whether a path, as it is written, is one that a visitor of the page may have given."""
    return _root_of(Path(os.path.abspath(path)), roots) is not None


def _root_of(place: Path, roots: tuple[Path, ...]) -> Path | None:
    return next(filter(place.is_relative_to, roots), None)


def _open_below(root: Path, real: Path) -> int:
    """A descriptor of a resolved path, opened a step at a time from its root so that no link is followed."""
    if os.open not in os.supports_dir_fd:  # Windows
        return os.open(real, READ_FLAGS)
    descriptor = os.open(root, os.O_RDONLY)
    for part in real.relative_to(root).parts:
        try:
            inner = os.open(part, READ_FLAGS | os.O_NOFOLLOW, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def image_folders(root: Path) -> list[Path]:
    """Image folders to offer: ``root`` and the folders in it, of those that hold images or class folders and
    that :func:`check_allowed` would not refuse. One whose name is not UTF-8 is left out.

    Looks two levels deep. Subfolders that are surely classes of ``root`` are not offered: where there are
    many, they are named by WordNet ids, or a class index lies beside them. The answer is up to RECENT_SECONDS
    old.
    """
    return list(_offered(root, allowed_roots()))


@remembered(RECENT_SECONDS)
def _offered(root: Path, roots: tuple[Path, ...]) -> tuple[Path, ...]:
    with contextlib.suppress(InputError):
        own = [root] if _holds_images(root) else []
        children = [Path(entry.path) for entry in _entries(root) if _is_folder(entry)]
        if own and _are_classes(root, children):
            children = []
        found = (*own, *filter(_holds_images, children))
        return tuple(folder for folder in found if _is_utf8(folder) and _is_allowed(folder, roots))
    return ()


def _are_classes(root: Path, children: Sequence[Path]) -> bool:
    """Whether subfolders are classes, whatever they hold. A few with other names may be sets beside each
    other, as one to calibrate with and one to evaluate."""
    indexed = any((root / name).is_file() for name in INDEX_NAMES)
    named = all(WORDNET_ID.fullmatch(one.name) for one in children)
    return indexed or named or len(children) > OFFERED_SUBFOLDERS


def _is_utf8(folder: Path) -> bool:
    """Whether a page can show a path, and a record hold it."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_allowed(folder: Path, roots: tuple[Path, ...]) -> bool:
    try:
        _checked(str(folder), roots)
    except InputError:
        return False
    return True


def _holds_images(folder: Path) -> bool:
    with contextlib.suppress(InputError):
        entries = _entries(folder)
        subfolders = [Path(entry.path) for entry in entries if _is_folder(entry)][:OFFERED_SUBFOLDERS]
        inner = (entry for place in subfolders for entry in _entries(place))
        return any(is_image(entry.name) for entry in (*entries, *inner))
    return False


# Files


def expand(path: str | PathLike[str]) -> Path:
    """With the home folder in the place of ``~``. (Path.expanduser raises for an unknown ``~user``.)"""
    return Path(os.path.expanduser(path))


def absolute(path: str | PathLike[str]) -> str:
    """As other processes find it, and this one from another folder. Raises InputError for what is no path."""
    try:
        return os.path.realpath(os.path.expanduser(path))
    except ValueError as error:
        raise InputError(f"{str(path)!r} is no path ({error}): give one of a folder") from error


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """What is visible in a folder, sorted. Raises InputError in words."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda e: e.name)
    except FileNotFoundError as error:
        raise InputError(f"the image folder {str(folder)!r} does not exist: check the path") from error
    except NotADirectoryError as error:
        raise InputError(f"{str(folder)!r} is a file: give the folder that holds the images") from error
    except (OSError, ValueError) as error:
        raise InputError(f"the image folder {str(folder)!r} can't be read ({error})") from error


def _walk(top: Path | str) -> Iterator[os.DirEntry[str]]:
    """Everything visible below a folder, each folder's own sorted, links followed, no folder twice. Raises
    InputError."""
    seen: set[tuple[int, int]] = set()
    waiting = [os.fspath(top)]
    while waiting:
        folder = waiting.pop()
        entries = _entries(folder)
        try:
            status = os.stat(folder)
        except OSError as error:
            raise InputError(f"the image folder {folder!r} can't be read ({error.strerror})") from error
        if (status.st_dev, status.st_ino) in seen:  # a link upwards
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from entries
        waiting += [entry.path for entry in reversed(entries) if _is_folder(entry)]


def _files(top: os.DirEntry[str]) -> Iterator[Path]:
    return (Path(entry.path) for entry in _walk(top.path) if not _is_folder(entry))


def _reached(real: Path) -> Iterator[Path]:
    """A resolved path, and where the links below it lead."""
    yield real
    if os.path.isdir(real):  # Path.is_dir raises where a folder above may not be entered
        for entry in _walk(real):
            if entry.is_symlink():
                yield Path(os.path.realpath(entry.path))


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
        with open_file(file) as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except (OSError, InputError):
        return str(file)


def named(names: Sequence[Path | str], noun: str, plural: str | None = None) -> str:
    """How many, and the first few: ``7 files (a.txt, b.txt, c.txt, d.txt, e.txt, ...)``."""
    first = [name.name if isinstance(name, Path) else name for name in names[:NAMED_IN_NOTES]]
    more = ["..."] if len(names) > len(first) else []
    return f"{count(len(names), noun, plural)} ({', '.join([*first, *more])})"
