"""Points put together to lines."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from optimizer.charts.spec import Point, Series


@dataclass(frozen=True, slots=True)
class Placed:
    """A point, its series (still without points), and that one's place among the series: those of one place
    are one series, whatever it is called."""

    order: Any
    series: Series
    point: Point
    main: bool = True


def group(
    placed: Iterable[Placed], selected: str | None, receding: str = "other recipes"
) -> tuple[Series, ...]:
    """One point at each ``x`` of a series; whatever else lies there recedes to small faint points."""
    lines: dict[Any, dict[float, Point]] = {}
    named: dict[Any, Series] = {}
    others: dict[tuple[float, float, float | None], Point] = {}  # by place: a shared measurement is one point
    for item in placed:
        if not item.main:
            others[_place(item.point)] = item.point
            continue
        line = lines.setdefault(item.order, {})
        named.setdefault(item.order, item.series)
        kept, left = line.get(item.point.x, item.point), item.point
        if item.point.key == selected:
            kept, left = item.point, kept
        line[item.point.x] = kept
        if _place(left) != _place(kept):
            others[_place(left)] = left
    series = [
        replace(named[order], points=tuple(points[x] for x in sorted(points)))
        for order, points in sorted(lines.items(), key=lambda line: line[0])
    ]
    if others:
        series.insert(0, Series(receding, "faint", tuple(others.values()), line="none", small=True))
    return tuple(series)


def _place(point: Point) -> tuple[float, float, float | None]:
    return point.x, point.y, point.low
