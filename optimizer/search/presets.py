"""Presets: the first recipe of a list, most compressed first, that is shown to keep the accuracy asked for.

The first of many that looks good enough is the luckiest: so a recipe is taken by a bound that holds for all
candidates at once, on one half of the images, and what it loses on the other half is said beside it. Its time
may be another recipe's with the same instructions, so it is timed afresh, and both times are said.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from optimizer.analysis.metrics import metric
from optimizer.analysis.outcomes import PairedDrop, drop_against, images_needed
from optimizer.analysis.rounds import confidence_of_each
from optimizer.analysis.summary import summarise
from optimizer.progress import Report, quiet
from optimizer.recipe import Preset
from optimizer.records import Latency, Request, Result

MIN_CONFIRMING = 500
"""Images that did not choose; with fewer, or too few for a half to show anything, all of them choose."""


@dataclass(frozen=True, slots=True)
class Found:
    """The recipe that met a preset's limit, or else the one that came nearest; and how many were tried.

    ``chosen`` is what it loses on the images that decided, ``confirmed`` on the others (None: there were too
    few). ``afresh`` is the time of one that met it, taken once more.
    """

    result: Result
    met: bool
    tried: int
    words: str
    chosen: PairedDrop
    confirmed: PairedDrop | None
    afresh: Latency | None = None


def find(
    preset: Preset,
    base: Request,
    measure: Callable[[Request], Result],
    time_afresh: Callable[[Result], Latency],
    report: Report = quiet,
) -> Found:
    """Measure candidates until one is shown to meet the limit, and take the time of that one afresh. There is
    always an answer: the one whose loss has the lowest bound."""
    nearest: Found | None = None
    total = len(preset.candidates)
    confidence = confidence_of_each(total)
    needed = images_needed(preset.points, confidence)
    for tried, recipe in enumerate(preset.candidates, 1):
        report((tried - 1) / total, f"trying {recipe.describe()}, {tried} of at most {total}")
        result = measure(replace(base, recipe=recipe))
        chosen, confirmed = halves(result, max(needed, MIN_CONFIRMING))
        words = f"{preset.label}: {recipe.describe()} loses {_loss(chosen, confirmed, result)}"
        kept = chosen.high_at(confidence) <= preset.points
        if kept and (confirmed is None or confirmed.points <= preset.points):
            report(tried / total, f"timing {recipe.describe()} afresh")
            afresh = time_afresh(result)
            words += f". {_times(result, afresh)}"
            return Found(result, True, tried, words, chosen, confirmed, afresh)
        if nearest is None or chosen.high < nearest.chosen.high:
            nearest = Found(result, False, total, words, chosen, confirmed)
    assert nearest is not None
    at_once = ", by a bound that holds for all at once" if total > 1 else ""
    words = (
        f"{preset.label}: none of {total} recipes is shown to keep to that{at_once}; "
        f"{summarise(nearest.result).description} comes nearest and loses "
        f"{_loss(nearest.chosen, nearest.confirmed, nearest.result)}{_too_few(nearest, preset, needed)}"
    )
    return replace(nearest, words=words)


def halves(result: Result, fewest: int) -> tuple[PairedDrop, PairedDrop | None]:
    """What is lost on a random half of the images, and on the other; on all of them, and None, where a half
    would have fewer than ``fewest``."""
    after, before = result.accuracy.outcomes, result.baseline_accuracy.outcomes
    lost = partial(drop_against, result.accuracy.reference)
    if len(after) < 2 * fewest:
        return lost(before, after), None
    first = np.random.default_rng(0).permutation(len(after)) < len(after) // 2
    return lost(before[first], after[first]), lost(before[~first], after[~first])


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


def _times(result: Result, afresh: Latency) -> str:
    before, after = summarise(result), summarise(replace(result, latency=afresh))
    shared = f" (that of: {before.shared_with})" if before.shared_with else ""
    first, second = (f"{one.text('latency')}, {one.text('latency_ratio')}" for one in (before, after))
    return f"Time when it was chosen{shared}: {first}; timed afresh: {second}"


def _too_few(found: Found, preset: Preset, needed: int) -> str:
    total = found.result.accuracy.total
    deciding = total if found.confirmed is None else total // 2
    if deciding >= needed:
        return ""
    return (
        f". With so few images nothing can be shown to lose at most {preset.points:g} points: "
        f"that takes {needed:,}, even where no answer changes"
    )
