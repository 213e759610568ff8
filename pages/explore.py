"""Explore: drag a slider, and see accuracy, size and latency measured.

Over 400 lines: sliders, cards and charts are of one position, and are drawn anew as it becomes known.
"""

import time
from dataclasses import replace

import streamlit as st

from optimizer import charts
from optimizer.analysis import stored
from optimizer.analysis.frame import timed_alike
from optimizer.analysis.headline import Headline, headlines
from optimizer.analysis.labels import engine_label
from optimizer.analysis.summary import Summary, summarise, summarise_scores
from optimizer.charts.spec import BEING_MEASURED, NO_RESULTS, Lines
from optimizer.formats import capital, count, format_share
from optimizer.recipe import PRESETS, Recipe
from optimizer.records import Inspection, Known, Request, Result, Settings, encode
from optimizer.search.presets import Found
from optimizer.search.sweep import STARTER_BITS, STARTER_SPARSITIES, any_amount, neighbours, works_ahead
from optimizer.store import ledger
from optimizer.store.items import Sweep
from optimizer.store.keys import of_today, request_key, request_keys
from optimizer.system.process_pool import Job
from pages import address, backlog, consent, controls, drawing, sidebar, tasks
from pages.markup import plain
from pages.session import SidebarChoice, session

INSPECTION_SECONDS = 0.25
"""The page waits for counts and sizes before it is drawn; then they follow."""
LIVE_SECONDS = 0.1
"""Between two looks at what is known of a position."""
AHEAD_SECONDS = 2.0
"""A visitor who looks at a result for so long is not on the way to another."""
OTHER_THREADS = "Nothing timed with these threads yet.<br>Move a slider, to time a configuration with them."
PATIENCE_SECONDS = 4.0
"""The charts mark a position when it is measured, or when that takes longer."""


def main() -> None:
    chosen = sidebar.selection()
    title()
    sidebar.name_chosen(chosen)
    take_link()
    take_preset(chosen)
    visit = session()
    recipe = visit.recipe = replace(controls.read_recipe(chosen.card.name), layers=visit.recipe.layers)
    if sidebar.show_problem(chosen):
        return
    request = Request(chosen.card.name, recipe.canonical(), chosen.engine, chosen.data, chosen.settings)
    move_to(request)
    above, below = st.container(), st.container()  # charts that keep their place are not drawn anew
    with above:
        result = stored.best(tasks.store(), request)
        asked = [] if result else ask(request)
        cards(request, result, asked)
        newest = stored.summaries(tasks.store(), request.model, request.data, limit=drawing.MAX_DRAWN)
        more = len(newest) == drawing.MAX_DRAWN
        everywhere = of_today(request.model, newest)
        if result and result.key not in {one.key for one in everywhere}:
            everywhere.append(summarise(result))
        results = [one for one in everywhere if one.request.engine == request.engine]
        started, filling = toolbar(request, recipe, result, results)
        if result and (again := stored.timed_again(tasks.store(), result)):
            timed_once_more(summarise(again))
        tasks.refresh_when_over([*asked, *started])
        busy = bool(asked or started) or filling
        if result:
            work_ahead(request, busy)
    with below:
        timed = timed_alike(everywhere, request.settings)
        draw(results, timed, *marked(result, results, recipe, asked), busy)
        if more:
            st.caption(f"The {count(drawing.MAX_DRAWN, 'result')} of this model that were measured last.")


def title() -> None:
    """On one line, so that the charts keep their place on a laptop's screen."""
    with st.container(key="title", horizontal=True, vertical_alignment="center"):
        st.header("Explore", width="content")
        st.caption("Prune and quantize a pretrained model, and see what that costs and buys on this machine.")


def timed_once_more(again: Summary) -> None:
    """A time that is newer than the one of the card and the charts; why it is noisy is a tooltip, as of a
    badge."""
    noisy = ", noisy" if again.noise else ""
    words = f"Timed again by a search or a preset: {again.text('latency')}{noisy}."
    st.caption(plain(words), help=f"{plain('; '.join(again.noise))}." if again.noise else None)


