"""How long work reports how far it is, and ends early; and the line that shows it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from optimizer.formats import format_share

Report = Callable[[float | None, str], None]
"""Called with the share done (0 to 1, or None where it can't be told) and what is being done. What it raises
ends the work."""


class Cancelled(BaseException):
    """Ends work that is not wanted any more. No error: whoever catches errors lets it pass."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asked for the work: ``receive`` is given what is known before the end, ``cancelled`` says whether
    it is wanted no more, ``satisfied`` whether the best that was found so far will do, ``over`` whether
    there is no time for anything more."""

    receive: Callable[[object], object]
    cancelled: Callable[[], bool]
    satisfied: Callable[[], bool] = lambda: False
    over: Callable[[], bool] = lambda: False


_asker: ContextVar[Asker | None] = ContextVar("asker", default=None)


def publish(known: object) -> None:
    """Hand over what long work knows already, before it is done; to nobody where nobody asked for it."""
    if asker := _asker.get():
        asker.receive(known)


def is_heard() -> bool:
    """Whether :func:`publish` reaches anybody: what is worked out for it alone can be left out otherwise."""
    return _asker.get() is not None


def stop_if_cancelled() -> None:
    """Called in long work wherever it may end early. Raises Cancelled when it is not wanted any more."""
    if (asker := _asker.get()) and (asker.over() or asker.cancelled()):
        raise Cancelled


def is_enough() -> bool:
    """Looked at by a search that has a best so far, wherever it may end with that."""
    return satisfied()()


def satisfied() -> Callable[[], bool]:
    """What :func:`is_enough` asks, of whoever asks for the work now: for later, when another has taken their
    place (:func:`while_wanted`)."""
    asker = _asker.get()
    return asker.satisfied if asker else lambda: False


@contextmanager
def asked_by(asker: Asker | None) -> Iterator[None]:
    """In the block, ``asker`` is who asked for the work; None: nobody, and it goes on to its end."""
    token = _asker.set(asker)
    try:
        yield
    finally:
        _asker.reset(token)


@contextmanager
def ended_by(cancelled: Callable[[], bool], satisfied: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """In the block, work ends early also where these say so, as those of an :class:`Asker` do."""
    before = _asker.get() or Asker(lambda known: None, lambda: False)
    asker = Asker(
        before.receive,
        lambda: cancelled() or before.cancelled(),
        lambda: satisfied() or before.satisfied(),
        before.over,
    )
    with asked_by(asker):
        yield


@contextmanager
def while_wanted(unwanted: Callable[[object | None], bool]) -> Iterator[Callable[[], bool]]:
    """In the block, work ends early also where ``unwanted`` says so: of what it publishes, and of None (then
    all is over) each time it could end. Nothing of that is published; whoever asked before may cancel, as
    without it. What it gives says whether ``unwanted`` has ended the work.

    Raises Cancelled in the work, as :func:`stop_if_cancelled` does.
    """
    asker, ruled_out = _asker.get(), False

    def rule_out(known: object | None) -> bool:
        nonlocal ruled_out
        is_unwanted = unwanted(known)
        ruled_out = ruled_out or is_unwanted
        return is_unwanted

    def cancelled() -> bool:
        return ruled_out or (asker is not None and asker.cancelled())

    def over() -> bool:
        return rule_out(None) or (asker is not None and asker.over())

    with asked_by(Asker(rule_out, cancelled, over=over)):
        yield lambda: ruled_out


@contextmanager
def uninterrupted(unless_over: bool = False) -> Iterator[None]:
    """In the block, or the function that it decorates, nothing is cancelled: for what later work needs too.
    With ``unless_over`` it ends where all is over, for what only little of the later work needs."""
    asker = _asker.get()
    over = asker.over if asker and unless_over else lambda: False
    with asked_by(asker and replace(asker, cancelled=lambda: False, over=over)):
        yield


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
        line.update(words(message if share is None else f"{format_share(share)}, {message}"), raw=True)

    try:
        yield report
    finally:
        line.update(words(""), raw=True)
