"""The charts: for each one function that says what it shows, as frozen data (:mod:`optimizer.figures`).

``figure(accuracy_info(results, selected=key), dark=True)`` is a plotly figure.
"""

import html
import math
import textwrap
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import pandas as pd

from optimizer.coverage import PARTS, Coverage, part, parts
from optimizer.coverage import rows as operations
from optimizer.errors import unknown
from optimizer.figures import (
    Axis,
    Bar,
    Bars,
    Limit,
    Lines,
    Point,
    Reference,
    Segment,
    Series,
    Stacks,
    alternative,
    count,
    figure,
)
from optimizer.frame import FALLBACK, Measure, Summary, frontier_mask, realisation, summarise
from optimizer.metrics import format_count, format_ns, format_p, format_percent, format_ratio, metric
from optimizer.recipe import PRECISIONS, WEIGHT_BITS, PruneSpec, Recipe
from optimizer.records import Anatomy, LayerFacts, Result, Sensitivity
from optimizer.serving import (
    BASELINE,
    VARIANT,
    Choice,
    Comparison,
    Figures,
    ServingRun,
    comparisons,
)
from optimizer.theme import MARKERS, engine_label

__all__ = [
    "accuracy_info",
    "alternative",
    "compare_info",
    "complexity_info",
    "figure",
    "frontier_info",
    "gains_info",
    "histogram_info",
    "kernels_info",
    "latency_info",
    "layers_info",
    "parts_info",
    "samples_info",
    "sensitivity_info",
    "serving_info",
    "size_info",
]

TIMES = ("latency", "latency_ratio", "latency_p95", "latency_p99", "throughput")
"""Metrics that a noisy or another machine spoils."""

# Points of results


@lru_cache(maxsize=4096)
def hover(summary: Summary) -> str:
    """The recipe in words, every figure with its interval, and how it was measured; escaped for plotly."""
    lines = [
        f"<b>{html.escape(summary.description)}</b>",
        html.escape(f"{summary.request.model} on {engine_label(summary.request.engine)}, {summary.images}"),
        f"accuracy {summary.text('accuracy')}",
        html.escape(f"lost {summary.text('drop')}, {format_p(summary.drop.p)}"),
        f"file {summary.text('file_size')} · packed {summary.text('packed_size')}"
        f" · compressed {summary.text('compressed_size')}",
        f"latency {summary.text('latency')}",
        f"ratio {summary.text('latency_ratio')}: {summary.latency.verdict}",
        f"non-zero weights {summary.text('nonzero')} of {format_count(summary.size.elements)}",
        f"ran: {_ran(summary)}, {summary.latency.rounds} rounds, {count(summary.threads, 'thread')}, "
        f"batch {summary.batch}",
    ]
    if summary.measures["memory"].value is not None:
        lines.insert(5, f"memory {summary.text('memory')}")
    if summary.measures["cold_start"].value is not None:
        lines.append(f"cold start {summary.text('cold_start')}")
    if summary.shared_with:
        lines.append(html.escape(f"time shared with: {summary.shared_with}"))
    lines += [
        html.escape(_clip(f"{badge.name}: {badge.words}"))
        for badge in summary.badges
        if badge.name != "measured"
    ]
    return "<br>".join(lines)


def _clip(text: str, most: int = 90) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _point(summary: Summary, x: float, measure: Measure, timed: bool = False) -> Point | None:
    """A result at ``x``. ``timed``: the figure is a time, so noise fades it."""
    if measure.value is None or not math.isfinite(measure.value) or not math.isfinite(x):
        return None
    return Point(
        x,
        measure.value,
        summary.key,
        measure.low,
        measure.high,
        hover=hover(summary),
        marker="x" if timed and summary.other_machine else MARKERS[summary.realisation],
        simulated=bool(summary.simulated),
        noisy=timed and bool(summary.noise),
    )


Family = tuple[Hashable | None, ...]
"""What recipes on one line have in common; None, of what does not prune or does not round, goes with any."""
WAY = 2
"""So many parts of a family say how weights are pruned and rounded; the rest are options on top of that."""


def family(recipe: Recipe) -> Family:
    """Everything but the amount of pruning and the bits: how weights are pruned, how they are rounded, and
    then the options of pruning, those of rounding, layers apart, and the precision of the kernels."""
    prune, quantize = recipe.prune, recipe.quantize
    prunes = any(spec.active for spec in recipe.prune_specs)
    rounds = any(spec.integer for spec in recipe.quantize_specs)
    pruning = (
        "best effort" if prune.effort == "best" else "",
        f"snapped to {prune.snap}" if prune.snap > 1 else "",
        "outputs matched" if recipe.matches else "",
        f"trained {recipe.training_seconds:g} s" if recipe.trains else "",
    )
    equalised = any(spec.equalises for spec in recipe.quantize_specs)
    return (
        replace(prune, sparsity=None, threshold=None, effort="fast", snap=1, match=False)
        if prune.active
        else None,
        replace(
            quantize.at(32),
            activation_bits=32,
            symmetric=quantize.automatic,
            equalise=False,
            precision="f32",
        )
        if quantize.integer
        else None,
        pruning if prunes else None,
        ("equalised" if equalised else "",) if rounds else None,
        recipe.layers,
        quantize.precision,
    )


