"""What takes long to make, kept on disk by content: made once, then read, and thrown away oldest first."""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from optimizer.errors import UnavailableError
from optimizer.resources import home

KEPT_BYTES = 4 * 2**30
"""What the folder may hold; what was not used for longest goes first."""
LEFT_OVER_SECONDS = 86_400
"""A file whose writing was never finished goes after so long."""

T = TypeVar("T")
Parts = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors by name, and facts that JSON can hold."""


def kept(
    content: str, make: Callable[[Path | None], T], pack: Callable[[T], Parts], unpack: Callable[[Parts], T]
) -> T:
    """What was kept under ``content`` (a digest of all that it depends on), or is made now and kept.

    Two processes that need the same one make it once. ``make`` is given the path at which it will be kept; it
    may leave what it has so far beside it (:func:`beside`). Where the data folder can't be written, ``make``
    is given None and nothing is kept. What it raises comes through, and nothing is kept either.
    """
    try:
        path = home() / "studies" / f"{content}.safetensors"
        path.parent.mkdir(exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except (OSError, UnavailableError):
        return make(None)
    try:
        with suppress(ValueError, KeyError, TypeError, RuntimeError):  # kept by another version, or damaged
            if parts := read(path):
                return unpack(parts)
        made = make(path)
        with suppress(OSError):
            write(path, pack(made))
            beside(path).unlink(missing_ok=True)
        return made
    finally:
        lock.release()
        _evict(path)


def beside(path: Path) -> Path:
    """Where what is not finished waits for whoever goes on with it."""
    return path.with_name(f"{path.stem}-begun.safetensors")


def read(path: Path) -> Parts | None:
    """Tensors, mapped and not copied, and facts; None where there are none, or damaged ones."""
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        os.utime(path)  # used now: what goes first is what was not
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return tensors, facts


def write(path: Path, parts: Parts) -> None:
    """Whole or not at all. Raises OSError."""
    tensors, facts = parts
    unfinished = path.with_suffix(f".{os.getpid()}")
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, unfinished, {"facts": json.dumps(dict(facts))})
    unfinished.replace(path)


def _evict(used: Path) -> None:
    """Keep the folder below its limit; what is in use stays, however large."""
    with suppress(OSError):
        files = [path for path in used.parent.glob("*.safetensors") if path != used]
        total = used.stat().st_size if used.exists() else 0
        for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
            total += path.stat().st_size
            if total > KEPT_BYTES:
                path.unlink(missing_ok=True)
        for path in used.parent.iterdir():
            left_over = time.time() - path.stat().st_mtime > LEFT_OVER_SECONDS
            alone = path.suffix == ".lock" and not path.with_suffix(".safetensors").exists()
            unfinished = path.suffix not in (".safetensors", ".lock")
            if left_over and (alone or unfinished):
                path.unlink(missing_ok=True)
