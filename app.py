"""The dashboard's entry: navigation, and the sidebar that every page shares."""

import streamlit as st

from optimizer.system.downloads import limit_visitors
from pages import drawing, sidebar, tasks

# Four cards and four charts fit a laptop's screen, and nothing of Streamlit's own lies over them.
COMPACT = """
.stMainBlockContainer { padding: 4rem 2.5rem 2rem; }
[data-testid="stMetricValue"] { font-size: 1.7rem; }
[data-testid="stSkillsNudge"] { display: none; }
@media (max-width: 40rem) { .stMainBlockContainer { padding: 4rem 1rem 2rem; } }
"""

limit_visitors()  # before a worker is started, which inherits it
page = sidebar.navigation()
st.html(f"<style>{COMPACT}</style>")
with tasks.errors_in_words():
    sidebar.sidebar()
    tasks.begin_page()
    page.run()
    with st.sidebar:
        tasks.show_others()
    drawing.follow_theme()
