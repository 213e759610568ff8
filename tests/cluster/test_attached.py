"""The operator's cluster beside a dashboard: its nodes get what waits for them, and what is wrong is told."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from cluster.test_spread import REQUESTS, Elsewhere
from factories import OTHER_MACHINE
from faults.tasks import until

from optimizer.cluster import attached, spread
from optimizer.cluster.attached import Attached
from optimizer.cluster.nodes import Cluster, Device, NodeLost, Nodes, NotTaken
from optimizer.cluster.spread import work_off
from optimizer.errors import UnavailableError
from optimizer.records import Environment, Request, Result
from optimizer.search import drain
from optimizer.store import ledger
from optimizer.store.results import Store

KEY = OTHER_MACHINE.key


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(drain, "BEAT_SECONDS", 0.02)
    for name in ("LOOK_SECONDS", "AGAIN_SECONDS"):
        monkeypatch.setattr(attached, name, 0.02)
    return Store()


class Lent(Cluster):
    """A cluster of one kind of node, whose scheduler goes away where ``lost`` says why."""

    def __init__(self, executor: Elsewhere) -> None:
        super().__init__(executor, "rpi5")
        self.lost, self.unused, self.there = "", ("old has another version",), True

    def devices(self) -> tuple[Device, ...]:
        if self.lost:
            raise UnavailableError(self.lost)
        return super().devices() if self.there else ()


@contextmanager
def lending(store: Store, lent: Lent, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attached]:
    monkeypatch.setattr(attached, "open_cluster", lambda address: lent)
    made = Attached(store, "tcp://10.0.0.5:8786")
    try:
        yield made
    finally:
        made.close()


def over(store: Store, sweep: int) -> Callable[[], bool]:
    return lambda: not ledger.find(store, sweep).open


def test_what_waits_for_a_device_is_handed_out_and_nothing_else(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ledger.create(store, b"", REQUESTS[:1], "bob")
    another = ledger.create(store, b"", REQUESTS[:1], "bob", "a third")
    sweeps = [ledger.create(store, b"", REQUESTS[:3], "ann", KEY)]
    executor = Elsewhere()
    with lending(store, Lent(executor), monkeypatch) as made:
        until(over(store, sweeps[0]))
        assert (made.problem, made.unused) == ("", ("old has another version",))
        assert made.devices[KEY].names == ("rpi5",)
        assert made.waits_for(KEY) == ""
        assert "no node of the kind" in made.waits_for("a third")
        sweeps.append(ledger.create(store, b"", REQUESTS, "ann", KEY))
        made.ring()
        until(over(store, sweeps[1]))
    assert {ledger.find(store, sweep).state for sweep in sweeps} == {"done"}
    assert len(executor.measured) == len(REQUESTS)
    assert [ledger.find(store, sweep).state for sweep in (here, another)] == ["queued", "queued"]
    each = ledger.seconds_each(store, REQUESTS[0], KEY)
    assert each is not None
    assert each > 0


def test_where_the_scheduler_is_lost_what_was_begun_waits_and_goes_on_when_it_is_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Elsewhere(1)
    lent = Lent(executor)
    executor.failing = lambda request: until(lambda: not lent.lost) if request == REQUESTS[2] else None
    sweep = ledger.create(store, b"", REQUESTS, "ann", KEY)
    with lending(store, lent, monkeypatch) as made:
        until(lambda: len(executor.measured) == 2)
        lent.lost = "the scheduler answers no more"
        until(lambda: made.waits_for(KEY) == lent.lost)
        assert not made.devices
        until(lambda: "running" not in ledger.find(store, sweep).counts)
        assert ledger.find(store, sweep).counts == {"done": 2, "queued": 4}
        assert not any(item.attempts for item in ledger.items(store, sweep) if item.state == "queued")
        lent.lost = ""
        until(over(store, sweep))
    assert ledger.find(store, sweep).state == "done"


def test_what_nodes_can_not_take_has_failed_and_the_others_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sweep that a command works on it waits: who reads the message is there."""
    measure, words = spread.measure, "one: another model has the name mine there"

    def refuse(nodes: Nodes, request: Request, scores: None) -> Result:
        if request == REQUESTS[1]:
            raise NotTaken(words)
        return measure(nodes, request, scores)

    monkeypatch.setattr(spread, "measure", refuse)
    sweep = ledger.create(store, b"", REQUESTS, "ann", KEY)
    lent = Lent(Elsewhere(1))
    with pytest.raises(UnavailableError, match="another model"):
        list(work_off(store, lent.nodes(OTHER_MACHINE), sweep))
    assert ledger.find(store, sweep).counts == {"done": 1, "queued": 5}
    with lending(store, lent, monkeypatch):
        until(over(store, sweep))
    assert ledger.find(store, sweep).counts == {"done": 5, "failed": 1}
    assert ledger.items(store, sweep)[1].message == words


