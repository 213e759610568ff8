"""Latency: throughput against latency as one would serve it, and the kernels that really ran."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import streamlit as st

from optimizer import charts
from optimizer.analysis import afresh, coverage, load, serving, stored
from optimizer.analysis.badges import BadgeKind
from optimizer.analysis.coverage import Coverage
from optimizer.analysis.labels import engine_label
from optimizer.analysis.load import LoadRequest, LoadRun, best_rates, load_key
from optimizer.analysis.serving import BestServed, ServingRequest, ServingRun
from optimizer.analysis.summary import Summary, summarise
from optimizer.charts.spec import BEING_MEASURED
from optimizer.errors import ParetoscopeError
from optimizer.formats import MISSING, capital, count
from optimizer.methods.engines import REFERENCE_ENGINE, engine_info
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import Request
from pages import address, consent, drawing, sidebar, tasks
from pages.markup import plain
from pages.session import session

R_co = TypeVar("R_co", covariant=True)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CHART_PIXELS, PARTS_PIXELS, ROW_PIXELS, AROUND_ROWS_PIXELS = 400, 270, 22, 150
EMPTY_PIXELS = 200
INT8 = QuantizeSpec(weight_bits=8, activation_bits=8)
AGAINST_EAGER = " The last column is the ratio to torch eager, another engine: no baseline."
CHOICES = {"explore": "recipe of the Explore page", "int8": "int8 weights and activations"}


def main() -> None:
    chosen = sidebar.selection()
    st.header("Latency")
    sidebar.name_chosen(chosen)
    if sidebar.show_problem(chosen):
        return
    recipe = choose_recipe()
    request = Request(chosen.card.name, recipe, chosen.engine, chosen.data, chosen.settings)
    serve(request)
    under_load(request)
    threads = request.settings.threads
    st.subheader("Which kernels ran" + (f", on {count(threads, 'thread')}" if threads else ""))
    kernels(request)


def choose_recipe() -> Recipe:
    """The sliders' recipe, or int8: what most people come for."""
    explored = session().recipe.canonical()
    what = address.choice(
        "Recipe",
        CHOICES,
        "int8" if explored.identity else "explore",
        "what",
        help="Compared with the uncompressed model on the same engine, with the same threads and streams.",
    )
    recipe = Recipe(quantize=INT8).canonical() if what == "int8" else explored
    st.markdown(drawing.heading(recipe.describe()))
    return recipe


# Throughput against latency


def serve(request: Request) -> None:
    wanted, limit_ms = controls(request)
    try:
        grid = serving.configurations(wanted)
    except ParetoscopeError as error:
        st.error(plain(error), icon=":material/error:")
        return
    eager = request.engine != REFERENCE_ENGINE
    builds = "two builds of the uncompressed model"
    beside = f", {builds} and torch eager" if eager else f" and {builds}"
    words = (
        f"{count(len(grid), 'configuration')}; each times the recipe{beside}, interleaved. More streams than "
        "threads are left out."
    )
    keys = serving.serving_key(wanted), serving.serving_key(replace(wanted, quick=True))
    run, waits = run_or_offer(THROUGHPUT, wanted, keys, words)
    limit_ns = limit_ms * 1e6 if limit_ms else None
    best = serving.best_under(run, limit_ns) if run and limit_ns else None
    if run:
        drawing.badge_row(serving.badges(run))
    if best:
        st.markdown(f":material/{'flag' if best.met else 'block'}: **{plain(best.words)}**")
    if run and limit_ns and best and best.met:
        time_afresh(run, best, limit_ns)
    if run is None:
        empty = charts.serving_info(None)
        drawing.chart(replace(empty, empty=BEING_MEASURED) if waits else empty, "serving", EMPTY_PIXELS)
        return
    drawn = {"serving": charts.serving_info(run, limit_ns, best), "gains": charts.gains_info(run)}
    with st.container(key="charts-serving"):
        drawing.chart_row(drawn, max(CHART_PIXELS, AROUND_ROWS_PIXELS + ROW_PIXELS * len(grid)))
    drawing.sentences(serving.conclusions(run))
    with st.expander(f"Every configuration{', and torch eager beside it' if eager else ''}"):
        drawing.table(serving.rows(run), alt="Every configuration that was served")
        st.caption(
            "Ratios are to the uncompressed model on the same engine, with the same batch size, threads, "
            f"streams and folding.{AGAINST_EAGER if eager else ''}"
        )
    drawing.take_away("throughput", run, serving.frame, serving.as_json)


