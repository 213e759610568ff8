"""What a page says beside its charts: the four figures at the top, in words, and the table of layers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optimizer.analysis.labels import engine_label
from optimizer.analysis.measures import Measure, all_equal
from optimizer.analysis.metrics import METRICS
from optimizer.analysis.outcomes import AccuracyVerdict, PairedDrop
from optimizer.analysis.realisation import FALLBACK
from optimizer.analysis.skewed import MIN_IMAGES
from optimizer.analysis.statistics import LatencyVerdict
from optimizer.analysis.summary import ScoreSummary, Summary
from optimizer.formats import (
    MISSING,
    capital,
    count,
    format_bytes,
    format_change,
    format_count,
    format_ns,
    format_p,
    format_percent,
)
from optimizer.methods.engines import engine_info
from optimizer.recipe import Override, Recipe
from optimizer.records import GroupSensitivity, Inspection

Mood = Literal["better", "worse", "same"]


@dataclass(frozen=True, slots=True)
class Headline:
    """One figure: ``value``, its ``interval``, the ``change`` against the baseline, and what it rests on."""

    label: str
    value: str = MISSING
    interval: str = ""
    change: str = ""
    mood: Mood = "same"
    basis: str = ""
    help: str = ""

    @property
    def caption(self) -> str:
        """The line below the figure: its interval, where it has one, and its basis."""
        return f"{self.interval} · {self.basis}" if self.interval else self.basis


def headlines(
    summary: Summary | None,
    inspection: Inspection | None,
    scores: ScoreSummary | None = None,
    measuring: str = "being measured",
    counting: str = "being counted",
) -> tuple[Headline, ...]:
    """Accuracy, size, latency and operations; what is not known yet is a dash, with what is done about it
    (``measuring``, ``counting``). ``scores`` are there before anything is timed, of some images first."""
    return (
        _accuracy(summary or scores, measuring),
        _size(inspection, counting),
        _latency(summary, measuring),
        _operations(inspection, counting),
    )


OVERRIDE_COLUMNS = {
    "own sparsity": "sparsity",
    "own bits": "weight_bits",
    "own pruning": "pruning",
    "own rounding": "rounding",
}
"""Columns of the table of layers that can be written to, and the fields of an override."""


def layer_rows(inspection: Inspection, recipe: Recipe) -> list[dict[str, object]]:
    """One row a layer: what the recipe as a whole came to there, and the layer's overrides.

    Shares are in percent.
    """
    own = {override.layer: override for override in recipe.layers}
    rows = []
    for layer in inspection.layers:
        row: dict[str, object] = {
            "layer": layer.name,
            "kind": layer.kind,
            "weights": layer.elements,
            "zeros": 100 * (1 - layer.nonzero / layer.elements) if layer.elements else 0.0,
            "bits": layer.bits,
        }
        override = own.get(layer.name, Override(layer.name))
        row |= {column: getattr(override, field) for column, field in OVERRIDE_COLUMNS.items()}
        row["own sparsity"] = None if override.sparsity is None else round(100 * override.sparsity, 9)
        rows.append(row)
    return rows


def group_rows(groups: Iterable[GroupSensitivity]) -> list[dict[str, object]]:
    """One row a group of layers that give the same channels; divergences in nats."""
    return [
        {
            "layers": " + ".join(layer.removesuffix(".weight") for layer in group.layers),
            "why": group.tie,
            "channels": group.channels,
            "together": group.together,
            "apart": group.apart,
        }
        for group in groups
    ]


def overrides_of(rows: Iterable[Mapping[Any, Any]]) -> tuple[Override, ...]:
    """Read back what was written into a table of :func:`layer_rows`. Raises InputError."""
    found = []
    for row in rows:
        given = {
            field: row[column] for column, field in OVERRIDE_COLUMNS.items() if not _missing(row[column])
        }
        if "sparsity" in given:
            given["sparsity"] = round(given["sparsity"] / 100, 11)
        if "weight_bits" in given:
            given["weight_bits"] = int(given["weight_bits"])
        if given:
            found.append(Override(row["layer"], **given))
    return tuple(found)


def _missing(value: object) -> bool:
    return value is None or value != value or value == ""  # NaN is what a table makes of an empty number


def _accuracy(summary: Summary | ScoreSummary | None, otherwise: str) -> Headline:
    if summary is None:
        return Headline("Accuracy", basis=otherwise, help=METRICS["accuracy"].help)
    if summary.fidelity:
        return _fidelity(summary)
    labelled = summary.reference == "labels"
    value, interval = summary.parts("accuracy")
    drop, partial = summary.drop, isinstance(summary, ScoreSummary) and summary.partial
    same = drop.verdict is AccuracyVerdict.SAME and (summary.recipe.identity or not partial)
    return Headline(
        label="Accuracy" if labelled else "Agreement",
        value=value,
        interval=interval,
        change=_same(summary, drop.verdict.label)
        if same
        else format_change(-drop.points, -drop.high, -drop.low),
        mood=MOODS.get(drop.verdict, "same"),
        basis=_scored_on(summary, labelled),
        help=f"{METRICS['accuracy' if labelled else 'agreement'].help} {_compared(summary)}"
        + _balanced(summary)
        + (SO_FAR if partial else ""),
    )


def _fidelity(summary: Summary | ScoreSummary) -> Headline:
    """Of a network whose outputs are no logits: how far they moved."""
    value, interval = summary.parts("sqnr")
    equal = all_equal(summary.measures)
    largest = "" if equal else f"largest difference {summary.parts('largest')[0]} of its output's range; "
    few = f"; an interval takes {MIN_IMAGES}" if not equal and summary.total < MIN_IMAGES else ""
    partial = isinstance(summary, ScoreSummary) and summary.partial
    return Headline(
        label="Fidelity (SQNR)",
        value=value,
        interval=interval,
        change="this is the baseline" if summary.recipe.identity else f"cosine {summary.parts('cosine')[0]}",
        basis=f"{largest}{summary.images}{few}",
        help=f"{METRICS['sqnr'].help} Its outputs are no logits, so there are no answers to count. "
        f"{METRICS['largest'].help}" + (" More images are being scored." if partial else ""),
    )


def _scored_on(summary: Summary | ScoreSummary, labelled: bool) -> str:
    """Which images, and what the uncompressed model gives there; without labels how far the outputs moved."""
    if summary.recipe.identity:
        return summary.images
    sqnr = summary.measures.get("sqnr")
    if not labelled and sqnr is not None and sqnr.value is not None:
        return f"{summary.images}; SQNR {summary.text('sqnr')}"
    before = 100 * summary.baseline_correct / summary.total
    return f"{summary.images}; uncompressed {_beside(summary.measures['accuracy'], before)}"


def _beside(measure: Measure, before: float) -> str:
    """What it was before, with the digits that its interval leaves the ``measure`` itself."""
    if measure.value is None or measure.low is None or measure.high is None:
        return format_percent(before)
    shift = before - measure.value
    return format_percent.parts(before, measure.low + shift, measure.high + shift)[0]


SO_FAR = (
    " More images are being scored, in a random order. Until then the intervals are those of a confidence "
    "sequence: they hold whenever you look."
)


def _balanced(summary: Summary | ScoreSummary) -> str:
    """Balanced accuracy, where classes have unequal numbers of images."""
    balanced = summary.measures["balanced_accuracy"]
    if balanced.value is None or balanced.baseline is None:
        return ""
    before = "" if summary.recipe.identity else f"; uncompressed {_beside(balanced, balanced.baseline)}"
    return f" Balanced accuracy, each class counting the same: {summary.text('balanced_accuracy')}{before}."


MOODS: dict[AccuracyVerdict | LatencyVerdict, Mood] = {
    AccuracyVerdict.WORSE: "worse",
    AccuracyVerdict.BETTER: "better",
    LatencyVerdict.SLOWER: "worse",
    LatencyVerdict.FASTER: "better",
}
"""Of any other verdict: the same."""


def _compared(summary: Summary | ScoreSummary) -> str:
    """How the change was found: paired against labels, counted without them."""
    drop = summary.drop
    may = f" {may_be(drop)}." if drop.verdict is AccuracyVerdict.SAME and not summary.recipe.identity else ""
    if drop.p is None:
        return f"{count(drop.lost, 'image')} with another top-1 class than the uncompressed model's.{may}"
    return (
        f"The change is paired image by image: {drop.lost} were right before and are wrong now, "
        f"{drop.gained} the reverse; McNemar's test, {format_p(drop.p)}.{may}"
    )


def may_be(drop: PairedDrop) -> str:
    """``Loses 0.40 points; may be up to 1.60``: what a difference that can't be measured may still be."""
    change = "Gains" if drop.points < 0 else "Loses"
    return f"{change} {abs(drop.points):.2f} points; may be a loss of up to {max(drop.high, 0):.2f}"


