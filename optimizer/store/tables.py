"""The tables that results, sweeps and questions are kept in, written once for every database."""

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    literal_column,
)

METADATA = MetaData()
TEXT = String(collation="C")
"""Sorted by its bytes, as in SQLite: dates begin with their year."""


class Bytes(LargeBinary):
    """Read as it is stored: where a file is damaged, that may be anything."""

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> None:
        return None

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        return None


def _row() -> Column[int]:
    """Rises with every row that is written. SQLite has one in every table."""
    return Column("rowid", BigInteger, Identity(), nullable=False)


results = Table(
    "results",
    METADATA,
    _row(),
    Column("key", TEXT, primary_key=True),
    Column("schema", Integer),
    Column("model", TEXT),
    Column("data", TEXT),
    Column("engine", TEXT),
    Column("environment", TEXT),
    Column("signature", TEXT),
    Column("created", TEXT),
    Column("json", Bytes),
    Index("results_signature", "signature"),
    Index("results_asked", "schema", "model", "data", "created", "engine", "key"),
    Index("results_newest", "schema", "created", "key"),
)
summaries = Table(
    "summaries",
    METADATA,
    Column("key", TEXT, primary_key=True),
    Column("version", Integer),
    Column("packed", Bytes),
)
latencies = Table(
    "latencies",
    METADATA,
    _row(),
    Column("signature", TEXT, primary_key=True),
    Column("quick", Integer, primary_key=True, autoincrement=False),
    Column("schema", Integer),
    Column("json", Bytes),
)
failures = Table(
    "failures",
    METADATA,
    _row(),
    Column("key", TEXT, primary_key=True),
    Column("schema", Integer),
    Column("json", Bytes),
)
documents = Table(
    "documents",
    METADATA,
    _row(),
    Column("kind", TEXT, primary_key=True),
    Column("key", TEXT, primary_key=True),
    Column("created", TEXT),
    Column("json", Bytes),
)
sweeps = Table(
    "sweeps",
    METADATA,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("asked", Bytes),
    Column("who", TEXT),
    Column("created", TEXT),
    Column("served", Double, nullable=False, server_default="0"),
    Column("device", TEXT, nullable=False, server_default=""),
    Column("environment", TEXT, nullable=False, server_default=""),
)

# Written into the statement, where SQLite sees that an index of these states alone will do.
QUEUED, RUNNING = literal_column("'queued'", TEXT), literal_column("'running'", TEXT)
OPEN = (QUEUED, RUNNING)

items = Table(
    "items",
    METADATA,
    _row(),
    Column("sweep", BigInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("key", TEXT),
    Column("request", Bytes),
    Column("state", TEXT),
    Column("owner", TEXT, nullable=False, server_default=""),
    Column("beaten", Double, nullable=False, server_default="0"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("seconds", Double),
    Column("message", TEXT, nullable=False, server_default=""),
    Column("answer", TEXT),
    Column("enough", Integer, nullable=False, server_default="0"),
    Column("weights", TEXT),
    Column("files", TEXT),
    Index("items_states", "sweep", "state"),
    Index("items_open", "state", "key"),
    Index("items_answers", "answer"),
)
