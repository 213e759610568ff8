"""Processes are killed for real, at the worst moment, and what should survive does."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import psutil
import pytest
from storing import make_result
from tasks import lines, until

from optimizer.store.results import Store
from optimizer.system.machine_lock import machine_lock
from optimizer.system.process_pool import Job, Pool

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")


@pytest.fixture
def lock(own_locks: Path) -> str:
    """The name of a lock of this test's own (ask for it before the pool)."""
    return "kill"


def begin(pool: Pool, folder: Path, task: str = "wait", **more: str) -> tuple[Job, dict[str, str]]:
    """Submit a task that waits for ``go``, and come back when it runs."""
    request = {part: str(folder / part) for part in ("begun", "go", "child")} | more
    job = pool.submit("measure", task, request, "k")
    until(lambda: lines(request["begun"]))
    return job, request


def until_lines(file: str | Path, least: int) -> None:
    until(lambda: len(lines(file)) >= least)


def kill(process: object) -> None:
    os.kill(int(str(process)), signal.SIGKILL)


def gone(process: object) -> bool:
    """Whether it has ended (a zombie that nobody has buried yet has)."""
    try:
        return psutil.Process(int(str(process))).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def serves(pool: Pool, key: str = "another") -> bool:
    job = pool.wait(pool.submit("measure", "echo", key, key), 60)
    return (job.state, job.result, job.attempts) == ("done", key, 1)


def test_a_job_whose_worker_is_killed_is_tried_once_more(pool: Pool, tmp_path: Path) -> None:
    job, request = begin(pool, tmp_path)
    kill(lines(request["begun"])[0])
    until(lambda: len(lines(request["begun"])) == 2)
    assert (job.state, job.attempts) == ("running", 2)
    Path(request["go"]).touch()
    assert pool.wait(job, 60).state == "done"
    assert job.result == int(lines(request["begun"])[1])
    assert serves(pool)


def test_a_job_that_kills_every_worker_is_given_up_and_the_pool_goes_on(pool: Pool, tmp_path: Path) -> None:
    file = str(tmp_path / "tries")
    job = pool.wait(pool.submit("measure", "die", (file, 9), "k"), 60)
    assert (job.state, job.attempts, len(lines(file))) == ("failed", 2, 2)
    assert "killed by SIGKILL" in job.error
    assert "out of memory" in job.error
    assert "2 times" in job.error
    assert serves(pool)
    again = pool.wait(pool.submit("measure", "die", (file, 0), "k"), 60)
    assert (again.state, again.result, again.attempts) == ("done", 3, 1)


def test_a_worker_that_ends_itself_counts_as_dead(pool: Pool) -> None:
    job = pool.wait(pool.submit("measure", "exit", None, "k"), 60)
    assert (job.state, job.attempts) == ("failed", 2)
    assert "exit code 3" in job.error
    assert serves(pool)


def test_a_worker_that_is_killed_while_idle_costs_the_next_job_no_attempt(pool: Pool, tmp_path: Path) -> None:
    job, request = begin(pool, tmp_path)
    Path(request["go"]).touch()
    worker = pool.wait(job, 60).result
    kill(worker)
    until(lambda: not psutil.pid_exists(int(str(worker))))
    assert serves(pool)


def test_a_dead_worker_whose_child_holds_its_pipes_is_noticed(pool: Pool, tmp_path: Path) -> None:
    job, request = begin(pool, tmp_path, "fork")
    kill(lines(request["begun"])[0])
    assert pool.wait(job, 60).state == "done"
    assert job.result == "again"
    until(lambda: gone(lines(request["child"])[0]))


@pytest.mark.slow
def test_cancelling_a_running_job_kills_its_worker_and_what_that_started(pool: Pool, tmp_path: Path) -> None:
    job, request = begin(pool, tmp_path, "fork")
    queued = pool.submit("measure", "echo", "next", "next")
    until(lambda: job.message == "half way")
    assert pool.cancel("k")
    assert pool.wait(job, 0).state == "cancelled"
    until(lambda: gone(lines(request["begun"])[0]))
    until(lambda: gone(lines(request["child"])[0]))
    assert pool.wait(queued, 60).result == "next"
    assert queued.attempts == 1
    assert (job.message, job.error, len(lines(request["begun"]))) == ("half way", "", 1)
    Path(request["go"]).touch()
    again = pool.submit("measure", "wait", request, "k")
    assert again is not job
    assert pool.wait(again, 60).state == "done"


def test_a_retry_can_be_cancelled(pool: Pool, tmp_path: Path) -> None:
    job, request = begin(pool, tmp_path)
    kill(lines(request["begun"])[0])
    until_lines(request["begun"], 2)
    assert pool.cancel("k", grace=0)
    assert serves(pool)
    assert (job.state, job.error, job.attempts, job.died) == ("cancelled", "", 2, False)


