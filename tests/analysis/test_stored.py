"""Summaries beside stored results: what is read is what would be worked out anew."""

import sqlite3
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import msgspec
import pytest
from factories import OTHER_MACHINE, detector, make_result, make_sweep, recipe, remade
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import NullPool, create_engine, select

from optimizer.analysis import stored
from optimizer.analysis.summary import Summary, derive, summarise
from optimizer.errors import UnavailableError
from optimizer.records import Accuracy, Request, Result, digest, encode
from optimizer.store import migrations, tables
from optimizer.store.results import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results.sqlite")


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the results that are worked out from raw samples by :mod:`stored`."""
    keys: list[str] = []

    def counted(result: Result) -> Summary:
        keys.append(result.key)
        return derive(result)

    monkeypatch.setattr(stored, "derive", counted)
    stored.unpack.cache_clear()
    return keys


def told(summary: Summary) -> dict[str, str]:
    """Every field, and what is said, as it is written: NaN is equal to itself, and 1 is not 1.0."""
    names = [*(field.name for field in fields(summary)), "description", "images", "badges", "shared_with"]
    return {name: repr(getattr(summary, name)) for name in names}


def write(store: Store, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(store.path)) as connection, connection:
        connection.execute(statement, values)


recipes = st.builds(
    recipe,
    st.sampled_from([0.0, 0.3, 0.7, 0.95]),
    st.sampled_from([32, 8, 4, 2]),
    st.sampled_from([32, 8]),
)
results = st.builds(
    make_result,
    recipes,
    model=st.sampled_from(["fashion-resnet", "réseau 🕸"]),
    engine=st.sampled_from(["openvino", "sparse", "torch"]),
    images=st.sampled_from([1, 7, 500]),
    path=st.sampled_from([None, "/photographs"]),
    labelled=st.booleans(),
    quick=st.booleans(),
    noisy=st.booleans(),
    rounds=st.sampled_from([2, 40, 200]),
    ratio=st.sampled_from([None, 0.31, 1.0]),
    other_machine=st.booleans(),
    notes=st.sampled_from([(), ("a note",)]),
)


@settings(deadline=None, max_examples=40)
@given(results)
def test_what_is_read_is_what_would_be_worked_out(result: Result) -> None:
    stored.unpack.cache_clear()
    assert told(stored.unpack(stored.pack(derive(result)))) == told(derive(result))


def test_what_was_packed_before_a_field_came_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    summary, plain = derive(make_result(recipe(0.5))), stored._plain

    def before(value: object) -> bytes:
        fields_of = msgspec.msgpack.decode(plain(value))
        del fields_of["scored_on"]
        return msgspec.msgpack.encode(fields_of)

    with monkeypatch.context() as patch:
        patch.setattr(stored, "_plain", before)
        packed = stored.pack(summary)
    assert told(stored.unpack(packed)) == told(summary)


def test_where_the_accuracy_was_worked_out_is_kept_with_a_summary() -> None:
    summary = derive(remade(make_result(recipe(0.5)), scored_on=OTHER_MACHINE))
    assert OTHER_MACHINE.cpu in summary.scored_on
    assert told(stored.unpack(stored.pack(summary))) == told(summary)


def test_a_network_that_tells_no_classes_keeps_its_fidelity_and_no_image_s_values(store: Store) -> None:
    made = make_result(recipe(0.5), labelled=False)
    fidelity: Accuracy = replace(made.accuracy, kl=None, cosine=0.9)
    result = remade(made, accuracy=fidelity)
    stored.put(store, result)
    (found,) = stored.summaries(store)
    assert found.fidelity
    assert told(found) == told(derive(result))


def test_a_result_and_its_summary_are_kept_in_one_go_and_raw_samples_are_not_read(
    store: Store, derived: list[str]
) -> None:
    results = make_sweep((0.0, 0.5), (32, 4), images=500)
    for result in results:
        stored.put(store, result)
    derived.clear()
    write(store, "UPDATE results SET json = x'00'")
    found = stored.summaries(store)
    assert [told(one) for one in found] == [told(derive(result)) for result in results]
    assert derived == []


@pytest.mark.parametrize(
    "spoil",
    [
        "DELETE FROM summaries",
        "UPDATE summaries SET version = version - 1",
        "UPDATE summaries SET version = version + 1",
        "UPDATE summaries SET packed = NULL",
        "UPDATE summaries SET packed = x''",
        "UPDATE summaries SET packed = x'00ff'",
        "UPDATE summaries SET packed = substr(packed, 1, length(packed) - 1)",
        "UPDATE summaries SET packed = substr(packed, 1, 100)",
        "UPDATE summaries SET packed = 'words'",
        "UPDATE summaries SET packed = (SELECT packed FROM summaries LIMIT 1)",
    ],
)
def test_what_is_missing_old_or_damaged_is_worked_out_once(
    store: Store, derived: list[str], spoil: str
) -> None:
    results = [make_result(recipe(sparsity), images=500) for sparsity in (0.1, 0.2)]
    for result in results:
        stored.put(store, result)
    derived.clear()
    write(store, spoil)
    for _ in range(2):
        found = stored.summaries(store)
        assert [told(one) for one in found] == [told(derive(result)) for result in results]
        assert {results[1].key} <= {*derived} <= {result.key for result in results}
        assert len(derived) == len({*derived})


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_no_damaged_byte_is_ever_shown(data: st.DataObject) -> None:
    result = make_result(recipe(0.5), images=500)
    packed = bytearray(stored.pack(derive(result)))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    found = stored._unpacked(result.key, bytes(packed))
    assert found is None or told(found) == told(derive(result))


def test_a_store_from_before_there_were_summaries_reads_as_it_did(store: Store, derived: list[str]) -> None:
    results = make_sweep((0.0, 0.5), (32,), images=500)
    for result in results:
        store.put(result)
    with closing(sqlite3.connect(store.path)) as connection:
        kept = connection.execute("SELECT * FROM results").fetchall()
    store.path.unlink()
    with create_engine(f"sqlite:///{store.path}", poolclass=NullPool).begin() as connection:
        for number, step in enumerate(migrations.MIGRATIONS[:4], 1):
            step(connection)
            connection.exec_driver_sql(f"PRAGMA user_version = {number}")
        connection.exec_driver_sql("INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", kept)
    again = Store(store.path)
    assert [told(one) for one in stored.summaries(again)] == [told(derive(result)) for result in results]
    assert again.results() == results
    assert len(derived) == len(results)
    assert len(stored.summaries(again)) == len(results)
    assert len(derived) == len(results)


def test_a_result_that_takes_another_s_place_takes_its_summary_s_too(store: Store) -> None:
    first = make_result(recipe(0.5), images=500)
    second = replace(make_result(recipe(0.5), images=400), key=first.key)
    for put in (stored.put, Store.put):
        stored.put(store, first)
        put(store, second)
        assert [told(one) for one in stored.summaries(store)] == [told(derive(second))]


def test_a_summary_of_what_was_replaced_meanwhile_is_not_kept(store: Store) -> None:
    first = make_result(recipe(0.5), images=500)
    second = replace(make_result(recipe(0.5), images=400), key=first.key)
    store.put(second)
    store.put_summaries(stored.VERSION, [(first.key, encode(first), stored.pack(derive(first)))])
    assert store.summaries(stored.VERSION) == [(first.key, None)]


def test_summaries_are_those_of_the_results_that_are_asked_for(store: Store) -> None:
    for number in range(3):
        made = make_result(recipe(0.1 * number), images=50, model=f"model-{number // 2}")
        stored.put(store, replace(made, created=f"2026-11-0{3 - number}"))
    for model, limit in ((None, None), ("model-0", None), (None, 1), ("none", None)):
        expected = [result.key for result in store.results(model)][-(limit or 0) :]
        assert [one.key for one in stored.summaries(store, model, limit=limit)] == expected
    keys = [result.key for result in store.results()][::-1]
    assert [one.key for one in stored.summaries_of(store, [*keys, "never there"])] == keys


def test_one_that_cannot_be_read_is_passed_over_and_forgotten_results_leave_nothing(store: Store) -> None:
    good, bad = (make_result(recipe(sparsity), images=50) for sparsity in (0.1, 0.2))
    for result in (good, bad):
        store.put(result)
    write(store, "UPDATE results SET json = x'00' WHERE key = ?", bad.key)
    assert [one.key for one in stored.summaries(store)] == [good.key]
    store.forget([good.key])
    assert store.read(select(tables.summaries)) == []


def test_what_is_there_is_read_where_nothing_can_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = make_result(images=50)
    store.put(result)

    def full(*_: object) -> None:
        raise UnavailableError("no room")

    monkeypatch.setattr(store, "put_summaries", full)
    assert [told(one) for one in stored.summaries(store)] == [told(derive(result))]


def test_a_stored_result_is_not_summarised_again(store: Store) -> None:
    request = Request("fashion-resnet", recipe(0.5))
    result = replace(make_result(recipe(0.5), images=50), request=request)
    stored.put(store, result)
    (summary,) = stored.summaries(store)
    (opened,) = stored.known(store, store.several([result.key]))
    assert summarise(opened) is summary


def rounded(value: object) -> object:
    """To five digits: libraries differ in the last ones."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, dict):
        return {key: rounded(content) for key, content in value.items()}
    return [*map(rounded, value)] if isinstance(value, list | tuple) else value


def test_the_version_is_raised_with_what_a_summary_says() -> None:
    """Where this fails, stored summaries say something else than today's: raise VERSION, and put the digest
    that is found here."""
    results = [
        make_result(recipe(0.5, 4), other_machine=True),
        make_result(recipe(0.9, 8, 8), noisy=True, other_machine=True),
        make_result(recipe(0.3), labelled=False, images=500, path="/photographs", other_machine=True),
        make_result(recipe(0.8), engine="sparse", quick=True, rounds=40, ratio=0.4, other_machine=True),
        make_result(other_machine=True, rounds=800),
        detector(recipe(0.6), 0.1, other_machine=True),
    ]
    said = [replace(derive(result), key="", outcomes=b"") for result in results]
    plain = msgspec.to_builtins(said)
    for later in ("scored_on", "weights"):
        assert {one.pop(later) for one in plain} == {""}, "which came later, and is the default"
    assert {one.pop("lost") for one in plain} == {0}, "likewise"
    checksums = [one["latency"].pop("checksum") for one in plain]
    assert checksums == [result.latency.checksum for result in results]  # of what zlib packs on this machine
    assert (stored.VERSION, digest(rounded(plain))) == (11, "a107e2981282eece31b2")
