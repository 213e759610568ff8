"""What a machine may lack while the pool runs: processes, threads, memory, room on the disk. Jobs fail in
words, and every lane goes on."""

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tasks import lines, until

from optimizer.store.results import Store
from optimizer.system import process_pool
from optimizer.system.process_pool import Pool

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")


def serves(pool: Pool, lane: str = "measure") -> bool:
    job = pool.wait(pool.submit(lane, "echo", lane, f"echo {lane}"), 60)
    pool.forget(job.key)
    return (job.state, job.result) == ("done", lane)


def failing(function: Callable[..., Any], error: Exception, times: int) -> Callable[..., Any]:
    """``function``, whose first ``times`` calls raise ``error``."""
    left = iter(range(times))

    def called(*arguments: Any, **options: Any) -> Any:
        if next(left, None) is not None:
            raise error
        return function(*arguments, **options)

    return called


NO_PROCESS = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "error"),
    [
        *((times, NO_PROCESS) for times in (1, 2, 3)),
        (2, OSError(errno.ENOMEM, "Cannot allocate memory")),
        (3, MemoryError()),
    ],
)
def test_a_lane_outlives_a_process_that_can_not_be_started(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, error: Exception
) -> None:
    begun = str(tmp_path / "begun")
    job = pool.submit("measure", "wait", {"begun": begun, "go": "never"}, "k")
    until(lambda: lines(begun))
    monkeypatch.setattr(subprocess, "Popen", failing(subprocess.Popen, error, times))
    os.kill(int(lines(begun)[0]), signal.SIGKILL)
    assert pool.wait(job, 60).state == "failed"
    assert "no worker process could be started" in job.error
    assert "try again" in job.error
    until(lambda: serves(pool), 60)
    assert serves(pool, "interactive")


def test_a_worker_whose_guard_or_thread_can_not_be_started_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {process.pid for process in psutil.Process().children()}
    start = threading.Thread.start

    def no_more(thread: threading.Thread) -> None:
        if thread.name == "worker's end":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        with Pool("tasks:run", lanes=("measure",)) as pool:
            job = pool.wait(pool.submit("measure", "echo", 1, "k"), 60)
            assert job.state == "failed"
            assert "can't start new thread" in job.error
            until(lambda: {process.pid for process in psutil.Process().children()} == before)
            patch.undo()
            assert serves(pool)
    assert {process.pid for process in psutil.Process().children()} == before


def test_a_lane_outlives_any_error_of_its_own(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert serves(pool)
    monkeypatch.setattr(process_pool, "Worker", failing(process_pool.Worker, ZeroDivisionError("odd"), 2))
    job = pool.submit("measure", "exit", None, "k")
    assert pool.wait(job, 60).state == "failed"
    assert serves(pool)


def test_too_little_memory_fails_the_job_and_not_the_worker(pool: Pool) -> None:
    job = pool.wait(pool.submit("measure", "eat", 2**40, "k"), 60)
    assert (job.state, job.attempts) == ("failed", 1)
    assert "too little memory" in job.error
    assert "fewer images, a smaller batch size or a smaller model" in job.error
    assert serves(pool)


def test_an_answer_that_this_process_can_not_hold_fails_its_job(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimizer.system import worker

    assert serves(pool)
    monkeypatch.setattr(worker.pickle, "load", failing(worker.pickle.load, MemoryError(), 1))
    job = pool.wait(pool.submit("measure", "bytes", 2**20, "k"), 60)
    assert job.state == "failed"
    assert "MemoryError" in job.error
    assert serves(pool)


@pytest.mark.slow
def test_a_full_disk_fails_the_job_in_words_and_loses_nothing(pool: Pool, tmp_path: Path) -> None:
    path, file = str(tmp_path / "results.sqlite"), str(tmp_path / "in")
    job = pool.wait(pool.submit("measure", "fill up", (path, file, "k", 1_000), "k"), 60)
    assert (job.state, job.attempts) == ("failed", 1)
    assert "its disk has room" in job.error
    stored = {result.key for result in Store(path).results()}
    assert stored == set(lines(file))
    assert stored
    again = pool.wait(pool.submit("measure", "fill", (path, file, "again", 1), "again"), 60)
    assert again.state == "done"  # there is room again
    assert {result.key for result in Store(path).results()} == set(lines(file))
