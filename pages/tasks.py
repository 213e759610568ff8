"""Tasks that pages ask for: done by the pool, shown while they run and when they fail. (Not a page.)"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from optimizer.errors import ParetoscopeError, UnavailableError
from optimizer.formats import count, format_share
from optimizer.records import Known, Request
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.system.process_pool import PATIENT, SERVER, Job, Pool
from optimizer.work import TARGET, describe_job, label_of, limits
from pages import consent, job_log
from pages.markup import plain
from pages.session import session

T = TypeVar("T")
POLL_SECONDS = 0.5
NEWS_SECONDS = 0.5
"""So long a fragment waits on the server for news of a job before the browser asks again: each answer is
drawn anew, on the cores that the job runs on."""
SOON_SECONDS = 0.3
"""A page waits so long for a short job before it is drawn without what that says."""
MOVE_SECONDS = 0.02
"""Within that time a move of the visitor ends the wait."""
OTHERS_POLL_SECONDS = 1.0
INTERACTIVE, BACKGROUND, AHEAD = 0, 10, 20
"""Priorities: what a slider asks for goes before what a sweep asks for, and that before what nobody has asked
for yet."""

FIRST_MODEL = "fashion-resnet"


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Show what this package refuses as a message; a page never ends in a stack trace for it."""
    try:
        yield
    except ParetoscopeError as error:
        st.error(plain(error), icon=":material/error:")


@st.cache_resource
def pool() -> Pool:
    """The workers of this server, shared by all its visitors, warmed up once."""
    workers = Pool(TARGET, limits=limits, present=_present, labels=label_of, watch=job_log.write)
    workers.warm(Request(FIRST_MODEL))
    return workers


def visitor() -> str:
    """Who asks: the browser session of this script run."""
    context = get_script_run_ctx()
    return context.session_id if context else SERVER


def _present(visitor: str) -> bool:
    """Whether a visitor's browser is connected."""
    return not runtime.exists() or bool(runtime.get_instance().is_active_session(visitor))


@st.cache_resource
def store() -> Store:
    return Store()


def finished(job: Job, kind: type[T]) -> T:
    """The result of a job that is over. Raises ParetoscopeError with its words when it failed."""
    if job.state == "done":
        assert isinstance(job.result, kind)
        return job.result
    raise ParetoscopeError(job.error or f"{label_of(job.task)} was cancelled")


def start(lane: str, task: str, asked: object, key: str) -> Job:
    """Have something done because this visitor says so, also where they stopped it before."""
    session().stopped.discard(key)
    return pool().submit(lane, task, asked, key, INTERACTIVE, visitor())


def held_back(key: str, work: Sequence[consent.Work] = ()) -> bool:
    """Whether a job failed, or this visitor stopped it. That is shown, and it is tried again when they ask
    for it, not by itself: it would fail, or run, for ever. Or whether it is long ``work`` that neither runs
    yet nor was asked for but by the address."""
    job = pool().get(key)
    stopped = key in session().stopped
    if not stopped and (job is None or job.state != "failed"):
        runs = job is not None and not job.over
        return not runs and consent.held_back(work, key)
    if stopped:
        st.info("Stopped, as you asked. What was done on the way is kept.", icon=":material/stop_circle:")
    else:
        show_failure(job)
    if st.button("Resume" if stopped else "Try again", icon=":material/refresh:", key=f"again {key}"):
        session().stopped.discard(key)
        pool().forget(key)
        st.rerun()  # without the words
    return True


def ask_for(task: str, asked: object, key: str, work: Sequence[consent.Work] = ()) -> list[Job]:
    """Have something measured that the store has not. No job where it is held back."""
    if held_back(key, work):
        return []
    job = start("measure", task, asked, key)
    if job.state == "done":  # the store was emptied since
        pool().forget(key)
        st.rerun()
    return [job]


def over_soon(job: Job) -> bool:
    """Whether a short job is over within a moment; else it is shown, and the page drawn anew once it is."""
    if pool().wait(job, SOON_SECONDS).over:
        return True
    refresh_when_over([job])
    return False


def submit(request: Request) -> Job:
    """Have a request measured that has no stored result: one that was done once was forgotten since."""
    return start("measure", "measure", request, _forget_done(request))


def submit_position(request: Request) -> Job:
    """Have the position of the sliders measured: where nothing long runs, unless something quick does."""
    key = _forget_done(request)
    lane = "measure" if pool().idle("measure") and not pool().idle("interactive") else "interactive"
    return start(lane, "measure", request, key)


def submit_ahead(request: Request) -> Job:
    """Have a request measured that this visitor may ask for next, by the worker that has all it needs."""
    return pool().submit("interactive", "ahead", request, _forget_done(request), AHEAD, visitor())


def _forget_done(request: Request) -> str:
    """Forget the job of a request if it is done: its result is in the store no more. Gives the key.

    Raises UnavailableError where it is there under another key: it would be asked for again and again.
    """
    key = request_key(request)
    job = pool().get(key)
    if job and job.state == "done":
        pool().forget(key)
        if isinstance(job.result, str) and job.result != key and store().known([job.result]):
            raise UnavailableError(
                "what was measured is kept under another name than this page looks for: the libraries or the "
                "governor were changed since the dashboard was started. Start it again"
            )
    return key


def move_on(keys: Iterable[str]) -> None:
    """This visitor looks at something else: what nobody waits for ends as soon as it can."""
    for key in keys:
        pool().withdraw(key, visitor(), grace=PATIENT)