def take_preset(chosen: SidebarChoice) -> None:
    """Set the sliders to what a preset's search has found: before they are drawn, or it would be too late.
    What it found for another model, engine or images than those chosen by now is only told."""
    visit = session()
    job = visit.preset  # the job itself: another visitor may wait for it too
    if job is None or not (job.over or tasks.is_stopped(job.key)):
        return
    visit.preset = None
    if job.state == "cancelled" or tasks.is_stopped(job.key):
        return
    with tasks.errors_in_words():
        found = tasks.finished(job, Found)
        request, words = found.result.request, found.words
        if (request.model, request.engine, request.data) == (chosen.card.name, chosen.engine, chosen.data):
            controls.set_widgets(controls.with_defaults(request.recipe))
            visit.recipe = replace(visit.recipe, layers=())
        else:
            words = f"For {request.model} on {engine_label(request.engine)}, chosen before: {words}"
        icon = ":material/check:" if found.met else ":material/warning:"
        st.toast(plain(words), icon=icon, duration="long")


def take_link() -> None:
    """Set the sliders to what a link brought along, also one to another page."""
    visit = session()
    linked, visit.linked_recipe = visit.linked_recipe, None
    if linked is not None:
        for words in controls.set_widgets(linked):
            told = f"The link asks for what the controls can't show: {words}."
            st.toast(told, icon=":material/info:", duration="long")


def ask(request: Request) -> list[Job]:
    """Have a position measured."""
    work = consent.work_of(request, sidebar.selection().card)
    return [] if tasks.held_back(session().asked, work) else [tasks.submit_position(request)]


def move_to(request: Request) -> None:
    """What this visitor asked for before, or would perhaps have asked for next, is not wanted any more."""
    visit, key = session(), request_key(request)
    if visit.asked != key:
        tasks.move_on({visit.asked, *tasks.only_ahead(visit.ahead or ())} - {key})
        visit.asked, visit.asked_at, visit.seen_at, visit.ahead = key, time.monotonic(), 0.0, None


def work_ahead(request: Request, busy: bool) -> None:
    """Measure the positions beside this one while the visitor looks, unless ``busy`` otherwise."""
    visit = session()
    visit.seen_at = visit.seen_at or time.monotonic()
    if busy:
        tasks.move_on(tasks.only_ahead(visit.ahead or ()))
        visit.ahead = None
        return
    visit.shown |= visit.ahead or set()
    if visit.ahead is not None or not works_ahead():
        return

    @st.fragment(run_every=AHEAD_SECONDS)
    def begin() -> None:
        if time.monotonic() < visit.seen_at + AHEAD_SECONDS:
            return
        wanted = [one for one in neighbours(request) if tasks.store().best(one) is None]
        visit.ahead = frozenset(map(request_key, wanted))
        for one in wanted:
            tasks.submit_ahead(one)
        st.rerun()  # without this, which would ask again for ever

    begin()


def inspection(request: Request, asked: list[Job]) -> Job | None:
    """The job of exact counts and sizes, where what is asked for does not tell them: it is held back, or
    waits behind something long."""
    if any(job.lane == "interactive" or job.state == "running" for job in asked):
        return None
    counted = replace(request, settings=Settings())
    key = f"inspect {request_key(counted)}"
    if tasks.is_stopped(key) or consent.waiting(consent.images(request.data)):
        return None
    job = tasks.start("interactive", "inspect", counted, key)
    return tasks.pool().wait(job, INSPECTION_SECONDS)


def cards(request: Request, result: Result | None, asked: list[Job]) -> None:
    """Four figures, each with its interval, as they become known; what is not is a dash."""
    summary = summarise(result) if result else None
    counted = None if result else inspection(request, asked)
    counts, watched = result.inspection if result else None, asked
    if counted and counted.over:
        counts = tasks.finished(counted, Inspection)
    elif counted:
        watched = [*asked, counted]
    idle = "" if result or asked else why_idle(request_key(request))
    for job in asked:
        tasks.pool().wait_news([job], [None], INSPECTION_SECONDS)

    late = waited(PATIENCE_SECONDS)
    drawn = False

    @st.fragment(run_every=LIVE_SECONDS if watched else None)
    def live() -> None:
        nonlocal drawn
        told = [job.known for job in watched]
        drawing.cards(known_so_far(told, summary, counts, idle, counting=bool(watched)))
        if any(job.over for job in watched) or (asked and not late and waited(PATIENCE_SECONDS)):
            st.rerun()  # with its result, or its mark
        if drawn and tasks.wait_for_news(watched, told):
            st.rerun(scope="fragment")
        drawn = True

    live()


