"""A file is written whole, or not at all: a full disk leaves what was there before."""

import os
import uuid
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """In the place of a file of that name. Raises OSError; then nothing is changed.

    Links and what is no file, such as a pipe, are written as they are, and so is what lies in a folder that
    takes no new files.
    """
    plain = not path.is_symlink() and (path.is_file() or not path.exists())
    if not plain or not os.access(path.parent, os.W_OK):
        path.write_bytes(content)
        return
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(content)
        if path.exists():
            partial.chmod(path.stat().st_mode)
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink()
