"""Starts Streamlit's server, and goes on with the sweeps that an earlier one left. (Not a page.)"""

import gc
import importlib
import logging
import threading

from streamlit.web import cli

from optimizer.system.downloads import limit_visitors
from pages import backlog

SOON_NEEDED = ("scipy.optimize", "pandas", "plotly.graph_objects")
"""By the first drawing of a frontier, which would wait for a quarter of a second or more."""


NO_SESSION = "streamlit.runtime.scriptrunner_utils.script_run_context"
"""The logger that warns of what works for no visitor's session; so does what is prepared before one comes."""


def prepare() -> None:
    backlog.go_on()
    load_libraries()


def load_libraries() -> None:
    """And leave them out when garbage is collected, which a page that reads 2,000 results has done several
    times: they are most of what there is."""
    for library in SOON_NEEDED:
        importlib.import_module(library)
    gc.freeze()


if __name__ == "__main__":
    limit_visitors()  # before a worker is started, which inherits it
    preparing = threading.Thread(target=prepare, name="prepare", daemon=True)
    logging.getLogger(NO_SESSION).addFilter(lambda record: record.threadName != preparing.name)
    preparing.start()
    cli.main(prog_name="streamlit")
