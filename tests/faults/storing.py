"""What the tests of kills and full disks store, in workers and elsewhere."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import factories
from faults.tasks import note

from optimizer.analysis.screening import Bar
from optimizer.progress import Report, quiet
from optimizer.recipe import Recipe
from optimizer.records import (
    Accuracy,
    Environment,
    Execution,
    Inspection,
    Latency,
    LayerExecution,
    LayerFacts,
    Request,
    Result,
    Size,
    Visits,
)
from optimizer.store import ledger
from optimizer.store.items import Item
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.system.paths import home

VISITS = Visits.of([([12], [10]), ([12], [11])])


def make_result(key: str, **changes: Any) -> Result:
    """A small, whole result; ``changes`` are fields of Result."""
    size = Size(100, 50, 40, "bitmap", 25, 12)
    accuracy = Accuracy(b"\xf0", 8, "labels", 7, 31.5, 0.01)
    whole = Result(
        key=key,
        request=Request("fashion-mlp"),
        environment=Environment(
            "a cpu", ("avx2",), 2, None, 2**30, "Linux", "3.11", {"torch": "2.13", "openvino": "2026.4"}
        ),
        created="2026-11-24T12:00:00+00:00",
        inspection=Inspection((LayerFacts("fc", "Linear", (5, 5), 25, 12, 0.1, 8, 25),), size, size),
        accuracy=accuracy,
        baseline_accuracy=accuracy,
        latency=Latency("sig", Recipe(), (VISITS, VISITS), VISITS, 1, 2, True, 0, 10, 0.0, 1, (2,)),
        execution=Execution((LayerExecution("fc", "f32", "gemm"),), ()),
        notes=("a note",),
    )
    return replace(whole, **changes)


def claimed(store: Store, owner: str = "me", sweep: int | None = None) -> Item:
    """The next item, which there is."""
    item = ledger.claim(store, owner, sweep)
    assert item is not None
    return item


def fill(request: tuple[str, str, str, int], report: Report) -> None:
    """Put ``count`` results into the store at ``path``, noting in ``file`` each one that is in."""
    path, file, prefix, count = request
    store = Store(path)
    for number in range(count):
        key = f"{prefix}-{os.getpid()}-{number}"
        store.put(make_result(key, notes=("x" * 20_000,)))
        note(file, key)


def keep_here(request: Request, report: Report = quiet) -> str:
    """Put the result of a request of a sweep after a moment, and note it; be killed by the one that is
    ``deadly``."""
    key = request_key(request)
    _die_of(key)
    time.sleep(0.02)
    Store().put(make_result(key))
    note(home() / "noted", f"kept {key}")
    return key


def _die_of(key: str) -> None:
    with suppress(FileNotFoundError):
        if key == (home() / "deadly").read_text():
            os.kill(os.getpid(), signal.SIGKILL)


def make_up(request: Request, store: Store, report: Report, workspace: object = None) -> Result:
    """What is in the store, or a result that is made up after a moment, put there and noted."""
    key = request_key(request)
    if found := store.get(key):
        return found
    _die_of(key)
    time.sleep(0.1)
    report(0.5, "half way")
    made = factories.make_result(request.recipe, engine=request.engine, quick=True, images=600)
    store.put(replace(made, key=key, request=request))
    note(home() / "noted", f"kept {key}")
    return replace(made, key=key, request=request)


def find_here(number: int, report: Report) -> str:
    """Search for the answer to a question of the ledger, as a worker does, among what is made up."""
    from optimizer import on_demand, work

    on_demand.load_or_measure = make_up
    on_demand.time_again = lambda request, *_: factories.make_result(request.recipe, quick=True).latency
    on_demand.KEEP_SECONDS = 0.0
    return str(work.run("find", number, report))


def screen_here(sweep: int) -> None:
    """Work off a sweep of the frontier alone, with no more than two calls a round. The first that is to be
    left out is noted as soon as that is known, and nothing more is done."""
    from quick_timing import A_FEW_CALLS

    from optimizer.measurement import experiment, latency
    from optimizer.measurement.scoring import score_unless_beaten
    from optimizer.on_demand import do_here
    from optimizer.search.drain import drain

    def held(score: Any, images: Any, bar: Bar, baseline: Any, errors: Any) -> Any:
        def counted(*known: Any) -> int:
            if (found := int(errors(*known))) >= bar.errors:
                note(home() / "held", os.getpid())
                time.sleep(600)
            return found

        return score_unless_beaten(score, images, bar, baseline, counted)

    latency.EFFORTS[True] = A_FEW_CALLS
    experiment.score_unless_beaten = held
    store = Store()
    for _ in drain(store, do_here(store, quiet), sweep):
        pass