def _size(inspection: Inspection | None, otherwise: str) -> Headline:
    help = METRICS["file_size"].help
    if inspection is None:
        return Headline("Size of the file", basis=otherwise, help=help)
    size, before = inspection.size, inspection.baseline_size
    ratio = size.file_bytes / before.file_bytes
    return Headline(
        label="Size of the file",
        value=format_bytes(size.file_bytes),
        change="no change" if ratio == 1 else f"{ratio:.3g}× of {format_bytes(before.file_bytes)}",
        mood="same" if ratio == 1 else "better" if ratio < 1 else "worse",
        basis=f"packed {format_bytes(size.packed_bytes)} ({size.coding}); "
        f"zstd {format_bytes(size.compressed_bytes)}",
        help=f"{help} Packed is k bits a non-zero weight with the cheapest way to say which those are.",
    )


def _latency(summary: Summary | None, otherwise: str) -> Headline:
    if summary is None:
        return Headline("Latency", basis=otherwise, help=METRICS["latency"].help)
    value, interval = summary.parts("latency")
    latency = summary.latency
    mood, same = MOODS.get(latency.verdict, "same"), latency.verdict is LatencyVerdict.SAME
    images, threads = count(summary.batch, "image"), count(summary.threads, "thread")
    change = latency.verdict.label
    if mood != "same":
        change += f": {summary.text('latency_ratio')}"
    elif summary.timed and summary.timed.identity:
        change = "same kernels as uncompressed"
    elif same:
        change = _same(summary, change)
    elif not summary.recipe.identity:
        change += f": {summary.text('latency_ratio')}"
    percentile = f"; p95 {format_ns(latency.p95_ns)}" if latency.p95_ns else ""
    first = f"; first call {summary.parts('first_call')[0]}"
    return Headline(
        label="Latency",
        value=value,
        interval=interval,
        change=change,
        mood=mood,
        basis=f"{_ran(summary)}, {images}, {threads}{percentile}{first}",
        help=f"{METRICS['latency'].help} {_timed(summary)}; ratio {summary.text('latency_ratio')}, the "
        f"median of the rounds'. First call after another network: {summary.text('first_call')}, "
        f"{summary.text('first_call_ratio')} of the uncompressed model's."
        + (f" {capital(latency.detectable_words)}." if same else "")
        + (f" No sparse kernels here ({summary.fallback}): {FALLBACK} instead." if summary.fallback else "")
        + (f" {capital(summary.note_on_sharing)}." if summary.note_on_sharing else "")
        + (
            f" Cold start {summary.text('cold_start')}."
            if summary.measures["cold_start"].value is not None
            else ""
        ),
    )