def why_idle(key: str) -> str:
    """What stands in place of figures that nobody works on."""
    job = tasks.pool().get(key)
    if tasks.is_stopped(key):
        return "stopped"
    return "failed" if job and job.state == "failed" else "not started"


def known_so_far(
    told: list[object],
    summary: Summary | None,
    counts: Inspection | None,
    idle: str = "",
    counting: bool = True,
) -> tuple[Headline, ...]:
    """The four figures by what a job has ``told`` last, or by what was known before; where nobody works on
    those that are not known, that they are ``idle``."""
    for one in told:
        if isinstance(one, Result):
            return headlines(summarise(one), one.inspection)
        if isinstance(one, Known):
            return headlines(None, one.inspection, summarise_scores(one))
    counted = "being counted" if counting else idle
    return headlines(summary, counts, measuring=idle or "being measured", counting=counted)


def marked(
    result: Result | None, results: list[Summary], recipe: Recipe, asked: list[Job]
) -> tuple[str | None, float | None]:
    """What the charts of ``results`` mark: the key of this position's result, or the sparsity in percent
    where it will be. While that is not late, the result that they marked before: to draw four charts anew
    takes a core from what is being measured."""
    visit = session()
    stays = asked and not waited(PATIENCE_SECONDS) and visit.marked in {one.key for one in results}
    if not stays:
        visit.marked = result.key if result else ""
    cursor = 100 * recipe.prune.sparsity if recipe.prune.sparsity else None
    return visit.marked or None, None if visit.marked else cursor


def waited(seconds: float) -> bool:
    """Whether the visitor has been at this position for so long."""
    return time.monotonic() > session().asked_at + seconds


def draw(
    results: list[Summary], timed: list[Summary], key: str | None, cursor: float | None, busy: bool
) -> None:
    """The four curves, with the position under the sliders on each, by its result's ``key`` or its sparsity
    (``cursor``, in percent): latency of what was ``timed`` alike, on any engine; the others of ``results``,
    with however many threads. ``busy`` says whether something of it is being measured."""

    def curve(info: Lines) -> Lines:
        return replace(info, empty=BEING_MEASURED) if busy and info.empty == NO_RESULTS else info

    chosen = sidebar.selection()
    latency = curve(charts.latency_info(timed, key, cursor, engine=chosen.engine))
    if results and not timed and not busy:
        latency = replace(latency, empty=OTHER_THREADS)
    score, loss = ("accuracy", "drop") if chosen.card.classes else ("sqnr", "sqnr")
    drawing.chart_row(
        {
            "accuracy": curve(charts.accuracy_info(results, key, cursor, score)),
            "size": curve(charts.size_info(results, key)),
        }
    )
    drawing.chart_row(
        {
            "latency": latency,
            "frontier": curve(charts.frontier_info(results, key, loss=loss)),
        }
    )


def toolbar(
    request: Request, sliders: Recipe, result: Result | None, results: list[Summary]
) -> tuple[list[Job], bool]:
    """How far to trust this position and what to do with it; gives the jobs that its buttons started, and
    whether the curves are being filled.

    ``sliders`` is how they say to prune and round, which a position that does neither has no trace of.
    """
    full = replace(request, settings=replace(request.settings, quick=False))
    curves = backlog.starter(replace(request, recipe=any_amount(sliders)))
    wanted = curves.requests()
    keyed = dict(zip(request_keys(wanted), wanted, strict=True))
    done = tasks.store().known(keyed)
    missing = {key: one for key, one in keyed.items() if key not in done}
    if missing and is_measured_in_full([*missing.values()]):
        missing = {}
    in_full = tasks.pool().get(request_key(full))
    own = in_full if in_full and tasks.asked_for(in_full) else None
    filling, alone = filled_by(encode(curves), set(keyed), set(missing))
    row = st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center")
    with row.container(horizontal=True, width="content", vertical_alignment="center"):
        words, short = request.recipe.describe(), request.recipe.describe(details=False)
        st.markdown(drawing.heading(short), width="content", help=plain(words) if short != words else None)
        if result:
            drawing.badges(summarise(result))
    with row.container(horizontal=True, width="content"):  # on a line of their own where there is no room
        if sliders.layers and st.button("Clear overrides", icon=":material/layers_clear:"):
            session().recipe = replace(sliders, layers=())
            st.rerun()
        if st.button(
            "Measure in full",
            icon=":material/timer:",
            disabled=not result or not result.latency.quick or (own is not None and not own.over),
            help="Timing in five fresh processes, half a minute or more, in place of the sliders' short one: "
            "percentiles, resident memory, and intervals to rely on.",
        ):
            tasks.submit(full)
            st.rerun()  # with how far it is
        searching = presets(request)
        if st.button("Pin for Compare", icon=":material/keep:", disabled=not result) and result:
            address.pin(result.key)
        files = sidebar.catalogue().files
        drawing.export_menu([one.key for one in results], request.model, request, problems=files)
        if filling:
            if alone and st.button(
                "Stop filling",
                icon=":material/stop:",
                help="Stop filling the curves. What is measured so far is kept.",
            ):
                ledger.cancel(tasks.store(), filling.id)
                st.rerun()
        elif missing and filling_wanted([*missing.values()]):
            backlog.begin_sweep(curves)
            st.rerun()
    if filling:
        words = (
            "Filling the curves: {} of {} measured"
            if alone
            else f"{capital(filling.title)} fills the curves: {{}} of {{}} measured"
        )
        backlog.follow(
            filling, lambda now: st.progress(now.over / now.total, words.format(now.over, now.total))
        )
    if result and result.latency.quick:
        tasks.show_failure(own)
    return [job for job in (in_full, searching) if job and not job.over], bool(filling)


