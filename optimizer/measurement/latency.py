"""Latency: rounds that visit two builds of the baseline and each variant, in an order shuffled anew.

Drift of the machine hits all of them alike, the two builds of the baseline show what "no difference" looks
like here, and every call is kept. Call it only while holding the machine lock, in a process that does nothing
else.
"""

import gc
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from optimizer.analysis.rounds import MIN_ROUNDS
from optimizer.analysis.statistics import LatencySummary, summarise_visits
from optimizer.engine.base import Runner
from optimizer.errors import UnavailableError
from optimizer.measurement import visits
from optimizer.measurement.visits import VisitEffort, visit
from optimizer.progress import stop_if_cancelled
from optimizer.records import Settings, Visits
from optimizer.system.counters import counting
from optimizer.system.environment import stolen_share

BASELINE = ("baseline", "baseline again")
MAX_WARMUP_SECONDS = 20.0
"""Of one network; two calls it has in any case, as the first may have to compile."""
MAX_SERIES_SECONDS = 300.0
"""What rounds are cut down to where calls take seconds: five processes are as many times that."""
MAX_BATCHES = 32
"""Of one series: its rounds go through them again and again."""
MIN_LONG_ROUNDS = 2
"""Of a process that is one of several: together they have enough for an interval."""


@dataclass(frozen=True, slots=True)
class LatencyEffort:
    """Warm-up and length of one series. Rounds stop at ``seconds``, but not before ``min_rounds``, of which
    calls that take seconds get fewer (:meth:`within`). There are up to ``attempts``, each longer, while a
    series is noisy: a short one may lie within a single disturbance, and more rounds tell better what the
    baseline is against itself. ``processes`` share the rounds of a series, each with builds of its own, and
    may take ``process_seconds`` each; 0 is the process that asks."""

    warmup_calls: int
    warmup_seconds: float
    seconds: float
    min_rounds: int
    visit: VisitEffort
    attempts: int = 1
    processes: int = 0
    process_seconds: float = 900.0  # torch.compile compiles a large network in minutes

    def again(self, attempt: int) -> "LatencyEffort":
        """That of the first, second, ... attempt: longer each time."""
        return replace(self, seconds=attempt * self.seconds, min_rounds=attempt * self.min_rounds)

    def within(self, max_seconds: float, round_seconds: float) -> "LatencyEffort":
        """With fewer calls a visit, then fewer rounds, where the least of them would take longer. One call of
        all networks takes ``round_seconds``; a visit has one more than it times."""
        most = max_seconds / max(round_seconds, 1e-9)
        calls = min(self.visit.min_calls, max(1, int(most / self.min_rounds) - 1))
        least = MIN_LONG_ROUNDS if self.processes else MIN_ROUNDS
        rounds = min(self.min_rounds, max(least, int(most / (1 + calls))))
        return replace(self, min_rounds=rounds, visit=replace(self.visit, min_calls=calls))


EFFORTS = {
    True: LatencyEffort(
        warmup_calls=4,
        warmup_seconds=0.05,
        seconds=0.4,
        min_rounds=8,
        visit=VisitEffort(settle_seconds=0.1, seconds=0.004, min_calls=8, max_calls=32),
        attempts=2,
    ),
    False: LatencyEffort(
        warmup_calls=10,
        warmup_seconds=0.5,
        seconds=2.0,
        min_rounds=8,
        visit=VisitEffort(settle_seconds=0.3, seconds=0.02, min_calls=8, max_calls=256),
        attempts=2,
        processes=5,
    ),
}
"""By whether the measurement is quick."""


def efforts_afresh(seconds: float = 0.0) -> dict[bool, LatencyEffort]:
    """Those of a time that is taken afresh, as something depends on it; a quick one for at least ``seconds``.
    The interval of 24 rounds is about half as wide as that of 8, and building the networks anew takes as long
    as timing them."""
    quick = EFFORTS[True].again(3)
    return {True: replace(quick, attempts=1, seconds=max(seconds, quick.seconds)), False: EFFORTS[False]}


@dataclass(frozen=True, slots=True)
class LatencySeries:
    """The visits of a series: to both builds of the baseline, and to each variant by name.

    ``processes`` has the rounds of each process, ``lost`` those that ended before their time.
    ``instructions`` has those of a call, one of each process, for the variants and ``baseline`` (its first
    build); it is empty where the kernel gives none.
    """

    baseline: tuple[Visits, Visits]
    variants: Mapping[str, Visits]
    stolen_share: float
    warmup_calls: int
    processes: tuple[int, ...]
    lost: int = 0
    instructions: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def summaries(self) -> dict[str, LatencySummary]:
        """Each variant against the baseline, by name."""
        return {
            name: summarise_visits(self.baseline, visits, self.stolen_share, self.processes)
            for name, visits in self.variants.items()
        }


