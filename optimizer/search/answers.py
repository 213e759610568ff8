"""What a search found, in words and as plain data."""

from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from optimizer.analysis.labels import engine_label
from optimizer.analysis.limits import Concession, checks
from optimizer.analysis.metrics import metric
from optimizer.analysis.outcomes import PairedDrop
from optimizer.analysis.result_json import as_json as result_json
from optimizer.analysis.summary import summarise
from optimizer.analysis.view import Failed, Results, ResultView
from optimizer.formats import capital, count
from optimizer.records import Result
from optimizer.search.find import Answer, Confirmed, Fate

GAINS = {"latency": "less time", "drop": "points less lost", "file_size": "smaller a file"}


def headline(answer: Answer) -> str:
    """One sentence that can be read aloud."""
    if all(trial.fate is Fate.UNFINISHED for trial in answer.trials):
        return (
            f"Nothing could be measured in {answer.question.budget_seconds:g} s: the first measurement takes "
            "longer. Give a larger budget."
        )
    if answer.best is None:
        return f"Nothing of what was tried is shown to keep to the limits ({limits_words(answer)})."
    result = answer.best.timed
    summary = summarise(result)
    labelled = "accuracy" if summary.reference == "labels" else "agreement"
    figures = ", ".join(
        f"{metric(name).label} {summary.text(name)}" for name in (labelled, "latency", "file_size")
    )
    return f"{capital(named(result))}: {figures}."


def named(result: Result) -> str:
    """The configuration in words."""
    request = result.request
    threads = f", {count(request.settings.threads, 'thread')}" if request.settings.threads else ""
    return f"{request.recipe.describe()} on {engine_label(request.engine)}{threads}"


def limits_words(answer: Answer) -> str:
    limits = answer.question.limits.given
    return ", ".join(
        f"{metric(name).label} at most {metric(name).format(value)}" for name, value in limits.items()
    )


def details(answer: Answer) -> list[str]:
    """How sure the answer is, what it took, and what giving way would buy; a sentence each."""
    said = []
    if answer.best:
        said += [f"{capital(check.words)}." for check in checks(answer.best.timed, answer.question.limits)]
        said.append(confirmed_words(answer.best))
    said += [
        f"{capital(named(one.result))} looked better, and did not hold: {confirmed_words(one)}"
        for one in answer.refused
    ]
    said += [concession_words(one) for one in answer.concessions]
    return [*said, tried(answer)]


def confirmed_words(one: Confirmed) -> str:
    """What it loses on the images that chose it and on others, and its time when it was chosen and afresh."""
    before, after = summarise(one.result), summarise(one.timed)
    others = "too few to confirm it on others"
    if one.others:
        others = f"{_points(one.others)} on {one.others.total:,} others"
    loss = f"{_points(one.chosen)} on the {one.chosen.total:,} images that chose it, {others}"
    noisy = f" ({'; '.join(after.noise)})" if after.noise else ""
    times = f"{before.text('latency')}, timed afresh {after.text('latency')}{noisy}"
    return f"Lost {loss}. Time when it was chosen {times}."


def _points(drop: PairedDrop) -> str:
    return metric("drop").format(drop.points, drop.low, drop.high)


def concession_words(one: Concession) -> str:
    """What giving way on a limit buys, or that nothing keeps to it."""
    limit = metric(one.limit)
    more = limit.format(one.more)
    what = named(one.result)
    if one.gain is None:
        nearest = "more than allowed is the nearest, the other limits kept"
        return f"{capital(limit.label)}: {more} {nearest} ({what})."
    gain = (
        f"{one.gain:.1f} {GAINS['drop']}"
        if one.minimised == "drop"
        else f"{one.gain:.0%} {GAINS[one.minimised]}"
    )
    return f"{capital(limit.label)}: {more} more would allow {gain} ({what})."


def tried(answer: Answer) -> str:
    """How many positions were tried, and what became of them."""
    counts = {fate: sum(trial.fate is fate for trial in answer.trials) for fate in Fate}
    others = "; ".join(
        f"{number:,} {fate.label}" for fate, number in counts.items() if number and fate is not Fate.MEASURED
    )
    return (
        f"{count(len(answer.trials), 'configuration')} in {answer.seconds:.0f} s: "
        f"{counts[Fate.MEASURED]:,} measured{f'; {others}' if others else ''}."
    )


def trial_frame(answer: Answer) -> pd.DataFrame:
    """One row a position, in the order in which they were tried; what was not measured has no figures."""
    rows = []
    for trial in answer.trials:
        summary = summarise(trial.result) if trial.result else None
        figures = {name: summary.text(name) if summary else None for name in ("drop", "latency", "file_size")}
        rows.append(
            {
                "after": f"{trial.seconds:.0f} s",
                "engine": engine_label(trial.request.engine),
                "recipe": trial.request.recipe.describe(),
                "outcome": trial.message or trial.fate.label,
                **{metric(name).label: value for name, value in figures.items()},
            }
        )
    return pd.DataFrame(rows)


def answer_json(answer: Answer) -> dict[str, Any]:
    """Plain data: whether the limits are kept and by what, and everything that was tried."""
    question = answer.question
    best = answer.best
    return {
        "met": best is not None,
        "words": headline(answer),
        "details": details(answer),
        "limits": {name: value for name, value in asdict(question.limits).items() if value is not None},
        "minimise": question.minimise,
        "budget_seconds": question.budget_seconds,
        "seconds": round(answer.seconds, 1),
        "best": None if best is None else result_json(best.timed),
        "checks": []
        if best is None
        else [{**asdict(check), "outcome": check.outcome} for check in checks(best.timed, question.limits)],
        "concessions": [
            {
                "limit": one.limit,
                "more": one.more,
                "minimised": one.minimised,
                "gain": one.gain,
                "key": one.result.key,
            }
            for one in answer.concessions
        ],
        "steps": [asdict(step) for step in answer.steps],
        "tried": [
            {
                "engine": trial.request.engine,
                "recipe": trial.request.recipe.differences(),
                "threads": trial.request.settings.threads,
                "outcome": trial.fate,
                "seconds": round(trial.seconds, 2),
                "key": trial.result and trial.result.key,
            }
            for trial in answer.trials
        ],
    }


@dataclass(frozen=True, slots=True, eq=False)
class AnswerView:
    """An answer as one reads it in a notebook. ``workspace`` is what it was measured on."""

    answer: Answer
    workspace: Any = field(default=None, repr=False)

    @property
    def best(self) -> ResultView | None:
        """The configuration, with the time that was taken afresh; None where nothing keeps to the limits."""
        best = self.answer.best
        return None if best is None else ResultView(best.timed, self.workspace)

    @property
    def results(self) -> Results:
        """All that was measured on the way."""
        failed = [Failed(one.request, one.message) for one in self.answer.trials if one.fate is Fate.FAILED]
        return Results(tuple(ResultView(one, self.workspace) for one in self.answer.results), tuple(failed))

    def __repr__(self) -> str:
        return "\n  ".join([headline(self.answer), *details(self.answer)])