def time_afresh(run: ServingRun, best: BestServed, limit_ns: float) -> None:
    """The best of several once more, by itself, as soon as it is named."""
    wanted = afresh.alone(run, best)
    key = serving.serving_key(wanted)
    again = tasks.store().get_document("throughput", key, ServingRun)
    if again:
        st.markdown(plain(afresh.timed_afresh(best, again, limit_ns)))
    else:
        tasks.refresh_when_over(tasks.ask_for("throughput", wanted, key))


def controls(request: Request) -> tuple[ServingRequest, float | None]:
    counts = sidebar.thread_counts()
    cores = counts[-1]
    able = [engine.label for engine in serving.streaming_engines().values()]
    streaming = engine_info(request.engine).streams
    with st.container(horizontal=True, gap="medium"):
        batches = address.pills("Batch size", BATCHES, (1, 4, 16), "batches", help="Images in one request.")
        threads = address.pills(
            "Total threads",
            counts,
            [request.settings.threads or cores],
            "threads",
            help="Shared by the streams.",
        )
        streams = address.pills(
            "Streams",
            counts if streaming else [1],
            [1],
            "streams",
            help="Requests worked on at once, each with its share of the threads. More of them answer more "
            f"images a second, and each one later. Only {' and '.join(able)} {'have' if able[1:] else 'has'} "
            "them here.",
        )
        limit = st.number_input(
            "Latency limit, ms",
            min_value=0.001,
            max_value=60_000.0,
            value=None,
            step=0.1,
            placeholder="none",
            width=150,
            **address.in_address("limit_ms"),
            help="The best configuration under it is marked and named.",
        )
    full = st.toggle(
        "Measure in full",
        **address.in_address("full"),
        help="Ten times as long: narrower intervals, and percentiles also where few requests come.",
    )
    wanted = ServingRequest(
        request.model,
        request.recipe,
        request.engine,
        request.data,
        tuple(batches or [1]),
        tuple(threads or [cores]),
        tuple(streams or [1]) if streaming else (1,),
        quick=not full,
    )
    return wanted, limit


@dataclass(frozen=True, slots=True)
class Timing(Generic[R_co]):
    """What this page has timed when asked: the button that begins it, the task, and the record of a run, with
    its badges."""

    label: str
    task: str
    record: type[R_co]
    badges: Callable[[Any], dict[BadgeKind, str]]


THROUGHPUT = Timing("Measure", "throughput", ServingRun, serving.badges)
UNDER_LOAD = Timing("Measure under load", "load", LoadRun, load.badges)


def run_or_offer(
    timing: Timing[R_co], wanted: object, keys: tuple[str, str], words: str
) -> tuple[R_co | None, bool]:
    """What was measured under the first of ``keys``, until then under the second, the quick one; and whether
    it is being measured. Where it is not and was not, or is noisy, it is offered."""
    store, job = tasks.store(), tasks.pool().get(keys[0])
    waits = job is not None and not job.over  # before the store is read: a run that ends meanwhile is in it
    run = store.get_document(timing.task, keys[0], timing.record)
    if job is not None and waits:
        tasks.refresh_when_over([job])
    elif run is None:
        offer(timing.label, timing.task, wanted, keys[0], words)
    elif BadgeKind.NOISY in timing.badges(run):
        offer(f"{timing.label} again", timing.task, wanted, keys[0], "The machine was not quiet.")
    return run or store.get_document(timing.task, keys[1], timing.record), waits


