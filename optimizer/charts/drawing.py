"""Draws with plotly what :mod:`optimizer.charts.spec` describes.

Figures have a transparent background, so that they sit on a page. On a Streamlit page pass ``theme=None``:
these figures bring their own look.
"""

import html
import math
from collections.abc import Sequence
from functools import cache, singledispatch
from typing import Any

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from optimizer.charts.plotly_axis import (
    ARROWS_UP,
    axis_layout,
    axis_title,
    axis_unit,
    parallel_axis,
    x_layout,
)
from optimizer.charts.spec import Axis, Lines, Parallel, Point, Series, Stacks
from optimizer.charts.theme import FONT, Theme, theme

HEIGHT = 330
MARGIN = {"l": 44, "r": 14, "t": 58, "b": 38}
MAX_LETTERS = 56
"""A heading with more is broken: in a telephone's width more would be cut off."""
LINE_PIXELS = 16
LEGEND_PIXELS = 42
"""From the axis down to the legend: tick labels and the axis title lie between."""
AROUND_LEGEND_PIXELS = 22
"""What plotly adds to a legend's rows: 10 inside it, and 12 below."""
LEGEND_WIDTH, ENTRY_PIXELS, LETTER_PIXELS, ROW_PIXELS = 420, 46, 5.6, 19
"""How wide a legend is taken to be, which only the browser knows; what each of its entries takes beside its
letters, and each of its rows."""

LABEL_PIXELS = 5
"""From the baseline to its name: points near it keep their error bars clear of the words."""
LABEL_OPACITY = 0.75
"""Of what lies behind that name: error bars that reach so far show through, and the words can be read."""
LABEL_SHARE = 0.25
"""Of a small chart's height: nearer to its lower edge a name below the baseline would cover the ticks."""

MIN_ROW_PIXELS = 40
PARALLEL_LABEL_PIXELS = 50
"""Above each of several parallel axes two lines: its name, and which end is better, or else the name alone,
broken for a telephone. A third would lie on the axis."""

_DASHES = {"solid": "solid", "dash": "dash", "dot": "dot", "steps": "solid", "none": "solid"}


@cache
def template(dark: bool) -> go.layout.Template:
    """Fonts, margins and axes of one mode; a transparent background."""
    colours = theme(dark)
    axis: dict[str, Any] = {
        "gridcolor": colours.grid,
        "linecolor": colours.grid,
        "zerolinecolor": colours.grid,
        "zerolinewidth": 1,
        "tickfont": {"size": 11, "color": colours.muted},
        "title": {"font": {"size": 12, "color": colours.muted}, "standoff": 6},
        "automargin": True,
        "ticks": "",
        "fixedrange": False,
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 12, "color": colours.text},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": MARGIN,
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {
                "bgcolor": colours.page,
                "bordercolor": colours.muted,
                "font": {"family": FONT, "size": 12, "color": colours.text},
                "align": "left",
            },
            "hovermode": "closest",
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "yanchor": "top",
                "font": {"size": 11, "color": colours.text},
                "title": {"font": {"size": 11, "color": colours.muted}},
                "bgcolor": "rgba(0,0,0,0)",
                "itemwidth": 30,
            },
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": colours.muted, "activecolor": colours.text},
        }
    )


@singledispatch
def figure(info: object, dark: bool = False, height: int | None = None) -> go.Figure:
    """The plotly figure of what an ``..._info`` function returned. Raises TypeError for anything else."""
    raise TypeError(f"{type(info).__name__} is not a chart: pass what an _info function returns")


@figure.register
def _figure_of_lines(info: Lines, dark: bool = False, height: int | None = None) -> go.Figure:
    colours = theme(dark)
    heading = " · ".join(part for part in (axis_title(info.y, ARROWS_UP), info.note) if part)
    rows = len(info.y.categories)
    layout = _layout(info.title, heading, dark, height or max(HEIGHT, 110 + rows * (row_pixels(info.y) + 4)))
    if not any(series.points for series in info.series):
        return go.Figure(layout=layout | _nothing(info.empty, colours))
    traces = [_trace(series, info, colours) for series in info.series if series.points]
    traces += [_shape(marker, name, colours) for marker, name in info.shapes]
    if info.selected:
        traces.append(_selected_trace(info.selected, info, colours))
    layout |= {"xaxis": x_layout(info.x), "yaxis": axis_layout(info.y) | {"title": None}}
    layout["legend"] = {"title": {"text": info.legend_title}, "y": _legend_y(layout)}
    names = [trace["name"] for trace in traces if trace["showlegend"]]
    layout["showlegend"] = len(names) > 1
    layout["height"] += ROW_PIXELS * (_legend_rows(names) - 1)  # else they would be taken from the plot
    layout["shapes"], layout["annotations"] = _shapes(info, colours)
    return go.Figure(traces, layout)


