"""Throughput against latency: batch size, threads and streams of a recipe and its baseline, side by side.

What is asked, what :mod:`optimizer.measurement.throughput` measures, and all that follows from it. No torch.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import msgspec

from optimizer import __version__
from optimizer.analysis.badges import BadgeKind, badges_of
from optimizer.analysis.labels import engine_label
from optimizer.analysis.metrics import metric
from optimizer.analysis.rounds import confidence_of_each, median_interval
from optimizer.analysis.served import (
    NAMES,
    Configuration,
    Performance,
    ServedComparison,
    ServedPoint,
    Side,
    compare_served,
)
from optimizer.analysis.statistics import SAME, LatencyVerdict
from optimizer.errors import InputError
from optimizer.formats import MISSING, capital, columns, count, format_ns, format_ratio
from optimizer.methods.engines import DEFAULT_ENGINE, ENGINES, REFERENCE_ENGINE, EngineInfo, engine_info
from optimizer.recipe import Recipe
from optimizer.records import DataSpec, Environment, Execution, Request, check_seed, check_threads, digest
from optimizer.store.keys import request_key
from optimizer.system.environment import environment, resolve_threads, threads_available

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 3
"""Version of the records here and of :func:`as_json`. Of version 1 the times of single requests were those of
the first rounds only; up to version 2 streams waited for each other, and int8 had not its fastest kernels."""

MAX_CONFIGURATIONS = 24
"""Of one comparison: all are compiled, three times each, and timed in turns."""
MAX_SERVED_BATCH = 256


@dataclass(frozen=True, slots=True)
class ServingRequest:
    """A grid of batch sizes, threads (0: every core) and streams, for a recipe and its baseline.

    A stream works on one request at a time, with its share of the threads; a configuration with more streams
    than threads is no configuration, and is passed over where others of the grid are.
    """

    model: str
    recipe: Recipe = field(default_factory=Recipe)
    engine: str = DEFAULT_ENGINE
    data: DataSpec = field(default_factory=DataSpec)
    batches: tuple[int, ...] = (1, 4, 16)
    threads: tuple[int, ...] = (0,)
    streams: tuple[int, ...] = (1,)
    quick: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for words, given in (
            ("batch sizes", self.batches),
            ("threads", self.threads),
            ("streams", self.streams),
        ):
            if not given:
                raise InputError(f"no {words} given: at least one, such as 1")
        for batch in self.batches:
            if not 1 <= batch <= MAX_SERVED_BATCH:
                raise InputError(f"batch size {batch} is not allowed: 1 to {MAX_SERVED_BATCH}")
        for threads in self.threads:
            check_threads(threads)
        for streams in self.streams:
            if streams < 1:
                raise InputError(f"streams {streams} is not allowed: 1 or more requests at once")
        check_seed(self.seed)


def streaming_engines() -> dict[str, EngineInfo]:
    """The engines that work on several requests at once."""
    return {name: engine for name, engine in ENGINES.items() if engine.streams}


def configurations(request: ServingRequest) -> tuple[Configuration, ...]:
    """The grid on this machine, ascending. Raises InputError for threads or streams that it or the engine has
    not, and for too many configurations."""
    threads = sorted({resolve_threads(one) for one in request.threads})
    for streams in request.streams:
        if streams > 1 and not engine_info(request.engine).streams:
            raise InputError(
                f"{streams} streams are not possible on {engine_label(request.engine)}, which works on one "
                f"request at a time: use 1, or engine {' or '.join(streaming_engines())}"
            )
        if streams > threads[-1]:
            raise InputError(
                f"{streams} streams are more than {count(threads[-1], 'thread')}, and each needs one: "
                f"use 1 to {threads[-1]}"
            )
    found = tuple(one for one in _asked(request) if one.streams <= one.threads)
    if len(found) > MAX_CONFIGURATIONS:
        raise InputError(
            f"{len(found)} configurations are too many for one comparison, which holds all in memory: "
            f"at most {MAX_CONFIGURATIONS}. Leave out batch sizes, threads or streams"
        )
    return found


def _asked(request: ServingRequest) -> list[Configuration]:
    """The grid as it was asked for, ascending."""
    threads = {resolve_threads(one) for one in request.threads}
    axes = (sorted(axis) for axis in ({*request.batches}, threads, {*request.streams}))
    return [Configuration(*one) for one in product(*axes)]


def serving_key(request: ServingRequest) -> str:
    """Equal for two requests that would give the same on this machine; the key of the run."""
    asked = Request(request.model, request.recipe, request.engine, request.data)
    same = replace(
        request,
        batches=tuple(sorted({*request.batches})),
        threads=tuple(sorted({one or threads_available() for one in request.threads})),
        streams=tuple(sorted({*request.streams})),
    )
    return digest(["serving", SCHEMA, __version__, same, request_key(asked), environment().key])


@dataclass(frozen=True, slots=True)
class ServingRun:
    """One comparison: round i of all its points ran together, in an order shuffled anew from the seed."""

    key: str
    request: ServingRequest
    environment: Environment
    created: str
    points: tuple[ServedPoint, ...]
    execution: Execution
    warmup_calls: int
    stolen_share: float
    schema: int = SCHEMA


def comparisons(run: ServingRun) -> tuple[ServedComparison, ...]:
    """Every configuration, in ascending order."""
    return tuple(compare_served(point, run.stolen_share) for point in run.points)


@dataclass(frozen=True, slots=True)
class BestServed:
    """The configuration with the highest throughput of those that answer in time, and in words which.

    ``met`` is False when none answers in time: then it is the quickest one.
    """

    network: Side
    comparison: ServedComparison
    met: bool
    words: str

    @property
    def performance(self) -> Performance:
        return self.comparison.of(self.network)


def best_under(run: ServingRun, limit_ns: float) -> BestServed:
    """The best configuration under a limit for a request's time: always one, at worst the nearest.

    Under it is whose median is by the bound of its interval, with those of all that are compared holding
    at once: of many some are under any limit by luck. Raises InputError for a limit that is not above 0.
    """
    if not limit_ns > 0:
        raise InputError(f"a limit of {limit_ns / 1e6:g} ms is not allowed: above 0")
    compared = [(network, one) for one in comparisons(run) for network in networks(run)]
    confidence = confidence_of_each(len(compared))
    raw = {point.configuration: point for point in run.points}

    def bound_ns(network: Side, one: ServedComparison) -> float:
        served = raw[one.configuration].of(network)
        return median_interval(served.request_ns, confidence)[2]

    in_time = [pair for pair in compared if bound_ns(*pair) <= limit_ns]
    throughput = metric("throughput").format
    if in_time:
        network, one = max(in_time, key=lambda pair: pair[1].of(pair[0]).throughput)
        found = one.of(network)
        words = (
            f"Under {format_ns.given(limit_ns)}, most images a second: {NAMES[network]} at "
            f"{one.configuration.words}, best of {len(compared)} tried: {throughput(found.throughput)}, "
            f"{format_ns(found.latency_ns)} a request."
        )
        return BestServed(network, one, True, words)
    network, one = min(compared, key=lambda pair: pair[1].of(pair[0]).latency_ns)
    found = one.of(network)
    words = (
        f"Nothing here is shown to answer within {format_ns.given(limit_ns)}. The quickest is "
        f"{NAMES[network]} at {one.configuration.words}: "
        f"{format_ns(found.latency_ns, found.latency_low, found.latency_high)} a request."
    )
    return BestServed(network, one, False, words)


def networks(run: ServingRun) -> tuple[Side, ...]:
    """An uncompressed recipe is the baseline once more: only one of them is told."""
    return (Side.UNCOMPRESSED,) if run.request.recipe.identity else tuple(Side)


def badges(run: ServingRun) -> dict[BadgeKind, str]:
    """How far the figures can be trusted: badges as of a result, and why."""
    compared = comparisons(run)
    noisy = sum(bool(one.fair.noise) for one in compared)
    why = f"{noisy} of {len(compared)} configurations: the machine was not quiet enough" if noisy else ""
    return badges_of(run.execution.simulated, why, run.request.quick, run.environment)


def conclusions(run: ServingRun) -> tuple[str, ...]:
    """What the numbers say, in sentences; the ratios to torch eager as what they are, and last what was asked
    for and left out."""
    compared = comparisons(run)
    return (
        *_gains(run, compared),
        *_batching(run, compared),
        *_noise(compared),
        *_against_eager(compared),
        *_left_out(run.request),
    )


def _gains(run: ServingRun, compared: Sequence[ServedComparison]) -> Iterable[str]:
    if run.request.recipe.identity:
        return
    verdicts = {one.configuration: one.fair for one in compared}
    faster = [one for one, fair in verdicts.items() if fair.verdict is LatencyVerdict.FASTER]
    engine = engine_label(run.request.engine)
    against = f"against the uncompressed model on {engine}, configuration by configuration"
    if not faster:
        slower = sum(fair.verdict is LatencyVerdict.SLOWER for fair in verdicts.values())
        noisy = all(fair.verdict is LatencyVerdict.NOISY for fair in verdicts.values())
        words = (
            f"slower in {slower} of {len(compared)}"
            if slower
            else "too noisy to tell"
            if noisy
            else _same(compared)
        )
        yield f"Compressed, {against}: {words}."
        return
    ends = sorted(faster, key=lambda one: verdicts[one].ratio)
    best, least = (verdicts[one] for one in (ends[0], ends[-1]))
    words = f"{best.ratio_words} of the time at {ends[0].words}"
    if len(ends) > 1:
        words = f"from {words} to {least.ratio_words} at {ends[-1].words}"
    yield f"Compressed, {against}: faster in {len(faster)} of {len(compared)}, {words}."


def _same(compared: Sequence[ServedComparison]) -> str:
    """What "no measurable difference" leaves open, at worst."""
    widest = max((one.fair for one in compared), key=lambda fair: fair.detectable or math.inf)
    everywhere = "" if widest.detectable is None else " everywhere"
    return f"{SAME.label} ({widest.detectable_words}{everywhere})"


def _batching(run: ServingRun, compared: Sequence[ServedComparison]) -> Iterable[str]:
    """What a larger batch, or more streams, bring and cost."""
    network = networks(run)[0]
    quickest = min(compared, key=lambda one: one.of(network).latency_ns)
    most = max(compared, key=lambda one: one.of(network).throughput)
    throughput = metric("throughput").format
    few, many = quickest.of(network), most.of(network)
    name = capital(NAMES[network])
    if many.throughput_low <= few.throughput_high:
        others = [one.of(network) for one in compared if one is not quickest]
        sure = all(one.latency_low > few.latency_high for one in others)
        words = f"{quickest.configuration.words} {'answers soonest' if sure else 'has the lowest median'}"
        yield (
            f"{name}: {words}, {format_ns(few.latency_ns, few.latency_low, few.latency_high)}, and no "
            "configuration brings measurably more images a second."
        )
    else:
        yield (
            f"{name}: {most.configuration.words} brings {throughput(many.throughput)}, "
            f"{many.throughput / few.throughput:.1f} times as many as {quickest.configuration.words}, and a "
            f"request takes {format_ns(many.latency_ns)} in place of {format_ns(few.latency_ns)}."
        )


def _noise(compared: Sequence[ServedComparison]) -> Iterable[str]:
    noisy = [one for one in compared if one.fair.noise]
    if noisy:
        first = noisy[0].fair.noise[0]
        yield f"Noisy in {len(noisy)} of {len(compared)} configurations, first of all: {first}."


def _against_eager(compared: Sequence[ServedComparison]) -> Iterable[str]:
    ratios = [one.eager for one in compared if one.eager]
    if ratios:
        ends = sorted({min(ratios), max(ratios)})
        yield (
            "Against torch eager, which is another engine and no baseline: "
            f"{' to '.join(map(format_ratio, ends))} of its time. "
            "Most of that is the engine's doing, not the recipe's."
        )


def frame(run: ServingRun) -> "pd.DataFrame":
    """One row a configuration and network (``recipe``, ``uncompressed``). Times in ns, images a second.

    ``fair_ratio`` is to the uncompressed model in the same configuration, ``eager_ratio`` to torch eager with
    as many threads; both are of the recipe only.
    """
    import pandas as pd

    return pd.DataFrame([_row(one, network) for one in comparisons(run) for network in Side])


def _row(one: ServedComparison, network: Side) -> dict[str, Any]:
    fair, eager = (one.fair, one.eager) if network is Side.RECIPE else (None, None)
    return {
        "network": network,
        **asdict(one.configuration),
        **asdict(one.of(network)),
        "fair_ratio": fair and fair.ratio,
        "fair_low": fair and fair.ratio_low,
        "fair_high": fair and fair.ratio_high,
        "verdict": fair and fair.verdict,
        "rounds": one.fair.rounds,
        "eager_ratio": eager,
    }


def _left_out(request: ServingRequest) -> Iterable[str]:
    if left := sum(one.streams > one.threads for one in _asked(request)):
        yield f"{count(left, 'configuration')} left out: more streams than threads."


def rows(run: ServingRun) -> list[dict[str, int | str]]:
    """The comparisons as people read them: a row each, by what its figures are called."""
    found = []
    for one in comparisons(run):
        performance, before = one.variant, one.baseline
        row: dict[str, int | str] = {
            "batch size": one.configuration.batch,
            "threads": one.configuration.threads,
            "streams": one.configuration.streams,
            "latency": format_ns(performance.latency_ns, performance.latency_low, performance.latency_high),
            "uncompressed": format_ns(before.latency_ns, before.latency_low, before.latency_high),
            "95th pct": MISSING if performance.p95_ns is None else format_ns(performance.p95_ns),
            "images/s": f"{performance.throughput:,.0f}",
            "of uncompressed": f"{one.fair.ratio_words} {one.fair.verdict.label}",
        }
        if run.request.engine != REFERENCE_ENGINE:
            row["of eager"] = format_ratio(one.eager) if one.eager else MISSING
        found.append(row)
    return found


def table(run: ServingRun) -> str:
    """:func:`rows` as text, in columns."""
    found = rows(run)
    return columns([[*found[0]], *([*map(str, row.values())] for row in found)])


def as_json(run: ServingRun) -> dict[str, Any]:
    """The figures derived from a run, as a JSON object versioned by ``schema``.

    - ``model``, ``recipe``, ``engine``, ``quick``, ``seed``, ``created``, ``environment``
    - ``configurations``: for each ``batch``, ``threads``, ``streams``; ``recipe`` and ``uncompressed``, each
      with the fields of :class:`Performance` (ns, images a second); ``fair`` with ``ratio``, ``ratio_low``,
      ``ratio_high``, ``verdict``, ``detectable``, ``noise``, ``rounds``; and ``eager_ratio`` (another
      engine: no baseline) or null
    - ``simulated``: what kernels did not do; ``conclusions``: sentences
    """
    plain: dict[str, Any] = msgspec.to_builtins(
        {
            "schema": run.schema,
            "model": run.request.model,
            "recipe": run.request.recipe.to_dict(),
            "engine": run.request.engine,
            "quick": run.request.quick,
            "seed": run.request.seed,
            "created": run.created,
            "environment": run.environment,
            "configurations": [
                {
                    **asdict(one.configuration),
                    Side.RECIPE: one.variant,
                    Side.UNCOMPRESSED: one.baseline,
                    "fair": one.fair.to_dict(),
                    "eager_ratio": one.eager,
                }
                for one in comparisons(run)
            ],
            "simulated": run.execution.simulated,
            "conclusions": conclusions(run),
        }
    )
    return plain
