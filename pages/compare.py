"""Compare: pinned configurations side by side, or two files."""

from collections import Counter
from collections.abc import Mapping, Sequence

import streamlit as st

from optimizer import charts
from optimizer.analysis import frame, stored
from optimizer.analysis.frame import Column
from optimizer.analysis.labels import engine_label
from optimizer.analysis.summary import Summary, label_of
from optimizer.charts.drawing import row_pixels
from optimizer.charts.samples import View
from optimizer.export.report import report
from optimizer.formats import count
from optimizer.records import DataSpec
from pages import address, drawing, kept, sidebar, tasks, two_files
from pages.markup import plain
from pages.session import session

# The accent is for the configuration under the sliders, so the chosen ones are grey here.
QUIET_TAGS = """<style>.st-key-configurations [data-tag] {
    background-color: rgba(128, 136, 148, 0.18); color: inherit;
}</style>"""

# What a laptop's screen shows without scrolling comes first: the figures to argue about, and their trust.
COLUMNS = (
    Column.MODEL, Column.ENGINE, Column.THREADS, Column.BATCH, Column.RECIPE, *frame.COMPARING,
    *frame.ACCURACIES, *frame.AGREEMENTS, *frame.FIDELITIES, Column.RATIO, Column.VERDICT, Column.BADGES,
    Column.FILE, Column.LATENCY, Column.COMPRESSED, Column.PACKED, Column.IMAGES, Column.FRONTIER,
)  # fmt: skip
VIEWS: dict[View, str] = {
    "rounds": "round by round",
    "distribution": "distribution",
    "settling": "call by call",
}
HOW_TO_READ = {
    "rounds": "Each round visits two builds of the uncompressed model (the greys) and this configuration, in "
    "shuffled order. What lifts all three was the machine; a difference to trust holds in most rounds, and "
    "is larger than that between the greys.",
    "distribution": "Which share of the calls took at most so long. A curve that lies left of the other over "
    "its whole height is faster; where they cross or touch, nothing can be told; a tail to the right was the "
    "machine.",
    "settling": "A visit follows another network, which has emptied the caches: its first calls take longer. "
    "What is timed comes after they have settled; a server that answers now and then sees the first.",
}
MAX_LISTED = 1_000
"""Configurations that can be chosen here without being pinned first: a browser is sent each of them."""
UNCOMPRESSED = "uncompressed"
AGAINST = (
    "Accuracy is compared on the same images, one by one. Times are of independent runs: each was timed "
    "against the uncompressed model, and the interval of the ratio holds the scatter of both. Those that run "
    "the same kernels share one run: 1.00×."
)
COMPARED = ("drop", "file_size", "packed_size", "latency_ratio", "latency", "operations")


WHAT = {"configurations": "Configurations", "files": "Two files"}


def main() -> None:
    chosen = sidebar.selection()
    st.header("Compare")
    what = address.choice("What is compared", WHAT, "configurations", "of", label_visibility="collapsed")
    if what == "files":
        two_files.show(chosen)
    else:
        configurations()