@figure.register
def _figure_of_stacks(info: Stacks, dark: bool = False, height: int | None = None) -> go.Figure:
    colours = theme(dark)
    layout = _layout(info.title, info.note, dark, height or 150 + 48 * len(info.rows))
    if not info.rows:
        return go.Figure(layout=layout | _nothing(info.empty, colours))
    (divisor, _), places = axis_unit(info.x), list(range(len(info.rows)))
    traces = []
    for part, style in info.parts.items():
        found = [next((one for one in segments if one.part == part), None) for _, segments in info.rows]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": html.escape(style.name),
                "y": places,
                "x": [one.value / divisor if one else 0 for one in found],
                "marker": {
                    "color": colours.colours[style.colour],
                    "line": {"color": colours.page, "width": 1},
                },
                "hoverinfo": "text",
                "hovertext": [one.hover if one else "" for one in found],
            }
        )
    layout["height"] += ROW_PIXELS * (_legend_rows([style.name for style in info.parts.values()]) - 1)
    layout |= {
        "barmode": "stack",
        "bargap": 0.35,
        "legend": {"traceorder": "normal", "y": _legend_y(layout)},
        "xaxis": x_layout(info.x),
        "yaxis": {
            "tickvals": places,
            "ticktext": [html.escape(name).replace("\n", "<br>") for name, _ in info.rows],
            "range": [len(places) - 0.5, -0.5],
            "showgrid": False,
        },
    }
    return go.Figure(traces, layout)


@figure.register
def _figure_of_parallel(info: Parallel, dark: bool = False, height: int | None = None) -> go.Figure:
    colours = theme(dark)
    layout = _layout(info.title, info.note, dark, height or HEIGHT)
    layout["margin"] |= {"l": 60, "r": 60, "t": layout["margin"]["t"] + PARALLEL_LABEL_PIXELS, "b": 24}
    if not info.rows:
        return go.Figure(layout=layout | _nothing(info.empty, colours))
    roles = sorted({*info.colours})
    shades = [colours.colours[role] for role in roles]
    ends = [(place / len(shades), (place + 1) / len(shades)) for place in range(len(shades))]
    scale = [(end, shade) for pair, shade in zip(ends, shades, strict=True) for end in pair]
    trace = {
        "type": "parcoords",
        "dimensions": [
            parallel_axis(axis, values)
            for axis, values in zip(info.axes, zip(*info.rows, strict=True), strict=True)
        ],
        "line": {
            "color": [roles.index(role) + 0.5 for role in info.colours],
            "colorscale": scale,
            "cmin": 0,
            "cmax": len(roles),
        },
        "unselected": {"line": {"color": colours.grid, "opacity": 1}},
        "labelfont": {"size": 12, "color": colours.text},
        "tickfont": {"size": 11, "color": colours.muted},
        "rangefont": {"size": 1, "color": "rgba(0,0,0,0)"},  # the ends stand on the axis as ticks
    }
    return go.Figure([trace], layout)


def align(figures: Sequence[go.Figure]) -> None:
    """Give figures that stand side by side one height, and their plots one level: above and below each as
    much room as the one takes that has most lines in its heading or rows in its legend."""
    height = max(one.layout.height for one in figures)
    top = max(one.layout.margin.t for one in figures)
    rows = max(_legend_rows(names) if (names := _named(one)) else 0 for one in figures)
    bottom = LEGEND_PIXELS + AROUND_LEGEND_PIXELS + ROW_PIXELS * rows if rows else MARGIN["b"]
    for one in figures:
        one.update_layout(height=height, margin={"t": top, "b": bottom})
        one.update_layout(legend_y=-LEGEND_PIXELS / max(LEGEND_PIXELS, height - top - bottom))


def _named(of: go.Figure) -> list[str]:
    """The entries of its legend, where it has one."""
    names = [trace.name for trace in of.data if trace.showlegend is not False]
    return [] if of.layout.showlegend is False or len(names) < 2 else names


