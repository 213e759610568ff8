"""Axes of rows, the baseline on an axis, and how far an axis goes."""

from collections.abc import Iterable, Sequence

from optimizer.analysis.metrics import metric
from optimizer.analysis.summary import Summary
from optimizer.charts.spec import Axis, Point, Reference


def rows_axis(names: Iterable[str]) -> Axis:
    """An axis of rows, the first at the top."""
    categories = tuple(names)
    return Axis("", categories=categories, span=(len(categories) - 0.5, -0.5))


def baseline_of(summaries: Sequence[Summary], selected: str | None, name: str) -> Reference | None:
    """The baseline of the selected result, or of all when they agree on it."""
    chosen = [summary for summary in summaries if summary.key == selected] or summaries
    values = {summary.measures[name].baseline for summary in chosen}
    value = values.pop()
    if values or value is None:
        return None
    written = "" if name == "drop" else f" {metric(name).format(value)}"
    return Reference(f"uncompressed{written}", value)


def padded(low: float, high: float, share: float = 0.06) -> tuple[float, float]:
    """A span with that share of it added at both ends."""
    room = (high - low) * share or abs(high) * share or 1.0
    return low - room, high + room


def extent(points: Iterable[Point], reference: Reference | None) -> tuple[float, float]:
    """From the lowest to the highest of the points, of their intervals, and of the baseline."""
    values = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    values += [reference.y] if reference else []
    return min(values), max(values)


def from_zero(highest: float) -> tuple[float, float]:
    """From 0 to a little above the highest value."""
    return 0.0, 1.08 * highest
