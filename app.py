"""The dashboard's entry: navigation, and the sidebar that every page shares."""

import streamlit as st

from pages import common

# Four cards and four charts fit a laptop's screen.
COMPACT = """
.stMainBlockContainer { padding: 4rem 2.5rem 2rem; }
[data-testid="stMetricValue"] { font-size: 1.7rem; }
@media (max-width: 40rem) { .stMainBlockContainer { padding: 4rem 1rem 2rem; } }
"""

page = common.navigation()
st.html(f"<style>{COMPACT}</style>")
with common.errors_in_words():
    common.sidebar()
    page.run()
    common.follow_theme()
