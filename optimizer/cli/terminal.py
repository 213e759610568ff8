"""The line of progress on a terminal."""

import sys


def tell(share: float | None, message: str) -> None:
    """Show how far work is, where a person looks."""
    if sys.stderr.isatty():
        percent = "" if share is None else f" {100 * share:.0f} %"
        print(f"\r\033[K{message}{percent}", end="", file=sys.stderr, flush=True)
        if share == 1:
            print(file=sys.stderr)


def end_of_line() -> None:
    """Wipe the progress that stands there."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
