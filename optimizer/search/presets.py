"""Presets: the first recipe of a list, most compressed first, that is shown to keep the accuracy asked for,
or the SQNR where a network is no classifier.

The first of many that looks good enough is the luckiest: so a recipe is taken by a bound that holds for all
candidates at once. Accuracy is judged on one half of the images, and what is lost on the other half is said
beside it; SQNR on all. The time may be another recipe's with the same instructions, so it is taken afresh,
and both times are said.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from optimizer.analysis.gate import Outcome, sqnr_check
from optimizer.analysis.limits import MIN_CONFIRMING, halves, noise
from optimizer.analysis.metrics import metric
from optimizer.analysis.outcomes import images_needed
from optimizer.analysis.rounds import confidence_of_each
from optimizer.analysis.summary import Summary, summarise
from optimizer.errors import EngineError, UnavailableError, words_of
from optimizer.formats import count
from optimizer.progress import Report, quiet
from optimizer.recipe import Preset
from optimizer.records import Latency, Request, Result
from optimizer.search.confirming import lost_words


@dataclass(frozen=True, slots=True)
class Found:
    """The recipe that met a preset's limit, or else the one that came nearest; and how many were tried.
    ``afresh`` is the time of one that met it, taken once more, where that did not fail."""

    result: Result
    met: bool
    tried: int
    words: str
    afresh: Latency | None = None


def find(
    preset: Preset,
    base: Request,
    measure: Callable[[Request], Result],
    time_afresh: Callable[[Result], Latency],
    report: Report = quiet,
) -> Found:
    """Measure candidates until one is shown to meet the limit, and take the time of that one afresh. There is
    an answer unless all fail: the one whose loss has the lowest bound, and of equal ones the lowest loss.

    Raises what ``measure`` does where no other recipe would mend it, and where all fail what the first
    raised.
    """
    total = len(preset.candidates)
    confidence = confidence_of_each(total)
    judged: list[_Judged] = []
    failed: list[Exception] = []
    for tried, recipe in enumerate(preset.candidates, 1):
        report((tried - 1) / total, f"trying {recipe.describe()}, {tried} of at most {total}")
        try:
            result = measure(replace(base, recipe=recipe))
        except (EngineError, UnavailableError):
            raise
        except Exception as error:  # engines raise what they like, and some weights have no halves
            failed.append(error)
            continue
        judge, label = _by_accuracy, preset.label
        if result.accuracy.is_fidelity:
            judge, label = _by_sqnr, preset.sqnr_label
        judged.append(one := judge(preset, result, confidence))
        if one.kept:
            report(tried / total, f"timing {recipe.describe()} afresh")
            afresh, times = _timed(result, time_afresh)
            words = f"{label}: {recipe.describe()}, {one.words}. {times}{_failures(failed)}"
            return Found(result, True, tried, words, afresh)
    if not judged:
        raise failed[0]
    nearest = min(judged, key=lambda one: (one.bound, one.loss))
    at_once = ", by a bound that holds for all at once" if total > 1 else ""
    words = (
        f"{label}: none of {total} recipes is shown to keep to that{at_once}; "
        f"{summarise(nearest.result).description} comes nearest, {nearest.words}{_failures(failed)}"
    )
    return Found(nearest.result, False, total, words)


@dataclass(frozen=True, slots=True)
class _Judged:
    """Whether a result keeps to a limit, the ``bound`` of its loss and the ``loss`` itself, lower is better,
    and both in words. Of few images no SQNR has a bound."""

    result: Result
    kept: bool
    bound: float
    loss: float
    words: str


def _by_sqnr(preset: Preset, result: Result, confidence: float) -> _Judged:
    kept = sqnr_check(result.accuracy, preset.sqnr_db, confidence).outcome is Outcome.PASS
    shown = sqnr_check(result.accuracy, preset.sqnr_db)
    ends = (end if math.isfinite(end) else None for end in (shown.low, shown.high))
    sqnr = metric("sqnr").format(shown.value, *ends) + (f" ({shown.takes})" if shown.takes else "")
    kept_words = "outputs equal" if shown.value == math.inf else f"SQNR {sqnr}"
    words = f"{kept_words} on {count(result.accuracy.total, 'image')}"
    return _Judged(result, kept, noise(result.accuracy), -shown.value, words)


def _by_accuracy(preset: Preset, result: Result, confidence: float) -> _Judged:
    needed = images_needed(preset.points, confidence)
    chosen, confirmed = halves(result, max(needed, MIN_CONFIRMING))
    kept = chosen.high_at(confidence) <= preset.points
    kept = kept and (confirmed is None or confirmed.points <= preset.points)
    words = f"accuracy lost {lost_words(chosen, confirmed, 'and ')}"
    if chosen.total < needed:
        words += (
            f". With so few images nothing can be shown to lose at most {preset.points:g} points: "
            f"that takes {needed:,}, even where no answer changes"
        )
    return _Judged(result, kept, chosen.high, chosen.points, words)


def _timed(result: Result, time_afresh: Callable[[Result], Latency]) -> tuple[Latency | None, str]:
    """The time taken once more, where that did not fail, and both times in words."""
    before = summarise(result)
    shared = f" (that of: {before.shared_with})" if before.shared_with else ""
    words = f"Time when it was chosen{shared}: {_time_words(before)}"
    try:
        afresh = time_afresh(result)
    except Exception as error:  # what was found is not to be lost to it
        return None, f"{words}; it could not be timed afresh: {words_of(error)}"
    return afresh, f"{words}; timed afresh: {_time_words(summarise(replace(result, latency=afresh)))}"


def _time_words(summary: Summary) -> str:
    return f"{summary.text('latency')}, {summary.text('latency_ratio')}"


def _failures(failed: Sequence[Exception]) -> str:
    if not failed:
        return ""
    first = ", the first with" if len(failed) > 1 else ""
    return f". {count(len(failed), 'recipe')} failed{first}: {words_of(failed[0])}"
