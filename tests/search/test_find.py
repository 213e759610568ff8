"""Search under limits: what is tried, given up and announced; on results that are made up."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
from search_bench import BASE, SECONDS, SMALL, Bench, question, trials, winner

from optimizer.analysis.limits import MIN_CONFIRMING, Limits, bound, covered, halves, keeping
from optimizer.analysis.summary import summarise
from optimizer.errors import EngineError, InputError, UnavailableError, WorkError
from optimizer.formats import count
from optimizer.methods.engines import ENGINES
from optimizer.progress import Cancelled, Report, ended_by
from optimizer.records import Request, Result, decode, encode
from optimizer.search.answer_data import AnswerView, answer_json
from optimizer.search.answers import details, headline
from optimizer.search.find import MAX_TIMES, Unwanted
from optimizer.search.questions import Answered
from optimizer.search.records import Answer, Outcome, Progress, Question
from optimizer.search.space import Position, Space
from optimizer.search.strategies import STRATEGIES


def is_int8(request: Request) -> bool:
    return request.recipe.quantize.activation_bits == 8 and request.recipe.quantize.weight_bits <= 8


def all_results(bench: Bench, space: Space = SMALL) -> list[Result]:
    requests = {space.request(BASE, position) for position in space.all()}
    return [bench.result(request) for request in requests]


@pytest.mark.slow
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
    found = winner(answer)
    assert bound(answer.results[found.key], limits.usual(10)) == min(
        bound(one, limits.usual(10)) for one in kept
    )
    assert found.key in {one.key for one in kept}


@pytest.mark.slow
@pytest.mark.parametrize("search", STRATEGIES)
def test_nothing_is_measured_twice_and_the_time_is_kept(search: str) -> None:
    bench = Bench()
    answer = bench.ask(Limits(drop_points=1), search, budget=20)
    asked = bench.measured + bench.given_up
    assert len(asked) == len(set(asked))
    assert bench.measured
    progress = answer.answer.progress
    assert progress.seconds <= 20
    assert [step.measured for step in progress.steps][-1] == len(bench.measured)


@pytest.mark.slow
def test_the_same_question_asks_for_the_same_positions() -> None:
    first, second = Bench(), Bench()
    for bench in (first, second):
        bench.ask(Limits(drop_points=1, size_mb=1), "guided", budget=20)
    assert first.measured == second.measured


@pytest.mark.parametrize("search", STRATEGIES)
def test_a_search_that_was_killed_goes_on_where_it_was(search: str) -> None:
    asked, whole, bench = question(Limits(latency_ms=1), search, 20), Bench(), Bench()
    whole.go_on(asked, Progress())
    for last in (2, 4):

        def killed(request: Request, unwanted: Unwanted, report: Report, last: int = last) -> Result | None:
            if len(bench.measured) + len(bench.given_up) == last:
                bench.now += 0.5
                report(None, "scoring")
                raise KeyboardInterrupt
            return bench.measure(request, unwanted)

        before = bench.kept[-1] if bench.kept else Progress()
        with pytest.raises(KeyboardInterrupt):
            bench.go_on(asked, before, killed)
        assert bench.kept[-1].seconds >= before.seconds + 0.5, "what it was killed in counts too"
    bench.now += 1000  # nobody searches meanwhile
    found = bench.go_on(asked, bench.kept[-1])
    assert bench.measured == whole.measured[: len(bench.measured)]
    assert len(bench.measured) >= len(whole.measured) - 1, "two kills cost a second"
    assert len(set(bench.given_up)) == len(bench.given_up)
    assert found.answer.progress.seconds <= 20 + SECONDS
    steps = found.answer.progress.steps
    assert [step.seconds for step in steps] == sorted(step.seconds for step in steps)


@pytest.mark.slow
@pytest.mark.parametrize("search", STRATEGIES)
def test_a_larger_budget_goes_on_from_a_smaller_one(search: str) -> None:
    limits, whole, bench = Limits(drop_points=1, size_mb=1), Bench(), Bench()
    found = whole.ask(limits, search)
    best, shown = winner(found), found.answer.progress.steps[-1].value
    assert shown == summarise(best).measures["latency"].value, "as in its sentence, not the bound"
    first = bench.ask(limits, search, 10)
    asked = len(bench.measured)
    again = bench.go_on(question(limits, search, 10), first.answer.progress)
    assert len(bench.measured) == asked, "its time is over"
    assert again.best == first.best
    found = bench.go_on(question(limits, search), first.answer.progress)
    assert bound(winner(found), "latency") == bound(best, "latency")
    assert len(set(bench.measured)) == len(bench.measured)
    assert not any(trial.outcome is Outcome.UNFINISHED for trial in trials(found))


def test_a_search_that_is_stopped_answers_with_the_best_so_far() -> None:
    bench = Bench()
    asked = question(Limits(drop_points=1))
    early = bench.go_on(asked, Progress(), enough=lambda: len(bench.measured) > 2)
    assert early.answer.is_early
    assert early.best is not None
    assert headline(early).startswith("Ended early. ")
    assert len(bench.measured) == 3
    whole = bench.go_on(asked, early.answer.progress)
    assert not whole.answer.is_early
    assert trials(whole)[: len(trials(early))] == trials(early)


def test_an_answer_comes_back_from_its_bytes() -> None:
    for limits in (Limits(drop_points=1, size_mb=1), Limits(drop_points=0.5, size_mb=0.05)):
        answer = Bench().ask(limits).answer
        assert decode(encode(answer), Answer) == answer


def test_what_cannot_win_is_not_measured() -> None:
    bench = Bench()
    dense = bench.ask(Limits(drop_points=1, size_mb=1, latency_ms=0.4))
    sparse = bench.ask(Limits(drop_points=1), space=replace(SMALL, engine=("sparse",)))
    outcomes = {
        found.answer.question.request(trial.position): trial.outcome
        for found in (dense, sparse)
        for trial in trials(found)
    }
    assert {Outcome.TOO_LARGE, Outcome.LOSES, Outcome.TOO_SLOW, Outcome.NO_FASTER} <= set(outcomes.values())
    for request, outcome in outcomes.items():
        result = bench.result(request)
        if outcome is Outcome.TOO_LARGE:
            assert result.inspection.size.file_bytes > 1e6
        if outcome is Outcome.TOO_SLOW:
            assert bound(result, "latency") > 0.4e6
        if outcome is Outcome.LOSES:
            assert bound(result, "drop") > 1
    assert len(bench.measured) < len(outcomes) / 2


def test_a_winner_that_does_not_hold_is_passed_over_for_the_next() -> None:
    def own_time(request: Request) -> float:
        return 1.0 - (request.recipe.prune.sparsity or 0) / 2

    space = replace(SMALL, engine=("sparse",), weight_bits=(32,), activation_bits=(32,))
    bench = Bench(own_time)
    first = winner(bench.ask(Limits(drop_points=2, latency_ms=0.55), space=space))
    bench.afresh[first.key] = 1.0
    again = bench.ask(Limits(drop_points=2, latency_ms=0.55), space=space)
    assert [one.key for one in again.answer.refused] == [first.key]
    assert winner(again).key != first.key
    assert bound(winner(again), "latency") <= 0.55e6
    assert any("did not hold: a latency of at most 550 µs is not shown. " in one for one in details(again))
    (refused,) = answer_json(again)["refused"]
    assert refused["missed"] == ["latency"]
    assert refused["key"] == first.key
    assert refused["latency"]["ratio"] == pytest.approx(1.0, rel=0.1), "as it was afresh"


def test_what_is_announced_is_judged_on_images_that_did_not_choose_it() -> None:
    found = Bench().ask(Limits(drop_points=2))
    chosen, others = halves(winner(found), MIN_CONFIRMING)
    assert others is not None
    assert chosen.total + others.total == 10_000
    assert others.points <= 2
    assert any(f"{others.total:,} others" in sentence for sentence in details(found))
    few = Bench(images=600).ask(Limits(drop_points=5))
    assert any("on the 600 images that chose it, too few" in sentence for sentence in details(few))


def int8_is_fast(request: Request) -> float:
    return 0.4 if is_int8(request) else 1.0


def int8_loses_elsewhere(request: Request) -> tuple[int, int] | None:
    """Of 10,000 images, where nothing is pruned: 0.2 points on the half that chooses, 1.2 on the other."""
    return (10, 60) if is_int8(request) and not request.recipe.prune.active else None


def test_what_loses_too_much_elsewhere_does_not_keep_from_search_what_runs_its_kernels() -> None:
    bench = Bench(int8_is_fast, lost=int8_loses_elsewhere)
    found = bench.ask(Limits(drop_points=1))
    assert is_int8(winner(found).request), "no slower than what was found to lose too much"
    assert winner(found).request.recipe.prune.active
    kept = [one for one in all_results(bench) if keeping([one], Limits(drop_points=1))]
    others = [halves(one, MIN_CONFIRMING)[1] for one in kept]
    fit = [one for one, rest in zip(kept, others, strict=True) if rest and rest.points <= 1]
    assert bound(winner(found), "latency") == min(bound(one, "latency") for one in fit)
    refused = answer_json(found)["refused"]
    assert refused
    assert all(one["missed"] == ["drop"] for one in refused)
    assert len(bench.confirmed_for) == 1, "what loses too much is not timed"
    assert any("more than 1.0 points are lost on other images" in one for one in details(found))
    assert any("not taken again" in one for one in details(found))


def test_what_all_images_together_leave_undecided_is_not_announced() -> None:
    """None of 500 lost on those that choose, 5 of 500 on the others: up to 1.2 points on all."""

    def lost(request: Request) -> tuple[int, int]:
        return (0, 5) if is_int8(request) else (0, 0) if request.recipe.identity else (20, 20)

    bench, space = Bench(int8_is_fast, images=1000, lost=lost), replace(SMALL, pruning=("none",))
    found = bench.ask(Limits(drop_points=1), space=replace(space, weight_bits=(32, 8)))
    assert winner(found).request.recipe.identity
    plain = answer_json(found)
    assert [one["outcome"] for one in plain["checks"]] == ["pass"]
    assert [one["missed"] for one in plain["refused"]] == [["drop"]]
    assert any("not shown that at most 1.0 points are lost. " in one for one in details(found))
    many = bench.ask(Limits(drop_points=1), space=space)
    assert winner(many).request.recipe.identity, "which surely loses nothing, however much is tried"


def test_relaxing_what_may_be_lost_is_offered_where_more_is_lost_on_the_other_images_too() -> None:
    """Of what does not even seem to keep to the limit."""
    bench = Bench(int8_is_fast, lost=lambda request: (45, 60) if is_int8(request) else None)
    found = bench.ask(Limits(drop_points=1), space=replace(SMALL, pruning=("none",), weight_bits=(8,)))
    assert found.best is not None
    (relaxation,) = found.answer.relaxations
    assert relaxation.limit == "drop"
    assert is_int8(found.results[relaxation.key].request)
    assert not found.answer.refused


def test_what_was_no_faster_than_a_best_that_holds_no_more_is_tried_when_a_search_goes_on() -> None:
    bench = Bench(int8_is_fast)
    first = bench.ask(Limits(drop_points=1))
    assert not winner(first).request.recipe.prune.active
    bench.lost = int8_loses_elsewhere
    bench.results = {key: replace(bench.result(one.request), key=key) for key, one in bench.results.items()}
    found = bench.go_on(question(Limits(drop_points=1), budget=2000), first.answer.progress)
    assert is_int8(winner(found).request)


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_without_a_limit_of_time_coverage_is_counted_up_to_the_uncompressed_model_s(
    ratio: float | None,
) -> None:
    found = Bench().ask(Limits(drop_points=1, latency_ratio=ratio))
    summaries = [summarise(one) for one in found.measured]
    before = summaries[0].measures["latency"].baseline
    assert before is not None
    points = [(one.drop.points, one.measures["latency"].value or 0) for one in summaries]
    assert found.answer.progress.steps[-1].covered == covered(points, (1, (ratio or 1) * before)) > 0


def test_where_nothing_keeps_to_the_limits_the_nearest_to_each_is_told() -> None:
    answer = Bench().ask(Limits(drop_points=0.5, size_mb=0.05))
    assert answer.best is None
    nearest = {one.limit: one for one in answer.answer.relaxations}
    assert nearest.keys() <= {"drop", "file_size"}
    assert nearest["file_size"].more > 0
    assert bound(answer.results[nearest["file_size"].key], "drop") <= 0.5
    assert "No configuration" in headline(answer)


def test_what_a_limit_costs() -> None:
    answer = Bench(int8_is_fast).ask(Limits(drop_points=0.2))
    assert answer.best is not None
    (relaxation,) = answer.answer.relaxations
    assert relaxation.limit == "drop"
    assert relaxation.gain == pytest.approx(0.6, abs=0.05)
    assert any("less time" in one for one in details(answer))


def test_a_search_that_is_cancelled_ends_where_a_measurement_next_says_how_far_it_is() -> None:
    bench = Bench()

    def measure(request: Request, unwanted: Unwanted, report: Report) -> Result | None:
        report(None, "half of it")
        return bench.measure(request, unwanted)

    with pytest.raises(Cancelled), ended_by(lambda: len(bench.measured) == 2):
        bench.go_on(question(Limits(drop_points=1)), Progress(), measure)
    assert len(bench.measured) == 2


def test_the_first_failure_is_raised_and_later_ones_are_told() -> None:
    bench = Bench()

    def fails(at: int, request: Request, unwanted: Unwanted, report: Report) -> Result | None:
        if len(bench.measured) >= at:
            raise WorkError("out of memory")
        return bench.measure(request, unwanted)

    asked = question(Limits(latency_ms=1), budget=20)
    with pytest.raises(WorkError, match="out of memory"):
        bench.go_on(asked, Progress(), partial(fails, 0))
    answer = bench.go_on(asked, Progress(), partial(fails, 2))
    assert len(answer.measured) == 2
    assert any(trial.message == "out of memory" for trial in trials(answer))


@pytest.mark.parametrize("error", [WorkError, EngineError])
@pytest.mark.parametrize("search", ["guided", "grid"])
def test_an_engine_or_a_number_of_threads_that_fails_first_does_not_fail_the_question(
    search: str, error: type[WorkError]
) -> None:
    """One that can't run the network at all is tried once, others at each of their positions."""
    small = replace(SMALL, sparsity=(0.5,), weight_bits=(32, 8))
    for space in (replace(small, engine=("onnxruntime", "openvino")), replace(small, threads=(2, 1))):
        first, bench, failed = space.request(BASE, space.all()[0]), Bench(), list[Request]()

        def measure(
            bench: Bench,
            first: Request,
            failed: list[Request],
            request: Request,
            unwanted: Unwanted,
            report: Report,
        ) -> Result | None:
            if (request.engine, request.settings.threads) == (first.engine, first.settings.threads):
                failed.append(request)
                raise error("can't convert the model")
            return bench.measure(request, unwanted)

        asked = question(Limits(size_mb=1000), search, space=space)
        found = bench.go_on(asked, Progress(), partial(measure, bench, first, failed))
        each = len({small.request(BASE, position) for position in small.all()})
        assert len(found.measured) == each
        assert len(found.answer.progress.trials) == 2 * each
        assert len(failed) == (1 if error is EngineError else each)
        assert {trial.message for trial in trials(found)} == {"", "can't convert the model"}
        assert details(found)[-1] == f"Failed, {count(each, 'configuration')}: can't convert the model."
        assert trials(found)[0].message, "its own turn comes first"
        assert trials(found)[1].key, "then that of another"


