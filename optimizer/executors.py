"""Where work runs: one process a lane, fed by priority, shared by every thread of the server.

The processes are started afresh (never forked: the server has threads) and without ``multiprocessing``,
whose spawned children first run the parent's ``__main__`` again: under ``streamlit run`` that is the
dashboard itself. A worker is told its work through standard input and answers through standard output. Its
input ends when the server dies, however it dies, and it then ends itself and whatever it started.
"""

import contextlib
import functools
import heapq
import importlib
import itertools
import json
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from optimizer.errors import ParetoscopeError, WorkError, unknown

State = Literal["queued", "running", "done", "failed", "cancelled"]
Report = Callable[[float | None, str], None]
Target = Callable[[str, Any, Report], object]

ATTEMPTS = 2
"""How often a job is tried while its worker dies under it."""


@dataclass(eq=False, slots=True)
class Job:
    """One piece of work, as it stands now. Only its pool changes it; any thread may read it.

    ``progress`` is a share from 0 to 1, or None where the work can't tell. ``result`` is set when ``state``
    is done, ``error`` (in words) when it is failed.
    """

    key: str
    task: str
    request: object = field(repr=False)
    lane: str
    priority: float
    state: State = "queued"
    attempts: int = 0
    progress: float | None = None
    message: str = ""
    result: object = field(default=None, repr=False)
    error: str = ""
    begun: float | None = field(default=None, repr=False)
    ended: float | None = field(default=None, repr=False)

    @property
    def over(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def seconds(self) -> float:
        """How long it has run, retries included; 0 before it starts."""
        if self.begun is None:
            return 0.0
        return (time.monotonic() if self.ended is None else self.ended) - self.begun


class Pool:
    """Runs ``target(task, request, report)`` in one worker process a lane, one job at a time in each.

    ``target`` is named ``"module:function"`` and imported by the workers only, so what it needs (torch) never
    loads here. What it tells ``report(progress, message)`` shows in the job. Requests and results are pickled
    on the way.

    Workers start at once. One that dies is replaced and its job tried once more; an exception in the target
    fails the job at once. The last ``keep`` finished jobs are remembered. All methods are thread-safe.
    """

    def __init__(self, target: str, lanes: Sequence[str] = ("inspect", "measure"), keep: int = 500) -> None:
        self._target = target
        self._keep = keep
        self._changed = threading.Condition()  # guards everything below, and every change of a job's state
        self._live: dict[str, Job] = {}
        self._over: dict[str, Job] = {}  # oldest first
        self._arrivals = itertools.count()
        self._closed = False
        self._lanes = {name: _Lane() for name in lanes}
        self._threads = [
            threading.Thread(target=self._dispatch, args=(lane,), name=f"lane {name}", daemon=True)
            for name, lane in self._lanes.items()
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, lane: str, task: str, request: object, key: str, priority: float = 0) -> Job:
        """Queue work under a key that names it wholly, or join it.

        While a job of that key is queued, running or done, that job is given back (moved forward if
        ``priority`` is more urgent); one that failed or was cancelled is tried anew. A lower priority runs
        first, equals run in order of arrival.

        Raises InputError for an unknown lane, WorkError when the pool is closed.
        """
        if lane not in self._lanes:
            raise unknown("lane", lane, list(self._lanes))
        with self._changed:
            if self._closed:
                raise WorkError(f"can't start {task}: the pool is closed. Make a new one")
            past = self._over.get(key)
            if past is not None and past.state == "done":
                return past
            job = self._live.get(key)
            if job is None:
                self._over.pop(key, None)
                job = self._live[key] = Job(key, task, request, lane, priority)
            elif job.state == "queued" and priority < job.priority:
                job.priority = priority  # its first place in the heap is passed by once it has run
            else:
                return job
            heapq.heappush(self._lanes[job.lane].heap, (priority, next(self._arrivals), job))
            self._changed.notify_all()
            return job

    def warm(self, request: object = None) -> list[Job]:
        """Run the target's task ``"warm"`` in every lane, ahead of what is queued."""
        return [self.submit(lane, "warm", request, f"warm {lane}", -math.inf) for lane in self._lanes]

    def get(self, key: str) -> Job | None:
        """The job of a key in whatever state, or None; unlike :meth:`submit` it never starts one."""
        with self._changed:
            return self._live.get(key) or self._over.get(key)

    def jobs(self) -> list[Job]:
        """Finished jobs, oldest first, then running and queued ones in order of arrival."""
        with self._changed:
            return [*self._over.values(), *self._live.values()]

    def wait(self, job: Job, timeout: float | None = None) -> Job:
        """Give the job back when it is over, or as it is after ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: job.over, timeout)
        return job

    def cancel(self, key: str) -> bool:
        """Stop a queued or running job for good; a running one's worker is killed. False if there is none."""
        with self._changed:
            job = self._live.get(key)
            if job is None:
                return False
            worker = self._lanes[job.lane].worker
            if job.state == "running" and worker is not None:
                worker.kill()
            self._end(job, "cancelled")
            return True

    def forget(self, key: str) -> None:
        """Drop a finished job, so that its key can be run again. A queued or running one stays."""
        with self._changed:
            self._over.pop(key, None)

    def close(self) -> None:
        """Cancel everything and end the workers."""
        with self._changed:
            self._closed = True
            for key in list(self._live):
                self.cancel(key)
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _dispatch(self, lane: "_Lane") -> None:
        """A lane's thread: keep a worker ready, and feed it."""
        try:
            while True:
                with contextlib.suppress(OSError):  # told by the next job, which needs a worker
                    self._ready(lane)
                job = self._next(lane)
                if job is None:
                    return
                try:
                    self._run(lane, job)
                except Exception as error:  # no process to be had, a request that won't pickle
                    self._end(job, "failed", error=f"{job.task} could not be run: {_words(error)}")
        finally:
            if lane.worker is not None:
                lane.worker.close()

    def _next(self, lane: "_Lane") -> Job | None:
        """The most urgent queued job, now running; None once the pool is closed."""
        with self._changed:
            while not self._closed:
                while lane.heap:
                    job = heapq.heappop(lane.heap)[-1]
                    if job.state == "queued":
                        job.state, job.begun = "running", time.monotonic()
                        return job
                self._changed.wait()
            return None

    def _ready(self, lane: "_Lane") -> "_Worker":
        """The lane's worker, a new one if it died."""
        if lane.worker is None or not lane.worker.alive:
            if lane.worker is not None:
                lane.worker.close()
            worker = _Worker(self._target)
            with self._changed:
                lane.worker = worker
            return worker
        return lane.worker

    def _run(self, lane: "_Lane", job: Job) -> None:
        def report(progress: float | None, message: str) -> None:
            if not job.over:
                job.progress, job.message = progress, message

        payload = pickle.dumps(job.request)
        while True:
            worker = self._ready(lane)
            with self._changed:
                if job.over:  # cancelled while there was no worker to kill
                    return
            job.attempts += 1
            try:
                kind, answer = worker.run(job.task, payload, report)
                break
            except _WorkerDied as death:
                if job.attempts == ATTEMPTS:
                    error = f"{job.task} was given up: its worker process {death}, {ATTEMPTS} times in a row"
                    return self._end(job, "failed", error=error)
                report(None, f"its worker process {death}: trying once more")
        if kind == "done":
            self._end(job, "done", result=pickle.loads(answer))
        else:
            self._end(job, "failed", error=answer)

    def _end(self, job: Job, state: State, result: object = None, error: str = "") -> None:
        with self._changed:
            if job.over:  # whoever came first decides: a result and a cancel may cross
                return
            job.result, job.error, job.ended, job.state = result, error, time.monotonic(), state
            del self._live[job.key]
            self._over[job.key] = job
            while len(self._over) > self._keep:
                del self._over[next(iter(self._over))]
            self._changed.notify_all()


@dataclass(slots=True)
class _Lane:
    heap: list[tuple[float, int, Job]] = field(default_factory=list)
    worker: "_Worker | None" = None


class _WorkerDied(Exception):
    """Says how, to follow "its worker process"."""


class _Worker:
    """The server's end of one worker process. ``run`` belongs to one thread; ``kill`` may come from any."""

    def __init__(self, target: str) -> None:
        paths = json.dumps([path for path in sys.path if isinstance(path, str)])
        code = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        code += "from optimizer.executors import _work; _work(sys.argv[2])"
        # In a session of its own, so that killing the group takes along what the target started, and so that
        # Ctrl-C in the terminal reaches the server alone.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, paths, target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._killed = False  # a killed process takes a moment to go
        self._runs = 0
        threading.Thread(target=self._bury, name="worker's end", daemon=True).start()

    @property
    def alive(self) -> bool:
        try:
            _send(self._requests, None)  # reaches nobody as soon as the process is gone, buried or not
        except OSError:
            return False
        return not self._killed

    def run(self, task: str, payload: bytes, report: Report) -> tuple[str, Any]:
        """``("done", pickled result)`` or ``("failed", words)``. Raises _WorkerDied."""
        self._runs += 1
        try:
            _send(self._requests, (self._runs, task, payload))
            while True:
                run, kind, answer = pickle.load(self._answers)
                if run != self._runs:  # a thread that an earlier job left behind still reports
                    continue
                if kind != "progress":
                    return kind, answer
                report(*answer)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
            words = _describe_exit(self._process.poll())
            self.kill()
            raise _WorkerDied(words) from error

    def kill(self) -> None:
        self._killed = True
        if self._process.poll() is None:
            _kill_group(self._process.pid)
            self._process.kill()  # where there are no groups

    def close(self) -> None:
        self.kill()
        self._process.wait()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):  # unsent bytes, nobody left to read them
                pipe.close()

    def _bury(self) -> None:
        """End what a dead worker started: it may hold open the output that ``run`` reads to its end."""
        self._process.wait()
        _kill_group(self._process.pid)


