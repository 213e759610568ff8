"""Search under limits: what is tried, given up and announced; on results that are made up."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from factories import make_result
from search_bench import BASE, SECONDS, SMALL, Bench, question

from optimizer.analysis.limits import MIN_CONFIRMING, TIMES, Limits, bound, halves, keeping
from optimizer.analysis.outcomes import shown_within
from optimizer.analysis.summary import summarise
from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.methods.engines import ENGINES
from optimizer.progress import Report
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import Latency, Request, Result, decode, encode
from optimizer.search.answers import answer_json, details, findings, headline
from optimizer.search.find import (
    AGAIN_LONGER,
    AGAIN_SHARE,
    CONFIRMING_SHARE,
    MAX_CONFIRMING_SECONDS,
    TIMED_SHARE,
    Unwanted,
)
from optimizer.search.questions import Answered
from optimizer.search.records import Answer, Outcome, Progress, Question, Trial
from optimizer.search.space import Position, Space
from optimizer.search.strategies import STRATEGIES


def all_results(bench: Bench, space: Space = SMALL) -> list[Result]:
    requests = {space.request(BASE, position) for position in space.all()}
    return [bench.result(request) for request in requests]


def trials(found: Answered) -> tuple[Trial, ...]:
    return found.answer.progress.trials


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
    found = answer.best
    assert bound(answer.results[found.key], limits.usual(10)) == min(
        bound(one, limits.usual(10)) for one in kept
    )
    assert found.key in {one.key for one in kept}


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


@pytest.mark.parametrize("search", STRATEGIES)
def test_a_larger_budget_goes_on_from_a_smaller_one(search: str) -> None:
    limits, whole, bench = Limits(drop_points=1, size_mb=1), Bench(), Bench()
    best = whole.ask(limits, search).best
    first = bench.ask(limits, search, 10)
    asked = len(bench.measured)
    again = bench.go_on(question(limits, search, 10), first.answer.progress)
    assert len(bench.measured) == asked, "its time is over"
    assert again.best == first.best
    found = bench.go_on(question(limits, search), first.answer.progress)
    assert best is not None
    assert found.best is not None
    assert bound(found.best, "latency") == bound(best, "latency")
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
    nothing = Bench().go_on(asked, Progress(), enough=lambda: True)
    assert headline(nothing) == "Ended early. Nothing was measured yet."
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
    first = bench.ask(Limits(drop_points=2, latency_ms=0.55), space=space).best
    assert first is not None
    bench.afresh[first.key] = 1.0
    again = bench.ask(Limits(drop_points=2, latency_ms=0.55), space=space)
    assert [one.key for one in again.answer.refused] == [first.key]
    assert again.best is not None
    assert again.best.key != first.key
    assert bound(again.best, "latency") <= 0.55e6
    assert any("did not hold: a latency of at most 550 µs is not shown. " in one for one in details(again))


def is_int8(request: Request) -> bool:
    return request.recipe.quantize.activation_bits == 8


def test_a_time_that_a_limit_hangs_on_is_taken_again_for_all_that_share_it() -> None:
    limits = Limits(drop_points=1, latency_ms=0.4)
    noisy = Bench(is_noisy=is_int8)
    rounded = Recipe(quantize=QuantizeSpec("compensated", 8, activation_bits=8))
    shared = noisy.result(replace(BASE, recipe=rounded))
    time = summarise(shared).measures["latency"]
    assert time.value is not None
    assert time.value < 0.4e6 < bound(shared, "latency")
    found, calm = noisy.ask(limits), Bench().ask(limits)
    assert len(noisy.timed_again) == 1, "it tells, and the others share it"
    assert found.best is not None
    assert calm.best is not None
    assert found.best.request == calm.best.request
    assert bound(found.best, "latency") < 0.4e6
    others = Bench(is_noisy=is_int8)
    assert others.ask(Limits(drop_points=1, latency_ms=0.6)).best is not None
    assert not others.timed_again, "its time keeps to the limit as it is"


SPARSE = replace(SMALL, engine=("sparse",), sparsity=tuple(number / 100 for number in range(30, 50)))
"""Each of which is to be timed for itself."""
MANY = replace(SMALL, sparsity=tuple(number / 100 for number in range(30, 50)))
"""Most of which keep to what may be lost."""


def test_a_time_that_stays_uncertain_is_taken_again_now_and_then() -> None:
    bench = Bench(is_noisy=is_int8, calm_at=math.inf)
    found = bench.ask(Limits(drop_points=1, latency_ms=0.34), space=MANY)
    assert found.best is None
    again = [seconds for seconds, _ in bench.timed_again]
    assert len(again) > 3
    for number, seconds in enumerate(again[1:]):
        assert (number + 1) * SECONDS <= AGAIN_SHARE * seconds + SECONDS, "a share of the time so far"
    before = [one.latency.checksum for _, one in bench.timed_again]
    assert len(set(before)) == len(before), "each takes the place of the one before"
    for (_, timed), lasts in zip(bench.timed_again, bench.again_for, strict=True):
        assert lasts == AGAIN_LONGER * timed.latency.seconds > 0
    assert any("was looked at again, and did not hold" in sentence for sentence in details(found))
    reasons = summarise(found.answer.refused[0].timed(found.results[found.answer.refused[0].key])).noise
    assert reasons
    for reason in reasons:
        assert not any(reason in sentence for sentence in findings(found)), "they are a badge's on the page"
        assert any(reason in sentence for sentence in details(found))
    assert [one.limit for one in found.answer.relaxations].count("latency") == 1


def test_what_keeps_a_machine_busy_for_a_while_hides_nothing_in_a_long_search() -> None:
    limits = Limits(drop_points=1, latency_ms=0.4)
    calm, noisy = (bench.ask(limits, space=MANY) for bench in (Bench(), Bench(is_noisy=is_int8, calm_at=30)))
    assert calm.best is not None
    assert noisy.best is not None
    assert noisy.best.request == calm.best.request


def test_what_may_keep_to_the_limit_of_time_is_timed_afresh_where_nothing_surely_does() -> None:
    lasted = list[float]()

    def confirm(result: Result, seconds: float) -> Latency:
        lasted.append(seconds)
        return make_result(result.request.recipe, quick=True).latency

    limits = Limits(drop_points=1, latency_ms=0.4)
    bench = Bench(is_noisy=is_int8, calm_at=math.inf)
    bench.confirm = confirm  # type: ignore[method-assign]
    found, calm = bench.ask(limits), Bench().ask(limits)
    assert found.best is not None
    assert calm.best is not None
    assert found.best.request == calm.best.request
    assert bound(found.best, "latency") <= 0.4e6
    assert bound(found.results[found.best.key], "latency") > 0.4e6
    assert lasted == [pytest.approx(TIMED_SHARE * MAX_CONFIRMING_SECONDS)], "much was left of its budget"
    sure = Bench()
    assert sure.ask(limits).best
    assert sure.confirmed_for == lasted, "a time that is well known may be near to a limit too"
    early = Bench()
    early.go_on(question(limits), Progress(), enough=lambda: bool(early.measured))
    assert not any(early.confirmed_for), "who ends a search waits no longer than needed"


def test_time_for_the_winner_is_left_only_where_there_may_be_one() -> None:
    """A search that has found nothing goes on until its time is over."""
    slow, budget = Bench(), 10 * SECONDS
    found = slow.ask(Limits(drop_points=1, latency_ms=0.01), budget=budget, space=SPARSE)
    assert found.best is None
    assert found.answer.progress.seconds >= 0.95 * budget
    fast = Bench()
    assert fast.ask(Limits(drop_points=5), budget=budget, space=SPARSE).best is not None
    assert len(fast.measured) < 0.8 * len(slow.measured)


def test_a_time_that_is_uncertain_in_the_end_is_taken_for_what_is_left_of_the_budget() -> None:
    bench = Bench(is_noisy=is_int8, calm_at=math.inf)
    found = bench.ask(Limits(drop_points=1, latency_ms=0.34), budget=60, space=MANY)
    assert found.best is None
    (seconds,) = bench.confirmed_for
    begun = found.answer.progress.seconds - max(SECONDS, seconds)
    assert seconds == pytest.approx(TIMED_SHARE * (60 - begun))
    assert CONFIRMING_SHARE * 60 * TIMED_SHARE * 0.8 < seconds <= CONFIRMING_SHARE * 60 * TIMED_SHARE


def test_noise_does_not_hide_what_is_the_fastest() -> None:
    """Nor where no limit of time is given."""

    def own_time(request: Request) -> float:
        return 0.75 if is_int8(request) else 1.0

    bench = Bench(own_time, is_noisy=is_int8)
    float32, int8 = (Recipe(quantize=QuantizeSpec(activation_bits=bits)) for bits in (32, 8))
    times = [bound(bench.result(replace(BASE, recipe=one)), "latency") for one in (float32, int8)]
    assert times[0] < times[1]
    calm, noisy = (one.ask(Limits(drop_points=1)) for one in (Bench(own_time), bench))
    assert calm.best is not None
    assert noisy.best is not None
    assert is_int8(calm.best.request)
    assert noisy.best.request == calm.best.request


def test_a_noisy_time_is_taken_again_also_where_everything_is_stored() -> None:
    """As by a question before; no time has passed then."""

    def stored(request: Request, unwanted: Unwanted, report: Report) -> Result | None:
        made = bench.result(request)
        bench.results[made.key] = made
        return made

    bench = Bench(lambda request: 0.75 if is_int8(request) else 1.0, is_noisy=is_int8)
    found = bench.go_on(question(Limits(drop_points=1)), Progress(), stored)
    assert found.best is not None
    assert is_int8(found.best.request)
    assert bench.timed_again


def test_what_is_noisy_is_not_called_no_faster() -> None:
    """Also where it can't be taken again for now."""
    bench = Bench(lambda request: 0.75 if is_int8(request) else 1.0, is_noisy=is_int8, calm_at=math.inf)
    found = bench.ask(Limits(drop_points=1))
    skipped = {
        trial.outcome
        for trial in trials(found)
        if is_int8(found.answer.question.request(trial.position)) and not trial.key
    }
    assert Outcome.NO_FASTER not in skipped


