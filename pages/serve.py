"""Starts Streamlit's server, and goes on with the sweeps that an earlier one left. (Not a page.)"""

import importlib
import threading

from streamlit.web import cli

from optimizer.system.downloads import limit_visitors
from pages import tasks

SOON_NEEDED = ("scipy.optimize", "pandas", "plotly.graph_objects")
"""By the first drawing of a frontier, which would wait for a quarter of a second or more."""


def prepare() -> None:
    tasks.go_on()
    for library in SOON_NEEDED:
        importlib.import_module(library)


if __name__ == "__main__":
    limit_visitors()  # before a worker is started, which inherits it
    threading.Thread(target=prepare, name="prepare", daemon=True).start()
    cli.main(prog_name="streamlit")
