"""A schema of its own in a PostgreSQL database, which several servers may share."""

import os
import time
from collections.abc import Mapping

from sqlalchemy import URL, ColumnElement, Connection, Engine, create_engine, event, func, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from optimizer.errors import InputError, UnavailableError, one_line
from optimizer.store import database, migrations
from optimizer.store.tables import METADATA
from optimizer.system.paths import STORE_VARIABLE

SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
SCHEMA = "paretoscope"
CONNECT: Mapping[str, str] = {
    "application_name": "paretoscope",
    "connect_timeout": "4",  # of each address: a name may have two
    "keepalives_idle": "10",
    "tcp_user_timeout": "20000",
}
"""How libpq connects, where the URL says nothing else. A network that is gone is noticed."""
WRITERS = 0x70617265746F
"""The lock of PostgreSQL's that a writer holds until its transaction ends."""
AGAIN_SECONDS = 0.2
FIRST_SECONDS = 4.0
"""How long a server is waited for that has not answered this process yet."""
_ANSWERED = set[URL]()
_ENGINES = dict[URL, Engine]()
WORDS = {"53100": "no room is left on its disk", "55P03": "the database is locked"}
"""By the state that PostgreSQL gives an error."""


class Postgresql(database.Database):
    """The database that a URL leads to, ``postgresql://USER@HOST/DATABASE``.

    Raises InputError for another URL, UnavailableError where psycopg is not installed.
    """

    shared = True
    elsewhere = f"set {STORE_VARIABLE} to another, or to nothing for a file in the data folder"
    check = "Check that the server runs, the address, the user, the password and what the user may do there"

    def __init__(self, url: str) -> None:
        self._url = _parse(url)
        self.place = self._url.set(drivername="postgresql", query={}).render_as_string(hide_password=True)
        self._made = False

    @database.again_if_lost
    def open(self) -> None:
        with self.reading():
            pass

    def connect(self) -> Connection:
        """One that answers. A server that is being started is waited for, longer where it answered before."""
        engine = _engine(self._url)
        waits = database.BUSY_SECONDS if self._url in _ANSWERED else FIRST_SECONDS
        end, accepted = time.monotonic() + waits, False
        while True:
            try:
                connection = engine.connect()
                _ANSWERED.add(self._url)
                return connection
            except OperationalError:
                before, accepted = accepted, _accepts(engine)
                # Who took connections before and after has refused this one for its user or database.
                if (before and accepted) or time.monotonic() > end:
                    raise
            time.sleep(AGAIN_SECONDS)

    def prepare(self, connection: Connection) -> None:
        """Nothing has to."""

    def lock(self, connection: Connection) -> None:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": WRITERS})

    def version(self, connection: Connection) -> int:
        if not self._made:
            # to_regclass may not know yet what was made while this transaction waited for the lock.
            made = "SELECT FROM pg_catalog.pg_tables WHERE schemaname = :schema AND tablename = 'version'"
            if not connection.scalar(text(f"SELECT EXISTS ({made})"), {"schema": SCHEMA}):
                return 0
            self._made = True
        return int(connection.execute(text(f"SELECT number FROM {SCHEMA}.version")).scalar_one())

    def step(self, connection: Connection, done: int) -> None:
        if done:
            migrations.MIGRATIONS[done](connection)
            connection.execute(text(f"UPDATE {SCHEMA}.version SET number = {done + 1}"))
            return
        there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = :schema)"
        if not connection.scalar(text(there), {"schema": SCHEMA}):  # who may not make it may own it
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        METADATA.create_all(connection)
        connection.execute(text(f"CREATE TABLE {SCHEMA}.version (number INTEGER NOT NULL)"))
        connection.execute(text(f"INSERT INTO {SCHEMA}.version VALUES ({len(migrations.MIGRATIONS)})"))

    def contains(self, column: ColumnElement[bytes], part: ColumnElement[bytes]) -> ColumnElement[bool]:
        return func.pg_catalog.position(column, part) > 0

    def words(self, error: Exception) -> str:
        found = error.orig if isinstance(error, DBAPIError) else error
        return WORDS.get(getattr(found, "sqlstate", None) or "", one_line(found))

    def check_room(self) -> None:
        self.open()


def _parse(url: str) -> URL:
    scheme, _, rest = url.partition("://")
    try:
        if scheme not in SCHEMES:
            raise ArgumentError
        found = make_url(f"postgresql+psycopg://{rest}")
    except (ArgumentError, ValueError):
        raise InputError(  # the words of either quote the address, and the password in it
            "the store's address can't be read, or leads to another kind of database: give"
            " postgresql://USER@HOST:PORT/DATABASE, with what is no letter or digit in a password as %XX"
        ) from None
    if "@" in f"{found.host}{found.database}":  # of a password, and what follows it would be shown
        raise InputError(
            "the store's address has an @ before the one that its host follows: write it in a password as %40"
        )
    return found.update_query_dict({**CONNECT, **found.query})


def _engine(url: URL) -> Engine:
    """Holds a few open connections, each asked before it is used whether it still is one. Threads share it:
    of those that they make at once, one is kept before any has connected."""
    return _ENGINES.get(url) or _ENGINES.setdefault(url, _make_engine(url))


def _make_engine(url: URL) -> Engine:
    try:
        # Not the server's default: who has waited for the lock sees what was written meanwhile.
        engine = create_engine(url, pool_pre_ping=True, isolation_level="READ COMMITTED")
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "a store in PostgreSQL needs the package psycopg: pip install 'paretoscope[postgres]'"
        ) from error
    event.listen(engine, "connect", _prepare)
    return engine


if hasattr(os, "register_at_fork"):  # a forked process may not use its parent's connections, nor close them
    os.register_at_fork(after_in_child=_ENGINES.clear)


def _accepts(engine: Engine) -> bool:
    """Whether the server takes connections, of whomever."""
    from psycopg import pq

    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return pq.PGconn.ping(url.encode()) == pq.Ping.OK


def _prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    """Who is gone holds up no other."""
    seconds, cursor = database.BUSY_SECONDS, connection.cursor()
    cursor.execute(f"SET search_path = {SCHEMA}")
    cursor.execute(f"SET lock_timeout = '{seconds}s'")
    cursor.execute(f"SET idle_in_transaction_session_timeout = '{2 * seconds}s'")
    connection.commit()