def test_what_shares_the_noisy_time_of_the_best_is_no_faster() -> None:
    bench = Bench(is_noisy=is_int8, calm_at=math.inf)
    found = bench.ask(Limits(drop_points=1))
    assert found.best is not None
    assert is_int8(found.best.request)
    assert summarise(found.best).noise
    floating = [one for one in bench.measured if is_int8(one) and one.recipe.quantize.weight_bits == 32]
    assert floating == [found.best.request], "others that run its kernels"


def test_a_limit_of_time_alone_may_hang_on_a_time() -> None:
    found = Bench(is_noisy=is_int8).ask(Limits(latency_ms=0.4))
    assert found.best is not None
    assert not any(trial.outcome is Outcome.FAILED for trial in trials(found))


def test_a_ratio_is_told_where_what_keeps_the_machine_busy_hides_a_time() -> None:
    """It slows the uncompressed model alike, in the same rounds."""
    time, ratio = Limits(drop_points=1, latency_ms=0.34), Limits(drop_points=1, latency_ratio=0.5)
    bench = Bench(is_noisy=is_int8, calm_at=math.inf)
    assert bench.ask(time).best is None
    asked_of = Bench(is_noisy=is_int8, calm_at=math.inf)
    found, calm = asked_of.ask(ratio), Bench().ask(ratio)
    assert found.best is not None
    assert calm.best is not None
    assert found.best.request == calm.best.request
    assert bound(found.best, "latency_ratio") <= 0.5
    assert not asked_of.timed_again, "it tells at once"
    assert "Latency ratio 0.45 (0.449 to 0.451), at most 0.5 allowed: pass." in details(found)


