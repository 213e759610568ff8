"""What results say, side by side: a table of figures, and one that people read."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from optimizer.analysis.comparison import Comparison, compare
from optimizer.analysis.frontier import chances, frontier_of
from optimizer.analysis.labels import Labelled, engine_label
from optimizer.analysis.metrics import METRICS, metric
from optimizer.analysis.summary import Measured, Summary, summarise
from optimizer.formats import MISSING
from optimizer.records import Settings
from optimizer.system.environment import threads_available

if TYPE_CHECKING:
    import pandas as pd


def timed_alike(summaries: Iterable[Summary], settings: Settings) -> list[Summary]:
    """Those timed with as many threads (every core is that on each machine) and the same batch: the times of
    others don't belong on one line with them."""
    threads = settings.threads or threads_available()
    return [
        one
        for one in summaries
        if one.batch == settings.batch
        and (one.request.settings.threads == settings.threads or one.threads == threads)
    ]


# One row a result


def frame(
    results: Iterable[Measured], frontier: Sequence[str] | None = None, against: Measured | None = None
) -> "pd.DataFrame":
    """One row a result, in their order; no rounding. Missing figures are NaN.

    Columns: ``key``, the request in parts, then for each metric its column (``accuracy_percent``,
    ``file_bytes``, ``latency_ns``...) and where it has an interval ``..._low`` and ``..._high``, and last how
    it was measured. ``frontier`` marks the Pareto-optimal rows over the metrics of that name (by default
    :func:`optimizer.analysis.frontier.ranked_by`) and ``frontier_tied`` those that nothing on it beats
    measurably (:func:`frontier_of`); ``frontier_chance`` is how often each is Pareto-optimal when images and
    rounds are drawn anew. ``badges`` are values of :class:`optimizer.analysis.badges.BadgeKind`, which stay,
    and not the labels that people read. With ``against``, the columns of :data:`AGAINST` compare each with
    that result. Raises InputError for an unknown metric.
    """
    import pandas as pd

    summaries = [summarise(result) for result in results]
    rows = [{name: of(summary) for name, of in COLUMNS.items()} for summary in summaries]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    for column in (*_MAY_LACK, *_FIGURES):  # of all missing: a column without a type
        table[column] = pd.to_numeric(table[column])
    found = frontier_of(summaries, frontier)
    table["frontier"], table["frontier_tied"] = found.optimal, found.tied
    table["frontier_chance"] = chances(summaries, frontier)
    if against:
        reference = summarise(against)
        compared = [_against(compare(summary, reference), reference) for summary in summaries]
        table = table.join(pd.DataFrame(compared, columns=list(AGAINST), index=table.index))
    return table


AGAINST = (
    "against", "against_lost_points", "against_lost_points_low", "against_lost_points_high",
    "against_p_value", "against_accuracy_verdict", "against_latency_ratio", "against_latency_ratio_low",
    "against_latency_ratio_high", "against_latency_verdict", "against_missing",
)  # fmt: skip
"""Columns of :func:`frame` that compare with another result: its key, points lost on the same images, and
the ratio of the two latency ratios, which come from independent runs."""


def _against(compared: Comparison, reference: Summary) -> tuple[object, ...]:
    drop, ratio = compared.drop, compared.ratio
    lost = (drop.points, drop.low, drop.high, drop.p, str(drop.verdict)) if drop else (math.nan,) * 4 + ("",)
    times = (math.nan if end is None else end for end in (ratio.value, ratio.low, ratio.high))
    return (reference.key, *lost, *times, compared.time_verdict or "", "; ".join(compared.missing))


_INTERVALS = (
    *("accuracy", "balanced_accuracy", "drop"),
    *("latency", "latency_ratio", "throughput", "agreement", "sqnr", "kl"),
)
Of = Callable[[Summary], object]


def _figure(name: str, end: str) -> Of:
    return lambda one: getattr(one.measures[name], end)


