"""Steps from an empty SQLite file to today's tables. Other databases begin with :mod:`optimizer.store.tables`
as they are then, and have the steps that come after: a step changes these tables too."""

from collections.abc import Callable

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    LargeBinary,
    String,
    and_,
    cast,
    func,
    or_,
    table,
    update,
)

Migration = Callable[[Connection], None]

MIGRATIONS: list[Migration] = []
"""Steps from an empty file to today's tables, oldest first. The database's ``user_version`` counts those it
has had. A released step is never edited: add another, in words that every database understands."""


def migration(step: Migration) -> Migration:
    """Register ``step`` as the next one. It runs inside a transaction, so it must not commit."""
    MIGRATIONS.append(step)
    return step


@migration
def _create(connection: Connection) -> None:
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
        connection.exec_driver_sql(statement)


@migration
def _pass_over_what_was_timed_call_by_call(connection: Connection) -> None:
    """Latency is timed in visits since schema 3. Results of before stay, with their schema, and are passed
    over; so are the documents that were timed beside them."""
    connection.exec_driver_sql(
        "UPDATE documents SET kind = kind || ' (timed call by call)' WHERE kind IN ('coverage', 'throughput')"
    )


@migration
def _keep_sweeps(connection: Connection) -> None:
    for statement in (
        "CREATE TABLE sweeps (id INTEGER PRIMARY KEY AUTOINCREMENT, asked BLOB, who TEXT, created TEXT,"
        " served REAL NOT NULL DEFAULT 0)",
        "CREATE TABLE items (sweep INTEGER, number INTEGER, key TEXT, request BLOB, state TEXT,"
        " owner TEXT NOT NULL DEFAULT '', beaten REAL NOT NULL DEFAULT 0,"
        " attempts INTEGER NOT NULL DEFAULT 0, seconds REAL, message TEXT NOT NULL DEFAULT '',"
        " PRIMARY KEY (sweep, number))",
        "CREATE INDEX items_states ON items (sweep, state)",
        "CREATE INDEX items_open ON items (state, key) WHERE state IN ('queued', 'running')",
    ):
        connection.exec_driver_sql(statement)


@migration
def _pass_over_effort_of_pruning_alone(connection: Connection) -> None:
    """Best effort was an option of pruning, and is a budget in seconds now: what came of it was another
    network. Its results stay, with a schema that no code reads."""
    connection.exec_driver_sql(
        'UPDATE results SET schema = -schema WHERE CAST(json AS TEXT) LIKE \'%"effort":"best"%\''
    )


@migration
def _keep_summaries(connection: Connection) -> None:
    """A table of their own: SQLite reads what lies behind a result's raw samples only past all of these. The
    indices have all that a result is asked for by, so that its own row is not read either."""
    for statement in (
        "CREATE TABLE summaries (key TEXT PRIMARY KEY, version INTEGER, packed BLOB)",
        "DROP INDEX results_asked",
        "CREATE INDEX results_asked ON results (schema, model, data, created, engine, key)",
        "CREATE INDEX results_newest ON results (schema, created, key)",
    ):
        connection.exec_driver_sql(statement)


@migration
def _keep_questions(connection: Connection) -> None:
    """A question is a sweep of one item, and ``answer`` the key of the document that answers it."""
    for statement in (
        "ALTER TABLE items ADD COLUMN answer TEXT",
        "ALTER TABLE items ADD COLUMN enough INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX items_answers ON items (answer) WHERE answer IS NOT NULL",
    ):
        connection.exec_driver_sql(statement)


@migration
def _keep_where_a_sweep_is_timed(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE sweeps ADD COLUMN device TEXT NOT NULL DEFAULT ''")


@migration
def _pass_over_what_learned_by_divergence_alone(connection: Connection) -> None:
    """Fine-tuning and best effort became one method, which gives other networks. Results of before stay, with
    a schema that no code reads."""
    learned = " OR ".join(
        f"REPLACE(CAST(json AS TEXT), '\"{name}\":0', '') LIKE '%\"{name}\":%'"
        for name in ("finetune_steps", "effort_seconds")
    )
    connection.exec_driver_sql(f"UPDATE results SET schema = -schema WHERE schema > 0 AND ({learned})")


@migration
def _keep_what_an_item_is_measured_on(connection: Connection) -> None:
    """The versions of its model's weights and of its images; of items of before they are not known."""
    for column in ("weights", "files"):
        connection.exec_driver_sql(f"ALTER TABLE items ADD COLUMN {column} TEXT")


@migration
def _pass_over_low_bits_on_one_grid(connection: Connection) -> None:
    """At 3 bits or fewer compensated rounding began to choose among grids, which gives other networks."""

    def low(json: ColumnElement[str]) -> ColumnElement[bool]:
        few = (json.contains(f'"weight_bits":{bits}{after}') for bits in (2, 3) for after in (",", "}"))
        mixed = func.replace(json, '"average_bits":null', "").contains('"average_bits":')
        return and_(json.contains('"compensated"'), or_(mixed, *few))

    _pass_over(connection, low)


@migration
def _pass_over_best_effort_that_rounded_once(connection: Connection) -> None:
    """Best effort began to round once more what is on a grid, and to refit what is pruned, which gives other
    networks."""
    _pass_over(connection, _has_best_effort)


@migration
def _pass_over_best_effort_that_refitted_all_of_the_way(connection: Connection) -> None:
    """Best effort began to look halfway to what it refits too. What it rounds did not change, and is
    measured again all the same."""
    _pass_over(connection, _has_best_effort)


@migration
def _pass_over_best_effort_that_left_logits_blunt(connection: Connection) -> None:
    """Best effort began to sharpen the logits of what was refitted and learnt nothing more."""
    _pass_over(connection, _has_best_effort)


@migration
def _keep_whose_machine_a_sweep_is_timed_on(connection: Connection) -> None:
    """The environment of who asked; of sweeps of before it is not known."""
    connection.exec_driver_sql("ALTER TABLE sweeps ADD COLUMN environment TEXT NOT NULL DEFAULT ''")


def _has_best_effort(json: ColumnElement[str]) -> ColumnElement[bool]:
    return func.replace(json, '"effort_seconds":0', "").contains('"effort_seconds":')


def _pass_over(connection: Connection, those: Callable[[ColumnElement[str]], ColumnElement[bool]]) -> None:
    """Results whose JSON is one of ``those`` stay, with a schema that no code reads."""
    rows = table("results", Column("schema", Integer), Column("json", LargeBinary))
    schema, stored = rows.c
    json: ColumnElement[str] = cast(stored, String)
    if connection.dialect.name == "postgresql":  # there a cast would give hexadecimal digits
        json = func.encode(stored, "escape", type_=String)
    connection.execute(update(rows).where(and_(schema > 0, those(json))).values(schema=-schema))
