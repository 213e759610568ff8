"""The databases of stores, from outside; and a PostgreSQL server of the tests' own, where Debian's package
``postgresql`` is installed."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from lacking import skip_for
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

DEADLINE_SECONDS = 60
USER = "postgres"
"""Who runs the server where root runs the tests, which PostgreSQL refuses; the package makes it."""


def query(place: Path | str, sql: str, **values: object) -> list[tuple[object, ...]]:
    """The rows of a statement, as another program would ask for them."""
    url = f"sqlite:///{place}" if isinstance(place, Path) else place.replace("://", "+psycopg://")
    with create_engine(url, poolclass=NullPool).begin() as connection:
        if not isinstance(place, Path):
            connection.execute(text("SET search_path = paretoscope"))
        done = connection.execute(text(sql), values)
        return [tuple(row) for row in done] if done.returns_rows else []


def set_version(place: Path | str, version: int) -> int:
    """What it was before."""
    file = isinstance(place, Path)
    ((before,),) = query(place, "PRAGMA user_version" if file else "SELECT number FROM version")
    query(place, f"PRAGMA user_version = {version}" if file else f"UPDATE version SET number = {version}")
    return int(str(before))


class Server:
    """One that is killed and started again by its process number. ``url`` leads to its database."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._data = programs, folder / "data"
        self._as = {"user": USER, "group": USER} if os.geteuid() == 0 else {}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"postgresql://ann:secret@127.0.0.1:{self.port}/postgres"
        if self._as:
            shutil.chown(folder, USER, USER)
        password = folder / "password"
        password.write_text("secret")
        made = [programs / "initdb", "-D", self._data, "-U", "ann", "-A", "scram-sha-256", "--no-sync"]
        made += [f"--pwfile={password}", "--no-locale", "-E", "UTF8"]
        subprocess.run(made, cwd=folder, check=True, capture_output=True, **self._as)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Wait until it answers. What a killed one leaves behind refuses the next for a moment."""
        own = f"listen_addresses=127.0.0.1 port={self.port} unix_socket_directories= fsync=off".split()
        command = [
            self._programs / "postgres",
            "-D",
            self._data,
            *(word for one in own for word in ("-c", one)),
        ]
        end = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < end:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    command, cwd=self._data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._as
                )
            with suppress(OperationalError):
                query(self.url, "SELECT 1")
                return
            time.sleep(0.05)
        raise AssertionError("the server didn't start")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends its connections in order, SIGKILL leaves them."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait()

    def empty(self) -> str:
        """Its URL, with nothing there."""
        query(self.url, "DROP SCHEMA IF EXISTS paretoscope CASCADE")
        return self.url


@contextmanager
def server() -> Iterator[Server]:
    """Skips the test where there is none."""
    if find_spec("psycopg") is None:
        skip_for("needs psycopg: pip install 'paretoscope[postgres]'")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        skip_for("needs a PostgreSQL server: apt-get install postgresql")
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        one = Server(found[-1].parent, Path(folder))
        one.start()
        try:
            yield one
        finally:
            one.stop()