def _kill_group(leader: int) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "closed its output"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}{' (often: out of memory)' if name == 'SIGKILL' else ''}"


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _send(pipe: BinaryIO | Any, message: object) -> None:
    pickle.dump(message, pipe)
    pipe.flush()


def _work(target: str) -> None:
    """The worker process: answer requests until the server is gone."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a library prints goes to the log, not between the answers
    inbox: queue.SimpleQueue[tuple[int, str, bytes]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, inbox), daemon=True).start()
    lock = threading.Lock()  # the target may report from several threads

    def answer(run: int, kind: str, content: object) -> None:
        with lock:
            _send(answers, (run, kind, content))

    with contextlib.suppress(Exception):  # loads what the target needs; the first job tells of an error
        _resolve(target)
    while True:
        run, task, payload = inbox.get()
        answer(run, *_perform(target, task, payload, functools.partial(answer, run, "progress")))


def _receive(requests: BinaryIO, inbox: "queue.SimpleQueue[tuple[int, str, bytes]]") -> None:
    try:
        while True:
            message = pickle.load(requests)
            if message is not None:  # only asking whether this process is alive
                inbox.put(message)
    finally:  # end of file, or half a message: the server is gone
        _kill_group(os.getpid())
        os._exit(1)


def _perform(
    target: str, task: str, payload: bytes, progress: Callable[[tuple[float | None, str]], None]
) -> tuple[str, object]:
    def report(share: float | None, message: str = "") -> None:
        progress((None if share is None else float(share), str(message)))  # plain, whatever was given

    try:
        return "done", pickle.dumps(_resolve(target)(task, pickle.loads(payload), report))
    except ParetoscopeError as error:
        return "failed", str(error)
    except Exception as error:
        traceback.print_exc()
        return "failed", f"{task} failed: {_words(error)}"


def _resolve(target: str) -> Target:
    module, _, name = target.partition(":")
    function: Target = getattr(importlib.import_module(module), name)
    return function
