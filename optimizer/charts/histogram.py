"""How the weights of one layer are distributed."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from optimizer.charts.axes import padded
from optimizer.charts.spec import Axis, Lines, Point, Series
from optimizer.formats import count, format_count
from optimizer.records import Anatomy


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
        Axis("value of a weight", "no unit", span=padded(anatomy.edges[0], anatomy.edges[-1], 0.02)),
        Axis("weights in a bin, from 0", span=(bottom, top)),
        tuple(series),
        note=f"{format_count(anatomy.zeros)} of {format_count(sum(anatomy.before))} are zero",
    )
