"""Latency, interleaved: every round times the baseline twice and each variant once, in a shuffled order.

Drift of the machine hits all of them alike, the two baseline runs show what "no difference" looks like here,
and the raw nanoseconds are kept. Call it only while holding the machine lock, in a process that does nothing
else.
"""

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from optimizer.analysis.rounds import PERCENTILE_ROUNDS, percentile_bound
from optimizer.analysis.statistics import LatencySummary, summarise_latency
from optimizer.engine.base import Runner
from optimizer.recipe import Recipe
from optimizer.records import Latency, Settings
from optimizer.system.environment import stolen_share

BASELINE = ("baseline", "baseline again")
BOUND_CHECKS = tuple(int(PERCENTILE_ROUNDS[0.99] * 1.1**step) for step in range(16))
"""After so many rounds a series with time left ends if the 99th percentile has its bound. Independent calls
have it at the first or second check; where slow ones come together it takes more."""
MAX_SERIES = BOUND_CHECKS[-1]
MIN_SAMPLE_SECONDS = 1e-3
"""Shorter calls are timed several in a row. One by one, identical builds of a network of 0.15 ms differed by
2 to 3 % in the median, and by 0.5 to 0.9 % when a sample lasts 1 to 3 ms."""


@dataclass(frozen=True, slots=True)
class LatencyEffort:
    """Warm-up and length of one series. Rounds stop at ``seconds``, but not before ``least_rounds``. A noisy
    series is measured again, up to ``attempts`` in all and each time longer: a short one may lie within a
    single disturbance, and more rounds tell better what the baseline is against itself."""

    warmup_calls: int
    warmup_seconds: float
    seconds: float
    least_rounds: int
    attempts: int = 1
    sample_seconds: float = MIN_SAMPLE_SECONDS

    def again(self, attempt: int) -> "LatencyEffort":
        """That of the first, second, ... attempt: longer each time, and warm after the first."""
        warmup = self.warmup_seconds if attempt == 1 else 0.0
        return replace(self, warmup_seconds=warmup, seconds=attempt * self.seconds)


EFFORTS = {
    True: LatencyEffort(warmup_calls=10, warmup_seconds=0.05, seconds=0.25, least_rounds=20, attempts=2),
    False: LatencyEffort(warmup_calls=10, warmup_seconds=1.0, seconds=10.0, least_rounds=40, attempts=2),
}


@dataclass(frozen=True, slots=True)
class LatencySeries:
    """Nanoseconds a call, one column a round: the baseline twice, then each variant by name.

    A sample is the mean of ``calls`` calls in a row; ``single_ns`` has the first of them alone.
    """

    baseline_ns: np.ndarray
    variants_ns: Mapping[str, np.ndarray]
    single_ns: Mapping[str, np.ndarray]
    calls: int
    stolen_share: float
    warmup_calls: int

    @property
    def summaries(self) -> dict[str, LatencySummary]:
        """Each variant against the baseline, by name."""
        return {
            name: summarise_latency(self.baseline_ns, samples, self.stolen_share)
            for name, samples in self.variants_ns.items()
        }