def filled_by(asked: bytes, keys: set[str], missing: set[str]) -> tuple[Sweep | None, bool]:
    """The sweep that measures what the curves are ``missing``, however it was asked for, and whether it
    measures nothing but them (their ``keys``): that may be stopped here."""
    for one in ledger.sweeps(tasks.store()):
        if one.open and one.asked == asked:
            return one, True
        if one.open and one.answer is None and not one.device and missing:
            items = ledger.items(tasks.store(), one.id)
            if missing <= {item.key for item in items if item.open}:
                return one, {item.key for item in items} <= keys
    return None, False


def is_measured_in_full(requests: list[Request]) -> bool:
    """Whether each has a full measurement, which the curves show in place of a quick one."""
    full = request_keys([replace(one, settings=replace(one.settings, quick=False)) for one in requests])
    return tasks.store().known(full) == set(full)


def filling_wanted(missing: list[Request]) -> bool:
    """Whether the visitor presses *Fill the curves*; where that fine-tunes, once more when they know how
    much."""
    label, icon = f"Fill the curves ({len(missing)} to measure)", ":material/grid_on:"
    shares, bits = ", ".join(map(format_share, STARTER_SPARSITIES)), ", ".join(map(str, STARTER_BITS))
    words = f"Measures sparsities {shares} at {bits} bits, with the other settings as they are."
    networks, seconds = consent.training(missing, sidebar.selection().card)
    if not networks:
        return st.button(label, icon=icon, help=words, key="fill")  # whatever the label says by then
    with st.popover(label, icon=icon, help=words):
        st.markdown(
            f"{count(networks, 'network')} to be trained first, by best effort or fine-tuning: "
            f"{consent.in_words(seconds)} in all."
        )
        return st.button("Start filling", icon=":material/play_arrow:")


def presets(request: Request) -> Job | None:
    """Recipes for people in a hurry; the search that runs, if one does: also one that the address names, from
    before the page was loaded anew."""
    base = replace(request, recipe=Recipe())
    keys = {name: f"preset {name} {request_key(base)}" for name in PRESETS}
    running, named = session().preset, keys.get(st.query_params.get("preset", ""), "")
    left = tasks.pool().get(named)
    if running is None and left and not left.over and not tasks.is_stopped(named):
        running = session().preset = tasks.start(left.lane, left.task, left.request, named)
    if running is None:
        st.query_params.pop("preset", None)
    with st.popover(
        "Presets",
        icon=":material/auto_awesome:",
        disabled=running is not None,
        key="presets",
        on_change="rerun",  # else it can't be closed from here
    ):
        st.caption("Each tries its recipes on your images, most compressed first, and sets the sliders.")
        for name, preset in PRESETS.items():
            if st.button(
                name.capitalize(),
                help=preset.help,
                width="stretch",
                on_click=st.session_state.update,
                args=({"presets": False},),
            ):
                running = tasks.start("measure", "preset", (name, base), keys[name])
                session().preset, st.query_params["preset"] = running, name
                st.rerun()
    return running


main()
