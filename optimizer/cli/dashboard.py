"""``paretoscope dashboard``: the page's server, and the names under which it may be opened."""

import argparse
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from optimizer.cli.terminal import say
from optimizer.cluster.addresses import check_address
from optimizer.cluster.attached import CLUSTER_VARIABLE
from optimizer.data.folders import ROOTS_VARIABLE, absolute, expand, joined_roots
from optimizer.errors import InputError, UnavailableError
from optimizer.search.sweep import WORK_AHEAD_VARIABLE
from optimizer.store.results import Store
from optimizer.system.downloads import DEFAULT_DOWNLOADS, DOWNLOADS_VARIABLE, parse_bytes
from optimizer.system.paths import HOME_VARIABLE, JOB_LOG_VARIABLE, STORE_VARIABLE, app_file, home
from optimizer.system.processes import CHECK_SECONDS, end, guard, release
from optimizer.system.uploads import DEFAULT_UPLOADS, UPLOADS_VARIABLE


def add_dashboard_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="FOLDER",
        help="open this folder to the page (repeat)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which the page may be opened, beside this machine's own (repeat)",
    )
    parser.add_argument(
        "--downloads",
        metavar="BYTES",
        help="weights that its visitors may download, all in all: 2GB, or 0 for none "
        f"(default: {DEFAULT_DOWNLOADS})",
    )
    parser.add_argument(
        "--uploads",
        metavar="BYTES",
        help=f"files that its visitors may add, all in all: 5GB, or 0 for none (default: {DEFAULT_UPLOADS})",
    )
    parser.add_argument(
        "--no-work-ahead",
        action="store_true",
        help="measure only what is asked for, not also the positions beside it while a visitor looks",
    )
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="time sweeps on the nodes of this cluster too, for visitors who choose one: tcp://... of a Dask "
        "scheduler, or slurm:PARTITION (docs/cluster.md)",
    )
    parser.add_argument(
        "--job-log",
        metavar="FILE",
        help="add a line of JSON for each step of each job: when it was asked for, begun, what was known "
        "when (docs/command_line.md)",
    )
    parser.add_argument("--headless", action="store_true", help="do not open a browser")


def run_dashboard(options: argparse.Namespace) -> None:
    """Serve the page until it is ended, or this process is. Raises InputError, UnavailableError."""
    home()  # a folder that can't be written is said here, not in a page
    if os.environ.get(STORE_VARIABLE):
        Store()  # nor a database that can't be used
    _check_free(options.host, options.port)
    environment = _environment(options)
    app = app_file()
    command = [sys.executable, "-m", "pages.serve", "run", str(app)]
    command += [f"--server.address={options.host}", f"--server.port={options.port}"]
    command += [f"--server.headless={str(options.headless).lower()}"]
    command += [f"--server.allowedHosts={name}" for name in allowed_hosts(options.host, options.allow_host)]
    if not is_loopback(options.host):
        say(OPEN_TO_OTHERS)
    server = subprocess.Popen(command, cwd=app.parent, env=environment)
    # Whoever ends this process (a service manager, kill, kill -9) ends the server with it.
    guarding = guard(server.pid)
    try:
        signal.signal(signal.SIGTERM, _leave)
        here = EVERY_ADDRESS.get(options.host, options.host)
        if _answers(server, here, options.port):
            name = f"[{here}]" if ":" in here else here
            print(f"Paretoscope is open at http://{name}:{options.port} (Ctrl-C ends it)", flush=True)
        server.wait()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end(server)
        release(guarding)
    if server.returncode not in (0, -signal.SIGTERM):  # asked to end before it listened to that
        raise UnavailableError(f"the dashboard ended with code {server.returncode}: see its output above")


def _check_free(host: str, port: int) -> None:
    """Raises UnavailableError for an address that can't be served on."""
    try:
        family = socket.getaddrinfo(host, None)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnavailableError(
            f"can't serve on {host}:{port} ({reason}): give another --port or --host"
        ) from error


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """The server's environment variables. Raises InputError for what is wrong with an option, and
    UnavailableError for a cluster that doesn't answer: a page would say it to nobody."""
    environment = {**os.environ, HOME_VARIABLE: str(home())}
    environment.pop("PYTHONSAFEPATH", None)  # pages/ lies in the server's working folder
    try:
        Path.home()
    except RuntimeError:  # of a user whom the system does not know: Streamlit looks there for its settings
        environment["HOME"] = str(home())
    if roots := joined_roots(options.images, "--images"):
        environment[ROOTS_VARIABLE] = roots
    if options.downloads is not None:
        environment[DOWNLOADS_VARIABLE] = options.downloads
    if options.uploads is not None:
        environment[UPLOADS_VARIABLE] = options.uploads
    for variable in (UPLOADS_VARIABLE, DOWNLOADS_VARIABLE):
        parse_bytes(environment.get(variable, "0"), variable)
    if options.cluster is not None:
        environment[CLUSTER_VARIABLE] = options.cluster
    if cluster := environment.get(CLUSTER_VARIABLE):
        check_address(cluster)
    if options.no_work_ahead:
        environment[WORK_AHEAD_VARIABLE] = "0"
    if options.job_log is not None:
        try:
            expand(options.job_log).open("a").close()
        except OSError as error:
            raise InputError(
                f"can't write --job-log {options.job_log} ({error.strerror or error}): name a file "
                "in a folder that can be written"
            ) from error
        environment[JOB_LOG_VARIABLE] = absolute(options.job_log)
    return environment


def _answers(server: subprocess.Popen[bytes], host: str, port: int) -> bool:
    """Whether the server takes connections; waits for it to do so, or to end."""
    while server.poll() is None:
        with suppress(OSError), socket.create_connection((host, port), timeout=1):
            return True
        time.sleep(CHECK_SECONDS)
    return False


def _leave(*_: object) -> NoReturn:
    raise SystemExit(0)


EVERY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""What listens on all addresses of this machine is reached on it at this one."""
OPEN_TO_OTHERS = (
    "this address can be reached from other machines. Whoever reaches it can start work on this one, read "
    "the image folders that you open, download model weights, and see and drop what was measured; there is "
    "no sign-in. Put a proxy with sign-in in front, or leave out --host. Names under which the page is "
    "opened are given with --allow-host"
)
"""What is said when the dashboard listens beyond this machine."""


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach an address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def allowed_hosts(host: str, named: Sequence[str]) -> list[str]:
    """The names under which the page may be opened: this machine's own, and those that the operator gives.

    A page of another name that leads to this machine (DNS rebinding) is refused its connection.
    """
    names = ["localhost", "127.0.0.1", "::1", host, *named]
    if not is_loopback(host):
        import psutil

        own = [address.address for every in psutil.net_if_addrs().values() for address in every]
        names += [socket.gethostname(), socket.getfqdn(), *(one.partition("%")[0] for one in own)]
    return list(dict.fromkeys(name for name in names if name not in EVERY_ADDRESS))
