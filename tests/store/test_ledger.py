"""The ledger of sweeps, against a plain dict of what should be in it."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from databases import Server, query
from faults.storing import claimed, make_result
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from image_folders import Fill

from optimizer.errors import InputError, UnavailableError
from optimizer.recipe import Recipe
from optimizer.records import DataSpec, Request
from optimizer.store import ledger
from optimizer.store.items import Item, Line
from optimizer.store.ledger import MAX_ATTEMPTS, SILENT_SECONDS
from optimizer.store.results import ANSWER, Store

NAMES = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4)
OWNERS = st.sampled_from(["one", "two"])
WHO = st.sampled_from(["ann", "bob"])


def asked_for(names: list[str]) -> list[Request]:
    return [Request(name) for name in names]


@pytest.fixture(autouse=True)
def by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    patch(monkeypatch)


def patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request's key is its model's name."""
    monkeypatch.setattr(ledger, "request_keys", lambda requests, device: [one.model for one in requests])
    monkeypatch.setattr(ledger, "is_gone", lambda owner: False)


class Ledger(RuleBasedStateMachine):
    """What anybody may do in any order: ask, work, die, stop, go on."""

    sweeps = Bundle("sweeps")
    claimed = Bundle("claimed")

    def __init__(self, server: Server | None = None) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        patch(self.patches)
        self.now, self.dead = 1000.0, set[str]()
        self.patches.setattr(ledger, "_now", self.tick)
        self.patches.setattr(ledger, "is_gone", lambda owner: owner in self.dead)
        self.folder = TemporaryDirectory()
        self.store = Store(server.empty() if server else Path(self.folder.name, "results.sqlite"))
        self.kept = set[str]()
        self.looks = 0
        self.who = dict[int, str]()
        self.served = dict[int, float]()
        self.items = dict[tuple[int, int], dict[str, object]]()

    def teardown(self) -> None:
        self.patches.undo()
        self.folder.cleanup()

    def tick(self) -> float:
        self.now += 0.001
        return self.now

    def settle(self) -> None:
        for item in self.items.values():
            if item["state"] == "queued" and item["key"] in self.kept:
                item["state"] = "done"

    def append(self, sweep: int, names: list[str]) -> None:
        known = {item["key"] for (one, _), item in self.items.items() if one == sweep}
        for name in dict.fromkeys(names):
            if name not in known:
                number = sum(one == sweep for one, _ in self.items)
                self.items[sweep, number] = {"key": name, "state": "queued", "owner": "", "attempts": 0}
        self.settle()

    def own(self, item: Item) -> dict[str, object] | None:
        """What the model has of an item that is still this owner's."""
        found = self.items[item.sweep, item.number]
        return found if (found["state"], found["owner"]) == ("running", item.owner) else None

    @rule(target=sweeps, names=NAMES, who=WHO)
    def create(self, names: list[str], who: str) -> int:
        sweep = ledger.create(self.store, b"{}", asked_for(names), who)
        assert sweep not in self.who
        self.who[sweep], self.served[sweep] = who, 0.0
        self.append(sweep, names)
        return sweep

    @rule(sweep=sweeps, names=NAMES)
    def extend(self, sweep: int, names: list[str]) -> None:
        before = len(self.items)
        new = ledger.extend(self.store, sweep, b"[]", asked_for(names))
        self.append(sweep, names)
        assert len(self.items) == before + new

    @rule(target=claimed, owner=OWNERS, chosen=st.none() | sweeps)
    def claim(self, owner: str, chosen: int | None) -> object:
        item = ledger.claim(self.store, owner, chosen)
        for one in self.items.values():
            if one["state"] == "running" and one["owner"] == owner:
                one |= {"state": "queued", "owner": "", "attempts": int(str(one["attempts"])) - 1}
        for one in self.items.values():
            late = one["state"] == "running" and float(str(one["beaten"])) < self.now - SILENT_SECONDS
            if one["state"] == "running" and (late or one["owner"] in self.dead):
                given_up = int(str(one["attempts"])) >= MAX_ATTEMPTS
                one |= {"state": "failed" if given_up else "queued", "owner": ""}
        self.settle()
        self.dead.discard(owner)
        running = {one["key"] for one in self.items.values() if one["state"] == "running"}
        free = [
            (max(self.served[one] for one in self.who if self.who[one] == self.who[sweep]), sweep, number)
            for (sweep, number), one in self.items.items()
            if one["state"] == "queued" and one["key"] not in running and chosen in (None, sweep)
        ]
        if not free:
            assert item is None
            return multiple()
        assert item is not None
        _, *place = min(free)
        assert [item.sweep, item.number] == place
        found = self.items[item.sweep, item.number]
        found |= {
            "state": "running",
            "owner": owner,
            "attempts": int(str(found["attempts"])) + 1,
            "beaten": self.now,
        }
        self.served[item.sweep] = self.now
        return item

    @rule(item=claimed)
    def beat(self, item: Item) -> None:
        own = self.own(item)
        assert ledger.beat(self.store, item) is (own is not None)
        if own:
            own["beaten"] = self.now

    @rule(item=claimed)
    def keep(self, item: Item) -> None:
        """The result is put, and the owner goes no further."""
        self.store.put(make_result(item.key))
        self.kept.add(item.key)

    @rule(item=consumes(claimed))
    def finish(self, item: Item) -> None:
        self.keep(item)
        ledger.finish(self.store, item, item.key, 1.0)
        self.items[item.sweep, item.number] |= {"state": "done", "owner": ""}

    @rule(item=consumes(claimed))
    def fail(self, item: Item) -> None:
        ledger.fail(self.store, item, "no such thing")
        if own := self.own(item):
            own |= {"state": "failed", "owner": ""}

    @rule(item=consumes(claimed))
    def put_back(self, item: Item) -> None:
        ledger.put_back(self.store, item)
        if own := self.own(item):
            own |= {"state": "queued", "owner": "", "attempts": int(str(own["attempts"])) - 1}

    @rule(owner=OWNERS)
    def die(self, owner: str) -> None:
        self.dead.add(owner)

    @rule()
    def hang(self) -> None:
        self.now += SILENT_SECONDS + 1

    @rule(sweep=sweeps)
    def cancel(self, sweep: int) -> None:
        ended = ledger.cancel(self.store, sweep)
        mine = [item for (one, _), item in self.items.items() if one == sweep]
        stopped = [item for item in mine if item["state"] in ("queued", "running")]
        assert len(stopped) == ended
        for item in stopped:
            item |= {"state": "cancelled", "owner": ""}

    @rule(sweep=sweeps)
    def resume(self, sweep: int) -> None:
        again = ledger.resume(self.store, sweep)
        mine = [item for (one, _), item in self.items.items() if one == sweep]
        lost = [
            item
            for item in mine
            if item["state"] in ("cancelled", "failed")
            or (item["state"] == "done" and item["key"] not in self.kept)
        ]
        assert len(lost) == again
        for item in lost:
            item |= {"state": "queued", "owner": "", "attempts": 0}

    @rule(target=sweeps, sweep=sweeps, who=WHO)
    def repeat(self, sweep: int, who: str) -> int:
        again = ledger.repeat(self.store, sweep, who)
        self.who[again], self.served[again] = who, 0.0
        mine = [str(item["key"]) for (one, _), item in self.items.items() if one == sweep]
        self.append(again, mine)
        return again

    @rule(key=st.sampled_from("abcdef"))
    def forget(self, key: str) -> None:
        self.store.forget([key])
        self.kept.discard(key)

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        stored = {
            (item.sweep, item.number): (item.key, item.state, item.owner, item.attempts)
            for sweep in ledger.sweeps(self.store)
            for item in ledger.items(self.store, sweep.id)
        }
        assert stored == {
            place: (item["key"], item["state"], item["owner"], item["attempts"])
            for place, item in self.items.items()
        }
        running = [key for key, state, *_ in stored.values() if state == "running"]
        assert len(running) == len(set(running)), "one request is run twice at a time"
        assert ledger.any_open(self.store) == any(
            item["state"] in ("queued", "running") for item in self.items.values()
        )

    @invariant()
    def the_line_is_as_long_as_it_says(self) -> None:
        """Where nothing else happens, so many items of others come first. Of one sweep at a time, each in its
        turn."""
        waiting = sorted({sweep for (sweep, _), item in self.items.items() if item["state"] == "queued"})
        self.looks += 1
        if waiting:
            sweep = waiting[self.looks % len(waiting)]
            assert ledger.line(self.store, sweep) == self.simulated(sweep)

    def simulated(self, sweep: int) -> Line:
        left = {
            one: sum(item["state"] == "queued" for (of, _), item in self.items.items() if of == one)
            for one in self.who
        }
        served = {
            who: max(self.served[one] for one in self.who if self.who[one] == who)
            for who in self.who.values()
        }
        now, order = self.now, list[int]()
        while any(left.values()):
            one = min((served[self.who[one]], one) for one in left if left[one])[1]
            now += 1
            left[one], served[self.who[one]] = left[one] - 1, now
            order.append(one)
        first = order.index(sweep)
        last = len(order) - order[::-1].index(sweep)
        return Line(first, last - order.count(sweep))


