"""Sweeps and questions: asked for, worked off in the background, and followed. (Not a page.)"""

import atexit
import os
import time
from collections.abc import Callable
from contextlib import suppress

import streamlit as st

from optimizer.cluster.attached import CLUSTER_VARIABLE, Attached
from optimizer.errors import ParetoscopeError
from optimizer.recipe import NORMAL
from optimizer.records import Request, digest, encode
from optimizer.search import questions
from optimizer.search.drain import Background, by_pool
from optimizer.search.records import Question
from optimizer.search.sweep import STARTER_BITS, STARTER_SPARSITIES, Grid, is_frontier_only
from optimizer.store import ledger
from optimizer.store.items import Item, Sweep
from optimizer.store.results import Store
from pages import tasks
from pages.markup import plain

FOLLOW_SECONDS = 1.0
DRAW_SECONDS = 3.0
"""Between two drawings of what a sweep has found: they take a core from what is being measured."""


@st.cache_resource
def background() -> Background:
    """The thread that works off sweeps and questions, below all that visitors wait for."""

    def screens(item: Item) -> bool:
        return is_frontier_only(ledger.find(tasks.store(), item.sweep).asked)

    work = Background(tasks.store(), by_pool(tasks.pool(), tasks.BACKGROUND, screens))
    atexit.register(work.close)
    return work


@st.cache_resource
def cluster() -> Attached | None:
    """The operator's cluster, for visitors who choose one of its devices; None without one."""
    address = os.environ.get(CLUSTER_VARIABLE)
    if not address:
        return None
    attached = Attached(tasks.store(), address)
    atexit.register(attached.close)
    return attached


def ring() -> None:
    """There is work."""
    background().ring()
    if attached := cluster():
        attached.ring()


def follow_cluster(attached: Attached) -> None:
    """Draws the page anew when nodes come or go, or the scheduler does."""

    def now() -> object:
        return attached.problem, attached.unused, [one.names for one in attached.devices.values()]

    drawn = now()

    @st.fragment(run_every=FOLLOW_SECONDS)
    def watch() -> None:
        if now() != drawn:
            st.rerun()

    watch()


def pausing(sweep: Sweep) -> str:
    """Why nothing of a sweep goes on at the moment, where that is so."""
    if lacking := ledger.lacking(tasks.store()).get(sweep.id):
        return f"Waiting for a server that has {lacking}."
    if not sweep.device:
        return background().problem
    attached = cluster()
    return attached.waits_for(sweep.device) if attached else ""


def go_on() -> None:
    """See to it that what waits in the ledger is worked off."""
    with suppress(ParetoscopeError):  # told by the page
        cluster()
        if ledger.any_open(Store()):
            background()


@st.cache_resource
def fill_first() -> None:
    """At the very first start, fill the curves while the visitor looks around."""
    if not tasks.store().count() and not ledger.sweeps(tasks.store()):
        begin_sweep(starter(Request(tasks.FIRST_MODEL, NORMAL)))


def who() -> str:
    """This visitor, for others to see: no name is known here."""
    return f"visitor {digest(tasks.visitor())[:4]}"


def starter(base: Request) -> Grid:
    """What fills the curves."""
    activations = (base.recipe.quantize.activation_bits,)
    return Grid(base, STARTER_SPARSITIES, STARTER_BITS, activations, (base.engine,))


def begin_sweep(asked: Grid, device: str = "") -> int:
    """Have a grid worked off, on a ``device`` of the cluster or here: the number of the sweep. Raises what
    :func:`optimizer.store.ledger.create` does."""
    sweep = ledger.create(tasks.store(), encode(asked), asked.requests(), who(), device)
    ring()
    return sweep


def ask(question: Question) -> int:
    """Have a question answered: its number in the ledger. Raises what
    :func:`optimizer.search.questions.ask` does."""
    number = questions.ask(tasks.store(), question, who())
    background().ring()
    return number


def follow(sweep: Sweep, draw: Callable[[Sweep], object]) -> None:
    """Draws how far a sweep or a question is, again and again; the page is drawn anew when there is more."""
    drawn = time.monotonic()

    @st.fragment(run_every=FOLLOW_SECONDS)
    def watch() -> None:
        now = ledger.find(tasks.store(), sweep.id)
        more = now.over > sweep.over and time.monotonic() > drawn + DRAW_SECONDS
        if now.state != sweep.state or more:
            st.rerun()
        if problem := pausing(now):
            st.warning(plain(problem), icon=":material/pause_circle:")
        draw(now)

    watch()
