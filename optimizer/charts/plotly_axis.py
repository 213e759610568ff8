"""An axis as Plotly takes it: its title, units and ticks."""

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from optimizer.charts.spec import Axis
from optimizer.formats import format_bytes

NEAR = 300
"""Ends of a log axis whose ratio is less have ticks between the powers of ten."""
FACTORS = {"ns": 1e-9}  # drawn in seconds, so that d3 writes µs and ms by itself
SUFFIXES = {"B": "B", "ns": "s", "×": "×"}  # units on the ticks; the others are in the title
ARROWS_UP = {"lower": "↓ better", "higher": "↑ better", "": ""}
ARROWS_ACROSS = {"lower": "← better", "higher": "better →", "": ""}
PREFIXES = {-9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G"}


def axis_title(axis: Axis, arrows: Mapping[str, str]) -> str:
    unit = f", {axis.unit}" if axis.unit and axis.unit not in SUFFIXES else ""
    return " · ".join(part for part in (f"{axis.title}{unit}", arrows[axis.better]) if part)


def axis_layout(axis: Axis) -> dict[str, Any]:
    layout: dict[str, Any] = {"type": "log" if axis.log else "linear", "zeroline": not axis.log}
    ends: list[float] = []
    if axis.span:
        ends = [end * FACTORS.get(axis.unit, 1) for end in axis.span]
        layout["range"] = [math.log10(end) for end in ends] if axis.log else ends
    if axis.categories:
        labels = [html.escape(label).replace("\n", "<br>") for label in axis.categories]
        return layout | {"tickvals": list(range(len(labels))), "ticktext": labels, "zeroline": False}
    layout["ticksuffix"] = SUFFIXES.get(axis.unit, "")
    if axis.unit in ("B", "ns") and not axis.log:  # one prefix for all its ticks: 0.5ms and 1ms, not 500µs
        layout |= {"tickformat": "", "exponentformat": "SI", "minexponent": 0}
    else:
        layout["tickformat"] = "~s" if axis.unit in ("B", "ns", "") else ""
    if axis.log:
        layout |= {"dtick": 1, "exponentformat": "power", "minor": {"showgrid": False}}  # powers of ten alone
        if axis.span is not None and axis.span[1] < NEAR * axis.span[0]:
            layout |= _near_ticks(*ends) | {"ticksuffix": ""}
            layout["ticktext"] = [text + SUFFIXES.get(axis.unit, "") for text in layout["ticktext"]]
    return layout


def x_layout(axis: Axis) -> dict[str, Any]:
    """The axis across, which has its title beside it; that of the other is in the chart's heading."""
    return axis_layout(axis) | {"title": {"text": html.escape(axis_title(axis, ARROWS_ACROSS))}}


def parallel_axis(axis: Axis, values: Sequence[float]) -> dict[str, Any]:
    """One axis of parallel coordinates: the better end is told in its name. Its ticks have no unit, so times
    are in ms and sizes in what the largest reaches: 4.2m would have to be put together with the title's s."""
    unit, factor = {"ns": ("ms", 1e-6)}.get(axis.unit, (axis.unit, 1.0))
    if axis.unit == "B":
        divisor, suffix = format_bytes.unit(max(values, default=0.0))
        unit, factor = suffix.strip(), 1 / divisor
    named = axis if axis.unit not in SUFFIXES else replace(axis, title=f"{axis.title}, {unit}", unit="ns")
    title, *better = axis_title(named, ARROWS_UP).split(" · ")
    made: dict[str, Any] = {
        "label": "<br>".join([title, *better]) if better else re.sub(r"(?<!,) ", "<br>", title, count=1),
        "values": [value * factor for value in values],
    }
    if axis.span:
        made["range"] = list(axis.span)
    if axis.categories:
        made |= {"tickvals": list(range(len(axis.categories))), "ticktext": list(axis.categories)}
        made["range"] = [-0.2, len(axis.categories) - 0.8]
    return made


def _near_ticks(low: float, high: float) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 of each decade, written out: plotly has units at powers of ten alone."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [(step, decade) for decade in decades for step in (1, 2, 5)]
    return {
        "tickvals": [step * 10.0**decade for step, decade in ticks],
        "ticktext": [_prefixed(step, decade) for step, decade in ticks],
    }


def _prefixed(step: int, decade: int) -> str:
    """``200µ`` of 2 and -4."""
    power = min(max(3 * (decade // 3), -9), 9)
    return f"{step * 10.0 ** (decade - power):g}{PREFIXES[power]}"
