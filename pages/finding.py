"""Ask a question, get a configuration: limits in, the best that keeps to them out. (Not a page.)"""

from dataclasses import replace

import streamlit as st

from optimizer import charts
from optimizer.analysis.limits import MINIMISED, Limits
from optimizer.analysis.metrics import metric
from optimizer.formats import MISSING
from optimizer.methods.engines import ENGINES
from optimizer.recipe import Recipe
from optimizer.records import Request, Result, digest
from optimizer.search.answers import concession_words, confirmed_words, headline, named, trial_frame, tried
from optimizer.search.find import Answer, Question, Step
from optimizer.search.space import Space
from optimizer.system.process_pool import Job
from pages import address, drawing, sidebar, tasks
from pages.markup import plain

BUDGETS = {30: "30 s", 60: "1 minute", 300: "5 minutes", 1200: "20 minutes", 3600: "1 hour"}
POLL_SECONDS = 1.0
CHART_PIXELS = 320


def ask() -> None:
    """The form, the search while it runs, and what it found."""
    chosen = sidebar.selection()
    if sidebar.show_problem(chosen):
        return
    question = form()
    if question is None:
        st.info("Give at least one limit.", icon=":material/tune:")
        return
    base = Request(chosen.card.name, Recipe(), chosen.engine, chosen.data, chosen.settings)
    key = f"find {digest([question, base])}"
    job = tasks.pool().get(key)
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Find",
            type="primary",
            icon=":material/search:",
            disabled=job is not None and not job.over,
            help="Everything that is measured on the way is kept: asked again, it costs nothing.",
        ):
            tasks.pool().forget(key)
            job = tasks.start("measure", "find", (question, base), key)
        st.caption(
            f"{question.space.positions:,} configurations in {BUDGETS[int(question.budget_seconds)]}: those "
            "that can't win are given up early."
        )
    if job is None:
        return
    if not job.over:
        watch(job, question)
        return
    if job.state == "cancelled":
        st.info("Stopped. What was measured is kept: Find goes on from there.", icon=":material/stop_circle:")
        return
    with tasks.errors_in_words():
        show(tasks.finished(job, Answer))


def form() -> Question | None:
    """The question, kept in the address; None without a limit."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        drop = limit(
            "Accuracy lost, points", "find_drop", 100.0, 0.1, "At most so much, by the interval's bound."
        )
        latency = limit(
            "Latency, ms",
            "find_ms",
            60_000.0,
            0.1,
            "Median time of a call with one image, at its steady pace.",
        )
        size = limit("File, MB", "find_mb", 100_000.0, 0.1, "Of the file that would be served.")
        given = any(value is not None for value in (drop, latency, size))
        limits = Limits(drop, latency, size) if given else None
        minimise = st.selectbox(
            "As low as possible",
            MINIMISED,
            index=MINIMISED.index(limits.usual if limits else "latency"),
            format_func=lambda name: metric(name).label,
            width=170,
            **address.in_address("find_minimise"),
        )
        budget = st.selectbox(
            "Time for the search",
            list(BUDGETS),
            index=list(BUDGETS).index(60),
            format_func=BUDGETS.__getitem__,
            width=150,
            **address.in_address("find_seconds"),
        )
    possible = [name for name, problem in sidebar.catalogue().engines.items() if not problem]
    engines = st.pills(
        "Engines",
        possible,
        selection_mode="multi",
        default=[name for name in Space().engine if name in possible],
        format_func=lambda name: ENGINES[name].label,
        **address.in_address("find_engines"),
        help="Times of different engines are compared in milliseconds, each loss with its own baseline.",
    )
    if limits is None:
        return None
    threads = (sidebar.selection().settings.threads,)
    space = replace(Space(), engine=tuple(engines or possible[:1]), threads=threads)
    return Question(limits, minimise, space, budget_seconds=float(budget))


def limit(label: str, key: str, highest: float, step: float, words: str) -> float | None:
    value: float | None = st.number_input(
        label,
        min_value=0.001,
        max_value=highest - 0.001,
        value=None,
        step=step,
        placeholder="no limit",
        width=165,
        **address.in_address(key),
        help=words,
    )
    return value


def watch(job: Job, question: Question) -> None:
    """Progress and the best so far, until it is over."""

    @st.fragment(run_every=POLL_SECONDS)
    def live() -> None:
        if job.over:
            st.rerun()
        tasks.show_job(job)
        if isinstance(job.known, tuple) and job.known and isinstance(job.known[0], Step):
            goes(job.known, question)

    live()


def goes(steps: tuple[Step, ...], question: Question) -> None:
    limit = question.limits.given.get(question.minimise)
    drawing.chart(charts.search_info(steps, question.minimise, limit), "search", CHART_PIXELS)


def show(answer: Answer) -> None:
    """The answer in a sentence, how sure it is, and what a limit costs."""
    icon = "flag" if answer.best else "block"
    st.markdown(f":material/{icon}: **{plain(headline(answer))}**")
    said = [confirmed_words(answer.best)] if answer.best else []
    said += [concession_words(one) for one in answer.concessions]
    st.markdown("\n".join(f"- {plain(sentence)}" for sentence in [*said, tried(answer)]))
    shown = answer.best.timed if answer.best else None
    with st.container(horizontal=True):
        if shown:
            take(shown, "the answer")
        for one in answer.concessions:
            take(one.result, f"with more {metric(one.limit).label}")
    left, right = st.columns(2)
    with left:
        results = [*answer.results, *([shown] if shown else [])]
        cost = "file_size" if answer.question.minimise == "file_size" else "latency"
        info = charts.frontier_info(results, shown.key if shown else None, cost=cost)
        drawing.chart(info, "found", CHART_PIXELS)
    with right:
        goes(answer.steps, answer.question)
    with st.expander("Everything that was tried"):
        st.dataframe(
            trial_frame(answer), hide_index=True, placeholder=MISSING, alt="Everything that was tried"
        )


def take(result: Result, words: str) -> None:
    """Open a configuration in Explore."""
    st.page_link(
        "pages/explore.py",
        label=f"Open {words}",
        icon=":material/tune:",
        help=plain(named(result)),
        query_params={sidebar.OPEN: result.key},
    )
