"""How long a visit lasts and what of it is timed, on a simulated clock."""

from functools import partial

import numpy as np
import pytest
from simulated_clock import Clock

from optimizer.measurement.visits import WINDOW, VisitEffort, is_settled, settle, timed, visit

IMAGES = np.zeros((1, 1), np.float32)
EFFORT = VisitEffort(settle_seconds=0.1, seconds=0.005, min_calls=4, max_calls=32)


@pytest.mark.parametrize(("first", "decay"), [(1.2, 0.5), (1.5, 0.6), (2.0, 0.7), (3.0, 0.8)])
def test_what_is_timed_has_come_back_to_its_steady_time(clock: Clock, first: float, decay: float) -> None:
    network = clock.network("one", 1_000_000, first, decay)
    settling, calls = visit(partial(network.infer, IMAGES), EFFORT)
    assert settling[0] == pytest.approx(1_000_000 * first)
    assert np.median(calls) < 1_015_000
    assert len(clock.calls) == len(settling) + len(calls)
    assert clock.now_ns == sum(settling) + sum(calls)


def test_a_network_without_a_transient_settles_in_two_windows(clock: Clock) -> None:
    assert settle(partial(clock.network("one", 50_000).infer, IMAGES), 0.1) == [50_000] * 2 * WINDOW


def test_settling_ends_in_time_however_the_calls_go_on(clock: Clock) -> None:
    falling = clock.runner("one", lambda since: 1e7 * 0.9**since + 1e6)
    calls = settle(partial(falling.infer, IMAGES), 0.03)
    assert len(calls) < 2 * WINDOW
    assert sum(calls[:-1]) < 3e7 <= sum(calls)
    slow = clock.network("two", 1e9)
    assert settle(partial(slow.infer, IMAGES), 0.03) == [10**9]


@pytest.mark.parametrize(
    ("call_ns", "count"),
    [(100, 32), (1_000_000, 5), (1_100_000, 5), (2_000_000, 4), (10**9, 4)],
)
def test_the_timed_calls_fill_their_time_within_their_bounds(clock: Clock, call_ns: int, count: int) -> None:
    calls = timed(partial(clock.network("one", call_ns).infer, IMAGES), EFFORT)
    assert calls == [call_ns] * count


@pytest.mark.parametrize(
    ("calls", "settled"),
    [
        ([100] * 7, False),
        ([100] * 8, True),
        ([110] * 4 + [100] * 4, False),
        ([100] * 4 + [110] * 4, True),
        ([1000] * 4 + [991] * 4, True),
        ([1000] * 4 + [989] * 4, False),
        ([500, 400, 300, 200] + [100, 100, 100, 900] + [100] * 4, True),
    ],
)
def test_settled_is_when_a_window_falls_by_less_than_a_hundredth(calls: list[int], settled: bool) -> None:
    assert is_settled(calls) is settled
