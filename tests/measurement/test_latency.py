"""The runners here are real callables that keep a log; times are never asserted."""

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from dependent_rounds import Process, bursts, correlated
from factories import recipe
from torch import nn

from optimizer.analysis.rounds import percentile_bound
from optimizer.analysis.statistics import SAME, summarise_latency
from optimizer.compression.apply import compress
from optimizer.engine import engine_named
from optimizer.engine.base import Runner
from optimizer.measurement import latency
from optimizer.measurement.latency import (
    BOUND_CHECKS,
    MAX_SERIES,
    LatencyEffort,
    measure_latency,
    tails_are_bounded,
    time_interleaved,
)
from optimizer.recipe import Recipe
from optimizer.records import Execution, Settings

SHORT = LatencyEffort(
    warmup_calls=3, warmup_seconds=0, seconds=0, least_rounds=12, attempts=2, sample_seconds=0
)
IMAGES = np.arange(6 * 4, dtype=np.float32).reshape(6, 1, 2, 2)


@dataclass
class Log:
    """What was called, in order: (runner, first value and shape of its batch, whether gc was on)."""

    calls: list[tuple[str, float, tuple[int, ...], bool]] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)

    def runner(self, name: str, work: Callable[[int], object] = lambda call: None) -> Runner:
        count = itertools.count()

        def infer(images: np.ndarray) -> np.ndarray:
            self.calls.append((name, float(images.flat[0]), images.shape, gc.isenabled()))
            work(next(count))
            return images.reshape(len(images), -1)

        @contextmanager
        def session() -> Iterator[None]:
            self.sessions.append(f"{name} begins")
            try:
                yield
            finally:
                self.sessions.append(f"{name} ends")

        return Runner(infer, infer, Execution((), ()), session=session)

    def pair(self, work: Callable[[int], object] = lambda call: None) -> tuple[Runner, Runner]:
        return self.runner("baseline", work), self.runner("baseline again", work)

    def rounds(self, runners: int, warm_up: int) -> list[list[str]]:
        """The runners that each round timed, in order: each after an untimed call of its own."""
        names = [call[0] for call in self.calls[warm_up:]]
        assert names[::2] == names[1::2]
        return [names[start : start + 2 * runners : 2] for start in range(0, len(names), 2 * runners)]


def orders(seed: int) -> list[list[str]]:
    log = Log()
    variants = {name: log.runner(name) for name in ("one", "two")}
    time_interleaved(log.pair(), variants, IMAGES, Settings(seed=seed), SHORT)
    return log.rounds(4, warm_up=4 * 3)


def test_every_round_times_the_baseline_twice_and_each_variant_once() -> None:
    log = Log()
    series = time_interleaved(
        log.pair(), {"one": log.runner("one"), "two": log.runner("two")}, IMAGES, Settings(), SHORT
    )
    assert series.baseline_ns.shape == (2, 12)
    assert {name: samples.shape for name, samples in series.variants_ns.items()} == {
        "one": (12,),
        "two": (12,),
    }
    assert all((samples > 0).all() for samples in (series.baseline_ns, *series.variants_ns.values()))
    rounds = log.rounds(4, warm_up=4 * 3)
    assert len(rounds) == 12
    assert all(sorted(names) == ["baseline", "baseline again", "one", "two"] for names in rounds)
    assert series.warmup_calls == 3
    assert 0 <= series.stolen_share <= 1


@pytest.mark.timing
def test_samples_belong_to_their_runner_and_round() -> None:
    """A runner that is always the slowest, and in the fifth round by far, is found in its own column."""
    log = Log()
    baselines = log.pair(lambda call: time.sleep(0.0005))
    slow = log.runner("slow", lambda call: time.sleep(0.04 if call == 3 + 2 * 4 + 1 else 0.002))
    series = time_interleaved(baselines, {"slow": slow}, IMAGES, Settings(), SHORT)
    assert series.variants_ns["slow"][4] >= 40_000_000
    assert (series.variants_ns["slow"] >= 2_000_000).all()
    assert (series.baseline_ns >= 500_000).all()


def test_the_order_is_shuffled_anew_each_round_and_comes_back_with_the_seed() -> None:
    first = orders(1)
    assert first == orders(1)
    assert first != orders(2)
    assert len({tuple(names) for names in first}) > 3
    assert len({names[0] for names in first}) > 1


