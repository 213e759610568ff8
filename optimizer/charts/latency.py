"""Latency against sparsity."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, Literal

from optimizer.analysis.badges import BadgeKind
from optimizer.analysis.labels import engine_label
from optimizer.analysis.realisation import Realisation, ran
from optimizer.analysis.summary import Measured, Summary, summarise
from optimizer.charts.axes import baseline_of, extent, from_zero
from optimizer.charts.lines import Placed, group
from optimizer.charts.points import hollow, point_of, selected_point
from optimizer.charts.spec import NO_FIGURE, Axis, Lines, Point, Series
from optimizer.charts.theme import MARKERS
from optimizer.formats import count


def latency_info(
    results: Iterable[Measured],
    selected: str | None = None,
    cursor: float | None = None,
    engine: str = "",
) -> Lines:
    """Latency against sparsity, one line a realisation: what the kernels really did.

    It is the ratio to the baseline of the same rounds. Results of another machine are lines of their own,
    with crosses; so are other threads or another batch. With ``engine`` there is one line a realisation, of
    that engine where it has any, else of the one with most results; other engines recede. Without, each
    engine has its own, and those of the first are solid.
    """
    summaries = [summarise(result) for result in results]
    x = Axis("weights removed", "%", span=(-3, 100))
    y = Axis("time ÷ uncompressed, from 0", "×", "lower")
    if not summaries:
        return Lines("Latency against sparsity", x, y, cursor=cursor)
    engines = sorted(
        {summary.request.engine for summary in summaries}, key=lambda name: (name != engine, name)
    )
    shown = _one_engine_each(summaries, engine)
    conditions = sorted({_conditions(summary) for summary in summaries if not summary.other_machine})
    others = sorted({summary.environment_key for summary in summaries if summary.other_machine})
    placed = [
        Placed(
            *_realisation_series(summary, engines, engine, conditions, others),
            point,
            not engine or shown[_kind(summary)] == summary.request.engine,
        )
        for summary in summaries
        if (point := point_of(summary, summary.pruned_percent, summary.measures["latency_ratio"], timed=True))
    ]
    if not placed:
        return Lines("Latency against sparsity", x, y, cursor=cursor, empty=NO_FIGURE)
    points = [item.point for item in placed]
    baseline = baseline_of(summaries, selected, "latency_ratio")
    series = group(placed, selected, "others")
    span = from_zero(extent(_near_the_calm(points, selected), baseline)[1])
    above = sum(point.y > span[1] for line in series for point in line.points)
    dashed = bool(engine) and any(line.line == "dash" for line in series)
    return Lines(
        "Latency against sparsity",
        x,
        replace(y, span=span),
        series,
        baseline,
        selected_point(points, selected),
        None if selected in {point.key for point in points} else cursor,
        note=" · ".join(
            hollow(points)
            + ["dashed: another engine"] * dashed
            + [f"{count(above, 'noisy point')} above the axis"] * bool(above)
        ),
    )


NOISY_ROOM = 1.5
"""So far above the calm points, as a factor, a noisy one still has its place on the axis."""


def _near_the_calm(points: Sequence[Point], selected: str | None) -> list[Point]:
    """The points that decide how far the axis goes: calm ones, noisy ones near them with their intervals as
    far as there is room, and the selected one. A disturbed one would squeeze all the others."""
    bare = [replace(point, low=None, high=None) if point.noisy else point for point in points]
    usual = median(point.y for point in points)
    calm = [point for point in bare if not point.noisy] or [point for point in bare if point.y <= usual]
    top = NOISY_ROOM * extent(calm, None)[1]
    return [
        replace(point, high=min(whole.high, max(top, point.y))) if point.noisy and whole.high else point
        for point, whole in zip(bare, points, strict=True)
        if not point.noisy or point.y <= top or point.key == selected
    ]


def _kind(summary: Summary) -> tuple[Realisation, str]:
    return summary.realisation, summary.environment_key


def _conditions(summary: Summary) -> tuple[int, int]:
    return summary.threads, summary.batch


def _one_engine_each(summaries: Sequence[Summary], engine: str) -> dict[tuple[Realisation, str], str]:
    """For each realisation on each machine the engine whose line it is."""
    counted = Counter((_kind(summary), summary.request.engine) for summary in summaries)
    ranked = sorted(counted, key=lambda one: (one[1] == engine, counted[one]))
    return dict(ranked)  # the last one stays


def _realisation_series(
    summary: Summary,
    engines: Sequence[str],
    chosen: str,
    conditions: Sequence[tuple[int, int]],
    others: Sequence[str],
) -> tuple[Any, Series]:
    """Its name, with what else tells on the clock, the engine where each has its own lines, threads and batch
    where they are not the only ``conditions`` here, and the machine where it is another: its number, where
    there are several ``others``. Lines of the first engine and conditions are solid; layer overrides make no
    line."""
    name, colour, recipe = ran(summary.realisation, summary.fallback), summary.realisation, summary.recipe
    snap, apart = recipe.prune.snap if recipe.prune.shrinks else 1, len(recipe.layers)
    smaller = recipe.prune.shrinks and summary.realisation is not Realisation.SHRUNK  # in int8, for instance
    if smaller:
        name += f", {Realisation.SHRUNK.label}"
    if snap > 1:
        name += f", in multiples of {snap}"
    if apart:
        name += f", {count(apart, 'layer override')}"
    label = engine_label(summary.request.engine)
    timed, engine = _conditions(summary), engines.index(summary.request.engine)
    own = (
        summary.request.engine == "sparse"
        and summary.realisation is Realisation.SPARSE
        and not summary.fallback
    )
    if len(engines) > 1 and not chosen and not own:  # the sparse kernels are an engine by themselves
        name += f", {label}"
    if [timed] != conditions:
        name += f", {summary.served}"
    if summary.other_machine:
        number = f" {others.index(summary.environment_key) + 1}" if len(others) > 1 else ""
        name, colour = f"{name}, {BadgeKind.OTHER_ENVIRONMENT.label}{number}", Realisation.UNKNOWN
    place = list(MARKERS).index(summary.realisation)
    order = (place, engine, summary.environment_key, smaller, snap, apart, timed, bool(summary.fallback))
    first = (summary.other_machine or timed == conditions[0]) and summary.request.engine == engines[0]
    line: Literal["solid", "dash", "none"] = "solid" if first else "dash"
    return order, Series(name, colour, (), line="none" if recipe.layers else line)
