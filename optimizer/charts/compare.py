"""One metric of chosen configurations, row by row."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from optimizer.analysis.comparison import PAIRED, compare
from optimizer.analysis.labels import engine_label
from optimizer.analysis.measures import Measure
from optimizer.analysis.metrics import metric
from optimizer.analysis.summary import Measured, Summary, label_of, quality, summarise
from optimizer.charts.axes import from_zero, padded, rows_axis
from optimizer.charts.points import bits_role, brief, hollow, point_of, wrapped
from optimizer.charts.spec import Axis, Lines, Series
from optimizer.formats import capital


def compare_info(
    results: Iterable[Measured], name: str = "accuracy", against: Measured | None = None
) -> Lines:
    """One metric of chosen configurations, one row each, with its interval.

    With ``against``, what is relative to the uncompressed model (accuracy lost, latency ratio) is relative to
    that result instead; rows that can't be compared with it stay empty. Raises InputError for an unknown
    metric.
    """
    summaries = [summarise(result) for result in results]
    name = quality(name, summaries)
    measured, called = metric(name), label_of(name, summaries)
    reference = summarise(against) if against and name in ("drop", "latency_ratio") else None
    names = brief([(_label(one, summaries, name, False), _label(one, summaries, name)) for one in summaries])
    points = [
        (
            summary.recipe.quantize.bits,
            replace(point, x=point.y, y=row, x_low=point.low, x_high=point.high, low=None, high=None),
        )
        for row, summary in enumerate(summaries)
        if (point := point_of(summary, row, _measure(summary, name, reference), timed=measured.timed))
    ]
    title = capital(called)
    if reference:
        title += " against the reference"
    x = Axis(called, measured.unit, measured.direction)
    y = rows_axis(wrapped(name, 30) for name in names)
    if not points:
        return Lines(title, x, y, empty=_why_empty(summaries, reference))
    values = [end for _, point in points for end in (point.x, point.x_low, point.x_high) if end is not None]
    if measured.unit in ("%", "points", "dB"):
        x = replace(x, span=padded(min(values), max(values)))
    else:
        x = replace(x, title=f"{called}, from 0", span=from_zero(max(values)))
    series = tuple(
        Series(f"{width:g} bits", bits_role(width), chosen, line="none", legend=False)
        for width in sorted({bits for bits, _ in points})
        if (chosen := tuple(point for bits, point in points if bits == width))
    )
    intervals = any(point.x_low is not None for _, point in points)
    notes = ["with 95 % intervals"] * intervals + hollow(point for _, point in points)
    if reference:
        notes.insert(0, f"reference: {_label(reference, summaries, name, details=False)}")
        missing = len(summaries) - len(points)
        notes += [f"{missing} can't be compared"] * bool(missing)
    return Lines(title, x, y, series, note=" · ".join(notes))


def _why_empty(summaries: Sequence[Summary], reference: Summary | None) -> str:
    """What a chart without a point says."""
    if not summaries:
        return "Pin configurations to compare them here."
    if reference:
        return "None of these can be compared with the reference.<br>Choose another one."
    return "None of these has this figure.<br>Choose another metric."


def _measure(summary: Summary, name: str, reference: Summary | None) -> Measure:
    if reference is None:
        return summary.measures[name]
    compared = compare(summary, reference)
    if name == "latency_ratio":
        return compared.ratio
    drop = compared.drop
    if drop and summary.key == reference.key:  # which differs from itself on no other images either
        return Measure(0.0, 0.0, 0.0, 0.0)
    return Measure(drop.points, drop.low, drop.high, 0.0) if drop else Measure(None)


def _label(summary: Summary, others: Sequence[Summary], name: str, details: bool = True) -> str:
    """The recipe, and model, engine, threads and batch where these differ; and beside accuracy, what is
    agreement."""
    parts = [summary.recipe.describe(details)]
    if len({other.request.model for other in others}) > 1:
        parts.insert(0, summary.request.model)
    if len({other.request.engine for other in others}) > 1:
        parts.append(engine_label(summary.request.engine))
    if len({other.served for other in others}) > 1:
        parts.append(summary.served)
    if name in PAIRED and (own := label_of(name, [summary])) != label_of(name, others):
        parts.append(own)
    return " · ".join(parts)
