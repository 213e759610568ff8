"""What was measured, kept: in a SQLite file, or in a database that several servers share.

A record is stored whole as JSON (:func:`optimizer.records.encode`) beside the columns it is looked up by.
What a result comes to is in a table of its own (:mod:`optimizer.analysis.stored`), as bytes that mean nothing
here.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Table,
    bindparam,
    delete,
    func,
    insert,
    null,
    or_,
    select,
)

from optimizer.records import SCHEMA, DataSpec, Latency, Request, Result, digest, encode
from optimizer.store.database import Database, again_if_lost
from optimizer.store.keys import request_key
from optimizer.store.postgresql import Postgresql
from optimizer.store.rows import Failure, Unreadable, first, readable, unreadable
from optimizer.store.sqlite import Sqlite
from optimizer.store.tables import METADATA, documents, failures, latencies, results, summaries
from optimizer.system.environment import timestamp
from optimizer.system.paths import STORE_VARIABLE, home

T = TypeVar("T")

MAX_FAILURES = 200
"""How many failures are kept, the newest."""
MAX_MESSAGE = 2000
"""Characters of a failure's message that are kept."""
AT_ONCE = 10_000
"""Keys that one statement asks for: databases allow some 30,000 at least."""
ANSWER, EARLY_ANSWER, SEARCH, UNFINISHED = "answer", "early answer", "search", "unfinished"
"""Kinds of documents: what answers a question, what answers one that was ended early, how far a search is,
and a result whose memory and cold start are still to be measured. They name results by their keys, and go
with them."""
NEWEST = {UNFINISHED: 100}
"""Of some kinds, how many documents are kept, the newest."""
Packed = tuple[int, bytes]
"""A summary as it is stored, after its version."""


