"""Time and operations against the number of weights."""

import html
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, Literal

import pandas as pd

from optimizer.analysis.realisation import Realisation
from optimizer.analysis.scaling import ExecutionKind
from optimizer.analysis.slopes import Fit, Growth
from optimizer.charts.axes import extent
from optimizer.charts.spec import Axis, Lines, Point, Reference, Series
from optimizer.charts.theme import MARKERS
from optimizer.errors import unknown
from optimizer.formats import format_count, format_ns, format_percent

Quantity = Literal["time", "operations"]
ROLES = {
    ExecutionKind.DENSE: Realisation.DENSE,
    ExecutionKind.SPARSE: Realisation.SPARSE,
    ExecutionKind.CSR: Realisation.UNKNOWN,
    ExecutionKind.ROWS: Realisation.SHRUNK,
    ExecutionKind.INT8: Realisation.INT8,
}
"""The realisation whose colour and marker an execution has."""


def complexity_info(
    points: pd.DataFrame,
    fits: Mapping[ExecutionKind, Fit],
    quantity: Quantity = "time",
    n_label: str = "weights n",
) -> Lines:
    """Time or operations against the number of weights n on log axes, with fitted slopes and the overhead.

    ``points`` has the columns ``execution`` (an ``ExecutionKind``), ``n``, ``operations``,
    ``surviving``, ``removed_share``, ``median_ns``, ``low_ns``, ``high_ns``, and may have ``name`` and
    ``layers``; ``fits`` has an entry an execution. ``n_label`` says what n counts. Raises InputError for an
    unknown execution.
    """
    timed = quantity == "time"
    title = "Time against the number of weights" if timed else "Operations against the number of weights"
    x = Axis(f"{n_label} before removal, log", log=True)
    y = Axis(
        "time, log" if timed else "weights visited per input, log", "ns" if timed else "", "lower", log=True
    )
    if points.empty:
        return Lines(title, x, y, empty="Not measured yet.<br>Start the measurement to see time against n.")
    column = "median_ns" if timed else "operations"
    series: list[Series] = []
    floors: list[tuple[float, str]] = []
    for execution, rows in points[points[column] > 0].sort_values("n").groupby("execution", sort=False):
        if execution not in ROLES:
            raise unknown("execution", execution, ROLES)
        kind = ExecutionKind(str(execution))
        name, role = kind.label, ROLES[kind]
        fit = fits.get(kind) if timed else None
        measured = tuple(_point(row, column, MARKERS[role], fit) for row in rows.to_dict("records"))
        if fit is None:
            series.append(Series(name, role, measured))
            continue
        label = f"{name}, {_slope(fit)}"
        series += [Series(label, role, measured, line="none"), _fitted(name, role, rows, fit)]
        floors += [(fit.floor_ns, name)] if fit.floor_ns > 0 else []
    floor = None
    if floors:
        least, name = min(floors)
        floor = Reference(f"call overhead ({name}) {format_ns(least)}", least)
    placed = [point for line in series for point in line.points]
    low, high = extent(placed, floor)
    return Lines(
        title,
        replace(x, span=(min(point.x for point in placed) / 1.6, max(point.x for point in placed) * 1.6)),
        replace(y, span=(low / 2.5, high * 1.6)),
        tuple(series),
        floor,
    )


def _slope(fit: Fit) -> str:
    """The slope, with its range where the line that it is of is straight."""
    if fit.growth is Growth.BENT:
        return f"slope {fit.slope:.1f}, {fit.growth.label}".replace("-", "−")
    return f"slope {fit.slope:.2f} ({fit.low:.2f} to {fit.high:.2f})".replace("-", "−")


def _point(row: dict[Hashable, Any], column: str, marker: str, fit: Fit | None) -> Point:
    timed = column == "median_ns"
    name = html.escape(f"{row.get('name', '')} {ExecutionKind(row['execution']).label}".strip())
    words = [
        f"<b>{name}</b>, {format_percent(100 * row['removed_share'])} removed",
        f"n = {format_count(row['n'])}, {format_count(row['surviving'])} survive",
        f"weights visited {format_count(row['operations'])}",
        f"time {format_ns(row['median_ns'], row['low_ns'], row['high_ns'])}",
    ]
    if fit:
        residual = row["median_ns"] / fit.time_ns(row["n"], row.get("layers", 1)) - 1
        words.append(f"{format_percent(100 * abs(residual))} {'above' if residual > 0 else 'below'} the fit")
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
    points = rows["n"][rows["n"] >= fit.from_n]
    ends = () if points.empty else (float(points.min()), float(points.max()))
    line = tuple(Point(end, fit.weights_ns(end)) for end in ends)
    return Series(f"{name}, fitted", role, line, line="dot", markers=False, legend=False)
