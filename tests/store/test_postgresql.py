"""What a store in PostgreSQL does that a file doesn't; those of the store and the ledger run against both."""

import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from databases import Server, query
from factories import OTHER_MACHINE
from faults.storing import claimed, make_result
from image_folders import Fill
from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy.exc import OperationalError

from optimizer.cli.main import main
from optimizer.errors import InputError, UnavailableError
from optimizer.model.added import cards
from optimizer.model.added.cards import AddedModel
from optimizer.model.preprocessing import IMAGENET
from optimizer.recipe import Recipe
from optimizer.records import DataSpec, Request
from optimizer.store import database, ledger, postgresql
from optimizer.store.postgresql import CONNECT
from optimizer.store.results import Store
from optimizer.store.tables import METADATA


@pytest.fixture
def empty(postgresql: Server) -> str:
    return postgresql.empty()


def test_the_tables_are_those_that_the_migrations_make(tmp_path: Path) -> None:
    path = Store(tmp_path / "results.sqlite").path
    for table in METADATA.tables.values():
        made = [str(name) for _, name, *_ in query(path, f"PRAGMA table_info({table.name})")]
        assert sorted(made) == sorted(column.name for column in table.columns if column.name != "rowid")
    named = query(path, "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
    written = {index.name for table in METADATA.tables.values() for index in table.indexes}
    assert {name for (name,) in named} == written


def test_commands_and_everything_else_use_the_database_that_is_named(
    empty: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PARETOSCOPE_STORE", "elsewhere")
    Store(empty).put(make_result("k"))
    shown = empty.replace("secret", "***")
    for command in (["--store", empty, "stored"], ["stored", "--store", empty]):
        assert main(command) == 0
        assert capsys.readouterr().out == f"1 result in {shown}\n"
    assert Store().get("k") == make_result("k")
    assert not (home / "results.sqlite").exists()


def test_a_file_makes_no_difference_to_what_is_kept(empty: str, tmp_path: Path) -> None:
    stores = [Store(empty), Store(tmp_path / "results.sqlite")]
    for store in stores:
        store.put(make_result("k"), (1, b"packed\0\xff"))
        store.put(make_result("l"))
        store.put_document("answer", "x", b'{"rests on":"k"}')
        store.forget(["l"])
    one, other = (
        [store.written(["k", "l"]), store.summaries(1), store.summaries_of(1, ["k"]), store.known("kl")]
        for store in stores
    )
    assert one == other
    stores[0].forget(["k"])
    assert stores[0].get_document("answer", "x", dict) is None
    assert stores[0].known(["k", "l"]) == set()


@pytest.mark.slow
def test_more_keys_may_be_asked_for_than_one_statement_takes(empty: str) -> None:
    store = Store(empty)
    store.put(make_result("k"))
    assert store.known([*map(str, range(100_000)), "k"]) == {"k"}


def test_a_schema_that_an_administrator_made_is_enough(empty: str) -> None:
    """Its owner needs no right to make one."""
    query_as = partial(query, empty)
    for statement in (
        "DROP ROLE IF EXISTS bob",
        "CREATE ROLE bob LOGIN PASSWORD 'bob'",
        "CREATE SCHEMA paretoscope AUTHORIZATION bob",
    ):
        query_as(statement)
    store = Store(empty.replace("ann:secret", "bob:bob"))
    store.put(make_result("k"))
    assert store.get("k") == make_result("k")
    query_as("DROP SCHEMA paretoscope CASCADE")
    query_as("DROP ROLE bob")


def connections(store: Store) -> set[object]:
    """Those that two readers at once have."""
    with store.reading() as one, store.reading() as other:
        return {each.exec_driver_sql("SELECT pg_backend_pid()").scalar_one() for each in (one, other)}


def test_those_who_claim_at_once_get_along_whatever_isolation_is_the_server_s(empty: str) -> None:
    url = empty + "?options=-cdefault_transaction_isolation%3Dserializable"
    requests = [Request("fashion-mlp", Recipe.of(sparsity=number / 100)) for number in range(1, 25)]
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(Store, [url] * 4))
        sweep = ledger.create(stores[0], b"", requests, "ann")

        def claimed(number: int) -> list[int]:
            """By a fourth of those who claim."""
            found = (ledger.claim(stores[number], f"{number}/{each}", sweep) for each in range(6))
            return [item.number for item in found if item]

        those = chain.from_iterable(pool.map(claimed, range(4)))
        assert sorted(those) == list(range(len(requests)))


def test_threads_that_begin_at_once_share_their_connections(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread's own would be dropped while still open."""
    begin, made = Barrier(4), list[Engine]()

    def make_at_once(*given: Any, **named: Any) -> Engine:
        begin.wait(60)
        made.append(create_engine(*given, **named))
        return made[-1]

    monkeypatch.setattr(postgresql, "create_engine", make_at_once)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Store, [f"{empty}?application_name=once"] * 4))
    assert len(made) == 4
    assert sum(each.pool.checkedin() > 0 for each in made) == 1  # type: ignore[attr-defined]
    for each in made:
        each.dispose()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_connections_of_its_own(empty: str) -> None:
    store = Store(empty)
    before = connections(store)
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        own = pool.submit(connections, store).result()
        pool.submit(store.put, make_result("k")).result()
    assert len(before) == len(own) == 2
    assert not before & own
    assert connections(store) == before
    assert store.get("k") == make_result("k")