_FIGURES = {
    f"{METRICS[name].column}{ending}": _figure(name, end)
    for name in METRICS
    for ending, end in (("", "value"), ("_low", "low"), ("_high", "high"))
    if not ending or name in _INTERVALS
}
COLUMNS: dict[str, Of] = {
    "key": lambda one: one.key,
    "model": lambda one: one.request.model,
    "engine": lambda one: one.request.engine,
    "images": lambda one: one.images,
    "recipe": lambda one: one.description,
    "pruning": lambda one: one.recipe.prune.method,
    "sparsity": lambda one: one.recipe.prune.share if one.recipe.prune.threshold is None else None,
    "threshold": lambda one: one.recipe.prune.threshold,
    "allocation": lambda one: one.recipe.prune.allocation,
    "pattern": lambda one: one.recipe.prune.pattern,
    "snap": lambda one: one.recipe.prune.snap,
    "match": lambda one: one.recipe.prune.match,
    "effort_seconds": lambda one: one.recipe.effort_seconds,
    "finetune_steps": lambda one: one.recipe.finetune_steps,
    "rounding": lambda one: one.recipe.quantize.method,
    "weight_bits": lambda one: one.recipe.quantize.weight_bits,
    "average_bits": lambda one: one.recipe.quantize.average_bits,
    "activation_bits": lambda one: one.recipe.quantize.activation_bits,
    "granularity": lambda one: one.recipe.quantize.granularity,
    "symmetric": lambda one: one.recipe.quantize.symmetric,
    "range": lambda one: one.recipe.quantize.range,
    "equalise": lambda one: one.recipe.quantize.equalise,
    "precision": lambda one: one.recipe.quantize.precision,
    "overrides": lambda one: len(one.recipe.layers),
    "pruned_percent": lambda one: one.pruned_percent,
    "zeros_percent": lambda one: one.zeros_percent,
    **_FIGURES,
    "correct": lambda one: None if one.fidelity else one.correct,
    "total": lambda one: one.total,
    "reference": lambda one: one.reference,
    "lost_images": lambda one: None if one.fidelity else one.drop.lost,
    "gained_images": lambda one: None if one.fidelity else one.drop.gained,
    "p_value": lambda one: one.drop.p,
    "accuracy_verdict": lambda one: "" if one.fidelity else str(one.drop.verdict),
    "baseline_accuracy_percent": lambda one: one.measures["accuracy"].baseline,
    "baseline_file_bytes": lambda one: one.baseline_size.file_bytes,
    "baseline_latency_ns": lambda one: one.measures["latency"].baseline,
    "verdict": lambda one: one.latency.verdict,
    "rounds": lambda one: one.latency.rounds,
    "batch": lambda one: one.batch,
    "threads": lambda one: one.threads,
    "quick": lambda one: one.quick,
    "realisation": lambda one: one.realisation,
    "shared_with": lambda one: one.shared_with,
    "badges": lambda one: ", ".join(badge.kind for badge in one.badges),
    "noise": lambda one: "; ".join(one.noise),
    "simulated": lambda one: "; ".join(one.simulated),
    "coding": lambda one: one.size.coding,
    "environment": lambda one: one.environment,
    "scored_on": lambda one: one.scored_on,
    "created": lambda one: one.created,
}
"""Columns of :func:`frame`, before ``frontier``, and what each has of a result. Answers are not counted where
outputs are no logits."""
_MAY_LACK = (
    *("sparsity", "threshold", "correct", "lost_images", "gained_images", "p_value"),
    "baseline_accuracy_percent",
)


class Column(Labelled):
    """The columns of :func:`table`, those that compare with another result last."""

    MODEL = "model"
    ENGINE = "engine"
    THREADS = "threads"
    BATCH = "batch"
    RECIPE = "recipe"
    IMAGES = "images"
    ACCURACY = "accuracy"
    LOST = "accuracy lost"
    AGREEMENT = "agreement"
    AGREEMENT_LOST = "agreement lost"
    SQNR = "SQNR"
    COSINE = "cosine"
    LARGEST = "largest difference"
    FILE = "file"
    PACKED = "packed"
    COMPRESSED = "zstd"
    LATENCY = "latency"
    RATIO = "ratio"
    VERDICT = "verdict"
    BADGES = "badges"
    FRONTIER = "frontier"
    LOST_AGAINST = "lost against reference"
    ACCURACY_DIFFERS = "accuracy differs"
    AGREEMENT_DIFFERS = "agreement differs"
    TIME_OVER = "time over reference"
    TIME_DIFFERS = "time differs"