@pytest.mark.slow
def test_the_ledger_in_a_database_of_several_servers(postgresql: Server) -> None:
    few = settings(max_examples=6, stateful_step_count=20, deadline=None)
    run_state_machine_as_test(lambda: Ledger(postgresql), settings=few)


TestLedger = pytest.mark.slow(Ledger.TestCase)
TestLedger.settings = settings(max_examples=16, stateful_step_count=25, deadline=None)


def test_a_sweep_says_what_was_asked_by_whom_and_what_came_of_it(store: Store) -> None:
    store.put(make_result("b"))
    sweep = ledger.create(store, b'{"x":1}', asked_for(["a", "b", "c"]), "ann")
    found = ledger.find(store, sweep)
    assert (found.asked, found.who, found.state, found.total) == (b'{"x":1}', "ann", "running", 3)
    assert found.described() == "3 configurations, 2 queued, 1 done"
    for name in "ac":
        item = claimed(store)
        assert item.key == name
        assert item.request == Request(name)
        ledger.fail(store, item, f"no {name}")
    assert ledger.find(store, sweep).state == "failed"
    assert [item.message for item in ledger.items(store, sweep)] == ["no a", "", "no c"]
    assert ledger.resume(store, sweep) == 2
    assert ledger.cancel(store, sweep) == 2
    assert [one.state for one in ledger.sweeps(store)] == ["cancelled"]
    assert ledger.create(store, b"", asked_for(["b"]), "bob") == sweep + 1
    assert ledger.find(store, sweep + 1).described() == "1 configuration, 1 done"
    assert [(one.id, one.state) for one in ledger.sweeps(store)] == [
        (sweep + 1, "done"),
        (sweep, "cancelled"),
    ]


