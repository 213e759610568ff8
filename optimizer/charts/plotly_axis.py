"""An axis as Plotly takes it: its title, units and ticks."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.charts.spec import Axis
from optimizer.formats import format_bytes, format_large, format_ns

NEAR = 300
"""Ends of a log axis whose ratio is less have ticks between the powers of ten."""
PREFIXED = {"B": format_bytes, "ns": format_ns, "": format_large}
"""Units that take a prefix, which ticks have as text has it: 200 µs."""
ON_TICKS = ("B", "ns", "×")
"""The other units are in the title."""
ARROWS_UP = {"lower": "↓ better", "higher": "↑ better", "": ""}
ARROWS = {"lower": "↓", "higher": "↑", "": ""}
ARROWS_ACROSS = {"lower": "← better", "higher": "better →", "": ""}


def axis_title(axis: Axis, arrows: Mapping[str, str]) -> str:
    unit = f", {axis.unit}" if axis.unit and axis.unit not in ON_TICKS else ""
    return " · ".join(part for part in (f"{axis.title}{unit}", arrows[axis.better]) if part)


def axis_unit(axis: Axis) -> tuple[float, str]:
    """What its values are divided by to be drawn, and what its ticks end with: the unit that the end of the
    axis reaches, so that all ticks have one, 0.5 ms beside 1 ms. Counts have one from 10,000."""
    end = axis.span[1] if axis.span else 0.0
    return _unit(axis.unit, end if axis.unit or end >= 10_000 else 0.0)


def axis_layout(axis: Axis) -> dict[str, Any]:
    layout: dict[str, Any] = {"type": "log" if axis.log else "linear", "zeroline": not axis.log}
    divisor, suffix = axis_unit(axis)
    if axis.span:
        ends = [end / divisor for end in axis.span]
        layout["range"] = [math.log10(end) for end in ends] if axis.log else ends
    if axis.categories:
        labels = [html.escape(label).replace("\n", "<br>") for label in axis.categories]
        return layout | {"tickvals": list(range(len(labels))), "ticktext": labels, "zeroline": False}
    layout |= {"ticksuffix": suffix, "exponentformat": "none", "separatethousands": True}
    if axis.log:
        layout |= {"dtick": 1, "exponentformat": "power", "minor": {"showgrid": False}}  # powers of ten alone
        near = axis.span is not None and axis.span[1] < NEAR * axis.span[0]
        if axis.span and (near or axis.unit in PREFIXED):
            layout |= _written_ticks(axis.unit, axis.span, (1, 2, 5) if near else (1,), divisor)
    return layout


def x_layout(axis: Axis) -> dict[str, Any]:
    """The axis across, which has its title beside it; that of the other is in the chart's heading."""
    return axis_layout(axis) | {"title": {"text": html.escape(axis_title(axis, ARROWS_ACROSS))}}


def parallel_axis(axis: Axis, values: Sequence[float]) -> dict[str, Any]:
    """One axis of parallel coordinates: an arrow below its name points to the better end. Its ticks have no
    unit, so times are in ms and sizes in what the largest reaches: 4.2m would have to be put together with
    the title's s."""
    unit, factor = {"ns": ("ms", 1e-6)}.get(axis.unit, (axis.unit, 1.0))
    if axis.unit == "B":
        divisor, suffix = format_bytes.unit(max(values, default=0.0))
        unit, factor = suffix.strip(), 1 / divisor
    name, *rest = axis.title.split(" ", 1) if not axis.better else [axis.title]
    below = " ".join(filter(None, (", ".join(filter(None, (*rest, unit))), ARROWS[axis.better])))
    made: dict[str, Any] = {
        "label": "<br>".join(filter(None, (name, below))),
        "values": [value * factor for value in values],
    }
    if axis.span:
        made["range"] = list(axis.span)
    if axis.categories:
        made |= {"tickvals": list(range(len(axis.categories))), "ticktext": list(axis.categories)}
        made["range"] = [-0.2, len(axis.categories) - 0.8]
    return made


def _unit(unit: str, value: float) -> tuple[float, str]:
    if unit in PREFIXED:
        return PREFIXED[unit].unit(value)
    return 1.0, unit if unit in ON_TICKS else ""


def _written_ticks(
    unit: str, span: tuple[float, float], steps: Sequence[int], divisor: float
) -> dict[str, Any]:
    """Ticks of a log axis at these steps of each decade, each written with the unit that it reaches: plotly
    has units at powers of ten alone, and none between a number and its prefix."""
    decades = range(math.floor(math.log10(span[0])), math.ceil(math.log10(span[1])) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    units = [_unit(unit, tick) for tick in ticks]
    texts = [f"{tick / own:g}{suffix}" for tick, (own, suffix) in zip(ticks, units, strict=True)]
    return {"tickvals": [tick / divisor for tick in ticks], "ticktext": texts, "ticksuffix": ""}
