"""A simulated clock for measurements of latency, requests measured in just a few rounds, and model files that
are read in this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from by_request import measure
from simulated_clock import Clock
from small_requests import Measured, request

from optimizer.errors import UnavailableError
from optimizer.export.artifacts import networks
from optimizer.measurement import latency, visits
from optimizer.measurement.latency import LatencyEffort
from optimizer.measurement.visits import VisitEffort
from optimizer.model.added import files
from optimizer.model.added.network_reading import read_ir, read_zip
from optimizer.model.added.onnx_reading import read_onnx
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


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read here: the process that reads them has tests of its own."""

    def read(reader: str, file: Path, name: str, target: str, **options: Any) -> dict[str, Any]:
        if reader == "onnx":
            return read_onnx(file, Path(target), False, lambda more: None)
        if reader == "zip":
            return read_zip(file, Path(target), lambda more: None)
        assert reader == "ir"
        return read_ir(file, Path(options["weights"]), Path(target))

    monkeypatch.setattr(files, "read_limited", read)
    monkeypatch.setattr(networks, "read_limited", read)
