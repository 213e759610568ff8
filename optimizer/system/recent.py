"""Answers that hold for some seconds, shared by every thread of this process."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from threading import Lock
from time import monotonic
from typing import Generic, TypeVar, TypeVarTuple

Ts = TypeVarTuple("Ts")
T = TypeVar("T")

MAX_ANSWERS = 64
"""Of one function; the one asked for longest ago goes first."""


_now: ContextVar[float | None] = ContextVar("now", default=None)


@contextmanager
def one_moment() -> Iterator[None]:
    """Within this block, in this thread, time stands still: no answer becomes too old, so that all of the
    block works on the same answers."""
    token = _now.set(monotonic())
    try:
        yield
    finally:
        _now.reset(token)


@dataclass(eq=False, slots=True)
class _Answer(Generic[T]):
    lock: Lock = field(default_factory=Lock)
    values: list[T] = field(default_factory=list)
    until: float = 0.0


def remembered(seconds: float) -> Callable[[Callable[[*Ts], T]], Callable[[*Ts], T]]:
    """Remember what a function of hashable positional arguments gave, for so many seconds.

    Who asks for the same while it is being worked out waits for it; other arguments don't wait. An exception
    is not remembered.
    """

    def decorate(function: Callable[[*Ts], T]) -> Callable[[*Ts], T]:
        answers: dict[Hashable, _Answer[T]] = {}
        guard = Lock()

        @wraps(function)
        def recent(*args: *Ts) -> T:
            with guard:
                answer = answers[args] = answers.pop(args) if args in answers else _Answer()
                while len(answers) > MAX_ANSWERS:
                    del answers[next(iter(answers))]
            with answer.lock:
                now = _now.get()
                if not answer.values or (monotonic() if now is None else now) >= answer.until:
                    answer.values = [function(*args)]
                    answer.until = monotonic() + seconds
                return answer.values[0]

        return recent

    return decorate
