"""Where work runs: one process a lane, fed by priority, shared by every thread of the server.

Everything here is guarded by one lock, so it stays one file.
"""

import contextlib
import itertools
import math
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from optimizer.errors import UnavailableError, WorkError, unknown, words_of
from optimizer.system.worker import Worker, WorkerDied

State = Literal["queued", "running", "done", "failed", "cancelled"]

ATTEMPTS = 2
"""How often a job is tried while its worker dies under it."""
MAX_QUEUED = 1_000
"""Jobs that wait in a pool; more are refused."""
MAX_QUEUED_EACH = 200
"""Those that one visitor waits for."""
STOP_SECONDS = 2.0
"""A running job that is cancelled has so long to end by itself; then its worker is killed."""
PATIENT = math.inf
"""In place of it: as long as it takes to end by itself."""
AWAY_SECONDS = 10.0
"""A running job that nobody has waited for so long makes way for one that somebody waits for: a page that is
loaded anew, or whose connection dropped, is back before."""
GAP_SECONDS = 1.0
"""A job that nobody waits for begins so long after one that somebody waited for, at the earliest: a sweep
asks for one configuration after the other, and each would wait until such a job has made way."""
PRESENCE_SECONDS = 0.5
"""While jobs wait it is looked so often who is there."""
MAX_KEPT = 500
"""Finished jobs that are remembered."""
MAX_KEPT_BYTES = 256 * 2**20
"""Results of finished jobs that are remembered; the newest is, however large."""
SERVER = ""
"""The visitor who asks when nobody in particular does. Always there."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a job may run, and how long it may run without telling anything, in seconds."""

    total: float = math.inf
    silent: float = math.inf


