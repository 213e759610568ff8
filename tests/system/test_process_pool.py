import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.tasks import lines, until

from optimizer.errors import InputError, WorkError
from optimizer.system import process_pool
from optimizer.system.process_pool import Job, Limits, Pool

TARGET = "faults.tasks:run"


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(TARGET) as pool:
        yield pool


class Gate:
    """A job that occupies its lane until it is let through."""

    def __init__(self, pool: Pool, folder: Path, lane: str = "measure", name: str = "gate") -> None:
        self.begun, self.go = folder / f"{name} begun", folder / f"{name} go"
        self.job = pool.submit(lane, "wait", {"begun": str(self.begun), "go": str(self.go)}, name)

    def wait(self) -> int:
        """Until it runs: the worker's process id."""
        return int(until(lambda: lines(self.begun))[0])

    def open(self) -> None:
        self.go.touch()


def done(pool: Pool, job: Job) -> Job:
    assert pool.wait(job, 60).state == "done", job
    return job


def test_a_job_runs_and_gives_its_result(pool: Pool) -> None:
    job = pool.submit("interactive", "echo", {"answer": (1, 2.5, None)}, "k")
    assert pool.wait(job, 60) is job
    assert (job.key, job.task, job.state, job.error, job.attempts) == ("k", "echo", "done", "", 1)
    assert job.result == {"answer": (1, 2.5, None)}
    assert job.seconds > 0
    assert pool.get("k") is job
    assert pool.get("other") is None


def test_what_the_target_imports_never_loads_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy_module.py").write_text("def run(task, request, report):\n    return task + request\n")
    monkeypatch.syspath_prepend(tmp_path)
    with Pool("heavy_module:run") as pool:
        assert done(pool, pool.submit("interactive", "a", "b", "k")).result == "ab"
    assert "heavy_module" not in sys.modules


