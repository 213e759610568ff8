"""How long a job may run, how many may wait, and who waits for one."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tasks import lines, until

from optimizer.errors import UnavailableError
from optimizer.system import process_pool
from optimizer.system.process_pool import PATIENT, Job, Limits, Pool

HERE = {"ann", "bob"}


def limits(task: str, request: object) -> Limits:
    return {"hang": Limits(60, 0.5), "go on": Limits(0.5, 60)}.get(task, Limits())


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Ann and Bob are there; whoever else asked for something has left."""
    with Pool("tasks:run", limits=limits, present=HERE.__contains__) as pool:
        for job in pool.warm():  # the start of a worker counts too
            pool.wait(job, 60)
            pool.forget(job.key)
        yield pool


class Gate:
    """A job that occupies a lane until it is let through."""

    def __init__(self, pool: Pool, folder: Path, visitor: str = "ann") -> None:
        self.go, begun = folder / "go", folder / "begun"
        request = {"begun": str(begun), "go": str(self.go)}
        self.job = pool.submit("measure", "wait", request, "gate", visitor=visitor)
        self.worker = int(until(lambda: lines(begun))[0])


def state(pool: Pool, job: Job) -> str:
    return pool.wait(job, 60).state


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


# How long


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("hang", "nothing was heard of it for 0.5 s. The last that was heard of it: reading images"),
        ("go on", "stopped after 0.5 s, the longest that it may take here"),
    ],
)
def test_what_runs_for_too_long_is_stopped_in_words(
    pool: Pool, tmp_path: Path, task: str, words: str
) -> None:
    job = pool.submit("measure", task, {"begun": str(tmp_path / "begun")}, "k")
    assert state(pool, job) == "failed"
    assert words in job.error
    assert "paretoscope command" in job.error
    assert job.attempts == 1
    worker = int(lines(tmp_path / "begun")[0])
    assert state(pool, pool.submit("measure", "echo", 1, "next")) == "done"
    until(lambda: not alive(worker))


def test_what_hangs_after_its_visitor_has_moved_on_is_stopped_too(pool: Pool, tmp_path: Path) -> None:
    """It was given as long as it takes to end by itself, and would keep its lane for ever."""
    hangs = pool.submit("measure", "hang", {"begun": str(tmp_path / "begun")}, "k", visitor="ann")
    worker = int(until(lambda: lines(tmp_path / "begun"))[0])
    pool.withdraw("k", "ann", grace=PATIENT)
    assert state(pool, hangs) == "cancelled"
    assert state(pool, pool.submit("measure", "echo", 1, "next")) == "done"
    until(lambda: not alive(worker))


@pytest.mark.slow
def test_time_in_the_queue_does_not_count(pool: Pool, tmp_path: Path) -> None:
    gate = Gate(pool, tmp_path)
    job = pool.submit("measure", "hang", {"begun": str(tmp_path / "hangs")}, "k")
    assert pool.wait(job, 1.0).state == "queued"
    gate.go.touch()
    assert state(pool, job) == "failed"
    assert 0.4 < job.seconds < 30


# How many


def test_a_thousand_requests_of_one_visitor_are_bounded_and_others_served(pool: Pool, tmp_path: Path) -> None:
    gate, order = Gate(pool, tmp_path), str(tmp_path / "order")
    refused = []
    for number in range(1_000):
        try:
            last = pool.submit("measure", "note", (order, "ann"), f"ann {number}", visitor="ann")
        except UnavailableError as error:
            refused.append(str(error))
    assert len(refused) == 1_000 - process_pool.MAX_QUEUED_EACH
    assert "200 jobs of yours wait already" in refused[0]
    assert "Try again when some of them are done" in refused[0]
    job = pool.submit("measure", "note", (order, "bob"), "bob", visitor="bob")
    gate.go.touch()
    assert state(pool, job) == "done"
    assert "bob" in lines(order)[:3], "one visitor's queue went first"
    assert state(pool, last) == "done"
    assert pool.submit("measure", "echo", 1, "again", visitor="ann").state != "failed"


def test_what_waits_already_is_joined_and_not_refused(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_pool, "MAX_QUEUED_EACH", 1)
    gate = Gate(pool, tmp_path)
    job = pool.submit("measure", "echo", 1, "k", visitor="ann")
    assert pool.submit("measure", "echo", 1, "k", visitor="ann") is job
    assert pool.submit("measure", "echo", 1, "k", visitor="bob") is job
    gate.go.touch()


def test_a_full_queue_makes_room_by_what_nobody_waits_for(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_pool, "MAX_QUEUED", 3)
    gate = Gate(pool, tmp_path)
    asked = [pool.submit("measure", "echo", who, who, visitor=who) for who in ("ann", "gone", "bob")]
    fourth = pool.submit("measure", "echo", 4, "fourth", visitor="bob")
    assert [job.state for job in (*asked, fourth)] == ["queued", "cancelled", "queued", "queued"]
    with pytest.raises(UnavailableError, match="3 jobs wait on this dashboard already.*Try again when"):
        pool.submit("measure", "echo", 5, "fifth", visitor="ann")
    gate.go.touch()
    assert state(pool, fourth) == "done"
    assert state(pool, pool.submit("measure", "echo", 5, "fifth", visitor="ann")) == "done"