def _options(line: Family) -> str:
    """The options of a family in words."""
    pruning, rounding, layers, precision = line[WAY:]
    words = [*(pruning or ()), *(rounding or ())]  # type: ignore[misc]
    words += [f"{count(len(layers), 'layer')} apart"] if layers else []  # type: ignore[arg-type]
    words += [f"in {PRECISIONS[precision]}"] if precision not in (None, "f32") else []  # type: ignore[index]
    return ", ".join(filter(None, words))


def _belongs(one: Family, line: Family) -> bool:
    return all(None in pair or pair[0] == pair[1] for pair in zip(one, line, strict=True))


def _main_family(summaries: Sequence[Summary], selected: str | None) -> Family:
    """The family of the selected result; what it leaves open, and all without one, is the most frequent."""
    families = [family(summary.recipe) for summary in summaries]
    chosen = [one for one, summary in zip(families, summaries, strict=True) if summary.key == selected]
    main: Family = chosen[0] if chosen else (None,) * len(families[0])
    for place, known in enumerate(main):
        if known is None:
            found = _most_common(one[place] for one in families if _belongs(one, main))
            main = (*main[:place], found, *main[place + 1 :])
    return main


T = TypeVar("T")


def _most_common(values: Iterable[T | None]) -> T | None:
    counted = Counter(value for value in values if value is not None).most_common(1)
    return counted[0][0] if counted else None


@dataclass(frozen=True, slots=True)
class _Placed:
    """A point, its series (still without points), and that one's place among the series."""

    order: Any
    series: Series
    point: Point
    main: bool = True


def _group(
    placed: Iterable[_Placed], selected: str | None, receding: str = "other recipes"
) -> tuple[Series, ...]:
    """One point at each ``x`` of a series; whatever else lies there recedes to small faint points."""
    lines: dict[tuple[Any, Series], dict[float, Point]] = {}
    others: dict[tuple[float, float, float | None], Point] = {}  # by place: a shared measurement is one point
    for item in placed:
        if not item.main:
            others[_place(item.point)] = item.point
            continue
        line = lines.setdefault((item.order, item.series), {})
        kept, left = line.get(item.point.x, item.point), item.point
        if item.point.key == selected:
            kept, left = item.point, kept
        line[item.point.x] = kept
        if _place(left) != _place(kept):
            others[_place(left)] = left
    series = [
        replace(series, points=tuple(points[x] for x in sorted(points)))
        for (_, series), points in sorted(lines.items(), key=lambda line: line[0][0])
    ]
    if others:
        series.insert(0, Series(receding, "faint", tuple(others.values()), line="none", small=True))
    return tuple(series)


def _place(point: Point) -> tuple[float, float, float | None]:
    return point.x, point.y, point.low


def _selected(points: Iterable[Point], key: str | None) -> Point | None:
    return next((point for point in points if point.key == key), None) if key is not None else None


def _reference(summaries: Sequence[Summary], selected: str | None, name: str) -> Reference | None:
    """The baseline of the selected result, or of all when they agree on it."""
    chosen = [summary for summary in summaries if summary.key == selected] or summaries
    values = {summary.measures[name].baseline for summary in chosen}
    value = values.pop()
    if values or value is None:
        return None
    written = "" if name == "drop" else f" {metric(name).format(value)}"
    return Reference(f"uncompressed{written}", value)


def _padded(low: float, high: float, share: float = 0.06) -> tuple[float, float]:
    room = (high - low) * share or max(abs(high) * share, 1e-9)
    return low - room, high + room


def _extent(points: Iterable[Point], reference: Reference | None) -> tuple[float, float]:
    values = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    values += [reference.y] if reference else []
    return min(values), max(values)


def _from_zero(points: Iterable[Point], reference: Reference | None) -> tuple[float, float]:
    return 0.0, 1.08 * _extent(points, reference)[1]


