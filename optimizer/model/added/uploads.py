"""Files that visitors of the page upload: bounded, and kept under the digest of their content until they are
added or forgotten. No torch."""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from optimizer.model.added import cards
from optimizer.system.uploads import check_room, check_size, not_kept

CHUNK_BYTES = 1 << 20


def keep_upload(name: str, size: int, content: BinaryIO) -> str:
    """Write an upload of ``size`` bytes to the data folder; what it is called there. Raises InputError for
    one too many, UnavailableError where it can't be written."""
    check_size(name, size)
    check_room(name, size)
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
        raise not_kept(name, error) from error
    return kept


def forget_upload(kept: str) -> None:
    """It was read, or nobody wants it."""
    with suppress(OSError):
        cards.content_path(kept).unlink()
