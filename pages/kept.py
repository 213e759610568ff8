"""What failed and what can't be read among what is stored, and how to be rid of it. (Not a page.)

Messages and names from the store may be anyone's words: they are drawn in widgets that know no markup.
"""

from collections.abc import Collection

import pandas as pd
import streamlit as st

from optimizer.analysis.labels import engine_label
from optimizer.search.documents import DOCUMENTS
from optimizer.store.keys import request_key
from optimizer.store.rows import Failure, Unreadable, describe_unreadable
from pages import drawing, tasks
from pages.markup import plain

CHECK = "check what is stored"
MAX_READ_AT_ONCE = 200


def show(told: Collection[str] = ()) -> None:
    """Two blocks, each only where there is something to say; failures without those ``told`` already, by the
    keys of their measurements."""
    with tasks.errors_in_words():
        show_unreadable(unreadable())
    with tasks.errors_in_words():
        show_failures([one for one in tasks.store().failures() if one.key not in told])


def unreadable() -> list[Unreadable]:
    """What can't be read. Of many results that takes long, so that it is looked for when asked."""
    if tasks.store().count() <= MAX_READ_AT_ONCE:
        return tasks.store().unreadable(DOCUMENTS)
    job = tasks.pool().get(CHECK)
    if (job is None or job.over) and st.button("Check everything stored", icon=":material/fact_check:"):
        tasks.pool().forget(CHECK)
        job = tasks.start("measure", "check", None, CHECK)
    if job and job.over:
        return [*tasks.finished(job, tuple)]
    tasks.refresh_when_over([job] if job else [])
    return []


def note_unreadable(read: int, most: int) -> None:
    """A line beside results of which ``read`` could be read, of at most ``most``, where there are more."""
    if min(tasks.store().count(), most) > read:
        st.caption(":material/warning: Some stored results can't be read: Models and data says which.")


def show_unreadable(rows: list[Unreadable]) -> None:
    if not rows:
        return
    st.subheader("Can't be read")
    st.warning(plain(describe_unreadable(rows)), icon=":material/warning:")
    drawing.table(pd.DataFrame([{"what": row.kind, "row": row.row, "why": row.reason} for row in rows]))
    if st.button("Remove what can't be read", icon=":material/delete:"):
        tasks.store().forget_unreadable(rows)
        tasks.pool().forget(CHECK)
        st.rerun()


def show_failures(failures: list[Failure]) -> None:
    if not failures:
        return
    st.subheader("Failed")
    newest = {failure.key: failure for failure in reversed(failures)}
    drawing.table(pd.DataFrame([row(failure) for failure in newest.values()]))
    key = st.selectbox("Failed measurement", list(newest), format_func=lambda key: label(newest[key]))
    st.text(newest[key].message)
    with st.container(horizontal=True):
        given = bool(newest[key].request.data.content)
        again = st.button(
            "Try again",
            icon=":material/refresh:",
            key="failed again",
            disabled=given,
            help="Its images were given in memory: ask again from Python, with them." if given else None,
        )
        forget = st.button("Forget", icon=":material/delete:", key="failed forget")
        forget_all = st.button("Forget all", icon=":material/delete_sweep:", key="failed forget all")
    if again:
        measure_again(newest[key])
    if forget:
        tasks.store().forget([key])
    if forget_all:
        tasks.store().forget_failures()
    if again or forget or forget_all:
        st.rerun()


def measure_again(failure: Failure) -> None:
    """Under today's key, which is another where a library or the code changed since. Raises ParetoscopeError
    where the request can't be made any more; it is then listed as before."""
    asked = request_key(failure.request)
    tasks.pool().forget(asked)  # of a job that failed, too
    tasks.submit(failure.request)
    tasks.store().forget([failure.key])


def row(failure: Failure) -> dict[str, str]:
    return {
        "when": drawing.when(failure.created),
        "model": failure.request.model,
        "engine": engine_label(failure.request.engine),
        "recipe": failure.request.recipe.describe(),
        "why": failure.message,
    }


def label(failure: Failure) -> str:
    """No two alike: Streamlit knows an option by its label alone."""
    request = failure.request
    asked = request.model, engine_label(request.engine), request.recipe.describe()
    return " · ".join((*asked, drawing.when(failure.created), failure.key[:6]))
