"""How pages show results: figures, badges, charts, and what to take away. (Not a page.)"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import pandas as pd
import streamlit as st
from plotly.graph_objects import Figure

from optimizer.analysis import stored
from optimizer.analysis.badges import BadgeKind
from optimizer.analysis.frame import Column
from optimizer.analysis.headline import Headline, Mood
from optimizer.analysis.summary import Summary
from optimizer.charts import align, alternative, figure
from optimizer.charts.spec import Lines, Parallel, Stacks
from optimizer.export.pictures import chrome
from optimizer.export.tables import file_name
from optimizer.formats import capital, count
from optimizer.methods.artifacts import ARTIFACTS, as_zip
from optimizer.methods.exporters import EXPORTERS, ExporterInfo
from optimizer.records import Request
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from pages import tasks
from pages.markup import plain

T = TypeVar("T")
RECIPE_COLUMN = {Column.RECIPE.label: st.column_config.TextColumn(width=272)}
"""Of a table: it would else stay as wide as the first results need it, and hide what is right of it."""
MAX_NARROW = 2
"""Columns that a telephone shows beside each other."""
MAX_DRAWN = 3_000
"""Results of one model in a chart, those that were measured last: a browser is sent each of them."""
MAX_BESIDE_PIXELS = 700
"""Of charts side by side, where one has rows."""
Colour = Literal["red", "orange", "green", "violet", "gray"]
BADGE_COLOURS: dict[BadgeKind, Colour] = {
    BadgeKind.MEASURED: "green",
    BadgeKind.SIMULATED: "orange",
    BadgeKind.NOISY: "red",
    BadgeKind.PRELIMINARY: "gray",
    BadgeKind.OTHER_ENVIRONMENT: "violet",
}


def heading(words: str) -> str:
    """A recipe in words, bold."""
    return f"**{plain(capital(words))}**"


def when(created: str) -> str:
    """``2026-11-02 10:00 UTC`` of a time as it is stored."""
    return f"{created[:16].replace('T', ' ')} UTC"


MOODS: dict[Mood, Colour] = {"better": "green", "worse": "red", "same": "gray"}


def cards(headlines: Iterable[Headline]) -> None:
    """The four figures: each large, with its interval, its change, and what it rests on."""
    for column, headline in zip(st.columns(4), headlines, strict=True):
        with column, st.container(border=True, height="stretch", gap="xxsmall"):
            st.metric(
                plain(headline.label),
                plain(headline.value),
                plain(headline.change) or None,
                delta_color=MOODS[headline.mood],
                delta_arrow="off",
                help=plain(headline.help),
            )
            st.caption(plain(headline.caption))


def removable(name: str, words: str, key: str) -> bool:
    """Something of a visitor's own in a line, with a button: whether it is to be removed."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{plain(name)}**: {plain(words)}", width="stretch")
        help = f"Remove {plain(name)}"
        return st.button("Remove", icon=":material/delete:", key=f"remove {key}", help=help)


FOLLOW = """
export default ({ data, parentElement, setTriggerValue }) => {
    const host = parentElement.host ?? parentElement;
    const scheme = getComputedStyle(host).colorScheme;
    if (data && scheme !== data) setTriggerValue("switched", scheme);
}
"""
"""Runs when it is mounted and whenever the theme changes."""


def follow_theme() -> None:
    """Draw the page anew when its visitor switches between light and dark: charts bring their own colours."""
    component = st.components.v2.component("paretoscope_theme", js=FOLLOW)
    component(data=st.context.theme.type, key="theme", on_switched_change=lambda: None)


HISTORY = """
export default () => {
    if (window.paretoscopeHistory) return;
    window.paretoscopeHistory = true;
    const push = history.pushState.bind(history);
    let before = null;
    const act = () => { before = null; };
    ["pointerdown", "keydown", "popstate"].forEach(kind => window.addEventListener(kind, act, true));
    history.pushState = (state, title, url) => {
        const to = new URL(url, location.href);
        if (to.pathname === location.pathname) {
            before ??= location.href;
            history.replaceState(state, title, url);
            return;
        }
        if (before) history.replaceState(history.state, title, before);
        before = to.href;
        push(state, title, url);
    };
}
"""
"""Streamlit adds an entry to the browser's history for each part of an address that it takes away or puts
back, and Back went through recipes that nobody chose. Here a page is one entry: the parts change it, and as a
page is left, its entry is as the visitor saw it last."""


