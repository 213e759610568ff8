"""Starts Streamlit's server, and goes on with the sweeps that an earlier one left. (Not a page.)"""

import threading

from streamlit.web import cli

from optimizer.system.downloads import limit_visitors
from pages import tasks

if __name__ == "__main__":
    limit_visitors()  # before a worker is started, which inherits it
    threading.Thread(target=tasks.go_on, name="go on", daemon=True).start()
    cli.main(prog_name="streamlit")
