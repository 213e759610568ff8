"""The dashboard's entry: page config, navigation, and the sidebar that every page shares."""

import streamlit as st

from optimizer.resources import asset
from pages import common

# Four cards and four charts fit a laptop's screen.
COMPACT = """
.stMainBlockContainer { padding: 4rem 2.5rem 2rem; }
[data-testid="stMetricValue"] { font-size: 1.7rem; }
"""

st.set_page_config(
    page_title="Paretoscope",
    page_icon=str(asset("logo.png")),  # an icon by name would be fetched from a font server
    layout="wide",
    menu_items={
        "About": "Prune and quantize a pretrained model, and see what it costs and buys on this machine."
    },
)
page = common.navigation()
st.set_page_config(page_title=f"{page.title} · Paretoscope")
st.html(f"<style>{COMPACT}</style>")
with common.errors_in_words():
    common.sidebar()
    page.run()
