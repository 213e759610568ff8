"""Requests at random moments, on a simulated clock and against the theory of queues."""

import itertools

import numpy as np
import pytest
from by_request import open_workspace
from simulated_clock import Clock

from optimizer.analysis.load import RECIPE, UNCOMPRESSED, LoadRequest
from optimizer.engine import Runner
from optimizer.measurement import load
from optimizer.measurement.load import LoadEffort, measure, serve
from optimizer.measurement.visits import VisitEffort
from optimizer.progress import Cancelled, ended_by
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import DataSpec, Execution, Settings

IMAGES = [np.zeros((1, 1), np.float32)]
SERVICE_NS = 1_000_000


@pytest.fixture(autouse=True)
def sleeps(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        clock.now_ns += max(1, round(1e9 * seconds))

    monkeypatch.setattr(load, "sleep", sleep)
    monkeypatch.setattr(load, "SPIN_SECONDS", 0.0)


def arrivals(rate: float, count: int, seed: int = 0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).exponential(1e9 / rate, count))


@pytest.mark.slow
@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
def test_the_wait_is_what_queueing_theory_says(clock: Clock, busy: float) -> None:
    """Of one server whose every call takes as long (M/D/1, Pollaczek and Khinchine): the mean wait is
    busy / (2 (1 - busy)) of a call."""
    turn = serve(clock.network("one", SERVICE_NS).infer, IMAGES, arrivals(1_000 * busy, 40_000), 1e12)
    waits = np.array(turn.times_ns) - SERVICE_NS
    assert waits.min() >= 0
    assert waits.mean() / SERVICE_NS == pytest.approx(busy / (2 * (1 - busy)), rel=0.08)
    assert turn.busy == pytest.approx(busy, abs=0.02)
    assert not turn.behind


def test_a_request_that_finds_the_network_free_takes_a_call_and_one_that_does_not_waits(clock: Clock) -> None:
    moments = np.array([5e6, 5.2e6, 20e6])
    turn = serve(clock.network("one", SERVICE_NS).infer, IMAGES, moments, 1e12)
    assert turn.times_ns == [1_000_000, 1_800_000, 1_000_000]
    assert turn.service_ns == [1_000_000] * 3, "the wait for another request is not the network's"
    assert clock.now_ns == 21_000_000


def test_a_rate_above_what_is_served_is_said_and_ends_early(clock: Clock) -> None:
    turn = serve(clock.network("one", SERVICE_NS).infer, IMAGES, arrivals(2_000, 10_000), max_wait_ns=5e7)
    assert turn.behind
    assert len(turn.times_ns) < 200
    slowly = serve(clock.network("one", SERVICE_NS).infer, IMAGES, arrivals(1_080, 4_000), max_wait_ns=1e12)
    assert not slowly.behind, "none waited for too long yet"
    assert load._together([slowly], 1_080, SERVICE_NS).behind, "the queue grew"


def test_a_rate_that_is_served_is_rarely_said_to_be_too_high(clock: Clock) -> None:
    infer, random = clock.network("one", SERVICE_NS).infer, np.random.default_rng(6)
    said = []
    for _ in range(60):
        moments = [np.cumsum(random.exponential(SERVICE_NS / 0.97, 150)) for _ in range(2)]
        turns = [serve(infer, IMAGES, one, 1e12) for one in moments]
        said.append(load._fell_behind(turns))
    assert np.mean(said) <= 0.1


