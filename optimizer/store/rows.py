"""Stored JSON as records, and the rows that can't be read as one."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, select

from optimizer.formats import count
from optimizer.records import SCHEMA, Latency, Request, Result, decode
from optimizer.store.tables import documents, failures, latencies, results

T = TypeVar("T")
NOT_A_RECORD = (ValueError, TypeError, RecursionError)
"""What decoding raises: for other JSON, for bytes that are no text, for what is no JSON at all."""


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


def readable(rows: Iterable[object], record: type[T]) -> Iterator[T]:
    for json in rows:
        with suppress(*NOT_A_RECORD):
            yield decode(json, record)  # type: ignore[arg-type]


def first(rows: Iterable[Any], record: type[T]) -> T | None:
    return next(readable((row[0] for row in rows), record), None)


def describe_unreadable(rows: Iterable[Unreadable]) -> str:
    """How many rows of each kind, in words."""
    kinds = Counter(row.kind for row in rows)
    counts = ", ".join(count(number, kind) for kind, number in kinds.items())
    return f"Stored, but can't be read (damaged, or not allowed any more), and so passed over: {counts}."


def unreadable(connection: Connection, kinds: Mapping[str, type]) -> Iterator[Unreadable]:
    streamed = connection.execution_options(yield_per=100)
    for table, kind, record in (
        (results, "result", Result),
        (latencies, "latency measurement", Latency),
        (failures, "failure", Failure),
    ):
        query = select(table.c.rowid, table.c.json).where(table.c.schema == SCHEMA)
        for row, json in streamed.execute(query):
            if reason := _refused(json, record):
                yield Unreadable(table.name, row, kind, reason, json)
    query = select(documents.c.rowid, documents.c.kind, documents.c.json)
    for row, kind, json in streamed.execute(query):
        if reason := _refused(json, kinds.get(kind, object)):
            yield Unreadable("documents", row, f"{kind} document", reason, json)


def _refused(json: object, record: type) -> str:
    try:
        decode(json, record)  # type: ignore[arg-type]
    except NOT_A_RECORD as error:
        return str(error)
    return ""
