"""Layers: one layer's weights, what each layer is worth, and per-layer settings."""

from dataclasses import replace

import pandas as pd
import streamlit as st

from optimizer import charts
from optimizer.analysis.headline import group_rows, layer_rows, overrides_of
from optimizer.charts.spec import BEING_MEASURED
from optimizer.errors import ParetoscopeError
from optimizer.formats import MISSING
from optimizer.methods.pruners import PRUNERS
from optimizer.methods.quantizers import QUANTIZERS
from optimizer.recipe import WEIGHT_BITS, Override, Recipe
from optimizer.records import Anatomy, Inspection, Request, Settings
from optimizer.store.keys import request_key
from optimizer.system.process_pool import Job
from pages import address, consent, drawing, sidebar, tasks
from pages.markup import plain
from pages.session import session

WAIT_SECONDS = 0.5
HISTOGRAM_PIXELS, ROW_PIXELS, AROUND_ROWS_PIXELS = 400, 22, 200


def main() -> None:
    chosen = sidebar.selection()
    st.header("Layers")
    sidebar.name_chosen(chosen)
    if sidebar.show_problem(chosen):
        return
    recipe = session().recipe.canonical()
    request = Request(chosen.card.name, recipe, chosen.engine, chosen.data, Settings())
    st.markdown(f"{drawing.heading(recipe.describe())}, the recipe of the Explore page")
    if consent.held_back(consent.images(request.data)):  # all that fine-tuning would change is not shown here
        return
    jobs: list[Job] = []
    inspection = result_of(jobs, "inspect", request, request_key(request))
    if isinstance(inspection, Inspection):
        draw(request, inspection, jobs)
    elif recipe.layers:  # which may be what is wrong, when a link brought them
        undo()
    tasks.refresh_when_over(jobs)


def result_of(jobs: list[Job], task: str, request: object, key: str) -> object | None:
    """What a short task says; None with its error shown, or while it runs: then its job joins ``jobs``."""
    if tasks.held_back(f"{task} {key}"):
        return None
    job = tasks.start("interactive", task, request, f"{task} {key}")
    tasks.pool().wait(job, WAIT_SECONDS)
    if not job.over:
        jobs.append(job)
        return None
    with tasks.errors_in_words():
        return tasks.finished(job, object)
    return None


def draw(request: Request, inspection: Inspection, jobs: list[Job]) -> None:
    names = [layer.name for layer in inspection.layers]
    layer = st.selectbox(
        "Layer",
        names,
        **address.in_address("layer", lambda name: name.removesuffix(".weight")),
    )
    uncompressed = replace(request, recipe=Recipe())
    anatomy = result_of(jobs, "anatomy", (request, layer), f"{layer} {request_key(request)}")
    found = result_of(jobs, "sensitivities", uncompressed, request_key(uncompressed))
    sensitivity = charts.sensitivity_info(found if isinstance(found, tuple) else (), layer)
    if waits := any(job.task == "sensitivities" for job in jobs):
        sensitivity = replace(sensitivity, empty=BEING_MEASURED)
    height = max(HISTOGRAM_PIXELS, AROUND_ROWS_PIXELS + ROW_PIXELS * len(sensitivity.y.categories))
    if isinstance(anatomy, Anatomy):
        drawn = {"histogram": charts.histogram_info(anatomy), "sensitivity": sensitivity}
        with st.container(key="charts-layer"):
            drawing.charts_beside(drawn, (HISTOGRAM_PIXELS, height))
    if waits:
        st.caption("Sensitivity of each layer alone: being measured, as told at the end of this page.")
    key = f"coupled {request_key(uncompressed)}"
    job = tasks.pool().get(key)
    if job is None or not (job.over or tasks.is_stopped(key)):
        job = tasks.start("interactive", "coupled", uncompressed, key)
        jobs += [] if job.over else [job]
    edit(request, inspection)
    if tasks.is_stopped(key):
        tasks.held_back(key)
    else:
        coupled(job)


def coupled(job: Job) -> None:
    """Layers that give the same channels, changed together and one at a time."""
    if not job.over:
        return
    try:
        found = tasks.finished(job, tuple)
    except ParetoscopeError as error:  # an optional package that is not there, or a model it can't follow
        st.caption(f"Coupled layers are not known: {plain(error)}")
        return
    if not found:
        return
    st.subheader("Coupled layers")
    st.caption(
        "Layers whose output channels are tied. Divergence of the outputs (KL, nats) when all of them are "
        "pruned together to their share of 60 % sparsity, and the sum of when each is pruned alone."
    )
    drawing.table(
        group_rows(found),
        alt="Coupled layers: divergence when all of them change, and when each does alone",
        column_config={
            "layers": st.column_config.TextColumn(width="large"),
            "together": st.column_config.NumberColumn("together, nats", format="%.1e"),
            "apart": st.column_config.NumberColumn("each alone, summed, nats", format="%.1e"),
        },
    )


def edit(request: Request, inspection: Inspection) -> None:
    """The table of layers: its right half can be written to, and becomes part of the recipe."""
    st.subheader("Per-layer settings")
    with st.container(horizontal=True, vertical_alignment="center"):
        if request.recipe.layers:  # on the left: the table's own toolbar covers what is above its right end
            undo()
        st.caption(
            "The four columns on the right can be written to: double-click a cell, or press Enter on it. "
            "Where one is empty, the recipe's own setting holds.",
            width="stretch",
        )
    table = pd.DataFrame(layer_rows(inspection, request.recipe))
    shown = table.assign(layer=table["layer"].str.removesuffix(".weight"))  # as elsewhere on this page
    edited = st.data_editor(
        shown.astype({"own sparsity": float, "own bits": float}),  # also where nothing is in them yet
        key=f"layers {request.model} {session().layer_edits}",
        hide_index=True,
        height="content",
        placeholder=MISSING,
        alt="Per-layer settings",
        disabled=["layer", "kind", "weights", "zeros", "bits"],
        column_config={
            "layer": st.column_config.TextColumn(pinned=True),
            "weights": st.column_config.NumberColumn(format="localized"),
            "zeros": st.column_config.NumberColumn(
                format="%.1f %%",
                help="Weights that are zero under the recipe as a whole: removed, or rounded to 0",
            ),
            "own sparsity": st.column_config.NumberColumn(
                "sparsity override",
                format="%.4g %%",
                min_value=0,
                max_value=99,
                help="The share of its weights to remove",
            ),
            "own bits": st.column_config.SelectboxColumn("bits override", options=list(WEIGHT_BITS)),
            "own pruning": st.column_config.SelectboxColumn(
                "pruning override",
                options=[name for name, pruner in PRUNERS.items() if pruner.per_layer],
                format_func=lambda name: PRUNERS[str(name)].label,
            ),
            "own rounding": st.column_config.SelectboxColumn(
                "rounding override",
                options=list(QUANTIZERS),
                format_func=lambda name: QUANTIZERS[str(name)].label,
            ),
        },
    )
    drawing.how_to_swipe(len(shown.columns))
    with tasks.errors_in_words():
        wanted = overrides_of(edited.assign(layer=table["layer"]).to_dict("records"))
        if wanted != overrides_of(table.to_dict("records")):
            change(wanted)


def undo() -> None:
    if st.button("Clear overrides", icon=":material/layers_clear:"):
        change(())


def change(layers: tuple[Override, ...]) -> None:
    """Take other overrides, and show the page anew with a table that has none of its edits left."""
    visit = session()
    visit.recipe = replace(visit.recipe, layers=layers)
    visit.layer_edits += 1
    st.rerun()


main()