def test_a_worker_does_not_run_the_main_script_again(tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(
        "import sys\n"
        "from optimizer.system.process_pool import Pool\n"
        "print('page')\n"
        f"with Pool({TARGET!r}) as pool:\n"
        "    print(pool.wait(pool.submit('interactive', 'echo', 'answer', 'k'), 60).result)\n"
    )
    run = subprocess.run([sys.executable, script], env=environment(), capture_output=True, text=True)
    assert (run.stdout.split(), run.stderr) == (["page", "answer"], "")


def test_a_script_that_leaves_its_pool_open_ends(tmp_path: Path) -> None:
    code = (
        "from optimizer.system.process_pool import Pool\n"
        f"pool = Pool({TARGET!r})\n"
        f"pool.submit('interactive', 'wait', {{'begun': {str(tmp_path / 'a')!r}, 'go': 'never'}}, 'k')\n"
        "raise SystemExit(7)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, timeout=60)
    assert (run.returncode, run.stderr) == (7, b"")


def test_urgent_jobs_run_first_and_equals_in_order(pool: Pool, tmp_path: Path) -> None:
    gate, file = Gate(pool, tmp_path), str(tmp_path / "order")
    gate.wait()
    submit = {
        name: pool.submit("measure", "note", (file, name), name, priority)
        for name, priority in (("late", 5), ("b", 1), ("a", 1), ("first", -1), ("moved up", 5))
    }
    assert pool.submit("measure", "note", (file, "again"), "moved up", 0) is submit["moved up"]
    assert pool.submit("measure", "note", (file, "again"), "first", 9) is submit["first"]
    gate.open()
    for job in submit.values():
        done(pool, job)
    assert lines(file) == ["first", "moved up", "b", "a", "late"]


def test_a_queued_job_knows_how_many_go_first(pool: Pool, tmp_path: Path) -> None:
    gate = Gate(pool, tmp_path)
    gate.wait()
    late, soon = (
        pool.submit("measure", "echo", key, key, priority) for key, priority in (("l", 10), ("s", 0))
    )
    other = pool.submit("interactive", "echo", "o", "o")
    assert [pool.before(job) for job in (gate.job, soon, late)] == [0, 1, 2]
    gate.open()
    for job in (soon, late, other):
        assert pool.before(done(pool, job)) == 0


def test_lanes_run_side_by_side_in_processes_of_their_own(pool: Pool, tmp_path: Path) -> None:
    gates = [Gate(pool, tmp_path, lane, lane) for lane in ("interactive", "measure")]
    assert len({os.getpid(), *(gate.wait() for gate in gates)}) == 3
    for gate in gates:
        gate.open()
        done(pool, gate.job)


def test_one_key_is_one_job(pool: Pool, tmp_path: Path) -> None:
    gate, file = Gate(pool, tmp_path), str(tmp_path / "runs")
    gate.wait()
    queued = pool.submit("measure", "note", (file, "x"), "k")
    assert pool.submit("measure", "note", (file, "x"), "k") is queued
    assert pool.submit("interactive", "echo", None, "gate") is gate.job
    pool.forget("k")
    assert pool.get("k") is queued
    assert pool.jobs() == [gate.job, queued]
    gate.open()
    done(pool, queued)
    assert pool.submit("measure", "note", (file, "x"), "k") is queued
    pool.forget("k")
    pool.forget("never there")
    again = pool.submit("measure", "note", (file, "y"), "k")
    assert again is not queued
    done(pool, again)
    assert lines(file) == ["x", "y"]
    assert pool.jobs() == [gate.job, again]


def test_eight_threads_asking_for_one_key_run_it_once(pool: Pool, tmp_path: Path) -> None:
    file, jobs = str(tmp_path / "runs"), []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        jobs.append(pool.wait(pool.submit("measure", "note", (file, "x"), "k"), 60))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(jobs) == 8
    assert {job.state for job in jobs} == {"done"}
    assert len({id(job) for job in jobs}) == 1
    assert lines(file) == ["x"]


def test_progress_shows_while_it_runs(pool: Pool, tmp_path: Path) -> None:
    gate = Gate(pool, tmp_path)
    queued = pool.submit("measure", "echo", None, "k")
    gate.wait()
    until(lambda: gate.job.message == "half way")
    assert (gate.job.state, gate.job.progress) == ("running", 0.5)
    assert (queued.state, queued.progress, queued.seconds) == ("queued", None, 0)
    assert pool.wait(gate.job, timeout=0.01).state == "running"
    before = gate.job.seconds
    assert gate.job.seconds > before
    gate.open()
    done(pool, gate.job)
    assert gate.job.seconds == gate.job.seconds


def test_what_is_known_shows_before_the_job_is_done_and_goes_with_it(pool: Pool, tmp_path: Path) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    job = pool.submit("measure", "tell", {"begun": str(begun), "go": str(go)}, "k")
    until(lambda: job.known)
    assert (job.state, job.known, job.result) == ("running", ("known", str(begun)), None)
    assert pool.wait_news([job], [None], 60), "at once"
    assert not pool.wait_news([job], [job.known], 0.01)
    threading.Timer(0.1, go.touch).start()
    assert pool.wait_news([job], [job.known], 60)
    done(pool, job)
    assert pool.wait_news([job], [None], 0), "it is over"
    assert job.known is None
    assert isinstance(job.result, int)
    assert done(pool, pool.submit("measure", "echo", 1, "next")).known is None


def test_reports_from_threads_and_after_the_end_disturb_nothing(pool: Pool) -> None:
    chat = done(pool, pool.submit("measure", "chat", 50, "chat"))
    message = chat.message
    for number in range(5):
        job = done(pool, pool.submit("measure", "echo", number, f"k{number}"))
        assert (job.result, job.message) == (number, "")
    assert (chat.result, chat.message) == (50, message)


def test_what_a_library_prints_disturbs_nothing(pool: Pool) -> None:
    assert done(pool, pool.submit("measure", "noisy", None, "k")).result == ""
    assert done(pool, pool.submit("measure", "echo", 1, "l")).result == 1


def test_an_exception_fails_the_job_at_once_with_its_words(pool: Pool, tmp_path: Path) -> None:
    file = str(tmp_path / "tries")
    refused = pool.wait(pool.submit("measure", "refuse", file, "refuse"), 60)
    assert (refused.state, refused.error) == ("failed", "sparsity 1.5 is out of range")
    broken = pool.wait(pool.submit("measure", "break", file, "break"), 60)
    assert (broken.state, broken.error) == ("failed", "break failed: ValueError: no such thing")
    assert lines(file) == ["tried", "tried"]
    again = pool.submit("measure", "refuse", file, "refuse")
    assert again is not refused
    assert pool.wait(again, 60).state == "failed"
    assert len(lines(file)) == 3
    assert pool.jobs() == [broken, again]


def test_errors_say_what_was_done_in_the_words_of_who_asked(tmp_path: Path) -> None:
    """Names of tasks are nobody's but the code's."""

    def limits(task: str, request: object) -> Limits:
        return Limits(total=0.2 if task == "wait" else math.inf)

    with Pool(TARGET, ("measure",), limits=limits, labels=lambda task: f"<{task}ing>") as pool:
        asked = {"begun": str(tmp_path / "begun"), "go": str(tmp_path / "go")}
        for task, request, words in (
            ("break", str(tmp_path / "tries"), "<breaking> failed: ValueError: no such thing"),
            ("die", (str(tmp_path / "deaths"), 2), "<dieing> was given up: its worker process"),
            ("echo", lambda: None, "<echoing> could not be run: "),
            ("wait", asked, "<waiting> was stopped after 0.2 s, the longest"),
        ):
            assert pool.wait(pool.submit("measure", task, request, task), 60).error.startswith(words)
    with pytest.raises(WorkError, match="can't start <echoing>: the pool is closed"):
        pool.submit("measure", "echo", None, "late")


def test_what_cannot_travel_fails_its_job_only(pool: Pool) -> None:
    request = pool.wait(pool.submit("measure", "echo", lambda: None, "request"), 60)
    assert request.state == "failed"
    assert "echo could not be run" in request.error
    result = pool.wait(pool.submit("measure", "lambda", None, "result"), 60)
    assert result.state == "failed"
    assert "lambda failed" in result.error
    done(pool, pool.submit("measure", "echo", None, "k"))


@pytest.mark.parametrize("target", ["no_such_module:run", "faults.tasks:no_such_function"])
def test_a_target_that_is_not_there_is_told_by_the_job(target: str) -> None:
    with Pool(target) as pool:
        job = pool.wait(pool.submit("interactive", "echo", None, "k"), 60)
    assert (job.state, job.attempts) == ("failed", 1)
    assert "no_such" in job.error


def test_an_unknown_lane_lists_those_there_are(pool: Pool) -> None:
    with pytest.raises(InputError, match="unknown lane 'fast': use one of interactive, measure"):
        pool.submit("fast", "echo", None, "k")


def test_a_queued_job_can_be_cancelled_and_asked_for_again(pool: Pool, tmp_path: Path) -> None:
    gate, file = Gate(pool, tmp_path), str(tmp_path / "runs")
    gate.wait()
    job = pool.submit("measure", "note", (file, "first"), "k")
    assert pool.cancel("k")
    assert (job.state, pool.wait(job)) == ("cancelled", job)
    assert not pool.cancel("k")
    again = pool.submit("measure", "note", (file, "second"), "k")
    assert again is not job
    gate.open()
    done(pool, again)
    assert lines(file) == ["second"]
    assert not pool.cancel("k")
    assert (job.state, again.state) == ("cancelled", "done")


def test_a_running_job_ends_by_itself_when_it_is_cancelled_and_its_worker_goes_on(
    pool: Pool, tmp_path: Path
) -> None:
    worker = int(done(pool, pool.submit("measure", "pid", None, "before")).result)
    for number in range(5):
        begun = tmp_path / f"begun {number}"
        job = pool.submit("measure", "go on", {"begun": str(begun)}, f"k{number}")
        until(lambda begun=begun: lines(begun))
        assert pool.cancel(job.key)
        assert job.state == "cancelled"
    assert done(pool, pool.submit("measure", "pid", None, "after")).result == worker


def test_a_job_cancelled_before_it_has_begun_ends_too(pool: Pool, tmp_path: Path) -> None:
    worker = int(done(pool, pool.submit("measure", "pid", None, "before")).result)
    for number in range(50):
        pool.submit("measure", "go on", {"begun": str(tmp_path / "begun")}, f"k{number}")
        assert pool.cancel(f"k{number}")
    assert done(pool, pool.submit("measure", "pid", None, "after")).result == worker


def test_what_later_jobs_need_is_finished_first(pool: Pool, tmp_path: Path) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    request = {"begun": str(begun), "go": str(go), "made": str(tmp_path / "made")}
    job = pool.submit("measure", "prepare", request, "k")
    until(lambda: lines(begun))
    assert pool.withdraw(job.key, grace=math.inf)
    go.touch()
    done(pool, pool.submit("measure", "echo", None, "next"))
    assert lines(tmp_path / "made") == ["made"], "and what comes after it was not begun"


def test_a_search_ends_with_the_best_so_far_and_the_next_one_is_not_told(pool: Pool, tmp_path: Path) -> None:
    assert not pool.conclude("nothing")
    for number in range(2):
        begun = tmp_path / f"begun {number}"
        job = pool.submit("measure", "search", {"begun": str(begun)}, f"k{number}")
        until(lambda begun=begun: lines(begun))
        assert not job.over
        assert pool.conclude(job.key)
        assert done(pool, job).result == "the best so far"
        assert not pool.conclude(job.key)


def test_what_another_visitor_waits_for_goes_on(tmp_path: Path) -> None:
    there = {"ann", "bob"}
    with Pool(TARGET, present=there.__contains__) as pool:
        begun = tmp_path / "begun"
        for visitor in ("ann", "bob"):
            job = pool.submit("measure", "search", {"begun": str(begun)}, "k", visitor=visitor)
        until(lambda: lines(begun))
        assert not pool.may_conclude(job, "ann")
        assert not pool.conclude("k", "ann")
        there.remove("bob")
        assert pool.conclude("k", "ann")
        done(pool, job)


def test_what_does_not_end_by_itself_is_killed(pool: Pool, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    job = pool.submit("measure", "hang", {"begun": str(begun)}, "k")
    worker = int(until(lambda: lines(begun))[0])
    assert pool.cancel(job.key, grace=0.2)
    assert done(pool, pool.submit("measure", "pid", None, "after")).result != worker


def test_only_the_last_finished_jobs_are_remembered(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_pool, "MAX_KEPT", 20)
    gate = Gate(pool, tmp_path, "interactive")
    for number in range(25):
        last = pool.submit("measure", "echo", number, str(number))
    done(pool, last)
    assert pool.jobs()[-1] is gate.job
    assert [job.key for job in pool.jobs()[:-1]] == [str(number) for number in range(5, 25)]
    gate.open()


def test_warm_runs_in_every_lane_before_what_is_queued(pool: Pool, tmp_path: Path) -> None:
    gate, file = Gate(pool, tmp_path), str(tmp_path / "order")
    gate.wait()
    queued = pool.submit("measure", "note", (file, "queued"), "k", priority=-100)
    inspect, measure = pool.warm(file)
    done(pool, inspect)
    gate.open()
    done(pool, measure)
    done(pool, queued)
    assert lines(file) == ["warm", "warm", "queued"]


def test_closing_cancels_what_is_left_and_refuses_more(tmp_path: Path) -> None:
    pool = Pool(TARGET)
    gate = Gate(pool, tmp_path)
    gate.wait()
    queued = pool.submit("measure", "echo", None, "k")
    pool.close()
    pool.close()
    assert (gate.job.state, queued.state) == ("cancelled", "cancelled")
    with pytest.raises(WorkError, match="can't start echo: the pool is closed"):
        pool.submit("measure", "echo", None, "l")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