def row_pixels(axis: Axis) -> int:
    """How high a row must be for the names of two not to touch."""
    return max([MIN_ROW_PIXELS, *(LINE_PIXELS * (name.count("\n") + 1) for name in axis.categories)])


def _broken(heading: str) -> list[str]:
    """A heading in as many lines as it takes, broken between its parts."""
    lines = [""]
    for part in heading.split(" · "):
        longer = " · ".join(filter(None, (lines[-1], part)))
        if len(longer) <= MAX_LETTERS or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _layout(title: str, heading: str, dark: bool, height: int) -> dict[str, Any]:
    lines = _broken(heading)
    small = "<br>".join(map(html.escape, lines))
    return {
        "template": template(dark),
        "height": height,
        "margin": MARGIN | {"t": MARGIN["t"] + LINE_PIXELS * (len(lines) - 1)},
        "title": {
            "text": f"<b>{html.escape(title)}</b><br>"
            f'<span style="font-size:12px;color:{theme(dark).muted}">{small}</span>',
            "font": {"size": 14},
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"l": 6, "t": 20},
        },
    }


def _legend_y(layout: dict[str, Any]) -> float:
    """Below tick labels and title of the axis, as a share of the plot's height."""
    plot: int = layout["height"] - layout["margin"]["t"] - MARGIN["b"] - LEGEND_PIXELS
    return -LEGEND_PIXELS / max(LEGEND_PIXELS, plot)


def _legend_rows(names: Sequence[str]) -> int:
    """Of one that wraps, plotly makes columns as wide as its longest entry."""
    widths = [ENTRY_PIXELS + LETTER_PIXELS * len(html.unescape(name)) for name in names]
    if sum(widths) <= LEGEND_WIDTH:
        return 1
    return math.ceil(len(names) / max(1, int(LEGEND_WIDTH / max(widths))))


def _nothing(words: str, colours: Theme) -> dict[str, Any]:
    """An empty chart says what to do."""
    return {
        "xaxis": {"visible": False},
        "yaxis": {"visible": False},
        "annotations": [
            {
                "text": words,
                "showarrow": False,
                "xref": "paper",
                "yref": "paper",
                "x": 0.5,
                "y": 0.5,
                "font": {"size": 13, "color": colours.muted},
            }
        ],
    }


def _trace(series: Series, info: Lines, colours: Theme) -> dict[str, Any]:
    colour = colours.colours[series.colour]
    points = series.points
    labels = any(point.label for point in points)
    shown = (("lines", series.line != "none"), ("markers", series.markers), ("text", labels))
    modes = [mode for mode, on in shown if on]
    size = 5 if series.small else 8
    trace = _coordinates(points, info) | {
        "name": html.escape(series.name),
        "mode": "+".join(modes),
        "showlegend": series.legend,
        "line": {
            "color": colour,
            "width": 2 if series.markers else 1.6,
            "dash": _DASHES[series.line],
            "shape": ("vh" if info.x.better == "higher" else "hv") if series.line == "steps" else "linear",
        },
    }
    if labels:
        trace |= {
            "text": [html.escape(point.label) for point in points],
            "textposition": [point.label_at for point in points],
            "textfont": {"size": 11, "color": colour},
        }
    if labels or series.markers:
        trace["cliponaxis"] = False  # half a marker would be gone at an end of the axis
    if series.markers:
        trace["marker"] = {
            "symbol": [point.marker for point in points],
            "size": size,
            "color": [colours.page if point.simulated else colour for point in points],
            "line": {"color": colour, "width": 1 if series.small else 1.8},
            "opacity": [0.45 if point.noisy else 1 for point in points],
        }
    return trace | _errors(points, info, colour)


def _shape(marker: str, name: str, colours: Theme) -> dict[str, Any]:
    """What a marker stands for, in the legend alone."""
    return {
        "type": "scatter",
        "x": [None],
        "y": [None],
        "name": html.escape(name),
        "mode": "markers",
        "marker": {"symbol": marker, "size": 8, "color": colours.muted},
        "hoverinfo": "skip",
        "showlegend": True,
    }


