"""A grid of configurations: asked for, shown while it is measured, and taken further. (Not a page.)"""

from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from optimizer import charts
from optimizer.analysis import frame, stored
from optimizer.analysis.frame import Column
from optimizer.analysis.frontier import frontier_of, ranked_words
from optimizer.analysis.labels import engine_label
from optimizer.analysis.summary import Summary
from optimizer.errors import InputError
from optimizer.export.report import report
from optimizer.formats import capital, count
from optimizer.methods.engines import ENGINES
from optimizer.methods.pruners import PRUNERS
from optimizer.methods.quantizers import quantizer_info
from optimizer.recipe import NORMAL, WEIGHT_BITS, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import Request, decode, encode
from optimizer.search.answers import describe
from optimizer.search.drain import screening_key
from optimizer.search.questions import seconds_left
from optimizer.search.sweep import STARTER_BITS, STARTER_SPARSITIES, Grid, any_amount, is_frontier_only
from optimizer.store import ledger
from optimizer.store.items import Item, Sweep
from optimizer.store.keys import request_keys
from pages import address, backlog, consent, devices, drawing, sidebar, sweep_comparison, tasks
from pages.markup import plain
from pages.session import session

SHARES = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
"""Percent of the weights."""
ACTIVATIONS = (32, 8)
CHARTS = ("frontiers", "parallel coordinates")
VIEWS = ("all", "on the frontier", "not measured")
COLUMNS = (
    Column.ENGINE, Column.RECIPE, *frame.ACCURACIES, *frame.AGREEMENTS, *frame.FIDELITIES,
    Column.COMPRESSED, Column.LATENCY, Column.RATIO, Column.VERDICT, Column.FRONTIER, Column.BADGES,
    Column.FILE, Column.PACKED,
)  # fmt: skip


def ask() -> int | None:
    """A grid, how long it takes, and a button that starts it or adds it to a sweep that is there: the
    sweep's number, once it is pressed."""
    chosen, extended = sidebar.selection(), session().extends
    there = None if extended is None else ledger.find(tasks.store(), extended)
    before = there and decode(there.asked, Grid)
    if before:
        st.caption(
            plain(
                f"Adds to what was asked for: {before.base.model}, {before.base.recipe.prune.pruner.label}."
            )
        )
    else:
        if sidebar.show_problem(chosen):
            return None
        sidebar.name_chosen(chosen, "")
    runnable = sidebar.runnable_engines()
    left, right = st.columns(2)
    with left:
        method = st.selectbox(
            "Method",
            [NORMAL.prune.method, *(name for name in PRUNERS if name != NORMAL.prune.method)],
            **address.in_address("sweep_method", lambda name: PRUNERS[name].label),
            disabled=before is not None,
            help=" ".join(f"{pruner.label}: {pruner.help}" for pruner in PRUNERS.values())
            + " Other options are those of the Explore page, if the same method is chosen there.",
        )
        shares = address.pills(
            "Sparsity, %", SHARES, [round(100 * one) for one in STARTER_SPARSITIES], key="sweep_shares"
        )
        bits = address.pills("Weight bits", WEIGHT_BITS[::-1], STARTER_BITS, key="sweep_bits")
    with right:
        engines = address.pills(
            "Engines", runnable, [chosen.engine], key="sweep_engines", words=lambda name: ENGINES[name].label
        )
        activations = address.pills("Activation bits", ACTIVATIONS, [32], key="sweep_activations")
        chosen_on = (there.device, "") if there else devices.time_on()
    if chosen_on is None:
        return None
    on, processor = chosen_on
    with right:
        only = frontier_only(disabled=bool(on) or before is not None) and not on
    base = Request(chosen.card.name, recipe_of(method), chosen.engine, chosen.data, chosen.settings)
    base = before.base if before else base
    amounts = tuple(one / 100 for one in shares)
    asked = Grid(base, amounts, tuple(bits), tuple(activations), tuple(engines), processor, only)
    try:
        asked = asked.beside(before) if before else asked
        requests = asked.requests()
    except InputError as error:
        st.info(plain(error), icon=":material/info:")
        return None
    keyed = dict(zip(request_keys(requests, on), requests, strict=True))
    over = tasks.store().known(keyed)
    if there:  # nor is what was screened out, was cancelled or has failed begun again by this
        over |= {item.key for item in ledger.items(tasks.store(), there.id) if not item.open}
    missing = [keyed[key] for key in keyed.keys() - over]
    each = ledger.seconds_each(tasks.store(), base, on)
    at_once = 1 if each is None else devices.slots_of(on, len(missing))
    # A sweep that is added to may be of another model.
    card = sidebar.catalogue().cards.get(base.model, chosen.card)
    seconds = consent.seconds_of(missing, each, card) / at_once
    words = f"**{count(len(keyed), 'configuration')}, {len(missing):,} to measure"
    with right:
        st.markdown(f"{words}: {consent.in_words(seconds)}.**" if missing else f"{words}.**")
        with st.container(horizontal=True):
            begin = "Start" if missing else "Show the results"
            label = begin if extended is None else f"Extend sweep {extended}"
            if st.button(label, type="primary", icon=":material/play_arrow:"):
                return start(asked, requests, extended, on)
            if extended is not None and st.button("A new sweep instead", icon=":material/add:"):
                session().extends = None
                st.rerun()
    return None


