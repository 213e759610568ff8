"""Images that visitors of the page upload: a folder for each set in the data folder, until it is removed.

What is uploaded is written as it is (:func:`stage`), and unpacked by a worker (:func:`unpack`), which may
take its time and memory. A ZIP file's folders become class folders. Nothing of a name that was uploaded is
followed as a path: a set's folders are one level deep, and its files are numbered. No image is decoded here.
No torch.
"""

import errno
import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from optimizer.data.classes import INDEX_MAX_BYTES
from optimizer.data.folders import EXTENSIONS, INDEX_NAMES, is_image, named, uploads_root
from optimizer.errors import InputError
from optimizer.progress import Report, quiet, stop_if_cancelled
from optimizer.system.paths import private
from optimizer.system.uploads import check_entries, check_room, not_kept, too_large

ARCHIVE = ".zip"
TAKEN = tuple(sorted((*EXTENSIONS, ARCHIVE)))
"""How the names of files end that can be uploaded."""
COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Of the others zipfile unpacks more at once than an entry says that it holds."""
HIDDEN = (".", "__MACOSX")
"""How the names of files begin that nobody meant to pack; ``..`` is among them."""
MAX_WORDS = 1_000
"""Characters in which is said what was left out."""
MAX_IMAGES = 50_000
MAX_ENTRIES = 4 * MAX_IMAGES
MAX_NAME = 60
"""Characters of a name that was uploaded which are kept in ours."""
MAX_FOLDER_BYTES = 255
"""Of a folder's name, as file systems have it."""
UNPACKING = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What an archive raises that is damaged, encrypted, or packed in a way of its own; beside a place to read at
that can't be (EINVAL)."""
ABANDONED_SECONDS = 3600.0
"""What a process that is gone was writing so long ago is removed."""


@dataclass(frozen=True, slots=True)
class _Member:
    """A file that was uploaded, or that one ``file`` of those holds: ``folder`` is the path of its folder in
    an archive, ``open`` opens it, and ``content`` is where it lies once it is unpacked."""

    file: Path
    folder: tuple[str, ...]
    name: str
    size: int
    open: Callable[[], IO[bytes]]
    content: Path = Path()

    @property
    def path(self) -> str:
        return "/".join((*self.folder, self.name))

    @property
    def is_wanted(self) -> bool:
        """Whether it is an image or a class index, by its name."""
        return is_image(self.name) or self.name in INDEX_NAMES


