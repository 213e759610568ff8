"""Ask a question, get a configuration: limits in, the best that keeps to them out. (Not a page.)"""

from contextlib import suppress
from dataclasses import dataclass, replace

import streamlit as st

from optimizer import charts
from optimizer.analysis.badges import BadgeKind
from optimizer.analysis.gate import check_limits
from optimizer.analysis.limits import BOUNDS, MINIMISED, Limits
from optimizer.analysis.metrics import metric
from optimizer.charts.spec import Lines
from optimizer.errors import InputError
from optimizer.export.report import answer_report
from optimizer.formats import MISSING, count
from optimizer.methods.engines import ENGINES
from optimizer.records import Request, Result
from optimizer.search.answer_data import trial_frame
from optimizer.search.answers import findings, headline, named, relaxed, why_noisy
from optimizer.search.questions import Answered, answer_of, progress_of, question_of, so_far
from optimizer.search.records import Question, Step
from optimizer.search.space import Space
from optimizer.store import ledger
from optimizer.store.items import Item, Sweep
from pages import address, backlog, drawing, sidebar, tasks
from pages.markup import plain
from pages.session import session

BUDGETS = {30: "30 s", 60: "1 minute", 300: "5 minutes", 1200: "20 minutes", 3600: "1 hour"}
CHART_PIXELS = 320
GOAL = "find_minimise"


@dataclass(frozen=True, slots=True)
class LimitInput:
    """The control of a limit: the ``field`` of Limits that it sets, and its ``key`` in the address."""

    field: str
    label: str
    key: str
    step: float
    help: str


LIMITS = (
    LimitInput(
        "drop_points",
        "Accuracy lost, points",
        "find_drop",
        0.1,
        "At most so much, by the interval's bound.",
    ),
    LimitInput(
        "sqnr_db",
        "SQNR, dB",
        "find_sqnr",
        1.0,
        "At least so much of the worst output, by the interval's bound: 40 dB is noise of 1 %, 20 dB of "
        "10 %.",
    ),
    LimitInput(
        "latency_ms",
        "Latency, ms",
        "find_ms",
        0.1,
        "Median time of a call with one image, at its steady pace.",
    ),
    LimitInput(
        "latency_ratio",
        "Latency ratio",
        "find_ratio",
        0.05,
        "That time divided by the uncompressed model's on the same engine: 0.5 is twice as fast. A busy "
        "machine changes it less than the time itself.",
    ),
    LimitInput("size_mb", "File, MB", "find_mb", 0.1, "Of the file that would be served."),
)


def ask() -> int | None:
    """The form; the number of the question that was asked just now. Raises InputError for a limit that can't
    be: nothing is searched under the others."""
    chosen = sidebar.selection()
    if sidebar.show_problem(chosen):
        return None
    sidebar.name_chosen(chosen, "")
    question = form()
    if question is None:
        st.info("Give at least one limit.", icon=":material/tune:")
        return None
    with st.container(horizontal=True, vertical_alignment="center"):
        asked = st.button(
            "Find",
            type="primary",
            icon=":material/search:",
            help="An answer that is there is shown at once; with more time, the search goes on from it.",
        )
        budget = BUDGETS[int(question.budget_seconds)] + (", on this machine" if backlog.cluster() else "")
        st.caption(
            f"Searches {question.space.positions:,} configurations for {budget}: those that can't win are "
            "given up early."
        )
    if asked:
        with tasks.errors_in_words():
            return backlog.ask(question)
    return None


