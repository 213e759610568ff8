"""Images that visitors of the page upload: a folder for each set in the data folder, until it is removed.

A ZIP file's folders become class folders. Nothing of a name that was uploaded is followed as a path: a set's
folders are one level deep, and its files are numbered. No image is decoded here. No torch.
"""

import hashlib
import lzma
import os
import re
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from optimizer.data.folders import EXTENSIONS, is_image, uploads_root
from optimizer.errors import InputError, UnavailableError
from optimizer.formats import format_bytes
from optimizer.system.paths import private
from optimizer.system.uploads import MAX_UPLOAD_MB, check_room

ARCHIVE = ".zip"
HIDDEN = (".", "__MACOSX")
"""How the names of files begin that nobody meant to pack; ``..`` is among them."""
MAX_IMAGES = 50_000
MAX_NAME = 60
"""Characters of a name that was uploaded which are kept in ours."""
UNPACKING = zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError
"""What an archive raises that is damaged, encrypted, or packed in a way of its own; bzip2's is an OSError."""
ABANDONED_SECONDS = 3600.0
"""What a process that is gone was writing so long ago is removed."""


@dataclass(frozen=True, slots=True)
class _Image:
    """``folder`` is the path of its folder in an archive; ``open`` opens it for reading."""

    folder: tuple[str, ...]
    name: str
    size: int
    open: Callable[[], IO[bytes]]


def sets() -> list[Path]:
    """The folders of all sets, by name."""
    root = uploads_root()
    return sorted(path for path in root.iterdir() if path.name[0] != ".") if root.is_dir() else []


def remove(name: str) -> None:
    """Remove a set, if there is one of that name."""
    for path in sets():
        if path.name == name:
            shutil.rmtree(path, ignore_errors=True)


def keep(uploads: Sequence[BinaryIO]) -> Path:
    """Write images, and those in ZIP files, into a folder of their own: the same ones into the same folder.

    Raises InputError for files without an image, an archive that is none, is encrypted or damaged, and more
    than is allowed; UnavailableError where they can't be written.
    """
    with ExitStack() as opened:
        found = [image for upload in uploads for image in _images(upload, opened)]
        label = uploads[0].name if uploads else "nothing"
        if not found:
            raise InputError(
                f"{label} holds no image: give some ({', '.join(sorted(EXTENSIONS))}), or a {ARCHIVE} of them"
            )
        if len(found) > MAX_IMAGES:
            raise InputError(f"{len(found):,} images are too many at once: give at most {MAX_IMAGES:,}")
        check_room(label, sum(image.size for image in found))
        try:
            stem, suffix = os.path.splitext(label)
            return _write(found, _plain(stem) if suffix.lower() == ARCHIVE else "images")
        except (OSError, *UNPACKING) as error:
            if isinstance(error, OSError) and error.errno:
                raise UnavailableError(
                    f"can't keep {label} ({error.strerror}): make room in the data folder"
                ) from error
            raise InputError(
                f"{label} can't be unpacked ({error}): make it anew, without a password"
            ) from error


def _images(upload: BinaryIO, opened: ExitStack) -> Iterator[_Image]:
    """Those of one file that was uploaded; what else an archive holds is passed over, hidden files too."""
    size = upload.seek(0, os.SEEK_END)
    if size > MAX_UPLOAD_MB * 10**6:
        raise InputError(f"{upload.name} has {format_bytes(size)}: a file may have {MAX_UPLOAD_MB} MB")
    if not upload.name.lower().endswith(ARCHIVE):
        if is_image(upload.name):
            upload.seek(0)
            yield _Image((), upload.name, size, lambda: upload)
        return
    try:
        archive = opened.enter_context(zipfile.ZipFile(upload))
    except zipfile.BadZipFile as error:
        raise InputError(f"{upload.name} is no ZIP file, or a damaged one ({error})") from error
    for entry in archive.infolist():
        *folder, name = PurePosixPath(entry.filename.lstrip("/")).parts or ("",)
        hidden = any(part.startswith(HIDDEN) for part in (*folder, name))
        if is_image(name) and not (hidden or entry.is_dir()):
            yield _Image(tuple(folder), name, entry.file_size, partial(archive.open, entry))


def _class_folders(images: Sequence[_Image]) -> list[str]:
    """The class folder of each image, "" without one: the first folder in which they differ, as a folder that
    was packed whole lies in one of its own name."""
    levels = zip(*(image.folder for image in images), strict=False)
    common = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, levels))
    return [(*image.folder[common:], "")[0] for image in images]


def _write(images: Sequence[_Image], name: str) -> Path:
    root = private(uploads_root())
    _remove_abandoned(root)
    whole = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix=".", dir=root) as place:
        for number, (image, folder) in enumerate(zip(images, _class_folders(images), strict=True)):
            target = Path(place, "images", _plain(folder), f"{number:05d} {_plain(image.name)}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(image.open(), file)
            with target.open("rb") as file:
                whole.update(f"{folder}/{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        kept = root / f"{name} {whole.hexdigest()[:8]}"
        if not kept.exists():
            with suppress(OSError):  # another visitor was sooner
                Path(place, "images").rename(kept)
    return kept


def _plain(name: str) -> str:
    """A name that was uploaded as one of ours: no path, nothing hidden, not too long."""
    stem, suffix = os.path.splitext(re.sub(r"[^\w.()-]+", "_", name))
    return stem[:MAX_NAME].lstrip(".") + suffix[:MAX_NAME]


def _remove_abandoned(root: Path) -> None:
    for path in root.glob(".*"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                shutil.rmtree(path)