def configurations() -> None:
    """Those that were measured and pinned."""
    store, pins = tasks.store(), session().pins
    newest = stored.summaries(store, limit=MAX_LISTED)
    kept.note_unreadable(len(newest), MAX_LISTED)
    results = {summary.key: summary for summary in (*stored.summaries_of(store, pins), *newest)}
    if not results:
        st.info("Nothing is measured yet: move a slider on the Explore page.", icon=":material/info:")
        return
    st.session_state["configurations"] = [key for key in pins if key in results]
    st.html(QUIET_TAGS)
    keys = st.multiselect(
        "Configurations",
        list(reversed(results)),
        format_func=labels(list(results.values())).__getitem__,
        key="configurations",
        on_change=take_pins,
        max_selections=address.MAX_PINS,
        placeholder="Choose as many as you like",
        help=f"The {MAX_LISTED:,} that were measured last, newest first. Pin, on Explore and Sweep, puts "
        "any other one here.",
    )
    if missing := len(pins) - len(keys):
        lost = count(missing, "pinned configuration")
        st.caption(f":material/warning: {lost} not stored here: measured elsewhere, or removed since.")
    chosen = [results[key] for key in keys]
    if not chosen:
        st.info("Choose configurations above, or pin them on the Explore page.", icon=":material/info:")
        return
    reference = reference_of(chosen)
    table = frame.table(chosen, reference)
    recipes = [result.request.recipe for result in chosen]  # the whole names stand above
    table[Column.RECIPE.label] = charts.brief([(one.describe(False), one.describe()) for one in recipes])
    same = COLUMNS[: COLUMNS.index(Column.RECIPE)]
    alike = [column.label for column in same if table[column.label].nunique() == 1]
    shown = [one.label for one in COLUMNS if one.label in table and one.label not in alike]
    drawing.table(table, column_order=shown, column_config=drawing.RECIPE_COLUMN)
    if reference:
        st.caption(AGAINST)
    with st.container(horizontal=True):
        drawing.export_menu(keys, "comparison", against=reference.key if reference else None)
        drawing.report_button(lambda: report(stored.several(store, keys)), "report", "verdicts")
    metric = st.segmented_control(
        "Metric",
        COMPARED,
        default="drop",
        required=True,
        **address.in_address("metric", lambda name: label_of(name, chosen)),
    )
    info = charts.compare_info(chosen, metric, reference)
    drawing.chart(info, "compare", height=120 + row_pixels(info.y) * len(chosen))
    raw_times(chosen)


def take_pins() -> None:
    session().pins = tuple(st.session_state["configurations"])


def reference_of(chosen: Sequence[Summary]) -> Summary | None:
    """The one that all are compared with; None is each one's own uncompressed model."""
    key = one_of(
        "Compare against",
        {UNCOMPRESSED: "the uncompressed model"} | short_labels(chosen),
        "against",
        help="Against one of these, accuracy is paired image by image and time is the ratio of both ratios.",
    )
    return next((result for result in chosen if result.key == key), None)


def raw_times(chosen: Sequence[Summary]) -> None:
    """Every call that the clock timed for one of the configurations: nobody has to believe a median."""
    st.subheader("Raw times")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        key = one_of("Raw times of", short_labels(chosen), "times")
        view = address.choice("Raw times as", VIEWS, "rounds", "view", label_visibility="collapsed")
    if opened := tasks.store().get(key):
        drawing.chart(charts.samples_info(opened, view), "samples", height=320)
    timed_with = plain(next(result for result in chosen if result.key == key).shared_with or "")
    st.caption(
        HOW_TO_READ[view] + (f" Timed with: {timed_with}, which runs the same kernels." if timed_with else "")
    )


def one_of(label: str, words: Mapping[str, str], key: str, help: str | None = None) -> str:
    """A control of one of several, by their keys in words; the first to begin with. The address has the key:
    Streamlit would have the words there."""
    session().in_address[key] = words.__getitem__
    asked = st.session_state.get(key, st.query_params.get(key))
    st.session_state[key] = asked if asked in words else next(iter(words))
    chosen: str = st.selectbox(
        label, list(words), format_func=words.__getitem__, key=key, width=560, help=help
    )
    address.put(key, chosen)
    return chosen


def labels(results: Sequence[Summary]) -> dict[str, str]:
    """Each result in words, by key. No two alike: Streamlit knows an option by its label alone."""
    names = {result.key: described(result) for result in results}
    often = Counter(names.values())
    return {key: name if often[name] == 1 else f"{name} · {key[:6]}" for key, name in names.items()}


def short_labels(results: Sequence[Summary]) -> dict[str, str]:
    """The same without how exactly, where that leaves no two alike."""
    full, short = labels(results), [described(result, details=False) for result in results]
    return dict(zip(full, charts.brief([*zip(short, full.values(), strict=True)]), strict=True))


def described(summary: Summary, details: bool = True) -> str:
    request = summary.request
    parts = [request.model, request.recipe.describe(details), engine_label(request.engine)]
    if request.data != DataSpec():
        parts.append(summary.images)
    if request.settings.threads or summary.batch > 1:
        parts.append(summary.served)
    if not summary.quick:
        parts.append("in full")
    return " · ".join(parts)


main()
