"""The raw times of one comparison."""

import html
from collections.abc import Sequence
from typing import Literal

import numpy as np

from optimizer.analysis.summary import summarise
from optimizer.charts.points import clip
from optimizer.charts.spec import Axis, Lines, Point, Series
from optimizer.charts.theme import MARKERS
from optimizer.formats import count, format_ns
from optimizer.records import Result

USUAL_PERCENT = 95
"""So many of the calls decide how far the axis of time goes: a few that waited would squeeze the others."""

MIN_ROOM = 1.5
"""Above the median, as a factor, there is at least so much: where nothing was disturbed, even tails show."""


def samples_info(result: Result, view: Literal["rounds", "distribution"] = "rounds") -> Lines:
    """The raw times of one comparison: round by round (drift and disturbances), or their distribution."""
    latency, summary = result.latency, summarise(result)
    first, second = latency.baseline_ns
    times = (*first, *second, *latency.variant_ns)
    top = max(1.15 * float(np.percentile(times, USUAL_PERCENT)), MIN_ROOM * float(np.median(times)))
    beyond = sum(time > top for time in times)
    note = summary.latency.verdict.label + (f" · {count(beyond, 'call')} took longer" if beyond else "")
    ratio = summary.text("latency_ratio")
    name = clip(summary.recipe.describe(details=False), 44)
    if view == "distribution":
        return Lines(
            f"All calls by time: {ratio}",
            Axis("time of a call, from 0", "ns", "lower", span=(0, top)),
            Axis("calls that took at most so long", "%", span=(0, 102)),
            (
                _distribution("baseline", "baseline", (*first, *second)),
                _distribution(name, summary.realisation, latency.variant_ns),
            ),
            note=note,
        )
    return Lines(
        f"Round by round: {ratio}",
        Axis("round", span=(0, len(latency.variant_ns) + 1)),
        Axis("time of a call, from 0", "ns", span=(0, top)),
        (
            _rounds("baseline", "baseline", first, "circle"),
            _rounds("baseline again", "faint", second, "circle"),
            _rounds(name, summary.realisation, latency.variant_ns, MARKERS[summary.realisation]),
        ),
        note=note,
    )


def _distribution(name: str, colour: str, times_ns: Sequence[int]) -> Series:
    share = 100 / len(times_ns)
    points = tuple(
        Point(
            time,
            share * rank,
            hover=f"{html.escape(name)}<br>{share * rank:.1f} % took at most {format_ns(time)}",
        )
        for rank, time in enumerate(sorted(times_ns), start=1)
    )
    return Series(name, colour, points, markers=False)


def _rounds(name: str, colour: str, times_ns: Sequence[int], marker: str) -> Series:
    points = tuple(
        Point(number, time, hover=f"{html.escape(name)}<br>round {number}: {format_ns(time)}", marker=marker)
        for number, time in enumerate(times_ns, start=1)
    )
    return Series(name, colour, points, line="none", small=True)
