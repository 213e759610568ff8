"""Send requests at random moments, as users do, and time them from the moment when they came, and how long
the network was taken by each. Percentiles are worked out from the latter."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from optimizer.analysis.load import (
    RECIPE,
    UNCOMPRESSED,
    Answered,
    LoadPoint,
    LoadRequest,
    LoadRun,
    chosen_rates,
    load_key,
)
from optimizer.analysis.queueing import response_percentiles
from optimizer.engine import Runner
from optimizer.formats import significant
from optimizer.measurement import visits
from optimizer.measurement.latency import batches, no_garbage_collection
from optimizer.measurement.runners import pair
from optimizer.measurement.visits import VisitEffort, settle, timed
from optimizer.measurement.workspace import Workspace
from optimizer.progress import Report, quiet, stop_if_cancelled
from optimizer.records import Request, Times
from optimizer.system.environment import environment, stolen_share, timestamp
from optimizer.system.machine_lock import exclusive

MAX_WAIT_SECONDS = 1.0
"""A request that has waited for longer than that, and than MAX_WAIT_CALLS calls, says that the network falls
behind: the turn ends."""
MAX_WAIT_CALLS = 50
MAX_REQUESTS = 20_000
"""In a turn."""
ENOUGH_REQUESTS = 100
"""At a rate, to see whether the queue grew. Of fewer the gaps between them differ too much."""
ERRORS = 2.0
"""Standard errors by which more has to come than is answered, for that to be no chance."""
SLOW_NS = 50_000_000
"""After a call that takes longer, it is looked whether the measurement is still wanted."""
SPIN_SECONDS = 0.0002
"""Before a request is due, what sleeping may overshoot."""
MAX_SLEEP_SECONDS = 0.5
"""After which it is looked whether the measurement is still wanted."""

sleep = time.sleep


@dataclass(frozen=True, slots=True)
class LoadEffort:
    """How long a rate lasts: so many turns of each network, of at least ``seconds`` and ``min_requests``, but
    of no more than ``max_seconds``: percentiles for which there are too few requests then are left out.
    ``min_requests`` of all turns are enough for a 99th percentile."""

    turns: int
    seconds: float
    min_requests: int
    max_seconds: float
    visit: VisitEffort


EFFORTS = {
    True: LoadEffort(2, 0.5, 450, 5.0, VisitEffort(0.1, 0.02, 8, 256)),
    False: LoadEffort(4, 2.0, 400, 30.0, VisitEffort(0.3, 0.05, 16, 256)),
}
"""By whether the request is quick."""


def measure(workspace: Workspace, request: LoadRequest, report: Report = quiet) -> LoadRun:
    """Every rate, ascending, the recipe and its baseline in turns whose order is drawn from the seed. The
    machine lock is held.

    Raises InputError, UnavailableError, WorkError.
    """
    settings, effort = request.settings, EFFORTS[request.settings.quick]
    asked = Request(request.model, request.recipe, request.engine, request.data, settings)
    made = pair(workspace, asked, report)
    runners = {UNCOMPRESSED: made.baseline, RECIPE: made.runner}
    images = batches(made.images, settings.batch)
    random = np.random.default_rng(settings.seed)
    with exclusive(report), no_garbage_collection(), stolen_share() as stolen:
        service = {name: _service_ns(runner, images[0], effort.visit) for name, runner in runners.items()}
        rates = chosen_rates(request, service)
        turns = []
        for number, rate in enumerate(rates):
            report(
                number / len(rates),
                f"{significant(rate, 4)} requests a second, {number + 1} of {len(rates)} rates",
            )
            turns.append((rate, _at_rate(runners, images, rate, service, effort, random)))
    report(None, "working out percentiles")
    points = [
        LoadPoint(rate, {name: _together(found, rate, service[name]) for name, found in by_network.items()})
        for rate, by_network in turns
    ]
    return LoadRun(
        key=load_key(request),
        request=request,
        environment=environment(),
        created=timestamp(),
        points=tuple(points),
        service_ns=service,
        stolen_share=stolen(),
        execution=made.runner.execution,
    )


def _service_ns(runner: Runner, images: np.ndarray, effort: VisitEffort) -> float:
    with runner.session():
        call = partial(runner.infer, images)
        settle(call, effort.settle_seconds)
        return float(np.median(timed(call, effort)))


def _at_rate(
    runners: dict[str, Runner],
    images: Sequence[np.ndarray],
    rate: float,
    service_ns: dict[str, float],
    effort: LoadEffort,
    random: np.random.Generator,
) -> dict[str, list["Turn"]]:
    turns: dict[str, list[Turn]] = {name: [] for name in runners}
    count = requests_in_a_turn(rate, effort)
    for _ in range(effort.turns):
        for name in random.permutation(list(runners)):
            if _fell_behind(turns[name]):  # more of the same would say the same
                continue
            stop_if_cancelled()
            longest = max(1e9 * MAX_WAIT_SECONDS, MAX_WAIT_CALLS * service_ns[name])
            gaps = random.exponential(1e9 / rate, count - 1)  # the first comes as the turn begins
            arrivals = np.concatenate([[0], np.cumsum(gaps)])
            with runners[name].session():
                settle(partial(runners[name].infer, images[0]), effort.visit.settle_seconds)
                turn = serve(runners[name].infer, images, arrivals, longest, 1e9 * effort.max_seconds)
                turns[name].append(turn)
    return turns


def requests_in_a_turn(rate: float, effort: LoadEffort) -> int:
    """At least one."""
    wanted = min(max(effort.min_requests, rate * effort.seconds), rate * effort.max_seconds, MAX_REQUESTS)
    return max(1, int(wanted))


@dataclass(frozen=True, slots=True)
class Turn:
    """Nanoseconds of each request, from its arrival to its answer and of the network for it alone, and from
    the first to the last arrival; the share of the time that the network was ``busy``. ``behind``: one had
    waited for too long."""

    times_ns: list[int]
    service_ns: list[int]
    came_ns: int
    busy: float
    behind: bool


def serve(
    infer: Callable[[np.ndarray], object],
    images: Sequence[np.ndarray],
    arrivals_ns: np.ndarray,
    max_wait_ns: float,
    max_ns: float = math.inf,
) -> Turn:
    """Answer requests that come at ``arrivals_ns`` ``[N]`` from now, one after the other; those that come
    after ``max_ns`` are left out. Ends early where one has waited for longer than ``max_wait_ns``, or some
    still wait when twice ``max_ns`` are over."""
    begun = ended = visits.clock()
    times: list[int] = []
    service: list[int] = []
    last = 0
    for number, arrival in enumerate(arrivals_ns):
        if arrival > max_ns:
            break
        due = begun + int(arrival)
        wait_until(due)
        started = visits.clock()
        if started - due > max_wait_ns or (ended > due and started - begun > 2 * max_ns):
            return Turn(times, service, last, 1.0, True)
        free = max(due, ended)
        infer(images[number % len(images)])
        ended, last = visits.clock(), int(arrival)
        times.append(ended - due)
        service.append(ended - free)  # with what waking up took: the next request waits for it too
        if service[-1] > SLOW_NS:
            stop_if_cancelled()
    passed = visits.clock() - begun
    return Turn(times, service, last, sum(service) / passed, False)


def wait_until(due: int) -> None:
    """Sleep for the most of it, since other programs want the core too, and spin for the rest."""
    while (left := due - visits.clock()) > 0:
        if left > 1e9 * SPIN_SECONDS:
            sleep(min(left / 1e9 - SPIN_SECONDS, MAX_SLEEP_SECONDS))
        if left > 1e9 * MAX_SLEEP_SECONDS:
            stop_if_cancelled()


def _together(turns: Sequence[Turn], rate: float, call_ns: float) -> Answered:
    """``call_ns``: how long a call takes by itself."""
    service = np.array([ns for turn in turns for ns in turn.service_ns], float)
    behind = _fell_behind(turns)
    answered = Answered(
        Times.of([ns for turn in turns for ns in turn.times_ns]),
        float(np.mean([turn.busy for turn in turns])),
        rate * call_ns >= 1e9 if behind is None else behind,
        Times.of(service),
    )
    return answered if answered.behind else replace(answered, percentiles=response_percentiles(service, rate))


def _fell_behind(turns: Sequence[Turn]) -> bool | None:
    """Whether the queue grew; None where there were too few requests to see that."""
    requests = sum(len(turn.times_ns) for turn in turns)
    if any(turn.behind for turn in turns):
        return True
    if requests < ENOUGH_REQUESTS:
        return None
    # A queue that empties computes for less than all of the time that requests came. For how long so many of
    # them come is known to one part in the square root of their number.
    computed = sum(sum(turn.service_ns) for turn in turns)
    return computed > (1 + ERRORS / math.sqrt(requests)) * sum(turn.came_ns for turn in turns)