def _selected_trace(point: Point, info: Lines, colours: Theme) -> dict[str, Any]:
    accent = colours.colours["accent"]
    marker = {
        "symbol": point.marker,
        "size": 13,
        "color": colours.page if point.simulated else accent,
        "line": {
            "color": accent if point.simulated else colours.page,
            "width": 3 if point.simulated else 1.5,
        },
    }
    return (
        _coordinates((point,), info)
        | {"name": html.escape(info.selected_name), "mode": "markers", "showlegend": True, "marker": marker}
        | {"cliponaxis": False}
        | _errors((point,), info, accent)
    )


def _coordinates(points: Sequence[Point], info: Lines) -> dict[str, Any]:
    (across, _), (up, _) = axis_unit(info.x), axis_unit(info.y)
    trace: dict[str, Any] = {
        "type": "scatter",
        "x": [point.x / across for point in points],
        "y": [point.y / up for point in points],
        "hoverinfo": "text" if any(point.hover for point in points) else "skip",
        "hovertext": [point.hover for point in points],
    }
    if any(point.key for point in points):
        trace["customdata"] = [point.key for point in points]
    return trace


def _errors(points: Sequence[Point], info: Lines, colour: str) -> dict[str, Any]:
    bars: dict[str, Any] = {}
    for name, axis, ends in (
        ("error_y", info.y, [(point.y, point.low, point.high) for point in points]),
        ("error_x", info.x, [(point.x, point.x_low, point.x_high) for point in points]),
    ):
        if any(low is not None and high is not None for _, low, high in ends):
            divisor, _ = axis_unit(axis)
            bars[name] = {
                "type": "data",
                "symmetric": False,
                "array": [((value if high is None else high) - value) / divisor for value, _, high in ends],
                "arrayminus": [(value - (value if low is None else low)) / divisor for value, low, _ in ends],
                "color": colour,
                "thickness": 1.2,
                "width": 2.5,
            }
    return bars


def _shapes(info: Lines, colours: Theme) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Shapes and annotations: the baseline, the place of a point not measured yet, and the note."""
    shapes: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    small = {"showarrow": False, "font": {"size": 11, "color": colours.muted}}
    if info.reference:
        low = _is_low(info.reference.y, info.y, LABEL_SHARE)
        y = info.reference.y / axis_unit(info.y)[0]
        place: dict[str, Any] = {"xref": "paper", "x": 0 if info.reference.end == "left" else 1}
        place["xanchor"] = info.reference.end
        if info.reference.at is not None:
            at = info.reference.at / axis_unit(info.x)[0]
            place = {"x": math.log10(at) if info.x.log else at, "xanchor": "center"}
        line = {"color": colours.colours["baseline"], "width": 1.5, "dash": "dash"}
        across = {"xref": "paper", "x0": 0, "x1": 1, "layer": "below"}
        shapes.append({"type": "line", "y0": y, "y1": y, "line": line} | across)
        annotations.append(
            small
            | place
            | {
                "text": html.escape(info.reference.name),
                "bgcolor": f"rgba{(*hex_to_rgb(colours.page), LABEL_OPACITY)}",
                "borderpad": 0,
                "y": math.log10(y) if info.y.log else y,
                "yanchor": "top" if low else "bottom",
                "yshift": -LABEL_PIXELS if low else LABEL_PIXELS,
            }
        )
    if info.cursor is not None:
        cursor = info.cursor / axis_unit(info.x)[0]
        accent = colours.colours["accent"]
        shapes.append(
            {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": cursor, "x1": cursor}
            | {"line": {"color": accent, "width": 1.5, "dash": "dot"}}
        )
    if info.limit:
        x = info.limit.x / axis_unit(info.x)[0]
        line = {"color": colours.text, "width": 1.5, "dash": "dash"}
        shapes.append({"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x, "line": line})
        early = _is_low(info.limit.x, info.x)
        annotations.append(
            small
            | {
                "text": html.escape(info.limit.name),
                "x": math.log10(x) if info.x.log else x,
                "xanchor": "left" if early else "right",
                "xshift": LABEL_PIXELS if early else -LABEL_PIXELS,
                "yref": "paper",
                "y": 1,
                "yanchor": "top",
            }
        )
    return shapes, annotations


def _is_low(value: float, axis: Axis, least: float = 0.0) -> bool:
    """Whether ``value`` lies in the lower half of the axis, where a label has its place below the line; not
    below the share ``least`` of it, where there is no room."""
    if axis.span is None:
        return False
    low, value, high = (math.log(v) if axis.log else v for v in (axis.span[0], value, axis.span[1]))
    return least <= (value - low) / (high - low) < 0.5
