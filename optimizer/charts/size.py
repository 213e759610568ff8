"""Size against the bits of a weight."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from optimizer.analysis.summary import Measured, Summary, summarise
from optimizer.charts.axes import baseline_of, extent, from_zero
from optimizer.charts.families import belongs, family, main_family, options_of
from optimizer.charts.lines import Placed, group
from optimizer.charts.points import point_of, selected_point
from optimizer.charts.spec import NO_FIGURE, Axis, Lines, Series
from optimizer.recipe import WEIGHT_BITS, PruneSpec, Recipe

KINDS = {
    "file as served": ("file_size", "file", "circle"),
    "zstd": ("compressed_size", "compressed", "diamond"),
    "packed (counted)": ("packed_size", "packed", "triangle-up"),
}
"""The three sizes of the size chart: metric, colour role, marker. Packed ones are counted, so hollow."""


def size_info(results: Iterable[Measured], selected: str | None = None) -> Lines:
    """Size against weight bits, one line a kind of size, at the selected result's pruning; without one
    unpruned, or at the commonest pruning where all are pruned."""
    summaries = [summarise(result) for result in results]
    x = Axis("weight bits", categories=tuple(map(str, WEIGHT_BITS)), span=(-0.4, len(WEIGHT_BITS) - 0.6))
    if not summaries:
        return Lines("Size against bits", x, Axis("size, from 0", "B", "lower"))
    chosen = next((summary for summary in summaries if summary.key == selected), None)
    prune = chosen.recipe.prune if chosen else _usual([summary.recipe.prune for summary in summaries])
    at = [
        summary
        for summary in summaries
        if summary.recipe.prune == prune or not (summary.recipe.prune.active or prune.active)
    ]
    main = main_family(at, selected)
    lines = [summary for summary in at if belongs(family(summary.recipe), main)]
    placed = [
        Placed(order, Series(name, colour, ()), replace(point, marker=marker, simulated=colour == "packed"))
        for order, (name, (measured, colour, marker)) in enumerate(KINDS.items())
        for summary in lines
        if (point := point_of(summary, _position(summary), summary.measures[measured]))
    ]
    if not placed:
        return Lines("Size against bits", x, Axis("size, from 0", "B", "lower"), empty=NO_FIGURE)
    points = [item.point for item in placed]
    baseline = baseline_of(at, selected, "file_size")
    return Lines(
        ", ".join(filter(None, ("Size against bits", _pruned(prune), options_of(main).words))),
        x,
        Axis("size, from 0", "B", "lower", span=from_zero(extent(points, baseline)[1])),
        group(placed, selected),
        baseline,
        selected_point(points, selected),
    )


def _usual(prunes: Sequence[PruneSpec]) -> PruneSpec:
    nothing = [prune for prune in prunes if not prune.active]
    return nothing[0] if nothing else Counter(prunes).most_common(1)[0][0]


def _position(summary: Summary) -> float:
    return float(np.interp(summary.recipe.quantize.bits, WEIGHT_BITS, range(len(WEIGHT_BITS))))


def _pruned(prune: PruneSpec) -> str:
    return Recipe(prune).describe(details=False) if prune.active else "nothing pruned"
