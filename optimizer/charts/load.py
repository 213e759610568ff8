"""Latency against the rate of requests, as they come."""

import html
from dataclasses import replace

from optimizer.analysis.load import (
    EITHER,
    RECIPE,
    LoadRun,
    by_fact,
    came_at_most,
    first_behind,
    measured_percentiles,
    networks,
    too_few,
)
from optimizer.analysis.realisation import realisation
from optimizer.charts.spec import Axis, Lines, Point, Reference, Series
from optimizer.formats import format_ns, format_rate, format_share

DASHES = {"p50": "dot", "p95": "dash", "p99": "solid"}
MARKERS = {"p50": "circle", "p95": "square", "p99": "diamond"}


def load_info(run: LoadRun | None, limit_ns: float | None = None) -> Lines:
    """p50, p95 and p99 of a request's time against requests a second: a line each, the baseline in grey. A
    network that falls behind has no point."""
    x = Axis("requests a second, from 0")
    y = Axis("time of a request, queue included, log", "ns", "lower", log=True)
    title = "Latency under load"
    if run is None:
        return Lines(title, x, y, empty="Not measured yet.")
    series = [
        Series(
            f"{name} {network}",
            _colour(run) if network == RECIPE else "baseline",
            _points(run, network, name),
            line=DASHES[name],  # type: ignore[arg-type]
        )
        for network in networks(run)
        for name in DASHES
    ]
    reference = Reference(f"limit {format_ns.given(limit_ns)}", limit_ns, "left") if limit_ns else None
    points = [point for one in series for point in one.points]
    widest = 1.05 * max((point.x for point in points), default=max(point.rate for point in run.points))
    ends = [end for point in points for end in (point.y, point.low, point.high) if end]
    ends += [limit_ns] if limit_ns else []
    return Lines(
        title,
        Axis(x.title, span=(0, widest)),
        replace(y, span=(min(ends) / 1.4, max(ends) * 1.4)) if points else y,
        tuple(one for one in series if one.points),
        reference=reference,
        note=" · ".join(_behind(run)) if points else "",
        empty="<br>".join(["No time of a request can be given:", *_behind(run), *_too_few(run)]),
    )


def _colour(run: LoadRun) -> str:
    """Of what the kernels did, as in every chart."""
    return realisation(run.execution, run.request.recipe.prune.shrinks) if run.execution else "accent"


def _behind(run: LoadRun) -> list[str]:
    """Where networks fall behind, in words."""
    return [
        f"{EITHER if of[1:] else of[0]}: the queue grows, first at {format_rate(rate)}"
        for rate, of in by_fact(run, first_behind)
        if rate is not None
    ]


def _too_few(run: LoadRun) -> list[str]:
    return [
        f"{EITHER if of[1:] else of[0]}{too_few(run, of[0])}"
        for came, of in by_fact(run, came_at_most)
        if came is not None
    ]


def _points(run: LoadRun, network: str, name: str) -> tuple[Point, ...]:
    points = []
    for one in run.points:
        answered = one.answered[network]
        measure = answered.percentiles[name]
        if measure.value is not None:
            words = f"{name} of {network}: {format_ns(measure.value)}"
            came = measured_percentiles(answered)[name]
            hover = "<br>".join(
                (
                    html.escape(words),
                    f"of the {len(answered.times.values):,} requests that came: {format_ns(came)}",
                    f"{format_rate(one.rate)}, {format_share(answered.busy)} busy",
                )
            )
            points.append(
                Point(
                    one.rate,
                    measure.value,
                    low=measure.low,
                    high=measure.high,
                    hover=hover,
                    marker=MARKERS[name],
                )
            )
    return tuple(points)