def form() -> Question | None:
    """The question, kept in the address; None without a limit. Raises InputError for one that can't be."""
    chosen = sidebar.selection()
    classes = chosen.card.classes
    goals = [name for name in MINIMISED if name != ("sqnr" if classes else "drop")]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        offered = [one for one in LIMITS if one.field != ("sqnr_db" if classes else "drop_points")]
        given = {one: value for one in offered if (value := limit(one)) is not None}
    limits = wrong = None
    if given:
        try:
            check_limits({f"{one.label}:": (value, *BOUNDS[one.field]) for one, value in given.items()})
            limits = Limits(**{one.field: value for one, value in given.items()})
        except InputError as error:  # raised once all controls are there
            wrong = error
    follow_the_limits(usual := limits.usual(classes) if limits else "latency")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        minimise = st.selectbox(
            "Optimise for",
            goals,
            index=0 if GOAL in st.session_state else goals.index(usual),
            width=170,
            **address.in_address(GOAL, lambda name: metric(name).label),
            help="Latency, or what may be lost where nothing limits that: until you choose.",
        )
        budget = st.selectbox(
            "Time for the search",
            list(BUDGETS),
            index=list(BUDGETS).index(60),
            width=150,
            **address.in_address("find_seconds", BUDGETS.__getitem__),
        )
        possible = sidebar.runnable_engines()
        engines = address.pills(
            "Engines",
            possible,
            Space().engine,
            "find_engines",
            lambda name: ENGINES[name].label,
            "Times of different engines are compared in milliseconds, each loss with its own baseline.",
        )
    if wrong:
        raise wrong
    if limits is None:
        return None
    space = replace(Space(), engine=tuple(engines or possible[:1]), threads=(chosen.settings.threads,))
    return Question(
        chosen.card.name,
        limits,
        minimise,
        space,
        budget_seconds=float(budget),
        data=chosen.data,
        settings=chosen.settings,
    )


def follow_the_limits(usual: str) -> None:
    """What to optimise for is what is ``usual`` with these limits, until the visitor chooses another."""
    visit = session()
    if visit.usual_goal not in ("", usual) and st.session_state.get(GOAL) == visit.usual_goal:
        st.session_state[GOAL] = usual
    visit.usual_goal = usual


def limit(asked: LimitInput) -> float | None:
    """A number without bounds: a browser does not send one beyond them, and the page would use the last."""
    value: float | None = st.number_input(
        asked.label,
        value=None,
        step=asked.step,
        placeholder="no limit",
        width=165,
        **address.in_address(asked.key),
        help=asked.help,
    )
    return value


# One question


def found_of(sweep: Sweep) -> Answered | None:
    """Its answer, as soon as there is one."""
    return answer_of(tasks.store(), sweep.answer) if sweep.state == "done" else None


def show(sweep: Sweep, found: Answered | None) -> None:
    """How far it is, or what was found."""
    (item,) = ledger.items(tasks.store(), sweep.id)
    only_python = item.request is not None and why_only_python(item.request)
    if sweep.open:
        backlog.follow(sweep, lambda now: goes_on(item, sweep))
    elif sweep.state == "failed":
        st.error(plain(item.message), icon=":material/error:")
    elif sweep.state == "cancelled":
        words = "" if only_python else ": Resume goes on from there"
        st.info(f"Cancelled. What was measured is kept{words}.", icon=":material/cancel:")
        with suppress(InputError):  # which the buttons' place tells
            if until_then := so_far(tasks.store(), sweep):
                show_answer(until_then)
    elif found:
        show_answer(found)
    else:
        words = "" if only_python else ": Resume finds it anew"
        st.info(f"What the answer rests on was dropped{words}.", icon=":material/delete:")


def goes_on(item: Item, sweep: Sweep) -> None:
    """Progress and the best so far, wherever it is searched."""
    try:
        question = question_of(sweep)
    except InputError:  # which the buttons' place tells
        return
    progress, job = progress_of(tasks.store(), item.key), tasks.pool().get(item.key)
    words = f"{progress.seconds:.0f} of {question.budget_seconds:.0f} s"
    if job and job.message:
        words += f" · {job.message}"
    elif before := ledger.line(tasks.store(), sweep.id).before_next:
        words += f" · {count(before, 'configuration')} of others first"
        if now := tasks.doing_now("measure"):
            words += f" · now: {now}"
    st.progress(min(1.0, progress.seconds / question.budget_seconds), plain(words))
    if progress.steps:
        drawing.chart(steps_info(progress.steps, question), "search", CHART_PIXELS)


