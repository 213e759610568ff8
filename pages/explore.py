"""Explore: drag a slider, and see accuracy, size and latency measured."""

from dataclasses import replace

import streamlit as st

from optimizer import charts
from optimizer.executors import Job
from optimizer.frame import summarise
from optimizer.headline import headlines
from optimizer.keys import request_key, request_keys
from optimizer.recipe import (
    ACTIVATION_BITS,
    GRANULARITIES,
    SCOPES,
    WEIGHT_BITS,
    PruneSpec,
    QuantizeSpec,
    Recipe,
)
from optimizer.records import Inspection, Request, Result, Settings
from optimizer.sweep import STARTER_BITS, STARTER_SPARSITIES, grid
from pages import common

INSPECTION_SECONDS = 0.5


def main() -> None:
    chosen = common.selection()
    recipe = controls()
    if chosen.problem:
        st.info(chosen.problem, icon=":material/info:")
        return
    request = Request(chosen.card.name, recipe, chosen.engine, chosen.data)
    result = common.measured(request)
    asked = [] if result else ask(request)
    cards(request, result)
    results = common.store().results(request.model, request.data, request.engine)
    started = toolbar(request, result, results)
    common.refresh_when_over(asked, started)
    draw(results, result, recipe)


def controls() -> Recipe:
    """The sliders. Each has a default that works; the rest waits behind *More*."""
    mode, prune, bits, activations, more = st.columns([5, 8, 8, 4, 3], vertical_alignment="bottom")
    with mode:
        by = st.segmented_control(
            "Prune by",
            ["sparsity", "threshold"],
            default="sparsity",
            required=True,
            **common.in_address("by"),
            format_func=str.capitalize,
            help="Both say which small weights go: a share of them, or all with |w| ≤ t.",
        )
    with prune:
        if by == "sparsity":
            percent = st.slider(
                "Sparsity",
                0,
                99,
                0,
                format="%d %%",
                **common.in_address("sparsity"),
                help="The share of weights that is set to zero, smallest first.",
            )
        else:
            threshold = st.slider(
                "Threshold",
                0.0,
                0.5,
                0.0,
                0.002,
                format="|w| ≤ %.3f",
                **common.in_address("threshold"),
                help="Every weight of at most this magnitude is set to zero.",
            )
    with bits:
        weight_bits = st.select_slider(
            "Weight bits",
            WEIGHT_BITS,
            32,
            **common.in_address("bits"),
            help="2 to 8 round to an integer grid, 16 is half precision, 32 leaves the weights alone.",
        )
    with activations:
        activation_bits = st.segmented_control(
            "Activation bits",
            ACTIVATION_BITS,
            default=32,
            required=True,
            **common.in_address("activations"),
            help="8-bit weights and activations run on int8 kernels.",
        )
    with more, st.popover("More"):
        scope = st.segmented_control(
            "Sparsity holds",
            SCOPES,
            default="global",
            required=True,
            **common.in_address("scope"),
            format_func={"layer": "in each layer", "global": "over all weights"}.__getitem__,
        )
        granularity = st.segmented_control(
            "One grid",
            GRANULARITIES,
            default="channel",
            required=True,
            **common.in_address("granularity"),
            format_func="a {}".format,
        )
        asymmetric = st.toggle("Asymmetric grid, with a zero point", **common.in_address("asymmetric"))
        least_squares = st.toggle(
            "Range by least squared error", **common.in_address("mse"), help="Else by the largest |w|."
        )
    return Recipe(
        PruneSpec(sparsity=percent / 100 or None, scope=scope)
        if by == "sparsity"
        else PruneSpec(threshold=threshold or None, scope=scope),
        QuantizeSpec(
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            granularity=granularity,
            symmetric=not asymmetric,
            range="mse" if least_squares else "absmax",
        ),
    )


