"""The model card: the recipe in words, what was measured, and how to load the model again."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from optimizer import __version__
from optimizer.analysis import fidelity
from optimizer.analysis.badges import NOT_SAID
from optimizer.analysis.labels import engine_label
from optimizer.analysis.metrics import METRICS
from optimizer.analysis.realisation import ran
from optimizer.analysis.summary import FIDELITY, label_of, summarise
from optimizer.export.artifacts.source import ArtifactSource
from optimizer.formats import format_bytes
from optimizer.methods.artifacts import RECIPE_FILE
from optimizer.model.layers import BATCH_NORMS
from optimizer.records import Result
from optimizer.system.environment import describe

FIGURES = (
    *("accuracy", "balanced_accuracy", "drop", "agreement", "file_size", "packed_size", "compressed_size"),
    *("memory", "cold_start", "nonzero", "operations", "latency", "latency_ratio"),
)


def model_card(
    source: ArtifactSource,
    sizes: Mapping[str, int],
    loading: str,
    notes: tuple[str, ...] = (),
    any_batch: bool = True,
) -> str:
    """Markdown: the recipe in words, the files and their ``sizes`` in bytes, what was measured, where, and
    how to load the model again, which takes ``any_batch`` or one input at a time."""
    card, recipe, batch = source.card, source.compressed.recipe, "N" if any_batch else "1"
    trained = "distilled from the uncompressed model" if recipe.learns else "nothing trained"
    left = any(isinstance(one, BATCH_NORMS) for one in source.compressed.module.modules())
    folded = "" if left else "batch norm folded, "
    files = [f"`{name}`, {format_bytes(size)}" for name, size in sizes.items()]
    blocks = [
        f"# {card.name}: {recipe.describe()}",
        f"{card.description}\n\nWritten by Paretoscope {__version__}; {folded}{trained}.",
        *([f"Licence of the original weights: {card.licence}"] if card.licence else []),
        f"Input: float32 `[{batch}, {', '.join(map(str, card.input_shape))}]`, preprocessed as for the "
        f"original model. Output: {_outputs(source, batch)}.",
        "## Recipe\n\n" + _bullets(_recipe_words(source)),
        "## Files\n\n" + _bullets([*files, f"`{RECIPE_FILE}`"]),
        *([_bullets(notes)] if notes else []),
        "## Measured\n\n" + (_measured(source.result) if source.result else "Not measured."),
        *([f"## Environment\n\n{describe(source.result.environment)}"] if source.result else []),
        f"## Load it again\n\n```python\n{loading}\n```",
        "## What the numbers do not say\n\n" + _bullets(NOT_SAID),
    ]
    return "\n\n".join(blocks) + "\n"


def _outputs(source: ArtifactSource, batch: str) -> str:
    result = source.result
    if source.card.classes and not (result and result.accuracy.is_fidelity):
        return f"logits `[{batch}, {source.card.classes}]`"
    measured = result.accuracy.outputs if result else ()
    outputs = source.parts or [(one.name, one.shape) for one in measured]
    shapes = (f"{name} `[{', '.join((batch, *map(str, shape)))}]`" for name, shape in outputs)
    return ", ".join(shapes) or "as it was"


def _recipe_words(source: ArtifactSource) -> list[str]:
    recipe = source.compressed.recipe
    weights = source.compressed.weights.values()
    elements = sum(weight.values.numel() for weight in weights)
    nonzero = sum(weight.nonzero for weight in weights)
    widths = Counter(weight.bits for weight in weights)
    words = [recipe.describe()]
    if len(widths) > 1:
        words.append("layers: " + ", ".join(f"{widths[bits]} in {bits} bits" for bits in sorted(widths)))
    if recipe.quantize.rounds_activations:
        words.append(f"activation ranges from {len(source.calibration)} calibration images")
    counted = f"{nonzero:,} of {elements:,} weights are not zero"
    before = source.result.inspection.size.elements if source.result else elements
    if before != elements:
        counted += f"; the uncompressed model has {before:,}"
    return [*words, counted, f"as data: `{RECIPE_FILE}`"]


def _measured(result: Result) -> str:
    summary = summarise(result)
    labelled = summary.reference == "labels"
    names = (*FIDELITY, *FIGURES) if summary.fidelity else FIGURES
    rows = ["| | this model | uncompressed |", "|---|---|---|"]
    for name in names:
        measure, metric = summary.measures[name], METRICS[name]
        if measure.value is None or (name == "agreement" and not labelled):
            continue
        unlabelled = name == "accuracy" and not labelled
        label = "agreement with the uncompressed model" if unlabelled else label_of(name, [summary])
        label += ", as safetensors" * (name == "file_size")
        before = "" if measure.baseline is None else metric.format(measure.baseline, None, None)
        rows.append(f"| {label} | {summary.text(name)} | {before} |")
    kernels = ", ".join(f"{layers} in {precision}" for precision, layers in summary.precisions.items())
    facts = [
        f"{summary.images}; intervals are of 95 %",
        f"{engine_label(summary.request.engine)}, batch size {summary.batch}, threads: {summary.threads}; "
        f"layers: {kernels} ({ran(summary.realisation, summary.fallback)})",
        *([summary.note_on_sharing] if summary.note_on_sharing else []),
        *(f"**{badge.kind.label}**: {badge.words}" for badge in summary.badges),
        *summary.notes,
    ]
    apart = [
        f"output {row['output']}: SQNR {row['SQNR']}, cosine {row['cosine']}, largest difference "
        f"{row['largest difference']}"
        for row in fidelity.rows(result.accuracy.outputs)
    ]
    return "\n".join(rows) + "\n\n" + _bullets([*facts, *apart])


def _bullets(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)
