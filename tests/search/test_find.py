"""Search under limits: what is tried, given up and announced; on results that are made up."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from search_bench import BASE, SMALL, Bench

from optimizer.analysis.limits import Limits, bound, keeping
from optimizer.errors import InputError, WorkError
from optimizer.methods.engines import ENGINES
from optimizer.progress import Report
from optimizer.records import Request, Result
from optimizer.search.answers import answer_json, details, headline
from optimizer.search.find import Fate, Question, Unwanted, find
from optimizer.search.space import Position, Space
from optimizer.search.strategies import STRATEGIES


def all_results(bench: Bench, space: Space = SMALL) -> list[Result]:
    requests = {space.request(BASE, position) for position in space.all()}
    return [bench.result(request) for request in requests]


@pytest.mark.parametrize("search", STRATEGIES)
@pytest.mark.parametrize(
    "limits",
    [
        Limits(drop_points=1),
        Limits(drop_points=2, size_mb=1),
        Limits(drop_points=1, latency_ms=0.3),
        Limits(latency_ms=0.3),
        Limits(size_mb=1),
    ],
    ids=str,
)
def test_with_time_for_everything_the_best_of_everything_is_found(search: str, limits: Limits) -> None:
    bench = Bench()
    answer = bench.ask(limits, search)
    kept = keeping(all_results(bench), limits)
    assert answer.best is not None
    found = answer.best.result
    assert bound(found, limits.usual) == min(bound(one, limits.usual) for one in kept)
    assert found.key in {one.key for one in kept}


@pytest.mark.parametrize("search", STRATEGIES)
def test_nothing_is_measured_twice_and_the_time_is_kept(search: str) -> None:
    bench = Bench()
    answer = bench.ask(Limits(drop_points=1), search, budget=20)
    asked = bench.measured + bench.given_up
    assert len(asked) == len(set(asked))
    assert bench.measured
    assert answer.seconds <= 20
    assert [step.measured for step in answer.steps][-1] == len(bench.measured)


def test_the_same_question_asks_for_the_same_positions() -> None:
    first, second = Bench(), Bench()
    for bench in (first, second):
        bench.ask(Limits(drop_points=1, size_mb=1), "guided", budget=20)
    assert first.measured == second.measured


def test_what_cannot_win_is_not_measured() -> None:
    bench = Bench()
    dense = bench.ask(Limits(drop_points=1, size_mb=1, latency_ms=0.4))
    sparse = bench.ask(Limits(drop_points=1), space=replace(SMALL, engine=("sparse",)))
    trials = dense.trials + sparse.trials
    fates = {trial.request: trial.fate for trial in trials}
    assert {Fate.TOO_LARGE, Fate.LOSES, Fate.TOO_SLOW, Fate.NO_FASTER} <= set(fates.values())
    for request, fate in fates.items():
        result = bench.result(request)
        if fate is Fate.TOO_LARGE:
            assert result.inspection.size.file_bytes > 1e6
        if fate is Fate.TOO_SLOW:
            assert bound(result, "latency") > 0.4e6
        if fate is Fate.LOSES:
            assert bound(result, "drop") > 1
    assert len(bench.measured) < len(fates) / 2


def test_a_winner_that_does_not_hold_gives_way_to_the_next() -> None:
    def own_time(request: Request) -> float:
        return 1.0 - (request.recipe.prune.sparsity or 0) / 2

    space = replace(SMALL, engine=("sparse",), weight_bits=(32,), activation_bits=(32,))
    bench = Bench(own_time)
    first = bench.ask(Limits(drop_points=2, latency_ms=0.55), space=space).best
    assert first is not None
    bench.afresh[first.result.key] = 1.0
    again = bench.ask(Limits(drop_points=2, latency_ms=0.55), space=space)
    assert [one.result.key for one in again.refused] == [first.result.key]
    assert again.best is not None
    assert again.best.result.key != first.result.key
    assert bound(again.best.timed, "latency") <= 0.55e6
    assert any("did not hold" in sentence for sentence in details(again))


def test_what_is_announced_is_judged_on_images_that_did_not_choose_it() -> None:
    best = Bench().ask(Limits(drop_points=2)).best
    assert best is not None
    assert best.others is not None
    assert best.chosen.total + best.others.total == 10_000
    assert best.others.points <= 2
    few = Bench(images=600).ask(Limits(drop_points=5)).best
    assert few is not None
    assert (few.others, few.chosen.total) == (None, 600)


def test_where_nothing_keeps_to_the_limits_the_nearest_to_each_is_told() -> None:
    answer = Bench().ask(Limits(drop_points=0.5, size_mb=0.05))
    assert answer.best is None
    assert {one.limit for one in answer.concessions} <= {"drop", "file_size"}
    nearest = {one.limit: one for one in answer.concessions}
    assert nearest["file_size"].more > 0
    assert bound(nearest["file_size"].result, "drop") <= 0.5
    assert "Nothing" in headline(answer)


def test_what_a_limit_costs() -> None:
    def int8_is_fast(request: Request) -> float:
        return 0.4 if request.recipe.quantize.activation_bits == 8 else 1.0

    answer = Bench(int8_is_fast).ask(Limits(drop_points=0.2))
    assert answer.best is not None
    (concession,) = answer.concessions
    assert concession.limit == "drop"
    assert concession.gain == pytest.approx(0.6, abs=0.05)
    assert any("more would allow 60% less time" in one or "less time" in one for one in details(answer))


def test_too_little_time_is_said() -> None:
    answer = Bench().ask(Limits(drop_points=1), budget=1e-9)
    assert (answer.best, answer.results) == (None, ())
    assert "larger budget" in headline(answer)


def test_the_first_failure_is_raised_and_later_ones_are_told() -> None:
    bench = Bench()

    def fails(at: int, request: Request, unwanted: Unwanted, report: Report) -> Result | None:
        if len(bench.measured) >= at:
            raise WorkError("out of memory")
        return bench.measure(request, unwanted)

    question = Question(Limits(latency_ms=1), "drop", SMALL, "grid", 20)
    with pytest.raises(WorkError, match="out of memory"):
        find(question, BASE, partial(fails, 0), bench.confirm, clock=lambda: bench.now)
    answer = find(question, BASE, partial(fails, 2), bench.confirm, clock=lambda: bench.now)
    assert len(answer.results) == 2
    assert any(trial.message == "out of memory" for trial in answer.trials)


def test_json_is_whole() -> None:
    answer = Bench().ask(Limits(drop_points=1, size_mb=1))
    said = answer_json(answer)
    assert said["met"]
    assert len(said["tried"]) == len(answer.trials)
    assert said["best"]["key"] == answer.best.result.key if answer.best else False


def test_a_space_names_equal_work_once() -> None:
    requests = [SMALL.request(BASE, position) for position in SMALL.all()]
    assert len(set(requests)) == 2 * 3 + 4 * 2 * 3
    sparse = replace(SMALL, engine=("sparse",))
    assert all(
        sparse.request(BASE, position).recipe.quantize.activation_bits == 32 for position in sparse.all()
    )
    likely: list[Position] = Space().likely()
    assert {position["engine"] for position in likely} == {
        name for name, one in ENGINES.items() if one.int8 or one.skips_zeros
    }


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Limits(), "no limit is given"),
        (lambda: Limits(drop_points=0), "--max-drop 0 is not allowed"),
        (lambda: Limits(latency_ms=float("nan")), "--max-latency-ms nan"),
        (lambda: Limits(size_mb=-1), "--max-size-mb -1"),
        (lambda: Limits(drop_points=100), "below 100"),
        (lambda: Question(Limits(size_mb=1), "accuracy"), "accuracy"),
        (lambda: Question(Limits(size_mb=1), "drop", budget_seconds=0), "0 s is not allowed"),
        (lambda: Question(Limits(size_mb=1), "drop", search="magic"), "magic"),
        (lambda: Space(engine=()), "engine has nothing to choose from"),
        (lambda: Space(engine=("tpu",)), "tpu"),
        (lambda: Space(sparsity=(1.0,)), "sparsity 1 is out of range"),
        (lambda: Space(weight_bits=(9,)), "weight bits"),
        (lambda: Space(sparsity=tuple(i / 10_001 for i in range(1, 10_000))), "too many to search"),
    ],
)
def test_bad_input_is_refused_at_the_door(made: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        made()
