"""What was asked and what was found, in words."""

import math
from collections import Counter
from contextlib import suppress

from optimizer.analysis.labels import engine_label
from optimizer.analysis.limits import (
    MIN_CONFIRMING,
    TIMES,
    Relaxation,
    bound,
    checks,
    halves,
    in_order,
    keeping,
)
from optimizer.analysis.metrics import metric
from optimizer.analysis.summary import describe_asked_images, label_of, summarise
from optimizer.errors import InputError
from optimizer.formats import capital, count, format_share
from optimizer.records import Result, decode
from optimizer.search.confirming import loses, loses_elsewhere, lost_words
from optimizer.search.questions import Answered, answer_of, question_of, so_far
from optimizer.search.records import Confirmed, Outcome, Question
from optimizer.search.sweep import Grid, describe_asked
from optimizer.store.items import Sweep
from optimizer.store.results import Store

GAINS = {
    "latency": "less time",
    "drop": "points less lost",
    "file_size": "less file size",
    "sqnr": "dB more SQNR",
}
STEPS = {"drop": 0.01, "sqnr": 0.1, "latency_ratio": 0.001}
"""Of figures as they are written; of others it is three digits."""
MAX_REASONS = 3
"""Why something failed: the table of all that was tried has every one."""


def headline(found: Answered) -> str:
    """One sentence that can be read aloud."""
    question, trials = found.answer.question, found.answer.progress.trials
    early = "Ended early. " if found.answer.is_early else ""
    if nothing_measured(found):
        if failed := next((trial.message for trial in trials if trial.message), ""):
            return f"{early}Nothing could be measured: {failed.rstrip('.')}."
        if early:
            return f"{early}Nothing was measured yet."
        return (
            f"Nothing could be measured in {question.budget_seconds:g} s: the first measurement takes "
            "longer. Give a larger budget."
        )
    if found.best is None:
        limits = limits_words(question)
        return f"{early}No configuration that was tried is shown to keep to the limits ({limits})."
    summary = summarise(found.best)
    labelled = "accuracy" if summary.reference == "labels" else "sqnr" if summary.fidelity else "agreement"
    figures = ", ".join(
        f"{metric(name).label} {summary.text(name)}" for name in (labelled, *times_of(question), "file_size")
    )
    return f"{early}{capital(named(found.best))}: {figures}."


def nothing_measured(found: Answered) -> bool:
    """Whether nothing was: whether anything keeps to the limits was not found out then."""
    return all(trial.outcome is not Outcome.MEASURED for trial in found.answer.progress.trials)


def named(result: Result) -> str:
    """The configuration in words."""
    request = result.request
    threads = f", {count(request.settings.threads, 'thread')}" if request.settings.threads else ""
    return f"{request.recipe.describe()} on {engine_label(request.engine)}{threads}"


def limits_words(question: Question) -> str:
    return ", ".join(limit_words(name, value) for name, value in question.limits.given.items())


def limit_words(name: str, value: float) -> str:
    """``latency at most 5 ms``."""
    limited = metric(name)
    most = "most" if limited.direction == "lower" else "least"
    return f"{limited.label} at {most} {limited.format.given(value)}"


def asked_words(question: Question) -> str:
    """What was asked, in a line."""
    engines, goal = ", ".join(map(engine_label, question.space.engine)), metric(question.minimise)
    images = describe_asked_images(question.data)
    return (
        f"{question.model} on {engines}, {images}: {goal.label} as {goal.direction[:-2]} as possible with "
        f"{limits_words(question)}; {question.budget_seconds:g} s"
    )


def model_of(sweep: Sweep) -> str:
    """The model that a sweep or a question of the ledger is of; "" where another version asked for it."""
    try:
        return question_of(sweep).model if sweep.answer is not None else decode(sweep.asked, Grid).base.model
    except InputError:
        return ""


def describe(sweep: Sweep) -> str:
    """What a sweep or a question of the ledger asks for, in a line."""
    if sweep.answer is None:
        return describe_asked(sweep.asked)
    try:
        return asked_words(question_of(sweep))
    except InputError:
        return "asked by another version"