def offer(label: str, task: str, wanted: object, key: str, words: str) -> None:
    """A button that has something measured, and what that is; why it failed, where it did."""
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(label, key=f"measure {task}", type="primary", icon=":material/play_arrow:"):
            tasks.pool().forget(key)
            tasks.start("measure", task, wanted, key)
            st.rerun()
        st.caption(words)
    tasks.show_failure(tasks.pool().get(key))


# Load as it comes


def under_load(request: Request) -> None:
    """Requests at random moments, queue included: what users of a server see."""
    st.subheader("Under load")
    full, limit_ms = bool(st.session_state.get("full")), st.session_state.get("limit_ms")
    settings = replace(request.settings, quick=not full)
    typed = st.text_input(
        "Rates, requests a second",
        placeholder="up to what the faster network can serve",
        width=340,
        **address.in_address("rates"),
        help="Up to twelve, such as 50, 100: what your server gets.",
    )
    if load.may_be_one(typed):
        several = " and ".join(part.strip() for part in typed.split(","))
        st.caption(f"Read as {several}: for one rate leave the comma out.")
    try:
        rates = load.read_rates(typed)
        wanted = LoadRequest(request.model, request.recipe, request.engine, request.data, settings, rates)
    except ParetoscopeError as error:
        st.error(plain(error), icon=":material/error:")
        return
    words = (
        "Requests come at random moments, whether the network is free or not. A request's time includes its "
        "wait."
    )
    keys = load_key(wanted), load_key(replace(wanted, settings=replace(settings, quick=True)))
    run, _ = run_or_offer(UNDER_LOAD, wanted, keys, words)
    if run is None:
        return
    drawing.badge_row(load.badges(run))
    limit_ns = limit_ms * 1e6 if limit_ms else None
    if limit_ns:
        for best in best_rates(run, limit_ns):
            icon = "flag" if best.rate else "block"
            st.markdown(f":material/{icon}: **{plain(capital(best.words))}.**")
    info = charts.load_info(run, limit_ns)
    drawing.chart(info, "load", CHART_PIXELS if info.series else EMPTY_PIXELS)
    drawing.sentences(load.conclusions(run))
    drawing.take_away("load", run, load.frame, load.as_json)


# Kernels


def kernels(request: Request) -> None:
    key = coverage.coverage_key(request)
    run = tasks.store().get_document("coverage", key, Coverage)
    if run is None:
        work = consent.work_of(request, sidebar.selection().card)
        tasks.refresh_when_over(tasks.ask_for("coverage", request, key, work))
        return
    measured = stored.best(tasks.store(), request)
    parts, info = charts.parts_info(run), charts.kernels_info(run)
    height = max(PARTS_PIXELS, AROUND_ROWS_PIXELS + ROW_PIXELS * len(info.y.categories))
    with st.container(key="charts-kernels"):
        drawing.charts_beside({"parts": parts, "kernels": info}, (PARTS_PIXELS, height))
    drawing.sentences(coverage.conclusions(run, summarise(measured).latency if measured else None))
    with st.expander("Every operation"):
        drawing.table(
            coverage.frame(run),
            placeholder=MISSING,
            alt="Every operation that ran",
            column_config={"share": st.column_config.NumberColumn(format="percent")},
        )
    if measured:
        repeat(summarise(measured))
    drawing.take_away("kernels", run, coverage.frame, coverage.as_json)


def repeat(summary: Summary) -> None:
    """How to have the latency from an instrument that is not ours."""
    if summary.repeat:
        with st.expander("Repeat the latency with another instrument"):
            engine = engine_label(summary.request.engine)
            st.markdown(
                f"A call takes {summary.text('latency')} here. Export the model as {engine} files "
                "(Explore, *Export*), unpack them, and run:"
            )
            st.code(summary.repeat, language="bash", wrap_lines=True)
            words = "Its median is of calls that follow each other, as ours."
            st.caption(f"{words} On a quiet machine both agree within 3 %.")


main()
