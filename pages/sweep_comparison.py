"""A sweep beside another one: which, and whose configurations are better. (Not a page.)"""

from collections.abc import Sequence

import streamlit as st

from optimizer.analysis.frontier import FRONTIER, UNTIMED, joint_frontier
from optimizer.analysis.summary import Summary, label_of
from optimizer.errors import InputError
from optimizer.formats import count
from optimizer.records import DataSpec, decode
from optimizer.search.answers import describe
from optimizer.search.sweep import Grid
from optimizer.store import ledger
from optimizer.store.items import Sweep
from pages import address, tasks


def chosen(sweep: Sweep) -> Sweep | None:
    """Another sweep that the visitor chose, or the address names: of the same images, timed on the same
    machine."""
    data = data_of(sweep)
    others = {
        one.id: one
        for one in ledger.sweeps(tasks.store())
        if one.answer is None
        and one.id != sweep.id
        and one.counts.get("done")
        and one.device == sweep.device
        and data_of(one) == data
    }
    if not others:
        return None
    key, named = f"against {sweep.id}", st.query_params.get("sweep_against", "")
    if key not in st.session_state and named in map(str, others):
        st.session_state[key] = int(named)
    number = st.selectbox(
        "Compare with",
        list(others),
        index=None,
        placeholder="another sweep of the same images",
        format_func=lambda one: f"entry {one}: {describe(others[one])}",
        key=key,
    )
    if number is None:
        address.put("sweep_against", "")
        return None
    address.put("sweep_against", str(number))
    return others[number]


def data_of(sweep: Sweep) -> DataSpec | None:
    """The images of a grid, where it can be read."""
    try:
        return decode(sweep.asked, Grid).base.data
    except InputError:
        return None


def words(results: Sequence[Summary], theirs: Sequence[Summary], name: str) -> str:
    """Whose configurations are on the frontier of both sweeps; of size alone where no times can be ranked."""
    lost, size, ratio = (label_of(name, [*results, *theirs]) for name in FRONTIER)
    axes = f"{lost}, {size} and {ratio}"
    found = joint_frontier(results, theirs)
    if found is None:
        axes = f"{lost} and {size}, since no times of the two can be ranked with each other"
        found = joint_frontier(results, theirs, UNTIMED)
    if found is None:
        return (
            f"Nothing of this sweep can be ranked with what {name} measured: their models or engines differ."
        )
    return (
        f"On the frontier of both sweeps together ({axes}): "
        f"{count(found.first, 'configuration')} of this sweep alone, {found.second:,} of {name} alone and "
        f"{found.both:,} of both."
    )
