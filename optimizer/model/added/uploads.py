"""Files that visitors of the page upload: bounded, and kept under the digest of their content until they are
added or forgotten. No torch."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from optimizer.errors import InputError, UnavailableError
from optimizer.formats import format_bytes
from optimizer.model.added import cards
from optimizer.system.downloads import parse_bytes

MAX_UPLOAD_MB = 300
UPLOADS_VARIABLE = "PARETOSCOPE_UPLOADS"
DEFAULT_UPLOADS = "2GB"
"""What files of visitors, and models made of them, may take of the disk where the operator says nothing."""
CHUNK_BYTES = 1 << 20


def allowed_bytes() -> int:
    """Raises InputError where the operator's limit is no number of bytes."""
    return parse_bytes(os.environ.get(UPLOADS_VARIABLE, DEFAULT_UPLOADS), UPLOADS_VARIABLE)


def keep_upload(name: str, size: int, content: BinaryIO) -> str:
    """Write an upload of ``size`` bytes to the data folder; what it is called there. Raises InputError for
    one too many, UnavailableError where it can't be written."""
    allowed = allowed_bytes()
    held = sum(path.stat().st_size for path in cards.folder().iterdir())
    if size > MAX_UPLOAD_MB * 10**6 or held + size > allowed:
        raise InputError(
            f"{name} has {format_bytes(size)}: a file may have {MAX_UPLOAD_MB} MB, all of them "
            f"{format_bytes(allowed)}, and {format_bytes(held)} are here. Remove models, or have who runs "
            f"this dashboard allow more (`paretoscope dashboard --uploads BYTES` or {UPLOADS_VARIABLE})"
        )
    digest = hashlib.sha256()
    for part in iter(lambda: content.read(CHUNK_BYTES), b""):
        digest.update(part)
    kept = f"{digest.hexdigest()[:20]}.upload{Path(name).suffix.lower()[:12]}"
    content.seek(0)
    try:
        with cards.content_path(kept).open("wb") as file:
            for part in iter(lambda: content.read(CHUNK_BYTES), b""):
                file.write(part)
    except OSError as error:
        with suppress(OSError):
            cards.content_path(kept).unlink()
        raise UnavailableError(
            f"can't keep {name} ({error.strerror}): make room in the data folder"
        ) from error
    return kept


def forget_upload(kept: str) -> None:
    """It was read, or nobody wants it."""
    with suppress(OSError):
        cards.content_path(kept).unlink()
