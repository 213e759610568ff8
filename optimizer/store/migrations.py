"""Steps from an empty database to today's tables."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec

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


@migration
def _put_words_into_fields(connection: sqlite3.Connection) -> None:
    """Kernels that skip zeros were known by their names, torch's sparse matrices in the place of ours by a
    sentence, the layers of a kernel and the precisions of a layer stood in one string, and the recipe that a
    shared measurement is of was described: it is the oldest result's. A measurement that no result has any
    more is dropped."""
    timed: dict[bytes, Any] = {}
    for row, result in _objects(connection, "results", "schema = 2 ORDER BY created, rowid"):
        with suppress(KeyError, TypeError, AttributeError):  # damaged: it stays as it is, and is passed over
            latency = result["latency"]
            recipe = timed.setdefault(msgspec.json.encode(latency), result["request"]["recipe"])
            result["latency"] = latency | {"recipe": recipe}
            _say_how_layers_ran(result["execution"])
            _write(connection, "results", row, result)
    for row, latency in _objects(connection, "latencies", "schema = 2"):
        recipe = timed.get(msgspec.json.encode(latency))
        if recipe is None:
            connection.execute("DELETE FROM latencies WHERE rowid = ?", (row,))
        else:
            _write(connection, "latencies", row, latency | {"recipe": recipe})
    for row, run in _objects(connection, "documents", "kind IN ('coverage', 'throughput')"):
        with suppress(KeyError, TypeError, AttributeError):
            for kernel in (*run.get("kernels", ()), *run.get("baseline", ())):
                _say_what_kernel(kernel)
            if "execution" in run:
                _say_how_layers_ran(run["execution"])
            _write(connection, "documents", row, run)


def _objects(connection: sqlite3.Connection, table: str, where: str) -> Iterator[tuple[int, Any]]:
    for (row,) in connection.execute(f"SELECT rowid FROM {table} WHERE {where}").fetchall():
        (json,) = connection.execute(f"SELECT json FROM {table} WHERE rowid = ?", (row,)).fetchone()
        with suppress(ValueError, TypeError, RecursionError):
            yield row, msgspec.json.decode(json)


def _write(connection: sqlite3.Connection, table: str, row: int, content: Any) -> None:
    connection.execute(f"UPDATE {table} SET json = ? WHERE rowid = ?", (msgspec.json.encode(content), row))


def _say_how_layers_ran(execution: Any) -> None:
    for layer in execution["layers"]:
        first, *others = layer["precision"].split(" and ")
        layer |= {"precision": first, "others": others, "skips_zeros": _is_named_sparse(layer["kernel"])}
    found = (re.match(r"no sparse kernels here \((.*)\): torch's CSR", one) for one in execution["simulated"])
    execution["fallback"] = next((one[1] for one in found if one), "")


def _say_what_kernel(kernel: Any) -> None:
    if kernel["role"] == "layer":
        kernel |= {
            "layers": kernel["name"].split(" + "),
            "skips_zeros": _is_named_sparse(kernel["kernel"]),
        }
    elif kernel["name"] == "between operations":
        kernel["role"] = "between"


def _is_named_sparse(kernel: str) -> bool:
    return "sparse" in kernel.lower() or "csr" in kernel.lower()
