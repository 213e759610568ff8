"""What visitors of the page may upload to the data folder: so much a file, and so much in all."""

import os
from contextlib import suppress

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


def allowed_bytes() -> int:
    """Raises InputError where the operator's limit is no number of bytes."""
    return parse_bytes(os.environ.get(UPLOADS_VARIABLE, DEFAULT_UPLOADS), UPLOADS_VARIABLE)


def check_size(name: str, size: int) -> None:
    """Whether a file may be as large. Raises InputError."""
    if size > MAX_UPLOAD_MB * 10**6:
        raise InputError(f"{name} has {format_bytes(size)}: a file may have {MAX_UPLOAD_MB} MB")


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
