"""What accuracy is paid for a cost: the Pareto frontier, or those of two sweeps."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from optimizer.analysis.comparison import PAIRED, baselines_of
from optimizer.analysis.frontier import Frontier, chances, frontier_of, values_of
from optimizer.analysis.metrics import metric
from optimizer.analysis.summary import Measured, Summary, label_of, quality, summarise
from optimizer.charts.accuracy import ONLY_EQUAL
from optimizer.charts.axes import baseline_of, extent, from_zero, padded
from optimizer.charts.points import bits_role, hollow, point_of, selected_point, shapes
from optimizer.charts.spec import NO_FIGURE, NO_RESULTS, Axis, Lines, Point, Reference, Series
from optimizer.formats import format_share

MAX_DROP_POINTS = 15.0
NAME_WIDE, NAME_HIGH = 0.2, 0.2
"""What the name of the baseline takes of a small chart's axes."""
LIKELY = 0.5
"""A point that is on the frontier less often, when images and rounds are drawn anew, is drawn small."""
NOT_RANKED = "Nothing can be ranked: every latency is noisy.<br>Measure again when the machine is quiet."
SWEEP_COLOURS = ("bits 8", "baseline")
"""Roles, of a sweep and of the one that it is compared with."""


def frontier_info(
    results: Iterable[Measured],
    selected: str | None = None,
    cost: str = "compressed_size",
    loss: str = "drop",
) -> Lines:
    """What accuracy is paid for a ``cost``: the Pareto-optimal results joined, the dominated ones faint.

    What several uncompressed models lost can't be ranked: of several engines, accuracy on labels stands in
    for what was lost of it. Where a metric still is against the uncompressed model, each has a line of its
    own. Raises InputError for a metric that does not exist.
    """
    summaries = [summarise(result) for result in results]
    loss = _rankable(loss, summaries)
    title, x, y = _frame(summaries, cost, loss)
    points: list[Point] = []
    optimal: set[str] = set()
    level: set[str] = set()
    found = frontier_of(summaries, (cost, loss))
    likely = chances(summaries, (cost, loss))
    rows = zip(summaries, found.optimal, found.tied, likely, strict=True)
    for summary, on_frontier, tied, chance in rows:
        if point := _priced(summary, cost, loss):
            often = f"<br>on the frontier in {format_share(chance)} of resamples"
            hover = point.hover + often if on_frontier or tied else point.hover
            points.append(replace(point, hover=hover))
            optimal |= {summary.key} if on_frontier else set()
            level |= {summary.key} if tied or (on_frontier and chance < LIKELY) else set()
    if not points:
        return Lines(title, x, y, empty=_why_empty(summaries, cost, loss))
    baseline = baseline_of(summaries, selected, loss)
    near = _near(points, summaries, loss, selected)
    across, up = _spans(near or points, baseline)
    best = sorted((point for point in points if point.key in optimal), key=lambda point: (point.x, point.y))
    bits = {summary.key: summary.recipe.quantize.bits for summary in summaries}
    even = tuple(point for point in points if point.key in level)
    noisy = tuple(point for point in points if point.noisy)
    dominated = tuple(point for point in points if point.key not in optimal | level)
    equal = _equal(summaries, loss)
    far = len(points) - len(near) if near else 0

    def by_width(chosen: Sequence[Point], ending: str = "", **look: bool) -> Iterator[Series]:
        for width in sorted(set(bits.values()), reverse=True):
            if its := tuple(point for point in chosen if bits[point.key] == width):
                yield Series(f"{width:g} bits{ending}", bits_role(width), its, line="none", **look)

    return Lines(
        title,
        replace(x, span=across),
        replace(y, span=up),
        (
            Series("dominated", "faint", dominated, line="none", small=True, legend=False),
            *by_width(even, ", tied", small=True, legend=False),
            *_steps("frontier", "baseline", best, summaries, found, cost),
            *by_width([point for point in best if point.key not in level]),
        ),
        _placed(baseline, near or points, across, up) if baseline else None,
        selected_point(points, selected),
        note=" · ".join(
            ["faint: beaten"] * (len(dominated) > len(noisy))
            + ["small: uncertain"] * bool(even)
            + hollow(points)
            + ["noisy: not ranked"] * bool(noisy)
            + [f"{equal} equal the uncompressed network, at no SQNR"] * bool(equal)
            + [f"{far} lost more than {MAX_DROP_POINTS:.0f} points"] * bool(far)
        ),
        shapes=shapes(points),
    )


