"""What visitors of the page may upload to the data folder: so much a file, and so much in all."""

import os
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

ZIP_END_BYTES = 0xFFFF + 22 + 20 + 56
"""The longest comment at the end of a ZIP file, and the records before it."""


def allowed_bytes() -> int:
    """Raises InputError where the operator's limit is no number of bytes."""
    return parse_bytes(os.environ.get(UPLOADS_VARIABLE, DEFAULT_UPLOADS), UPLOADS_VARIABLE)


def check_size(name: str, size: int) -> None:
    """Whether a file may be as large. Raises InputError."""
    if size > MAX_UPLOAD_MB * 10**6:
        raise InputError(f"{name} has {format_bytes(size)}: a file may have {MAX_UPLOAD_MB} MB")


def check_entries(file: Path, name: str, most: int) -> None:
    """Raises InputError for a ZIP file that says at its end that it has more entries: ``zipfile`` would read
    the list of them first, which takes most of a minute for a million."""
    with file.open("rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - ZIP_END_BYTES))
        end = opened.read()
    at = end.rfind(b"PK\5\6")
    entries = int.from_bytes(end[at + 10 : at + 12], "little") if at >= 0 else 0
    if entries == 0xFFFF and (at := end.rfind(b"PK\6\6", 0, at)) >= 0:  # the number is in ZIP64's record
        entries = int.from_bytes(end[at + 32 : at + 40], "little")
    if entries > most:
        raise InputError(f"{name} has {entries:,} entries: at most {most:,} are read")


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
