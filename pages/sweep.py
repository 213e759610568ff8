"""Sweep: a grid of configurations, or a question under limits, worked off whether anybody looks or not."""

import re
from collections.abc import Callable, Sequence

import pandas as pd
import streamlit as st

from optimizer.errors import InputError
from optimizer.formats import count
from optimizer.search.answers import describe, model_of, outcome_of
from optimizer.store import ledger
from optimizer.store.items import Sweep
from pages import address, drawing, finding, grids, sidebar, tasks
from pages.markup import plain
from pages.session import session

COLOURS: dict[str, drawing.Colour] = {
    "queued": "gray",
    "running": "violet",
    "done": "green",
    "failed": "red",
    "cancelled": "orange",
}
ASKING = {"grid": "A grid", "limits": "The best under limits"}
NUMBER = re.compile("[0-9]{1,80}")
"""Of a sweep, in an address; Python refuses to read one of thousands of digits."""

MAX_OFFERED = 6
"""Other models, where the chosen one has no sweep; the history has them all."""
ANSWER_SECONDS, MAX_ANSWERS = 60, 10_000
"""What questions of the history found is read once in that time; so many are known."""


def main() -> None:
    model = sidebar.selection().card.name
    st.header("Sweep")
    asking = address.choice(
        "Ask for", ASKING, "grid", "ask", label_visibility="collapsed", on_change=show_newest
    )
    history = ledger.sweeps(tasks.store())
    alike = [sweep for sweep in history if (sweep.answer is None) == (asking == "grid")]
    shown = shown_of([sweep for sweep in alike if model_of(sweep) == model])
    new = "New sweep" if asking == "grid" else "New question"
    with (
        st.expander(
            new if session().extends is None else f"Extend sweep {session().extends}",
            expanded="sweep" not in st.query_params or session().extends is not None,
            icon=":material/grid_on:" if asking == "grid" else ":material/tune:",
        ),
        tasks.errors_in_words(),
    ):
        show_asked(grids.ask() if asking == "grid" else finding.ask())
    if shown:
        if (of := model_of(shown)) != model:
            st.caption(plain(f"Of {of or 'another version'}; {model} is chosen in the sidebar."))
        show(shown)
    elif alike:
        offer_others(alike, model)
    if history:
        show_history(history)


def offer_others(history: Sequence[Sweep], model: str) -> None:
    """Say that there is none of the model, and offer the newest of each other one."""
    newest: dict[str, Sweep] = {}
    for sweep in history:
        newest.setdefault(model_of(sweep), sweep)
    kind = "sweep" if history[0].answer is None else "question"
    st.info(plain(f"No {kind} of {model} yet. The newest of other models:"), icon=":material/info:")
    with st.container(horizontal=True):
        for other, sweep in [*newest.items()][:MAX_OFFERED]:
            label = f"{plain(other) or 'Of another version'} (entry {sweep.id})"
            st.button(label, key=f"show {sweep.id}", on_click=go_to, args=(sweep.id,))


def show_newest() -> None:
    """Show what the address names no more, but the newest."""
    sidebar.forget_sweep()


def show_asked(number: int | None) -> None:
    """Go to what was asked for just now, if anything was."""
    if number is not None:
        go_to(number)
        st.rerun()


def shown_of(history: Sequence[Sweep]) -> Sweep | None:
    """The sweep or question that the address names, else the newest of ``history`` that runs, else the
    newest."""
    named = st.query_params.get("sweep", "")
    if named and not NUMBER.fullmatch(named):
        st.info(plain(f"{named[: address.MAX_TOLD]} is not the number of a sweep."), icon=":material/info:")
    elif named:
        try:
            return ledger.find(tasks.store(), int(named))
        except InputError as error:
            st.info(plain(error), icon=":material/info:")
    return next((sweep for sweep in history if sweep.open), next(iter(history), None))


def go_to(sweep: int) -> None:
    """Show that one from now on."""
    st.query_params["sweep"] = str(sweep)
    session().extends, session().swept = None, ""


# One of them


def show(sweep: Sweep) -> None:
    """How far it is, what came of it, and what to do with it."""
    if sweep.answer is None:
        toolbar(sweep, lambda: grids.buttons(sweep))
        grids.show(sweep)
        return
    found = finding.found_of(sweep)
    toolbar(sweep, lambda: finding.buttons(sweep, found))
    finding.show(sweep, found)


def toolbar(sweep: Sweep, buttons: Callable[[], int | None]) -> None:
    """What it is, and what to do with it; ``buttons`` give the number of the one to go to."""
    with st.container(horizontal=True, vertical_alignment="center"):
        kind, number = ("Sweep" if sweep.answer is None else "Question"), f"entry {sweep.id} of the history"
        st.markdown(f"**{kind}** ({number})", width="content")
        st.badge(sweep.state, color=COLOURS[sweep.state])
        st.markdown(plain(describe(sweep)), width="stretch")
        with st.container(horizontal=True, width="content"):  # together on the next line, or none there
            if sweep.open and st.button(
                "Cancel", icon=":material/stop:", help="What is measured so far is kept."
            ):
                ledger.cancel(tasks.store(), sweep.id)
                st.rerun()
            show_asked(buttons())


# All of them


def show_history(history: Sequence[Sweep]) -> None:
    """Who asked what, when, and what came of it; a row that is ticked is shown. Sweeps and questions are
    numbered together."""
    questions = sum(sweep.answer is not None for sweep in history)
    kinds = f"{count(len(history) - questions, 'sweep')}, {count(questions, 'question')}"
    label = f"History: {count(len(history), 'entry', 'entries')} ({kinds})"
    icon = ":material/history:"
    with st.expander(label, key="sweep_history_open", icon=icon, on_change="rerun") as history_of_all:
        if not history_of_all.open:
            return
        rows = [
            {
                "entry": sweep.id,
                "asked for": describe(sweep),
                "by": sweep.who,
                "when": drawing.when(sweep.created),
                "state": sweep.state,
                "outcome": outcome_in_words(sweep),
            }
            for sweep in history
        ]

        def go() -> None:
            for number in st.session_state["sweep_history"].selection.rows:
                go_to(history[number].id)

        drawing.table(
            pd.DataFrame(rows),
            on_select=go,
            selection_mode="single-row",
            key="sweep_history",
        )


def outcome_in_words(sweep: Sweep) -> str:
    """Its outcome; of a question that is over, as it was found lately."""
    if sweep.answer is None or sweep.open:
        return outcome_of(tasks.store(), sweep)
    return answered(tasks.store().place, sweep.id, sweep.state, sweep)


@st.cache_data(ttl=ANSWER_SECONDS, max_entries=MAX_ANSWERS, show_spinner=False)
def answered(place: str, number: int, state: str, _sweep: Sweep) -> str:
    """Answers are large: to read a hundred takes a second, and the page is drawn anew each second or so."""
    return outcome_of(tasks.store(), _sweep)


main()