def time_interleaved(
    baselines: tuple[Runner, Runner],
    variants: Mapping[str, Runner],
    images: np.ndarray,
    settings: Settings,
    effort: LatencyEffort,
) -> LatencySeries:
    """One series of rounds over ``images`` ``[N, C, H, W]``; a round gives all runners the same batch.

    The baseline comes as two runners built alike. One runner called twice a round would keep its weights in
    the cache better than the variants keep theirs (a false 2 to 8 % on small networks), and where in memory
    a runner happens to lie is part of what "no difference" looks like.
    """
    parts = batches(images, settings.batch)
    runners = {**dict(zip(BASELINE, baselines, strict=True)), **variants}
    names = list(runners)
    random = np.random.default_rng(settings.seed)
    samples: dict[str, list[int]] = {name: [] for name in names}
    singles: dict[str, list[int]] = {name: [] for name in names}
    with ExitStack() as stack:
        for runner in runners.values():
            stack.enter_context(runner.session())
        warmups = [_warm_up(runner.infer, parts[0], effort) for runner in runners.values()]
        calls = max(1, math.ceil(effort.sample_seconds / min(seconds for _, seconds in warmups)))
        tails = singles if calls > 1 else samples
        stack.enter_context(no_garbage_collection())
        stolen = stack.enter_context(stolen_share())
        started = time.perf_counter()
        for round_number in range(MAX_SERIES):
            if round_number >= effort.least_rounds and time.perf_counter() - started > effort.seconds:
                break
            if tails_are_bounded(round_number, [tails[name] for name in variants]):
                break
            batch = parts[round_number % len(parts)]
            for index in random.permutation(len(names)):
                infer = runners[names[index]].infer
                infer(batch)  # untimed: what is timed follows a call of its own, not of another
                before = time.perf_counter_ns()
                infer(batch)
                singles[names[index]].append(time.perf_counter_ns() - before)
                for _ in range(calls - 1):
                    infer(batch)
                samples[names[index]].append((time.perf_counter_ns() - before) // calls)
    return LatencySeries(
        baseline_ns=np.array([samples[name] for name in BASELINE]),
        variants_ns={name: np.array(samples[name]) for name in variants},
        single_ns={name: np.array(singles[name]) for name in variants},
        calls=calls,
        stolen_share=stolen(),
        warmup_calls=min(count for count, _ in warmups),
    )


def tails_are_bounded(rounds: int, series: Iterable[Sequence[int]]) -> bool:
    """Whether this is one of BOUND_CHECKS and each series ``[rounds]`` bounds its 99th percentile."""
    return rounds in BOUND_CHECKS and all(
        percentile_bound(np.array(samples, float), 0.99) is not None for samples in series
    )


def time_again_if_noisy(
    baselines: tuple[Runner, Runner], variants: Mapping[str, Runner], images: np.ndarray, settings: Settings
) -> tuple[LatencySeries, int]:
    """:func:`time_interleaved` in full or quick, and the attempts it took: a series that is noisy for one of
    the variants is measured again, the last kept as it is."""
    effort = EFFORTS[settings.quick]
    for attempt in range(1, effort.attempts + 1):
        series = time_interleaved(baselines, variants, images, settings, effort.again(attempt))
        if not any(summary.noise for summary in series.summaries.values()):
            break
    return series, attempt


def measure_latency(
    baselines: tuple[Runner, Runner],
    variant: Runner,
    images: np.ndarray,
    settings: Settings,
    signature: str,
    recipe: Recipe,
) -> Latency:
    """Compare one variant with its baseline. A noisy series is measured again, the last kept as it is."""
    series, attempts = time_again_if_noisy(baselines, {"variant": variant}, images, settings)
    return Latency(
        signature=signature,
        recipe=recipe,
        baseline_ns=(tuple(series.baseline_ns[0].tolist()), tuple(series.baseline_ns[1].tolist())),
        variant_ns=tuple(series.variants_ns["variant"].tolist()),
        batch=settings.batch,
        threads=settings.threads,
        quick=settings.quick,
        seed=settings.seed,
        warmup_calls=series.warmup_calls,
        stolen_share=series.stolen_share,
        attempts=attempts,
        calls=series.calls,
        single_ns=tuple(series.single_ns["variant"].tolist()) if series.calls > 1 else (),
    )


def batches(images: np.ndarray, batch: int, most: int = 32) -> list[np.ndarray]:
    """Up to ``most`` contiguous batches; images are repeated where there are fewer than one batch."""
    repeated = np.resize(np.arange(len(images)), max(batch, min(len(images), most * batch) // batch * batch))
    return [np.ascontiguousarray(images[part]) for part in np.split(repeated, len(repeated) // batch)]


def _warm_up(
    infer: Callable[[np.ndarray], object], batch: np.ndarray, effort: LatencyEffort
) -> tuple[int, float]:
    """How many calls it took, and the seconds of the fastest."""
    started, calls, fastest = time.perf_counter(), 0, math.inf
    while calls < effort.warmup_calls or time.perf_counter() - started < effort.warmup_seconds:
        before = time.perf_counter()
        infer(batch)
        fastest = min(fastest, time.perf_counter() - before)
        calls += 1
    return calls, fastest


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
