"""Serve a recipe and its baseline in many configurations, all in turns.

What is recorded, and all that follows from it, is in :mod:`optimizer.analysis.serving`, which needs no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from optimizer.analysis.rounds import MIN_ROUNDS, confidence_of_each
from optimizer.analysis.served import EAGER_EVERY, Configuration, Served, ServedPoint
from optimizer.analysis.serving import ServingRequest, ServingRun, configurations, serving_key
from optimizer.engine import Runner
from optimizer.engine.base import Service, one_by_one
from optimizer.measurement import visits
from optimizer.measurement.latency import BASELINE, MAX_WARMUP_SECONDS, batches, no_garbage_collection
from optimizer.measurement.runners import RunnerPair, pair, uncompressed
from optimizer.measurement.visits import settle
from optimizer.measurement.workspace import Workspace
from optimizer.methods.engines import REFERENCE_ENGINE
from optimizer.progress import Report, quiet, stop_if_cancelled
from optimizer.records import Request, Settings
from optimizer.system.environment import environment, resolve_threads, stolen_share, timestamp
from optimizer.system.machine_lock import exclusive

VARIANT, EAGER_MODEL = "variant", "torch eager"
MAX_REQUESTS = 64
"""Of one network in one round."""
KEPT_REQUESTS = 2_000
"""Single times of requests that are kept of a network, from all rounds: enough for a 99th percentile."""
MAX_SECONDS = 300.0
"""Of a configuration's rounds: where requests take seconds, there are fewer (:func:`fewest_rounds`)."""


@dataclass(frozen=True, slots=True)
class ServingEffort:
    """How long a configuration is served. Rounds end after ``seconds`` a configuration, but not before
    ``min_rounds``, of which requests that take seconds get fewer. A visit settles within ``settle_seconds``;
    then ``sample_seconds`` of it are timed.
    """

    warmup_calls: int
    warmup_seconds: float
    seconds: float
    min_rounds: int
    max_rounds: int
    settle_seconds: float
    sample_seconds: float


EFFORTS = {
    True: ServingEffort(
        warmup_calls=3,
        warmup_seconds=0.02,
        seconds=0.4,
        min_rounds=16,
        max_rounds=130,
        settle_seconds=0.05,
        sample_seconds=4e-3,
    ),
    False: ServingEffort(
        warmup_calls=10,
        warmup_seconds=0.3,
        seconds=4.0,
        min_rounds=20,
        max_rounds=662,
        settle_seconds=0.1,
        sample_seconds=1e-2,
    ),
}
"""By whether the request is quick."""

Key = tuple[Configuration, str]


def measure(workspace: Workspace, request: ServingRequest, report: Report = quiet) -> ServingRun:
    """Time every configuration of a grid: the baseline twice a round, the recipe once, torch eager at times.

    All of them run in one comparison: each round goes through all configurations and networks in an order of
    its own. The baseline is the uncompressed model on the same engine, with the same batch, threads, streams
    and folding. The machine lock is held.

    Raises InputError for a grid that is not possible here, UnavailableError, WorkError.
    """
    grid, effort = configurations(request), EFFORTS[request.quick]
    asked = Request(request.model, request.recipe, request.engine, request.data)
    made = pair(workspace, asked, report)
    with exclusive(report):
        eager = None
        if request.engine != REFERENCE_ENGINE:
            report(None, "preparing torch eager")
            eager = uncompressed(workspace, REFERENCE_ENGINE, resolve_threads(0), 1)
        services: dict[Key, Service] = {}
        for done, one in enumerate(grid):
            report(done / len(grid), f"compiling {one.words}")
            services |= {
                (one, name): service
                for name, service in _services(workspace, asked, made, eager, one).items()
            }
        images = {batch: batches(made.images, batch) for batch in {one.batch for one in grid}}
        series = _rounds(services, images, effort, request.seed, report)
    return ServingRun(
        key=serving_key(request),
        request=request,
        environment=environment(),
        created=timestamp(),
        points=tuple(
            ServedPoint(
                one,
                series.requests[one, VARIANT],
                series.served(one, BASELINE),
                series.served(one, (VARIANT,)),
                series.served(one, (EAGER_MODEL,)) if eager else None,
            )
            for one in grid
        ),
        execution=made.runner.execution,
        warmup_calls=series.warmup_calls,
        stolen_share=series.stolen_share,
    )


def _services(
    workspace: Workspace, asked: Request, made: RunnerPair, eager: Runner | None, one: Configuration
) -> dict[str, Service]:
    """The baseline twice, each compiled for itself, the recipe, and torch eager where that is another."""
    again = made.baseline
    if made.runner.serve is None:  # an engine that knows only how to be built for a batch and threads
        made = pair(workspace, replace(asked, settings=Settings(threads=one.threads, batch=one.batch)))
        again = uncompressed(workspace, asked.engine, one.threads, one.batch)
    runners = {BASELINE[0]: made.baseline, BASELINE[1]: again, VARIANT: made.runner}
    services = {name: _service(runner, one) for name, runner in runners.items()}
    if eager:
        services[EAGER_MODEL] = _service(eager, replace(one, streams=1))
    return services


def _service(runner: Runner, one: Configuration) -> Service:
    if runner.serve is None:
        return Service(one_by_one(runner.infer), runner.session)
    return runner.serve(batch=one.batch, threads=one.threads, streams=one.streams)


# Timing


@dataclass(frozen=True)
class ServingSeries:
    """Nanoseconds of each network in each configuration: an interval a round, and single requests."""

    intervals_ns: dict[Key, list[int]]
    requests_ns: dict[Key, list[np.ndarray]]
    requests: dict[Key, int]
    warmup_calls: int
    stolen_share: float
    seed: int

    def served(self, one: Configuration, names: Sequence[str]) -> Served:
        """As a record; single requests of the first of ``names``."""
        return Served(
            tuple(tuple(self.intervals_ns[one, name]) for name in names),
            tuple(thin(np.concatenate(self.requests_ns[one, names[0]]), self.seed).tolist()),
        )