def test_what_a_ratio_rules_out_is_not_measured() -> None:
    bench = Bench()
    found = bench.ask(Limits(latency_ratio=0.5))
    outcomes = {found.answer.question.request(trial.position): trial.outcome for trial in trials(found)}
    assert len([one for one in bench.measured if not is_int8(one)]) == 1, "which tells of the others"
    late = {outcome for one, outcome in outcomes.items() if not is_int8(one) and one not in bench.measured}
    assert late == {Outcome.TOO_SLOW}, "dense float32 kernels take the uncompressed model's time"
    none = Bench().ask(Limits(drop_points=1, latency_ratio=0.3))
    assert none.best is None
    (nearest,) = (one for one in none.answer.relaxations if one.limit == "latency_ratio")
    assert nearest.more == pytest.approx(0.15, abs=0.01)
    assert any("Latency ratio: 0.151× more than allowed is the nearest" in one for one in details(none))


def test_a_ratio_that_is_uncertain_is_taken_again_and_must_hold_afresh() -> None:
    bench = Bench(is_noisy=is_int8)
    result = bench.result(replace(BASE, recipe=Recipe(quantize=QuantizeSpec(activation_bits=8))))
    between = (summarise(result).measures["latency_ratio"].low + bound(result, "latency_ratio")) / 2
    bench.ask(Limits(drop_points=1, latency_ratio=between))
    assert bench.timed_again
    bench = Bench()
    bench.confirm = lambda result, seconds: make_result(ratio=0.6, quick=True).latency  # type: ignore[method-assign]
    found = bench.ask(Limits(drop_points=1, latency_ratio=0.5))
    assert found.best is None
    assert len(found.answer.refused) == 1


