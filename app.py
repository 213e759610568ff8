"""The dashboard's entry: navigation, and the sidebar that every page shares."""

import streamlit as st

from optimizer.system.downloads import limit_visitors
from optimizer.system.recent import one_moment
from pages import adding_images, address, backlog, drawing, sidebar, tasks

# Four cards and four charts fit a laptop's screen, and nothing of Streamlit's own lies over them. Fewer stand
# side by side where a chart's title, a card's value or a control's would be cut off.
COMPACT = """
.stMainBlockContainer { padding: 4rem 2.5rem 2rem; }
.st-key-title h2 { padding: 0; font-size: 1.5rem; }
[data-testid="stMetricValue"] { font-size: 1.7rem; }
[data-testid="stMetricDelta"] [data-testid="stMarkdownContainer"] p { white-space: normal; }
.stApp:not(:has([data-testid="stExpandSidebarButton"])) :has(> .st-key-chosen) { display: none; }
@media (max-width: 40rem) {
    .stMainBlockContainer { padding: 4rem 1rem 2rem; }
    .stMain [role="radiogroup"]:has(> [data-variant="segmented_control"]) { flex-wrap: nowrap; }
    .stMain [data-variant="segmented_control"] {
        flex: 1 1 auto; height: auto; padding: 0.25rem 0.5rem; white-space: normal;
    }
    .st-key-effects [data-testid="stColumn"] { flex: 1 1 8rem; min-width: 8rem; }
}
@media (min-width: 64rem) {
    .stApp:not(:has([data-testid="stExpandSidebarButton"])) .st-key-title {
        margin: -4.2rem 0 -1.5rem; position: relative; z-index: 1000000; pointer-events: none;
    }
}
/* What is written on the accent has the page's colour, as the theme has it. */
[data-testid="stBaseButton-primary"]:not(:disabled) { color: light-dark(#ffffff, #171614) !important; }
/* Streamlit's captions have a contrast of 3.9, and a link of its menu that has the focus one of 1.1. */
[data-testid="stCaptionContainer"] { opacity: 0.7; }
[data-testid="stSidebarNavLink"]:focus-visible { outline: 2px solid; outline-offset: -2px; }
.swipe { margin: 0; font-size: 0.875rem; opacity: 0.6; }
@media (min-width: 40rem) {
    [data-testid="stElementContainer"]:has(.swipe) { display: none; }
    [data-testid="stColumn"]:has([data-testid="stMetric"]) { min-width: min(9rem, 100%); }
    [data-testid="stColumn"]:has(.stPlotlyChart) { min-width: min(22rem, 100%); }
    [class*="st-key-charts-"] [data-testid="stColumn"] { min-width: min(27rem, 100%); }
    .st-key-recipe [data-testid="stColumn"] { flex: none; width: auto; min-width: 0; }
    .st-key-recipe [data-testid="stColumn"]:has([data-testid="stSelectbox"]) { flex: 1 0 10rem; }
    .st-key-recipe [data-testid="stColumn"]:has([data-testid="stSlider"]) { flex: 2 0 7.25rem; }
}
[data-testid="stFullScreenFrame"]:has(> .stPlotlyChart) { container-type: inline-size; }
@container (max-width: 36rem) {
    .stPlotlyChart .modebar-group:not(:first-child, :last-child) { display: none; }
}
@media (hover: none) {
    .stPlotlyChart .modebar-group:not(:last-child), .st-key-picture { display: none; }
    .stDataFrame { margin-top: 3rem; }
}
"""

limit_visitors()  # before a worker is started, which inherits it
page = sidebar.navigation()
drawing.one_entry_a_page()
st.html(f"<style>{COMPACT}</style>")
with tasks.errors_in_words(), one_moment():
    address.note()
    sidebar.open_result()
    sidebar.sidebar()
    address.read(sidebar.selection().card.name, page.url_path)
    backlog.fill_first()
    backlog.go_on()
    tasks.begin_page()
    with tasks.errors_in_words():
        page.run()
    address.tell_left_out(sliders=not page.url_path)
    address.write(sliders=not page.url_path)
    with st.sidebar:
        tasks.show_others()
    sidebar.show_notices()  # last: what draws the page anew takes a toast away
drawing.follow_theme()
adding_images.note_refused()
