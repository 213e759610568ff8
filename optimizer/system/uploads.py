"""What visitors of the page may upload to the data folder: so much a file, and so much in all."""

import os
import zipfile
from contextlib import suppress
from pathlib import Path

from optimizer.errors import InputError, UnavailableError
from optimizer.formats import format_bytes
from optimizer.system.downloads import parse_bytes
from optimizer.system.paths import home_path

MAX_UPLOAD_MB = 300
UPLOADS_VARIABLE = "PARETOSCOPE_UPLOADS"
DEFAULT_UPLOADS = "2GB"
"""What files of visitors, and models made of them, may take of the disk where the operator says nothing."""
MODELS, IMAGES = "models", "uploaded-images"
"""Where they lie in the data folder."""
BLOCK_BYTES = 4096
"""What a file counts for at least: a disk gives it so much."""

ENTRY_BYTES = 512
"""Of the list at the end of a ZIP file, for an entry: 46, its path, and more of some tools."""


def allowed_bytes() -> int:
    """Raises InputError where the operator's limit is no number of bytes."""
    return parse_bytes(os.environ.get(UPLOADS_VARIABLE, DEFAULT_UPLOADS), UPLOADS_VARIABLE)


def too_large(name: str, size: int) -> str:
    """Why a file can't be taken, where it has too many bytes; else ""."""
    if size <= MAX_UPLOAD_MB * 10**6:
        return ""
    return f"{name} has {format_bytes(size)}: a file may have {MAX_UPLOAD_MB} MB"


def check_size(name: str, size: int) -> None:
    """Whether a file may be as large. Raises InputError."""
    if problem := too_large(name, size):
        raise InputError(problem)


def check_entries(file: Path, name: str, most: int) -> None:
    """Raises InputError for a ZIP file that says at its end that it has more entries, or a longer list of
    them: ``zipfile`` would read the list first, which takes most of a minute for a million. What can't be
    read as one passes."""
    with file.open("rb") as opened, suppress(zipfile.BadZipFile):
        # What ZipFile itself goes by: a reader of our own could be made to see another end of the file.
        if end := zipfile._EndRecData(opened):  # type: ignore[attr-defined]
            entries, length = end[zipfile._ECD_ENTRIES_TOTAL], end[zipfile._ECD_SIZE]  # type: ignore[attr-defined]
            if entries > most:
                raise InputError(f"{name} has {entries:,} entries: at most {most:,} are read")
            if length > most * ENTRY_BYTES:
                raise InputError(
                    f"{name} has a list of entries of {format_bytes(length)}, and at most "
                    f"{format_bytes(most * ENTRY_BYTES)} are read: pack fewer files, or with shorter paths"
                )


def not_kept(name: str, error: OSError) -> UnavailableError:
    """Why a file that was uploaded can't be written."""
    return UnavailableError(f"can't keep {name} ({error.strerror}): make room in the data folder")


def check_room(name: str, size: int, files: int = 1) -> None:
    """Whether ``size`` bytes more may be kept, in so many files. Raises InputError."""
    allowed, held = allowed_bytes(), 0
    for folder in (MODELS, IMAGES):
        for file in (home_path() / folder).rglob("*"):
            with suppress(OSError):  # another visitor removed it
                held += max(BLOCK_BYTES, file.stat().st_size)
    if held + max(size, files * BLOCK_BYTES) > allowed:
        raise InputError(
            f"{name} has {format_bytes(size)}: all that is uploaded may have {format_bytes(allowed)}, and "
            f"{format_bytes(held)} are here. Remove models or images, or have who runs this dashboard allow "
            f"more (`paretoscope dashboard --uploads BYTES` or {UPLOADS_VARIABLE})"
        )