def test_what_is_kept_of_finished_jobs_is_bounded_in_bytes(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_pool, "MAX_KEPT_BYTES", 2_500_000)
    jobs = [pool.submit("measure", "bytes", 1_000_000, str(number)) for number in range(5)]
    assert [state(pool, job) for job in jobs] == ["done"] * 5
    assert [job.key for job in pool.jobs()] == ["3", "4"]
    large = pool.submit("measure", "bytes", 3_000_000, "large")
    assert state(pool, large) == "done"
    assert pool.jobs() == [large]
    assert jobs[0].result == bytes(1_000_000)  # whoever held the job reads it still


# Who waits


@pytest.mark.slow
@pytest.mark.parametrize("running", [False, True])
def test_a_job_ends_when_the_last_who_waits_withdraws(pool: Pool, tmp_path: Path, running: bool) -> None:
    gate = Gate(pool, tmp_path)
    job = gate.job if running else pool.submit("measure", "echo", 1, "k", visitor="ann")
    assert pool.submit("measure", job.task, job.request, job.key, visitor="bob") is job
    assert pool.may_stop(job, "ann")
    assert not pool.may_stop(job, "eve")
    before = job.state
    assert not pool.withdraw(job.key, "eve")
    assert not pool.withdraw(job.key, "ann")
    assert not pool.withdraw(job.key, "ann")
    assert (job.state, pool.may_stop(job, "ann")) == (before, False)
    assert alive(gate.worker)
    assert pool.withdraw(job.key, "bob")
    assert job.state == "cancelled"
    assert not pool.withdraw(job.key, "bob")
    assert not pool.may_stop(job, "bob")
    if running:
        until(lambda: not alive(gate.worker))
    gate.go.touch()
    assert state(pool, pool.submit("measure", "echo", 2, "next")) == "done"


def test_what_is_left_by_those_who_are_gone_goes_on_and_may_be_stopped(pool: Pool, tmp_path: Path) -> None:
    gate = Gate(pool, tmp_path, visitor="gone")
    assert gate.job.state == "running"
    assert pool.may_stop(gate.job, "ann")
    assert pool.withdraw(gate.job.key, "ann")
    assert gate.job.state == "cancelled"


def test_who_is_there_is_served_before_those_who_are_gone(pool: Pool, tmp_path: Path) -> None:
    gate, order = Gate(pool, tmp_path), str(tmp_path / "order")
    jobs = [
        pool.submit("measure", "note", (order, key), key, priority, who)
        for key, priority, who in (("left", 0, "gone"), ("sweep", 10, "ann"), ("position", 0, "ann"))
    ]
    gate.go.touch()
    assert [state(pool, job) for job in jobs] == ["done"] * 3
    assert lines(order) == ["position", "sweep", "left"]


@pytest.mark.parametrize("task", ["search", "wait"])
def test_what_runs_for_nobody_makes_way_and_begins_anew(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """A search ends when it is asked to, what waits for a file does not, and its worker is killed."""
    monkeypatch.setattr(process_pool, "STOP_SECONDS", 0.2)
    monkeypatch.setattr(process_pool, "AWAY_SECONDS", 60.0)
    begun, go = tmp_path / "begun", tmp_path / "go"
    left = pool.submit("measure", task, {"begun": str(begun), "go": str(go)}, "left", visitor="gone")
    until(lambda: lines(begun))
    asked = pool.submit("measure", "echo", 1, "asked", visitor="ann")
    assert pool.wait(asked, 1.0).state == "queued", "they may be back within a moment"
    monkeypatch.setattr(process_pool, "AWAY_SECONDS", 0.0)
    assert state(pool, asked) == "done"
    until(lambda: len(lines(begun)) == 2)
    go.touch()
    pool.conclude("left", "gone")
    assert state(pool, left) == "done"
    assert left.attempts == 1


def test_between_two_configurations_of_a_sweep_nothing_begins_that_nobody_waits_for(
    pool: Pool, tmp_path: Path
) -> None:
    """It would have to make way for the next one. Once a sweep is over, it begins."""
    gate, begun, go = Gate(pool, tmp_path), tmp_path / "left begun", tmp_path / "left go"
    left = pool.submit("measure", "wait", {"begun": str(begun), "go": str(go)}, "left", visitor="gone")
    gate.go.touch()
    assert state(pool, gate.job) == "done"
    for number in range(3):
        assert state(pool, pool.submit("measure", "echo", number, f"{number}", 10)) == "done"
        assert left.state == "queued"
    go.touch()
    assert state(pool, left) == "done"


def test_what_the_server_asks_for_is_not_a_visitors_to_stop(pool: Pool, tmp_path: Path) -> None:
    gate = Gate(pool, tmp_path, visitor=process_pool.SERVER)
    assert not pool.may_stop(gate.job, "ann")
    assert not pool.withdraw(gate.job.key, "ann")
    gate.go.touch()
    assert state(pool, gate.job) == "done"


def test_two_who_wait_for_one_job_both_get_it(pool: Pool, tmp_path: Path) -> None:
    answers: list[object] = []

    def wait(visitor: str) -> None:
        answers.append(pool.wait(pool.submit("measure", "echo", 7, "k", visitor=visitor), 60).result)

    threads = [threading.Thread(target=wait, args=(visitor,)) for visitor in HERE]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [7, 7]
    job = pool.get("k")
    assert job is not None
    assert not pool.withdraw("k", "ann")
    assert pool.submit("measure", "echo", 7, "k", visitor="bob") is job
