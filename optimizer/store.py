"""What was measured, kept: one SQLite file, safe from several threads and processes on one host.

A record is stored whole as JSON (:func:`optimizer.records.encode`) beside the columns it is looked up by.
Every call opens the file and closes it again: a connection is bound to its thread, Streamlit starts a thread
for every rerun, and opening costs less than a millisecond.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from optimizer.errors import InputError, UnavailableError
from optimizer.keys import request_key
from optimizer.records import SCHEMA, DataSpec, Latency, Request, Result, decode, digest, encode

T = TypeVar("T")
Migration = Callable[[sqlite3.Connection], None]

BUSY_SECONDS = 30.0
"""How long a call waits for another process's write."""

MIGRATIONS: list[Migration] = []
"""Steps from an empty file to today's tables, oldest first. The database's ``user_version`` counts those it
has had. A released step is never edited: add another."""


def migration(step: Migration) -> Migration:
    """Register ``step`` as the next one. It runs inside a transaction, so it must not commit."""
    MIGRATIONS.append(step)
    return step


@migration
def _create(connection: sqlite3.Connection) -> None:
    for statement in (
        "CREATE TABLE results (key TEXT PRIMARY KEY, schema INTEGER, model TEXT, data TEXT, engine TEXT,"
        " environment TEXT, signature TEXT, created TEXT, json BLOB)",
        "CREATE INDEX results_asked ON results (schema, model, data, engine)",
        "CREATE INDEX results_signature ON results (signature)",
        "CREATE TABLE latencies (signature TEXT, quick INTEGER, schema INTEGER, json BLOB,"
        " PRIMARY KEY (signature, quick))",
        "CREATE TABLE failures (key TEXT PRIMARY KEY, schema INTEGER, json BLOB)",
        "CREATE TABLE documents (kind TEXT, key TEXT, created TEXT, json BLOB, PRIMARY KEY (kind, key))",
    ):
        connection.execute(statement)


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that was tried ``attempts`` times and gave no result. ``created`` is UTC, ISO 8601."""

    key: str
    request: Request
    message: str
    attempts: int
    created: str


class Store:
    """The results in ``path``, by default ``results.sqlite`` in the user's data folder.

    Rows written under another ``records.SCHEMA`` are passed over: they are measured anew. Every method raises
    UnavailableError when the file can't be used: read-only, damaged, disk full, from a newer version.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        if path is None:
            from optimizer.resources import home

            path = home() / "results.sqlite"
        self.path = Path(path)
        with self._connected():
            pass

    def put(self, result: Result) -> None:
        """Keep a result and the measurement in it; an earlier failure under its key is forgotten."""
        request, latency = result.request, result.latency
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    result.key,
                    result.schema,
                    request.model,
                    digest(request.data),
                    request.engine,
                    result.environment.key,
                    latency.signature,
                    result.created,
                    encode(result),
                ),
            )
            connection.execute(
                "INSERT OR REPLACE INTO latencies VALUES (?, ?, ?, ?)",
                (latency.signature, latency.quick, result.schema, encode(latency)),
            )
            connection.execute("DELETE FROM failures WHERE key = ?", (result.key,))

    def get(self, key: str) -> Result | None:
        """The result under ``key``, or None."""
        rows = self._read("SELECT json FROM results WHERE key = ? AND schema = ?", (key, SCHEMA))
        return self._decode(rows[0][0], Result) if rows else None

    def best(self, request: Request) -> Result | None:
        """The result of a request, timed in full where there is one, else in the quick mode."""
        for quick in (False, True):
            settings = replace(request.settings, quick=quick)
            if found := self.get(request_key(replace(request, settings=settings))):
                return found
        return None

    def results(
        self,
        model: str | None = None,
        data: DataSpec | None = None,
        engine: str | None = None,
        limit: int | None = None,
    ) -> list[Result]:
        """Results, newest last; None matches all. ``limit`` keeps the newest."""
        asked = {"schema": SCHEMA, "model": model, "data": data and digest(data), "engine": engine}
        given = {column: value for column, value in asked.items() if value is not None}
        rows = self._read(
            f"SELECT json FROM results WHERE {' AND '.join(f'{column} = ?' for column in given)}"
            " ORDER BY created DESC, rowid DESC LIMIT ?",
            (*given.values(), -1 if limit is None else limit),
        )
        return [self._decode(row[0], Result) for row in reversed(rows)]

    def count(self) -> int:
        """How many results :meth:`results` would give."""
        return int(self._read("SELECT count(*) FROM results WHERE schema = ?", (SCHEMA,))[0][0])

    def latency(self, signature: str, quick: bool) -> Latency | None:
        """The newest measurement of an execution signature, or None.

        A full measurement serves a quick request, not the reverse.
        """
        rows = self._read(
            "SELECT json FROM latencies WHERE signature = ? AND quick <= ? AND schema = ?"
            " ORDER BY rowid DESC LIMIT 1",
            (signature, quick, SCHEMA),
        )
        return self._decode(rows[0][0], Latency) if rows else None

    def forget(self, keys: Iterable[str]) -> None:
        """Drop results and failures, and the measurements that no other result shares."""
        rows = [(key,) for key in keys]
        with self._writing() as connection:
            connection.executemany("DELETE FROM results WHERE key = ?", rows)
            connection.executemany("DELETE FROM failures WHERE key = ?", rows)
            connection.execute("DELETE FROM latencies WHERE signature NOT IN (SELECT signature FROM results)")

    def put_failure(self, key: str, request: Request, message: str, attempts: int) -> None:
        """Keep a failure, in place of an earlier one under its key."""
        failure = Failure(key, request, message, attempts, _now())
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", (key, SCHEMA, encode(failure))
            )

    def failure(self, key: str) -> Failure | None:
        """The failure under ``key``, or None."""
        rows = self._read("SELECT json FROM failures WHERE key = ? AND schema = ?", (key, SCHEMA))
        return self._decode(rows[0][0], Failure) if rows else None

    def failures(self) -> list[Failure]:
        """Every failure, newest last."""
        rows = self._read("SELECT json FROM failures WHERE schema = ? ORDER BY rowid", (SCHEMA,))
        return [self._decode(row[0], Failure) for row in rows]

    def put_document(self, kind: str, key: str, json: bytes) -> None:
        """Keep any JSON under a kind and a key, in place of an earlier one."""
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)", (kind, key, _now(), json)
            )

    def get_document(self, kind: str, key: str) -> bytes | None:
        """The JSON under a kind and a key, or None."""
        rows = self._read("SELECT json FROM documents WHERE kind = ? AND key = ?", (kind, key))
        return bytes(rows[0][0]) if rows else None

    def documents(self, kind: str) -> dict[str, bytes]:
        """Every document of a kind by its key, last written last."""
        rows = self._read("SELECT key, json FROM documents WHERE kind = ? ORDER BY rowid", (kind,))
        return {key: bytes(json) for key, json in rows}

    def forget_document(self, kind: str, key: str) -> None:
        """Drop a document, if it is there."""
        with self._writing() as connection:
            connection.execute("DELETE FROM documents WHERE kind = ? AND key = ?", (kind, key))

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # No isolation level: transactions begin and end where this file says, not where Python guesses.
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            with closing(connection):
                self._migrate(connection)
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise self._unavailable(error) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")  # not reached after an error: closing rolls back

    def _read(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._connected() as connection:
            return connection.execute(query, values).fetchall()

    def _migrate(self, connection: sqlite3.Connection) -> None:
        if self._version(connection) == len(MIGRATIONS):
            return
        _turn_wal_on(connection)
        while True:
            connection.execute("BEGIN IMMEDIATE")
            done = self._version(connection)  # again: another process may have been quicker
            if done == len(MIGRATIONS):
                connection.execute("ROLLBACK")
                return
            MIGRATIONS[done](connection)
            connection.execute(f"PRAGMA user_version = {done + 1}")
            connection.execute("COMMIT")

    def _version(self, connection: sqlite3.Connection) -> int:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > len(MIGRATIONS):
            raise UnavailableError(
                f"{self.path} is from a newer Paretoscope (database version {version}, this one reads up to"
                f" {len(MIGRATIONS)}): upgrade, or set PARETOSCOPE_HOME to another folder"
            )
        return version

    def _decode(self, json: bytes, kind: type[T]) -> T:
        try:
            return decode(json, kind)
        except InputError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> UnavailableError:
        return UnavailableError(
            f"can't use the results in {self.path}: {error}. Check that the folder is writable, its disk has"
            " room and the file is whole (move a damaged one away), or set PARETOSCOPE_HOME to another folder"
        )


def _turn_wal_on(connection: sqlite3.Connection) -> None:
    """Readers and a writer side by side. Kept in the file, so this happens once, when it is new.

    While another process is about to do the same, SQLite refuses at once and doesn't heed the busy timeout.
    """
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _now() -> str:
    return datetime.now(UTC).isoformat()