def mute() -> socket.socket:
    """It listens, and says nothing."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    return listening


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.replace("secret", "s3cret"), "password authentication failed"),
        (lambda url: url.replace("/postgres", "/nowhere"), 'database "nowhere" does not exist'),
        (lambda url: "postgresql://ann:secret@127.0.0.1:1/postgres", "Connection refused"),
        (lambda url: "postgresql://ann:secret@no.such.host.invalid/postgres", "no.such.host.invalid"),
        (lambda url: f"{url}?password=secret&sslmode=verify-full", "(does not support SSL|certificate)"),
    ],
)
def test_a_password_is_never_shown(empty: str, change: Callable[[str], str], words: str) -> None:
    with pytest.raises(UnavailableError, match=rf"postgresql://ann:\*.*{words}.*PARETOSCOPE_STORE") as raised:
        Store(change(empty))
    assert "cret" not in str(raised.value)


@pytest.mark.slow
def test_an_address_that_says_nothing_is_given_up(postgresql: Server) -> None:
    """At the first call, and in the seconds that libpq was given, not in the 30 that a restart may take."""
    with mute() as listening, pytest.raises(UnavailableError, match="timeout"):
        Store(f"postgresql://ann@127.0.0.1:{listening.getsockname()[1]}/postgres")
    assert 2 * int(CONNECT["connect_timeout"]) < 10, "a name may have two addresses"


@pytest.mark.parametrize(
    "url",
    ["mysql://ann:secret@host/base", "postgresql://ann:secret@host:port/base", "postgresql:ann:secret@host"],
)
def test_another_address_is_refused_unseen(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOSCOPE_STORE", url)
    with pytest.raises(InputError, match="postgresql://USER@HOST:PORT/DATABASE") as raised:
        Store()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    ["postgresql://ann:sec@ret@host/base", "postgres://ann:s@cret@/base", "postgresql://ann:s@e/cret@host/b"],
)
def test_an_at_sign_in_a_password_is_not_taken_for_the_one_before_the_host(url: str) -> None:
    with pytest.raises(InputError, match="%40") as raised:
        Store(url)
    assert "ret" not in str(raised.value)


@pytest.mark.parametrize(
    "command",
    [
        ["stored", "--stores", "postgresql://ann:hunter2@host/db"],
        ["stored", "--stores=postgresql://ann:hunter 2@ho@st/db"],
        ["postgresql://ann:hunter2@host/db", "stored"],
        ["stored", "postgresql://host/db?sslmode=require&password=hunter2&connect_timeout=1"],
        ["sweeps", "--cancel", "postgresql://ann:hunter2@host/db"],
    ],
)
def test_a_slip_on_the_command_line_shows_no_password(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(command)
    said = capsys.readouterr().err
    assert "***" in said
    assert "hunter" not in said


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UnavailableError, match=r"pip install 'paretoscope\[postgres\]'"):
        Store("postgresql://ann@without.invalid/postgres")


def test_a_writer_that_keeps_the_others_waiting_is_told(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    other, store = Store(empty), Store(empty + "?application_name=other")
    with (
        other.writing(),
        pytest.raises(UnavailableError, match="the database is locked"),
    ):
        store.put(make_result("k"))
    store.put(make_result("k"))
    assert other.count() == 1


def test_a_full_disk_is_said_so(empty: str) -> None:
    store = Store(empty)
    with pytest.raises(UnavailableError, match="no room is left on its disk"), store.writing() as connection:
        connection.exec_driver_sql("DO $$ BEGIN RAISE EXCEPTION SQLSTATE '53100'; END $$")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_connection_that_is_lost_in_the_middle_is_found_again(
    postgresql: Server, empty: str, how: signal.Signals
) -> None:
    store = Store(empty)
    tried = 0

    @database.again_if_lost
    def put(store: Store) -> None:
        nonlocal tried
        tried += 1
        with store.writing() as connection:
            if tried == 1:
                postgresql.stop(how)
                postgresql.start()
            connection.execute(METADATA.tables["summaries"].insert().values(key="k", version=1, packed=b""))

    put(store)
    assert tried == 2
    assert query(empty, "SELECT key FROM summaries") == [("k",)]
    postgresql.stop(how)
    postgresql.start()
    store.put(make_result("k"))
    assert store.get("k") == make_result("k")


@pytest.mark.slow
def test_a_server_that_stays_away_is_told_and_not_waited_for_for_ever(
    postgresql: Server, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(empty)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.5)
    postgresql.stop()
    try:
        for act in (store.count, store.check_room, lambda: store.put(make_result("k"))):
            with pytest.raises(UnavailableError, match="connection to server at"):
                act()
    finally:
        postgresql.start()
    assert store.count() == 0


def test_what_a_server_has_not_got_is_left_to_others(
    postgresql: Server, fill: Fill, wait: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """An added model, a folder, or a folder of other images; with a file nobody else would do it."""
    store = Store(postgresql.empty())
    folder = fill("images/boot/1.png", "images/bag/2.png") / "images"
    elsewhere = Request("fashion-mlp", data=DataSpec(str(folder)))
    cards.save_card(AddedModel("mine", "checkpoint", f"{'0' * 20}.safetensors", IMAGENET))
    alone = Store(folder.parent / "alone.sqlite")
    for one in (store, alone):
        for number, request in enumerate((elsewhere, Request("mine"), Request("fashion-mlp")), 1):
            assert ledger.create(one, b"", [request], "ann") == number
    shutil.move(folder / "boot" / "1.png", folder / "bag")
    cards.remove("mine")
    wait()
    asked = "when the sweep was started; here"
    lacking = {
        1: f"the images in {folder} as they were {asked} they are missing or have changed",
        2: f"the model mine as it was {asked} it is missing or has changed",
    }
    assert ledger.lacking(store) == lacking
    assert claimed(store).sweep == 3
    assert ledger.claim(store, "another") is None
    assert ledger.find(store, 1).state == "queued"
    assert main(["--store", postgresql.url, "sweeps"]) == 0
    said = capsys.readouterr().out
    assert f"waits for a server that has {lacking[1]}" in said
    assert f"waits for a server that has {lacking[2]}" in said
    assert main(["--store", postgresql.url, "sweep", "--resume", "1"]) == 2
    assert f"sweep 1 waits for a server that has {lacking[1]}" in capsys.readouterr().err
    shutil.move(folder / "bag" / "1.png", folder / "boot")
    wait()
    assert claimed(store, "another").sweep == 1
    assert not ledger.lacking(alone)
    assert ledger.claim(alone, "me") is not None


def test_what_is_timed_on_one_kind_of_machine_is_left_by_servers_of_another(
    postgresql: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an answer in milliseconds would be another processor's, and curves would never fill."""
    store, alone = Store(postgresql.empty()), Store(tmp_path / "alone.sqlite")
    for one in (store, alone):
        ledger.create(one, b"", [Request("fashion-mlp")], "ann")
        ledger.ask(one, b"", Request("fashion-mlp"), "search", "answer", "bob")
        ledger.create(one, b"", [Request("fashion-mlp")], "cid", "a device of a cluster")
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "environment", lambda: OTHER_MACHINE)
        assert {*ledger.lacking(store)} == {1, 2}
        assert ledger.lacking(alone) == {}, "as after an upgrade of its one machine"
        assert ledger.claim(store, "b") is None
        with pytest.raises(InputError, match="waits for a server that has the processor, governor and"):
            ledger.check_not_left(store, 2)
        ledger.resume(store, 2)
        ledger.extend(store, 3, b"", [Request("fashion-resnet")])
        assert {*ledger.lacking(store)} == {1}, "who goes on with it has it timed where they are"
    assert {*ledger.lacking(store)} == {2}
    assert ledger.claim(store, "a") is not None


def test_a_server_that_is_gone_as_one_connects_is_waited_for(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took connections a moment before, so that the refusal could be about the user."""
    store, made = Store(empty), postgresql._engine
    refusals, takes = [OperationalError("", None, Exception("refused"))] * 2, [True, False]

    class Gone:
        def __init__(self, url: URL) -> None:
            self.url = url

        def connect(self) -> Connection:
            if refusals:
                raise refusals.pop()
            return made(self.url).connect()

    monkeypatch.setattr(postgresql, "_engine", Gone)
    monkeypatch.setattr(postgresql, "_accepts", lambda engine: takes.pop(0))
    assert store.count() == 0
    assert not takes