def accuracy_info(
    results: Iterable[Result], selected: str | None = None, cursor: float | None = None
) -> Lines:
    """Accuracy against sparsity, one line a bit width.

    ``selected`` is a result's key; ``cursor`` is the sparsity in percent of one that is not measured yet.
    """
    summaries = [summarise(result) for result in results]
    agreement = bool(summaries) and all(summary.reference == "baseline" for summary in summaries)
    title = "agreement with the uncompressed model" if agreement else "top-1 accuracy"
    x = Axis("weights removed", "%", span=(-3, 100))
    if not summaries:
        return Lines("Accuracy against sparsity", x, Axis(title, "%", "higher"), cursor=cursor)
    main = _main_family(summaries, selected)
    widths = {
        _width(summary)
        for summary in summaries
        if _options(own := family(summary.recipe)) and _belongs(own[WAY:], main[WAY:])
    }
    placed = [
        _Placed(
            *_bits_series(summary, main, widths), point, _belongs(family(summary.recipe)[:WAY], main[:WAY])
        )
        for summary in summaries
        if (point := _point(summary, summary.pruned_percent, summary.measures["accuracy"]))
    ]
    points = [item.point for item in placed]
    baseline = _reference(summaries, selected, "accuracy")
    series = _group(_few_options(placed), selected)
    low, high = _padded(*_near_the_lines(series, baseline))
    below = sum(point.y < low for point in points)
    return Lines(
        "Accuracy against sparsity",
        x,
        Axis(f"{title}, {_images_of(summaries)}", "%", "higher", span=(max(low, -2), min(high, 102))),
        series,
        baseline,
        _selected(points, selected),
        None if selected in {point.key for point in points} else cursor,
        legend_title="weight bits",
        note=f"{below} {'lies' if below == 1 else 'lie'} below" if below else "",
    )


LEAST_ROOM_POINTS = 5.0


def _near_the_lines(series: Sequence[Series], baseline: Reference | None) -> tuple[float, float]:
    """The lines decide how far an axis goes down: recipes that recede get as much room below as the lines
    take, and at least some points; a collapsed one would squeeze all the others."""
    drawn, faint = (
        [point for line in series if (line.line == "none" and line.small) is recedes for point in line.points]
        for recedes in (False, True)
    )
    low, high = _extent(drawn or faint, baseline)
    lowest = low - max(high - low, LEAST_ROOM_POINTS)
    return _extent([*drawn, *(point for point in faint if point.y >= lowest)], baseline)


def _images_of(summaries: Sequence[Summary]) -> str:
    images = {summary.images for summary in summaries}
    return images.pop() if len(images) == 1 else f"{len(images)} sets of images"


MOST_OPTIONS = 3
"""Lines of recipes with other options than the main ones: more would hide these."""


def _few_options(placed: Sequence[_Placed]) -> list[_Placed]:
    """Lines with other options are dashed; only those with most points stay lines."""
    drawn = Counter(item.series for item in placed if item.main and item.series.line != "solid")
    kept = {series for series, _ in drawn.most_common(MOST_OPTIONS)}
    return [
        replace(item, main=item.main and (item.series.line == "solid" or item.series in kept))
        for item in placed
    ]


def _width(summary: Summary) -> tuple[float, int]:
    quantize = summary.recipe.quantize
    return quantize.bits, quantize.activation_bits


def _bits_series(summary: Summary, main: Family, widths: Collection[tuple[float, int]]) -> tuple[Any, Series]:
    """Its width with the options; the main options' lines are solid, and layers apart make no line at all:
    under one name they may be other layers. ``widths`` are those that the main options were measured with:
    what has no place for an option joins their line."""
    quantize = summary.recipe.quantize
    rounded = quantize.activation_bits < 32
    bits = quantize.bits
    name = f"{bits:g}{' mixed' if quantize.average_bits else ''}"
    name += f", act. {quantize.activation_bits}" if rounded else ""
    own = family(summary.recipe)
    alike = _belongs(own[WAY:], main[WAY:])
    options = _options(main if alike and _width(summary) in widths else own)
    line: Literal["solid", "dash", "none"] = "solid" if alike else "none" if summary.recipe.layers else "dash"
    series = Series(f"{name}, {options}" if options else name, _role(bits), (), line=line)
    return (-bits, rounded, quantize.activation_bits, options), series


def _role(bits: float) -> str:
    """The colour role of the width that comes nearest."""
    return f"bits {min(WEIGHT_BITS, key=lambda width: abs(width - bits))}"


SIZES = {
    "file as served": ("file_size", "file", "circle"),
    "compressed (zstd)": ("compressed_size", "compressed", "diamond"),
    "packed (counted)": ("packed_size", "packed", "triangle-up"),
}
"""The three sizes of the size chart: metric, colour role, marker. Packed ones are counted, so hollow."""