def test_a_round_gives_every_runner_the_same_contiguous_batch_and_rounds_walk_through_the_images() -> None:
    log = Log()
    time_interleaved(log.pair(), {"one": log.runner("one")}, IMAGES, Settings(batch=2), SHORT)
    firsts = [call[1] for call in log.calls[3 * 3 :]]
    assert {call[2] for call in log.calls} == {(2, 1, 2, 2)}
    assert firsts == [value for index in range(12) for value in [index % 3 * 8.0] * 6]


@pytest.mark.timing
def test_short_calls_are_timed_several_in_a_row_and_the_sample_is_their_mean() -> None:
    log = Log()
    effort = replace(SHORT, sample_seconds=0.003)
    pair, variant = (
        log.pair(lambda call: time.sleep(0.001)),
        log.runner("one", lambda call: time.sleep(0.0012)),
    )
    series = time_interleaved(pair, {"one": variant}, IMAGES, Settings(), effort)
    assert series.calls in (2, 3)
    assert len(log.calls) == 3 * (3 + 12 * (1 + series.calls))
    for samples in (series.variants_ns["one"], series.single_ns["one"]):
        assert samples.shape == (12,)
        assert (samples >= 1_200_000).all()
    assert np.median(series.variants_ns["one"]) < 2 * 1_200_000, "a sample is of one call, not their sum"


def test_percentiles_are_of_single_calls() -> None:
    single = np.random.default_rng(0).permutation(np.arange(1, 201))
    found = summarise_latency(np.ones((2, 200)), np.ones(200), single_ns=single)
    assert found.p95_ns is not None
    assert found.p95_ns > 190


@pytest.mark.parametrize("batch", [5, 20])
def test_images_are_repeated_where_there_are_fewer_than_a_batch(batch: int) -> None:
    log = Log()
    time_interleaved(log.pair(), {}, IMAGES, Settings(batch=batch), SHORT)
    assert {call[2] for call in log.calls} == {(batch, 1, 2, 2)}


def test_a_series_ends_once_the_99th_percentile_has_its_bound() -> None:
    effort = LatencyEffort(warmup_calls=0, warmup_seconds=0, seconds=float("inf"), least_rounds=1)
    series = time_interleaved(Log().pair(), {"one": Log().runner("one")}, IMAGES, Settings(), effort)
    assert series.calls == 1
    times = series.variants_ns["one"].astype(float)
    assert len(times) in BOUND_CHECKS
    assert len(times) == MAX_SERIES or percentile_bound(times, 0.99) is not None


@pytest.mark.parametrize("draw", [correlated(0), correlated(0.5), bursts(0.05, 2)])
def test_going_on_until_there_is_a_bound_finds_one_that_holds(draw: Process) -> None:
    """Looking several times does not make the bound less safe."""
    truth, random = np.quantile(draw(np.random.default_rng(9), 500_000), 0.99), np.random.default_rng(28)
    bounds = []
    for _ in range(200):
        drawn = draw(random, MAX_SERIES)
        ended = next((rounds for rounds in BOUND_CHECKS if tails_are_bounded(rounds, [drawn[:rounds]])), 0)
        bounds.append(percentile_bound(drawn[:ended], 0.99))
    assert np.mean([bound is not None for bound in bounds]) >= 0.98
    assert np.mean([bound is not None and bound < truth for bound in bounds]) <= 0.02
    assert not tails_are_bounded(BOUND_CHECKS[0] + 1, [])


@pytest.mark.timing
def test_a_warm_up_lasts_for_its_calls_and_for_its_time() -> None:
    log = Log()
    effort = LatencyEffort(warmup_calls=1, warmup_seconds=0.05, seconds=0, least_rounds=1, sample_seconds=0)
    slow = log.runner("slow", lambda call: time.sleep(0.02))
    series = time_interleaved(log.pair(), {"slow": slow}, IMAGES, Settings(), effort)
    calls = [call[0] for call in log.calls[:-6]]
    assert series.warmup_calls == calls.count("slow") in (2, 3)  # the least of all runners
    assert calls.count("baseline") > 3


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_off_while_timing_and_put_back(enabled: bool) -> None:
    before = gc.isenabled()
    log = Log()
    try:
        gc.enable() if enabled else gc.disable()
        time_interleaved(log.pair(), {"one": log.runner("one")}, IMAGES, Settings(), SHORT)
        assert gc.isenabled() is enabled
    finally:
        gc.enable() if before else gc.disable()
    assert not any(call[3] for call in log.calls[3 * 3 :])