def test_what_may_be_in_time_is_shown_to_keep_to_the_other_limits_among_all() -> None:
    """Among many, one seems to lose little by chance."""
    limits, space = Limits(drop_points=1.3, latency_ms=0.34), replace(MANY, pruning=("compensated",))
    bench = Bench(images=600, is_noisy=is_int8, calm_at=math.inf)
    bench.confirm = lambda result, seconds: make_result(ratio=0.3, quick=True).latency  # type: ignore[method-assign]
    found = bench.ask(limits, space=space)
    results = [found.results[trial.key] for trial in trials(found) if trial.key]
    assert not keeping(results, limits, but=TIMES)
    assert [one for one in results if keeping([one], limits, but=TIMES)]
    assert found.best is None


def test_what_is_found_early_is_not_lost_by_a_longer_search() -> None:
    """The more is tried, the luckier is the best of it; what was tried first needs no more to be shown."""
    space = replace(SPARSE, pruning=("none", "compensated"), weight_bits=(8,), activation_bits=(8, 32))
    limits = Limits(drop_points=1.1, latency_ms=10)
    short, long = (Bench(images=600).ask(limits, budget=budget, space=space) for budget in (8, 10_000))
    assert short.best is not None
    assert len(short.measured) < 4
    assert len(long.measured) > 20
    assert long.best is not None
    alike = [halves(one, MIN_CONFIRMING)[0].high_at for one in long.measured]
    best = [one.key for one in long.measured].index(short.best.key)
    assert not shown_within(alike, 1.1)[best], "as one of many like it"


def test_what_keeps_to_the_limits_by_itself_alone_is_told() -> None:
    limits, space = Limits(drop_points=1), replace(MANY, pruning=("compensated",))
    found = Bench(images=600).ask(limits, space=space)
    assert found.best is None
    luck = f"by its own intervals, but of {len(found.measured)} it may be the luckiest"
    assert any(luck in one for one in details(found))


def test_what_shares_a_time_that_did_not_hold_is_not_said_to_keep_to_the_limits() -> None:
    bench = Bench()
    bench.confirm = lambda result, seconds: make_result(ratio=0.6, quick=True).latency  # type: ignore[method-assign]
    limits = Limits(drop_points=1, latency_ms=0.34)
    found = bench.ask(limits)
    int8 = [one for one in found.measured if is_int8(one.request)]
    assert found.best is None
    assert any(keeping([one], limits) for one in int8)
    assert not any("by its own intervals" in one for one in details(found))


def test_a_time_that_several_share_is_taken_afresh_once_and_not_until_it_fits() -> None:
    bench, looked_at = Bench(is_noisy=is_int8, calm_at=math.inf), list[Result]()

    def confirm(result: Result, seconds: float) -> Latency:
        looked_at.append(result)
        return make_result(ratio=0.6, quick=True).latency

    bench.confirm = confirm  # type: ignore[method-assign]
    found = bench.ask(Limits(drop_points=1, latency_ms=0.34), space=MANY)
    assert found.best is None
    assert len(looked_at) == 1
    assert [one.key for one in found.answer.refused] == [looked_at[0].key]


