"""A chart in words, for a reader who does not see it."""

from optimizer.analysis.metrics import METRICS
from optimizer.charts.plotly_axis import ARROWS_ACROSS, ARROWS_UP, axis_title
from optimizer.charts.spec import Lines, Parallel, Stacks
from optimizer.formats import count, significant

MAX_ROWS = 6
"""That are told one by one."""
FORMATS = {one.unit: one.format for one in METRICS.values() if one.unit}
"""How a value of a unit is written."""


def alternative(info: Lines | Stacks | Parallel) -> str:
    """One sentence for a reader who does not see the chart."""
    if isinstance(info, Stacks):
        rows = [f"{name}: {', '.join(one.hover for one in parts)}" for name, parts in info.rows]
        words = ". ".join((info.title, *rows)).replace("\n", " ").replace("<br>", ", ")
        return words.replace("<b>", "").replace("</b>", "") + "."
    if isinstance(info, Parallel):
        axes = ", ".join(axis_title(axis, ARROWS_UP) for axis in info.axes)
        return f"{info.title}. {count(len(info.rows), 'line')} through parallel axes: {axes}."
    lines = [
        f"{series.name}: {count(len(series.points), 'point')}" for series in info.series if series.points
    ]
    if not lines:
        return f"{info.title}: nothing to show yet."
    across = axis_title(info.x, ARROWS_ACROSS)
    if info.y.categories:
        parts = [f"{info.title}. {across}, by row: {_rows(info)}"]
    else:
        parts = [f"{info.title}. {axis_title(info.y, ARROWS_UP)} against {across}", "; ".join(lines)]
    if info.reference:
        parts.append(info.reference.name)
    return ". ".join(parts) + "."


def _rows(info: Lines) -> str:
    """``name: value`` of the first rows; each value with its series where one row has several."""
    found: dict[float, list[tuple[str, str]]] = {}
    for series in info.series:
        for point in series.points if series.line == "none" else ():  # a line crosses rows
            found.setdefault(point.y, []).append((series.name, _written(point.x, info.x.unit)))
    apart = any(len(values) > 1 for values in found.values())
    shown = [
        (row, ", ".join(f"{name} {value}" if apart else value for name, value in found[row]))
        for row in sorted(found)[:MAX_ROWS]
    ]
    rows = [f"{info.y.categories[int(row)]}: {values}".replace("\n", " ") for row, values in shown]
    more = [f"and {count(len(found) - MAX_ROWS, 'more row')}"] if len(found) > MAX_ROWS else []
    return "; ".join((*rows, *more))


def _written(value: float, unit: str) -> str:
    return FORMATS[unit](value) if unit in FORMATS else significant(value, 3)