def test_both_networks_are_served_in_turns_at_every_rate(clock: Clock) -> None:
    runners = {UNCOMPRESSED: clock.network(UNCOMPRESSED, 1e6), RECIPE: clock.network(RECIPE, 5e5)}
    effort = LoadEffort(2, 0.0, 100, 10.0, VisitEffort(0.1, 0, 2, 2))
    random = np.random.default_rng(3)
    service = {UNCOMPRESSED: 1e6, RECIPE: 5e5}
    turns = load._at_rate(runners, IMAGES, 500.0, service, effort, random)
    for name, found in turns.items():
        answered = load._together(found, 500.0, service[name])
        assert len(answered.times.values) == 2 * 100, name
        assert set(answered.service.values) == {service[name]}
        assert not answered.behind
    assert sorted(clock.sessions) == sorted(
        [f"{name} {end}" for name in runners for end in ("begins", "ends")] * 2
    )
    turns = load._at_rate(runners, IMAGES, 1_500.0, service, effort, random)
    fast = {name: load._together(found, 1_500.0, service[name]) for name, found in turns.items()}
    assert (fast[UNCOMPRESSED].behind, fast[RECIPE].behind) == (True, False)
    assert len(fast[UNCOMPRESSED].times.values) <= 100, "one turn is enough to know"


@pytest.mark.parametrize("quick", [True, False])
def test_the_turns_of_a_slow_network_end_in_time(clock: Clock, quick: bool) -> None:
    effort, service_ns = load.EFFORTS[quick], 2e9
    runners = {name: clock.network(name, service_ns) for name in (UNCOMPRESSED, RECIPE)}
    service = dict.fromkeys(runners, service_ns)
    for rate, seed in itertools.product((0.01, 0.05, 0.15, 0.6, 5.0), range(8)):
        clock.now_ns = 0
        turns = load._at_rate(runners, IMAGES, rate, service, effort, np.random.default_rng(seed))
        found = {name: load._together(some, rate, service_ns) for name, some in turns.items()}
        longest = 2 * effort.max_seconds + 3 * 2
        assert clock.now_ns / 1e9 < len(runners) * effort.turns * longest
        assert {answered.behind for answered in found.values()} == {rate > 0.5}
        assert all(len(answered.times.values) for answered in found.values()) or rate == 5.0


def test_a_long_wait_for_a_request_ends_where_it_is_not_wanted(clock: Clock) -> None:
    infer = clock.network("one", SERVICE_NS).infer
    with ended_by(lambda: clock.now_ns > 2e9), pytest.raises(Cancelled):
        serve(infer, IMAGES, np.array([0.0, 60e9]), 1e12)
    assert clock.now_ns < 4e9


def test_what_is_not_wanted_any_more_ends_before_the_next_turn(clock: Clock) -> None:
    runners = {UNCOMPRESSED: clock.network(UNCOMPRESSED, 1e6)}
    random = np.random.default_rng(0)
    with ended_by(lambda: bool(clock.sessions)), pytest.raises(Cancelled):
        load._at_rate(runners, IMAGES, 500.0, {UNCOMPRESSED: 1e6}, load.EFFORTS[True], random)
    assert clock.sessions == [f"{UNCOMPRESSED} begins", f"{UNCOMPRESSED} ends"]


def test_a_network_that_fails_fails(clock: Clock) -> None:
    def infer(images: np.ndarray) -> np.ndarray:
        raise RuntimeError("the kernel failed")

    with pytest.raises(RuntimeError, match="the kernel failed"):
        serve(Runner(infer, infer, lambda: Execution((), ())).infer, IMAGES, arrivals(10, 3), 1e9)


@pytest.mark.slow
def test_a_real_network_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from optimizer.measurement import visits

    monkeypatch.undo()
    monkeypatch.setitem(load.EFFORTS, True, LoadEffort(1, 0.0, 40, 10.0, VisitEffort(0.01, 0, 2, 2)))
    assert visits.clock() > 0
    int8 = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8))
    data = DataSpec(limit=50)
    request = LoadRequest("fashion-mlp", int8, data=data, settings=Settings(threads=1), rates=(200.0, 50.0))
    words: list[str] = []
    run = measure(open_workspace("fashion-mlp", data), request, lambda share, message: words.append(message))
    assert [point.rate for point in run.points] == [50.0, 200.0]
    assert "50 requests a second, 1 of 2 rates" in words
    assert run.execution.simulated == (), "int8 kernels ran"
    for point in run.points:
        for answered in point.answered.values():
            assert len(answered.times.values) == len(answered.service.values) == 40
            assert (answered.service.values <= answered.times.values).all()
            assert answered.percentiles["p50"].value is None, "too few for it"
