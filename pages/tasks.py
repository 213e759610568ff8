"""Tasks that pages ask for: done by the pool, shown while they run and when they fail. (Not a page.)"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import streamlit as st

from optimizer.errors import ParetoscopeError
from optimizer.executors import Job, Pool
from optimizer.keys import request_key
from optimizer.recipe import NORMAL
from optimizer.records import Request
from optimizer.store import Store
from optimizer.sweep import STARTER_BITS, STARTER_SPARSITIES, grid
from optimizer.work import TARGET
from pages.markup import plain

T = TypeVar("T")
POLL_SECONDS = 0.25
INTERACTIVE, BACKGROUND = 0, 10
"""Priorities: what a slider asks for goes before what a sweep asks for."""

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
    workers = Pool(TARGET)
    first = Request(FIRST_MODEL, NORMAL)
    workers.warm(Request(FIRST_MODEL))
    if not store().count():  # the very first start: fill the curves while the visitor looks around
        for request in grid(first, STARTER_SPARSITIES, STARTER_BITS):
            workers.submit("measure", "measure", request, request_key(request), BACKGROUND)
    return workers


@st.cache_resource
def store() -> Store:
    return Store()


def finished(job: Job, kind: type[T]) -> T:
    """The result of a job that is over. Raises ParetoscopeError with its words when it failed."""
    if job.state == "done":
        assert isinstance(job.result, kind)
        return job.result
    raise ParetoscopeError(job.error or f"{job.task} was cancelled")


def has_failed(key: str) -> bool:
    """Whether a job failed. The error is shown, and what failed is tried again when asked for, not by itself:
    it would fail for ever."""
    job = pool().get(key)
    if job is None or job.state != "failed":
        return False
    st.error(plain(job.error), icon=":material/error:")
    if st.button("Try again", icon=":material/refresh:"):
        pool().forget(key)
        st.rerun()  # without the error
    return True


def ask_for(task: str, asked: object, key: str) -> list[Job]:
    """Have something measured that the store has not. No job where it failed, until it is asked for again."""
    if has_failed(key):
        return []
    job = pool().submit("measure", task, asked, key, INTERACTIVE)
    if job.state == "done":  # the store was emptied since
        pool().forget(key)
        st.rerun()
    return [job]


def submit(request: Request, priority: int = INTERACTIVE) -> Job:
    """Have a request measured that has no stored result: one that was done once was forgotten since."""
    key = request_key(request)
    job = pool().get(key)
    if job and job.state == "done":
        pool().forget(key)
    return pool().submit("measure", "measure", request, key, priority)


def refresh_when_over(shown: Sequence[Job], unseen: Sequence[Job] = ()) -> None:
    """Show what runs, and draw the page anew when one of the jobs ends."""
    jobs = [*shown, *unseen]
    if not jobs:
        return
    over = sum(job.over for job in jobs)

    @st.fragment(run_every=None if over == len(jobs) else POLL_SECONDS)
    def watch() -> None:
        if sum(job.over for job in jobs) > over:
            st.rerun()
        for job in shown:
            show_job(job)

    watch()


def show_job(job: Job) -> None:
    """One line: what a job is doing, with its share done where it can tell."""
    if job.state == "failed":
        st.error(plain(job.error), icon=":material/error:")
    elif job.progress is not None:
        st.progress(job.progress, plain(job.message))
    elif not job.over:
        words = plain(job.message) if job.state == "running" and job.message else "waiting for its turn"
        st.caption(f":material/hourglass_top: {words}…")