def _timed(summary: Summary) -> str:
    rounds = (
        f"{summary.latency.rounds} rounds, each visiting two builds of the uncompressed model and this one"
    )
    if not summary.process_ratios:
        return f"{rounds}, in shuffled order"
    low, high = min(summary.process_ratios), max(summary.process_ratios)
    return (
        f"{rounds}, in {len(summary.processes)} processes, each with builds of its own, whose ratios lie "
        f"between {low:.3f}× and {high:.3f}×"
    )


def _ran(summary: Summary) -> str:
    """The engine, and what its kernels did. An engine that skips zeros decides that for each layer."""
    engine = FALLBACK if summary.fallback else engine_label(summary.request.engine)
    if engine_info(summary.request.engine).skips_zeros:
        return f"{engine} in {summary.skipping or 'none'} of {summary.layers} layers"
    return f"{engine}, {summary.realisation.label}"


def _same(summary: Summary | ScoreSummary, otherwise: str) -> str:
    return "this is the baseline" if summary.recipe.identity else otherwise


def _operations(inspection: Inspection | None, otherwise: str) -> Headline:
    if inspection is None:
        return Headline("Operations", basis=otherwise, help=METRICS["operations"].help)
    size = inspection.size
    left = sum(layer.macs * layer.nonzero / layer.elements for layer in inspection.layers)
    before = sum(layer.macs for layer in inspection.layers)
    return Headline(
        label="Operations left",
        value=METRICS["operations"].format(left),
        change="no change"
        if left == before
        else f"{left / before:.3g}× of {METRICS['operations'].format(before)}",
        mood="same" if left == before else "better",
        basis=f"{format_percent(100 * size.nonzero / size.elements)} of {format_count(size.elements)} weights"
        f"{_thresholds(inspection)}",
        help=f"{METRICS['operations'].help} Fewer operations take less time only where kernels skip zeros. "
        "Weights are those of convolutions, linear layers and attention's projections.",
    )


def _thresholds(inspection: Inspection) -> str:
    """What a sparsity comes to as ``|w| ≤ t``."""
    pruned = [layer.threshold for layer in inspection.layers if layer.threshold >= 0]
    if not pruned:
        return ""
    low, high = min(pruned), max(pruned)
    if high - low <= 0.1 * high:  # one threshold: each layer's largest weight to go comes close below it
        return f"; pruned: |w| ≤ {high:.3g}"
    return f"; pruned: |w| ≤ {low:.2g} to {high:.2g}"
