"""Whether memory that was freed stays with this process."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""
KEPT_BYTES = 2**30
USUAL_BYTES = 2**25
"""Up to which glibc raises its threshold by itself, as blocks of that size come and go (mallopt(3))."""

_c_library: Any = ctypes.CDLL(None) if os.name == "posix" else None
_lock, _within = Lock(), 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Memory that was freed is used again, and goes back to the system in the end; also as a decorator.

    glibc gives large blocks back at once, and the system clears each page that is asked for again: where a
    network learns, whose activations come and go with every step, that took a quarter of the time. Other
    allocators than glibc's stay as they are.
    """
    global _within
    with _lock:
        _within += 1
        _keep(KEPT_BYTES, KEPT_BYTES)
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within:
                _keep(USUAL_BYTES, 2 * USUAL_BYTES)
                _give_back()


def _keep(block: int, rest: int) -> None:
    """Blocks up to so many bytes are not given back by themselves, nor up to ``rest`` at the end of the
    heap."""
    if hasattr(_c_library, "mallopt"):
        _c_library.mallopt(M_MMAP_THRESHOLD, block)
        _c_library.mallopt(M_TRIM_THRESHOLD, rest)


def _give_back() -> None:
    if hasattr(_c_library, "malloc_trim"):
        _c_library.malloc_trim(0)