def outcome_of(store: Store, sweep: Sweep) -> str:
    """How many items of a sweep are in which state, or what a question found, in a line."""
    if sweep.answer is None:
        return sweep.described()
    if sweep.state == "cancelled":
        return cancelled(store, sweep)
    found = answer_of(store, sweep.answer, tried=False) if sweep.state == "done" else None
    if found is None:
        return sweep.state
    early = ", ended early" if found.answer.is_early else ""
    if nothing_measured(found):
        failed = any(trial.message for trial in found.answer.progress.trials)
        return f"nothing could be measured{early}" if failed else f"nothing was measured{early or ' in time'}"
    return f"{named(found.best) if found.best else 'nothing keeps to the limits'}{early}"


def cancelled(store: Store, sweep: Sweep) -> str:
    """That a question was, and the best until then, in a line."""
    with suppress(InputError):  # of another version
        if found := so_far(store, sweep):
            best = named(found.best) if found.best else "nothing keeps to the limits"
            return f"{sweep.state}; so far {best}"
    return sweep.state


def details(found: Answered) -> list[str]:
    """All that is to be said of an answer: :func:`findings`, why its times are noisy, and what failed."""
    return [*findings(found), *why_noisy(found), *why_failed(found)]


def findings(found: Answered) -> list[str]:
    """How sure the answer is, what it took, and what relaxing a limit would buy; a sentence each."""
    answer, said = found.answer, list[str]()
    if found.best and answer.best:
        said += [f"{capital(check.words)}." for check in checks(found.best, answer.question.limits)]
        said.append(confirmed_words(found, answer.best))
    said += [
        f"{capital(named(found.results[one.key]))} was looked at again, and did not hold: "
        f"{missed_words(found, one)}{confirmed_words(found, one)}"
        for one in answer.refused
    ]
    said += [relaxation_words(found, one) for one in answer.relaxations]
    if found.best is None and not answer.relaxations:
        said += best_words(found)
    if found.best is None and (lucky := by_itself(found)):
        luck = f"but of {len(found.measured)} it may be the luckiest: more images would tell"
        said.append(f"{capital(named(lucky))} keeps to the limits by its own intervals, {luck}.")
    return [*said, tried(found)]


def by_itself(found: Answered) -> Result | None:
    """The best that would have been shown to keep to the limits, had nothing else been tried. What shares a
    time that did not hold has not kept to them."""
    question, measured = found.answer.question, found.measured
    shown = {one.key for one in keeping(measured, question.limits)}
    refused = {found.results[one.key].latency.checksum for one in found.answer.refused}
    others = [one for one in measured if one.key not in shown and one.latency.checksum not in refused]
    kept = [one for one in others if keeping([one], question.limits) and not loses(one, question)]
    return next(iter(in_order(kept, question.minimise)), None)


def why_noisy(found: Answered) -> list[str]:
    """Of each time that was taken afresh and is noisy, a sentence."""
    answer, said = found.answer, list[str]()
    for one in (*([answer.best] if answer.best else []), *answer.refused):
        result = found.results[one.key]
        if noise := summarise(one.timed(result)).noise:
            said.append(f"{capital(named(result))}, timed afresh, is noisy: {'; '.join(noise)}.")
    return said


def why_failed(found: Answered) -> list[str]:
    """The reasons that most of what failed has, each a sentence. Where nothing could be measured the headline
    has the first one."""
    if nothing_measured(found):
        return []
    trials = found.answer.progress.trials
    reasons = Counter(trial.message for trial in trials if trial.outcome is Outcome.FAILED)
    return [
        f"Failed, {count(number, 'configuration')}: {reason.rstrip('.')}."
        for reason, number in reasons.most_common(MAX_REASONS)
    ]


def missed(found: Answered, one: Confirmed) -> list[str]:
    """The limits that it did not keep to when it was looked at again, by the names of their metrics."""
    result, question = found.results[one.key], found.answer.question
    given = question.limits.given
    late = [name for name in TIMES if bound(one.timed(result), name) > given.get(name, math.inf)]
    return [*late, *(["drop"] if loses(result, question) else [])]


