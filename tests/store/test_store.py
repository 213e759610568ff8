import os
import shutil
import sqlite3
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from databases import query
from faults.storing import make_result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select

from optimizer.errors import UnavailableError
from optimizer.records import SCHEMA, DataSpec, Request, Result, Visits, encode
from optimizer.search.documents import DOCUMENTS
from optimizer.store import results as module
from optimizer.store import sqlite, tables
from optimizer.store.results import Store
from optimizer.store.rows import Failure, describe_unreadable


def timed(key: str, signature: str, quick: bool, first_ns: int = 9, **changes: Any) -> Result:
    plain = make_result(key)
    variant = Visits.of([([], [first_ns]), ([], [8])])
    latency = replace(plain.latency, signature=signature, quick=quick, variant=variant)
    return replace(plain, latency=latency, **changes)


def test_a_result_comes_back_whole_and_a_second_one_replaces_it(place: Path | str, store: Store) -> None:
    longest = Visits.of([([2**62], [0])])
    first = make_result("k", latency=replace(make_result("k").latency, variant=longest))
    store.put(first)
    assert store.get("k") == first
    assert store.get("other") is None
    second = make_result("k", notes=())
    store.put(second)
    assert store.results() == [second]
    assert store.count() == 1
    assert Store(place).get("k") == second


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdef"),
            st.sampled_from(["mlp", "vit"]),
            st.sampled_from(["torch", "openvino"]),
            st.sampled_from([DataSpec(), DataSpec(limit=7)]),
            st.sampled_from(["2026-01-01", "2026-01-02", "2026-01-03"]),
        ),
        max_size=8,
    ),
    st.sampled_from([None, "mlp"]),
    st.sampled_from([None, "torch"]),
    st.sampled_from([None, DataSpec(limit=7)]),
    st.sampled_from([None, 1, 3]),
)
def test_results_are_those_asked_for_newest_last(
    store: Store,
    puts: list[tuple[str, str, str, DataSpec, str]],
    model: str | None,
    engine: str | None,
    data: DataSpec | None,
    limit: int | None,
) -> None:
    kept: dict[str, Result] = {}
    store.forget("abcdef")
    for key, its_model, its_engine, its_data, created in puts:
        result = make_result(
            key, request=Request(its_model, engine=its_engine, data=its_data), created=created
        )
        store.put(result)
        kept.pop(key, None)
        kept[key] = result
    asked = [
        result
        for result in sorted(kept.values(), key=lambda result: result.created)
        if model in (None, result.request.model)
    ]
    by_engine = [result for result in asked if engine in (None, result.request.engine)]
    assert store.results(model, engine) == by_engine
    of_data = [(result.key, None) for result in asked if data in (None, result.request.data)]
    assert store.summaries(1, model, data, limit) == of_data[-limit if limit else 0 :]


def test_rows_of_another_schema_are_passed_over(store: Store) -> None:
    store.put(timed("old", "s", True, schema=SCHEMA + 1))
    assert store.get("old") is None
    assert store.results() == []
    assert store.count() == 0
    assert store.latency("s", quick=True) is None


@pytest.mark.parametrize(
    ("stored", "asked_quick", "served"),
    [
        ([], True, None),
        ([True], True, 0),
        ([True], False, None),
        ([False], False, 0),
        ([False], True, 0),
        ([True, False], True, 1),
        ([False, True], True, 1),
        ([False, True], False, 0),
        ([True, True], True, 1),
    ],
)
def test_the_newest_measurement_that_is_thorough_enough_is_shared(
    store: Store, stored: list[bool], asked_quick: bool, served: int | None
) -> None:
    results = [timed(f"k{number}", "s", quick, number) for number, quick in enumerate(stored)]
    for result in [timed("other", "t", False), *results]:
        store.put(result)
    assert store.latency("s", asked_quick) == (None if served is None else results[served].latency)