def test_what_was_timed_again_is_known_to_a_search_that_goes_on() -> None:
    limits, bench = Limits(drop_points=1, latency_ms=0.34), Bench(is_noisy=is_int8, calm_at=math.inf)
    first = bench.go_on(question(limits, budget=60, space=MANY), Progress())
    before = len(bench.timed_again)
    assert first.answer.progress.seconds_again == before * SECONDS > 0
    whole = bench.go_on(question(limits, budget=120, space=MANY), first.answer.progress)
    again = [seconds for seconds, _ in bench.timed_again]
    for number, seconds in enumerate(again[1:]):
        assert (number + 1) * SECONDS <= AGAIN_SHARE * seconds + SECONDS, "before and after together"
    assert whole.answer.progress.seconds_again == len(again) * SECONDS


def test_a_search_that_goes_on_knows_what_was_timed_again() -> None:
    bench, asked = Bench(is_noisy=is_int8), question(Limits(drop_points=1, latency_ms=0.4))
    early = bench.go_on(asked, Progress(), enough=lambda: bool(bench.timed_again))
    assert early.best is not None
    whole = bench.go_on(asked, early.answer.progress)
    assert whole.best is not None
    assert bound(whole.best, "latency") < 0.4e6
    assert len(set(bench.measured)) == len(bench.measured)


def test_what_is_announced_is_judged_on_images_that_did_not_choose_it() -> None:
    found = Bench().ask(Limits(drop_points=2))
    assert found.best is not None
    chosen, others = halves(found.best, MIN_CONFIRMING)
    assert others is not None
    assert chosen.total + others.total == 10_000
    assert others.points <= 2
    assert any(f"{others.total:,} others" in sentence for sentence in details(found))
    few = Bench(images=600).ask(Limits(drop_points=5))
    assert any("on the 600 images that chose it, too few" in sentence for sentence in details(few))


def test_where_nothing_keeps_to_the_limits_the_nearest_to_each_is_told() -> None:
    answer = Bench().ask(Limits(drop_points=0.5, size_mb=0.05))
    assert answer.best is None
    nearest = {one.limit: one for one in answer.answer.relaxations}
    assert nearest.keys() <= {"drop", "file_size"}
    assert nearest["file_size"].more > 0
    assert bound(answer.results[nearest["file_size"].key], "drop") <= 0.5
    assert "Nothing" in headline(answer)


def test_what_a_limit_costs() -> None:
    def int8_is_fast(request: Request) -> float:
        return 0.4 if request.recipe.quantize.activation_bits == 8 else 1.0

    answer = Bench(int8_is_fast).ask(Limits(drop_points=0.2))
    assert answer.best is not None
    (relaxation,) = answer.answer.relaxations
    assert relaxation.limit == "drop"
    assert relaxation.gain == pytest.approx(0.6, abs=0.05)
    assert any("more would allow 60% less time" in one or "less time" in one for one in details(answer))


def test_too_little_time_is_said() -> None:
    answer = Bench().ask(Limits(drop_points=1), budget=1e-9)
    assert (answer.best, answer.measured) == (None, [])
    assert "larger budget" in headline(answer)


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


def test_json_is_whole() -> None:
    answer = Bench().ask(Limits(drop_points=1, size_mb=1))
    said = answer_json(answer)
    assert said["met"]
    assert len(said["tried"]) == len(trials(answer))
    assert said["best"]["key"] == answer.best.key if answer.best else False


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
        (
            lambda: Limits(sqnr_db=150),
            "--min-sqnr 150 is not allowed: give a number above -100 and below 150",
        ),
        (lambda: Question("x", Limits(size_mb=1), "accuracy"), "accuracy"),
        (lambda: Question("x", Limits(size_mb=1), "drop", budget_seconds=0), "0 s is not allowed"),
        (lambda: Question("x", Limits(size_mb=1), "drop", search="magic"), "magic"),
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