def test_what_fails_on_each_engine_fails_the_question_with_what_the_first_said() -> None:
    tried = list[str]()

    def measure(request: Request, unwanted: Unwanted, report: Report) -> Result | None:
        tried.append(request.engine)
        raise WorkError(f"no images for {request.engine}")

    space = replace(SMALL, engine=("onnxruntime", "openvino"))
    with pytest.raises(WorkError, match="no images for onnxruntime"):
        Bench().go_on(question(Limits(size_mb=1000), space=space), Progress(), measure)
    assert tried == ["onnxruntime", "openvino"]


def test_what_failed_once_is_tried_again_and_what_can_t_be_kept_ends_the_search() -> None:
    """An engine's own error is a failure like any other."""
    bench, errors = Bench(), {2: RuntimeError("bad graph"), 6: UnavailableError("the disk is full")}

    def measure(request: Request, unwanted: Unwanted, report: Report) -> Result | None:
        if error := errors.pop(len(bench.measured), None):
            raise error
        return bench.measure(request, unwanted)

    asked = question(Limits(size_mb=1000))
    with pytest.raises(UnavailableError, match="disk is full"):
        bench.go_on(asked, Progress(), measure)
    before = bench.kept[-1]
    assert [trial.message for trial in before.trials if trial.message] == ["RuntimeError: bad graph"]
    answer = bench.go_on(asked, before, measure)
    assert not any(trial.message for trial in trials(answer))
    assert (
        len(bench.measured) == len(set(bench.measured)) == len({SMALL.request(BASE, p) for p in SMALL.all()})
    )