def test_forgetting_drops_a_measurement_with_the_last_result_that_shares_it(store: Store) -> None:
    for result in (timed("a", "s", True), timed("b", "s", True), timed("c", "t", True)):
        store.put(result)
    store.forget(["a", "never there"])
    assert [result.key for result in store.results()] == ["b", "c"]
    assert store.latency("s", True) is not None
    store.forget(iter(["b"]))
    assert store.latency("s", True) is None
    assert store.latency("t", True) is not None


def test_a_failure_stays_until_a_result_arrives_or_it_is_forgotten(store: Store) -> None:
    request = Request("fashion-vit")
    store.put_failure("a", request, "its worker was killed")
    store.put_failure("b", request, "no network")
    store.put_failure("a", request, "killed again")
    other, failure = store.failures()
    assert (other.key, failure.key) == ("b", "a")
    assert (failure.request, failure.message) == (request, "killed again")
    store.put(make_result("a"))
    assert [failure.key for failure in store.failures()] == ["b"]
    store.forget(["b"])
    assert store.failures() == []


def test_documents_are_kept_by_kind_and_key(store: Store) -> None:
    store.put_document("pin", "x", b"[1]")
    store.put_document("pin", "y", b"{}")
    store.put_document("complexity", "x", b"2")
    store.put_document("pin", "x", b"[3]")
    assert store.get_document("pin", "x", list) == [3]
    assert store.get_document("pin", "z", list) is None
    assert [*store.documents("pin", object).items()] == [("y", {}), ("x", [3])]
    assert store.get_document("complexity", "x", int) == 2


def test_the_default_file_is_in_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path / "elsewhere"))
    assert Store().path == tmp_path / "elsewhere" / "results.sqlite"


def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    path.write_bytes(b"no database at all " * 1000)
    with pytest.raises(UnavailableError, match=r"results\.sqlite: file is not a database.*PARETOSCOPE_HOME"):
        Store(path)
    assert path.read_bytes() == b"no database at all " * 1000


def test_damage_in_the_middle_is_named(file: Store) -> None:
    for number in range(50):
        file.put(make_result(f"k{number}", notes=("x" * 5000,)))
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))
    with pytest.raises(UnavailableError, match=r"results\.sqlite: .*malformed.*PARETOSCOPE_HOME"):
        file.results()


def refused_by_a_tighter_limit(result: Result) -> bytes:
    """As stored when a batch of 0 was allowed."""
    return encode(result).replace(b'"batch":1', b'"batch":0')


