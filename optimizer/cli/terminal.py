"""The line of progress on a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from optimizer.progress import Report

_listeners: list[Report] = []
"""Who is told in place of a person at the terminal."""


def tell(share: float | None, message: str) -> None:
    """Show how far work is, where a person looks."""
    for listener in _listeners:
        listener(share, message)
    if not _listeners and sys.stderr.isatty():
        percent = "" if share is None else f" {100 * share:.0f} %"
        print(f"\r\033[K{message}{percent}", end="", file=sys.stderr, flush=True)
        if share == 1:
            print(file=sys.stderr)


def end_of_line() -> None:
    """Wipe the progress that stands there."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


@contextmanager
def told(listener: Report) -> Iterator[None]:
    """In the block, how far work is goes to ``listener``, in this whole process."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