def size_info(results: Iterable[Result], selected: str | None = None) -> Lines:
    """Size against weight bits, one line a kind of size, at the selected result's pruning (else unpruned)."""
    summaries = [summarise(result) for result in results]
    x = Axis("weight bits", categories=tuple(map(str, WEIGHT_BITS)), span=(-0.4, len(WEIGHT_BITS) - 0.6))
    if not summaries:
        return Lines("Size against bits", x, Axis("size, from 0", "B", "lower"))
    chosen = next((summary for summary in summaries if summary.key == selected), None)
    prune = chosen.recipe.prune if chosen else Recipe().prune
    at = [
        summary
        for summary in summaries
        if summary.recipe.prune == prune or not (summary.recipe.prune.active or prune.active)
    ]
    if not at:
        return Lines("Size against bits", x, Axis("size, from 0", "B", "lower"))
    main = _main_family(at, selected)
    lines = [summary for summary in at if _belongs(family(summary.recipe), main)]
    placed = [
        _Placed(order, Series(name, colour, ()), replace(point, marker=marker, simulated=colour == "packed"))
        for order, (name, (measured, colour, marker)) in enumerate(SIZES.items())
        for summary in lines
        if (point := _point(summary, _position(summary), summary.measures[measured]))
    ]
    points = [item.point for item in placed]
    baseline = _reference(at, selected, "file_size")
    return Lines(
        ", ".join(filter(None, ("Size against bits", _pruned(prune), _options(main)))),
        x,
        Axis("size, from 0", "B", "lower", span=_from_zero(points, baseline)),
        _group(placed, selected),
        baseline,
        _selected(points, selected),
    )


def _position(summary: Summary) -> float:
    return float(np.interp(summary.recipe.quantize.bits, WEIGHT_BITS, range(len(WEIGHT_BITS))))


def _pruned(prune: PruneSpec) -> str:
    return Recipe(prune).describe().partition(" (")[0] if prune.active else "nothing pruned"


def latency_info(
    results: Iterable[Result],
    selected: str | None = None,
    cursor: float | None = None,
    name: str = "latency_ratio",
    engine: str = "",
) -> Lines:
    """Latency against sparsity, one line a realisation: what the kernels really did.

    The ratio to the baseline of the same rounds is the figure to trust; ``name`` may be another metric of
    time. Results of another machine are lines of their own, with crosses. With ``engine`` there is one line a
    realisation, of that engine where it has any, else of the one with most results; other engines recede.
    Without, each engine has its own, and those of the first are solid.
    """
    summaries = [summarise(result) for result in results]
    measured = metric(name)
    x = Axis("weights removed", "%", span=(-3, 100))
    label = "time ÷ uncompressed" if name == "latency_ratio" else f"{measured.label} of a call"
    y = Axis(f"{label}, from 0", measured.unit, measured.direction)
    if not summaries:
        return Lines("Latency against sparsity", x, y, cursor=cursor)
    engines = sorted(
        {summary.request.engine for summary in summaries}, key=lambda name: (name != engine, name)
    )
    shown = _one_engine_each(summaries, engine)
    placed = [
        _Placed(
            *_realisation_series(summary, engines, engine),
            point,
            not engine or shown[_kind(summary)] == summary.request.engine,
        )
        for summary in summaries
        if (point := _point(summary, summary.pruned_percent, summary.measures[name], timed=True))
    ]
    if not placed:
        return Lines("Latency against sparsity", x, y, empty="This figure needs a full measurement.")
    points = [item.point for item in placed]
    calm = [replace(point, low=None, high=None) if point.noisy else point for point in points]
    baseline = _reference(summaries, selected, name)
    series = _group(placed, selected, "others")
    return Lines(
        "Latency against sparsity",
        x,
        replace(y, span=_from_zero(calm, baseline)),  # one disturbed interval would squeeze all the others
        series,
        baseline,
        _selected(points, selected),
        None if selected in {point.key for point in points} else cursor,
        note="dashed: another engine" if engine and any(line.line == "dash" for line in series) else "",
    )


def _kind(summary: Summary) -> tuple[str, str]:
    return summary.realisation, summary.environment_key


def _one_engine_each(summaries: Sequence[Summary], engine: str) -> dict[tuple[str, str], str]:
    """For each realisation on each machine the engine whose line it is."""
    counted = Counter((_kind(summary), summary.request.engine) for summary in summaries)
    ranked = sorted(counted, key=lambda one: (one[1] == engine, counted[one]))
    return dict(ranked)  # the last one stays


def _ran(summary: Summary) -> str:
    """What the kernels really did, also where ours were not there."""
    return FALLBACK if summary.fallback and summary.skipping else summary.realisation


def _realisation_series(summary: Summary, engines: Sequence[str], chosen: str) -> tuple[Any, Series]:
    """Its name, with what else tells on the clock, the engine where each has its own lines, and the machine
    where it is another. The first engine's lines are solid; layers apart make no line."""
    name, colour = _ran(summary), summary.realisation
    recipe = summary.recipe
    if recipe.prune.shrinks and recipe.prune.snap > 1:
        name += f", snapped to {recipe.prune.snap}"
    if recipe.layers:
        name += f", {count(len(recipe.layers), 'layer')} apart"
    label = engine_label(summary.request.engine)
    if len(engines) > 1 and not chosen and name != label:  # the sparse kernels are an engine by themselves
        name += f", {label}"
    if summary.other_machine:
        name, colour = f"{name}, other machine", "unknown kernels"
    order = (
        list(MARKERS).index(summary.realisation),
        engines.index(summary.request.engine),
        summary.environment_key,
        name,
    )
    line: Literal["solid", "dash", "none"] = "solid" if summary.request.engine == engines[0] else "dash"
    return order, Series(name, colour, (), line="none" if recipe.layers else line)


