"""A node's preload: results are made up there, and what is measured is noted.

A request's ``seed`` says what happens: 0 nothing, 1 the node that has it dies, the first time; 2 it goes on
until it is wanted no more; 3 it takes a second; 4 it takes a moment, and is in the node's store as what is
measured is; 5 scoring it goes on until it is wanted no more; 6 it is really measured and scored.
"""

import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from faults.storing import make_result
from faults.tasks import note

from optimizer.cluster import content, node
from optimizer.data import selection
from optimizer.data.folders import list_folder
from optimizer.errors import InputError
from optimizer.on_demand import load_or_measure as really_measured
from optimizer.on_demand import scores_of as really_scored
from optimizer.progress import Report
from optimizer.records import DataSpec, Request, Result, Scores
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.system.environment import environment
from optimizer.system.paths import home

NOTES = "PARETOSCOPE_TEST_NOTES"
"""Environment variable: the file that nodes note in what they begin."""
DIES, WAITS, SLOW, KEPT, HELD, REAL = 1, 2, 3, 4, 5, 6


def load_or_measure(request: Request, store: Store, report: Report, scores: Scores | None) -> Result:
    key = request_key(request)
    if request.settings.seed == KEPT and (found := store.get(key)):
        return found
    notes = Path(os.environ[NOTES])
    images = len(list_folder(request.data.path).images) if request.data.path else 0
    note(notes, f"{os.environ['PARETOSCOPE_HOME']} {request.recipe.prune.share} {images}")
    if request.settings.seed == DIES:
        with suppress(FileExistsError):  # of two nodes that begin at once, one dies
            notes.with_name("died").touch(exist_ok=False)
            os._exit(1)
    while request.settings.seed == WAITS:
        report(None, "waiting")
        time.sleep(0.05)
    if request.settings.seed == SLOW:
        time.sleep(1)
    if request.settings.seed == REAL:
        time_in_a_few_calls()
        return really_measured(request, store, report, scores=scores)
    made = make_result(key, request=request, environment=environment())
    if scores:
        made = replace(made, scored_on=scores.environment)
    if request.settings.seed == KEPT:
        time.sleep(0.2)
        store.put(made)
    return made


def time_in_a_few_calls() -> None:
    from quick_timing import A_FEW_CALLS

    from optimizer.measurement import latency

    latency.EFFORTS[True] = A_FEW_CALLS


def scores_of(request: Request, report: Report) -> Scores:
    note(Path(os.environ[NOTES]), f"{os.environ['PARETOSCOPE_HOME']} {request.recipe.prune.share} scored")
    while request.settings.seed == HELD:
        report(None, "waiting")
        time.sleep(0.05)
    if request.settings.seed == REAL:
        return really_scored(request, report)
    made = make_result("")
    inspection, accuracy = made.inspection, made.accuracy
    return Scores(environment(), selection.fingerprint(request.data), inspection, accuracy, accuracy)


def fingerprint(spec: DataSpec) -> str:
    """The sender's folders are on another machine's disk."""
    if spec.path and not Path(spec.path).is_relative_to(home()):
        raise InputError(f"the image folder {spec.path} does not exist")
    return selection.fingerprint(spec)


def dask_setup(worker: object) -> None:
    """What Dask calls in a node."""
    content.fingerprint = fingerprint
    node.load_or_measure, node.scores_of = load_or_measure, scores_of