def test_where_a_node_is_back_as_soon_as_it_was_missed_what_it_had_waits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, missed = spread.measure, list[Environment]()

    def miss(nodes: Nodes, request: Request, scores: None) -> Result:
        if not missed:
            missed.append(nodes.environment)
            raise UnavailableError("no node is left: what is not measured waits")
        return measure(nodes, request, scores)

    monkeypatch.setattr(spread, "measure", miss)
    sweep = ledger.create(store, b"", REQUESTS[:2], "ann", KEY)
    with lending(store, Lent(Elsewhere(1)), monkeypatch):
        until(over(store, sweep))
    assert ledger.find(store, sweep).counts == {"done": 2}


def test_what_ends_the_last_node_each_time_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, lost = spread.measure, list[Environment]()

    def die(nodes: Nodes, request: Request, scores: None) -> Result:
        if request == REQUESTS[1]:
            lost.append(nodes.environment)
            raise NodeLost("no node is left")
        return measure(nodes, request, scores)

    monkeypatch.setattr(spread, "measure", die)
    sweep = ledger.create(store, b"", REQUESTS[:3], "ann", KEY)
    with lending(store, Lent(Elsewhere(1)), monkeypatch) as made:
        until(over(store, sweep))
        assert made.waits_for(KEY) in ("", "no node is left")
    assert len(lost) == ledger.MAX_ATTEMPTS
    assert [item.state for item in ledger.items(store, sweep)] == ["done", "failed", "done"]
    assert "lost 3 times in a row" in ledger.items(store, sweep)[1].message


def test_what_a_node_had_beside_what_ended_it_does_not_fail_with_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once: one of them ends the node each time, and both are lost."""
    measure, deadly, deaths = spread.measure, threading.Event(), list[Environment]()

    def die(nodes: Nodes, request: Request, scores: None) -> Result:
        if request == REQUESTS[0]:
            deadly.set()
            time.sleep(0.1)  # what is beside it has seen it
            deadly.clear()
            deaths.append(nodes.environment)
        elif not deadly.wait(0.05):
            return measure(nodes, request, scores)
        raise NodeLost("no node is left")

    monkeypatch.setattr(spread, "measure", die)
    sweep = ledger.create(store, b"", REQUESTS[:2], "ann", KEY)
    with lending(store, Lent(Elsewhere(2)), monkeypatch):
        until(over(store, sweep))
    assert [item.state for item in ledger.items(store, sweep)] == ["failed", "done"]
    assert len(deaths) == ledger.MAX_ATTEMPTS


GONE = replace(OTHER_MACHINE, cpu="A third CPU")


class LeftSince(Lent):
    """A second kind of node has left since one looked who is there."""

    def devices(self) -> tuple[Device, ...]:
        return (Device(GONE, ("gone",), 1), *super().devices())

    def nodes(self, environment: Environment) -> Nodes:
        if environment == GONE:
            raise UnavailableError("no node is left")
        return super().nodes(environment)


def test_a_kind_of_node_that_has_just_left_stops_no_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = ledger.create(store, b"", REQUESTS[:1], "bob", GONE.key)
    sweep = ledger.create(store, b"", REQUESTS, "ann", KEY)
    with lending(store, LeftSince(Elsewhere(1)), monkeypatch) as made:
        until(lambda: made.waits_for(GONE.key) == "no node is left")
        until(over(store, sweep))
        assert not made.problem
    assert [ledger.find(store, one).state for one in (gone, sweep)] == ["queued", "done"]


def test_a_store_that_can_not_tell_what_waits_for_a_device_stops_no_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_open = ledger.any_open

    def fail(store: Store, device: str = "") -> bool:
        if device == GONE.key:
            raise UnavailableError("the store is busy")
        return any_open(store, device)

    monkeypatch.setattr(ledger, "any_open", fail)
    sweep = ledger.create(store, b"", REQUESTS, "ann", KEY)
    with lending(store, LeftSince(Elsewhere(1)), monkeypatch) as made:
        until(over(store, sweep))
        assert (made.problem, made.waits_for(GONE.key)) == ("", "the store is busy")


def test_whatever_goes_wrong_is_told_and_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of libraries, where one looks who is there and where one hands out."""
    lent, broken, devices, claim = Lent(Elsewhere(1)), [True, True], Lent.devices, ledger.claim

    def look(self: Lent) -> tuple[Device, ...]:
        if broken[0]:
            raise KeyError("workers")
        return devices(self)

    def fail(*given: Any) -> Any:
        if broken[1]:
            raise RuntimeError("can't start new thread")
        return claim(*given)

    monkeypatch.setattr(Lent, "devices", look)
    monkeypatch.setattr(ledger, "claim", fail)
    sweep = ledger.create(store, b"", REQUESTS, "ann", KEY)
    with lending(store, lent, monkeypatch) as made:
        until(lambda: made.waits_for(KEY) == "KeyError: 'workers'")
        broken[0] = False
        until(lambda: made.waits_for(KEY) == "RuntimeError: can't start new thread")
        broken[1] = False
        until(over(store, sweep))
