"""One visit to a network: call it until its calls stop falling, then time it.

After another network has run, a call takes six to twenty calls to come back to its steady time: the weights
and code of the other one lie in the caches, and a short call feels that more than a long one.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optimizer.progress import stop_if_cancelled

WINDOW = 4
"""Calls whose median is compared with that of as many before them."""
MIN_FALL = 0.01
"""A smaller fall from window to window counts as none."""

clock = time.perf_counter_ns


@dataclass(frozen=True, slots=True)
class VisitEffort:
    """How long a visit lasts. Its calls settle within ``settle_seconds``, or are timed as they are; the timed
    ones fill ``seconds``, and are at least ``min_calls`` and at most ``max_calls``."""

    settle_seconds: float
    seconds: float
    min_calls: int
    max_calls: int


def visit(call: Callable[[], object], effort: VisitEffort) -> tuple[list[int], list[int]]:
    """Nanoseconds of each call that settled, and of each timed one."""
    return settle(call, effort.settle_seconds), timed(call, effort)


def settle(call: Callable[[], object], max_seconds: float) -> list[int]:
    """Call until the median of a window is no longer below that of the window before; at least once.

    Gives the nanoseconds of each call. Raises Cancelled between two windows.
    """
    calls: list[int] = []
    end = clock() + 1e9 * max_seconds
    while True:
        calls.append(_time(call))
        whole = len(calls) % WINDOW == 0
        if clock() >= end or (whole and is_settled(calls)):
            return calls
        if whole:
            stop_if_cancelled()


def is_settled(calls: Sequence[int]) -> bool:
    """Whether the last window of the calls fell by less than MIN_FALL from the one before it."""
    if len(calls) < 2 * WINDOW:
        return False
    before, last = calls[-2 * WINDOW : -WINDOW], calls[-WINDOW:]
    return statistics.median(last) > (1 - MIN_FALL) * statistics.median(before)


def timed(call: Callable[[], object], effort: VisitEffort) -> list[int]:
    """Call for the time and the number of calls that a visit takes."""
    calls: list[int] = []
    end = clock() + 1e9 * effort.seconds
    while len(calls) < effort.max_calls and (len(calls) < effort.min_calls or clock() < end):
        calls.append(_time(call))
    return calls


def _time(call: Callable[[], object]) -> int:
    before = clock()
    call()
    return clock() - before