LARGEST_DROP_POINTS = 15.0


def frontier_info(
    results: Iterable[Result],
    selected: str | None = None,
    cost: str = "compressed_size",
    loss: str = "drop",
    log: bool = False,
) -> Lines:
    """What accuracy is paid for a ``cost``: the Pareto-optimal results joined, the dominated ones faint.

    Raises InputError for a metric that does not exist.
    """
    summaries = [summarise(result) for result in results]
    paid, lost = metric(cost), metric(loss)
    title = f"Frontier: {lost.label} against {paid.label}"
    x = Axis(f"{paid.label}, {'log' if log else 'from 0'}", paid.unit, paid.direction, log)
    y = Axis(lost.label, lost.unit, lost.direction)
    points: list[Point] = []
    optimal: set[str] = set()
    for summary, on_frontier in zip(summaries, frontier_mask(summaries, (cost, loss)), strict=True):
        price = summary.measures[cost]
        point = _point(
            summary,
            math.nan if price.value is None else price.value,
            summary.measures[loss],
            timed=cost in TIMES,
        )
        if point:
            points.append(replace(point, x_low=price.low, x_high=price.high))
            optimal |= {summary.key} if on_frontier else set()
    if not points:
        return Lines(title, x, y)
    baseline = _reference(summaries, selected, loss)
    near = [point for point in points if _is_near(point, loss) or point.key == selected]
    low, high = _extent(near or points, baseline)
    prices = [value for point in near or points for value in (point.x, point.x_high) if value]
    best = sorted((point for point in points if point.key in optimal), key=lambda point: (point.x, point.y))
    bits = {summary.key: summary.recipe.quantize.bits for summary in summaries}
    elsewhere = {summary.key for summary in summaries if cost in TIMES and summary.other_machine}
    dominated = tuple(point for point in points if point.key not in optimal)
    line = tuple(replace(point, hover="") for point in best if point.key not in elsewhere)
    far = len(points) - len(near) if near else 0
    return Lines(
        title,
        replace(x, span=(min(prices) / 1.3, max(prices) * 1.3) if log else (0.0, 1.08 * max(prices))),
        replace(y, span=_padded(low, high, 0.14)),
        (
            Series("dominated", "faint", dominated, line="none", small=True, legend=False),
            Series("frontier", "baseline", line, line="steps", markers=False, legend=False),
            *(
                Series(f"{width:g} bits", _role(width), chosen, line="none")
                for width in sorted(set(bits.values()), reverse=True)
                if (chosen := tuple(point for point in best if bits[point.key] == width))
            ),
        ),
        baseline,
        _selected(points, selected),
        note=" · ".join(
            ["faint: beaten"] * bool(dominated)
            + [f"{far} {'lies' if far == 1 else 'lie'} above {LARGEST_DROP_POINTS:.0f}"] * bool(far)
        ),
    )


def _is_near(point: Point, loss: str) -> bool:
    """Whether a point deserves a place on the axis: a collapsed model would squeeze all the others."""
    return loss != "drop" or point.y <= LARGEST_DROP_POINTS


def samples_info(result: Result, view: Literal["rounds", "distribution"] = "rounds") -> Lines:
    """The raw times of one comparison: round by round (drift and disturbances), or their distribution."""
    latency, summary = result.latency, summarise(result)
    first, second = latency.baseline_ns
    top = 1.15 * float(np.percentile([*first, *second, *latency.variant_ns], 99))
    beyond = sum(time > top for time in (*first, *second, *latency.variant_ns))
    note = summary.latency.verdict + (f" · {count(beyond, 'call')} took longer" if beyond else "")
    ratio = summary.text("latency_ratio")
    name = _clip(summary.description, 34)
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


def compare_info(results: Iterable[Result], name: str = "accuracy") -> Lines:
    """One metric of chosen configurations, one row each, with its interval.

    Raises InputError for an unknown metric.
    """
    summaries = [summarise(result) for result in results]
    measured = metric(name)
    labels = tuple("\n".join(textwrap.wrap(_label(summary, summaries), 30)) for summary in summaries)
    points = [
        (
            summary.recipe.quantize.bits,
            replace(point, x=point.y, y=row, x_low=point.low, x_high=point.high, low=None, high=None),
        )
        for row, summary in enumerate(summaries)
        if (point := _point(summary, row, summary.measures[name], timed=name in TIMES))
    ]
    title = measured.label[0].upper() + measured.label[1:]
    x = Axis(measured.label, measured.unit, measured.direction)
    y = Axis("", categories=labels, span=(len(labels) - 0.5, -0.5))
    if not points:
        return Lines(title, x, y, empty="Pin configurations to compare them here.")
    values = [end for _, point in points for end in (point.x, point.x_low, point.x_high) if end is not None]
    if measured.unit in ("%", "points", "dB"):
        x = replace(x, span=_padded(min(values), max(values)))
    else:
        x = replace(x, title=f"{measured.label}, from 0", span=(0.0, 1.08 * max(values)))
    series = tuple(
        Series(f"{width:g} bits", _role(width), chosen, line="none", legend=False)
        for width in sorted({bits for bits, _ in points})
        if (chosen := tuple(point for bits, point in points if bits == width))
    )
    intervals = any(point.x_low is not None for _, point in points)
    return Lines(title, x, y, series, note="with 95 % intervals" if intervals else "")


