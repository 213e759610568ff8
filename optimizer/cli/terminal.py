"""What a person at a terminal sees, the line of progress and a result, and what they end with Ctrl-C."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from optimizer.analysis.statistics import LatencyVerdict
from optimizer.formats import columns, format_share
from optimizer.progress import Report
from optimizer.records import Result

DEFAULT_COLUMNS = 80
"""Of a terminal that does not know."""

_listeners: list[Report] = []
"""Who is told in place of a person at the terminal."""


def tell(share: float | None, message: str) -> None:
    """Show how far work is, where a person looks."""
    for listener in _listeners:
        listener(share, message)
    if not _listeners and _can_wipe():
        percent = "" if share is None else f" {format_share(share)}"
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or DEFAULT_COLUMNS
        message = message[: max(columns - 1 - len(percent), 0)]  # only one line is wiped
        print(f"\r\033[K{message}{percent}", end="", file=sys.stderr, flush=True)
        if share == 1:
            print(file=sys.stderr)


def say(words: str) -> None:
    """What a person is told beside the answer."""
    print(f"paretoscope: {words}", file=sys.stderr)


def _can_wipe() -> bool:
    """Whether a person looks, at a terminal that knows how to (an editor's often does not)."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def end_of_line() -> None:
    """Wipe the progress that stands there."""
    if _can_wipe():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


@contextmanager
def told(listener: Report) -> Iterator[None]:
    """In the block, how far work is goes to ``listener``, in this whole process."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def first_interrupt(words: str, if_so: Callable[[], bool]) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed in the block, which is answered with ``words``; the second time, and where
    ``if_so`` says no, it interrupts, as anywhere else."""
    pressed = False
    unheard = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as of a command in the background
    if unheard or threading.current_thread() is not threading.main_thread():  # which alone hears of it
        yield lambda: False
        return

    def note(*_: object) -> None:
        nonlocal pressed
        if pressed or not if_so():
            raise KeyboardInterrupt
        pressed = True
        os.write(2, f"\nparetoscope: {words}\n".encode())  # print may be what was interrupted

    usual = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, usual)


def print_result(result: Result) -> None:
    from optimizer.analysis import fidelity
    from optimizer.analysis.metrics import METRICS
    from optimizer.analysis.summary import FIDELITY, summarise

    summary = summarise(result)
    end_of_line()
    print(f"{summary.request.model} on {summary.request.engine}: {summary.description}")
    labelled = summary.reference == "labels"
    first = ("accuracy", "drop") if labelled else ("agreement", "sqnr", "cosine")
    if summary.fidelity:
        first = FIDELITY
    sizes = ("file_size", "packed_size")
    for name in (*first, *sizes, "latency", "latency_ratio", "first_call"):
        print(f"  {METRICS[name].label:<18} {summary.text(name)}")
    detectable = (
        f" ({summary.latency.detectable_words})" if summary.latency.verdict is LatencyVerdict.SAME else ""
    )
    print(f"  {'verdict':<18} {summary.latency.verdict.label}{detectable}")
    trust = (*summary.simulated, *summary.noise, summary.of_one_build, summary.note_on_sharing)
    for note in filter(None, (*trust, *summary.notes, summary.scored_elsewhere)):
        print(f"  note: {note}")
    if apart := fidelity.rows(result.accuracy.outputs):
        print(columns([tuple(apart[0]), *(tuple(row.values()) for row in apart)]))