WRITTEN = {
    Column.ACCURACY: "accuracy",
    Column.LOST: "drop",
    Column.AGREEMENT: "accuracy",
    Column.AGREEMENT_LOST: "drop",
    Column.SQNR: "sqnr",
    Column.COSINE: "cosine",
    Column.LARGEST: "largest",
    Column.FILE: "file_size",
    Column.PACKED: "packed_size",
    Column.COMPRESSED: "compressed_size",
    Column.LATENCY: "latency",
    Column.RATIO: "latency_ratio",
}
"""Columns of :func:`table` that are metrics."""
ACCURACIES = (Column.ACCURACY, Column.LOST)
AGREEMENTS = (Column.AGREEMENT, Column.AGREEMENT_LOST)
"""Of classifiers whose images have no labels; their accuracy is missing."""
FIDELITIES = (Column.SQNR, Column.COSINE, Column.LARGEST)
"""Of networks whose outputs are no logits."""
DIFFERS = (Column.ACCURACY_DIFFERS, Column.AGREEMENT_DIFFERS)
"""The same, called by what was judged."""
COMPARING = (Column.LOST_AGAINST, *DIFFERS, Column.TIME_OVER, Column.TIME_DIFFERS)


def table(results: Iterable[Measured], against: Measured | None = None) -> "pd.DataFrame":
    """The table that people read: one row a result, every figure written with its unit and interval, and the
    labels of :class:`Column` as heads.

    With ``against``, the last columns compare each with that result. Images have a column where they differ.
    """
    import pandas as pd

    rows = []
    summaries = [summarise(result) for result in results]
    reference = summarise(against) if against else None
    found = frontier_of(summaries)
    for summary, optimal, tied in zip(summaries, found.optimal, found.tied, strict=True):
        rows.append(
            {
                Column.MODEL: summary.request.model,
                Column.ENGINE: engine_label(summary.request.engine),
                Column.THREADS: summary.threads,
                Column.BATCH: summary.batch,
                Column.RECIPE: summary.description,
                Column.IMAGES: summary.images,
                **{column: summary.text(name) for column, name in WRITTEN.items()},
                **dict.fromkeys(AGREEMENTS if summary.reference == "labels" else ACCURACIES, MISSING),
                Column.VERDICT: summary.latency.verdict.label,
                Column.BADGES: ", ".join(badge.kind.label for badge in summary.badges),
                Column.FRONTIER: "yes" if optimal else "tied" if tied else "",
                **(_compared(summary, reference) if reference else {}),
            }
        )
    judged = {_judged(summary) for summary in summaries} or {ACCURACIES}
    groups = {ACCURACIES, AGREEMENTS, FIDELITIES} - judged
    left_out = {*(() if reference else COMPARING), *(column for group in groups for column in group)}
    left_out.add(DIFFERS[judged != {AGREEMENTS}])
    if len({summary.images for summary in summaries}) <= 1:
        left_out.add(Column.IMAGES)
    columns = [column for column in Column if column not in left_out]
    return pd.DataFrame(rows, columns=columns).set_axis([column.label for column in columns], axis=1)


def _judged(summary: Summary) -> tuple[Column, ...]:
    """The columns of how good its outputs are."""
    if summary.fidelity:
        return FIDELITIES
    return ACCURACIES if summary.reference == "labels" else AGREEMENTS


def _compared(summary: Summary, reference: Summary) -> dict[Column, str]:
    if summary is reference:
        return dict.fromkeys(COMPARING, "the reference")
    compared = compare(summary, reference)
    drop, ratio = compared.drop, compared.ratio
    accuracy, time = drop.verdict if drop else compared.no_drop, compared.time_verdict or compared.no_ratio
    return {
        Column.LOST_AGAINST: drop.words if drop else MISSING,
        **dict.fromkeys(DIFFERS, accuracy.label if accuracy else MISSING),
        Column.TIME_OVER: metric("latency_ratio").format(ratio.value, ratio.low, ratio.high),
        Column.TIME_DIFFERS: time.label if time else MISSING,
    }
