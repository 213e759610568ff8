"""A gate: decided by bounds, measured until it can be told, and by no machine's time but this one's."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from factories import detector, make_latency, make_result, recipe, remade, visits
from hypothesis import given
from hypothesis import strategies as st

from optimizer.analysis.gate import (
    Check,
    GateLimits,
    Outcome,
    drop_check,
    drop_of,
    images_to_decide,
    instructions_check,
    overall,
    size_check,
    slowdown_check,
    sqnr_check,
)
from optimizer.analysis.limits import Limits, checks
from optimizer.analysis.outcomes import interval_over, paired_drop
from optimizer.errors import InputError
from optimizer.recipe import Recipe
from optimizer.records import Instructions, Latency, Request, Result
from optimizer.search.gate import MAX_LOOKS, Verdict, judge

BUILD_SCATTER = 0.006
"""By how much the ratios of fresh processes differ, as measured on EfficientNet-Lite0."""
HALF = make_result(recipe(0.5))
REQUEST = HALF.request


def series(ratio: float, random: np.random.Generator, call_ns: float = 1e6) -> Latency:
    """Five processes of twenty rounds, each with builds of its own."""
    builds = np.repeat(np.exp(BUILD_SCATTER * random.standard_normal(5)), 20)
    rounds = 1 + 0.01 * random.standard_normal((3, 100))
    first, again, variant = call_ns * rounds * np.array([np.ones(100), np.ones(100), ratio * builds])
    made = make_latency(rounds=100)
    return replace(
        made, baseline=(visits(first), visits(again)), variant=visits(variant), processes=(20,) * 5
    )


def gate(
    ratio: float,
    limits: GateLimits,
    seed: int = 0,
    budget: float = 1e9,
    seconds: float = 1.0,
    before: float = 0.0,
    is_stored: bool = False,
    **more: Result,
) -> Verdict:
    """On a clock by which each series takes so many ``seconds``, two thirds of it in calls, and what comes
    ``before`` the first; both nothing where that ``is_stored``."""
    random = np.random.default_rng([seed, round(1000 * ratio)])
    now = 0.0

    def timed(request: Request) -> Latency:
        nonlocal now
        now += seconds
        return series(ratio, random, 1e6 * seconds)

    def measured(request: Request) -> Result:
        nonlocal now
        latency = timed(request)
        now = 0.0 if is_stored else now + before
        return replace(HALF, latency=latency)

    return judge(
        REQUEST,
        limits,
        measured,
        timed,
        budget,
        clock=lambda: now,
        **more,
    )


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.2, 1.0, "pass"), (0.2, 1.01, "undecided"), (1.0, 1.4, "undecided"), (1.01, 1.4, "fail")],
)
def test_a_limit_is_decided_by_the_bounds_and_never_by_the_point(
    low: float, high: float, outcome: str
) -> None:
    assert [Check("lost", "points", 1.0, value, low, high).outcome for value in (low, high)] == [outcome] * 2


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (size_check(100_400_000, 100), "size of the file 100.4 MB, at most 100 allowed: fail"),
        (size_check(1_234_000_000, 1300), "size of the file 1234 MB, at most 1300 allowed: pass"),
        (size_check(100_000_000, 100), "size of the file 100 MB, at most 100 allowed: pass"),
        (size_check(2_000_001_000_000, 2e6), "size of the file 2000001 MB, at most 2000000 allowed: fail"),
        (
            Check("accuracy lost", "points", 1, 0.8, 0.5, 1.004),
            "accuracy lost 0.80 points (0.50 to 1.004), at most 1 allowed: undecided",
        ),
        (
            Check("accuracy lost", "points", 1, -0.06, -0.156, 0.0237),
            "accuracy lost −0.06 points (−0.16 to 0.02), at most 1 allowed: pass",
        ),
        (
            Check("SQNR of the outputs", "dB", -0.5, 0.1234, -0.499999, 2, at_least=True),
            "SQNR of the outputs 0.1 dB (−0.499999 to 2.0), at least −0.5 allowed: pass",
        ),
        (
            Check("time added", "%", 2.5, 2.50004, -math.inf, math.inf),
            "time added 2.50004 % (−inf to inf), at most 2.5 allowed: undecided",
        ),
        (
            sqnr_check(detector(Recipe(), 0.0).accuracy, 60),
            "SQNR of the outputs: equal, at least 60 allowed: pass",
        ),
    ],
)
def test_what_is_said_never_contradicts_the_outcome(check: Check, words: str) -> None:
    assert check.words == words


@given(
    lost=st.integers(0, 20), gained=st.integers(0, 20), more=st.integers(20, 1_000), limit=st.floats(-2, 4)
)
def test_so_many_images_decide_and_fewer_do_not(lost: int, gained: int, more: int, limit: float) -> None:
    """With as many flips a share, by the interval itself."""
    total = lost + gained + more
    before = np.arange(total) >= gained
    after = before.copy()
    after[:gained], after[gained : gained + lost] = True, False
    drop = paired_drop(before, after)
    assert interval_over(drop, total) == pytest.approx((drop.low, drop.high))
    images = images_to_decide(drop, limit)
    if drop.low <= limit < drop.high and images:
        low, high = interval_over(drop, images)
        assert high <= limit or low > limit
        low, high = interval_over(drop, max(total, images - max(2, images // 50)))
        assert low <= limit < high


def test_the_uncompressed_model_surely_loses_nothing() -> None:
    result = make_result(images=50)
    for limit, outcome in ((0.0, "pass"), (0.4, "pass"), (-0.1, "fail")):
        assert drop_check(drop_of(result, None), limit, labelled=True).outcome == outcome
    rounded = make_result(recipe(weight_bits=8), images=50)
    same = remade(rounded, accuracy=replace(rounded.accuracy, correct=rounded.baseline_accuracy.correct))
    assert drop_check(drop_of(same, None), 0.4, labelled=True).outcome == "undecided"


def test_one_broken_limit_fails_and_an_open_one_leaves_it_open() -> None:
    kept, broken, unsure = (Check("", "", 1.0, 1, *ends) for ends in ((0, 1), (2, 3), (0, 3)))
    assert overall([kept, kept]) is Outcome.PASS
    assert overall([kept, unsure]) is Outcome.UNDECIDED
    assert overall([kept, unsure, broken]) is Outcome.FAIL


@pytest.mark.parametrize(("ratio", "wanted", "never"), [(1.0, "pass", "fail"), (1.05, "fail", "pass")])
def test_what_is_slower_fails_and_what_is_not_passes(ratio: float, wanted: str, never: str) -> None:
    outcomes = [gate(ratio, GateLimits(slowdown_percent=2.5), seed).outcome for seed in range(100)]
    assert outcomes.count(Outcome(wanted)) >= 95
    assert Outcome(never) not in outcomes


@pytest.mark.slow
def test_at_the_limit_itself_it_is_rarely_called_kept_or_broken() -> None:
    """All looks together: so many of a hundred by a confidence of 95 %."""
    outcomes = [gate(1.025, GateLimits(slowdown_percent=2.5), seed) for seed in range(100)]
    assert sum(one.outcome is not Outcome.UNDECIDED for one in outcomes) <= 10
    assert {one.series for one in outcomes if one.outcome is Outcome.UNDECIDED} == {MAX_LOOKS}
    assert "processes in all would decide it" in outcomes[0].checks[0].words


def test_it_is_timed_again_only_while_that_can_decide_and_ends_in_time() -> None:
    near = GateLimits(slowdown_percent=2.5)
    assert gate(1.025, near, budget=3.5).series == 3
    assert gate(1.025, near, budget=0.5).series == 1, "once it is always timed"
    assert gate(1.5, near).series == 1
    assert gate(1.025, GateLimits(slowdown_percent=2.5, size_mb=0.001)).series == 1, "it has failed"
    assert gate(1.025, GateLimits(size_mb=1e3)).series == 0


def test_what_a_series_takes_is_not_what_comes_before_the_first() -> None:
    near = GateLimits(slowdown_percent=2.5)
    late = gate(1.025, near, budget=300, seconds=30, before=170)
    assert (late.series, late.seconds) == (4, 290), "three more fit"
    stored = gate(1.025, near, budget=60, seconds=90, is_stored=True)
    assert (stored.series, stored.seconds) == (1, 0), "the first alone fits"
    assert gate(1.025, near, budget=100, seconds=90, is_stored=True).series == 2


def test_an_earlier_result_takes_the_place_of_the_uncompressed_model() -> None:
    random = np.random.default_rng(0)
    earlier = replace(make_result(recipe(0.3)), latency=series(0.5, random))
    limits = GateLimits(drop_points=0.1, slowdown_percent=2.5)
    slower = gate(0.54, limits, against=earlier)
    lost, added = slower.checks
    assert added.value == pytest.approx(8, abs=1.5)
    assert added.outcome is Outcome.FAIL
    assert lost.value == pytest.approx(
        100 * (earlier.accuracy.outcomes.mean() - HALF.accuracy.outcomes.mean()), abs=1e-9
    )


@pytest.mark.parametrize("other", [{"seed": 1}, {"calibration_share": 0.5}], ids=str)
def test_other_draws_of_the_same_folder_are_other_images(other: dict[str, Any]) -> None:
    """As many, of files that are as they were: image by image they have nothing to do with each other."""
    earlier = make_result(recipe(0.3))
    data = replace(earlier.request.data, **other)
    drawn = replace(earlier, request=replace(earlier.request, data=data))
    with pytest.raises(InputError, match="give the same --data, --limit and --seed"):
        gate(1.0, GateLimits(drop_points=50), against=drawn)


def test_another_machine_says_nothing_of_time_and_all_of_accuracy_and_size() -> None:
    elsewhere = make_result(recipe(0.3), other_machine=True)
    with pytest.raises(InputError, match="another machine"):
        gate(1.0, GateLimits(slowdown_percent=5), against=elsewhere)
    with pytest.raises(InputError, match="leave out --max-slowdown and --max-instructions, or time it"):
        gate(1.0, GateLimits(slowdown_percent=5, instructions_percent=5), against=elsewhere)
    with pytest.raises(InputError, match="leave out --max-instructions, or time it"):
        gate(1.0, GateLimits(instructions_percent=5), against=elsewhere)
    found = gate(1.0, GateLimits(drop_points=50, size_mb=1e3), against=elsewhere)
    assert found.outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("earlier", "words"),
    [
        (replace(HALF, request=replace(REQUEST, engine="torch")), "of engine torch"),
        (replace(HALF, latency=replace(HALF.latency, batch=4)), "batch size 4"),
    ],
    ids=["engine", "batch size"],
)
def test_times_of_other_kinds_are_not_compared(earlier: Result, words: str) -> None:
    with pytest.raises(InputError, match=words):
        gate(1.0, GateLimits(slowdown_percent=5), against=earlier)


def counted(baseline: Sequence[float], variant: Sequence[float]) -> Result:
    return replace(
        HALF, latency=replace(HALF.latency, instructions=Instructions(*map(tuple, (baseline, variant))))
    )


def test_another_network_of_the_same_name_is_no_clock() -> None:
    """Half of a large one's time may be more than all of a small one's. Instructions are counted of the two
    themselves."""
    first, *rest = HALF.inspection.layers
    wider = replace(first, shape=(2 * first.shape[0], *first.shape[1:]), macs=2 * first.macs)
    other = replace(HALF.inspection, layers=(wider, *rest))
    with pytest.raises(InputError, match="another network that had the name fashion-resnet"):
        gate(1.0, GateLimits(slowdown_percent=5), against=replace(HALF, inspection=other))
    renamed = replace(HALF.inspection, layers=(*rest, replace(first, name="stem.weight")))
    assert gate(1.0, GateLimits(slowdown_percent=5), against=replace(HALF, inspection=renamed)).checks
    earlier, now = (counted([100, 100], [50, 50]) for _ in range(2))
    judge(
        REQUEST,
        GateLimits(instructions_percent=10),
        lambda request: now,
        lambda request: now.latency,
        9,
        replace(earlier, inspection=other),
    )


def timed(ratios: np.ndarray) -> Latency:
    """A process for each ratio to the baseline."""
    before, after = (np.repeat(1e6 * one, 6) for one in (np.ones(len(ratios)), ratios))
    return replace(
        make_latency(rounds=len(after)),
        baseline=(visits(before), visits(before)),
        variant=visits(after),
        processes=(6,) * len(ratios),
    )


@pytest.mark.parametrize(("scatter", "can_tell"), [(1, True), (10, False)])
def test_more_processes_are_asked_for_only_where_they_can_decide(scatter: int, can_tell: bool) -> None:
    """However many there are, an earlier result stays as well known as it is."""
    steps = np.linspace(-0.002, 0.002, 5)
    earlier, now = replace(HALF, latency=timed(1 + scatter * steps)), timed(1 + 5 * steps)
    few, many = (slowdown_check([now] * series, earlier, 0.8) for series in (1, 40))
    assert few.outcome is Outcome.UNDECIDED
    assert (many.outcome is Outcome.PASS) == can_tell
    assert ("processes in all would decide it" in few.words) == can_tell
    assert ("no number of processes is sure to decide it" in few.words) != can_tell


@pytest.mark.parametrize(
    ("variant", "outcome"),
    [
        ([101, 101, 101.5], "pass"),
        ([101, 104, 102], "undecided"),
        ([104, 104, 104.5], "fail"),
        ([100], "undecided"),  # nobody knows what another process would count
        ([200], "undecided"),
    ],
)
def test_instructions_are_held_against_their_limit_by_all_processes(
    variant: list[float], outcome: str
) -> None:
    """Without a series of timing but the first."""
    result = counted([100] * len(variant), variant)
    found = judge(
        REQUEST,
        GateLimits(instructions_percent=2.5),
        lambda request: result,
        lambda request: result.latency,
        9,
    )
    assert found.outcome is Outcome(outcome)
    (check,) = found.checks
    assert check.low < check.value < check.high
    assert ("counts of several processes would decide it" in check.words) == (len(variant) == 1)


@pytest.mark.parametrize("against", [False, True])
def test_the_interval_of_instructions_covers_95_percent_where_the_baseline_scatters_too(
    against: bool,
) -> None:
    random, simulations, inside = np.random.default_rng(7), 1_000, 0
    for _ in range(simulations):
        before, now = 1e6 * np.exp(0.002 * random.standard_normal((2, 5)))
        made = counted(before, 1.03 * now)
        check = instructions_check(made.latency, counted(before, before) if against else None, limit=3)
        inside += check.outcome is Outcome.UNDECIDED
    assert inside / simulations == pytest.approx(0.95, abs=0.01 + 3 * (0.95 * 0.05 / simulations) ** 0.5)


def test_instructions_of_an_earlier_result_are_compared_with_directly() -> None:
    earlier, now = counted([100, 100], [50, 50]), counted([100, 100], [60, 60])
    limits = GateLimits(instructions_percent=10)
    found = judge(REQUEST, limits, lambda request: now, lambda request: now.latency, 9, earlier)
    assert found.checks[0].value == pytest.approx(20)
    with pytest.raises(InputError, match="the earlier result was timed without a count"):
        judge(REQUEST, limits, lambda request: now, lambda request: now.latency, 9, HALF)


def test_what_was_timed_before_instructions_were_counted_is_timed_again() -> None:
    again = counted([100, 100], [100, 100]).latency
    limits = GateLimits(instructions_percent=1)
    found = judge(REQUEST, limits, lambda request: HALF, lambda request: again, 9)
    assert found.outcome is Outcome.PASS
    assert found.result == replace(HALF, latency=again), "what is saved has a count to compare with"


@pytest.mark.parametrize(("labelled", "name"), [(True, "accuracy lost"), (False, "agreement lost")])
def test_without_labels_it_is_agreement_that_may_be_lost(labelled: bool, name: str) -> None:
    now, earlier = (make_result(made, labelled=labelled) for made in (recipe(0.5), recipe(0.3)))
    for against in (None, earlier):
        limits = GateLimits(drop_points=50)
        found = judge(REQUEST, limits, lambda request: now, lambda request: now.latency, 9, against)
        assert [check.name for check in found.checks] == [name]
    assert [check.name for check in checks(now, Limits(drop_points=50))] == [name]


def test_other_images_are_not_paired() -> None:
    with pytest.raises(InputError, match="scored on 500 images"):
        drop_of(HALF, make_result(recipe(0.3), images=500))


@pytest.mark.parametrize(
    ("of", "weights", "words"),
    [
        ({"model": "another"}, "", "fashion-resnet on openvino.*another on openvino"),
        ({"engine": "torch"}, "", "fashion-resnet on torch"),
        ({}, "retrained", "other weights of that name"),
    ],
    ids=["model", "engine", "weights"],
)
def test_without_labels_a_network_that_agrees_with_itself_says_nothing_of_another(
    of: dict[str, str], weights: str, words: str
) -> None:
    now, before = (
        remade(make_result(made, labelled=False), weights="first") for made in (recipe(0.5), recipe(0.3))
    )
    unknown = remade(before, weights="")
    assert drop_of(now, before) == drop_of(now, unknown)
    other = remade(make_result(recipe(0.3), labelled=False, **of), weights=weights)
    with pytest.raises(InputError, match=words):
        drop_of(now, other)
    assert drop_of(HALF, remade(make_result(recipe(0.3), **of), weights=weights)).p is not None


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, "no limit is given"),
        ({"size_mb": 0.0}, "--max-size 0"),
        ({"slowdown_percent": -100.0}, "--max-slowdown -100"),
        ({"drop_points": float("nan")}, "--max-drop nan"),
    ],
)
def test_limits_that_cannot_be_are_refused(limits: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        GateLimits(**limits)


def test_a_network_that_is_no_classifier_has_no_accuracy_to_lose() -> None:
    with pytest.raises(InputError, match=r"give --min-sqnr \(min_sqnr_db in Python\) in place of --max-drop"):
        drop_of(detector(recipe(0.5), 0.1), None)
