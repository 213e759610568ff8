"""What was measured, kept: one SQLite file, safe from several threads and processes on one host.

A record is stored whole as JSON (:func:`optimizer.records.encode`) beside the columns it is looked up by.
What a result comes to is in a table of its own (:mod:`optimizer.analysis.stored`), as bytes that mean nothing
here.
Every call opens the file and closes it again: a connection is bound to its thread, Streamlit starts a thread
for every rerun, and opening costs less than a millisecond.
"""

import errno
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from optimizer.errors import UnavailableError
from optimizer.formats import count
from optimizer.records import SCHEMA, DataSpec, Latency, Request, Result, decode, digest, encode
from optimizer.store import migrations
from optimizer.store.keys import request_key
from optimizer.system.paths import home, is_network

T = TypeVar("T")
BUSY_SECONDS = 30.0
"""How long a call waits for another process's write."""

MAX_FAILURES = 200
"""How many failures are kept, the newest."""
MAX_MESSAGE = 2000
"""Characters of a failure's message that are kept."""
MIN_FREE_BYTES = 2**20
"""With less room on the disk nothing more is measured by itself."""
ANSWER, EARLY_ANSWER, SEARCH = "answer", "early answer", "search"
"""Kinds of documents: what answers a question, what answers one that was ended early, and how far a search
is. They name results by their keys, and go with them."""
NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_CREATING = threading.Lock()
Packed = tuple[int, bytes]
"""A summary as it is stored, after its version."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that was tried ``attempts`` times and gave no result. ``created`` is UTC, ISO 8601."""

    key: str
    request: Request
    message: str
    attempts: int
    created: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that is damaged, or that today's limits refuse: ``kind`` says of what, ``reason`` why, and
    ``written`` is what is there in a record's place."""

    table: str
    row: int
    kind: str
    reason: str
    written: object