def _label(summary: Summary, others: Sequence[Summary]) -> str:
    """The recipe, and the model and engine where these differ."""
    parts = [summary.description]
    if len({other.request.model for other in others}) > 1:
        parts.insert(0, summary.request.model)
    if len({other.request.engine for other in others}) > 1:
        parts.append(engine_label(summary.request.engine))
    return " · ".join(parts)


class Fit(Protocol):
    """A power law of time above ``floor_ns`` of overhead: its ``slope`` on log axes and the interval. From
    ``from_n`` on, the weights take longer than the overhead."""

    @property
    def slope(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def floor_ns(self) -> float: ...
    @property
    def from_n(self) -> float: ...


EXECUTIONS = {
    "dense": "dense fp32",
    "sparse kernel": "sparse kernels",
    "csr": "unknown kernels",
    "rows removed": "channels removed",
    "int8": "int8 kernels",
}
"""How a layer was executed on the Complexity page, and the realisation whose colour and marker it has."""


def complexity_info(
    points: pd.DataFrame,
    fits: Mapping[str, Fit],
    quantity: Literal["time", "operations"] = "time",
    n_label: str = "weights n",
) -> Lines:
    """Time or operations against the number of weights n on log axes, with fitted slopes and the overhead.

    ``points`` has the columns ``execution`` (one of EXECUTIONS), ``n``, ``operations``, ``surviving``,
    ``removed_share``, ``median_ns``, ``low_ns``, ``high_ns``, and may have ``name``; ``fits`` has an entry an
    execution. ``n_label`` says what n counts. Raises InputError for an unknown execution.
    """
    timed = quantity == "time"
    title = "Time against the number of weights" if timed else "Operations against the number of weights"
    x = Axis(f"{n_label} before removal, log", log=True)
    y = Axis(
        "time, log" if timed else "weights visited an input, log", "ns" if timed else "", "lower", log=True
    )
    if points.empty:
        return Lines(title, x, y, empty="Not measured yet.<br>Start the measurement to see time against n.")
    column = "median_ns" if timed else "operations"
    series: list[Series] = []
    floors: list[float] = []
    for execution, rows in points[points[column] > 0].sort_values("n").groupby("execution", sort=False):
        if execution not in EXECUTIONS:
            raise unknown("execution", execution, EXECUTIONS)
        name, role = str(execution), EXECUTIONS[str(execution)]
        measured = tuple(_complexity_point(row, column, MARKERS[role]) for row in rows.to_dict("records"))
        fit = fits.get(name) if timed else None
        if fit is None:
            series.append(Series(name, role, measured))
            continue
        label = f"{name}, slope {fit.slope:.2f} ({fit.low:.2f} to {fit.high:.2f})"
        series += [Series(label, role, measured, line="none"), _fitted(name, role, rows, fit)]
        floors += [fit.floor_ns] if fit.floor_ns > 0 else []
    floor = (
        Reference(f"overhead of a layer's call: {format_ns(min(floors))}", min(floors)) if floors else None
    )
    drawn = [point for line in series for point in line.points]
    low, high = _extent(drawn, floor)
    return Lines(
        title,
        replace(x, span=(min(point.x for point in drawn) / 1.6, max(point.x for point in drawn) * 1.6)),
        replace(y, span=(low / 2.5, high * 1.6)),
        tuple(series),
        floor,
    )


def _complexity_point(row: dict[Hashable, Any], column: str, marker: str) -> Point:
    timed = column == "median_ns"
    name = html.escape(f"{row.get('name', '')} {row['execution']}".strip())
    words = [
        f"<b>{name}</b>, {format_percent(100 * row['removed_share'])} removed",
        f"n = {format_count(row['n'])}, {format_count(row['surviving'])} survive",
        f"weights visited {format_count(row['operations'])}",
        f"time {format_ns(row['median_ns'], row['low_ns'], row['high_ns'])}",
    ]
    return Point(
        row["n"],
        row[column],
        low=row["low_ns"] if timed else None,
        high=row["high_ns"] if timed else None,
        hover="<br>".join(words),
        marker=marker,
    )


def _fitted(name: str, role: str, rows: pd.DataFrame, fit: Fit) -> Series:
    """The power law alone, where the weights and not the overhead take the time: straight on log axes."""
    n, times_ns = rows["n"].to_numpy(float), rows["median_ns"].to_numpy(float)
    clear = (n >= fit.from_n) & (times_ns > fit.floor_ns)
    if not clear.any():
        return Series(f"{name}, fitted", role, (), line="dot", markers=False, legend=False)
    scale = np.median(np.log(times_ns[clear] - fit.floor_ns) - fit.slope * np.log(n[clear]))
    ends = (n[clear].min(), n[clear].max())
    line = tuple(Point(float(end), float(np.exp(scale + fit.slope * np.log(end)))) for end in ends)
    return Series(f"{name}, fitted", role, line, line="dot", markers=False, legend=False)


def histogram_info(anatomy: Anatomy) -> Lines:
    """A layer's weights, with the threshold and the grid of a recipe drawn in."""
    bins = list(pairwise(anatomy.edges))

    def counted(counts: Sequence[int]) -> tuple[Point, ...]:
        """A step begins at the lower edge of its bin; the last one ends at the upper edge."""
        steps = [
            Point(low, y, hover=f"{count(y, 'weight')} from {low:.3g} to {high:.3g}")
            for (low, high), y in zip(bins, counts, strict=True)
        ]
        return (*steps, replace(steps[-1], x=anatomy.edges[-1]))

    top = 1.1 * max([*anatomy.before, *anatomy.after, 1])
    series = [Series("before", "faint", counted(anatomy.before), line="steps", markers=False)]
    if anatomy.after != anatomy.before:
        after = counted(anatomy.after)
        series.append(Series("after, but for zeros", "accent", after, line="steps", markers=False))
    if anatomy.threshold >= 0:
        series += [
            Series(
                f"threshold, |w| ≤ {anatomy.threshold:.3g}",
                "baseline",
                (Point(end, 0), Point(end, top)),
                line="dash",
                markers=False,
                legend=side > 0,
            )
            for side in (-1, 1)
            for end in (side * anatomy.threshold,)
        ]
    if anatomy.levels:
        levels = tuple(
            Point(level, -0.035 * top, hover=f"grid value {level:.3g}", marker="line-ns-open")
            for level in anatomy.levels
        )
        series.append(Series("grid of the widest channel", "bits 4", levels, line="none"))
    bottom = -0.07 * top if anatomy.levels else 0.0  # the grid lies in a row of its own below the counts
    return Lines(
        f"Weights of {anatomy.layer.removesuffix('.weight')}",
        Axis("value of a weight", "no unit", span=(anatomy.edges[0], anatomy.edges[-1])),
        Axis("weights in a bin, from 0", span=(bottom, top)),
        tuple(series),
        note=f"{format_count(anatomy.zeros)} of {format_count(sum(anatomy.before))} are zero",
    )


def sensitivity_info(sensitivities: Sequence[Sensitivity], selected: str | None = None) -> Lines:
    """What each layer's change alone does to the outputs, in the order of the network.

    The ``selected`` layer's points are in the accent.
    """
    names = tuple(one.layer.removesuffix(".weight") for one in sensitivities)

    def points(values: Iterable[float | None], words: str, marker: str) -> tuple[Point, ...]:
        return tuple(
            Point(
                value,
                row,
                names[row],
                hover=f"<b>{html.escape(names[row])}</b><br>{words}: {value:.3g} nats",
                marker=marker,
                simulated=True,
            )
            for row, value in enumerate(values)
            if value  # a log axis has no place for none
        )

    pruned = tuple(
        replace(point, simulated=not sensitivities[int(point.y)].measured)
        for point in points((one.pruned for one in sensitivities), "its share of 60 % pruned", "circle")
    )
    found = [Series("pruned, its share of 60 %", "dense fp32", pruned, line="none")]
    for bits, marker in {4: "square", 3: "diamond", 2: "triangle-up"}.items():
        rounded = (one.rounded.get(bits) for one in sensitivities)
        placed = points(rounded, f"{bits} bits, predicted", marker)
        found.append(Series(f"{bits} bits", f"bits {bits}", placed, line="none"))
    rows = [row for row, one in enumerate(sensitivities) if one.layer == selected]
    chosen = tuple(point for series in found for point in series.points if point.y in rows)
    return Lines(
        "Sensitivity of each layer alone",
        Axis("divergence of the outputs, nats", "", "lower", log=True),
        Axis("", categories=names, span=(len(names) - 0.5, -0.5)),
        (*found, Series("this layer", "accent", chosen, line="none")),
        note="filled: measured · hollow: predicted from it",
        empty="No layer of this model has been measured.",
    )


def layers_info(result: Result) -> Bars:
    """The weights of each layer and how many of them are not zero, in the order of the network."""
    summary = summarise(result)
    return Bars(
        f"Non-zero weights by layer: {summary.text('nonzero')} of {format_count(summary.size.elements)}",
        Axis("weights, from 0"),
        tuple(_bar(layer) for layer in result.inspection.layers),
        note="coloured: not zero · grey: zero",
    )


def _bar(layer: LayerFacts) -> Bar:
    share = 100 * layer.nonzero / layer.elements if layer.elements else 0.0
    words = [
        f"<b>{html.escape(layer.name)}</b>",
        html.escape(f"{layer.kind}, {' × '.join(map(str, layer.shape))}"),
        f"{format_count(layer.nonzero)} of {format_count(layer.elements)} not zero ({share:.3g} %)",
        f"{layer.bits} bits a weight",
        f"{format_count(layer.macs * share / 100)} of {format_count(layer.macs)} multiply-accumulates",
    ]
    if layer.threshold >= 0:
        words.insert(4, f"|w| ≤ {layer.threshold:.3g} removed")
    return Bar(
        layer.name.removesuffix(".weight"),
        layer.elements,
        layer.nonzero,
        f"bits {layer.bits}",
        "<br>".join(words),
    )


# Serving


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
                hover=_serving_hover(name, one, figures, network),
                marker=marker,
                simulated=network == VARIANT and bool(run.execution.simulated),
                noisy=bool(one.fair.noise),
                label=f"{one.configuration.batch}{f', {way[0]} × {way[1]}' if last else ''}",
            )
        )
    return Series(_clip(name, 44), colour, tuple(points), line="solid" if way[1] == 1 else "dash")


