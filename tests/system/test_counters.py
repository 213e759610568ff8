"""Counting what a process does, by an event that every kernel has: time on a processor."""

import os
import threading
import time

import pytest

from optimizer.errors import UnavailableError
from optimizer.system import counters
from optimizer.system.counters import Event, counting

TASK_CLOCK: Event = (1, 1)
"""Nanoseconds on a processor: the kernel counts these itself, on any machine."""

try:
    with counting(TASK_CLOCK):
        pass
except UnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_what_was_worked_is_counted_and_what_was_slept_is_not() -> None:
    with counting(TASK_CLOCK) as so_far:
        burn(0.05)
        worked = so_far()
        time.sleep(0.3)
        slept = so_far() - worked
    assert worked > 0.04e9
    assert slept < 0.1e9


def test_threads_that_were_there_before_count_too() -> None:
    begin, done = threading.Event(), threading.Event()

    def work() -> None:
        begin.wait()
        burn(0.05)
        done.set()

    helper = threading.Thread(target=work)
    helper.start()
    with counting(TASK_CLOCK) as so_far:
        begin.set()
        done.wait()
        assert so_far() > 0.04e9
    helper.join()


def test_a_thread_that_has_ended_since_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.listdir

    def and_one_that_is_gone(place: object) -> list[str]:
        helper = threading.Thread(target=lambda: None)
        helper.start()
        helper.join()
        return [*listed(place), str(helper.native_id)]  # type: ignore[call-overload]

    monkeypatch.setattr(counters.os, "listdir", and_one_that_is_gone)
    with counting(TASK_CLOCK) as so_far:
        burn(0.02)
        assert so_far() > 0.01e9


def test_no_descriptor_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with counting(TASK_CLOCK):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_kernel_without_the_event_says_so_and_what_has_it() -> None:
    words = r"no count of instructions \(.+\): a machine without"
    with pytest.raises(UnavailableError, match=words), counting((0, 0xFFFF)):
        pass


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "riscv64")])
def test_another_system_says_so(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    monkeypatch.setattr(counters.platform, "system", lambda: system)
    monkeypatch.setattr(counters.platform, "machine", lambda: machine)
    with pytest.raises(UnavailableError, match=f"not counted on {system}, {machine}"), counting():
        pass