def thin(taken: np.ndarray, seed: int) -> np.ndarray:
    """At most KEPT_REQUESTS of the times ``[N]``, in their order, drawn from all of the run.

    The first ones would be those of a few rounds; every so many-th one could be the first of each round.
    """
    if len(taken) <= KEPT_REQUESTS:
        return taken
    sampled = np.random.default_rng(seed).choice(len(taken), KEPT_REQUESTS, replace=False)
    return taken[np.sort(sampled)]


def _rounds(
    services: Mapping[Key, Service],
    images: Mapping[int, Sequence[np.ndarray]],
    effort: ServingEffort,
    seed: int,
    report: Report,
) -> ServingSeries:
    keys, random = list(services), np.random.default_rng(seed)
    intervals: dict[Key, list[int]] = {key: [] for key in keys}
    singles: dict[Key, list[np.ndarray]] = {key: [] for key in keys}
    report(None, "warming up")
    warm = {key: _warm_up(services[key], images[key[0].batch][0], _streams(key), effort) for key in keys}
    requests = {}
    for one, name in keys:
        alike = (EAGER_MODEL,) if name == EAGER_MODEL else (*BASELINE, VARIANT)
        streams, fastest = _streams((one, name)), min(warm[one, other][1] for other in alike)
        # Of several streams one more each, which does not count (:func:`beside_all`).
        fill = math.ceil(effort.sample_seconds / fastest) + (streams > 1)
        requests[one, name] = streams * min(fill, MAX_REQUESTS)
    grid = {one for one, _ in keys}
    seconds = effort.seconds * len(grid)
    once = sum(_round_seconds(key, requests[key], warm[key][1]) for key in keys)
    min_rounds = min(effort.min_rounds, max(fewest_rounds(len(grid)), int(MAX_SECONDS * len(grid) / once)))
    with no_garbage_collection(), stolen_share() as stolen:
        started = visits.clock()
        for number in range(effort.max_rounds):
            passed = (visits.clock() - started) / 1e9
            if number >= min_rounds and passed >= seconds:
                break
            share = min(number / min_rounds, passed / max(seconds, passed))
            report(share, f"serving, round {number + 1}")
            for index in random.permutation(len(keys)):
                stop_if_cancelled()
                key = one, name = keys[index]
                if name == EAGER_MODEL and number % EAGER_EVERY:
                    continue
                batch = images[one.batch][number % len(images[one.batch])]
                with services[key].session():
                    settle(partial(services[key].run, batch, _streams(key)), effort.settle_seconds)
                    times = services[key].run(batch, requests[key])
                intervals[key].append(max(1, round(interval_ns(times, _streams(key)))))
                singles[key].append(np.diff(beside_all(times, _streams(key))).ravel())
        calls = min(calls for calls, _ in warm.values())
        return ServingSeries(intervals, singles, requests, calls, stolen(), seed)


def interval_ns(times: np.ndarray, streams: int) -> float:
    """From one answer to the next while all streams are busy, of requests that began and ended at ``times``
    ``[N, 2]``, in the order in which they began: what a request takes, and the pause before the stream's next
    one, over the streams.

    Not the time until all are answered over their number: streams that are done early stand still in that.
    Where requests scatter by 10 %, and a stream has two, 2 streams would seem 4 % slower than they are, and
    16 streams 13 %.
    """
    begun, ended = np.sort(times, axis=0).T
    pauses = begun[streams:] - ended[: len(times) - streams]  # who answers first has the next one first
    pause = float(pauses.mean()) if len(pauses) else 0.0
    return (float(np.diff(beside_all(times, streams)).mean()) + pause) / streams


def beside_all(times: np.ndarray, streams: int) -> np.ndarray:
    """Of ``times`` ``[N, 2]`` those of requests that all streams had one beside: without the last begun, of
    several streams one each, which run on as others stand still. By when they began, not by when they
    ended: what ends early is short."""
    return times if streams == 1 else times[:-streams]


def _streams(key: Key) -> int:
    return 1 if key[1] == EAGER_MODEL else key[0].streams


def fewest_rounds(configurations: int) -> int:
    """So many that the longest request of a round each bounds the median, of both networks in all
    configurations at once: :func:`optimizer.analysis.serving.best_under` goes by that."""
    chance = (1 - confidence_of_each(2 * configurations)) / 2
    return max(MIN_ROUNDS, math.ceil(-math.log2(chance)))


def _round_seconds(key: Key, requests: int, fastest: float) -> float:
    """What a visit in each round takes at least, by its ``fastest`` request: one settles."""
    share = 1 / EAGER_EVERY if key[1] == EAGER_MODEL else 1
    return share * fastest * (1 + requests / _streams(key))


def _warm_up(service: Service, images: np.ndarray, streams: int, effort: ServingEffort) -> tuple[int, float]:
    """Requests that it took, and the seconds of the fastest. Ends early, after the second of each stream at
    least, where they take long."""
    started, requests, fastest = visits.clock(), 0, math.inf

    def is_over() -> bool:
        passed = (visits.clock() - started) / 1e9
        if requests > streams and passed > MAX_WARMUP_SECONDS:
            return True
        return requests >= effort.warmup_calls and passed >= effort.warmup_seconds

    with service.session():
        while not is_over():
            stop_if_cancelled()
            fastest = min(fastest, float(np.diff(service.run(images, streams)).min()) / 1e9)
            requests += streams
    return requests, fastest