def damaged(result: Result) -> list[object]:
    whole = encode(result)
    return [
        b'{"key":1}',
        b"",
        b"[" * 100_000,
        whole[:-9],
        bytes(len(whole)),
        whole.replace(b'"created":"', b'"created":"\xff\xfe'),
        None,
        7,
        refused_by_a_tighter_limit(result),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("bad", range(len(damaged(make_result("bad")))))
def test_a_row_that_cannot_be_read_is_passed_over_until_it_is_dropped(
    place: Path | str, store: Store, bad: int
) -> None:
    for key in ("good", "bad", "fine"):
        store.put(timed(key, f"s {key}", True))
    what = damaged(timed("bad", "s bad", True))[bad]
    if not isinstance(place, Path) and isinstance(what, int):
        pytest.skip("a column of PostgreSQL's holds nothing but bytes")
    query(place, "UPDATE results SET json = :json WHERE key = 'bad'", json=what)
    assert [result.key for result in store.results()] == ["good", "fine"]
    assert store.get("bad") is None
    assert store.best(make_result("bad").request) is None
    (row,) = store.unreadable(DOCUMENTS)
    assert (row.table, row.kind) == ("results", "result")
    assert row.reason
    assert store.forget_unreadable(store.unreadable(DOCUMENTS)) == 1
    assert store.unreadable(DOCUMENTS) == []
    assert store.forget_unreadable(store.unreadable(DOCUMENTS)) == 0
    assert [result.key for result in store.results()] == ["good", "fine"]
    assert store.latency("s bad", True) is None
    assert store.latency("s good", True) is not None


def test_a_row_that_cannot_be_read_is_measured_anew(place: Path | str, store: Store) -> None:
    store.put(make_result("k"))
    query(place, "UPDATE results SET json = :json", json=b"garbage")
    store.put(make_result("k"))
    assert store.get("k") == make_result("k")
    assert store.unreadable(DOCUMENTS) == []


def test_measurements_failures_and_documents_that_cannot_be_read_are_passed_over_too(
    place: Path | str, store: Store
) -> None:
    full, quick = timed("a", "s", False), timed("b", "s", True)
    for result in (full, quick):
        store.put(result)
    query(place, "UPDATE latencies SET json = :json WHERE quick = 1", json=b"garbage")
    assert store.latency("s", True) == full.latency
    for key in "xy":
        store.put_failure(key, Request("fashion-vit"), "no network")
        store.put_document("complexity", key, b"{}")
        store.put_document("pin", key, b"[1]")
    query(place, "UPDATE failures SET json = :json WHERE key = 'x'", json=b"garbage")
    query(place, "UPDATE documents SET json = :json WHERE kind = 'pin' AND key = 'x'", json=b"\0\0\0")
    assert [failure.key for failure in store.failures()] == ["y"]
    assert store.get_document("pin", "x", list) is None
    assert store.documents("pin", list) == {"y": [1]}
    kinds = sorted(row.kind for row in store.unreadable(DOCUMENTS))
    assert kinds == [
        "complexity document",
        "complexity document",
        "failure",
        "latency measurement",
        "pin document",
    ]
    words = describe_unreadable(store.unreadable(DOCUMENTS))
    assert "1 latency measurement, 1 failure, 2 complexity documents, 1 pin document." in words
    assert store.forget_unreadable(store.unreadable(DOCUMENTS)) == 5
    assert store.documents("pin", list) == {"y": [1]}
    assert [result.key for result in store.results()] == ["a", "b"]


def test_a_damaged_key_hides_no_other_document(file: Store) -> None:
    for key in "xy":
        file.put_document("pin", key, b"[1]")
    query(file.path, "UPDATE documents SET key = CAST(:key AS TEXT) WHERE key = 'x'", key=b"\xff\xfe")
    assert file.documents("pin", list)["y"] == [1]


@pytest.mark.slow
def test_only_the_newest_failures_are_kept_and_no_endless_words(place: Path | str, store: Store) -> None:
    stored = encode(Failure("old", Request("fashion-vit"), "no network", 1, "2026-01-01"))
    rows = [{"key": f"k{number}", "schema": SCHEMA, "json": stored} for number in range(20_000)]
    with store.writing() as connection:
        connection.execute(insert(tables.failures), rows)
    assert len(store.failures()) == module.MAX_FAILURES  # before any is written
    store.put_failure("new", Request("fashion-vit"), "why " * 100_000)
    assert query(place, "SELECT count(*) FROM failures") == [(module.MAX_FAILURES,)]
    assert store.failures()[-1].key == "new"
    assert len(store.failures()[-1].message) == module.MAX_MESSAGE
    assert store.forget_failures() == module.MAX_FAILURES
    assert store.failures() == []


def test_of_what_was_not_finished_the_newest_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.NEWEST, module.UNFINISHED, 3)
    for number in (0, 1, 2, 3, 0, 4):
        store.put_document(module.UNFINISHED, str(number), encode(make_result(str(number))))
        store.put_document(module.SEARCH, str(number), b"{}")
    assert [*store.documents(module.UNFINISHED, Result)] == ["3", "0", "4"]
    assert len(store.documents(module.SEARCH, dict)) == 5


def journal_of(path: Path) -> object:
    return query(path, "PRAGMA journal_mode")[0][0]


