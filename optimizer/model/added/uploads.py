"""Files that visitors of the page upload: bounded, and kept under the digest of their content until they are
added or forgotten. No torch."""

import hashlib
import shutil
import threading
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from optimizer.model.added import cards
from optimizer.system.uploads import check_room, check_size, not_kept

_holders: Counter[str] = Counter()
"""By how many an upload is held; who goes without a word holds theirs until it is old."""
_changing = threading.Lock()


def keep_upload(name: str, size: int, content: BinaryIO) -> str:
    """Write an upload of ``size`` bytes to the data folder; what it is called there. Raises InputError for
    one too many, UnavailableError where it can't be written."""
    check_size(name, size)
    check_room(name, size)
    digest = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
    kept = f"{digest[:20]}.upload{Path(name).suffix.lower()[:12]}"
    content.seek(0)
    path = cards.content_path(kept)
    partial = path.with_name(f"{kept}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            shutil.copyfileobj(content, file)
        with _changing:
            partial.replace(path)
            _holders[kept] += 1
    except OSError as error:
        raise not_kept(name, error) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return kept


def forget_upload(kept: str) -> None:
    """It was read, or who uploaded it does not want it. Another who uploaded the same still has it. Of what
    was not uploaded, as an id on the hub, nothing is forgotten."""
    with _changing:
        if kept not in _holders:
            return
        _holders[kept] -= 1
        if _holders[kept] <= 0:
            del _holders[kept]
            with suppress(OSError):
                cards.content_path(kept).unlink()
