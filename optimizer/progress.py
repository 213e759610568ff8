"""How long work reports how far it is, and the line that shows it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Report = Callable[[float | None, str], None]
"""Called with the share done (0 to 1, or None where it can't be told) and what is being done. What it raises
ends the work."""


_known: ContextVar[Callable[[object], None] | None] = ContextVar("known", default=None)


def publish(known: object) -> None:
    """Hand over what long work knows already, before it is done; to nobody where nobody asked for it."""
    if receive := _known.get():
        receive(known)


@contextmanager
def receiving(receive: Callable[[object], None]) -> Iterator[None]:
    """In the block, ``receive`` is called with what is published."""
    token = _known.set(receive)
    try:
        yield
    finally:
        _known.reset(token)


def quiet(share: float | None, message: str) -> None:
    """A report that nobody reads."""


@contextmanager
def progress_line(shown: bool) -> Iterator[Report]:
    """A line that says what is being done, on a terminal or in a notebook, empty when it is done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if shown and console.is_jupyter:
        yield from _notebook_line()
        return
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as line:
        task = line.add_task("", total=None)

        def report(share: float | None, message: str) -> None:
            line.update(task, description=message, total=None if share is None else 1, completed=share or 0)

        yield report


def _notebook_line() -> Iterator[Report]:
    """Without widgets: not every notebook shows them."""
    from IPython.display import display

    def words(text: str) -> dict[str, str]:
        return {"text/plain": text}

    line = display(words(""), raw=True, display_id=True)

    def report(share: float | None, message: str) -> None:
        line.update(words(message if share is None else f"{share:.0%}, {message}"), raw=True)

    yield report
    line.update(words(""), raw=True)
