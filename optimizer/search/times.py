"""What a search knows of times: by its kernels, and what noise leaves open."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from optimizer.analysis.limits import TIMES, Limits, bound
from optimizer.analysis.summary import summarise
from optimizer.methods.engines import ENGINES
from optimizer.records import Latency, Request, Result, Visits


@dataclass(frozen=True, slots=True)
class KernelTimes:
    """The ends of the intervals of what kernels take, by metric of :data:`TIMES`. Where these are noisy, they
    may be faster than the upper ones tell."""

    least: Mapping[str, float]
    most: Mapping[str, float]
    is_noisy: bool


def same_kernels(request: Request) -> object:
    """Equal where the same instructions run, whatever the weights' values; None where that can't be said: an
    engine that skips zeros skips those that rounding makes too."""
    prune, quantize = request.recipe.prune, request.recipe.quantize
    makes_zeros = prune.active or quantize.integer
    if prune.shrinks or (ENGINES[request.engine].skips_zeros and makes_zeros):
        return None
    integer = quantize.activation_bits == 8 and quantize.weight_bits <= 8
    return request.engine, request.settings, quantize.activation_bits, integer, quantize.precision


def is_in_time(result: Result, limits: Limits) -> bool:
    """Whether its time is shown to be within the limits."""
    return all(bound(result, name) <= limits.given.get(name, math.inf) for name in TIMES)


def may_be_in_time(result: Result, limits: Limits) -> bool:
    """Whether its time may be within the limits and may be not."""
    given = {name: value for name, value in limits.given.items() if name in TIMES}
    may = all(least(result, name) <= limit for name, limit in given.items())
    return may and not is_in_time(result, limits)


def least(result: Result, name: str) -> float:
    """The lower end of the interval of one of :data:`TIMES`. Where a time is noisy, its fastest visit's: a
    machine that is busy through most of a measurement moves the interval too."""
    summary = summarise(result)
    if name == "latency" and summary.noise:
        return fastest_visit(result.latency.variant)
    low = summary.measures[name].low
    return bound(result, name) if low is None else low


@lru_cache(maxsize=4096)
def fastest_visit(visits: Visits) -> float:
    """In nanoseconds a call. A search asks for those of all its results after each measurement."""
    return float(visits.medians_ns.min())


def retimed(results: Sequence[Result], newest: Mapping[int, Latency]) -> list[Result]:
    """With the newest times, by the checksum of those in whose place they were taken."""
    return [replace(one, latency=newest.get(one.latency.checksum, one.latency)) for one in results]
