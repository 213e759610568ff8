"""Requests as they come: at random moments, whether the network is free or not (an open loop).

A loop that sends the next request when the last one is answered never waits in a queue, however slow the
network is, and reports times that no user sees (G. Tene, "coordinated omission"). Here times count from the
moment at which a request came. What is asked, what :mod:`optimizer.measurement.load` measures, and what
follows. No torch.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from optimizer import __version__
from optimizer.analysis.badges import BadgeKind, badges_of
from optimizer.analysis.measures import Measure
from optimizer.analysis.noise import stolen_noise
from optimizer.analysis.queueing import NEEDED, PERCENTILES
from optimizer.analysis.served import NAMES, Side
from optimizer.errors import InputError
from optimizer.formats import MISSING, capital, columns, format_ns, format_rate, format_share, significant
from optimizer.methods.engines import DEFAULT_ENGINE
from optimizer.recipe import Recipe
from optimizer.records import DataSpec, Environment, Execution, Request, Settings, Times, digest
from optimizer.store.keys import request_key
from optimizer.system.environment import environment, threads_available

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T", bound=Hashable)
SCHEMA = 2
MAX_RATE, MAX_RATES = 1e6, 12
SHARES = (0.2, 0.4, 0.6, 0.8, 0.9)
"""Of what the faster network can serve: the rates, where none are given."""
METHOD = (
    "Times of requests are those of simulated arrivals, at random moments, served in the times that calls "
    "took here at that rate. Slow spells that were not among them are in no interval."
)
EITHER = "either model"
RECIPE, UNCOMPRESSED = Side.RECIPE.value, Side.UNCOMPRESSED.value


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """Rates of requests a second, of one batch each, for a recipe and its baseline. No rates: SHARES of what
    the faster of them can serve. Raises InputError for a rate that is not above 0, or too many of them."""

    model: str
    recipe: Recipe = field(default_factory=Recipe)
    engine: str = DEFAULT_ENGINE
    data: DataSpec = field(default_factory=DataSpec)
    settings: Settings = field(default_factory=Settings)
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for rate in self.rates:
            if not 0 < rate <= MAX_RATE:
                raise InputError(
                    f"a rate of {rate:g} requests a second is not allowed: above 0, up to {MAX_RATE:,.0f}"
                )
        if len(self.rates) > MAX_RATES:
            raise InputError(f"{len(self.rates)} rates are too many for one comparison: at most {MAX_RATES}")


def read_rates(text: str) -> tuple[float, ...]:
    """The numbers of a ``text`` such as ``50, 100``; none of an empty one. Raises InputError."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(
            f"{text!r} is no list of rates: give numbers of requests a second, such as 50, 100"
        ) from error


def may_be_one(text: str) -> bool:
    """Whether the rates of a ``text`` may be meant as one with commas between its thousands, as 2,500."""
    return bool(re.fullmatch(r"\s*\d{1,3}(,\d{3})+\s*", text)) and float(text.replace(",", "")) <= MAX_RATE


def load_key(request: LoadRequest) -> str:
    """Equal for two requests that would give the same on this machine; the key of the run."""
    settings = replace(request.settings, threads=request.settings.threads or threads_available())
    same = replace(request, settings=settings, rates=tuple(sorted({*request.rates})))
    asked = Request(request.model, request.recipe, request.engine, request.data, settings)
    return digest(["load", SCHEMA, __version__, same, request_key(asked), environment().key])


@dataclass(frozen=True, slots=True)
class Answered:
    """What one network did at one rate, request by request: ``times`` ``[N]`` from the moment when it came to
    its answer, the queue included, and ``service`` ``[N]``, for how long the network was taken by it alone.
    ``busy`` is the share of the time that it was. ``behind``: requests came faster than it answers, so that
    the queue grew for as long as they came. ``percentiles`` are of the time of a request, in ns, by
    :func:`~optimizer.analysis.queueing.response_percentiles` of ``service``."""

    times: Times
    busy: float
    behind: bool
    service: Times = field(default_factory=lambda: Times.of([]))
    percentiles: dict[str, Measure] = field(default_factory=lambda: dict.fromkeys(PERCENTILES, Measure(None)))


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """One rate, in requests a second, by network."""

    rate: float
    answered: dict[str, Answered]


@dataclass(frozen=True, slots=True)
class LoadRun:
    """Every rate, ascending. ``service_ns``: the median time of a call by itself, by network. ``execution``:
    of the recipe, what the kernels did; None of runs from before that was recorded."""

    key: str
    request: LoadRequest
    environment: Environment
    created: str
    points: tuple[LoadPoint, ...]
    service_ns: dict[str, float]
    stolen_share: float
    schema: int = SCHEMA
    execution: Execution | None = None