def frontier_only(disabled: bool) -> bool:
    """Whether what can't be on the frontier is left out. On another machine nothing is, and a sweep that is
    added to stays what it is."""
    return st.checkbox(
        "Frontier only",
        disabled=disabled,
        help="Measures only what can be on the frontier of accuracy, zstd size and latency, small "
        "configurations first. One with the same latency as a smaller one is left out once it has made as "
        "many errors as the smaller one made on all images: the frontier stays the same. What is left out is "
        "listed under *not measured*. With sparse kernels, removed channels, or on another machine, all "
        "configurations are measured.",
        **address.in_address("sweep_frontier_only"),
    )


def recipe_of(method: str) -> Recipe:
    """How to prune and to round: as on the Explore page where its method is this one, else as is usual."""
    explored = session().recipe
    if explored.prune.method == method and explored.prune.threshold is None:
        return any_amount(explored)
    if method == NORMAL.prune.method:
        return NORMAL
    pruner = PRUNERS[method]
    rounding = quantizer_info(pruner.rounding)
    return Recipe(
        PruneSpec(method, allocation=pruner.allocation), QuantizeSpec(rounding.name, range=rounding.range)
    )


def start(asked: Grid, requests: Sequence[Request], extended: int | None, on: str) -> int:
    if extended is None:
        return backlog.begin_sweep(asked, on)
    ledger.extend(tasks.store(), extended, encode(asked), requests)
    backlog.ring()
    return extended


# One sweep


def show(sweep: Sweep) -> None:
    """How far it is, and what came of it."""
    items = ledger.items(tasks.store(), sweep.id)
    results = results_of(items)
    if sweep.open:
        backlog.follow(sweep, lambda now: st.progress(now.over / now.total, plain(standing(now))))
    other = sweep_comparison.chosen(sweep) if results else None
    theirs = results_of(ledger.items(tasks.store(), other.id)) if other else {}
    if results:
        draw(list(results.values()), {f"entry {other.id}": [*theirs.values()]} if other else {})
    if results or not sweep.open:
        table(sweep, items, results, theirs)


def results_of(items: Sequence[Item]) -> dict[str, Summary]:
    """What of them is measured, by key."""
    found = stored.summaries_of(tasks.store(), [item.key for item in items])
    return {summary.key: summary for summary in found}


