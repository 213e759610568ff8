"""Compare: pinned configurations side by side."""

import streamlit as st

from optimizer import charts, frame
from optimizer.metrics import METRICS
from optimizer.report import report
from pages import common

COMPARED = ("drop", "file_size", "packed_size", "latency_ratio", "latency", "operations")


def main() -> None:
    common.selection()
    st.header("Compare")
    store = common.store()
    results = {result.key: result for result in store.results()}
    if not results:
        st.info("Nothing is measured yet: move a slider under Explore.", icon=":material/info:")
        return
    summaries = {key: frame.summarise(result) for key, result in results.items()}
    if "configurations" not in st.session_state and "configurations" not in st.query_params:
        st.session_state["configurations"] = [
            key for key in st.session_state.get("pinned", []) if key in results
        ]
    keys = st.multiselect(
        "Configurations",
        list(reversed(results)),
        format_func=lambda key: f"{summaries[key].request.model} · {summaries[key].description}",
        **common.in_address("configurations"),
        placeholder="Choose as many as you like",
        help="Everything measured so far, newest first. Pin under Explore puts a configuration here.",
    )
    chosen = [results[key] for key in keys if key in results]
    if not chosen:
        st.info("Choose configurations above, or pin them under Explore.", icon=":material/info:")
        return
    st.dataframe(frame.table(chosen), hide_index=True)
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


main()