def one_entry_a_page() -> None:
    """Have the browser's Back lead to the page before, with its recipe."""
    st.components.v2.component("paretoscope_history", js=HISTORY)(key="history")


def chart(
    info: Lines | Stacks | Parallel,
    key: str,
    height: int = 240,
    on_click: Callable[[str], None] | None = None,
) -> None:
    """A chart with its description for screen readers; its toolbar saves the picture from the browser.

    ``on_click`` is given the key of the result whose point was clicked.
    """
    _draw(_figure(info, height), info, key, on_click)


def chart_row(
    infos: Mapping[str, Lines | Stacks], height: int = 240, on_click: Callable[[str], None] | None = None
) -> None:
    """Charts by their keys, side by side, as :func:`chart` each: of one height, their plots at one level."""
    figures = [_figure(info, height) for info in infos.values()]
    align(figures)
    for column, drawn, (key, info) in zip(st.columns(len(infos)), figures, infos.items(), strict=True):
        with column:
            _draw(drawn, info, key, on_click)


def charts_beside(infos: Mapping[str, Lines | Stacks], heights: Sequence[int]) -> None:
    """Charts by their keys, as :func:`chart_row` with the greatest of the ``heights`` that they take by
    themselves; one below the other where one of many rows is so high that the others would be stretched."""
    if max(heights) <= MAX_BESIDE_PIXELS:
        chart_row(infos, max(heights))
        return
    for (key, info), height in zip(infos.items(), heights, strict=True):
        chart(info, key, height)


def _figure(info: Lines | Stacks | Parallel, height: int) -> Figure:
    return figure(info, dark=st.context.theme.type == "dark", height=height)


def _draw(
    drawn: Figure, info: Lines | Stacks | Parallel, key: str, on_click: Callable[[str], None] | None
) -> None:
    def clicked() -> None:
        keys = [point.get("customdata") for point in st.session_state[key].selection.points]
        for one in filter(None, keys):
            assert on_click
            on_click(one if isinstance(one, str) else one[0])

    st.plotly_chart(
        drawn,
        theme=None,
        key=key,
        alt=alternative(info),
        on_select=clicked if on_click else "ignore",
        selection_mode="points",
        config={
            "displaylogo": False,
            "modeBarButtonsToRemove": ["select2d", "lasso2d"],
            "toImageButtonOptions": {
                "format": st.session_state.get("picture", "png"),
                "filename": f"paretoscope-{key}",
                "scale": 2,
            },
        },
    )


FEWER_THREADS = "Fewer threads, set in the sidebar, leave a core to other programs: calmer timings."


def badges(summary: Summary) -> None:
    """How far the figures can be trusted, each badge with its reason; and the notes of model and images."""
    with st.container(horizontal=True, width="content", gap="xsmall"):
        for badge in summary.badges:
            crowded = badge.kind is BadgeKind.NOISY and summary.threads > 1 and not summary.other_machine
            words = plain(badge.words) + (f".\n\n{FEWER_THREADS}" if crowded else "")
            st.badge(badge.kind.label, color=BADGE_COLOURS[badge.kind], help=words)
        if summary.notes:
            st.badge("notes", color="gray", help="\n".join(f"- {plain(note)}" for note in summary.notes))


def badge_row(found: Mapping[BadgeKind, str]) -> None:
    """Each badge with why."""
    with st.container(horizontal=True, gap="xsmall"):
        for kind, words in found.items():
            st.badge(kind.label, color=BADGE_COLOURS[kind], help=plain(words))


def table(
    rows: pd.DataFrame | Sequence[Mapping[str, object]],
    column_order: Sequence[str] | None = None,
    **more: Any,
) -> None:
    """A table, and where it is narrow how to come to the columns that it hides."""
    made = pd.DataFrame(rows)
    st.dataframe(made, column_order=column_order, hide_index=True, **more)
    shown = made.columns if column_order is None else made.columns.intersection(list(column_order))
    how_to_swipe(len(shown))


