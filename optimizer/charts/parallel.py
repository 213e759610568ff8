"""Every result as one line through all that was asked for and all that came of it: parallel coordinates."""

import math
from collections.abc import Iterable, Sequence

from optimizer.analysis.frontier import values_of
from optimizer.analysis.labels import engine_label
from optimizer.analysis.metrics import metric
from optimizer.analysis.summary import Measured, Summary, label_of, quality, summarise
from optimizer.charts.points import bits_role
from optimizer.charts.spec import NO_RESULTS, Axis, Parallel

FOUND = ("accuracy", "compressed_size", "latency")
NO_FIGURES = "No configuration has all of these figures.<br>Measure them again, or look at the frontiers."
HOW_TO = "arrow: better · drag along an axis to filter"


def parallel_info(results: Iterable[Measured]) -> Parallel:
    """An axis for what differs among the results, and one for each of FOUND. A line has the colour of its
    weight bits; what lacks a figure has none."""
    summaries = [summarise(result) for result in results]
    asked = {
        "weight bits": [f"{summary.recipe.quantize.bits:g}" for summary in summaries],
        "activation bits": [str(summary.recipe.quantize.activation_bits) for summary in summaries],
        "engine": [engine_label(summary.request.engine) for summary in summaries],
    }
    found = [quality(name, summaries) for name in FOUND]
    columns = [(Axis("weights removed", "%", span=(0, 100)), [one.pruned_percent for one in summaries])]
    for title, names in asked.items():
        known = sorted(set(names), key=_in_order)
        if len(known) > 1:
            columns.append((Axis(title, categories=tuple(known)), [float(known.index(one)) for one in names]))
    measured = [values_of(summaries, name) for name in found]
    columns += zip((_axis(name, summaries) for name in found), measured, strict=True)
    rows = [*zip(*(values for _, values in columns), strict=True)]
    whole = [number for number, row in enumerate(rows) if all(map(math.isfinite, row))]
    return Parallel(
        "Every configuration, and what was measured",
        tuple(axis for axis, _ in columns),
        tuple(rows[number] for number in whole),
        tuple(bits_role(summaries[number].recipe.quantize.bits) for number in whole),
        HOW_TO,
        NO_FIGURES if summaries else NO_RESULTS,
    )


def _axis(name: str, summaries: Sequence[Summary]) -> Axis:
    return Axis(label_of(name, summaries), metric(name).unit, metric(name).direction)


def _in_order(name: str) -> tuple[float, str]:
    """Numbers by their size, names by the alphabet."""
    return (float(name), "") if name.replace(".", "").isdigit() else (0.0, name)
