"""What was asked and what was found, in words and as plain data."""

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

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
from optimizer.analysis.result_json import as_json as result_json
from optimizer.analysis.summary import label_of, quality, summarise
from optimizer.analysis.view import Failed, Results, ResultView
from optimizer.errors import InputError
from optimizer.formats import capital, count, format_share
from optimizer.records import Result
from optimizer.search.confirming import loses, loses_elsewhere, lost_words
from optimizer.search.questions import Answered, answer_of, question_of, so_far
from optimizer.search.records import Confirmed, Outcome, Question
from optimizer.search.space import Space
from optimizer.search.sweep import describe_asked
from optimizer.store.items import Sweep
from optimizer.store.results import Store

if TYPE_CHECKING:
    import pandas as pd

GAINS = {
    "latency": "less time",
    "drop": "points less lost",
    "file_size": "less file size",
    "sqnr": "dB more SQNR",
}
OPTIONS = {"pruning": "prune"}
"""Axes of the space that options of the command have another name for."""
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
    return (
        f"{question.model} on {engines}: {goal.label} as {goal.direction[:-2]} as possible with "
        f"{limits_words(question)}; {question.budget_seconds:g} s"
    )


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
        return f"SQNR {before.text('sqnr')} on {before.images}. Time when it was chosen {times}."
    return f"Lost {lost_words(*halves(result, MIN_CONFIRMING))}. Time when it was chosen {times}."


def times_of(question: Question) -> list[str]:
    """The latency, and its ratio to the uncompressed model's where that has a limit."""
    return ["latency", *(["latency_ratio"] if question.limits.latency_ratio is not None else [])]


def relaxed(found: Answered, one: Relaxation) -> str:
    """What the limit is called."""
    return label_of(one.limit, [summarise(found.results[one.key])])


def relaxation_words(found: Answered, one: Relaxation) -> str:
    """What relaxing a limit buys, or that nothing keeps to it."""
    limit, label = metric(one.limit), capital(relaxed(found, one))
    by, more = limit.format(one.more), "more" if limit.direction == "lower" else "less"
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


def trial_frame(found: Answered) -> "pd.DataFrame":
    """One row a position, in the order in which they were tried; what was not measured has no figures."""
    import pandas as pd

    rows = []
    measured = [summarise(result) for result in found.measured]
    lost = quality("drop", measured)
    for trial in found.answer.progress.trials:
        request, result = found.answer.question.request(trial.position), found.results.get(trial.key)
        summary = summarise(result) if result else None
        names = (lost, *times_of(found.answer.question), "file_size")
        figures = {name: summary.text(name) if summary else None for name in names}
        rows.append(
            {
                "after": f"{trial.seconds:.0f} s",
                "engine": engine_label(request.engine),
                "recipe": request.recipe.describe(),
                "outcome": trial.message or trial.outcome.label,
                **{label_of(name, measured): value for name, value in figures.items()},
            }
        )
    return pd.DataFrame(rows)


def command(question: Question) -> str:
    """What asks the same from a shell; empty for images that no path leads to."""
    data, space, usual = question.data, question.space, Space()
    if data.content:
        return ""
    axes = {
        name: choices
        for name, choices in space.axes.items()
        if name == "engine" or choices != usual.axes[name]
    }
    options: dict[str, object] = {
        "max-drop": question.limits.drop_points,
        "max-latency-ms": question.limits.latency_ms,
        "max-latency-ratio": question.limits.latency_ratio,
        "max-size-mb": question.limits.size_mb,
        "min-sqnr": question.limits.sqnr_db,
        "minimise": question.minimise,
        **{OPTIONS.get(name, name.replace("_", "-")): _listed(choices) for name, choices in axes.items()},
        "search": question.search,
        "budget": question.budget_seconds,
        "batch-size": question.settings.batch,
        "seed": question.settings.seed,
        "data": data.path,
        "calibration": data.calibration,
        "class-index": data.class_index,
        "limit": data.limit,
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    full = [] if question.settings.quick else ["--full"]
    return shlex.join(["paretoscope", "find", question.model, *given, *full])


def _listed(choices: Sequence[object]) -> str:
    return ",".join(map(str, choices))


def answer_json(found: Answered) -> dict[str, Any]:
    """Plain data: whether the limits are kept and by what, what was looked at again and ``missed`` a limit,
    and everything that was tried."""
    answer, best = found.answer, found.best
    question = answer.question
    requests = [(trial, question.request(trial.position)) for trial in answer.progress.trials]
    return {
        "met": best is not None,
        "ended_early": answer.is_early,
        "words": headline(found),
        "details": details(found),
        "limits": {name: value for name, value in asdict(question.limits).items() if value is not None},
        "minimise": question.minimise,
        "budget_seconds": question.budget_seconds,
        "seconds": round(answer.progress.seconds, 1),
        "best": None if best is None else result_json(best),
        "checks": [check.to_dict() for check in checks(best, question.limits)] if best else [],
        "refused": [
            {"missed": missed(found, one), **result_json(one.timed(found.results[one.key]))}
            for one in answer.refused
        ],
        "relaxations": [asdict(one) for one in answer.relaxations],
        "steps": [asdict(step) for step in answer.progress.steps],
        "tried": [
            {
                "engine": request.engine,
                "recipe": request.recipe.differences(),
                "threads": request.settings.threads,
                "outcome": trial.outcome,
                "seconds": round(trial.seconds, 2),
                "key": trial.key or None,
            }
            for trial, request in requests
        ],
    }


@dataclass(frozen=True, slots=True, eq=False)
class AnswerView:
    """An answer as one reads it in a notebook. ``workspace`` is what it was measured on."""

    found: Answered
    workspace: Any = field(default=None, repr=False)

    @property
    def best(self) -> ResultView | None:
        """The configuration, with the time that was taken afresh; None where nothing keeps to the limits."""
        best = self.found.best
        return None if best is None else ResultView(best, self.workspace)

    @property
    def results(self) -> Results:
        """All that was measured on the way."""
        question, trials = self.found.answer.question, self.found.answer.progress.trials
        failed = [
            Failed(question.request(one.position), one.message)
            for one in trials
            if one.outcome in (Outcome.FAILED, Outcome.GONE)
        ]
        return Results(tuple(ResultView(one, self.workspace) for one in self.found.measured), tuple(failed))

    def __repr__(self) -> str:
        return "\n  ".join([headline(self.found), *details(self.found)])
