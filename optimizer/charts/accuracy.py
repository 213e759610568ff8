"""Accuracy against sparsity."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from optimizer.analysis.comparison import image_files
from optimizer.analysis.metrics import metric
from optimizer.analysis.summary import Measured, Summary, quality, summarise
from optimizer.charts.axes import baseline_of, extent, padded
from optimizer.charts.families import NO_OPTIONS, WAY, Family, belongs, family, main_family, options_of
from optimizer.charts.lines import Placed, group
from optimizer.charts.points import bits_role, hollow, point_of, selected_point
from optimizer.charts.spec import NO_FIGURE, Axis, Lines, Reference, Series
from optimizer.formats import count


def accuracy_info(
    results: Iterable[Measured],
    selected: str | None = None,
    cursor: float | None = None,
    score: str = "accuracy",
) -> Lines:
    """Accuracy against sparsity, one line a bit width.

    ``selected`` is a result's key; ``cursor`` is the sparsity in percent of one that is not measured yet.
    ``score`` is the metric before there are results, which tell it: ``sqnr`` of a network without classes.
    """
    summaries = [summarise(result) for result in results]
    agreement = bool(summaries) and all(summary.reference == "baseline" for summary in summaries)
    name = quality(score, summaries)
    title = "agreement with the uncompressed model" if agreement else "top-1 accuracy"
    heading = f"{'Agreement' if agreement else 'Accuracy'} against sparsity"
    if name == "sqnr":
        title, heading = "SQNR of the outputs", "Fidelity against sparsity"
    unit, whole = metric(name).unit, (-2.0, 102.0) if name == "accuracy" else (-math.inf, math.inf)
    x, y = Axis("weights removed", "%", span=(-3, 100)), Axis(title, unit, "higher")
    if not summaries:
        return Lines(heading, x, y, cursor=cursor)
    main, same = main_family(summaries, selected), _on_the_main_images(summaries, selected)
    widths = {
        _width(summary)
        for summary in summaries
        if options_of(own := family(summary.recipe)) != NO_OPTIONS and belongs(own[WAY:], main[WAY:])
    }
    placed = [
        Placed(
            *_bits_series(summary, main, widths),
            point,
            alike and belongs(family(summary.recipe)[:WAY], main[:WAY]),
        )
        for summary, alike in zip(summaries, same, strict=True)
        if (point := point_of(summary, summary.pruned_percent, summary.measures[name]))
    ]
    if not placed:
        return Lines(heading, x, y, cursor=cursor, empty=ONLY_EQUAL if name == "sqnr" else NO_FIGURE)
    points = [item.point for item in placed]
    baseline = baseline_of(summaries, selected, name)
    series = group(
        _few_options(placed), selected, "other recipes" if all(same) else "other recipes or images"
    )
    low, high = padded(*_near_the_lines(series, baseline))
    below = sum(point.y < low for point in points)
    return Lines(
        heading,
        x,
        replace(y, title=f"{title}, {_images_of(summaries)}", span=(max(low, whole[0]), min(high, whole[1]))),
        series,
        baseline,
        selected_point(points, selected),
        None if selected in {point.key for point in points} else cursor,
        legend_title="weight bits",
        note=" · ".join(hollow(points) + [f"{count(below, 'point')} below the axis"] * bool(below)),
    )


MIN_ROOM_POINTS = 5.0
ONLY_EQUAL = "No recipe has changed the outputs yet.<br>Move a slider: SQNR is shown once they differ."


def _near_the_lines(series: Sequence[Series], baseline: Reference | None) -> tuple[float, float]:
    """The lines decide how far an axis goes down: recipes that recede get as much room below as the lines
    take, and at least some points; a collapsed one would squeeze all the others."""
    shown, faint = (
        [point for line in series if (line.line == "none" and line.small) is recedes for point in line.points]
        for recedes in (False, True)
    )
    low, high = extent(shown or faint, baseline)
    lowest = low - max(high - low, MIN_ROOM_POINTS)
    return extent([*shown, *(point for point in faint if point.y >= lowest)], baseline)


def _images_of(summaries: Sequence[Summary]) -> str:
    named = zip(summaries, image_files(summaries), strict=True)
    images = {(summary.images, files) for summary, files in named}
    images -= {(words, "") for words, files in images if files}  # which may be the same
    return summaries[0].images if len(images) == 1 else f"{len(images)} sets of images"


def _on_the_main_images(summaries: Sequence[Summary], selected: str | None) -> list[bool]:
    """For each whether it was scored on the images of the selected result, without one on those of most: a
    line from one set to another would show how these differ, not what the recipes do."""
    images = [*zip((one.images for one in summaries), image_files(summaries), strict=True)]
    chosen = [one for one, summary in zip(images, summaries, strict=True) if summary.key == selected]
    (words, files), _ = Counter(chosen or images).most_common(1)[0]
    return [one == words and not (files and own and files != own) for one, own in images]


MAX_OPTIONS = 3
"""Lines of recipes with other options than the main ones: more would hide these."""


def _few_options(placed: Sequence[Placed]) -> list[Placed]:
    """Lines with other options are dashed; only those with most points stay lines."""
    shown = Counter(item.order for item in placed if item.main and item.series.line != "solid")
    kept = {order for order, _ in shown.most_common(MAX_OPTIONS)}
    return [
        replace(item, main=item.main and (item.series.line == "solid" or item.order in kept))
        for item in placed
    ]


def _width(summary: Summary) -> tuple[float, int]:
    quantize = summary.recipe.quantize
    return quantize.bits, quantize.activation_bits


def _bits_series(summary: Summary, main: Family, widths: Collection[tuple[float, int]]) -> tuple[Any, Series]:
    """Its width with the options; the main options' lines are solid, and layer overrides make no line at all:
    under one name they may be other layers. ``widths`` are those that the main options were measured with:
    what has no place for an option joins their line."""
    quantize = summary.recipe.quantize
    rounded = quantize.rounds_activations
    bits = quantize.bits
    name = f"{bits:g}{' mixed' if quantize.average_bits else ''}"
    name += f", activations {quantize.activation_bits}" if rounded else ""
    own = family(summary.recipe)
    alike = belongs(own[WAY:], main[WAY:])
    options = options_of(main if alike and _width(summary) in widths else own)
    line: Literal["solid", "dash", "none"] = "solid" if alike else "none" if summary.recipe.layers else "dash"
    series = Series(", ".join(filter(None, (name, options.words))), bits_role(bits), (), line=line)
    return (-bits, bool(quantize.average_bits), rounded, quantize.activation_bits, options, line), series