@pytest.mark.parametrize(
    "act",
    [
        lambda store: ledger.find(store, 7),
        lambda store: ledger.cancel(store, 7),
        lambda store: ledger.resume(store, 7),
        lambda store: ledger.repeat(store, 7, "ann"),
        lambda store: ledger.extend(store, 7, b"", asked_for(["a"])),
    ],
)
def test_a_sweep_that_is_not_there_is_named(store: Store, act: Callable[[Store], object]) -> None:
    with pytest.raises(InputError, match=r"there is no sweep 7: `paretoscope sweeps`"):
        act(store)


def test_too_many_are_refused_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_WAITING", 3)
    with pytest.raises(InputError, match="at least one"):
        ledger.create(store, b"", [], "ann")
    sweep = ledger.create(store, b"", asked_for(["a", "b"]), "ann")
    words = "no room for 2 more configurations: 2 wait already, and 3 may.*cancel a sweep"
    with pytest.raises(UnavailableError, match=words):
        ledger.create(store, b"", asked_for(["c", "d"]), "bob")
    with pytest.raises(UnavailableError, match=words):
        ledger.extend(store, sweep, b"", asked_for(["a", "c", "d"]))
    assert [one.total for one in ledger.sweeps(store)] == [2]
    assert ledger.extend(store, sweep, b"", asked_for(["a", "c"])) == 1


