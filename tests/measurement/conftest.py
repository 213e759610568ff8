"""A simulated clock for measurements of latency, and requests measured in just a few rounds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from by_request import measure
from simulated_clock import Clock
from small_requests import Measured, request

from optimizer.errors import UnavailableError
from optimizer.measurement import latency, visits
from optimizer.measurement.latency import LatencyEffort
from optimizer.measurement.visits import VisitEffort
from optimizer.recipe import Recipe
from optimizer.records import Request, Result

VISIT = VisitEffort(settle_seconds=0.01, seconds=0, min_calls=4, max_calls=4)


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


@pytest.fixture(scope="module")
def few_rounds() -> Iterator[None]:
    """Just enough to have an interval: how long a series lasts is tested with the latency module."""
    with pytest.MonkeyPatch.context() as patch:
        for quick in (True, False):
            patch.setitem(
                latency.EFFORTS,
                quick,
                LatencyEffort(
                    2, warmup_seconds=0, seconds=0, min_rounds=10, visit=VISIT, processes=0 if quick else 2
                ),
            )
        yield


@pytest.fixture(scope="module")
def measured(few_rounds: None) -> Measured:
    """``measured(recipe, **changes)``: the result of a request, run once for all tests of a file."""
    results: dict[Request, Result] = {}

    def result(recipe: Recipe = Recipe(), **changes: object) -> Result:  # noqa: B008 - frozen
        asked = request(recipe, **changes)
        if asked not in results:
            results[asked] = measure(asked)
        return results[asked]

    return result
