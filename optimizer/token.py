"""One at a time on this machine: what is timed must not run beside other work of ours."""

import functools
import getpass
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from optimizer.errors import UnavailableError

ASK_SECONDS = 0.5


@functools.cache
def _lock(name: str) -> FileLock:
    owner = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    return FileLock(Path(tempfile.gettempdir(), f"paretoscope-{owner}-{name}.lock"))


@contextmanager
def machine_token(name: str = "work", waiting: Callable[[float], None] | None = None) -> Iterator[None]:
    """Hold this user's token ``name`` of this machine: no other thread or process has it meanwhile.

    The thread that holds it may take it again. A holder that is killed gives it back. ``waiting`` is called
    every half second of waiting with the seconds so far; what it raises ends the wait.

    Raises UnavailableError when the lock file in the temporary folder can't be used.
    """
    lock, begin = _lock(name), time.monotonic()
    while True:
        try:
            lock.acquire(timeout=ASK_SECONDS)
            break
        except Timeout:
            if waiting:
                waiting(time.monotonic() - begin)
        except OSError as error:
            raise UnavailableError(
                f"can't lock {lock.lock_file}: {error}. Remove that file, or set TMPDIR to another folder"
            ) from error
    try:
        yield
    finally:
        lock.release()
