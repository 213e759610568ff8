"""Presets: the first recipe of a list, most compressed first, that keeps the accuracy asked for."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from optimizer.analysis.summary import summarise
from optimizer.progress import Report
from optimizer.recipe import Preset
from optimizer.records import Request, Result


@dataclass(frozen=True, slots=True)
class Found:
    """The recipe that met a preset's limit, or else the one that came nearest; and how many were tried."""

    result: Result
    met: bool
    tried: int
    words: str


def find(
    preset: Preset, base: Request, measure: Callable[[Request], Result], report: Report = lambda *_: None
) -> Found:
    """Measure candidates until one meets the limit. There is always an answer: the one that lost least."""
    nearest: tuple[float, Result] | None = None
    total = len(preset.candidates)
    for tried, recipe in enumerate(preset.candidates, 1):
        report((tried - 1) / total, f"trying {recipe.describe()}, {tried} of at most {total}")
        result = measure(replace(base, recipe=recipe))
        summary = summarise(result)
        lost = summary.drop.points
        words = f"{preset.label}: {recipe.describe()} loses {summary.text('drop')}"
        if lost <= preset.points:
            return Found(result, True, tried, words)
        if nearest is None or lost < nearest[0]:
            nearest = lost, result
    assert nearest is not None
    summary = summarise(nearest[1])
    words = (
        f"{preset.label}: none of {total} recipes keeps to that; {summary.description} comes nearest and "
        f"loses {summary.text('drop')}"
    )
    return Found(nearest[1], False, total, words)
