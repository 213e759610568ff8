"""The raw times of one comparison."""

import html
from collections.abc import Sequence
from typing import Literal

import numpy as np

from optimizer.analysis.summary import Summary, summarise
from optimizer.charts.points import clip
from optimizer.charts.spec import Axis, Lines, Point, Series
from optimizer.charts.theme import MARKERS
from optimizer.formats import count, format_ns
from optimizer.records import Result

View = Literal["rounds", "distribution", "settling"]

USUAL_PERCENT = 95
"""So many of the times decide how far their axis goes: a few that waited would squeeze the others."""

MIN_ROOM = 1.5
"""Above the median, as a factor, there is at least so much: where nothing was disturbed, even tails show."""
MAX_POINTS = 400
"""Of a distribution."""
SHOWN_CALLS = 24
"""Of a visit, where its settling is shown."""
MIN_VISITS_SHARE = 0.5
"""A call's median is shown where so many of the visits had that many calls."""


def samples_info(result: Result, view: View = "rounds") -> Lines:
    """The raw times of one comparison: visit by visit (drift and disturbances), the distribution of all timed
    calls, or call by call within a visit (what a network takes to settle after another one)."""
    summary = summarise(result)
    return {"rounds": _rounds, "distribution": _distributions, "settling": _settling}[view](result, summary)


def _rounds(result: Result, summary: Summary) -> Lines:
    first, second = result.latency.baseline
    builds = {
        "baseline": (first, "baseline", "circle"),
        "baseline again": (second, "faint", "circle"),
        _name(summary): (result.latency.variant, summary.realisation, MARKERS[summary.realisation]),
    }
    times = {name: visits.medians_ns for name, (visits, *_) in builds.items()}
    top, note = _room(np.concatenate([*times.values()]), summary, "visit")
    return Lines(
        f"Round by round: {summary.text('latency_ratio')}",
        Axis("round", span=(0.5, summary.latency.rounds + 0.5)),
        Axis("time of a call, from 0", "ns", span=(0, top)),
        tuple(
            Series(name, colour, _points(name, "round", times[name], marker), line="none", small=True)
            for name, (_, colour, marker) in builds.items()
        ),
        note=note,
    )


def _distributions(result: Result, summary: Summary) -> Lines:
    baseline = np.concatenate([calls for build in result.latency.baseline for calls in build.steady])
    variant = np.concatenate(result.latency.variant.steady)
    top, note = _room(np.concatenate([baseline, variant]), summary, "call")
    return Lines(
        f"All calls by time: {summary.text('latency_ratio')}",
        Axis("time of a call, from 0", "ns", "lower", span=(0, top)),
        Axis("cumulative share of calls", "%", span=(0, 102)),
        (
            _distribution("baseline", "baseline", baseline),
            _distribution(_name(summary), summary.realisation, variant),
        ),
        note=note,
    )


def _settling(result: Result, summary: Summary) -> Lines:
    first, second = result.latency.baseline
    lines = {
        "baseline": (_call_by_call([*first.each, *second.each]), "baseline", "circle"),
        _name(summary): (
            _call_by_call(result.latency.variant.each),
            summary.realisation,
            MARKERS[summary.realisation],
        ),
    }
    longest = max(float(times.max()) for times, *_ in lines.values())
    return Lines(
        f"Call by call after another network: first call {summary.text('first_call_ratio')}",
        Axis("call of a visit", span=(0.5, SHOWN_CALLS + 0.5)),
        Axis("median time of a call, from 0", "ns", span=(0, 1.1 * longest)),
        tuple(
            Series(name, colour, _points(name, "call", times, marker), small=True)
            for name, (times, colour, marker) in lines.items()
        ),
        note=f"settled after {int(np.median(result.latency.variant.settling))} calls",
    )


def _call_by_call(visits: Sequence[np.ndarray]) -> np.ndarray:
    """The median over the visits of their first call, of their second, and so on."""
    medians = []
    for number in range(SHOWN_CALLS):
        calls = [visit[number] for visit in visits if len(visit) > number]
        if len(calls) < MIN_VISITS_SHARE * len(visits):
            break
        medians.append(np.median(calls))
    return np.array(medians)


def _name(summary: Summary) -> str:
    return clip(summary.recipe.describe(details=False), 44)


def _room(times_ns: np.ndarray, summary: Summary, what: str) -> tuple[float, str]:
    """Where the axis of time ends, and the verdict with what lies beyond."""
    top = max(1.15 * float(np.percentile(times_ns, USUAL_PERCENT)), MIN_ROOM * float(np.median(times_ns)))
    beyond = int((times_ns > top).sum())
    return top, summary.latency.verdict.label + (f" · {count(beyond, what)} took longer" if beyond else "")


def _distribution(name: str, colour: str, times_ns: np.ndarray) -> Series:
    shares = np.linspace(0, 1, min(MAX_POINTS, len(times_ns)))
    points = tuple(
        Point(
            float(time),
            100 * float(share),
            hover=f"{html.escape(name)}<br>{100 * share:.1f} % took at most {format_ns(time)}",
        )
        for share, time in zip(shares, np.quantile(times_ns, shares), strict=True)
    )
    return Series(name, colour, points, markers=False)


def _points(name: str, of: str, times_ns: np.ndarray, marker: str) -> tuple[Point, ...]:
    return tuple(
        Point(
            number,
            float(time),
            hover=f"{html.escape(name)}<br>{of} {number}: {format_ns(time)}",
            marker=marker,
        )
        for number, time in enumerate(times_ns, start=1)
    )
