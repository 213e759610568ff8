"""What a search has found, looked at again: it was chosen for being good, and may have been lucky."""

import math
from collections.abc import Callable, Sequence

from optimizer.analysis.limits import MIN_CONFIRMING, TIMES, bound, halves, in_order, keeping
from optimizer.analysis.outcomes import PairedDrop
from optimizer.analysis.summary import summarise
from optimizer.formats import count
from optimizer.progress import Report
from optimizer.records import Latency, Result
from optimizer.search.records import Confirmed, Question
from optimizer.search.times import is_in_time, may_be_in_time

Retime = Callable[[Result, float], Latency]
"""Takes the time of a result once more, for so many seconds at least."""

CONFIRMING_SHARE, MAX_CONFIRMING_SECONDS = 0.3, 40.0
"""The share of the budget that is left for timing the winner once more, where there may be one, and the most
that is."""
TIMED_SHARE = 0.6
"""Of those seconds, for how many it is timed: its networks are built anew before."""
MAX_CONFIRMED = 3
"""The best so many are timed again, one after the other, until one holds and none seems better; and of those
that lose too much, so many are named."""


def candidates(results: Sequence[Result], question: Question) -> tuple[list[Result], list[Result]]:
    """What is shown to keep to the limits, the best first; and what may keep to those of time."""
    limits = question.limits
    found = in_order(keeping(results, limits, but=TIMES), question.minimise)
    return [one for one in found if is_in_time(one, limits)], [
        one for one in found if may_be_in_time(one, limits)
    ]


def confirmed(
    question: Question,
    candidates: Sequence[Result],
    confirm: Retime,
    seconds_left: Callable[[], float],
    is_early: bool,
    report: Report,
) -> tuple[Confirmed | None, tuple[Confirmed, ...]]:
    """The best of the candidates that hold when they are looked at again, and those that did not. One that
    holds is the answer where none after it seems better than it is by then, which its time decides anew.
    What loses too much is no answer, whatever its time: of such, the best are named, and none is timed.
    One time is taken afresh once, however many share it: of several tries one would be lucky. With
    ``is_early`` somebody waits for the answer, and nothing is timed for longer than it must be."""
    refused, lossy = list[Confirmed](), 0
    again, best, least = set[int](), None, math.inf
    for result in candidates:
        if best and (is_early or bound(result, question.minimise) >= least):
            break
        if result.latency.checksum in again:
            continue
        if loses(result, question):
            lossy += 1
            if lossy <= MAX_CONFIRMED:
                refused.append(Confirmed(result.key, result.latency))
            continue
        left = seconds_left()
        if len(again) == MAX_CONFIRMED or (again and left <= 0):
            break
        report(
            1 - max(left, 0.0) / question.budget_seconds, f"timing {result.request.recipe.describe()} afresh"
        )
        # A limit that a long measurement shows to be kept may be too near for a short one.
        seconds = 0.0 if is_early else TIMED_SHARE * min(max(left, 0.0), MAX_CONFIRMING_SECONDS)
        one = Confirmed(result.key, confirm(result, seconds))
        again.add(result.latency.checksum)
        timed = one.timed(result)
        if not is_in_time(timed, question.limits):
            refused.append(one)
        elif (figure := bound(timed, question.minimise)) < least:
            best, least = one, figure
    return best, tuple(refused)


def lost_words(chosen: PairedDrop, others: PairedDrop | None, joint: str = "") -> str:
    """What is lost on the images that chose it, and on others where there are enough."""
    rest = "too few to confirm it on others"
    if others:
        rest = f"{joint}{others.words} on {others.total:,} others"
    return f"{chosen.words} on the {count(chosen.total, 'image')} that chose it, {rest}"


def loses(result: Result, question: Question) -> bool:
    """Whether it loses more than is allowed on images that did not choose it, or these and those that did
    together leave it open."""
    others, limit = halves(result, MIN_CONFIRMING)[1], question.limits.drop_points
    if others is None or limit is None:
        return False
    return loses_elsewhere(result, question) or summarise(result).drop.high > limit


def loses_elsewhere(result: Result, question: Question) -> bool:
    """Whether it loses more than is allowed on images that did not choose it."""
    others = halves(result, MIN_CONFIRMING)[1]
    return others is not None and others.points > question.limits.given.get("drop", math.inf)