def steps_info(steps: tuple[Step, ...], question: Question) -> Lines:
    return charts.search_info(steps, question.minimise, question.limits.given.get(question.minimise))


def show_answer(found: Answered) -> None:
    """The answer in a sentence, how sure it is, and what a limit costs."""
    answer, best = found.answer, found.best
    with st.container(horizontal=True, vertical_alignment="center"):
        words = f":material/{'flag' if best else 'block'}: **{plain(headline(found))}**"
        st.markdown(words, width="content")
        if reasons := why_noisy(found):
            noisy = BadgeKind.NOISY
            st.badge(noisy.label, color=drawing.BADGE_COLOURS[noisy], help="\n\n".join(map(plain, reasons)))
    drawing.sentences(findings(found))
    with st.container(horizontal=True):
        if best:
            take(best, "the answer")
        for one in answer.relaxations:
            take(
                found.results[one.key],
                f"the best with {'less' if one.limit == 'sqnr' else 'more'} {relaxed(found, one)}",
            )
    if found.measured:
        cost = "file_size" if answer.question.minimise == "file_size" else "latency"
        frontier = charts.frontier_info(found.shown, best.key if best else None, cost=cost)
        steps = steps_info(answer.progress.steps, answer.question)
        drawing.chart_row({"found": frontier, "search": steps}, CHART_PIXELS)
    with st.expander("Everything that was tried"):
        drawing.table(trial_frame(found), placeholder=MISSING, alt="Everything that was tried")


def buttons(sweep: Sweep, found: Answered | None) -> int | None:
    """What to do with a question; the number of the one that was asked by that."""
    if sweep.state == "running" and st.button(
        "Answer now",
        icon=":material/done:",
        help="Ends the search, and answers with the best so far. What is measured is kept.",
    ):
        ledger.conclude(tasks.store(), sweep.id)
    if found:
        drawing.report_button(
            lambda: answer_report(found, bool(why_only_python(found.answer.question))),
            f"question-{sweep.id}",
            "question, answer",
        )
    try:
        question = question_of(sweep)
    except InputError as error:
        st.caption(plain(error))
        return None
    if words := why_only_python(question):
        st.caption(plain(words))
        return None
    if not sweep.open:
        whole = found is not None and not found.answer.is_early
        label, icon = ("Repeat", ":material/replay:") if whole else ("Resume", ":material/play_arrow:")
        words = "Asks the same of today's images, code and libraries. What has not changed is at hand."
        if st.button(label, icon=icon, help=words if whole else "The search goes on from where it ended."):
            return backlog.ask(question)
    longer = next((seconds for seconds in BUDGETS if seconds > question.budget_seconds), None)
    if longer and st.button(
        f"Extend to {BUDGETS[longer]}",
        icon=":material/add:",
        help="The same question with more time: the search goes on from where it ended.",
    ):
        return backlog.ask(replace(question, budget_seconds=float(longer)))
    return None


def why_only_python(asked: Question | Request) -> str:
    """Why nothing here can go on with it; empty where it can."""
    if asked.data.content:
        return "Its images were given in memory: ask it again, or with more time, from Python."
    if asked.model not in sidebar.catalogue().cards:
        return (
            f"{asked.model} is not among the models here. One that was given in Python: ask again, or with "
            "more time, from there."
        )
    return ""


def take(result: Result, words: str) -> None:
    """Open a configuration in Explore."""
    problem = sidebar.why_not_open(result.request)
    st.page_link(
        "pages/explore.py",
        label=f"Open {words} in Explore",
        icon=":material/tune:",
        help=plain(problem or named(result)),
        query_params={sidebar.OPEN: result.key},
        disabled=bool(problem),
    )
