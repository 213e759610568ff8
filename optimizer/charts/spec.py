"""What a chart says, as frozen data that tests can read; :mod:`optimizer.charts.drawing` draws it.

Values are in base units (percent, bytes, nanoseconds); an axis knows how to write them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SELECTED = "this recipe"
NO_RESULTS = "Nothing measured yet.<br>Move a slider, or run a sweep, to fill this chart."
BEING_MEASURED = "Being measured…"
NO_FIGURE = "No configuration here has this figure.<br>Move a slider, to measure another one."


@dataclass(frozen=True, slots=True)
class Axis:
    """``unit`` is a metric's, empty for a count. ``span`` is in that unit; None means as far as the points
    go. ``categories`` label the positions 0, 1, 2...
    """

    title: str
    unit: str = ""
    better: Literal["lower", "higher", ""] = ""
    log: bool = False
    span: tuple[float, float] | None = None
    categories: tuple[str, ...] = ()


Corner = Literal["top left", "top right", "bottom right", "bottom left"]


@dataclass(frozen=True, slots=True)
class Point:
    """``low`` and ``high`` are the interval of ``y``, ``x_low`` and ``x_high`` that of ``x``; ``label`` is
    written beside it, at its corner ``label_at``."""

    x: float
    y: float
    key: str = ""
    low: float | None = None
    high: float | None = None
    x_low: float | None = None
    x_high: float | None = None
    hover: str = ""
    marker: str = "circle"
    simulated: bool = False
    noisy: bool = False
    label: str = ""
    label_at: Corner = "top left"


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one colour role (:mod:`optimizer.charts.theme`) and how they are joined.

    ``line``: measured values ``solid``, a fitted or predicted one ``dot``, a frontier ``steps`` (each point
    holds as far as the next on the worse side of the axis), or ``none``.
    """

    name: str
    colour: str
    points: tuple[Point, ...]
    line: Literal["solid", "dash", "dot", "steps", "none"] = "solid"
    markers: bool = True
    small: bool = False
    legend: bool = True


@dataclass(frozen=True, slots=True)
class Reference:
    """The grey dashed line of the baseline, with its name at one end; or in the middle of what is free of
    points, around ``at`` on the other axis."""

    name: str
    y: float
    end: Literal["left", "right"] = "right"
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """A dashed line across the other axis, with its name."""

    name: str
    x: float


@dataclass(frozen=True, slots=True)
class Lines:
    """A chart of points and lines.

    ``selected`` is the point under the sliders; ``cursor`` is the ``x`` where it will be, while it is not
    measured yet. ``limit`` is the ``x`` that nothing should lie beyond. ``note`` is what else has to be
    known, such as what the chart leaves out; ``shapes`` are markers and what they stand for, for the legend.
    ``empty`` says what to do when there is nothing to draw.
    """

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...] = ()
    reference: Reference | None = None
    selected: Point | None = None
    cursor: float | None = None
    limit: Limit | None = None
    selected_name: str = SELECTED
    legend_title: str = ""
    note: str = ""
    shapes: tuple[tuple[str, str], ...] = ()
    empty: str = NO_RESULTS


@dataclass(frozen=True, slots=True)
class Parallel:
    """Parallel axes, and lines that cross all of them: each of ``rows`` has a value for each of ``axes``, and
    a colour role."""

    title: str
    axes: tuple[Axis, ...]
    rows: tuple[tuple[float, ...], ...]
    colours: tuple[str, ...]
    note: str = ""
    empty: str = NO_RESULTS


@dataclass(frozen=True, slots=True)
class StackPart:
    """What the segments of one part have in common: its name in the legend, and its colour role."""

    name: str
    colour: str


@dataclass(frozen=True, slots=True)
class Segment:
    """``part`` is a key of :attr:`Stacks.parts`."""

    part: str
    value: float
    hover: str


@dataclass(frozen=True, slots=True)
class Stacks:
    """Horizontal bars that are each the sum of their segments, which come in the order of ``parts``."""

    title: str
    x: Axis
    parts: Mapping[str, StackPart]
    rows: tuple[tuple[str, tuple[Segment, ...]], ...]
    note: str = ""
    empty: str = NO_RESULTS