def test_each_position_that_ends_its_process_is_given_up_for_good_and_the_search_goes_on() -> None:
    asked, bench = question(Limits(size_mb=1000)), Bench()
    requests = list(dict.fromkeys(SMALL.request(BASE, position) for position in SMALL.all()))
    deadly, deaths = {requests[1], requests[4]}, list[Request]()

    def measure(request: Request, unwanted: Unwanted, report: Report) -> Result | None:
        if request in deadly:
            deaths.append(request)
            raise KeyboardInterrupt
        return bench.measure(request, unwanted)

    def until_answered(asked: Question, before: Progress) -> Answered:
        while len(deaths) < 2 * MAX_TIMES + 1:
            with suppress(KeyboardInterrupt):
                return bench.go_on(asked, before, measure)
            before = bench.kept[-1]
        raise AssertionError

    found = until_answered(asked, Progress())
    assert sorted(map(str, deaths)) == sorted(map(str, [*deadly] * MAX_TIMES))
    assert len(found.measured) == len(requests) - len(deadly)
    gone = [trial for trial in trials(found) if trial.outcome is Outcome.GONE]
    assert {asked.request(trial.position) for trial in gone} == deadly
    assert {one.message for one in gone} == {"the process that measured it was gone 3 times in a row"}
    longer = until_answered(replace(asked, budget_seconds=2000), found.answer.progress)
    assert len(deaths) == 2 * MAX_TIMES, "nor by a larger budget"
    assert decode(encode(longer.answer), Answer) == longer.answer
    assert [one.message for one in AnswerView(longer).results.failed] == [one.message for one in gone]