@dataclass(frozen=True, slots=True)
class Staged:
    """What was uploaded, as it is: the name of the folder in which it lies, and why some files, which are too
    large, do not."""

    folder: str
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The folder of a set, and in words what was uploaded and left out of it; empty for nothing. The words
    are for who uploaded it: others see the folder, so none of them is kept there."""

    path: str
    left_out: str = ""


def sets() -> list[Path]:
    """The folders of all sets, by name."""
    root = uploads_root()
    return sorted(path for path in root.iterdir() if path.name[0] != ".") if root.is_dir() else []


def remove(name: str) -> None:
    """Remove a set, if there is one of that name."""
    for path in sets():
        if path.name == name:
            hidden = path.with_name(f".{uuid.uuid4().hex}")
            path.rename(hidden)  # at once, also where its files can't be removed
            shutil.rmtree(hidden, ignore_errors=True)


def why_not_taken(files: Sequence[tuple[str, int]]) -> str:
    """Why none of these can be uploaded, by name and size in bytes, in words."""
    others = [name for name, _ in files if not name.lower().endswith(TAKEN)]
    large = [too_large(name, size) for name, size in files if name.lower().endswith(TAKEN)]
    return "; ".join(filter(None, (_no_images(others), *large)))[:MAX_WORDS]


def stage(uploads: Sequence[BinaryIO]) -> Staged:
    """Write files that were uploaded as they are, for :func:`unpack`; of several those that are too large are
    left out. Raises InputError where all are, and for more than is allowed, UnavailableError where they can't
    be written."""
    sizes = [upload.seek(0, os.SEEK_END) for upload in uploads]
    problems = [too_large(upload.name, size) for upload, size in zip(uploads, sizes, strict=True)]
    taken = [upload for upload, problem in zip(uploads, problems, strict=True) if not problem]
    refused = tuple(filter(None, problems))
    if refused and not taken:
        raise InputError("; ".join(refused))
    label = taken[0].name if taken else "nothing"
    kept = (size for size, problem in zip(sizes, problems, strict=True) if not problem)
    check_room(label, sum(kept), len(taken))
    root = private(uploads_root())
    _remove_abandoned(root)
    place = Path(tempfile.mkdtemp(prefix=".", dir=root))
    try:
        for number, upload in enumerate(taken):
            upload.seek(0)
            with (place / f"{number:05d} {_plain(upload.name)}").open("wb") as file:
                shutil.copyfileobj(upload, file)
    except OSError as error:
        shutil.rmtree(place, ignore_errors=True)
        raise not_kept(label, error) from error
    return Staged(place.name, refused)


def unpack(staged: Staged, report: Report = quiet) -> Unpacked:
    """Make a set of what was staged, which is gone then; of the same images the same. Of several files those
    that can't be unpacked are left out.

    Raises InputError for files without an image, archives of which none is whole and open, and more than is
    allowed; UnavailableError where they can't be written.
    """
    place = uploads_root() / staged.folder
    try:
        return _set_of(sorted(place.iterdir()), place, report, staged.refused)
    except OSError as error:
        raise not_kept("what was uploaded", error) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _set_of(files: Sequence[Path], place: Path, report: Report, too_large: Sequence[str]) -> Unpacked:
    """Made of these files, first in their ``place``; what others were ``too_large`` is told with what is left
    out of these. Raises InputError, OSError."""
    refused = {place / f"too large {number}": words for number, words in enumerate(too_large)}
    with ExitStack() as opened:
        found: list[_Member] = []
        for file in files:
            with _refusing(file, refused):
                found += [*_members(file, opened)]
        label, without = _said_of(files, found, refused)
        wanted = [one for one in found if one.size and one.is_wanted]
        wanted = [one for one in wanted if is_image(one.name) or one.size <= INDEX_MAX_BYTES]
        _checked(wanted, label, without)
        check_room(label, sum(one.size for one in wanted), len(wanted))
        unpacked = _unpacked(wanted, place / "unpacked", refused, report)
    found = [one for one in found if one.file not in refused]
    label, without = _said_of(files, found, refused)
    return Unpacked(str(_kept(_checked(unpacked, label, without), label, place / "set")), without)


def _said_of(files: Sequence[Path], found: Sequence[_Member], refused: Mapping[Path, str]) -> tuple[str, str]:
    """What the files are called, by the first that was not ``refused``, and what is left out of them. Raises
    InputError where all were."""
    whole = [file for file in files if file not in refused]
    if not whole:
        raise InputError("; ".join(refused.values()))
    return _name_of(whole[0]), "; ".join(filter(None, (*refused.values(), _left_out(found))))[:MAX_WORDS]


def _name_of(file: Path) -> str:
    """Of what was staged, as it was uploaded."""
    return file.name[6:]


@contextmanager
def _refusing(file: Path, refused: dict[Path, str]) -> Iterator[None]:
    """What is wrong in the block is wrong with one file: it is ``refused`` then, with why. Raises OSError of
    the disk."""
    try:
        yield
    except InputError as error:
        refused[file] = str(error)
    except (*UNPACKING, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        refused[file] = (
            f"{_name_of(file)} can't be unpacked ({error}): make it anew, as a ZIP file without a password"
        )


def _members(file: Path, opened: ExitStack) -> Iterator[_Member]:
    """What a file is or, of an archive, holds; hidden files are passed over."""
    name = _name_of(file)
    if file.suffix.lower() != ARCHIVE:
        yield _Member(file, (), name, file.stat().st_size, lambda: file.open("rb"))
        return
    check_entries(file, name, MAX_ENTRIES)
    archive = opened.enter_context(zipfile.ZipFile(file))
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise InputError(f"{name} has {len(entries):,} entries: give at most {MAX_ENTRIES:,}")
    for entry in entries:
        *folder, called = PurePosixPath(entry.filename.replace("\\", "/").lstrip("/")).parts or ("",)
        hidden = any(part.startswith(HIDDEN) for part in (*folder, called))
        if hidden or entry.is_dir():
            continue
        member = _Member(file, tuple(folder), called, entry.file_size, partial(archive.open, entry))
        if member.is_wanted and member.size and entry.compress_type not in COMPRESSION:
            raise InputError(f"{name} is packed in a way that is not read here: pack it as usual (deflate)")
        yield member


def _left_out(found: Sequence[_Member]) -> str:
    """What of it is not kept, in words."""
    empty = [one.path for one in found if one.is_wanted and not one.size]
    others = [one.path for one in found if not one.is_wanted]
    words = [f"{named(empty, 'empty file')} left out"] * bool(empty)
    return "; ".join(filter(None, (*words, _no_images(others))))


def _no_images(names: Sequence[str]) -> str:
    return f"{named(names, 'file')} left out: not an image by name" if names else ""


def _checked(members: Sequence[_Member], label: str, without: str) -> list[_Member]:
    """Each with its class folder in the place of its path: the first folder in which images differ, as a
    folder that was packed whole lies in one of its own name. Of class indices those that lie beside the class
    folders. Raises InputError."""
    images = [member for member in members if is_image(member.name)]
    if not images:
        but = f" ({without})" if without else ""
        raise InputError(
            f"{label} holds no image{but}: give some ({', '.join(sorted(EXTENSIONS))}), or a {ARCHIVE} of "
            "them"
        )
    if len(images) > MAX_IMAGES:
        raise InputError(f"{len(images):,} images are too many at once: give at most {MAX_IMAGES:,}")
    levels = zip(*(image.folder for image in images), strict=False)
    common = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, levels))
    above = images[0].folder[:common]
    for folder in {image.folder[common] for image in images if len(image.folder) > common}:
        if not folder.isprintable() or len(folder.encode()) > MAX_FOLDER_BYTES:
            raise InputError(
                f"{label} has a class folder {folder!r}: give it a name that can be printed, of at most "
                f"{MAX_FOLDER_BYTES} bytes"
            )
    indices = [member for member in members if member.name in INDEX_NAMES and member.folder == above]
    return [replace(one, folder=one.folder[common : common + 1]) for one in (*images, *indices)]


def _unpacked(
    members: Sequence[_Member], place: Path, refused: dict[Path, str], report: Report
) -> list[_Member]:
    """The members, each in a file of its own; none of a file of which one can't be read, which is ``refused``
    from then on."""
    place.mkdir()
    found: list[_Member] = []
    for number, member in enumerate(members):
        stop_if_cancelled()
        report(number / len(members), f"unpacking {_name_of(member.file)}")
        if member.file in refused:
            continue
        content = place / str(number)
        with _refusing(member.file, refused), member.open() as source, content.open("wb") as file:
            shutil.copyfileobj(source, file)
        found.append(replace(member, content=content))
    return [one for one in found if one.file not in refused]


def _kept(members: Sequence[_Member], label: str, place: Path) -> Path:
    """The folder of a set of these, made at a ``place`` where there is none yet."""
    whole = hashlib.sha256()
    for number, member in enumerate(members):
        name = f"{number:05d} {_plain(member.name)}" if is_image(member.name) else member.name
        target = place.joinpath(*member.folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        member.content.rename(target)
        with target.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        # By the time of change sets of images are known: the same ones, uploaded again, are those that were
        # measured; others of the same names and sizes are not.
        os.utime(target, ns=(0, int(content[:15], 16)))
        whole.update(f"{target.relative_to(place)}/{content}\n".encode())
    stem, suffix = os.path.splitext(label)
    name = _plain(stem) if suffix.lower() == ARCHIVE else "images"
    kept = uploads_root() / f"{name} {whole.hexdigest()[:12]}"
    try:
        place.rename(kept)
    except OSError:
        if not kept.is_dir():  # from before, or another visitor was sooner
            raise
    return kept


def _plain(name: str) -> str:
    """A name that was uploaded as one of ours: no path, nothing hidden, not too long."""
    stem, suffix = os.path.splitext(re.sub(r"[^\w.()-]+", "_", name, flags=re.ASCII))
    return stem[:MAX_NAME].lstrip(".") + suffix[:MAX_NAME]


def _remove_abandoned(root: Path) -> None:
    for path in root.glob(".*"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                shutil.rmtree(path)
