"""Throughput against latency by batch, threads and streams, and what the recipe brings in each."""

import html
import math
from collections.abc import Sequence
from dataclasses import replace

from optimizer.analysis.metrics import metric
from optimizer.analysis.realisation import Realisation, ran, realisation
from optimizer.analysis.served import Configuration, ServedComparison, Side
from optimizer.analysis.serving import BestServed, ServingRun, comparisons, networks
from optimizer.analysis.statistics import LatencyVerdict
from optimizer.charts.axes import from_zero, rows_axis
from optimizer.charts.points import clip, hollow, selected_point
from optimizer.charts.spec import Axis, Corner, Limit, Lines, Point, Series
from optimizer.charts.theme import MARKERS
from optimizer.formats import count, format_ns
from optimizer.recipe import Recipe


def serving_info(
    run: ServingRun | None, limit_ns: float | None = None, choice: BestServed | None = None
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
    compared = comparisons(run)
    concurrencies = sorted({_concurrency(one) for one in compared})
    series = [
        _served(run, compared, network, concurrency)
        for network in reversed(networks(run))
        for concurrency in concurrencies
    ]
    named = {one.colour: index for index, one in reversed([*enumerate(series)])}  # one of a network is enough
    points = [point for one in series for point in one.points]
    ends = [end for point in points for end in (point.x, point.x_low, point.x_high) if end] + [
        limit_ns or points[0].x
    ]
    chosen = _chosen(points, choice) if choice and choice.met else None
    across = (min(ends) / 1.4, max(ends) * 1.25)
    up = (0.0, 1.12 * max(point.high or point.y for point in points))
    return Lines(
        title,
        replace(x, span=across),
        replace(y, span=up),
        tuple(
            replace(one, legend=named[one.colour] == index)
            for index, one in enumerate(_legible(series, across, up))
        ),
        selected=chosen,
        selected_name="best under the limit",
        limit=Limit(f"limit {format_ns.given(limit_ns)}", limit_ns) if limit_ns else None,
        note=" · ".join(
            ["labels: batch size" + ", threads × streams" * (len(concurrencies) > 1), *hollow(points)]
        ),
    )


PLOT_PIXELS = (320, 240)
"""The plot on a telephone."""
LETTER_PIXELS, LABEL_LINE_PIXELS, MARKER_PIXELS = 6.5, 13, 5

Box = tuple[float, float, float, float]
"""Left, bottom, right and top."""


def _legible(series: Sequence[Series], across: tuple[float, float], up: tuple[float, float]) -> list[Series]:
    """Labels only where they stand clear of points and of each other, on a telephone too, each at a free
    corner of its point: ends of lines first, and compressed before uncompressed. A hover tells the rest."""

    def place(point: Point) -> tuple[float, float]:
        right = math.log(point.x / across[0]) / math.log(across[1] / across[0])
        return PLOT_PIXELS[0] * right, PLOT_PIXELS[1] * point.y / up[1]

    taken = {point: _around(*place(point)) for one in series for point in one.points}
    placed: dict[Point, Point] = {}
    boxes: list[Box] = []
    ends = [point for one in reversed(series) for point in one.points[-1:]]
    for point in dict.fromkeys(ends + [point for one in reversed(series) for point in one.points[:-1]]):
        others = [*boxes, *(box for other, box in taken.items() if other is not point)]
        placed[point] = replace(point, label="")
        for corner in CORNERS:
            box = _label_box(*place(point), len(point.label), corner)
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= PLOT_PIXELS[0]
            if inside and not any(_overlap(box, other) for other in others):
                placed[point] = replace(point, label_at=corner)
                boxes.append(box)
                break
    return [replace(one, points=tuple(placed[point] for point in one.points)) for one in series]


CORNERS: tuple[Corner, ...] = ("top left", "bottom right", "top right", "bottom left")


def _around(x: float, y: float) -> Box:
    return x - MARKER_PIXELS, y - MARKER_PIXELS, x + MARKER_PIXELS, y + MARKER_PIXELS


def _label_box(x: float, y: float, letters: int, corner: Corner) -> Box:
    wide = LETTER_PIXELS * letters
    left = x - MARKER_PIXELS - wide if "left" in corner else x + MARKER_PIXELS
    bottom = y + MARKER_PIXELS if "top" in corner else y - MARKER_PIXELS - LABEL_LINE_PIXELS
    return left, bottom, left + wide, bottom + LABEL_LINE_PIXELS


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _kind(run: ServingRun) -> Realisation:
    return realisation(run.execution, run.request.recipe.prune.shrinks)


def _concurrency(one: ServedComparison) -> tuple[int, int]:
    """How many threads and streams."""
    return one.configuration.threads, one.configuration.streams


def _served(
    run: ServingRun, compared: Sequence[ServedComparison], network: Side, concurrency: tuple[int, int]
) -> Series:
    """One network's line for so many threads and streams; several streams are dashed."""
    of_recipe, kind = network is Side.RECIPE, _kind(run)
    colour, marker = (kind, MARKERS[kind]) if of_recipe else ("baseline", "circle")
    recipe = run.request.recipe if of_recipe else Recipe()
    found = [one for one in compared if _concurrency(one) == concurrency]
    points = []
    for one in found:
        performance = one.of(network)
        last = one is found[-1] and len(found) < len(compared)
        points.append(
            Point(
                performance.latency_ns,
                performance.throughput,
                key=_key(network, one.configuration),
                low=performance.throughput_low,
                high=performance.throughput_high,
                x_low=performance.latency_low,
                x_high=performance.latency_high,
                hover=_hover(recipe.describe(), one, network),
                marker=marker,
                simulated=of_recipe and bool(run.execution.simulated),
                noisy=bool(one.fair.noise),
                label=f"{one.configuration.batch}{f', {concurrency[0]} × {concurrency[1]}' if last else ''}",
            )
        )
    return Series(
        clip(recipe.describe(details=False), 44),
        colour,
        tuple(points),
        line="solid" if concurrency[1] == 1 else "dash",
    )


def _hover(name: str, one: ServedComparison, network: Side) -> str:
    performance = one.of(network)
    images = metric("throughput").format(
        performance.throughput, performance.throughput_low, performance.throughput_high
    )
    lines = [
        f"<b>{html.escape(name)}</b>",
        one.configuration.words,
        f"latency {format_ns(performance.latency_ns, performance.latency_low, performance.latency_high)}",
        *([f"p95 {format_ns(performance.p95_ns)}"] if performance.p95_ns else []),
        images,
    ]
    if network is Side.RECIPE:
        lines.append(f"{one.fair.ratio_words} of uncompressed, same configuration: {one.fair.verdict.label}")
        if one.fair.verdict is LatencyVerdict.SAME:
            lines.append(one.fair.detectable_words)
    lines.append(count(one.fair.rounds, "round"))
    lines += [html.escape(clip(reason)) for reason in one.fair.noise[:1]]
    return "<br>".join(lines)


def _key(network: Side, one: Configuration) -> str:
    return f"{network.value} {one.batch} {one.threads} {one.streams}"


def _chosen(points: Sequence[Point], choice: BestServed) -> Point | None:
    found = selected_point(points, _key(choice.network, choice.comparison.configuration))
    return found and replace(found, label="")


def gains_info(run: ServingRun | None) -> Lines:
    """Time of the recipe over that of the uncompressed model, in each configuration."""
    x = Axis("time ÷ uncompressed, from 0", "×", "lower")
    title = "What the recipe brings in each configuration"
    if run is None:
        return Lines(title, x, Axis(""), empty="Measured with the throughput.")
    compared, kind = comparisons(run), _kind(run)
    columns = {
        "batch size": [one.configuration.batch for one in compared],
        "threads": [one.configuration.threads for one in compared],
        "streams": [one.configuration.streams for one in compared],
    }
    told = [name for name, values in columns.items() if name == "batch size" or len({*values}) > 1]
    rows = zip(*(columns[name] for name in told), strict=True)
    points = tuple(
        Point(
            one.fair.ratio,
            row,
            x_low=one.fair.ratio_low,
            x_high=one.fair.ratio_high,
            hover=_hover(run.request.recipe.describe(), one, Side.RECIPE),
            marker=MARKERS[kind],
            simulated=bool(run.execution.simulated),
            noisy=bool(one.fair.noise),
        )
        for row, one in enumerate(compared)
    )
    even = tuple(Point(1.0, row) for row in (-0.5, len(compared) - 0.5))
    return Lines(
        title,
        replace(x, span=from_zero(max(1.0, *(point.x_high or point.x for point in points)))),
        rows_axis(" · ".join(map(str, row)) for row in rows),
        (
            Series("uncompressed", "baseline", even, line="dash", markers=False),
            Series(ran(kind, run.execution.fallback), kind, points, line="none"),
        ),
        note=" · ".join([f"rows: {' · '.join(told)}", *hollow(points)]),
    )