def frontiers_info(
    sweeps: Mapping[str, Sequence[Measured]],
    selected: str | None = None,
    cost: str = "compressed_size",
) -> Lines:
    """The frontiers of two sweeps, by name, in one chart, as :func:`frontier_info` draws each; of each the
    Pareto-optimal results alone. Raises InputError for a metric that does not exist."""
    named = {name: [summarise(one) for one in results] for name, results in sweeps.items()}
    summaries = list({one.key: one for some in named.values() for one in some}.values())
    loss = _rankable("drop", summaries)
    title, x, y = _frame(summaries, cost, loss)
    points: list[Point] = []
    series: list[Series] = []
    for (name, some), colour in zip(named.items(), SWEEP_COLOURS, strict=True):
        found = frontier_of(some, (cost, loss))
        priced = [_priced(one, cost, loss) for one, on in zip(some, found.optimal, strict=True) if on]
        best = sorted((one for one in priced if one), key=lambda point: (point.x, point.y))
        points += best
        series += [
            *_steps(name, colour, best, some, found, cost),
            Series(name, colour, tuple(best), line="none"),
        ]
    if not points:
        return Lines(title, x, y, empty=_why_empty(summaries, cost, loss))
    baseline = baseline_of(summaries, selected, loss)
    near = _near(points, summaries, loss, selected)
    across, up = _spans(near or points, baseline)
    return Lines(
        title,
        replace(x, span=across),
        replace(y, span=up),
        tuple(reversed(series)),  # the first on top
        _placed(baseline, near or points, across, up) if baseline else None,
        selected_point(points, selected),
        note=" · ".join(["of each sweep what is on its own frontier", *hollow(points)]),
        shapes=shapes(points),
    )


def _rankable(loss: str, summaries: Sequence[Summary]) -> str:
    """The metric that stands for ``loss`` where several uncompressed models lost."""
    labelled = all(summary.reference == "labels" for summary in summaries)  # else each agrees with its own
    if loss == "drop" and labelled and len({*baselines_of(summaries)}) > 1:
        loss = "accuracy"
    return quality(loss, summaries)


def _frame(summaries: Sequence[Summary], cost: str, loss: str) -> tuple[str, Axis, Axis]:
    """The title and both axes."""
    paid, lost, called = metric(cost), metric(loss), label_of(loss, summaries)
    x = Axis(f"{paid.label}, from 0", paid.unit, paid.direction)
    return f"Frontier: {called} against {paid.label}", x, Axis(called, lost.unit, lost.direction)


def _priced(summary: Summary, cost: str, loss: str) -> Point | None:
    """A result at its cost, with the intervals of both."""
    price = summary.measures[cost]
    across = math.nan if price.value is None else price.value
    point = point_of(summary, across, summary.measures[loss], timed=metric(cost).timed)
    return point and replace(point, x_low=price.low, x_high=price.high)


def _near(
    points: Sequence[Point], summaries: Sequence[Summary], loss: str, selected: str | None
) -> list[Point]:
    """Without collapsed models, which would squeeze all the others."""
    lost_points = {summary.key: summary.drop.points if loss in PAIRED else 0.0 for summary in summaries}
    return [point for point in points if lost_points[point.key] <= MAX_DROP_POINTS or point.key == selected]


def _spans(
    points: Sequence[Point], baseline: Reference | None
) -> tuple[tuple[float, float], tuple[float, float]]:
    """What the axes show."""
    highest = max(end for point in points for end in (point.x, point.x_high) if end is not None)
    across = from_zero(highest if highest > 0 else 1.0)  # all may cost 0
    return across, padded(*extent(points, baseline), 0.14)


def _steps(
    name: str, colour: str, best: Sequence[Point], summaries: Sequence[Summary], found: Frontier, cost: str
) -> Iterator[Series]:
    """A line for each group that is ranked by itself, through its ``best`` points; times of another machine
    are on none."""
    elsewhere = {summary.key for summary in summaries if metric(cost).timed and summary.other_machine}
    group = {summary.key: one for summary, one in zip(summaries, found.group.tolist(), strict=True)}
    joined = [replace(point, hover="") for point in best if point.key not in elsewhere]
    for one in sorted({group[point.key] for point in joined}):
        line = tuple(point for point in joined if group[point.key] == one)
        yield Series(name, colour, line, line="steps", markers=False, legend=False)


def _equal(summaries: Sequence[Summary], loss: str) -> int:
    """How many lost nothing that has a place on the axis: their outputs equal the uncompressed network's."""
    return sum(math.isinf(value) for value in values_of(summaries, loss))


def _why_empty(summaries: Sequence[Summary], cost: str, loss: str) -> str:
    """What a chart without a point says."""
    if _equal(summaries, loss):
        return ONLY_EQUAL
    noisy = metric(cost).timed and bool(summaries) and all(summary.noise for summary in summaries)
    return NOT_RANKED if noisy else NO_FIGURE if summaries else NO_RESULTS


def _placed(
    baseline: Reference, points: Sequence[Point], across: tuple[float, float], up: tuple[float, float]
) -> Reference:
    """The baseline with its name on the left, since at the right lies what is hardly compressed; where points
    would lie under it, in the widest gap between them."""
    left, right = across
    beside = NAME_HIGH * (up[1] - up[0])
    under = sorted(point.x for point in points if abs(point.y - baseline.y) < beside)
    if not under or under[0] - left > NAME_WIDE * (right - left):
        return replace(baseline, end="left")
    low, high = max(pairwise((left, *under, right)), key=lambda gap: gap[1] - gap[0])
    return replace(baseline, at=(low + high) / 2)
