"""What a search under limits does about times that are uncertain, and what it shows of all that was tried."""

import math
from dataclasses import replace

import pytest
from factories import make_result, recipe
from hypothesis import given
from hypothesis import strategies as st
from search_bench import BASE, SECONDS, SMALL, Bench, question, trials, winner

from optimizer.analysis.limits import MIN_CONFIRMING, TIMES, Limits, bound, halves, keeping, relaxations
from optimizer.analysis.outcomes import shown_within
from optimizer.analysis.summary import summarise
from optimizer.progress import Report
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import Latency, Request, Result
from optimizer.search.answers import details, enough, findings
from optimizer.search.confirming import CONFIRMING_SHARE, MAX_CONFIRMING_SECONDS, TIMED_SHARE
from optimizer.search.find import AGAIN_LONGER, AGAIN_SHARE, Unwanted
from optimizer.search.records import Outcome, Progress


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
    assert winner(found).request == winner(calm).request
    assert bound(winner(found), "latency") < 0.4e6
    others = Bench(is_noisy=is_int8)
    assert others.ask(Limits(drop_points=1, latency_ms=0.6)).best is not None
    assert not others.timed_again, "its time keeps to the limit as it is"


SPARSE = replace(SMALL, engine=("sparse",), sparsity=tuple(number / 100 for number in range(30, 50)))
"""Each of which is to be timed for itself."""
MANY = replace(SMALL, sparsity=tuple(number / 100 for number in range(30, 50)))
"""Most of which keep to what may be lost."""


@pytest.mark.slow
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
    assert winner(noisy).request == winner(calm).request


def test_what_may_keep_to_the_limit_of_time_is_timed_afresh_where_nothing_surely_does() -> None:
    lasted = list[float]()

    def confirm(result: Result, seconds: float) -> Latency:
        lasted.append(seconds)
        return make_result(result.request.recipe, quick=True).latency

    limits = Limits(drop_points=1, latency_ms=0.4)
    bench = Bench(is_noisy=is_int8, calm_at=math.inf)
    bench.confirm = confirm  # type: ignore[method-assign]
    found, calm = bench.ask(limits), Bench().ask(limits)
    assert winner(found).request == winner(calm).request
    assert bound(winner(found), "latency") <= 0.4e6
    assert bound(found.results[winner(found).key], "latency") > 0.4e6
    assert lasted == [pytest.approx(TIMED_SHARE * MAX_CONFIRMING_SECONDS)], "much was left of its budget"
    sure = Bench()
    assert sure.ask(limits).best
    assert sure.confirmed_for == lasted, "a time that is well known may be near to a limit too"
    early = Bench()
    early.go_on(question(limits), Progress(), enough=lambda: bool(early.measured))
    assert not any(early.confirmed_for), "who ends a search waits no longer than needed"


def test_what_rounding_makes_zero_is_skipped_too_so_that_its_time_is_its_own() -> None:
    def skips_what_4_bits_make_zero(request: Request) -> float:
        return 0.5 if request.recipe.quantize.weight_bits == 4 else 1.0

    space = replace(SMALL, engine=("sparse",), pruning=("none",))
    found = Bench(skips_what_4_bits_make_zero).ask(Limits(drop_points=3), space=space)
    assert winner(found).request.recipe.quantize.weight_bits == 4


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
    assert is_int8(winner(calm).request)
    assert winner(noisy).request == winner(calm).request


def test_a_noisy_time_is_taken_again_also_where_everything_is_stored() -> None:
    """As by a question before; no time has passed then."""

    def stored(request: Request, unwanted: Unwanted, report: Report) -> Result | None:
        made = bench.result(request)
        bench.results[made.key] = made
        return made

    bench = Bench(lambda request: 0.75 if is_int8(request) else 1.0, is_noisy=is_int8)
    found = bench.go_on(question(Limits(drop_points=1)), Progress(), stored)
    assert is_int8(winner(found).request)
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
    assert is_int8(winner(found).request)
    assert summarise(winner(found)).noise
    floating = [one for one in bench.measured if is_int8(one) and one.recipe.quantize.weight_bits == 32]
    assert floating == [winner(found).request], "others that run its kernels"


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
    assert winner(found).request == winner(calm).request
    assert bound(winner(found), "latency_ratio") <= 0.5
    assert not asked_of.timed_again, "it tells at once"
    assert "Latency ratio 0.450 (0.449 to 0.451), at most 0.5 allowed: pass." in details(found)


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
    assert any(
        "Latency ratio: the nearest that keeps the other limits has 0.151× more than allowed" in one
        for one in details(none)
    )


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


