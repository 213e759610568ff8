"""One at a time on this machine: what is timed must not run beside other work of ours."""

import functools
import getpass
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from optimizer.errors import UnavailableError
from optimizer.progress import Report
from optimizer.system.paths import APP, is_network, private

ASK_SECONDS = 0.5


@functools.cache
def _lock(path: Path) -> FileLock:
    return FileLock(path, mode=0o600)


if hasattr(os, "register_at_fork"):  # a lock that a process inherits is not its own
    os.register_at_fork(after_in_child=_lock.cache_clear)


@contextmanager
def machine_lock(name: str = "work", waiting: Callable[[float], None] | None = None) -> Iterator[None]:
    """Hold this user's lock ``name`` of this machine: no other thread or process has it meanwhile.

    The thread that holds it may take it again. A holder that is killed gives it back. ``waiting`` is called
    every half second of waiting with the seconds so far; what it raises ends the wait.

    Raises UnavailableError when the lock file can't be used.
    """
    lock, begin = _lock(_folder() / f"{name}.lock"), time.monotonic()
    while True:
        try:
            lock.acquire(timeout=ASK_SECONDS)
            break
        except Timeout:
            if waiting:
                waiting(time.monotonic() - begin)
        except OSError as error:
            raise UnavailableError(f"can't lock {lock.lock_file}: {error}. Remove that file") from error
    try:
        yield
    finally:
        lock.release()


def exclusive(report: Report) -> AbstractContextManager[None]:
    """This machine to ourselves, for one phase: a command and a page take turns."""
    return machine_lock(
        waiting=lambda seconds: report(
            None, f"waiting for another measurement on this machine ({seconds:.0f} s)"
        )
    )


def _folder() -> Path:
    """Where only this user can write; the same for all of their processes, whatever PARETOSCOPE_HOME says.

    That is the platform's data folder where it is the user's and on a disk of this machine, else a folder in
    the temporary one. (Not the session's runtime folder: it goes when the user logs out, while a sweep that
    was left running goes on.) Raises UnavailableError where another user has taken the latter.
    """
    try:
        usual = platformdirs.user_data_path(APP, False)
        if _is_own(Path.home()) and not is_network(usual):
            return private(usual / "locks")
    except (OSError, RuntimeError, UnavailableError):  # no home, not one that can be written to, or shared
        pass
    user = os.geteuid() if hasattr(os, "geteuid") else getpass.getuser()
    folder = Path(tempfile.gettempdir(), f"{APP}-{user}")
    return private(folder, f"remove {folder}, or set TMPDIR to a folder of your own")


def _is_own(folder: Path) -> bool:
    return not hasattr(os, "geteuid") or folder.stat().st_uid == os.geteuid()