def ask(request: Request) -> list[Job]:
    """Have a position measured; what this visitor asked for before and did not wait for is dropped."""
    before = st.session_state.get("asked")
    if before and before != request_key(request):
        waiting = common.pool().get(before)
        if waiting and waiting.state == "queued":
            common.pool().cancel(before)
    key = st.session_state["asked"] = request_key(request)
    job = common.pool().get(key)
    if job and job.state == "failed":  # not tried again by itself: it would fail for ever
        st.error(job.error, icon=":material/error:")
        if not st.button("Try again", icon=":material/refresh:"):
            return []
    return [common.submit(request)]


def inspection(request: Request, result: Result | None) -> Inspection | None:
    """Exact counts and sizes: at once, before any image is run."""
    if result:
        return result.inspection
    plain = replace(request, settings=Settings())
    job = common.pool().submit("inspect", "inspect", plain, f"inspect {request_key(plain)}")
    common.pool().wait(job, INSPECTION_SECONDS)
    return common.finished(job, Inspection) if job.over else None


def cards(request: Request, result: Result | None) -> None:
    """Four figures, each with its interval; what is still being measured is a dash."""
    summary = summarise(result) if result else None
    columns = st.columns(4)
    for column, headline in zip(columns, headlines(summary, inspection(request, result)), strict=True):
        with column:
            common.card(headline)


def draw(results: list[Result], result: Result | None, recipe: Recipe) -> None:
    """The four curves, with the point under the sliders on each."""
    key = result.key if result else None
    cursor = 100 * recipe.prune.sparsity if recipe.prune.sparsity and not result else None
    left, right = st.columns(2)
    with left:
        common.chart(charts.accuracy_info(results, key, cursor), "accuracy")
        common.chart(charts.latency_info(results, key, cursor), "latency")
    with right:
        common.chart(charts.size_info(results, key), "size")
        common.chart(charts.frontier_info(results, key), "frontier")


def toolbar(request: Request, result: Result | None, results: list[Result]) -> list[Job]:
    """How far to trust this position and what to do with it; gives the jobs that its buttons started."""
    full = replace(request, settings=Settings(quick=False))
    wanted = grid(_unpruned(request), STARTER_SPARSITIES, STARTER_BITS)
    done = {one.key for one in results}
    missing = {key: one for key, one in zip(request_keys(wanted), wanted, strict=True) if key not in done}
    swept = [job for key in missing if (job := common.pool().get(key)) and not job.over]
    with st.container(horizontal=True, vertical_alignment="center"):
        words = request.recipe.describe()
        st.markdown(f"**{words[0].upper()}{words[1:]}**", width="content")
        if result:
            common.badges(summarise(result))
        if st.button(
            "Measure in full",
            icon=":material/timer:",
            disabled=not result or not result.latency.quick,
            help="About 12 seconds of timing in place of the sliders' short one: percentiles, resident "
            "memory, and intervals to rely on.",
        ):
            common.submit(full)
        if st.button("Pin for Compare", icon=":material/keep:", disabled=not result) and result:
            common.pin(result.key)
        common.export_menu(results, request.model)
        if swept:
            if st.button("Stop", icon=":material/stop:", help="Stop filling the curves."):
                for job in swept:
                    common.pool().cancel(job.key)
                st.rerun()
        elif missing and st.button(
            f"Fill the curves ({len(missing)} to measure)",
            icon=":material/grid_on:",
            help="Measures sparsities "
            + ", ".join(f"{sparsity:.0%}" for sparsity in STARTER_SPARSITIES)
            + " at "
            + ", ".join(map(str, STARTER_BITS))
            + " bits, with the other settings as they are.",
        ):
            for one in missing.values():
                common.submit(one, common.BACKGROUND)
            st.rerun()
    if swept:
        measured = len(wanted) - len(missing)
        st.progress(measured / len(wanted), f"Filling the curves: {measured} of {len(wanted)} measured")
    job = common.pool().get(request_key(full))
    return [*swept, *([job] if job and not job.over else [])]


def _unpruned(request: Request) -> Request:
    spec = PruneSpec(scope=request.recipe.prune.scope)
    return replace(request, recipe=replace(request.recipe, prune=spec))


main()
