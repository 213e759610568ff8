"""The clock that measurements of latency read, simulated."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from simulated_clock import Clock

from optimizer.errors import UnavailableError
from optimizer.measurement import latency, visits


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """And a machine that nothing else works on, and that counts no instructions."""

    @contextmanager
    def undisturbed() -> Iterator[Callable[[], float]]:
        yield lambda: 0.0

    @contextmanager
    def uncounted() -> Iterator[Callable[[], int]]:
        raise UnavailableError("this kernel gives no count")
        yield int

    made = Clock()
    monkeypatch.setattr(visits, "clock", lambda: made.now_ns)
    monkeypatch.setattr(latency, "stolen_share", undisturbed)
    monkeypatch.setattr(latency, "counting", uncounted)
    return made
