"""What takes long to make, kept on disk by content: made once, then read, and thrown away oldest first."""

import json
import os
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from optimizer.errors import UnavailableError
from optimizer.progress import stop_if_cancelled
from optimizer.system.paths import home

KEPT_BYTES = 4 * 2**30
"""What the folder may hold; what was not used for longest goes first."""
LEFT_OVER_SECONDS = 86_400
"""A file whose writing was never finished goes after so long."""

ASK_SECONDS = 0.5
"""While another process makes the same: between two looks at whether it is still wanted."""

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
        _acquire(lock)
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


def _acquire(lock: FileLock) -> None:
    """Raises Cancelled where who waits wants it no more, OSError."""
    while True:
        try:
            lock.acquire(timeout=ASK_SECONDS)
            return
        except Timeout:
            stop_if_cancelled()


def beside(path: Path) -> Path:
    """Where what is not finished waits for whoever goes on with it."""
    return path.with_name(f"{path.stem}-begun.safetensors")


def read(path: Path) -> Parts | None:
    """Tensors and facts; None where there are none, or damaged ones.

    Tensors are copied: where in memory one begins decides how sums over it are rounded, and in the file they
    begin anywhere.
    """
    try:
        with safe_open(path, "pt") as file:
            words = file.metadata()["facts"]
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            if int(file.metadata()["checksum"]) != _checksum(tensors, words):
                return None
        facts = json.loads(words)
        os.utime(path)  # used now: what goes first is what was not
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return tensors, facts


def write(path: Path, parts: Parts, durable: bool = True) -> None:
    """Whole or not at all; a ``durable`` one also survives a power cut. Raises OSError."""
    tensors, facts = parts
    unfinished = path.with_suffix(f".{os.getpid()}")
    plain = {  # a stride of 0, which a single value may have, can't be read as bytes
        name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    words = json.dumps(dict(facts))
    try:
        save_file(plain, unfinished, {"facts": words, "checksum": str(_checksum(plain, words))})
        if durable:
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
        unfinished.replace(path)
        if durable and os.name == "posix":  # the name too; elsewhere a folder can't be opened
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except SafetensorError as error:  # what it says of a full disk
        raise OSError(f"can't write {path}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _checksum(tensors: Mapping[str, Tensor], words: str) -> int:
    """CRC-32 of values, names, types, shapes and facts: 2 GB a second, where sha256 does less than one.

    A file that lost its blocks in a power cut has zeros where they were, and a whole header.
    """
    described = [(name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in sorted(tensors.items())]
    found = zlib.crc32(f"{described} {words}".encode())
    for _, tensor in sorted(tensors.items()):
        if tensor.numel():
            found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return found


def _evict(used: Path) -> None:
    """Keep the folder below its limit; what is in use stays, however large."""
    with suppress(OSError):
        found = dict[Path, os.stat_result]()
        for path in used.parent.iterdir():
            with suppress(OSError):  # another process has just removed it
                found[path] = path.stat()
        total = found[used].st_size if used in found else 0
        for path, stat in sorted(found.items(), key=lambda one: one[1].st_mtime, reverse=True):
            if path.suffix == ".safetensors" and path != used:
                total += stat.st_size
                if total > KEPT_BYTES:
                    path.unlink(missing_ok=True)
            left_over = time.time() - stat.st_mtime > LEFT_OVER_SECONDS
            alone = path.suffix == ".lock" and path.with_suffix(".safetensors") not in found
            unfinished = path.suffix not in (".safetensors", ".lock")
            if left_over and (alone or unfinished):
                path.unlink(missing_ok=True)