def _serving_hover(name: str, one: Comparison, figures: Figures, network: str) -> str:
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
    lines += [html.escape(_clip(reason)) for reason in one.fair.noise[:1]]
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
            hover=_serving_hover(run.request.recipe.describe(), one, one.variant, VARIANT),
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


PART_COLOURS = {"conversion": "file", "other": "faint"}
"""Colours of what is no layer; a layer has its realisation's."""
PART_WORDS = {
    "dense fp32": "float32 kernels",
    "conversion": "re-quantization, reorders",
    "other": "everything else",
}


def parts_info(run: Coverage) -> Stacks:
    """The time of a call by what ran, uncompressed and compressed, under the engine's profiler."""
    networks = {"uncompressed": run.baseline}
    if not run.request.recipe.identity:
        networks["\n".join(textwrap.wrap(run.request.recipe.describe(), 26))] = run.kernels
    bars = []
    for name, kernels in networks.items():
        taken = parts(kernels)
        total = sum(taken.values())
        segments = tuple(
            Segment(
                PART_WORDS.get(kind, kind),
                time,
                PART_COLOURS.get(kind, kind),
                f"<b>{PART_WORDS.get(kind, kind)}</b><br>{format_ns(time)}, {100 * time / total:.1f} %",
            )
            for kind, time in taken.items()
        )
        bars.append((name, segments))
    there = {segment.part for _, segments in bars for segment in segments}
    order = (PART_WORDS.get(kind, kind) for kind in PARTS)
    return Stacks(
        "Where the time goes",
        Axis("time of a call, from 0", "ns", "lower"),
        tuple(name for name in order if name in there),
        tuple(bars),
        note="under the profiler",
    )