def how_to_swipe(columns: int) -> None:
    """On a telephone alone (the style of ``swipe`` in the entry)."""
    if columns > MAX_NARROW:
        st.html(f'<p class="swipe">{count(columns, "column")}: swipe the table sideways to see them all.</p>')


def sentences(words: Iterable[str]) -> None:
    """A list of them."""
    st.markdown("\n".join(f"- {plain(sentence)}" for sentence in words))


def download(
    label: str,
    data: Callable[[], str],
    name: str,
    mime: str,
    icon: str = ":material/download:",
    **more: Any,
) -> None:
    """A button that saves what is written when it is pressed."""
    st.download_button(label, data, f"paretoscope-{name}", mime, icon=icon, on_click="ignore", **more)


def take_away(name: str, run: T, frame: Callable[[T], pd.DataFrame], as_json: Callable[[T], object]) -> None:
    """Buttons for a run as a table and as JSON."""
    with st.container(horizontal=True):
        download("CSV", lambda: frame(run).to_csv(index=False), f"{name}.csv", "text/csv", key=f"{name} csv")
        download(
            "JSON",
            lambda: json.dumps(as_json(run)),
            f"{name}.json",
            "application/json",
            key=f"{name} json",
        )


def report_button(html: Callable[[], str], name: str, contents: str, disabled: bool = False) -> None:
    download(
        "Report",
        html,
        f"{name}.html",
        "text/html",
        icon=":material/description:",
        disabled=disabled,
        help=f"One HTML file with {contents}, charts and method; it opens without a network.",
    )


def export_menu(
    keys: Sequence[str],
    name: str,
    request: Request | None = None,
    against: str | None = None,
    problems: Mapping[str, str] | None = None,
) -> None:
    """What to take away: charts and tables of the results under ``keys``, and below them a request's model.

    Tables compare every result with that under ``against``, where there is one. ``problems`` say for kinds of
    model files why those can't be written here.
    """
    with st.popover("Export", icon=":material/download:", disabled=not keys):
        st.caption("What was measured")
        st.segmented_control(
            "Camera button of each chart saves",
            ["png", "svg"],
            format_func=str.upper,
            default="png",
            required=True,
            key="picture",
        )
        store = tasks.store()
        for kind, exporter in EXPORTERS.items():
            reason = chrome().problem if exporter.needs_chrome else ""
            st.download_button(
                exporter.label,
                data=partial(_table_file, exporter, store, keys, against if exporter.compares else None),
                file_name=file_name(name, exporter.extension),
                mime=exporter.mime,
                key=f"export {kind}",
                on_click="ignore",
                disabled=bool(reason),
                help=plain(reason) or None,
                width="stretch",
            )
        if request:
            st.caption(f"The model: {plain(request.recipe.describe())}")
            for kind, artifact in ARTIFACTS.items():
                key, problem = f"artifact {kind} {request_key(request)}", (problems or {}).get(kind, "")
                st.download_button(
                    artifact.label,
                    data=_model_file(kind, request, key),
                    file_name=file_name(f"{request.model} {kind}", "zip"),
                    mime="application/zip",
                    key=f"model {kind}",
                    on_click="ignore",
                    disabled=bool(problem),
                    help=plain(problem) or artifact.help,
                    width="stretch",
                )
                tasks.show_failure(tasks.pool().get(key))  # Streamlit says no more than that it failed


def _table_file(exporter: ExporterInfo, kept: Store, keys: Sequence[str], against: str | None) -> bytes:
    """Written when it is asked for, of results that are read then; ``against`` is one of the keys."""
    results = stored.several(kept, keys)
    return exporter.write(results, *[one for one in results if one.key == against])


def _model_file(kind: str, request: Request, key: str) -> Callable[[], bytes]:
    """Written by a worker when it is asked for, with recipe and model card; a job that failed is kept."""

    asks = tasks.visitor()  # where it is written, in a thread of a download, there is no session

    def written() -> bytes:
        pool = tasks.pool()
        job = pool.wait(pool.submit("interactive", "artifact", (kind, request), key, visitor=asks))
        if job.state == "done":
            pool.forget(key)  # megabytes
        return as_zip(tasks.finished(job, bytes), kind)

    return written
