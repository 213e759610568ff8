"""Compare: pinned configurations side by side."""

from collections import Counter
from collections.abc import Sequence

import streamlit as st

from optimizer import charts, frame
from optimizer.metrics import METRICS
from optimizer.records import DataSpec, Result
from optimizer.report import report
from optimizer.theme import engine_label
from pages import common

# The accent is for the configuration under the sliders, so the chosen ones are grey here.
QUIET_TAGS = """<style>.st-key-configurations [data-tag] {
    background-color: rgba(128, 136, 148, 0.18); color: inherit;
}</style>"""

# What a laptop's screen shows without scrolling comes first: the figures to argue about, and their trust.
COLUMNS = (
    "model", "engine", "recipe", "accuracy", "accuracy lost", "file", "ratio", "verdict", "badges", "latency",
    "compressed", "packed", "frontier",
)  # fmt: skip
COMPARED = ("drop", "file_size", "packed_size", "latency_ratio", "latency", "operations")


def main() -> None:
    common.selection()
    st.header("Compare")
    store = common.store()
    results = {result.key: result for result in store.results()}
    if not results:
        st.info("Nothing is measured yet: move a slider under Explore.", icon=":material/info:")
        return
    if "configurations" not in st.session_state:
        asked = st.session_state.get("pinned") or st.query_params.get_all("configurations")
        st.session_state["configurations"] = [key for key in asked if key in results]
    st.html(QUIET_TAGS)
    keys = st.multiselect(
        "Configurations",
        list(reversed(results)),
        format_func=labels(list(results.values())).__getitem__,
        key="configurations",
        placeholder="Choose as many as you like",
        help="Everything measured so far, newest first. Pin under Explore puts a configuration here.",
    )
    # By hand, as a bound widget would put its labels into the address, and labels change.
    st.session_state["pinned"] = keys
    st.query_params["configurations"] = keys
    chosen = [results[key] for key in keys if key in results]
    if not chosen:
        st.info("Choose configurations above, or pin them under Explore.", icon=":material/info:")
        return
    table = frame.table(chosen)
    alike = [name for name in ("model", "engine") if table[name].nunique() == 1]
    st.dataframe(table, column_order=[name for name in COLUMNS if name not in alike], hide_index=True)
    with st.container(horizontal=True):
        common.export_menu(chosen, "comparison")
        st.download_button(
            "Report",
            lambda: report(chosen).encode(),
            "paretoscope-report.html",
            "text/html",
            icon=":material/description:",
            on_click="ignore",
            help="One HTML file with verdicts, charts and method; it opens without a network.",
        )
    metric = st.segmented_control(
        "Metric",
        COMPARED,
        default="drop",
        required=True,
        format_func=lambda name: METRICS[name].label,
        **common.in_address("metric"),
    )
    common.chart(charts.compare_info(chosen, metric), "compare", height=120 + 40 * len(chosen))


def labels(results: Sequence[Result]) -> dict[str, str]:
    """Each result in words, by key. No two alike: Streamlit knows an option by its label alone."""
    names = {}
    for summary in map(frame.summarise, results):
        request = summary.request
        parts = [request.model, summary.description, engine_label(request.engine)]
        if request.data != DataSpec():
            parts.append(summary.images)
        if not summary.quick:
            parts.append("in full")
        names[summary.key] = " · ".join(parts)
    often = Counter(names.values())
    return {key: name if often[name] == 1 else f"{name} · {key[:6]}" for key, name in names.items()}


main()
