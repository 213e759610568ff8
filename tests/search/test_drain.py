"""Sweeps worked off: what becomes of each item, whoever works on it and however that ends."""

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from faults.storing import claimed, make_result
from faults.tasks import until

from optimizer.errors import InputError, UnavailableError
from optimizer.progress import Cancelled, ended_by, is_enough, stop_if_cancelled
from optimizer.records import Request
from optimizer.search import drain as module
from optimizer.search.drain import Background, drain
from optimizer.store import database, ledger, results
from optimizer.store.items import Item
from optimizer.store.results import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """One whose keys are the models' names, and whose owners tell often that they are there."""
    monkeypatch.setattr(ledger, "request_keys", lambda requests, device: [one.model for one in requests])
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    return Store(tmp_path / "results.sqlite")


def asked(store: Store, *names: str, who: str = "ann") -> int:
    return ledger.create(store, b"", [Request(name) for name in names], who)


def states(store: Store, sweep: int) -> list[str]:
    return [item.state for item in ledger.items(store, sweep)]


def keeping(store: Store) -> module.Work:
    def do(item: Item) -> str:
        if item.key.startswith("no "):
            raise InputError(f"unknown model {item.key}")
        if item.key.startswith("broken "):
            raise RuntimeError("out of memory")
        store.put(make_result(item.key))
        return item.key

    return do


def waiting(begun: threading.Event) -> module.Work:
    """Until it is wanted no more."""

    def do(item: Item) -> str:
        begun.set()
        until(stop_if_cancelled)
        raise AssertionError

    return do


def test_each_is_measured_once_and_a_failure_is_told_and_the_others_go_on(store: Store) -> None:
    store.put(make_result("b"))
    sweep = asked(store, "a", "b", "no c", "broken d", "e")
    done = [(item.key, item.state) for item in drain(store, keeping(store), sweep)]
    assert done == [("a", "done"), ("no c", "failed"), ("broken d", "failed"), ("e", "done")]
    assert states(store, sweep) == ["done", "done", "failed", "failed", "done"]
    assert [item.message for item in ledger.items(store, sweep)] == [
        *("", "", "unknown model no c", "RuntimeError: out of memory", "")
    ]
    assert [*drain(store, keeping(store), sweep)] == []


def test_a_cancelled_item_ends_while_it_runs(store: Store) -> None:
    sweep, begun = asked(store, "a", "b"), threading.Event()
    work = threading.Thread(target=lambda: [*drain(store, waiting(begun), sweep)])
    work.start()
    assert begun.wait(60)
    ledger.cancel(store, sweep)
    work.join(60)
    assert not work.is_alive()
    assert states(store, sweep) == ["cancelled", "cancelled"]
    ledger.resume(store, sweep)
    assert [item.key for item in drain(store, keeping(store), sweep)] == ["a", "b"]


def test_an_interrupted_item_waits_again_as_if_it_had_not_been_tried(store: Store) -> None:
    sweep = asked(store, "a")

    def interrupted(item: Item) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        [*drain(store, interrupted, sweep)]
    (item,) = ledger.items(store, sweep)
    assert (item.state, item.attempts) == ("queued", 0)


def test_whoever_asked_for_all_of_it_may_end_it(store: Store) -> None:
    sweep, begun = asked(store, "a", "b"), threading.Event()
    with ended_by(begun.is_set), pytest.raises(Cancelled):
        [*drain(store, waiting(begun), sweep)]
    assert [(item.state, item.attempts) for item in ledger.items(store, sweep)] == [("queued", 0)] * 2


def test_on_a_full_disk_nothing_is_measured_and_what_could_not_be_kept_waits_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = asked(store, "a", "b")
    full = False

    def refused(item: Item) -> str:
        nonlocal full
        full = True
        raise UnavailableError("no room")

    def check_room(store: Store) -> None:
        if full:
            raise UnavailableError("no room is left on its disk")

    monkeypatch.setattr(Store, "check_room", check_room)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="no room is left"):
            [*drain(store, refused, sweep)]
        assert [(item.state, item.attempts) for item in ledger.items(store, sweep)] == [("queued", 0)] * 2
    full = False
    assert len([*drain(store, keeping(store), sweep)]) == 2


