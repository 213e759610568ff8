"""Throughput against latency by batch, threads and streams, and what the recipe brings in each."""

import html
from collections.abc import Sequence
from dataclasses import replace

from optimizer.charts.points import clip
from optimizer.figures import Axis, Limit, Lines, Point, Series, count
from optimizer.frame import realisation
from optimizer.metrics import format_ns, format_ratio, metric
from optimizer.serving import BASELINE, VARIANT, Choice, Comparison, Figures, ServingRun, comparisons
from optimizer.theme import MARKERS


def serving_info(
    run: ServingRun | None, limit_ns: float | None = None, choice: Choice | None = None
) -> Lines:
    """Throughput against the latency of a request: a line for each number of threads and streams, along which
    the batch grows. ``choice`` is what was found under ``limit_ns``; it is in the accent."""
    x = Axis("median latency of a request, log", "ns", "lower", log=True)
    y = Axis("images a second, from 0", "", "higher")
    title = "Throughput against latency"
    if run is None:
        return Lines(
            title, x, y, empty="Not measured yet.<br>Choose batch sizes, threads and streams, and measure."
        )
    told = comparisons(run)
    kind = realisation(run.execution)
    series = [_served(run, told, BASELINE, "baseline", "circle", one) for one in _ways(told)]
    if not run.request.recipe.identity:
        series += [_served(run, told, VARIANT, kind, MARKERS[kind], one) for one in _ways(told)]
    named = {one.name: index for index, one in reversed([*enumerate(series)])}  # one of a network is enough
    drawn = [point for one in series for point in one.points]
    ends = [end for point in drawn for end in (point.x, point.x_low, point.x_high) if end] + [
        limit_ns or drawn[0].x
    ]
    chosen = _chosen(drawn, choice) if choice and choice.met else None
    return Lines(
        title,
        replace(x, span=(min(ends) / 1.4, max(ends) * 1.25)),
        replace(y, span=(0.0, 1.12 * max(point.high or point.y for point in drawn))),
        tuple(replace(one, legend=named[one.name] == index) for index, one in enumerate(series)),
        selected=chosen,
        selected_name="best under the limit",
        limit=Limit(f"limit {format_ns(limit_ns)}", limit_ns) if limit_ns else None,
        note="images a request" + (", threads × streams" if len(_ways(told)) > 1 else ""),
    )


def _ways(told: Sequence[Comparison]) -> list[tuple[int, int]]:
    return sorted({(one.configuration.threads, one.configuration.streams) for one in told})


def _served(
    run: ServingRun, told: Sequence[Comparison], network: str, colour: str, marker: str, way: tuple[int, int]
) -> Series:
    """One network's line for so many threads and streams; several streams are dashed."""
    name = run.request.recipe.describe() if network == VARIANT else "uncompressed"
    found = [one for one in told if (one.configuration.threads, one.configuration.streams) == way]
    points = []
    for one in found:
        figures = one.variant if network == VARIANT else one.baseline
        last = one is found[-1] and len(_ways(told)) > 1
        points.append(
            Point(
                figures.latency_ns,
                figures.throughput,
                key=f"{network} {one.configuration.words}",
                low=figures.throughput_low,
                high=figures.throughput_high,
                x_low=figures.latency_low,
                x_high=figures.latency_high,
                hover=_hover(name, one, figures, network),
                marker=marker,
                simulated=network == VARIANT and bool(run.execution.simulated),
                noisy=bool(one.fair.noise),
                label=f"{one.configuration.batch}{f', {way[0]} × {way[1]}' if last else ''}",
            )
        )
    return Series(clip(name, 44), colour, tuple(points), line="solid" if way[1] == 1 else "dash")


def _hover(name: str, one: Comparison, figures: Figures, network: str) -> str:
    images = metric("throughput").format(figures.throughput, figures.throughput_low, figures.throughput_high)
    lines = [
        f"<b>{html.escape(name)}</b>",
        one.configuration.words,
        f"latency {format_ns(figures.latency_ns, figures.latency_low, figures.latency_high)}",
        *([f"95 % within {format_ns(figures.p95_ns)}"] if figures.p95_ns else []),
        images,
    ]
    if network == VARIANT:
        ratio = format_ratio(one.fair.ratio, one.fair.ratio_low, one.fair.ratio_high)
        lines.append(f"{ratio} of uncompressed, same configuration: {one.fair.verdict}")
    lines.append(count(one.fair.rounds, "round"))
    lines += [html.escape(clip(reason)) for reason in one.fair.noise[:1]]
    return "<br>".join(lines)


def _chosen(points: Sequence[Point], choice: Choice) -> Point | None:
    key = f"{choice.network} {choice.comparison.configuration.words}"
    found = next((point for point in points if point.key == key), None)
    return found and replace(found, label="")


def gains_info(run: ServingRun | None) -> Lines:
    """Time of the recipe over that of the uncompressed model, in each configuration."""
    x = Axis("time ÷ uncompressed, from 0", "×", "lower")
    title = "What the recipe brings in each configuration"
    if run is None:
        return Lines(title, x, Axis(""), empty="Measured with the throughput.")
    told, kind = comparisons(run), realisation(run.execution)
    names = tuple(
        f"{one.configuration.batch} · {one.configuration.threads} · {one.configuration.streams}"
        for one in told
    )
    points = tuple(
        Point(
            one.fair.ratio,
            row,
            x_low=one.fair.ratio_low,
            x_high=one.fair.ratio_high,
            hover=_hover(run.request.recipe.describe(), one, one.variant, VARIANT),
            marker=MARKERS[kind],
            simulated=bool(run.execution.simulated),
            noisy=bool(one.fair.noise),
        )
        for row, one in enumerate(told)
    )
    even = tuple(Point(1.0, row) for row in (-0.5, len(told) - 0.5))
    return Lines(
        title,
        replace(x, span=(0.0, 1.08 * max(1.0, *(point.x_high or point.x for point in points)))),
        Axis("", categories=names, span=(len(told) - 0.5, -0.5)),
        (
            Series("uncompressed", "baseline", even, line="dash", markers=False),
            Series(kind, kind, points, line="none"),
        ),
        note="images a request · threads · streams",
    )