@pytest.mark.slow
def test_cancelling_again_and_again_never_hurts_the_next_job(pool: Pool, tmp_path: Path) -> None:
    for number in range(6):
        pool.submit("measure", "wait", {"begun": str(tmp_path / "begun"), "go": "never"}, "k")
        queued = pool.submit("measure", "echo", number, str(number))
        if number % 2:
            until_lines(tmp_path / "begun", number // 2 + 1)
        assert pool.cancel("k")
        assert pool.wait(queued, 60).state == "done"
        assert (queued.result, queued.attempts) == (number, 1)


def test_closing_leaves_no_process(tmp_path: Path) -> None:
    with Pool("tasks:run") as pool:
        _, request = begin(pool, tmp_path, "fork")
    until(lambda: gone(lines(request["begun"])[0]))
    until(lambda: gone(lines(request["child"])[0]))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_die_with_the_server(tmp_path: Path, how: signal.Signals) -> None:
    code = (
        "import signal, sys, time\n"
        "from optimizer.system.process_pool import Pool\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
        "pool = Pool('tasks:run')\n"
        "begun, go, child, idle = sys.argv[1:]\n"
        "request = {'begun': begun, 'go': go, 'child': child}\n"
        "pool.submit('measure', 'fork', request, 'busy')\n"
        "pool.wait(pool.submit('interactive', 'wait', {'begun': idle, 'go': '/'}, 'idle'))\n"
        "time.sleep(600)\n"
    )
    begun, go, child, idle = (tmp_path / name for name in ("begun", "go", "child", "idle"))
    server = subprocess.Popen(
        [sys.executable, "-c", code, begun, go, child, idle],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        processes = [until(partial(lines, file))[0] for file in (begun, child, idle)]
        assert not any(gone(process) for process in processes)
        server.send_signal(how)
        server.wait(60)
        for process in processes:
            until(partial(gone, process))
    finally:
        server.kill()
        server.wait()


def test_a_worker_in_a_native_call_dies_with_its_server(tmp_path: Path) -> None:
    begun, child = tmp_path / "begun", tmp_path / "child"
    code = (
        "import sys\n"
        "from optimizer.system.process_pool import Pool\n"
        "pool = Pool('tasks:run')\n"
        "begun, child = sys.argv[1:]\n"
        "pool.wait(pool.submit('measure', 'native', {'begun': begun, 'child': child}, 'k'))\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code, begun, child],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        processes = [until(partial(lines, file))[0] for file in (begun, child)]
        server.kill()
        server.wait(60)
        for process in processes:
            until(partial(gone, process), 20)
    finally:
        server.kill()
        server.wait()
        for process in processes:
            if not gone(process):
                kill(process)


def test_a_worker_in_a_native_call_can_be_stopped(pool: Pool, tmp_path: Path) -> None:
    _, request = begin(pool, tmp_path, "native")
    assert pool.cancel("k")
    assert serves(pool)
    for file in (request["begun"], request["child"]):
        until(partial(gone, lines(file)[0]))


@pytest.mark.slow
def test_guards_go_with_what_they_guard(tmp_path: Path) -> None:
    before = {process.pid for process in psutil.Process().children()}
    with Pool("tasks:run") as pool:
        for number in range(3):
            begin(pool, tmp_path)
            pool.cancel("k")
            assert serves(pool, str(number))
        children = [one for one in psutil.Process().children() if one.pid not in before]
        assert len(children) == 4, children  # a worker and its guard in each of two lanes
    assert {process.pid for process in psutil.Process().children()} == before


def test_a_killed_holder_gives_the_lock_back(lock: str, pool: Pool, tmp_path: Path) -> None:
    job, _ = begin(pool, tmp_path, "hold", lock=lock)

    def cancel(seconds: float) -> None:
        pool.cancel("k")

    with machine_lock(lock, cancel):
        assert job.state == "cancelled"


@pytest.mark.slow
def test_results_stored_before_a_kill_are_there(pool: Pool, tmp_path: Path) -> None:
    path, file = str(tmp_path / "results.sqlite"), str(tmp_path / "in")
    Store(path).put(make_result("before"))
    for kills in range(3):
        seen = len(lines(file))
        pool.submit("measure", "fill", (path, file, "k", 10_000), f"k{kills}")
        until_lines(file, seen + 4)
        assert pool.cancel(f"k{kills}")
    assert serves(pool)  # the last writer is gone
    store = Store(path)
    keys = {result.key for result in store.results()}
    assert keys >= {"before", *lines(file)}
    assert len(keys) <= 1 + len(lines(file)) + 3  # one may be in, and its writer killed before it said so
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store.put(make_result("after"))
    assert store.get("after") is not None


@pytest.mark.slow
def test_processes_may_open_a_new_file_and_write_at_once(tmp_path: Path) -> None:
    path, file = str(tmp_path / "new" / "results.sqlite"), str(tmp_path / "in")
    with Pool("tasks:run", lanes=("a", "b", "c", "d")) as pool:
        for job in pool.warm():
            pool.wait(job, 60)
        jobs = [pool.submit(lane, "fill", (path, file, lane, 10), lane) for lane in "abcd"]
        for job in jobs:
            assert pool.wait(job, 120).state == "done", job
    assert {result.key for result in Store(path).results()} == set(lines(file))
    assert len(lines(file)) == 40
