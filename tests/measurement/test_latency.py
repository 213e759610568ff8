"""A series of rounds, most of them on a simulated clock."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from simulated_clock import Clock
from torch import nn

from optimizer.analysis.noise import NoiseKind
from optimizer.analysis.rounds import MIN_ROUNDS
from optimizer.analysis.statistics import SAME, first_call_ratio, summarise_visits
from optimizer.compression.apply import compress
from optimizer.engine import engine_named
from optimizer.engine.base import Runner
from optimizer.measurement import latency
from optimizer.measurement.latency import (
    EFFORTS,
    LatencyEffort,
    LatencySeries,
    batches,
    efforts_afresh,
    time_interleaved,
)
from optimizer.measurement.timing import time_series
from optimizer.measurement.visits import WINDOW, VisitEffort, settle
from optimizer.progress import Cancelled, ended_by
from optimizer.recipe import Recipe
from optimizer.records import Settings

VISIT = VisitEffort(settle_seconds=0.1, seconds=0, min_calls=4, max_calls=8)
SHORT = LatencyEffort(warmup_calls=3, warmup_seconds=0, seconds=0, min_rounds=12, visit=VISIT)
IMAGES = np.arange(6 * 4, dtype=np.float32).reshape(6, 1, 2, 2)
NAMES = ["baseline", "baseline again", "one", "two"]
WARM_UP = 3
SETTLED = 8
"""Calls of a network whose time does not change."""


def orders(clock: Clock, seed: int) -> list[list[str]]:
    """The networks in the order in which each round visited them."""
    clock.calls.clear()
    variants = {name: clock.network(name, 1e6) for name in ("one", "two")}
    time_interleaved(clock.pair(), variants, IMAGES, Settings(seed=seed), SHORT)
    calls = [call.network for call in clock.calls[4 * WARM_UP :]]
    visits = calls[:: SETTLED + 4]
    assert calls == [name for name in visits for _ in range(SETTLED + 4)]
    return [visits[start : start + 4] for start in range(0, len(visits), 4)]


def test_every_round_visits_both_baselines_and_each_variant_once(clock: Clock) -> None:
    rounds = orders(clock, 0)
    assert len(rounds) == 12
    assert all(sorted(names) == NAMES for names in rounds)


def test_the_order_is_shuffled_anew_each_round_and_comes_back_with_the_seed(clock: Clock) -> None:
    first = orders(clock, 1)
    assert first == orders(clock, 1)
    assert first != orders(clock, 2)
    assert len({tuple(names) for names in first}) > 3
    assert len({names[0] for names in first}) > 1


def test_every_visit_follows_another_network_s(clock: Clock) -> None:
    """In one round of three the first had been the last of the round before: its first call found all in the
    caches."""
    for seed in range(3):
        visited = [name for order in orders(clock, seed) for name in order]
        assert all(one != other for one, other in pairwise(visited))


def test_a_series_keeps_every_call_in_its_place(clock: Clock) -> None:
    """Each network's time is its own and grows from visit to visit, so that nothing can be swapped."""
    visited: dict[str, int] = {}

    def growing(name: str, base: int) -> Runner:
        def time_ns(since: int) -> int:
            visited[name] = visited.get(name, -1) + (since == 0)
            return base + 1_000 * visited[name] + (10 if since == 0 else 0)

        return clock.runner(name, time_ns)

    pair = growing("baseline", 1_000_000), growing("baseline again", 2_000_000)
    effort = LatencyEffort(1, 0, seconds=0, min_rounds=5, visit=VISIT)
    series = time_interleaved(pair, {"one": growing("one", 3_000_000)}, IMAGES, Settings(), effort)
    for visits, base in zip((*series.baseline, series.variants["one"]), (1, 2, 3), strict=True):
        # The last network of the warm-up may come first: its calls there belong to the same stay.
        steady = visits.medians_ns
        assert np.isin(np.diff(steady), [1_000, 0]).all()
        assert (steady // 1_000_000 == base).all()
        assert visits.settling == (SETTLED,) * 5
        assert visits.timed == (4,) * 5
        assert (visits.first_ns >= steady).all()
        assert [len(calls) for calls in visits.each] == [SETTLED + 4] * 5
    assert series.processes == (5,)
    assert series.warmup_calls == 1
    assert 0 <= series.stolen_share <= 1


def test_a_round_gives_every_runner_the_same_contiguous_batch_and_rounds_walk_through_the_images(
    clock: Clock,
) -> None:
    time_interleaved(clock.pair(), {"one": clock.network("one", 1e6)}, IMAGES, Settings(batch=2), SHORT)
    assert {call.shape for call in clock.calls} == {(2, 1, 2, 2)}
    values = [call.value for call in clock.calls[3 * WARM_UP :]]
    assert values == [index % 3 * 8.0 for index in range(12) for _ in range(3 * (SETTLED + 4))]


@pytest.mark.parametrize("batch", [5, 20])
def test_images_are_repeated_where_there_are_fewer_than_a_batch(clock: Clock, batch: int) -> None:
    time_interleaved(clock.pair(), {}, IMAGES, Settings(batch=batch), SHORT)
    assert {call.shape for call in clock.calls} == {(batch, 1, 2, 2)}


def test_instructions_are_those_of_one_call_of_each(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def counting() -> Iterator[Callable[[], int]]:
        began = clock.now_ns
        yield lambda: clock.now_ns - began

    variants = {"one": clock.network("one", 2e6), "two": clock.network("two", 3e6)}
    uncounted = time_interleaved(clock.pair(), variants, IMAGES, Settings(), SHORT)
    assert uncounted.instructions == {}
    monkeypatch.setattr(latency, "counting", counting)
    counted = time_interleaved(clock.pair(), variants, IMAGES, Settings(), SHORT)
    assert counted.instructions == {"baseline": (1e6,), "one": (2e6,), "two": (3e6,)}
    assert counted.variants == uncounted.variants, "times are taken before"


def test_batches_are_at_most_so_many() -> None:
    images = np.zeros((100, 1), np.float32)
    assert [len(part) for part in batches(images, 1)] == [1] * 32
    assert [len(part) for part in batches(images, 40)] == [40] * 2
    assert [len(part) for part in batches(images[:3], 2)] == [2]


@pytest.mark.parametrize(
    ("seconds", "call_ns", "rounds"),
    [(0.0, 1e6, 12), (0.5, 1e6, 21), (0.5, 5e5, 42), (0.1, 1e8, 12)],
)
def test_rounds_fill_the_time_and_are_at_least_so_many(
    clock: Clock, seconds: float, call_ns: float, rounds: int
) -> None:
    """A visit of 8 calls that settle and 4 that are timed, two networks a round: 24 calls."""
    effort = LatencyEffort(3, 0, seconds=seconds, min_rounds=12, visit=VISIT)
    series = time_interleaved(clock.pair(call_ns), {}, IMAGES, Settings(), effort)
    assert series.processes == (rounds,)


def test_a_warm_up_lasts_for_its_calls_and_for_its_time(clock: Clock) -> None:
    effort = LatencyEffort(2, warmup_seconds=0.05, seconds=0, min_rounds=1, visit=VISIT)
    slow = clock.network("slow", 4e7)
    series = time_interleaved(clock.pair(1e6), {"slow": slow}, IMAGES, Settings(), effort)
    names = [call.network for call in clock.calls]
    assert names[:102] == ["baseline"] * 50 + ["baseline again"] * 50 + ["slow"] * 2
    assert series.warmup_calls == 2


def test_a_warm_up_that_is_not_wanted_any_more_ends_between_two_calls(clock: Clock) -> None:
    effort = LatencyEffort(2, warmup_seconds=10, seconds=0, min_rounds=1, visit=VISIT)
    with ended_by(lambda: len(clock.calls) == 5), pytest.raises(Cancelled):
        time_interleaved(clock.pair(1e6), {}, IMAGES, Settings(), effort)
    assert len(clock.calls) == 5


def test_a_visit_that_is_not_wanted_any_more_ends_between_two_windows(clock: Clock) -> None:
    falling = clock.runner("falling", lambda since: 1e6 * 0.9**since)
    with ended_by(lambda: len(clock.calls) > 0), pytest.raises(Cancelled):
        settle(lambda: falling.infer(IMAGES[:1]), max_seconds=10)
    assert len(clock.calls) == WINDOW


@pytest.mark.parametrize(
    ("call_seconds", "rounds", "timed"), [(0.5, 8, 8), (2.0, 8, 5), (8.0, 6, 1), (20.0, 2, 1)]
)
def test_calls_that_take_seconds_get_fewer_rounds_of_fewer_calls(
    clock: Clock, call_seconds: float, rounds: int, timed: int
) -> None:
    """So that one process takes minutes, and five do not take hours."""
    slow = clock.network("slow", 1e9 * call_seconds)
    series = time_interleaved(
        clock.pair(1e9 * call_seconds), {"slow": slow}, IMAGES, Settings(), EFFORTS[False]
    )
    assert series.processes == (rounds,)
    assert series.variants["slow"].timed == (timed,) * rounds
    assert clock.now_ns / 1e9 < 300 + 3 * (20 + call_seconds)  # rounds and the warm-up


def test_in_one_process_there_are_rounds_enough_for_an_interval_however_long_calls_take(clock: Clock) -> None:
    slow = {"slow": clock.network("slow", 6e10)}  # that no other process can load
    series, attempts = time_series(clock.pair(6e10), slow, IMAGES, Settings(quick=False))
    assert (series.processes, attempts) == ((MIN_ROUNDS,), 1)


# What is reported


@pytest.mark.parametrize("ratio", [0.38, 0.7, 1.4])
@pytest.mark.parametrize("quick", [True, False])
def test_a_network_that_takes_long_to_settle_is_reported_at_its_steady_time(
    clock: Clock, ratio: float, quick: bool
) -> None:
    """As measured on EfficientNet-Lite0: float32 starts 18 % above its steady time, int8 50 %."""
    series, attempts = time_series(
        clock.pair(4_250_000, first=1.18),
        {"int8": clock.network("int8", 4_250_000 * ratio, first=1.5)},
        IMAGES,
        Settings(quick=quick),
    )
    found = series.summaries["int8"]
    assert found.ratio == pytest.approx(ratio, rel=0.005)
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.median_ns == pytest.approx(4_250_000 * ratio, rel=0.01)
    assert found.verdict == ("faster" if ratio < 1 else "slower")
    first, low, high = first_call_ratio(series.baseline, series.variants["int8"], series.processes)
    assert low <= first <= high
    assert first == pytest.approx(ratio * 1.5 / 1.18, rel=0.001)
    assert attempts == 1


@pytest.mark.parametrize("drift", [0.04, -0.04])
def test_what_drifts_is_reported_at_the_right_ratio(clock: Clock, drift: float) -> None:
    """The whole machine gets slower, or faster, by four percent in the course of the series."""

    def drifting(name: str, steady_ns: float) -> Runner:
        return clock.runner(name, lambda since: steady_ns * (1 + drift * clock.now_ns / 5e8))

    pair = drifting("baseline", 1e6), drifting("baseline again", 1e6)
    series, _ = time_series(pair, {"one": drifting("one", 8e5)}, IMAGES, Settings())
    found = series.summaries["one"]
    assert found.ratio == pytest.approx(0.8, rel=0.003)
    assert found.verdict == "faster"


@pytest.mark.parametrize("ratio", [0.985, 0.99, 1.01, 1.015])
def test_a_build_that_is_one_percent_off_is_no_difference(clock: Clock, ratio: float) -> None:
    series, _ = time_series(clock.pair(1e6), {"one": clock.network("one", ratio * 1e6)}, IMAGES, Settings())
    found = series.summaries["one"]
    assert found.ratio == pytest.approx(ratio, rel=1e-4)
    assert found.verdict == SAME


def test_a_noisy_series_is_measured_again_for_longer_and_then_kept(clock: Clock) -> None:
    """The variant doubles its time half-way through whatever there is."""
    unsteady = clock.runner("unsteady", lambda since: 1e6 * (1 + (clock.now_ns // 300_000_000) % 2))
    told: list[tuple[LatencySeries, int]] = []
    series, attempts = time_series(
        clock.pair(1e6),
        {"unsteady": unsteady},
        IMAGES,
        Settings(),
        noisy=lambda *one: told.append(one),
    )
    assert attempts == EFFORTS[True].attempts == 2
    ((first, attempt),) = told
    assert attempt == 1
    assert first.summaries["unsteady"].verdict == "noisy"
    assert first.processes < series.processes, "the second is longer"
    assert series.summaries["unsteady"].verdict == "noisy"
    assert len(clock.sessions) == 2 * 6
    once = LatencyEffort(4, 0.05, seconds=0.4, min_rounds=8, visit=EFFORTS[True].visit)
    assert once.again(1) == once
    assert once.again(2).seconds == 0.8
    assert once.again(2).min_rounds == 16, "of a large network these take longer than the seconds"


@pytest.mark.parametrize("quick", [True, False])
def test_what_had_too_few_rounds_goes_on_with_the_same_builds(clock: Clock, quick: bool) -> None:
    """Its calls scatter, and nothing else is wrong with it: the rounds that it has are kept."""
    random = np.random.default_rng(0)

    def scattering(name: str) -> Runner:
        return clock.runner(name, lambda since: 5e6 * np.exp(random.normal(0, 0.08)))

    told: list[LatencySeries] = []
    pair = scattering("baseline"), scattering("baseline again")
    series, attempts = time_series(
        pair,
        {"one": scattering("one")},
        IMAGES,
        Settings(quick=quick),
        noisy=lambda series, attempt: told.append(series),
        efforts={True: EFFORTS[True], False: replace(EFFORTS[True], processes=5)},  # no process can load them
    )
    (first,) = told
    assert attempts == 2
    assert {reason.kind for reason in first.summaries["one"].reasons} == {NoiseKind.BUILDS_UNKNOWN}
    assert len(series.processes) == 1, "of the same builds"
    assert series.processes[0] >= 3 * first.processes[0]
    for now, before in zip(
        (*series.baseline, series.variants["one"]), (*first.baseline, first.variants["one"]), strict=True
    ):
        assert now.calls.values[: len(before.calls.values)].tolist() == before.calls.values.tolist()
        assert len(now.timed) == series.processes[0]


def test_a_time_that_is_taken_afresh_is_that_of_more_rounds(clock: Clock) -> None:
    pair, variants = clock.pair(5e6), {"one": clock.network("one", 4e6)}
    quick, full = (
        [time_series(pair, variants, IMAGES, Settings(quick=quick), efforts=efforts)[0] for efforts in both]
        for quick, both in ((True, (EFFORTS, efforts_afresh())), (False, (EFFORTS, efforts_afresh())))
    )
    assert [one.processes for one in quick] == [(8,), (24,)]
    assert full[0].processes == full[1].processes, "that is long as it is"
    small, again = efforts_afresh()[True], EFFORTS[True].again(2)
    assert small.seconds > again.seconds, "no shorter than the noisy one in whose place it is taken"
    assert small.min_rounds > again.min_rounds
    long, whole = (efforts_afresh(10.0)[quick] for quick in (True, False))
    assert long == replace(small, seconds=10.0)
    assert whole == EFFORTS[False]


# What is left as it was


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_off_while_timing_and_put_back(clock: Clock, enabled: bool) -> None:
    before = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        time_interleaved(clock.pair(), {"one": clock.network("one", 1e6)}, IMAGES, Settings(), SHORT)
        assert gc.isenabled() is enabled
    finally:
        gc.enable() if before else gc.disable()
    assert not any(call.collecting for call in clock.calls[3 * WARM_UP :])


@pytest.mark.parametrize("number", [0, WARM_UP + 5 * SETTLED], ids=["in the warm-up", "while timing"])
def test_a_runner_that_fails_leaves_nothing_switched(clock: Clock, number: int) -> None:
    def fails(since: int) -> float:
        if sum(call.network == "broken" for call in clock.calls) > number:
            raise RuntimeError("the kernel failed")
        return 1e6

    with pytest.raises(RuntimeError, match="the kernel failed"):
        time_interleaved(clock.pair(), {"broken": clock.runner("broken", fails)}, IMAGES, Settings(), SHORT)
    assert gc.isenabled()
    names = ["baseline", "baseline again", "broken"]
    assert clock.sessions == [f"{name} begins" for name in names] + [f"{name} ends" for name in names[::-1]]


def test_each_runner_has_one_session_around_all_its_calls(clock: Clock) -> None:
    time_interleaved(clock.pair(), {"one": clock.network("one", 1e6)}, IMAGES, Settings(), SHORT)
    names = ["baseline", "baseline again", "one"]
    assert clock.sessions == [f"{name} begins" for name in names] + [f"{name} ends" for name in names[::-1]]


class Threads(nn.Module):
    """Logs torch's thread count, and fails when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.fails = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(torch.get_num_threads())
        if self.fails:
            raise RuntimeError("the kernel failed")
        return x.flatten(1)


@pytest.mark.parametrize("fails", [False, True])
def test_torch_s_thread_count_is_set_and_put_back(fails: bool) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        compressed = compress(Threads(), Recipe())
        module = compressed.module
        build = engine_named("torch").prepare(module, (1, 2, 2))
        runner = build(compressed, torch.zeros(1, 1, 2, 2), threads=1, batch=1)
        module.fails = fails
        try:
            time_interleaved((runner, runner), {}, IMAGES, Settings(threads=1), SHORT)
        except RuntimeError:
            assert fails
        assert set(module.seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def small_network() -> Runner:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    return engine_named("torch").prepare(model, (1, 28, 28))(
        compress(model, Recipe()), torch.zeros(1, 1, 28, 28), threads=1, batch=1
    )


@pytest.mark.timing
def test_two_identical_variants_are_not_called_different() -> None:
    """One comparison in a hundred may be wrong, and not two of three, each of networks built anew."""
    images = np.zeros((4, 1, 28, 28), np.float32)
    verdicts = []
    for _ in range(3):
        one, two, three = (small_network() for _ in range(3))
        series, _ = time_series((one, two), {"three": three}, images, Settings(threads=1))
        found = series.summaries["three"]
        told = summarise_visits(
            series.baseline, series.variants["three"], series.stolen_share, series.processes
        )
        assert told == found
        verdicts.append(found.verdict)
    assert sum(one in (SAME, "noisy") for one in verdicts) >= 2, verdicts