class Store:
    """The results in ``place``: a file, or a database of PostgreSQL by its URL. By default the one that
    ``PARETOSCOPE_STORE`` names, or ``results.sqlite`` in the user's data folder.

    Rows written under another ``records.SCHEMA`` are passed over: they are measured anew. So are rows that
    can't be read, which :meth:`unreadable` tells of. Every method raises UnavailableError when the database
    can't be used: read-only, damaged, disk full, out of reach, from a newer version. What is there is read on
    a full disk too.
    """

    def __init__(self, place: Path | str | None = None) -> None:
        self._database = _database(place)
        self._database.open()

    @property
    def place(self) -> str:
        """Where the results are, without a password."""
        return self._database.place

    @property
    def shared(self) -> bool:
        """Whether servers of several machines may use it."""
        return self._database.shared

    @property
    def path(self) -> Path:
        """The file of a store that is one."""
        return Path(self.place)

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction that no other writer is beside, kept whole or not at all."""
        return self._database.writing()

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection to read with, which a full disk does not prevent."""
        return self._database.reading()

    @again_if_lost
    def read(self, query: Select[Any]) -> Sequence[Any]:
        """The rows of a query."""
        with self.reading() as connection:
            return connection.execute(query).fetchall()

    def check_room(self) -> None:
        """Raises UnavailableError where the disk is full, or nearly, or the database out of reach: what would
        be measured could not be kept."""
        self._database.check_room()

    @again_if_lost
    def put(self, result: Result, summary: Packed | None = None) -> None:
        """Keep a result with its summary and the measurement in it; an earlier failure under its key is
        forgotten, and so is an earlier summary."""
        request, latency = result.request, result.latency
        with self.writing() as connection:
            _put(
                connection,
                results,
                key=result.key,
                schema=result.schema,
                model=request.model,
                data=digest(request.data),
                engine=request.engine,
                environment=result.environment.key,
                signature=latency.signature,
                created=result.created,
                json=encode(result),
            )
            _put(
                connection,
                latencies,
                signature=latency.signature,
                quick=int(latency.quick),
                schema=result.schema,
                json=encode(latency),
            )
            connection.execute(delete(failures).where(failures.c.key == result.key))
            connection.execute(delete(summaries).where(summaries.c.key == result.key))
            if summary:
                version, packed = summary
                _put(connection, summaries, key=result.key, version=version, packed=packed)

    def get(self, key: str) -> Result | None:
        """The result under ``key``, or None."""
        query = select(results.c.json).where(results.c.key == key, results.c.schema == SCHEMA)
        return first(self.read(query), Result)

    def several(self, keys: Sequence[str]) -> list[Result]:
        """The results under those of the keys that have one, in their order."""
        return [*readable((json for _, json in self.written(keys)), Result)]

    def written(self, keys: Sequence[str]) -> list[tuple[str, bytes]]:
        """Each of the keys that has a result, in their order, and the result as it is stored."""
        return self._of(results.c.json, results, keys)

    def known(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys under which a result is."""
        return {key for key, _ in self._of(null(), results, [*keys])}

    def _of(
        self, column: ColumnElement[Any], tables: FromClause, keys: Sequence[str]
    ) -> list[tuple[str, Any]]:
        """Each of the keys that has a result, in their order, and a column. (The sum keeps SQLite from going
        through all of a schema.)"""
        query = select(results.c.key, column).select_from(tables).where(results.c.schema + 0 == SCHEMA)
        found = dict[str, Any]()
        for begin in range(0, len(keys), AT_ONCE):
            rows = self.read(query.where(results.c.key.in_(keys[begin : begin + AT_ONCE])))
            found |= {key: value for key, value in rows}
        return [(key, found[key]) for key in dict.fromkeys(keys) if key in found]

    def best(self, request: Request) -> Result | None:
        """The result of a request, timed in full where there is one, else in the quick mode."""
        for quick in (False, True):
            settings = replace(request.settings, quick=quick)
            if found := self.get(request_key(replace(request, settings=settings))):
                return found
        return None

    def results(self, model: str | None = None, engine: str | None = None) -> list[Result]:
        """Results, newest last; None matches all."""
        rows = self._asked(results.c.json, results, None, model=model, engine=engine)
        return [*readable((json for _, json in rows), Result)]

    def _asked(
        self, column: ColumnElement[Any], tables: FromClause, limit: int | None, **asked: str | None
    ) -> list[tuple[str, Any]]:
        """The key and a column of the results that are asked for, newest last."""
        given = [results.c.schema == SCHEMA]
        given += [results.c[name] == value for name, value in asked.items() if value is not None]
        newest = (results.c.created.desc(), results.c.rowid.desc())
        rows = self.read(
            select(results.c.key, column).select_from(tables).where(*given).order_by(*newest).limit(limit)
        )
        return [(key, value) for key, value in reversed(rows)]

    def summaries(
        self,
        version: int,
        model: str | None = None,
        data: DataSpec | None = None,
        limit: int | None = None,
    ) -> list[tuple[str, bytes | None]]:
        """Of results, newest last, the key and the summary of that version, None without; of every model and
        data where these are None. ``limit`` keeps the newest."""
        images = digest(data) if data else None
        return self._asked(summaries.c.packed, _beside(version), limit, model=model, data=images)

    def summaries_of(self, version: int, keys: Sequence[str]) -> list[tuple[str, bytes | None]]:
        """The same of those of the keys that have a result, in their order."""
        return self._of(summaries.c.packed, _beside(version), keys)

    @again_if_lost
    def put_summaries(self, version: int, rows: Iterable[tuple[str, bytes, bytes]]) -> None:
        """Keep summaries by key, worked out of the result as it is stored: not where that is another one by
        now."""
        with self.writing() as connection:
            for key, written, packed in rows:
                same = select(results.c.key).where(results.c.key == key, results.c.json == written)
                if connection.execute(same).first():
                    _put(connection, summaries, key=key, version=version, packed=packed)

    def count(self) -> int:
        """How many results are stored, with those that can't be read."""
        return int(self.read(select(func.count()).where(results.c.schema == SCHEMA))[0][0])

    def latency(self, signature: str, quick: bool) -> Latency | None:
        """The newest measurement of an execution signature, or None.

        A full measurement serves a quick request, not the reverse.
        """
        query = select(latencies.c.json).order_by(latencies.c.rowid.desc())
        those = (latencies.c.signature == signature, latencies.c.quick <= int(quick))
        return first(self.read(query.where(*those, latencies.c.schema == SCHEMA)), Latency)

    @again_if_lost
    def forget(self, keys: Iterable[str]) -> None:
        """Drop results and failures, the measurements that no other result shares, and the answers that rest
        on them."""
        rows = [{"gone": key, "named": key.encode()} for key in keys]
        if not rows:
            return
        gone = bindparam("gone", type_=results.c.key.type)
        named = bindparam("named", type_=documents.c.json.type)
        with self.writing() as connection:
            for table in (results, summaries, failures):
                connection.execute(delete(table).where(table.c.key == gone), rows)
            resting = or_(*(documents.c.kind == kind for kind in (ANSWER, EARLY_ANSWER, SEARCH, UNFINISHED)))
            found = self._database.contains(documents.c.json, named)
            connection.execute(delete(documents).where(resting, found), rows)
            _forget_unshared(connection)

    @again_if_lost
    def put_failure(self, key: str, request: Request, message: str) -> None:
        """Keep a failure, in place of an earlier one under its key; the oldest beyond MAX_FAILURES go."""
        failure = Failure(key, request, message[:MAX_MESSAGE], 1, timestamp())
        newest = select(failures.c.rowid).order_by(failures.c.rowid.desc()).limit(MAX_FAILURES)
        with self.writing() as connection:
            _put(connection, failures, key=key, schema=SCHEMA, json=encode(failure))
            connection.execute(delete(failures).where(failures.c.rowid.not_in(newest)))

    def failures(self) -> list[Failure]:
        """The newest MAX_FAILURES failures, newest last."""
        query = select(failures.c.json).where(failures.c.schema == SCHEMA)
        rows = self.read(query.order_by(failures.c.rowid.desc()).limit(MAX_FAILURES))
        return [*readable([row[0] for row in reversed(rows)], Failure)]

    @again_if_lost
    def forget_failures(self) -> int:
        """Drop every failure: how many those were."""
        with self.writing() as connection:
            return connection.execute(delete(failures)).rowcount

    @again_if_lost
    def put_document(self, kind: str, key: str, json: bytes) -> None:
        """Keep any JSON under a kind and a key, in place of an earlier one; of the kinds in NEWEST the oldest
        go."""
        of_kind = documents.c.kind == kind
        newest = select(documents.c.rowid).where(of_kind).order_by(documents.c.rowid.desc())
        with self.writing() as connection:
            _put(connection, documents, kind=kind, key=key, created=timestamp(), json=json)
            if kind in NEWEST:
                kept = documents.c.rowid.in_(newest.limit(NEWEST[kind]))
                connection.execute(delete(documents).where(of_kind, ~kept))

    def get_document(self, kind: str, key: str, record: type[T]) -> T | None:
        """What is under a kind and a key, or None."""
        return first(self.read(select(documents.c.json).where(*_under(kind, key))), record)

    @again_if_lost
    def forget_document(self, kind: str, key: str) -> None:
        with self.writing() as connection:
            connection.execute(delete(documents).where(*_under(kind, key)))

    def documents(self, kind: str, record: type[T]) -> dict[str, T]:
        """Every document of a kind by its key, last written last."""
        query = select(documents.c.key, documents.c.json).where(documents.c.kind == kind)
        rows = self.read(query.order_by(documents.c.rowid))
        return {key: found for key, json in rows for found in readable([json], record)}

    @again_if_lost
    def unreadable(self, documents: Mapping[str, type]) -> list[Unreadable]:
        """Every row that is passed over because it can't be read. This reads them all."""
        with self.reading() as connection:
            return [*unreadable(connection, documents)]

    @again_if_lost
    def forget_unreadable(self, rows: Iterable[Unreadable]) -> int:
        """Drop the rows that can't be read, where nothing else is written in them by now: how many those
        were."""
        dropped = 0
        with self.writing() as connection:
            for row in rows:
                table = METADATA.tables[row.table]
                same = table.c.json.is_not_distinct_from(row.written)
                dropped += connection.execute(delete(table).where(table.c.rowid == row.row, same)).rowcount
            connection.execute(delete(summaries).where(summaries.c.key.not_in(select(results.c.key))))
            _forget_unshared(connection)
        return dropped


def _database(place: Path | str | None) -> Database:
    named = os.environ.get(STORE_VARIABLE) if place is None else None
    if named or "://" in str(place):
        return Postgresql(named or str(place))
    return Sqlite(home() / "results.sqlite" if place is None else Path(place))


def _put(connection: Connection, table: Table, **row: object) -> None:
    """A row in place of an earlier one under its key; it is the last that was written."""
    connection.execute(delete(table).where(*(column == row[column.name] for column in table.primary_key)))
    connection.execute(insert(table).values(row))


def _under(kind: str, key: str) -> tuple[ColumnElement[bool], ...]:
    return documents.c.kind == kind, documents.c.key == key


def _beside(version: int) -> FromClause:
    """Results, and beside them their summaries of that version."""
    return results.outerjoin(summaries, (summaries.c.key == results.c.key) & (summaries.c.version == version))


def _forget_unshared(connection: Connection) -> None:
    shared = select(results.c.signature)
    connection.execute(delete(latencies).where(latencies.c.signature.not_in(shared)))