def test_what_a_search_does_between_measurements_does_not_grow_with_the_square_of_all_it_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Requests are nested, and hashing one takes as long as noting one."""
    hashed, plain = 0, Request.__hash__

    def counted(request: Request) -> int:
        nonlocal hashed
        hashed += 1
        return plain(request)

    space = replace(SMALL, sparsity=tuple(number / 50 for number in range(1, 50)), weight_bits=(8, 4))
    asked = question(Limits(latency_ms=0.1), space=space)
    monkeypatch.setattr(Request, "__hash__", counted)
    found = Bench().go_on(asked, Progress())
    noted = [trial for trial in trials(found) if trial.outcome is Outcome.TOO_SLOW]
    assert len(noted) > 150
    assert hashed < 20 * space.positions


def test_json_is_whole() -> None:
    answer = Bench().ask(Limits(drop_points=1, size_mb=1))
    said = answer_json(answer)
    assert said["met"]
    assert len(said["tried"]) == len(trials(answer))
    assert said["best"]["key"] == winner(answer).key


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


def test_a_search_begins_with_int8_kernels_without_calibration_statistics() -> None:
    """Of a large network they may take longer than the search has."""
    first, second = (Space().request(BASE, position).recipe for position in Space().likely()[:2])
    assert (first.quantize.method, second.quantize.method) == ("nearest", "compensated")
    assert first.quantize.rounds_activations


def test_positions_that_were_kept_before_rounding_was_an_axis_ask_for_the_same() -> None:
    for position in Space().likely():
        older = {name: value for name, value in position.items() if name != "rounding"}
        if position["rounding"] == "compensated":
            assert Space().request(BASE, older) == Space().request(BASE, position)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Limits(), "no limit is given"),
        (lambda: Limits(drop_points=0), "^max drop 0 is not allowed"),
        (lambda: Limits(latency_ms=float("nan")), "^max latency ms nan"),
        (lambda: Limits(size_mb=-1), "^max size mb -1"),
        (lambda: Limits(drop_points=100), "below 100"),
        (
            lambda: Limits(sqnr_db=150),
            "^min sqnr 150 is not allowed: give a number above -100 and below 150",
        ),
        (lambda: Question("x", Limits(size_mb=1), "accuracy"), "accuracy"),
        (lambda: Question("x", Limits(size_mb=1), "drop", budget_seconds=0), "0 s is not allowed"),
        (lambda: Question("x", Limits(size_mb=1), "drop", search="magic"), "magic"),
        (lambda: Space(engine=()), "engine has nothing to choose from"),
        (lambda: Space(engine=("tpu",)), "tpu"),
        (lambda: Space(sparsity=(1.0,)), "sparsity 1 is out of range"),
        (lambda: Space(weight_bits=(9,)), "weight bits"),
        (lambda: Space(threads=(1, -2)), "threads -2 is not allowed"),
        (lambda: Space(threads=(1, 1.5)), "threads 1.5 is no whole number"),
        (lambda: Space(sparsity=tuple(i / 10_001 for i in range(1, 10_000))), "too many to search"),
    ],
)
def test_bad_input_is_refused_at_the_door(made: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        made()