def test_a_locked_store_is_told_and_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = asked(store, "a", "b")
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match=r"can't use the results in .*database is locked"):
            [*drain(store, keeping(store), sweep)]
    assert states(store, sweep) == ["queued", "queued"]
    work = Background(store, keeping(store))
    until(lambda: states(store, sweep) == ["done", "done"])
    work.close()


def test_the_background_goes_on_with_all_that_comes_and_says_why_it_waits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = asked(store, "a", "no b")
    work = Background(store, keeping(store))
    until(lambda: not ledger.any_open(store))
    assert states(store, sweep) == ["done", "failed"]
    monkeypatch.setattr(module, "LOOK_SECONDS", 600)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute("PRAGMA user_version = 1000")
        work.ring()
        until(lambda: "newer Paretoscope" in work.problem)
        connection.execute(f"PRAGMA user_version = {version}")
    again = asked(store, "c")
    work.ring()
    until(lambda: states(store, again) == ["done"])
    until(lambda: not work.problem)
    work.close()


def test_the_background_survives_what_nobody_foresaw(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = threading.Event()
    real = Store.check_room

    def check_room(store: Store) -> None:
        if not wrong.is_set():
            raise RuntimeError("the moon is full")
        real(store)

    monkeypatch.setattr(Store, "check_room", check_room)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    sweep, work = asked(store, "a"), Background(store, keeping(store))
    until(lambda: work.problem == "RuntimeError: the moon is full")
    wrong.set()
    until(lambda: states(store, sweep) == ["done"])
    work.close()


def test_closing_puts_back_what_runs(store: Store) -> None:
    sweep, begun = asked(store, "a", "b"), threading.Event()
    work = Background(store, waiting(begun))
    assert begun.wait(60)
    work.close()
    assert [(item.state, item.attempts) for item in ledger.items(store, sweep)] == [("queued", 0)] * 2


def test_visitors_take_turns_and_one_request_is_never_run_twice_at_a_time(store: Store) -> None:
    large = asked(store, "a", "b", "c", "d", who="ann")
    small = asked(store, "c", "x", who="bob")
    order: list[str] = []
    running: set[str] = set()

    def do(item: Item) -> str:
        assert item.key not in running
        running.add(item.key)
        order.append(item.key)
        time.sleep(0.05)
        running.discard(item.key)
        return keeping(store)(item)

    threads = [
        threading.Thread(target=lambda owner=owner: [*drain(store, do, owner=owner)])
        for owner in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(order) == ["a", "b", "c", "d", "x"]
    assert order.index("x") < order.index("d"), "the larger sweep went first"
    assert {*states(store, large), *states(store, small)} == {"done"}


def put_question(store: Store, answer: str = "answer", who: str = "ann") -> int:
    return ledger.ask(store, b"", Request("fashion-mlp"), "search", answer, who)


def test_a_question_is_answered_like_any_item_and_ended_with_the_best_when_that_is_wanted(
    store: Store,
) -> None:
    begun = threading.Event()

    def do(item: Item) -> str:
        begun.set()
        until(is_enough)
        store.put_document(results.EARLY_ANSWER, str(item.answer), b"{}")
        return str(item.answer)

    question = put_question(store)
    work = threading.Thread(target=lambda: [*drain(store, do, question)])
    work.start()
    assert begun.wait(60)
    assert ledger.conclude(store, question) == 1
    work.join(60)
    assert states(store, question) == ["done"]
    assert put_question(store, who="bob") == question
    assert states(store, question) == ["queued"], "one that was ended early goes on when it is asked again"
    (item,) = ledger.items(store, question)
    assert (item.enough, item.key, item.answer) == (False, "search", "answer")
    store.put_document(results.ANSWER, "answer", b"{}")
    assert [*drain(store, do)] == []
    assert states(store, question) == ["done"]
    assert ledger.resume(store, question) == 0


def test_one_search_is_done_by_one_at_a_time_whatever_its_budget(store: Store) -> None:
    short, long = put_question(store), put_question(store, "of a larger budget")
    item = claimed(store)
    assert item.sweep == short
    assert ledger.claim(store, "you") is None
    ledger.finish(store, item, "answer", 30.0)
    other = claimed(store, "you")
    assert other.sweep == long
    ledger.cancel(store, long)
    assert not ledger.beat(store, other)
    assert put_question(store, "of a larger budget") == long
    assert states(store, long) == ["queued"]