def time_interleaved(
    baselines: tuple[Runner, Runner],
    variants: Mapping[str, Runner],
    images: np.ndarray,
    settings: Settings,
    effort: LatencyEffort,
) -> LatencySeries:
    """One series of rounds over ``images`` ``[N, C, H, W]``; a round gives all runners the same batch.

    Where the least effort would take over MAX_SERIES_SECONDS, by the last calls of the warm-up, there are
    fewer calls and rounds.

    The baseline comes as two runners built alike. One runner visited twice a round would keep its weights in
    the cache better than the variants keep theirs, and where in memory a runner happens to lie is part of
    what "no difference" looks like.
    """
    parts = batches(images, settings.batch)
    runners = {**dict(zip(BASELINE, baselines, strict=True)), **variants}
    names = list(runners)
    random = np.random.default_rng(settings.seed)
    made: dict[str, list[tuple[list[int], list[int]]]] = {name: [] for name in names}
    with ExitStack() as stack:
        for runner in runners.values():
            stack.enter_context(runner.session())
        warmups, seconds = zip(*(warm_up(one, parts[0], effort) for one in runners.values()), strict=True)
        effort = effort.within(MAX_SERIES_SECONDS, sum(seconds))
        stack.enter_context(no_garbage_collection())
        stolen = stack.enter_context(stolen_share())
        end, rounds = visits.clock() + 1e9 * effort.seconds, 0
        order = [len(names) - 1]  # it was warmed up last
        while rounds < effort.min_rounds or visits.clock() < end:
            batch = parts[rounds % len(parts)]
            order = shuffled(random, len(names), order[-1])
            for index in order:
                stop_if_cancelled()
                made[names[index]].append(visit(partial(runners[names[index]].infer, batch), effort.visit))
            rounds += 1
        share = stolen()
        once = {BASELINE[0]: baselines[0], **variants}
        counted = instructions(once, parts[0], effort.visit)
    first, second = (Visits.of(made[name]) for name in BASELINE)
    return LatencySeries(
        baseline=(first, second),
        variants={name: Visits.of(made[name]) for name in variants},
        stolen_share=share,
        warmup_calls=min(warmups),
        processes=(rounds,),
        instructions={name: (count,) for name, count in counted.items()},
    )


def shuffled(random: np.random.Generator, number: int, last: int) -> list[int]:
    """An order of so many networks, two or more, that does not begin with the ``last`` one visited: its first
    call would find all of it in the caches."""
    order: list[int] = random.permutation(number).tolist()
    while order[0] == last:
        order = random.permutation(number).tolist()
    return order


def warm_up(runner: Runner, batch: np.ndarray, effort: LatencyEffort) -> tuple[int, float]:
    """The first calls of a runner: how many there were, and the seconds of the last one. They end early,
    after the second at least, where they take long."""
    began, calls, taken = visits.clock(), 0, 0.0
    end, latest = began + 1e9 * effort.warmup_seconds, began + 1e9 * MAX_WARMUP_SECONDS
    while calls < effort.warmup_calls or visits.clock() < end:
        stop_if_cancelled()
        before = visits.clock()
        runner.infer(batch)
        calls, taken = calls + 1, (visits.clock() - before) / 1e9
        if calls > 1 and visits.clock() > latest:
            break
    return calls, taken


def instructions(runners: Mapping[str, Runner], batch: np.ndarray, effort: VisitEffort) -> dict[str, float]:
    """Of one call of each, by all threads; none where the kernel gives no count."""
    found = {}
    try:
        with counting() as so_far:
            for name, runner in runners.items():
                before = so_far()
                settling, timed = visit(partial(runner.infer, batch), effort)
                found[name] = (so_far() - before) / (len(settling) + len(timed))
    except UnavailableError:
        return {}
    return found


def batches(images: np.ndarray, batch: int) -> list[np.ndarray]:
    """Contiguous batches, up to MAX_BATCHES; images are repeated where there are fewer than one batch."""
    number = max(1, min(MAX_BATCHES, len(images) // batch))
    repeated = np.resize(np.arange(len(images)), number * batch)
    return [np.ascontiguousarray(images[part]) for part in np.split(repeated, number)]


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """None until the block ends."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