@dataclass(eq=False, slots=True)
class Job:
    """One piece of work, as it stands now. Only its pool changes it; any thread may read it.

    ``progress`` is a share from 0 to 1, or None where the work can't tell. ``known`` is what the work
    published last, until it is over. ``result`` is set when ``state`` is done, ``error`` (in words) when it
    is failed, and ``died`` where its workers did. ``visitors`` wait for it. Times are of the monotonic clock,
    in seconds.
    """

    key: str
    task: str
    request: object = field(repr=False)
    lane: str
    priority: float
    limits: Limits = field(default_factory=Limits, repr=False)
    visitors: frozenset[str] = frozenset()
    state: State = "queued"
    attempts: int = 0
    progress: float | None = None
    message: str = ""
    known: object = field(default=None, repr=False)
    result: object = field(default=None, repr=False)
    result_bytes: int = field(default=0, repr=False)
    error: str = ""
    died: bool = False
    begun: float | None = field(default=None, repr=False)
    heard: float = field(default=0.0, repr=False)
    ended: float | None = field(default=None, repr=False)

    @property
    def over(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def running(self) -> bool:
        """Whether a worker is on it."""
        return self.state == "running"

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
    fails the job at once. ``limits(task, request)`` says how long a job may run: then it fails, and its
    worker is ended. The last MAX_KEPT finished jobs are remembered, as far as their results fit into
    MAX_KEPT_BYTES. Errors begin with ``labels(task)``, which says what is done ("measuring"). All methods
    are thread-safe.

    A visitor is identified by any string. A job ends early only when no visitor who is ``present(visitor)``
    waits for it any more; where none does, it goes after all others, and one that runs is put back into the
    queue for them, to begin anew later. Of jobs that are equally urgent, the next is that of the visitor who
    was served longest ago.

    ``watch`` is given a job whenever its state has changed, or what is known of it. Nothing goes on in the
    meantime, so it must neither wait nor ask this pool.
    """

    def __init__(
        self,
        target: str,
        lanes: Sequence[str] = ("interactive", "measure"),
        limits: Callable[[str, object], Limits] = lambda task, request: Limits(),
        present: Callable[[str], bool] = lambda visitor: True,
        labels: Callable[[str], str] = str,
        watch: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self._target = target
        self._watch = watch
        self._labels = labels
        self._limits = limits
        self._present = present
        self._changed = threading.Condition()  # guards everything below, and every change of a job's state
        self._live: dict[str, Job] = {}  # in order of arrival
        self._over: dict[str, Job] = {}  # oldest first
        self._turns = itertools.count(1)
        self._served: dict[str, int] = {}  # when a visitor's turn was last
        self._closed = False
        self._lanes = {name: _Lane(name) for name in lanes}
        self._threads = [
            threading.Thread(target=self._dispatch, args=(lane,), name=f"lane {name}", daemon=True)
            for name, lane in self._lanes.items()
        ]
        self._threads.append(threading.Thread(target=self._enforce_limits, name="limits", daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        lane: str,
        task: str,
        request: object,
        key: str,
        priority: float = 0,
        visitor: str = SERVER,
    ) -> Job:
        """Queue work under a key that names it wholly, or join it: ``visitor`` waits for it from now on.

        While a job of that key is queued, running or done, that job is given back (moved forward if
        ``priority`` is more urgent); one that failed or was cancelled is tried anew. A lower priority runs
        first.

        Raises InputError for an unknown lane, WorkError when the pool is closed, UnavailableError when too
        many jobs wait already.
        """
        if lane not in self._lanes:
            raise unknown("lane", lane, list(self._lanes))
        with self._changed:
            if self._closed:
                raise WorkError(f"can't start {self._labels(task)}: the pool is closed. Make a new one")
            past = self._over.get(key)
            if past is not None and past.state == "done":
                return past
            job = self._live.get(key)
            if job is None:
                limits = self._limits(task, request)
                self._make_room(task, visitor)
                self._over.pop(key, None)
                job = self._live[key] = Job(key, task, request, lane, priority, limits)
                self._watch(job)
            job.visitors |= {visitor}
            job.priority = min(job.priority, priority)
            self._changed.notify_all()
            return job

    def warm(self, request: object = None) -> list[Job]:
        """Run the target's task ``"warm"`` in every lane, ahead of what is queued."""
        return [self.submit(lane, "warm", request, f"warm {lane}", -math.inf) for lane in self._lanes]

    def get(self, key: str) -> Job | None:
        """The job of a key in whatever state, or None; unlike :meth:`submit` it never starts one."""
        with self._changed:
            return self._live.get(key) or self._over.get(key)

    def before(self, job: Job) -> int:
        """How many jobs of its lane a queued one waits for, as things are: those that run, and those queued
        that go first, whoever asked for them."""
        with self._changed:
            lane = [one for one in self._live.values() if one.lane == job.lane]
            queued = sorted((one for one in lane if one.state == "queued"), key=self._precedence)
            if job not in queued:
                return 0
            return queued.index(job) + sum(one.running for one in lane)

    def jobs(self) -> list[Job]:
        """Finished jobs, oldest first, then running and queued ones in order of arrival."""
        with self._changed:
            return [*self._over.values(), *self._live.values()]

    def wait(self, job: Job, timeout: float | None = None) -> Job:
        """Give the job back when it is over, or as it is after ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: job.over, timeout)
        return job

    def wait_news(self, jobs: Sequence[Job], known: Sequence[object], timeout: float | None) -> bool:
        """Whether one of the jobs is over or knows something else than ``known``, which has an item for each,
        now or within ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: any(job.over or job.known is not one for job, one in zip(jobs, known, strict=True)),
                timeout,
            )

    def idle(self, lane: str) -> bool:
        """Whether nothing runs or waits in a lane."""
        with self._changed:
            return not any(job.lane == lane for job in self._live.values())

    def may_stop(self, job: Job, visitor: str) -> bool:
        """Whether ``visitor`` may withdraw from a job: one that they wait for, or that nobody waits for any
        more."""
        with self._changed:
            return not job.over and (visitor in job.visitors or not self._awaited(job))

    def withdraw(self, key: str, visitor: str = SERVER, grace: float = STOP_SECONDS) -> bool:
        """``visitor`` waits no longer for a job. It is cancelled, and True given back, when no other does."""
        with self._changed:
            job = self._live.get(key)
            if job is None:
                return False
            job.visitors -= {visitor}
            return not self._awaited(job) and self.cancel(key, grace)

    def cancel(self, key: str, grace: float = STOP_SECONDS) -> bool:
        """Stop a queued or running job for good, whoever waits for it. False if there is none.

        The worker of a running one has ``grace`` seconds to end by itself, then it is killed.
        """
        with self._changed:
            job = self._live.get(key)
            if job is None:
                return False
            self._interrupt(job, "cancelled", grace=grace)
            return True

    def may_conclude(self, job: Job, visitor: str) -> bool:
        """Whether ``visitor`` may have a job end with the best that it has: one that runs, and for which no
        other who is there waits."""
        with self._changed:
            others = job.visitors - {visitor}
            return job.running and not any(map(self._is_there, others))

    def conclude(self, key: str, visitor: str = SERVER) -> bool:
        """Have a job end with the best that it has so far. False where it doesn't run, or others wait."""
        with self._changed:
            job = self._live.get(key)
            if job is None or not self.may_conclude(job, visitor):
                return False
            worker = self._lanes[job.lane].worker
            if worker is not None:
                worker.conclude()
            return worker is not None

    def forget(self, key: str) -> None:
        """Drop a finished job, so that its key can be run again. A queued or running one stays."""
        with self._changed:
            self._over.pop(key, None)

    def close(self) -> None:
        """Cancel everything and end the workers."""
        with self._changed:
            self._closed = True
            for job in list(self._live.values()):
                self._end(job, "cancelled")
            for lane in self._lanes.values():
                lane.kill()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Who waits, and whose turn it is

    def _awaited(self, job: Job) -> bool:
        """Whether a visitor who is there waits for a job."""
        return any(map(self._is_there, job.visitors))

    def _is_there(self, visitor: str) -> bool:
        return visitor == SERVER or self._present(visitor)

    def _make_room(self, task: str, visitor: str) -> None:
        """Raise UnavailableError where one more job would be too many; those that nobody waits for any more
        make way."""
        queued = [job for job in self._live.values() if job.state == "queued"]
        own = sum(visitor in job.visitors for job in queued)
        doing = self._labels(task)
        if visitor != SERVER and own >= MAX_QUEUED_EACH:
            raise UnavailableError(
                f"can't start {doing}: {own:,} jobs of yours wait already, the most that one visitor may "
                "have. Try again when some of them are done, or stop some"
            )
        if len(queued) < MAX_QUEUED:
            return
        for job in queued:
            if not self._awaited(job):
                self._end(job, "cancelled")
                return
        raise UnavailableError(
            f"can't start {doing}: {len(queued):,} jobs wait on this dashboard already, the most that it "
            "takes. Try again when some of them are done"
        )

    def _precedence(self, job: Job) -> tuple[bool, float, int]:
        return (
            not self._awaited(job),
            job.priority,
            min((self._served.get(one, 0) for one in job.visitors), default=0),
        )

    def _next(self, lane: "_Lane") -> Job | None:
        """The most urgent queued job, now running; None once the pool is closed."""
        with self._changed:
            while not self._closed:
                queued = (job for job in self._live.values() if job.lane == lane.name)
                job = min(
                    (job for job in queued if job.state == "queued"), key=self._precedence, default=None
                )
                gap = lane.awaited_at + GAP_SECONDS - time.monotonic()
                if job is not None and (gap <= 0 or self._awaited(job)):
                    self._served |= dict.fromkeys(job.visitors, next(self._turns))
                    job.begun = job.heard = time.monotonic()
                    job.state = "running"
                    self._watch(job)
                    self._changed.notify_all()
                    return job
                self._changed.wait(gap if job else None)
            return None

    # Running

    def _dispatch(self, lane: "_Lane") -> None:
        """A lane's thread: keep a worker ready, and feed it. Whatever fails, the lane goes on."""
        try:
            while True:
                with contextlib.suppress(Exception):  # told by the next job, which needs a worker
                    self._ready(lane)
                job = self._next(lane)
                if job is None:
                    return
                try:
                    self._run(lane, job)
                except Exception as error:  # a request that won't pickle, a result too large for this process
                    words = f"{self._labels(job.task)} could not be run: {words_of(error)}"
                    self._end(job, "failed", error=words)
                with self._changed:
                    lane.kill_at, lane.ending = math.inf, None
                    if self._awaited(job):
                        lane.awaited_at = time.monotonic()
        finally:
            if lane.worker is not None:
                lane.worker.close()

    def _ready(self, lane: "_Lane") -> Worker:
        """The lane's worker, a new one if it died. Raises UnavailableError."""
        worker = lane.worker
        if worker is not None and worker.alive:
            return worker
        with self._changed:
            lane.worker = None
        if worker is not None:
            worker.close()
        worker = Worker(self._target)
        with self._changed:
            lane.worker = worker
        return worker

    def _run(self, lane: "_Lane", job: Job) -> None:
        try:
            kind, answer = self._answered(lane, job)
        except WorkerDied as death:
            job.died = True
            kind, answer = "died", f"was given up: its worker process {death}, {ATTEMPTS} times in a row"
        if kind == "cancelled":
            if job.running:
                self._end(job, "cancelled")
        elif kind == "done":
            self._end(job, "done", result=pickle.loads(answer), result_bytes=len(answer))
        else:
            words = answer if kind == "failed" else f"{self._labels(job.task)} {answer}"
            self._end(job, "failed", error=words)

    def _answered(self, lane: "_Lane", job: Job) -> tuple[str, Any]:
        """What :meth:`Worker.run` gives for a job, by as many workers as it takes. Raises WorkerDied where
        ``ATTEMPTS`` died, UnavailableError."""

        def report(progress: float | None, message: str) -> None:
            job.heard = time.monotonic()
            if job.running:
                job.progress, job.message = progress, message

        def receive(known: bytes) -> None:
            with self._changed:
                if job.running:
                    job.known = pickle.loads(known)
                    self._watch(job)
                    self._changed.notify_all()

        payload = pickle.dumps(job.request)
        while True:
            worker = self._ready(lane)
            with self._changed:
                if not job.running:  # cancelled or put back while there was no worker to kill
                    return "cancelled", ""
            job.attempts += 1
            try:
                return worker.run(job.task, payload, report, receive, lambda: job.running)
            except WorkerDied as death:
                if not job.running:  # cancelled or put back, and the worker took too long to let go of it
                    return "cancelled", ""
                if job.attempts == ATTEMPTS:
                    raise
                report(None, f"its worker process {death}: trying once more")

    def _enforce_limits(self) -> None:
        """A thread of its own: fail what runs for too long, and end its worker; have what nobody waits for
        make way."""
        with self._changed:
            while not self._closed:
                for job in list(self._live.values()):
                    if words := _overdue(job):
                        self._interrupt(job, "failed", f"{self._labels(job.task)} {words}")
                for lane in self._lanes.values():
                    if lane.strikes_at <= time.monotonic():
                        lane.kill()
                    self._make_way(lane)
                left = min(map(_seconds_left, self._live.values()), default=math.inf)
                kill = min(lane.strikes_at for lane in self._lanes.values()) - time.monotonic()
                queued = any(job.state == "queued" for job in self._live.values())
                look = PRESENCE_SECONDS if queued else threading.TIMEOUT_MAX
                self._changed.wait(min(left, kill, look))

    def _make_way(self, lane: "_Lane") -> None:
        """Put back what a lane runs where nobody has waited for it for a while, and somebody waits for
        another of its jobs. With ``self._changed`` held."""
        jobs = [job for job in self._live.values() if job.lane == lane.name]
        running = next((job for job in jobs if job.running), None)
        if running is None or self._awaited(running):
            lane.unawaited_since = math.inf
            return
        lane.unawaited_since = min(lane.unawaited_since, time.monotonic())
        wanted = any(job.state == "queued" and self._awaited(job) for job in jobs)
        if wanted and time.monotonic() >= lane.unawaited_since + AWAY_SECONDS:
            running.state, running.begun, running.attempts = "queued", None, 0
            running.progress, running.message, running.known = None, "", None
            self._watch(running)
            self._let_go(lane, running, STOP_SECONDS)

    def _interrupt(self, job: Job, state: State, error: str = "", grace: float = 0) -> None:
        """End a job before its time; the worker that runs it has ``grace`` seconds to end it by itself, or is
        killed. With ``self._changed`` held."""
        running = job.running
        self._end(job, state, error=error)
        if running:
            self._let_go(self._lanes[job.lane], job, grace)

    def _let_go(self, lane: "_Lane", job: Job, grace: float) -> None:
        """Have a lane's worker end what it runs. With ``self._changed`` held."""
        if lane.worker is not None:
            lane.kill_at, lane.ending = time.monotonic() + grace, job
            lane.worker.cancel() if grace else lane.kill()
            self._changed.notify_all()

    def _end(
        self, job: Job, state: State, result: object = None, error: str = "", result_bytes: int = 0
    ) -> None:
        with self._changed:
            if job.over:  # whoever came first decides: a result and a cancel may cross
                return
            job.result, job.result_bytes, job.error, job.known = result, result_bytes, error, None
            job.ended, job.state = time.monotonic(), state
            self._watch(job)
            del self._live[job.key]
            self._over[job.key] = job
            waiting = frozenset[str]().union(*(live.visitors for live in self._live.values()))
            self._served = {one: precedence for one, precedence in self._served.items() if one in waiting}
            while len(self._over) > MAX_KEPT or (
                len(self._over) > 1
                and sum(past.result_bytes for past in self._over.values()) > MAX_KEPT_BYTES
            ):
                del self._over[next(iter(self._over))]
            self._changed.notify_all()