@pytest.mark.slow
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
    assert len(short.measured) < 4
    assert len(long.measured) > 20
    assert long.best is not None
    alike = [halves(one, MIN_CONFIRMING)[0].high_at for one in long.measured]
    best = [one.key for one in long.measured].index(winner(short).key)
    assert not shown_within(alike, 1.1)[best], "as one of many like it"


@pytest.mark.slow
def test_what_keeps_to_the_limits_by_itself_alone_is_told() -> None:
    limits, space = Limits(drop_points=1), replace(MANY, pruning=("compensated",))
    found = Bench(images=600).ask(limits, space=space)
    assert found.best is None
    luck = f"by its own intervals, but of {len(found.measured)} it may be the luckiest"
    assert any(luck in one for one in details(found))


def test_one_that_seems_better_than_the_first_is_by_then_is_timed_too() -> None:
    """The first was lucky: afresh it takes longer than another that keeps to the limits as well."""
    bench, afresh = Bench(), dict[str, Latency]()
    quickest, second = winner(bench.ask(Limits(drop_points=2))), None

    def confirm(result: Result, seconds: float) -> Latency:
        slow = result.latency.checksum == quickest.latency.checksum
        ratio = summarise(result).latency.ratio
        afresh[result.key] = make_result(ratio=1.5 if slow else ratio, quick=True).latency
        return afresh[result.key]

    bench.confirm = confirm  # type: ignore[method-assign]
    found = bench.ask(Limits(drop_points=2))
    second = winner(found)
    assert second.key != quickest.key
    assert second.latency.checksum != quickest.latency.checksum
    assert list(afresh) == [quickest.key, second.key]
    assert not found.answer.refused, "the first holds, and is no more the best"


def test_a_limit_that_is_relaxed_as_said_is_kept_to() -> None:
    results = [make_result(recipe(sparsity), images=900) for sparsity in (0.5, 0.4, 0.3, 0.2)]
    results = [replace(one, key=f"{number}") for number, one in enumerate(results)]
    for limits in (Limits(drop_points=0.1), Limits(drop_points=0.1, size_mb=1), Limits(drop_points=0.3)):
        for one in relaxations(results, limits, "file_size", None):
            assert not keeping(results, limits)
            name = "drop_points" if one.limit == "drop" else "size_mb"
            scale = 1 if one.limit == "drop" else 1e6
            relaxed = replace(limits, **{name: (limits.given[one.limit] + enough(one)) / scale})
            assert one.key in {kept.key for kept in keeping(results, relaxed)}


@given(size=st.integers(1, 10**8))
def test_a_limit_of_size_is_kept_to_by_a_file_of_that_size(size: int) -> None:
    assert Limits(size_mb=size / 1e6).given["file_size"] == size


def test_where_limits_exclude_each_other_the_best_for_each_is_told() -> None:
    found = Bench().ask(Limits(size_mb=1e-6, latency_ms=1e-6))
    assert found.best is None
    assert not found.answer.relaxations
    for name, what in (("File size", "file_size"), ("Latency", "latency")):
        best = min(found.measured, key=lambda one, what=what: bound(one, what))  # type: ignore[misc]
        words = f": the best measured has {summarise(best).text(what)}"
        assert any(one.startswith(f"{name} at most ") and words in one for one in details(found))


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
    assert bound(winner(whole), "latency") < 0.4e6
    assert len(set(bench.measured)) == len(bench.measured)