def buttons(sweep: Sweep) -> int | None:
    """What to do with a grid; the number of another that was started by that. Without a cluster, no dashboard
    works on one that is timed on other machines."""
    if sweep.device and backlog.cluster() is None:
        if sweep.state != "done":
            st.code(
                f"paretoscope sweep --resume {sweep.id} --cluster ADDRESS", language="sh", width="content"
            )
        return None
    left = sweep.counts.get("cancelled", 0) + sweep.counts.get("failed", 0)
    if left and st.button(
        f"Resume ({left:,})",
        icon=":material/play_arrow:",
        key=f"resume {sweep.id}",
        help="What was cancelled or has failed is tried again.",
    ):
        ledger.resume(tasks.store(), sweep.id)
        backlog.ring()
        st.rerun()
    again = not sweep.open and st.button(
        "Repeat",
        icon=":material/replay:",
        help="A new sweep that asks for the same: what is measured already is taken from the store.",
    )
    st.button(
        "Extend",
        icon=":material/add:",
        on_click=extend,
        args=(sweep,),
        help="Ask for more sparsities, bit widths or engines.",
    )
    if not again:
        return None
    if is_measured(sweep):
        st.toast(
            "All of it is measured already, on the same images, by today's code and libraries.",
            icon=":material/check:",
        )
        return None
    number = ledger.repeat(tasks.store(), sweep.id, backlog.who())
    backlog.ring()
    return number


def is_measured(sweep: Sweep) -> bool:
    """Whether all that it asks for has a result of today's images, code and libraries."""
    requests = [item.request for item in ledger.items(tasks.store(), sweep.id) if item.request]
    keys = set(request_keys(requests, sweep.device))
    return tasks.store().known(keys) == keys


def extend(sweep: Sweep) -> None:
    """Set the controls to what a sweep asked for."""
    with tasks.errors_in_words():
        asked = decode(sweep.asked, Grid)
        st.session_state["sweep_method"] = asked.base.recipe.prune.method
        st.session_state["sweep_shares"] = [one for one in SHARES if one / 100 in asked.sparsities]
        st.session_state["sweep_bits"] = [one for one in WEIGHT_BITS[::-1] if one in asked.weight_bits]
        st.session_state["sweep_activations"] = list(asked.activation_bits)
        st.session_state["sweep_engines"] = list(asked.engines)
        st.session_state["sweep_frontier_only"] = asked.frontier_only
        session().extends = sweep.id


def standing(sweep: Sweep) -> str:
    """In words: how many are over, how long the others take, what runs and who comes first."""
    store = tasks.store()
    items = ledger.items(store, sweep.id)
    line = ledger.line(store, sweep.id)
    words = [f"{sweep.over:,} of {sweep.total:,}"]
    if failed := sweep.counts.get("failed"):
        words.append(f"{failed:,} failed")
    if out := sweep.counts.get("screened out"):
        words.append(f"{out:,} screened out")
    left = [item.request for item in items if item.open and item.request]
    if left and (each := ledger.seconds_each(store, left[0], sweep.device)):
        others = line.before_last - len(line.questions)
        number = len(left) + max(0, others)
        seconds = each * number / devices.slots_of(sweep.device, number)
        seconds += seconds_left(store, (*line.questions, *line.at_work))
        most = "at most " if is_frontier_only(sweep.asked) else ""
        words.append(f"{most}{consent.in_words(seconds)} left")
    running = [item for item in items if item.state == "running"]
    for item in running:
        if item.request:
            job = tasks.pool().get(screening_key(item)) or tasks.pool().get(item.key)
            words.append(f"now: {item.request.recipe.describe(details=False)}")
            if job and (message := tasks.waiting_words(job) if job.state == "queued" else job.message):
                words[-1] += f", {message}"
    if line.before_next and not running:
        words.append(f"{count(line.before_next, 'configuration')} of others first")
        if not sweep.device and (now := tasks.doing_now("measure")):
            words.append(f"now: {now}")
    return " · ".join(words)


