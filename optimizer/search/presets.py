"""Presets: the first recipe of a list, most compressed first, that is shown to keep the accuracy asked for.

The first of many that looks good enough is the luckiest: so a recipe is taken by the bound of its interval,
on one half of the images, and what it loses on the other half is said beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from optimizer.analysis.metrics import metric
from optimizer.analysis.outcomes import PairedDrop, disagreement, images_needed, paired_drop
from optimizer.analysis.summary import summarise
from optimizer.progress import Report
from optimizer.recipe import Preset
from optimizer.records import Request, Result

MIN_CONFIRMING = 500
"""Images that did not choose: with fewer, all of them choose."""


@dataclass(frozen=True, slots=True)
class Found:
    """The recipe that met a preset's limit, or else the one that came nearest; and how many were tried.

    ``chosen`` is what it loses on the images that decided, ``confirmed`` on the others (None: there were too
    few).
    """

    result: Result
    met: bool
    tried: int
    words: str
    chosen: PairedDrop
    confirmed: PairedDrop | None


def find(
    preset: Preset, base: Request, measure: Callable[[Request], Result], report: Report = lambda *_: None
) -> Found:
    """Measure candidates until one is shown to meet the limit. There is always an answer: the one whose loss
    has the lowest bound."""
    nearest: Found | None = None
    total = len(preset.candidates)
    for tried, recipe in enumerate(preset.candidates, 1):
        report((tried - 1) / total, f"trying {recipe.describe()}, {tried} of at most {total}")
        result = measure(replace(base, recipe=recipe))
        chosen, confirmed = halves(result)
        words = f"{preset.label}: {recipe.describe()} loses {_loss(chosen, confirmed, result)}"
        kept = chosen.high <= preset.points
        if kept and (confirmed is None or confirmed.points <= preset.points):
            return Found(result, True, tried, words, chosen, confirmed)
        if nearest is None or chosen.high < nearest.chosen.high:
            nearest = Found(result, False, total, words, chosen, confirmed)
    assert nearest is not None
    words = (
        f"{preset.label}: none of {total} recipes is shown to keep to that; "
        f"{summarise(nearest.result).description} comes nearest and loses "
        f"{_loss(nearest.chosen, nearest.confirmed, nearest.result)}{_too_few(nearest, preset)}"
    )
    return replace(nearest, words=words)


def halves(result: Result) -> tuple[PairedDrop, PairedDrop | None]:
    """What is lost on a random half of the images, and on the other; on all of them, and None, where a half
    would have fewer than MIN_CONFIRMING."""
    after, before = result.accuracy.outcomes, result.baseline_accuracy.outcomes
    if len(after) < 2 * MIN_CONFIRMING:
        return _drop(result, before, after), None
    first = np.random.default_rng(0).permutation(len(after)) < len(after) // 2
    chosen, confirmed = (_drop(result, before[half], after[half]) for half in (first, ~first))
    return chosen, confirmed


def _drop(result: Result, before: np.ndarray, after: np.ndarray) -> PairedDrop:
    return disagreement(after) if result.accuracy.reference == "baseline" else paired_drop(before, after)


def _loss(chosen: PairedDrop, confirmed: PairedDrop | None, result: Result) -> str:
    total = result.accuracy.total
    if confirmed is None:
        return f"{_points(chosen)} on the {total:,} images that chose it, too few to confirm it on others"
    half = total // 2
    return (
        f"{_points(chosen)} on the {half:,} images that chose it, and {_points(confirmed)} on "
        f"{total - half:,} others"
    )


def _points(drop: PairedDrop) -> str:
    return metric("drop").format(drop.points, drop.low, drop.high)


def _too_few(found: Found, preset: Preset) -> str:
    total = found.result.accuracy.total
    deciding = total if found.confirmed is None else total // 2
    needed = images_needed(preset.points)
    if deciding >= needed:
        return ""
    return (
        f". With so few images nothing can be shown to lose at most {preset.points:g} points: "
        f"that takes {needed:,}, even where no answer changes"
    )