LEAST_SHOWN_SHARE = 0.01


def kernels_info(run: Coverage) -> Lines:
    """Time of each layer and each conversion of note, in the order of the network, beside the time that the
    layer took uncompressed."""
    shown = [row for row in operations(run.kernels) if row.role == "layer" or _of_note(row.role, row.share)]
    names = tuple(_clip(row.label, 40) for row in shown)
    left = [row for row in operations(run.baseline) if row.role == "layer"]
    before = {row.name: row for row in reversed(left)}

    def point(row: int, time_ns: float, words: str, marker: str) -> Point:
        return Point(
            time_ns, row, hover=f"<b>{html.escape(names[row])}</b><br>{html.escape(words)}", marker=marker
        )

    old = tuple(
        point(row, before[one.name].time_ns, f"uncompressed: {format_ns(before[one.name].time_ns)}", "circle")
        for row, one in enumerate(shown)
        if one.name in before
    )
    series = [Series("uncompressed", "baseline", old, line="none")] if not run.request.recipe.identity else []
    for kind in dict.fromkeys(part(one) for one in shown):
        ran = tuple(
            point(
                row,
                one.time_ns,
                f"{one.precision}, {one.kernel}: {format_ns(one.time_ns)}, {100 * one.share:.1f} %",
                MARKERS.get(kind, "x"),
            )
            for row, one in enumerate(shown)
            if part(one) == kind
        )
        series.append(Series(PART_WORDS.get(kind, kind), PART_COLOURS.get(kind, kind), ran, line="none"))
    longest = max((point.x for one in series for point in one.points), default=1.0)
    return Lines(
        "Time of each layer, and the kernels that ran",
        Axis("time a call, from 0", "ns", "lower", span=(0.0, 1.08 * longest)),
        Axis("", categories=names, span=(len(names) - 0.5, -0.5)),
        tuple(series),
        note="profiled: compare layers, not with the latency",
    )


def _of_note(role: str, share: float) -> bool:
    return role == "conversion" and share >= LEAST_SHOWN_SHARE