def draw(results: Sequence[Summary], others: Mapping[str, Sequence[Summary]]) -> None:
    """The frontiers over size and time, so far, of which a click takes a point; or all axes side by side.
    With those of ``others``, by name."""
    chart = st.segmented_control(
        "Chart", CHARTS, default=CHARTS[0], required=True, key="sweep_chart", label_visibility="collapsed"
    )
    if chart != CHARTS[0]:
        drawing.chart(charts.parallel_info(results), "sweep parallel", 340)
        return
    taken = session().swept or None
    drawn = {
        f"sweep {cost}": charts.frontiers_info({"this sweep": results, **others}, taken, cost)
        if others
        else charts.frontier_info(results, taken, cost)
        for cost in ("compressed_size", "latency")
    }
    drawing.chart_row(drawn, 300, on_click=take)
    for name, theirs in others.items():
        st.caption(sweep_comparison.words(results, theirs, name))


def take(key: str) -> None:
    session().swept = key


def table(
    sweep: Sweep, items: Sequence[Item], results: dict[str, Summary], theirs: dict[str, Summary]
) -> None:
    """Every result, or those on the frontier; what was not measured, and why. Of another sweep, ``theirs``,
    what was clicked."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        view = st.segmented_control("Results", VIEWS, default="all", required=True, key="sweep_view")
        shown = measured = list(results.values())
        if view == "on the frontier":
            best = frontier_of(shown)
            shown = [
                one
                for one, optimal, tied in zip(shown, best.optimal, best.tied, strict=True)
                if optimal or tied
            ]
        keys, store = [one.key for one in shown], tasks.store()
        drawing.export_menu(keys, f"sweep {sweep.id}")
        title = f"{capital(sweep.title)}: {describe(sweep)}"
        drawing.report_button(
            lambda: report(stored.several(store, keys), title),
            f"sweep-{sweep.id}",
            "verdicts",
            disabled=not shown,
        )
    if view == "not measured":
        rows = rows_of([item for item in items if item.key not in results])
        drawing.table(pd.DataFrame(rows)) if rows else st.caption("Everything is measured.")
        return
    if not measured:
        st.caption("Nothing is measured yet.")
        return
    if view == "on the frontier":
        st.caption(f"Ranked by {ranked_words(measured)}.")
    if out := sweep.counts.get("screened out"):
        st.caption(f"{count(out, 'configuration')} screened out: can't be on the frontier.")
    actions((theirs | results).get(session().swept))
    made = frame.table(shown)
    recipes = [result.request.recipe for result in shown]
    made[Column.RECIPE.label] = charts.brief([(one.describe(False), one.describe()) for one in recipes])
    wanted = [
        column.label for column in COLUMNS if column is not Column.ENGINE or made[column.label].nunique() > 1
    ]

    def take_row() -> None:
        for number in st.session_state["sweep_table"].selection.rows:
            take(keys[number])

    drawing.table(
        made,
        column_order=wanted,
        column_config=drawing.RECIPE_COLUMN,
        on_select=take_row,
        selection_mode="single-row",
        key="sweep_table",
    )


def rows_of(items: Sequence[Item]) -> list[dict[str, str]]:
    """What is not measured, and why."""
    requests = [item.request for item in items]
    recipes = [(one.recipe.describe(False), one.recipe.describe()) if one else ("", "") for one in requests]
    return [
        {
            "recipe": words,
            "engine": engine_label(one.engine) if one else "",
            "state": item.state,
            "why": item.message,
        }
        for item, one, words in zip(items, requests, charts.brief(recipes), strict=True)
    ]


def actions(result: Summary | None) -> None:
    """What to do with the result that was clicked."""
    with st.container(horizontal=True, vertical_alignment="center"):
        if result is None:
            points = st.session_state.get("sweep_chart", CHARTS[0]) == CHARTS[0]  # a line can't be clicked
            how = "Click a point or tick a row" if points else "Tick a row"
            st.caption(f":material/touch_app: {how} to open it in Explore or pin it.")
            return
        words = f"{result.description} on {engine_label(result.request.engine)}"
        st.markdown(drawing.heading(words), width="content")
        st.page_link(
            "pages/explore.py",
            label="Open in Explore",
            icon=":material/tune:",
            query_params={sidebar.OPEN: result.key},
        )
        if st.button("Pin for Compare", icon=":material/keep:"):
            address.pin(result.key)