def test_on_a_network_s_file_system_nothing_is_shared_through_mapped_files(
    file: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.put(make_result("k"))
    assert journal_of(file.path) == "wal"
    monkeypatch.setattr(sqlite, "is_network", lambda folder: folder == tmp_path)
    moved = Store(file.path)  # as when the folder was moved there
    assert journal_of(file.path) == "delete"
    new = Store(tmp_path / "new.sqlite")
    assert journal_of(new.path) == "delete"
    for one in (moved, new):
        one.put(make_result("l"))
        assert one.get("l") is not None
        with one.reading() as connection:
            connection.execute(select(tables.results)).fetchall()
            assert not [*tmp_path.glob("*-shm"), *tmp_path.glob("*-wal")]
    assert moved.get("k") is not None


@pytest.mark.skipif(os.name != "posix", reason="modes tell nothing on Windows")
def test_only_its_user_reads_the_file(tmp_path: Path) -> None:
    def modes() -> dict[str, int]:
        return {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}

    before = os.umask(0)
    try:
        store = Store(tmp_path / "new" / "results.sqlite")
        with store.writing() as connection:
            connection.execute(delete(tables.results))
            assert modes() == dict.fromkeys(
                ["results.sqlite", "results.sqlite-wal", "results.sqlite-shm"], 0o600
            )
        assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
        store.path.chmod(0o644)  # as written before
        Store(store.path)
        assert modes() == {"results.sqlite": 0o600}
    finally:
        os.umask(before)


def test_a_folder_that_vanishes_is_made_again(file: Store) -> None:
    file.put(make_result("k"))
    shutil.rmtree(file.path.parent)
    assert file.results() == []
    file.put(make_result("k"))
    assert file.count() == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match=r"file.below.results\.sqlite.*PARETOSCOPE_HOME"):
        Store(tmp_path / "file" / "below" / "results.sqlite")
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(UnavailableError, match=r"folder\.sqlite: unable to open.*PARETOSCOPE_HOME"):
        Store(tmp_path / "folder.sqlite")


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UnavailableError, match=r"results\.sqlite.*PARETOSCOPE_HOME"):
            Store(tmp_path / "results.sqlite")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_is_gone_is_said_so(tmp_path: Path) -> None:
    file = Store(tmp_path / "gone" / "results.sqlite")
    shutil.rmtree(file.path.parent)
    with pytest.raises(UnavailableError, match="can't use the results in"):
        file.check_room()


def test_a_full_disk_loses_nothing_that_was_there(file: Store) -> None:
    resource = pytest.importorskip("resource")
    file.put(make_result("there"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UnavailableError, match=r"results\.sqlite: .*PARETOSCOPE_HOME"):
            file.put(make_result("too large", notes=("x" * 1_000_000,)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [result.key for result in file.results()] == ["there"]
    file.put(make_result("after"))
    assert file.count() == 2


@pytest.mark.slow
def test_threads_may_share_a_store(store: Store) -> None:
    errors: list[Exception] = []

    def work(name: str) -> None:
        try:
            for number in range(10):
                store.put(make_result(f"{name}{number}"))
                assert store.get(f"{name}{number}") is not None
                store.results()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.count() == 80


def test_a_new_file_that_another_process_is_writing_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as other, ThreadPoolExecutor() as threads:
        other.execute("BEGIN IMMEDIATE")
        opened = threads.submit(Store, path)
        time.sleep(0.2)
        other.execute("ROLLBACK")
        assert opened.result().count() == 0


def test_a_profiler_that_holds_frames_prevents_no_commit(tmp_path: Path) -> None:
    """A Dask worker has one that looks at threads' frames at times; what they name lives on meanwhile."""
    held: list[FrameType] = []
    sys.setprofile(lambda frame, event, value: held.append(frame))
    try:
        file = Store(tmp_path / "results.sqlite")
        file.put(make_result("k"))
        file.put_document("kind", "key", b"{}")
        file.forget(["k"])
    finally:
        sys.setprofile(None)
    assert held
    assert file.count() == 0
