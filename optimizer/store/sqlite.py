"""One SQLite file, safe from several threads and processes on one host.

Every call opens the file and closes it again: a connection is bound to its thread, Streamlit starts a thread
for every rerun, and opening costs less than a millisecond.
"""

import errno
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Engine, NullPool, create_engine, func
from sqlalchemy.exc import DBAPIError

from optimizer.errors import UnavailableError
from optimizer.store import database, migrations
from optimizer.system.paths import HOME_VARIABLE, is_network

MIN_FREE_BYTES = 2**20
"""With less room on the disk nothing more is measured by itself."""
PAGE_BYTES = 8192
"""On one of 4,096, the usual, one summary leaves no room for a second."""
NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_CREATING = threading.Lock()


class Sqlite(database.Database):
    """The file ``path``, made where it is not there. What is there is read on a full disk too."""

    shared = False
    elsewhere = f"set {HOME_VARIABLE} to another folder"
    check = (
        "Check that the folder is writable, its disk has room and the file is whole (move a damaged one away)"
    )

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, str(path)
        # Readers beside a writer share memory through a mapped file, which other machines don't see.
        self._journal = "DELETE" if is_network(path.parent) else "WAL"

    def open(self) -> None:
        self._close_to_others()
        if self._journal == "DELETE":
            with self._alone() as connection:
                self.prepare(connection)
        with self.reading():
            pass

    def connect(self) -> Connection:
        self._create()
        return _engine(self.path).connect()

    def lock(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def version(self, connection: Connection) -> int:
        return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())

    def step(self, connection: Connection, done: int) -> None:
        migrations.MIGRATIONS[done](connection)
        connection.exec_driver_sql(f"PRAGMA user_version = {done + 1}")

    def prepare(self, connection: Connection) -> None:
        """WAL: readers and a writer side by side; DELETE works everywhere. Kept in the file.

        While another process is about to do the same, SQLite refuses at once and doesn't heed the busy
        timeout.
        """
        connection.exec_driver_sql(f"PRAGMA page_size = {PAGE_BYTES}")  # of a new file
        end = time.monotonic() + database.BUSY_SECONDS
        while True:
            try:
                # Read to its end: till then it is in progress, and nothing can be committed beside it. Its
                # going out of scope is not enough, as a profiler (a Dask worker has one) may hold its frame.
                connection.exec_driver_sql(f"PRAGMA journal_mode = {self._journal}").all()
                return
            except DBAPIError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
            time.sleep(0.01)

    def contains(self, column: ColumnElement[bytes], part: ColumnElement[bytes]) -> ColumnElement[bool]:
        return func.instr(column, part) > 0

    def words(self, error: Exception) -> str:
        if _is_no_room(error):
            return "no room is left on its disk"
        return str(error.orig if isinstance(error, DBAPIError) else error)

    def check_room(self) -> None:
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError as error:  # the folder is gone
            raise self.unavailable(error) from error
        if free < MIN_FREE_BYTES:
            raise self.unavailable(OSError(errno.ENOSPC, ""))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection to read with, which a full disk does not prevent."""
        with ExitStack() as open_ones:
            try:
                connection = open_ones.enter_context(self.connected(self.connect))
            except UnavailableError as error:
                if not _is_no_room(error.__cause__):
                    raise
                connection = open_ones.enter_context(self._alone())
            yield connection

    def _alone(self) -> AbstractContextManager[Connection]:
        """A connection that needs neither a mapped file nor room for one, and locks others out."""

        def connect() -> Connection:
            connection = self.connect()
            connection.exec_driver_sql("PRAGMA locking_mode = EXCLUSIVE").all()
            return connection

        return self.connected(connect)

    def _close_to_others(self) -> None:
        """Results name folders and files of their user."""
        for suffix in ("", "-wal", "-shm", "-journal"):
            path = self.path.with_name(self.path.name + suffix)
            with suppress(OSError):
                if path.is_file():
                    path.chmod(0o600)

    def _create(self) -> None:
        """An empty file that only its user reads, if there is none; what SQLite puts beside it is like it.

        One thread at a time, as closing a file gives up the process's locks on it.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _CREATING:
            if not self.path.exists():
                with suppress(FileExistsError):
                    self.path.touch(0o600, exist_ok=False)


@lru_cache(maxsize=64)
def _engine(path: Path) -> Engine:
    """Holds no connection, but what SQLAlchemy has made of statements."""
    return create_engine("sqlite://", creator=partial(_open, path), poolclass=NullPool)


def _open(path: Path) -> sqlite3.Connection:
    # No isolation level: transactions begin and end where this file says, not where Python guesses.
    connection = sqlite3.connect(path, timeout=database.BUSY_SECONDS, isolation_level=None)
    # Also where it is damaged.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    return connection


def _code(error: BaseException | None) -> int | None:
    return getattr(error.orig, "sqlite_errorcode", None) if isinstance(error, DBAPIError) else None


def _is_no_room(error: BaseException | None) -> bool:
    return _code(error) in NO_ROOM or (isinstance(error, OSError) and error.errno == errno.ENOSPC)