def networks(run: LoadRun) -> tuple[str, ...]:
    """An uncompressed recipe is the baseline once more: only one of them is reported."""
    return (UNCOMPRESSED,) if run.request.recipe.identity else (UNCOMPRESSED, RECIPE)


def measured_percentiles(answered: Answered) -> dict[str, float | None]:
    """In ns, of the requests that came, whose arrivals were as it happened."""
    times = answered.times.values
    if not len(times) or answered.behind:
        return dict.fromkeys(PERCENTILES)
    return dict(zip(PERCENTILES, np.quantile(times, list(PERCENTILES.values())).tolist(), strict=True))


def badges(run: LoadRun) -> dict[BadgeKind, str]:
    """How far the times can be trusted: badges as of a result, and why."""
    why = "; ".join(one.words for one in stolen_noise(run.stolen_share))
    return badges_of(_simulated(run), why, run.request.settings.quick, run.environment)


def _simulated(run: LoadRun) -> tuple[str, ...] | None:
    return run.execution.simulated if run.execution else None


@dataclass(frozen=True, slots=True)
class BestRate:
    """The highest rate measured up to which 99 % of a network's requests are answered within a limit, by the
    bound of the interval; None where there is none."""

    network: str
    rate: float | None
    words: str


def best_rates(run: LoadRun, limit_ns: float) -> tuple[BestRate, ...]:
    """For each network. Raises InputError for a limit that is not above 0."""
    if not limit_ns > 0:
        raise InputError(f"a limit of {limit_ns / 1e6:g} ms is not allowed: above 0")
    noisy = " (noisy: the machine was not quiet)" if BadgeKind.NOISY in badges(run) else ""
    found = (_best_rate(run, network, limit_ns) for network in networks(run))
    return tuple(replace(one, words=one.words + noisy) for one in found)


def _best_rate(run: LoadRun, network: str, limit_ns: float) -> BestRate:
    name = NAMES[network]
    service, limit = format_ns(run.service_ns[network]), format_ns.given(limit_ns)
    if run.service_ns[network] > limit_ns:
        return BestRate(network, None, f"{name} takes {service} by itself, longer than {limit}")
    # Upwards until the first that is not shown: a fixed sequence, so that many rates need no wider bounds
    # (W. Maurer, L. Hothorn and W. Lehmacher, Biometrie in der chemisch-pharmazeutischen Industrie 6, 1995).
    best = None
    for point in run.points:
        answered = point.answered[network]
        high = answered.percentiles["p99"].high
        if answered.behind or (high is not None and high > limit_ns):
            break
        if high is not None:
            best = point.rate
    if best is None:
        words = f"for {name}, no rate measured is shown to answer 99 % of requests within {limit}"
        return BestRate(network, None, words + too_few(run, network))
    words = f"{name} answers 99 % of requests within {limit} at up to {format_rate(best)}"
    return BestRate(network, best, words)


def too_few(run: LoadRun, network: str) -> str:
    """Why there is no 99th percentile of what a network answered at any rate; empty where there is."""
    came = came_at_most(run, network)
    if came is None:
        return ""
    quick = run.request.settings.quick
    if came < NEEDED["p99"]:
        longer = "; measured in full, more do" * quick
        needed = f"a 99th percentile takes {NEEDED['p99']} requests at a rate"
        return f": {needed}, and at most {came} came{longer}"
    return (
        ": the rates are too close to what it can serve, or too few slow spells were seen, to give a 99th "
        f"percentile{'; a full measurement has more calls' * quick}"
    )


def came_at_most(run: LoadRun, network: str) -> int | None:
    """How many requests came at a rate, up to as many as a 99th percentile takes; None where there is one."""
    steady = [point.answered[network] for point in run.points if not point.answered[network].behind]
    if not steady or any(one.percentiles["p99"].value is not None for one in steady):
        return None
    return min(NEEDED["p99"], max(len(one.times.values) for one in steady))


def first_behind(run: LoadRun, network: str) -> float | None:
    """The lowest rate at which a network's queue grew; None where it never did."""
    return min((one.rate for one in run.points if one.answered[network].behind), default=None)


def _last_steady(run: LoadRun, network: str) -> float | None:
    return max((one.rate for one in run.points if not one.answered[network].behind), default=None)


def by_fact(run: LoadRun, fact: Callable[[LoadRun, str], T]) -> list[tuple[T, tuple[str, ...]]]:
    """What is so of the networks: each fact with those of which it is."""
    found: dict[T, tuple[str, ...]] = {}
    for network in networks(run):
        known = fact(run, network)
        found[known] = (*found.get(known, ()), network)
    return list(found.items())


