"""A chart in words, for a reader who does not see it."""

from optimizer.charts.plotly_axis import ARROWS_ACROSS, ARROWS_UP, axis_title
from optimizer.charts.spec import Lines, Parallel, Stacks
from optimizer.formats import count


def alternative(info: Lines | Stacks | Parallel) -> str:
    """One sentence for a reader who does not see the chart."""
    if isinstance(info, Stacks):
        rows = [
            f"{name}: {', '.join(f'{info.parts[one.part].name} {one.hover}' for one in parts)}"
            for name, parts in info.rows
        ]
        return (
            ". ".join((info.title, *rows)).replace("<br>", ", ").replace("<b>", "").replace("</b>", "") + "."
        )
    if isinstance(info, Parallel):
        axes = ", ".join(axis_title(axis, ARROWS_UP) for axis in info.axes)
        return f"{info.title}. {count(len(info.rows), 'line')} through parallel axes: {axes}."
    lines = [
        f"{series.name}: {count(len(series.points), 'point')}" for series in info.series if series.points
    ]
    if not lines:
        return f"{info.title}: nothing to show yet."
    parts = [
        f"{info.title}. {axis_title(info.y, ARROWS_UP)} against {axis_title(info.x, ARROWS_ACROSS)}",
        "; ".join(lines),
    ]
    if info.reference:
        parts.append(info.reference.name)
    return ". ".join(parts) + "."
