"""What became of a question, in words: also where it was not found out."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from factories import make_result
from faults.storing import claimed
from search_bench import SMALL, Bench, question

from optimizer.analysis.limits import Limits, Relaxation
from optimizer.errors import WorkError
from optimizer.progress import Report
from optimizer.records import Request, Result, encode
from optimizer.search.answers import details, headline, outcome_of, relaxation_words
from optimizer.search.find import MAX_TIMES, Unwanted
from optimizer.search.questions import Answered, ask
from optimizer.search.records import Outcome, Progress
from optimizer.store import ledger
from optimizer.store.results import ANSWER, EARLY_ANSWER, Store

Measure = Callable[[Request, Unwanted, Report], Result | None]


def fails(request: Request, unwanted: Unwanted, report: Report) -> Result | None:
    raise WorkError("out of memory.")


@pytest.mark.parametrize(("labelled", "label"), [(True, "Accuracy"), (False, "Agreement")])
def test_what_a_limit_costs_is_agreement_without_labels(labelled: bool, label: str) -> None:
    result = make_result(labelled=labelled)
    found = Answered(Bench().ask(Limits(drop_points=1)).answer, {result.key: result})
    words = relaxation_words(found, Relaxation("drop", 0.5, "latency", None, result.key))
    assert words.startswith(
        f"{label} lost: the nearest that keeps the other limits has 0.50 points more than allowed"
    )


@pytest.mark.parametrize(
    ("budget", "is_early", "measure", "before", "came", "said"),
    [
        (
            1e-9,
            False,
            None,
            Progress(),
            "nothing was measured in time",
            "Nothing could be measured in 1e-09 s: the first measurement takes longer. Give a larger budget.",
        ),
        (
            60,
            True,
            None,
            Progress(),
            "nothing was measured, ended early",
            "Ended early. Nothing was measured yet.",
        ),
        (
            60,
            False,
            fails,
            Progress(at=SMALL.all()[0], times=MAX_TIMES),
            "nothing could be measured",
            "Nothing could be measured: the process that measured it was gone 3 times in a row.",
        ),
        (60, False, None, Progress(), "nothing keeps to the limits", "No configuration that was tried"),
    ],
)
def test_the_history_says_of_a_question_what_its_answer_says(
    budget: float, is_early: bool, measure: Measure | None, before: Progress, came: str, said: str
) -> None:
    store, bench = Store(), Bench()
    asked = question(Limits(size_mb=1e-6), budget=budget)
    ask(store, asked, "ann")
    item = claimed(store)
    found = bench.go_on(asked, before, measure, enough=lambda: is_early)
    for result in found.measured:
        store.put(result)
    store.put_document(EARLY_ANSWER if is_early else ANSWER, str(item.answer), encode(found.answer))
    ledger.finish(store, item, str(item.answer), 1.0)
    (sweep,) = ledger.sweeps(store)
    assert outcome_of(store, sweep) == came
    assert headline(found).startswith(said)


@pytest.mark.parametrize(
    ("outcome", "is_early", "short"),
    [(Outcome.UNFINISHED, False, True), (Outcome.UNFINISHED, True, False), (Outcome.TOO_LARGE, False, False)],
)
def test_where_nothing_is_found_it_is_said_whether_the_budget_was_too_short(
    outcome: Outcome, is_early: bool, short: bool
) -> None:
    found = Bench().go_on(question(Limits(size_mb=1e-6)), Progress(), None)
    progress = found.answer.progress
    trials = (*progress.trials[:-1], replace(progress.trials[-1], outcome=outcome))
    found = replace(
        found,
        answer=replace(found.answer, is_early=is_early, progress=replace(progress, trials=trials)),
    )
    assert ("budget was too short to judge" in details(found)[-1]) == short


@pytest.mark.parametrize("noisy", [False, True])
def test_a_time_that_is_noisy_when_it_is_taken_afresh_is_called_so(noisy: bool) -> None:
    bench = Bench()
    bench.confirm = lambda result, seconds: make_result(quick=True, noisy=noisy, seed=1).latency  # type: ignore[method-assign]
    said = details(bench.ask(Limits(size_mb=1)))
    (times,) = [one for one in said if "Time as first measured" in one]
    assert "timed afresh" in times
    assert times.endswith(", noisy.") == noisy
    assert any("timed afresh, is noisy: " in one for one in said) == noisy
