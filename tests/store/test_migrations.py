"""A store of an earlier version is brought to the newest, and one of a later version is left alone."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from databases import query, set_version
from faults.storing import make_result
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from optimizer.errors import UnavailableError
from optimizer.recipe import Override, PruneSpec, QuantizeSpec, Recipe
from optimizer.search.documents import DOCUMENTS
from optimizer.store import migrations
from optimizer.store.results import Store


def test_a_later_migration_keeps_what_is_there(
    place: Path | str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(make_result("k"))
    monkeypatch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:])

    @migrations.migration
    def add(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE later (x INTEGER)")
        connection.exec_driver_sql("INSERT INTO later VALUES (1)")

    assert Store(place).get("k") == make_result("k")
    assert store.get("k") == make_result("k")  # and it ran once: a second time the table would exist
    assert query(place, "SELECT x FROM later") == [(1,)]
    if isinstance(place, Path):  # another database begins with the tables of today
        assert query(Store(place.with_name("new")).path, "SELECT x FROM later") == [(1,)]


def check_passed_over(
    place: Path | str,
    store: Store,
    step: migrations.Migration,
    stale: Sequence[Recipe],
    others: Sequence[Recipe],
) -> None:
    """Of results of these recipes a migration passes the ``stale`` ones over, and keeps all."""
    like = make_result("k")
    results = [
        replace(like, key=str(number), request=replace(like.request, recipe=one))
        for number, one in enumerate([*stale, *others])
    ]
    for result in results:
        store.put(result)
    with store.writing() as connection:
        step(connection)
    again = Store(place)
    assert {result.key for result in again.results()} == {result.key for result in results[len(stale) :]}
    assert query(place, "SELECT count(*) FROM results") == [(len(results),)]
    again.put(results[0])
    assert again.get(results[0].key) == results[0], "measured anew"


def test_what_fine_tuning_and_best_effort_gave_before_is_passed_over_and_kept(file: Store) -> None:
    half = PruneSpec(sparsity=0.5)
    learned = [Recipe(half, finetune_steps=500), Recipe(half, effort_seconds=60)]
    step = migrations._pass_over_what_learned_by_divergence_alone
    check_passed_over(file.path, file, step, learned, [Recipe(half)])


def test_what_compensated_rounding_gave_on_one_grid_is_passed_over_and_kept(
    place: Path | str, store: Store
) -> None:
    own = Override("a", weight_bits=2)
    at = partial(QuantizeSpec, "compensated")
    others = [at(4), at(16), QuantizeSpec(weight_bits=3), QuantizeSpec(weight_bits=32)]
    few = [
        Recipe(quantize=at(3)),
        Recipe(quantize=at(average_bits=4.0)),
        Recipe(quantize=at(8), layers=(own,)),
    ]
    kept = [Recipe(quantize=one) for one in others]
    check_passed_over(place, store, migrations._pass_over_low_bits_on_one_grid, few, kept)


def test_what_best_effort_gave_before_is_passed_over_and_kept(place: Path | str, store: Store) -> None:
    step = migrations._pass_over_best_effort_that_rounded_once
    rounded = QuantizeSpec("compensated", 3)
    others = [Recipe(quantize=rounded), Recipe(quantize=rounded, finetune_steps=60)]
    best = [Recipe(quantize=rounded, effort_seconds=60), Recipe(PruneSpec(sparsity=0.5), effort_seconds=5)]
    check_passed_over(place, store, step, best, others)


def test_what_was_timed_call_by_call_is_passed_over_and_kept(file: Store) -> None:
    """Rows as the version before wrote them: it knew no visits."""
    file.put(make_result("before"))
    file.put_failure("failed", make_result("k").request, "why")
    file.put_document("coverage", "before", b'{"kernels":[{"name":"a + b"}]}')
    file.put_document("throughput", "before", b'{"recipe":{"training_seconds":30.0}}')
    for table in ("results", "latencies", "failures"):
        query(file.path, f"UPDATE {table} SET schema = 2")
    query(file.path, "UPDATE results SET json = replace(json, 'baseline', 'baseline_ns')")
    for later in ("TABLE sweeps", "TABLE items", "TABLE summaries", "INDEX results_newest"):
        query(file.path, f"DROP {later}")
    query(file.path, "PRAGMA user_version = 1")
    assert (file.get("before"), file.results(), file.count(), file.failures()) == (None, [], 0, [])
    assert file.latency("sig", True) is None
    assert file.unreadable(DOCUMENTS) == []
    for table, rows in (("results", 1), ("failures", 1), ("documents", 2)):
        assert query(file.path, f"SELECT count(*) FROM {table}") == [(rows,)], "nothing is thrown away"
    file.put(make_result("before"))
    assert file.get("before") == make_result("before")


def test_a_migration_that_fails_leaves_no_trace(
    place: Path | str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:])

        @migrations.migration
        def half(connection: Connection) -> None:
            connection.exec_driver_sql("CREATE TABLE half (x INTEGER)")
            connection.exec_driver_sql("not SQL")

        with pytest.raises(UnavailableError, match="syntax error"):
            store.count()
    assert set_version(place, 0) == len(migrations.MIGRATIONS)
    set_version(place, len(migrations.MIGRATIONS))
    with pytest.raises(DBAPIError, match="half"):
        query(place, "SELECT x FROM half")
    store.put(make_result("k"))


def test_a_newer_database_is_left_alone(place: Path | str, store: Store) -> None:
    set_version(place, 1000)
    for act in (lambda: Store(place), store.count, lambda: store.put(make_result("k"))):
        with pytest.raises(
            UnavailableError, match=r"newer Paretoscope.*1000.*upgrade.*PARETOSCOPE_(HOME|STORE)"
        ):
            act()