def only_ahead(keys: Iterable[str]) -> set[str]:
    """Those of the keys whose jobs nobody has asked for meanwhile, as a sweep may have."""
    return {key for key in keys if (job := pool().get(key)) and job.priority >= AHEAD}


def stop(job: Job) -> None:
    """Wait no longer for a job, nor ask for it again by itself. It ends, unless another visitor waits too."""
    session().stopped.add(job.key)
    withdraw([job])


def withdraw(jobs: Sequence[Job]) -> None:
    """Wait no longer for those of the jobs that this visitor may stop."""
    for job in filter(may_stop, jobs):
        pool().withdraw(job.key, visitor())


def is_stopped(key: str) -> bool:
    """Whether this visitor stopped a job, though it may run on for another."""
    return key in session().stopped


def asked_for(job: Job) -> bool:
    """Whether this visitor asked for it."""
    return visitor() in job.visitors


def may_stop(job: Job) -> bool:
    """Whether this visitor asked for it, or nobody who is there waits for it."""
    return pool().may_stop(job, visitor())


def wait_for_news(jobs: Sequence[Job], known: Sequence[object]) -> bool:
    """Whether one of the jobs is over, or knows something else than ``known``, within a moment. Ends this run
    of the page as soon as the visitor moves."""
    context = get_script_run_ctx()
    until = time.monotonic() + NEWS_SECONDS
    while context and time.monotonic() < until:
        if pool().wait_news(jobs, known, MOVE_SECONDS):
            return True
        context.yield_check()
    return False


def refresh_when_over(jobs: Sequence[Job]) -> None:
    """Show what ran when the page looked, and draw it anew when one of the jobs is over: also where that came
    about while it was drawn."""
    if not jobs:
        return
    session().shown.update(job.key for job in jobs)

    @st.fragment(run_every=POLL_SECONDS)
    def watch() -> None:
        if any(job.over for job in jobs):
            st.rerun()
        for job in jobs:
            show_job(job)

    watch()


def show_failure(job: Job | None) -> None:
    """Why a job failed, where it did."""
    if job is not None and job.state == "failed":
        st.error(plain(job.error), icon=":material/error:")


def show_job(job: Job) -> None:
    """One line: what a job is doing, with its share done where it can tell, and a button that stops it."""
    show_failure(job)
    if not job.over:
        session().shown.add(job.key)
        with st.container(horizontal=True, vertical_alignment="center"):
            if job.progress is not None:
                st.progress(job.progress, plain(job.message))
            else:
                st.caption(f":material/hourglass_top: {plain(waiting_words(job))}…", width="stretch")
            conclude_button(job)
            stop_button(job)


def waiting_words(job: Job) -> str:
    """What a job does that can't tell its share, or what it waits for."""
    if job.state == "running":
        return job.message or label_of(job.task)
    if not (number := pool().before(job)):
        return "queued, next in line"
    now = doing_now(job.lane)
    return f"queued behind {count(number, 'job')}" + (f", now: {now}" if now else "")


def doing_now(lane: str) -> str:
    """What a lane runs, and for whom, in words that every visitor may read; "" where it runs nothing."""
    running = next((job for job in pool().jobs() if job.lane == lane and job.state == "running"), None)
    if running is None:
        return ""
    doing = describe_job(running.task, running.request)
    if asked_for(running):
        return f"{doing} for you"
    if running.visitors - {SERVER}:
        return f"{doing} for another visitor"
    return f"{doing} for a sweep" if running.priority == BACKGROUND and running.task != "find" else doing


def conclude_button(job: Job) -> None:
    """A button that ends a search with what it has found, and measures that."""
    learning = isinstance(job.known, Known) and job.known.learning
    if (
        learning
        and pool().may_conclude(job, visitor())
        and st.button(
            "Take the best so far",
            icon=":material/done:",
            key=f"conclude {job.key}",
            help="Ends learning now, and measures the best network until then: the result of this recipe.",
        )
    ):
        pool().conclude(job.key, visitor())


def stop_button(job: Job) -> None:
    """A button that stops a job, where this visitor may."""
    if may_stop(job) and st.button(
        f"Stop {label_of(job.task)}",
        icon=":material/stop:",
        key=f"stop {job.key}",
        help="What is done so far is kept. If another visitor waits for it too, it goes on for them.",
    ):
        stop(job)
        st.rerun()  # all of the page


def begin_page() -> None:
    """Before a page is drawn: it has shown no job yet."""
    session().shown.clear()


def show_others() -> None:
    """After a page is drawn: what else this visitor has running, asked for on another page or before."""
    others = [
        job
        for job in pool().jobs()
        if not job.over and visitor() in job.visitors and job.key not in session().shown
    ]
    if not others:
        return

    @st.fragment(run_every=OTHERS_POLL_SECONDS)
    def watch() -> None:
        if any(job.over for job in others):
            st.rerun()
        for job in [job for job in others if job.state == "running"]:
            share = "" if job.progress is None else f" ({format_share(job.progress)})"
            words = f":material/pending: Also {label_of(job.task)}{share}"
            st.caption(words, help=plain(job.message) or None)
            stop_button(job)
        queued = [job for job in others if job.state == "queued"]
        label = f"Cancel {count(len(queued), 'queued job')}"
        if queued and st.button(label, icon=":material/stop:", key="cancel queued"):
            withdraw(queued)
            st.rerun()

    watch()
