"""Layers: one layer's weights, what each layer is worth, and what a layer has to itself."""

from dataclasses import replace

import pandas as pd
import streamlit as st

from optimizer import charts
from optimizer.executors import Job
from optimizer.headline import layer_rows, overrides_of
from optimizer.keys import request_key
from optimizer.recipe import PRUNING, ROUNDING, WEIGHT_BITS, Recipe
from optimizer.records import Anatomy, Inspection, Request, Settings
from pages import common

WAIT_SECONDS = 0.5


def main() -> None:
    chosen = common.selection()
    st.header("Layers")
    if chosen.problem:
        st.info(chosen.problem, icon=":material/info:")
        return
    layers = common.overrides(chosen.card.name)
    way: Recipe = st.session_state.get("way", Recipe())
    recipe = replace(way, layers=layers).canonical()
    request = Request(chosen.card.name, recipe, chosen.engine, chosen.data, Settings())
    words = recipe.describe()
    st.markdown(f"**{words[0].upper()}{words[1:]}**, as set under Explore")
    jobs: list[Job] = []
    inspection = told(jobs, "inspect", request, request_key(request))
    if isinstance(inspection, Inspection):
        draw(request, inspection, jobs)
    common.refresh_when_over([job for job in jobs if not job.over])


def told(jobs: list[Job], task: str, request: object, key: str) -> object | None:
    """What a short task says; None while it runs, or with its error shown. Its job joins ``jobs``."""
    job = common.pool().submit("inspect", task, request, f"{task} {key}")
    common.pool().wait(job, WAIT_SECONDS)
    jobs.append(job)
    if not job.over:
        return None
    with common.errors_in_words():
        return common.finished(job, object)
    return None


def draw(request: Request, inspection: Inspection, jobs: list[Job]) -> None:
    names = [layer.name for layer in inspection.layers]
    layer = st.selectbox(
        "Layer",
        names,
        **common.in_address("layer"),
        format_func=lambda name: name.removesuffix(".weight"),
    )
    plain = replace(request, recipe=Recipe())
    left, right = st.columns(2)
    with left:
        anatomy = told(jobs, "anatomy", (request, layer), f"{layer} {request_key(request)}")
        if isinstance(anatomy, Anatomy):
            common.chart(charts.histogram_info(anatomy), "histogram", 320)
    with right:
        found = told(jobs, "sensitivities", plain, request_key(plain))
        if isinstance(found, tuple):
            common.chart(charts.sensitivity_info(found, layer), "sensitivity", max(320, 90 + 18 * len(names)))
    edit(request, inspection)


def edit(request: Request, inspection: Inspection) -> None:
    """The table of layers: its right half can be written to, and becomes part of the recipe."""
    st.subheader("What each layer got, and what it has to itself")
    version = st.session_state.setdefault("layer table", 0)
    rows = layer_rows(inspection, request.recipe)
    edited = st.data_editor(
        pd.DataFrame(rows),
        key=f"layers {request.model} {version}",
        hide_index=True,
        disabled=["layer", "kind", "weights", "removed", "bits"],
        column_config={
            "weights": st.column_config.NumberColumn(format="compact"),
            "removed": st.column_config.NumberColumn(format="%.1f %%", help="By the recipe as a whole"),
            "own sparsity": st.column_config.NumberColumn(
                format="%.0f %%", min_value=0, max_value=99, step=1, help="Empty: as the recipe says"
            ),
            "own bits": st.column_config.SelectboxColumn(options=list(WEIGHT_BITS)),
            "own pruning": st.column_config.SelectboxColumn(options=list(PRUNING)),
            "own rounding": st.column_config.SelectboxColumn(options=list(ROUNDING)),
        },
    )
    with common.errors_in_words():
        wanted = overrides_of(edited.to_dict("records"))
        if wanted != request.recipe.layers:
            common.set_overrides(request.model, wanted)
            st.session_state["layer table"] = version + 1
            st.rerun()
    if wanted and st.button("All layers as the rest", icon=":material/layers_clear:"):
        common.set_overrides(request.model, ())
        st.session_state["layer table"] = version + 1
        st.rerun()


main()