@dataclass(slots=True)
class _Lane:
    """``kill_at``: when the worker is killed if it still runs ``ending``, which was cancelled or put back.
    ``unawaited_since``: since when nobody has waited for what it runs. ``awaited_at``: when the last job that
    somebody waited for was over."""

    name: str
    worker: Worker | None = None
    kill_at: float = math.inf
    ending: Job | None = None
    unawaited_since: float = math.inf
    awaited_at: float = -math.inf

    @property
    def strikes_at(self) -> float:
        """When it is killed, at the latest when a limit strikes: what is cancelled patiently may hang."""
        limit = math.inf if self.ending is None else time.monotonic() + _seconds_left(self.ending)
        return min(self.kill_at, limit)

    def kill(self) -> None:
        self.kill_at, self.ending = math.inf, None
        if self.worker is not None:
            self.worker.kill()


def _seconds_left(job: Job) -> float:
    """Until a limit strikes, as things stand now."""
    if job.begun is None:
        return math.inf
    return min(job.begun + job.limits.total, job.heard + job.limits.silent) - time.monotonic()


def _overdue(job: Job) -> str:
    """What to say of a job that has run for too long, after what it is, or nothing."""
    if job.begun is None or _seconds_left(job) > 0:
        return ""
    last = f" The last that was heard of it: {job.message}." if job.message else ""
    if job.seconds >= job.limits.total:
        return (
            f"was stopped after {_duration(job.limits.total)}, the longest that it may take here."
            f"{last} Ask for less (fewer images, a smaller model, less fine-tuning), or run it with the "
            "paretoscope command, which sets no limit"
        )
    return (
        f"was stopped: nothing was heard of it for {_duration(job.limits.silent)}.{last} Try "
        "again; if that happens once more, run it with the paretoscope command, which sets no limit"
    )


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