def conclusions(run: LoadRun) -> tuple[str, ...]:
    """What is to be seen, in words; once where it is so of both networks."""
    sentences = []
    if why := badges(run).get(BadgeKind.NOISY):
        sentences.append(f"The machine was not quiet, so these times are noisy: {why}.")
    sentences += [
        _falls_behind(behind, steady, EITHER if of[1:] else NAMES[of[0]])
        for (behind, steady), of in by_fact(run, lambda *of: (first_behind(*of), _last_steady(*of)))
        if behind is not None
    ]
    for network in networks(run):
        if known := _with_p99(run, network):
            answered, name = known[-1].answered[network], capital(NAMES[network])
            slowest = answered.percentiles["p99"]
            rate, busy = format_rate(known[-1].rate), format_share(answered.busy)
            over = format_ns(slowest.value, slowest.low, slowest.high)
            sentences.append(
                f"{name} takes {format_ns(run.service_ns[network])} by itself; at {rate}, {busy} busy, one "
                f"request in a hundred takes over {over}, its wait included."
            )
    sentences += [
        f"{capital(EITHER if of[1:] else NAMES[of[0]])}{too_few(run, of[0])}."
        for came, of in by_fact(run, came_at_most)
        if came is not None
    ]
    answers = [point.answered[network] for point in run.points for network in networks(run)]
    shown = any(measure.value is not None for one in answers for measure in one.percentiles.values())
    return (*sentences, METHOD) if shown else tuple(sentences)


def _falls_behind(behind: float, steady: float | None, name: str) -> str:
    """By the lowest rate at which the queue grew and the highest at which it did not."""
    if steady is not None and steady > behind:  # which another process caused, not the rate
        return (
            f"The queue of {name} grew at {format_rate(behind)}, and not at {format_rate(steady)}: something "
            "else took its time. Measure again."
        )
    lower = " Give lower rates." if steady is None else ""
    return (
        f"At {format_rate(behind)} they come faster than {name} answers: the queue grows for as long as they "
        f"come.{lower}"
    )


def _with_p99(run: LoadRun, network: str) -> list[LoadPoint]:
    """Up to the first rate at which none can be given of as many requests: at a higher one it takes luck,
    that of no long queue."""
    found = []
    for point in run.points:
        answered = point.answered[network]
        if answered.behind:
            continue
        if answered.percentiles["p99"].value is not None:
            found.append(point)
        elif len(answered.times.values) >= NEEDED["p99"]:
            break
    return found


def table(run: LoadRun) -> str:
    """A line for each rate and network, in columns."""
    lines: list[Sequence[str]] = [("requests/s", "network", "busy", *PERCENTILES)]
    for point in run.points:
        for network in networks(run):
            answered = point.answered[network]
            times = [
                MISSING if measure.value is None else format_ns(measure.value, measure.low, measure.high)
                for measure in answered.percentiles.values()
            ]
            busy = "the queue grows" if answered.behind else format_share(answered.busy)
            lines.append((significant(point.rate, 4), network, busy, *times))
    return columns(lines)


def frame(run: LoadRun) -> "pd.DataFrame":
    """A row for each rate and network: ``rate``, ``network``, ``requests``, ``busy``, ``behind``, and each
    percentile in ns with ``_low`` and ``_high``, and of the requests that came ``_measured``."""
    import pandas as pd

    rows = []
    for point in run.points:
        for network in networks(run):
            answered = point.answered[network]
            row: dict[str, Any] = {
                "rate": point.rate,
                "network": network,
                "requests": len(answered.times.values),
                "busy": answered.busy,
                "behind": answered.behind,
            }
            measured = measured_percentiles(answered)
            for name, measure in answered.percentiles.items():
                row |= {
                    f"{name}_ns": measure.value,
                    f"{name}_low_ns": measure.low,
                    f"{name}_high_ns": measure.high,
                    f"{name}_measured_ns": measured[name],
                }
            rows.append(row)
    return pd.DataFrame(rows)


def as_json(run: LoadRun) -> dict[str, Any]:
    """Plain data: the rows of :func:`frame`, missing ones null, and the conclusions in words."""
    table = frame(run).astype(object)
    return {
        "version": SCHEMA,
        "key": run.key,
        "model": run.request.model,
        "engine": run.request.engine,
        "recipe": run.request.recipe.to_dict(),
        "settings": asdict(run.request.settings),
        "service_ns": dict(run.service_ns),
        "rates": table.where(table.notna(), None).to_dict("records"),
        "conclusions": list(conclusions(run)),
        "simulated": _simulated(run),
        "stolen_share": run.stolen_share,
        "created": run.created,
    }


def chosen_rates(request: LoadRequest, service_ns: dict[str, float]) -> tuple[float, ...]:
    """The rates that are asked for, or SHARES of what the faster network can serve; ascending."""
    if request.rates:
        return tuple(sorted(set(request.rates)))
    capacity = 1e9 / min(service_ns.values())
    return tuple(float(np.round(share * capacity, 3)) for share in SHARES)