def missed_words(found: Answered, one: Confirmed) -> str:
    """Why it did not hold when it was looked at again."""
    result, question = found.results[one.key], found.answer.question

    def words(name: str) -> str:
        limit = metric(name).format.given(question.limits.given[name])
        if name != "drop":
            return f"a {metric(name).label} of at most {limit} is not shown"
        if loses_elsewhere(result, question):
            return f"more than {limit} are lost on other images"
        return f"on all images together it is not shown that at most {limit} are lost"

    said = [words(name) for name in missed(found, one)]
    return f"{' and '.join(said)}. " if said else ""


def confirmed_words(found: Answered, one: Confirmed) -> str:
    """What it loses on the images that chose it and on others, and its time when it was chosen and afresh."""
    result = found.results[one.key]
    before, after = summarise(result), summarise(one.timed(result))
    noisy = ", noisy" if after.noise else ""
    chosen_at, at_last = (
        ", ".join(one.text(name) for name in times_of(found.answer.question)) for one in (before, after)
    )
    is_afresh = one.afresh.checksum != result.latency.checksum
    times = f"{chosen_at}, {f'timed afresh {at_last}' if is_afresh else 'not taken again'}{noisy}"
    if before.fidelity:
        return f"SQNR {before.text('sqnr')} on {before.images}. Time as first measured {times}."
    return f"Lost {lost_words(*halves(result, MIN_CONFIRMING))}. Time as first measured {times}."


def times_of(question: Question) -> list[str]:
    """The latency, and its ratio to the uncompressed model's where that has a limit."""
    return ["latency", *(["latency_ratio"] if question.limits.latency_ratio is not None else [])]


def relaxed(found: Answered, one: Relaxation) -> str:
    """What the limit is called."""
    return label_of(one.limit, [summarise(found.results[one.key])])


def enough(one: Relaxation) -> float:
    """By how much a limit is relaxed, rounded up to what is written of it: by less it would not be met."""
    step = STEPS.get(one.limit) or 10 ** (math.floor(math.log10(one.more)) - 2)
    return math.ceil(round(one.more / step, 6)) * step


def relaxation_words(found: Answered, one: Relaxation) -> str:
    """What relaxing a limit buys, or that nothing keeps to it."""
    limit, label = metric(one.limit), capital(relaxed(found, one))
    by, more = limit.format(enough(one)), "more" if limit.direction == "lower" else "less"
    what = named(found.results[one.key])
    if one.gain is None:
        return f"{label}: the nearest that keeps the other limits has {by} {more} than allowed ({what})."
    gain = f"{one.gain:.1f}" if one.minimised in ("drop", "sqnr") else format_share(one.gain)
    return f"{label}: {by} {more} would allow {gain} {GAINS[one.minimised]} ({what})."


def best_words(found: Answered) -> list[str]:
    """Of each limit the best figure of all that was measured, whatever that does to the other limits."""
    return [
        f"{capital(limit_words(name, limit))}: the best measured has {summarise(best).text(name)} "
        f"({named(best)})."
        for name, limit in found.answer.question.limits.given.items()
        for best in in_order(found.measured, name)[:1]
    ]


def tried(found: Answered) -> str:
    """How many positions were tried, and what became of them; where nothing keeps to the limits, whether the
    time was over before it was found out."""
    progress = found.answer.progress
    counts = {one: sum(trial.outcome is one for trial in progress.trials) for one in Outcome}
    others = "; ".join(
        f"{number:,} {one.label}" for one, number in counts.items() if number and one is not Outcome.MEASURED
    )
    short = found.best is None and counts[Outcome.UNFINISHED] and not found.answer.is_early
    more = " The budget was too short to judge more: with a larger one the search goes on." if short else ""
    return (
        f"{count(len(progress.trials), 'configuration')} in {progress.seconds:.0f} s: "
        f"{counts[Outcome.MEASURED]:,} measured{f'; {others}' if others else ''}.{more}"
    )
