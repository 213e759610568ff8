"""Steps from an empty database to today's tables."""

import re
import sqlite3
from collections.abc import Callable

Migration = Callable[[sqlite3.Connection], None]

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


@migration
def _pass_over_budgets_in_seconds(connection: sqlite3.Connection) -> None:
    """Fine-tuning stopped by the clock: what it gave is no result of any number of steps. Such rows stay, and
    are passed over as those of another schema are: they are measured anew, in steps."""
    connection.create_function("in_seconds", 1, _has_budget_in_seconds, deterministic=True)
    for table in ("results", "failures"):
        connection.execute(f"UPDATE {table} SET schema = -1 WHERE in_seconds(json)")
    connection.execute("UPDATE documents SET kind = kind || ' (budget in seconds)' WHERE in_seconds(json)")


def _has_budget_in_seconds(json: bytes | str) -> bool:
    """Whether a recipe anywhere in the document has one that is not 0."""
    text = json.decode(errors="replace") if isinstance(json, bytes) else str(json)
    return re.search(r'"training_seconds":(?!0(?:\.0)?[,}])', text) is not None
