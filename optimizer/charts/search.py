"""How a search went: the best so far against time, so that a person sees when to stop."""

import html
from collections.abc import Sequence
from dataclasses import replace

from optimizer.analysis.metrics import metric
from optimizer.charts.axes import from_zero
from optimizer.charts.spec import Axis, Lines, Point, Reference, Series
from optimizer.formats import count
from optimizer.search.records import Step

EMPTY = "Nothing that was tried is shown to keep to the limits."


def search_info(steps: Sequence[Step], minimise: str, limit: float | None = None) -> Lines:
    """The best value of the ``minimise`` metric that keeps to all limits, after each measurement."""
    goal = metric(minimise)
    x = Axis("time since the search began, from 0", "s")
    y = Axis(f"best {goal.label} so far", goal.unit, goal.direction)
    points = tuple(
        Point(
            step.seconds,
            step.value,
            hover=html.escape(f"{goal.format(step.value)} after {step.seconds:.0f} s")
            + f"<br>{count(step.measured, 'measurement')}",
        )
        for step in steps
        if step.value is not None
    )
    title = "How the search went"
    if not points:
        return Lines(title, x, y, empty=EMPTY)
    reference = None if limit is None else Reference(f"limit {goal.format.given(limit)}", limit)
    highest = max(point.y for point in points)
    widest = 1.05 * steps[-1].seconds
    return Lines(
        title,
        Axis(x.title, x.unit, span=(0.0, widest)),
        y if minimise in ("drop", "sqnr") else replace(y, span=from_zero(max(highest, limit or 0.0))),
        (Series("best so far", "accent", points, line="steps"),),
        reference=reference,
        note=f"hypervolume: {100 * steps[-1].covered:.0f} % of what the limits allow is dominated",
    )