def test_what_is_in_the_store_needs_no_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_WAITING", 1)
    for key in "abc":
        store.put(make_result(key))
    sweep = ledger.create(store, b"", asked_for(["a", "b", "d"]), "ann")
    assert ledger.find(store, sweep).counts == {"done": 2, "queued": 1}
    assert ledger.extend(store, sweep, b"", asked_for(["a", "b", "c", "d"])) == 1
    assert ledger.find(store, sweep).counts == {"done": 3, "queued": 1}
    with pytest.raises(UnavailableError, match="no room for 1 more configuration: 1 wait already"):
        ledger.create(store, b"", asked_for(["a", "e"]), "ann")


def test_a_question_that_is_answered_needs_no_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_WAITING", 1)
    ledger.create(store, b"", asked_for(["a"]), "ann")
    with pytest.raises(UnavailableError, match="1 wait already"):
        ledger.ask(store, b"", Request("fashion-mlp"), "search", "answer", "ann")
    store.put_document(ANSWER, "answer", b"{}")
    number = ledger.ask(store, b"", Request("fashion-mlp"), "search", "answer", "ann")
    assert ledger.find(store, number).state == "done"


def test_what_waits_for_other_machines_takes_no_room_here(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MAX_WAITING", 3)
    there = ledger.create(store, b"", asked_for(["a", "b", "c"]), "ann", "elsewhere")
    here = ledger.create(store, b"", asked_for(["a", "b"]), "ann")
    assert ledger.extend(store, here, b"", asked_for(["a", "b", "c"])) == 1
    for sweep in (there, here):
        with pytest.raises(UnavailableError, match="3 wait already"):
            ledger.extend(store, sweep, b"", asked_for(["a", "b", "c", "d"]))


def test_what_can_not_be_read_has_failed_and_the_others_go_on(place: Path | str, store: Store) -> None:
    sweep = ledger.create(store, b"", asked_for(["a", "b"]), "ann")
    query(place, "UPDATE items SET request = :request WHERE number = 0", request=b"no JSON")
    assert claimed(store).key == "b"
    first = ledger.items(store, sweep)[0]
    assert (first.request, first.state) == (None, "failed")
    assert "can't read" in first.message


def test_what_requests_took_lately_is_told_of_those_that_are_alike(store: Store) -> None:
    assert ledger.seconds_each(store, Request("a")) is None
    requests = [Request("a", Recipe.of(weight_bits=bits)) for bits in (8, 4, 3)]
    for seconds, request in zip((70.0, 3.0, 4.0), requests, strict=True):
        ledger.create(store, b"", [request], "ann")
        item = claimed(store)
        ledger.finish(store, item, item.key, seconds)
    assert ledger.seconds_each(store, Request("a")) == 4
    assert ledger.seconds_each(store, Request("c")) is None


def test_questions_of_others_that_come_first_are_named(store: Store) -> None:
    base = Request("fashion-mlp")
    for number, who in enumerate(("bob", "bob", "cid"), 1):
        assert ledger.ask(store, b"", base, f"search {number}", f"answer {number}", who) == number
    mine = ledger.create(store, b"", asked_for(["a"]), "ann")
    assert ledger.line(store, mine) == Line(2, 2, (1, 3)), "of bob's two one has a turn before"
    assert claimed(store).sweep == 1
    assert ledger.line(store, mine) == Line(1, 1, (3,), (1,)), "which is at work now"


def test_what_is_resumed_is_meant_for_the_images_of_today(
    store: Store, fill: Fill, wait: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "shared", True)
    folder = fill("images/boot/1.png", "images/bag/2.png") / "images"
    requests = [Request(name, data=DataSpec(str(folder))) for name in "abc"]
    sweep = ledger.create(store, b"", requests, "ann")
    assert not ledger.lacking(store)
    (folder / "bag" / "2.png").unlink()
    wait()
    assert "here they are missing or have changed" in ledger.lacking(store)[sweep]
    ledger.cancel(store, sweep)
    assert ledger.resume(store, sweep) == 3
    assert not ledger.lacking(store)


def test_images_in_memory_are_had_by_no_server(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "shared", True)
    sweep = ledger.create(store, b"", [Request("a", data=DataSpec(content="0" * 20))], "ann")
    assert "the images in memory" in ledger.lacking(store)[sweep]
    assert ledger.claim(store, "me") is None
