"""What was asked and what was found, as tables, as plain data, and as a shell asks for it."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from optimizer.analysis.labels import engine_label
from optimizer.analysis.limits import checks
from optimizer.analysis.result_json import as_json as result_json
from optimizer.analysis.summary import label_of, quality, summarise
from optimizer.analysis.view import Failed, Results, ResultView
from optimizer.search.answers import details, headline, missed, times_of
from optimizer.search.questions import Answered
from optimizer.search.records import Outcome, Question
from optimizer.search.space import Space

if TYPE_CHECKING:
    import pandas as pd

OPTIONS = {"pruning": "prune"}
"""Axes of the space that options of the command have another name for."""


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