def fails_in_call(number: int) -> Callable[[int], object]:
    def work(call: int) -> None:
        if call == number:
            raise RuntimeError("the kernel failed")

    return work


@pytest.mark.parametrize("call", [0, 3 + 2 * 5], ids=["in the warm-up", "while timing"])
def test_a_runner_that_fails_leaves_nothing_switched(call: int) -> None:
    log = Log()
    broken = log.runner("broken", fails_in_call(call))
    with pytest.raises(RuntimeError, match="the kernel failed"):
        time_interleaved(log.pair(), {"broken": broken}, IMAGES, Settings(), SHORT)
    assert gc.isenabled()
    names = ["baseline", "baseline again", "broken"]
    assert log.sessions == [f"{name} begins" for name in names] + [f"{name} ends" for name in names[::-1]]


def test_each_runner_has_one_session_around_all_its_calls() -> None:
    log = Log()
    time_interleaved(log.pair(), {"one": log.runner("one")}, IMAGES, Settings(), SHORT)
    names = ["baseline", "baseline again", "one"]
    assert log.sessions == [f"{name} begins" for name in names] + [f"{name} ends" for name in names[::-1]]


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
    images = np.zeros((4, 1, 28, 28), np.float32)
    one, two, three = (small_network() for _ in range(3))
    found = measure_latency(
        (one, two), three, images, Settings(threads=1, quick=True), "signature", "uncompressed"
    )
    verdict = summarise_latency(found.baseline_ns, found.variant_ns, found.stolen_share).verdict
    assert verdict in (SAME, "noisy")


@pytest.mark.timing
def test_a_variant_that_does_twenty_times_the_work_is_not_called_the_same() -> None:
    log = Log()
    baselines = log.pair(lambda call: time.sleep(0.0005))
    slow = log.runner("slow", lambda call: time.sleep(0.01))
    found = measure_latency(baselines, slow, IMAGES, Settings(), "signature", Recipe())
    assert summarise_latency(found.baseline_ns, found.variant_ns).verdict in ("slower", "noisy")
    assert summarise_latency(found.baseline_ns, found.variant_ns).ratio > 1


def test_the_record_holds_the_raw_samples_and_how_they_came_about() -> None:
    log = Log()
    settings, made = Settings(threads=1, batch=3, quick=True, seed=5), recipe(0, 4)
    found = measure_latency(log.pair(), log.runner("b"), IMAGES, settings, "the signature", made)
    assert (found.signature, found.recipe) == ("the signature", made)
    assert (found.threads, found.batch, found.quick, found.seed) == (1, 3, True, 5)
    assert len(found.baseline_ns) == 2
    assert len(found.baseline_ns[0]) == len(found.baseline_ns[1]) == len(found.variant_ns)
    assert len(found.variant_ns) >= latency.EFFORTS[True].least_rounds
    assert all(isinstance(sample, int) for sample in (*found.baseline_ns[0], *found.variant_ns))
    assert found.warmup_calls >= latency.EFFORTS[True].warmup_calls
    noise = summarise_latency(found.baseline_ns, found.variant_ns, found.stolen_share).noise
    assert found.attempts == latency.EFFORTS[True].attempts or not noise


@pytest.mark.timing
def test_a_noisy_measurement_is_made_again_and_then_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(latency.EFFORTS, True, SHORT)
    log = Log()
    unsteady = log.runner("unsteady", lambda call: time.sleep(0.01 if call // 2 % 2 else 0))
    found = measure_latency(log.pair(), unsteady, IMAGES, Settings(), "signature", "unsteady")
    assert found.attempts == 2
    assert len(found.variant_ns) == 12
    assert len(log.sessions) == 2 * 6
    assert summarise_latency(found.baseline_ns, found.variant_ns).verdict == "noisy"