class Store:
    """The results in ``path``, by default ``results.sqlite`` in the user's data folder.

    Rows written under another ``records.SCHEMA`` are passed over: they are measured anew. So are rows that
    can't be read, which :meth:`unreadable` tells of. Every method raises UnavailableError when the file can't
    be used: read-only, damaged, disk full, from a newer version. What is there is read on a full disk too.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        if path is None:
            path = home() / "results.sqlite"
        self.path = Path(path)
        # Readers beside a writer share memory through a mapped file, which other machines don't see.
        self._journal = "DELETE" if is_network(self.path.parent) else "WAL"
        self._close_to_others()
        if self._journal == "DELETE":
            with self._connected(alone=True) as connection:
                _set_journal(connection, self._journal)
        self.read("SELECT 1")

    def put(self, result: Result, summary: Packed | None = None) -> None:
        """Keep a result with its summary and the measurement in it; an earlier failure under its key is
        forgotten, and so is an earlier summary."""
        request, latency = result.request, result.latency
        with self.writing() as connection:
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
            connection.execute("DELETE FROM summaries WHERE key = ?", (result.key,))
            if summary:
                connection.execute("INSERT INTO summaries VALUES (?, ?, ?)", (result.key, *summary))

    def get(self, key: str) -> Result | None:
        """The result under ``key``, or None."""
        return _first(self.read("SELECT json FROM results WHERE key = ? AND schema = ?", key, SCHEMA), Result)

    def several(self, keys: Sequence[str]) -> list[Result]:
        """The results under those of the keys that have one, in their order."""
        return [*_readable((json for _, json in self.written(keys)), Result)]

    def written(self, keys: Sequence[str]) -> list[tuple[str, bytes]]:
        """Each of the keys that has a result, in their order, and the result as it is stored."""
        return self._of("json", "results", keys)

    def known(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys under which a result is."""
        return {key for key, _ in self._of("NULL", "results", [*keys])}

    def _of(self, column: str, tables: str, keys: Sequence[str]) -> list[tuple[str, Any]]:
        """Each of the keys that has a result, in their order, and a column. (The plus keeps SQLite from going
        through all of a schema.)"""
        rows = self.read(
            f"SELECT results.key, {column} FROM {tables}"
            " WHERE +schema = ? AND results.key IN (SELECT value FROM json_each(?))",
            SCHEMA,
            encode(keys).decode(),
        )
        found = dict(rows)
        return [(key, found[key]) for key in dict.fromkeys(keys) if key in found]

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
        rows = self._asked("json", "results", model, data, engine, limit)
        return [*_readable((json for _, json in rows), Result)]

    def _asked(
        self,
        column: str,
        tables: str,
        model: str | None,
        data: DataSpec | None,
        engine: str | None,
        limit: int | None,
    ) -> list[tuple[str, Any]]:
        """The key and a column of the results that are asked for, newest last."""
        asked = {"schema": SCHEMA, "model": model, "data": data and digest(data), "engine": engine}
        given = {name: value for name, value in asked.items() if value is not None}
        rows = self.read(
            f"SELECT results.key, {column} FROM {tables}"
            f" WHERE {' AND '.join(f'{name} = ?' for name in given)}"
            " ORDER BY created DESC, results.rowid DESC LIMIT ?",
            *given.values(),
            -1 if limit is None else limit,
        )
        return rows[::-1]

    def summaries(
        self,
        version: int,
        model: str | None = None,
        data: DataSpec | None = None,
        engine: str | None = None,
        limit: int | None = None,
    ) -> list[tuple[str, bytes | None]]:
        """The results that :meth:`results` gives: the key, and the summary of that version, None without."""
        return self._asked("packed", _beside(version), model, data, engine, limit)

    def summaries_of(self, version: int, keys: Sequence[str]) -> list[tuple[str, bytes | None]]:
        """The same of those of the keys that have a result, in their order."""
        return self._of("packed", _beside(version), keys)

    def put_summaries(self, version: int, rows: Iterable[tuple[str, bytes, bytes]]) -> None:
        """Keep summaries by key, worked out of the result as it is stored: not where that is another one by
        now."""
        with self.writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO summaries SELECT key, ?, ? FROM results WHERE key = ? AND json = ?",
                [(version, packed, key, written) for key, written, packed in rows],
            )

    def count(self) -> int:
        """How many results are stored, with those that can't be read."""
        return int(self.read("SELECT count(*) FROM results WHERE schema = ?", SCHEMA)[0][0])

    def latency(self, signature: str, quick: bool) -> Latency | None:
        """The newest measurement of an execution signature, or None.

        A full measurement serves a quick request, not the reverse.
        """
        query = (
            "SELECT json FROM latencies WHERE signature = ? AND quick <= ? AND schema = ? ORDER BY rowid DESC"
        )
        return _first(self.read(query, signature, quick, SCHEMA), Latency)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop results and failures, the measurements that no other result shares, and the answers that rest
        on them."""
        rows = [(key,) for key in keys]
        with self.writing() as connection:
            connection.executemany("DELETE FROM results WHERE key = ?", rows)
            connection.executemany("DELETE FROM summaries WHERE key = ?", rows)
            connection.executemany("DELETE FROM failures WHERE key = ?", rows)
            for kind in (ANSWER, EARLY_ANSWER, SEARCH):
                connection.executemany(
                    f"DELETE FROM documents WHERE kind = '{kind}' AND instr(json, CAST(? AS BLOB))", rows
                )
            _forget_unshared(connection)

    def put_failure(self, key: str, request: Request, message: str, attempts: int) -> None:
        """Keep a failure, in place of an earlier one under its key; the oldest beyond MAX_FAILURES go."""
        failure = Failure(key, request, message[:MAX_MESSAGE], attempts, _now())
        with self.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?)", (key, SCHEMA, encode(failure))
            )
            connection.execute(
                "DELETE FROM failures WHERE rowid NOT IN"
                " (SELECT rowid FROM failures ORDER BY rowid DESC LIMIT ?)",
                (MAX_FAILURES,),
            )

    def failure(self, key: str) -> Failure | None:
        """The failure under ``key``, or None."""
        query = "SELECT json FROM failures WHERE key = ? AND schema = ?"
        return _first(self.read(query, key, SCHEMA), Failure)

    def failures(self) -> list[Failure]:
        """The newest MAX_FAILURES failures, newest last."""
        query = "SELECT json FROM failures WHERE schema = ? ORDER BY rowid DESC LIMIT ?"
        rows = self.read(query, SCHEMA, MAX_FAILURES)
        return [*_readable([row[0] for row in reversed(rows)], Failure)]

    def forget_failures(self) -> int:
        """Drop every failure: how many those were."""
        with self.writing() as connection:
            return connection.execute("DELETE FROM failures").rowcount

    def put_document(self, kind: str, key: str, json: bytes) -> None:
        """Keep any JSON under a kind and a key, in place of an earlier one."""
        with self.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)", (kind, key, _now(), json)
            )

    def get_document(self, kind: str, key: str, record: type[T]) -> T | None:
        """What is under a kind and a key, or None."""
        return _first(self.read("SELECT json FROM documents WHERE kind = ? AND key = ?", kind, key), record)

    def forget_document(self, kind: str, key: str) -> None:
        with self.writing() as connection:
            connection.execute("DELETE FROM documents WHERE kind = ? AND key = ?", (kind, key))

    def documents(self, kind: str, record: type[T]) -> dict[str, T]:
        """Every document of a kind by its key, last written last."""
        rows = self.read("SELECT key, json FROM documents WHERE kind = ? ORDER BY rowid", kind)
        return {key: found for key, json in rows for found in _readable([json], record)}

    def unreadable(self, documents: Mapping[str, type]) -> list[Unreadable]:
        """Every row that is passed over because it can't be read. This reads them all."""
        with self.reading() as connection:
            return [*_unreadable(connection, documents)]

    def forget_unreadable(self, rows: Iterable[Unreadable]) -> int:
        """Drop the rows that can't be read, where nothing else is written in them by now: how many those
        were."""
        dropped = 0
        with self.writing() as connection:
            for row in rows:
                dropped += connection.execute(
                    f"DELETE FROM {row.table} WHERE rowid = ? AND json IS ?", (row.row, row.written)
                ).rowcount
            connection.execute("DELETE FROM summaries WHERE key NOT IN (SELECT key FROM results)")
            _forget_unshared(connection)
        return dropped

    def check_room(self) -> None:
        """Raises UnavailableError where the disk is full, or nearly: what would be measured could not be
        kept."""
        if shutil.disk_usage(self.path.parent).free < MIN_FREE_BYTES:
            raise self._unavailable(OSError(errno.ENOSPC, ""))

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

    @contextmanager
    def _connected(self, alone: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection; ``alone`` needs neither a mapped file nor room for one, and locks others out."""
        try:
            self._create()
            # No isolation level: transactions begin and end where this file says, not where Python guesses.
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            connection.text_factory = partial(
                str, encoding="utf-8", errors="replace"
            )  # also where it is damaged
            with closing(connection):
                if alone:
                    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._migrate(connection)
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise self._unavailable(error) from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other writer is beside, kept whole or not at all."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")  # not reached after an error: closing rolls back

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read with, which a full disk does not prevent."""
        with ExitStack() as open_ones:
            try:
                connection = open_ones.enter_context(self._connected())
            except UnavailableError as error:
                if not _is_no_room(error.__cause__):
                    raise
                connection = open_ones.enter_context(self._connected(alone=True))
            yield connection

    def read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with self.reading() as connection:
            return connection.execute(query, values).fetchall()

    def _migrate(self, connection: sqlite3.Connection) -> None:
        if self._version(connection) == len(migrations.MIGRATIONS):
            return
        _set_journal(connection, self._journal)
        while True:
            connection.execute("BEGIN IMMEDIATE")
            done = self._version(connection)  # again: another process may have been quicker
            if done == len(migrations.MIGRATIONS):
                connection.execute("ROLLBACK")
                return
            migrations.MIGRATIONS[done](connection)
            connection.execute(f"PRAGMA user_version = {done + 1}")
            connection.execute("COMMIT")

    def _version(self, connection: sqlite3.Connection) -> int:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > len(migrations.MIGRATIONS):
            raise UnavailableError(
                f"{self.path} is from a newer Paretoscope (database version {version}, this one reads up to"
                f" {len(migrations.MIGRATIONS)}): upgrade, or set PARETOSCOPE_HOME to another folder"
            )
        return version

    def _unavailable(self, error: Exception) -> UnavailableError:
        words = "no room is left on its disk" if _is_no_room(error) else str(error)
        return UnavailableError(
            f"can't use the results in {self.path}: {words}. Check that the folder is writable, its disk has"
            " room and the file is whole (move a damaged one away), or set PARETOSCOPE_HOME to another folder"
        )


def _beside(version: int) -> str:
    """Results, and beside them their summaries of that version."""
    return f"results LEFT JOIN summaries ON summaries.key = results.key AND version = {version}"


def describe_unreadable(rows: Iterable[Unreadable]) -> str:
    """How many rows of each kind, in words."""
    kinds = Counter(row.kind for row in rows)
    counts = ", ".join(count(number, kind) for kind, number in kinds.items())
    return f"Stored, but can't be read (damaged, or not allowed any more), and so passed over: {counts}."


def _readable(rows: Iterable[object], record: type[T]) -> Iterator[T]:
    for json in rows:
        with suppress(*NOT_A_RECORD):
            yield decode(json, record)  # type: ignore[arg-type]


def _first(rows: Iterable[tuple[Any, ...]], record: type[T]) -> T | None:
    return next(_readable((row[0] for row in rows), record), None)


NOT_A_RECORD = (ValueError, TypeError, RecursionError)
"""What decoding raises: for other JSON, for bytes that are no text, for what is no JSON at all."""


def _unreadable(connection: sqlite3.Connection, documents: Mapping[str, type]) -> Iterator[Unreadable]:
    for table, kind, record in (
        ("results", "result", Result),
        ("latencies", "latency measurement", Latency),
        ("failures", "failure", Failure),
    ):
        for row, json in connection.execute(f"SELECT rowid, json FROM {table} WHERE schema = ?", (SCHEMA,)):
            if reason := _refused(json, record):
                yield Unreadable(table, row, kind, reason, json)
    for row, kind, json in connection.execute("SELECT rowid, kind, json FROM documents"):
        if reason := _refused(json, documents.get(kind, object)):
            yield Unreadable("documents", row, f"{kind} document", reason, json)


def _refused(json: object, record: type) -> str:
    try:
        decode(json, record)  # type: ignore[arg-type]
    except NOT_A_RECORD as error:
        return str(error)
    return ""


def _forget_unshared(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM latencies WHERE signature NOT IN (SELECT signature FROM results)")


def _is_no_room(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) in NO_ROOM
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


def _set_journal(connection: sqlite3.Connection, mode: str) -> None:
    """WAL: readers and a writer side by side; DELETE works everywhere. Kept in the file.

    While another process is about to do the same, SQLite refuses at once and doesn't heed the busy timeout.
    """
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute(f"PRAGMA journal_mode = {mode}")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _now() -> str:
    return datetime.now(UTC).isoformat()
