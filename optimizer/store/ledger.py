"""Sweeps and questions that survive: what was asked, by whom, and how far each of its items is.

An item is one request of a sweep, or a question under limits, which is a sweep of that one item. Whoever
works on it (a command, a dashboard's server) owns it, and tells every few seconds that it still does. What an
owner that is gone had begun is taken up by the next who asks for work. A result or an answer is put into the
store before its item is done, so that a kill in between costs nothing: the item is found done.

Every function is a step of one life, from asked to done, in a transaction of its own: so it stays one file.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from statistics import median_high

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from optimizer.data.selection import recent_fingerprint
from optimizer.errors import InputError, UnavailableError
from optimizer.formats import count
from optimizer.records import DataSpec, Request, encode
from optimizer.store.database import again_if_lost
from optimizer.store.items import (
    SERVED,
    Item,
    Line,
    Sweep,
    Versions,
    again,
    change,
    described,
    first_queued,
    found,
    is_item,
    is_own,
    newest_timed,
    next_item,
    read_items,
    settle,
)
from optimizer.store.keys import request_keys, weights_version
from optimizer.store.results import MAX_MESSAGE, Store
from optimizer.store.tables import OPEN, QUEUED, RUNNING
from optimizer.store.tables import items as ITEMS
from optimizer.store.tables import sweeps as SWEEPS
from optimizer.system.environment import environment, timestamp
from optimizer.system.processes import is_gone

SILENT_SECONDS = 60.0
"""An owner that has told nothing for so long is gone. One of this machine whose process has ended is at
once."""
MAX_ATTEMPTS = 3
"""How often an item is begun while its owners die under it."""
MAX_WAITING = 5_000
"""Items that wait, of all sweeps that are timed on this machine, or in one environment; more are refused."""


def create(store: Store, asked: bytes, requests: Sequence[Request], who: str, device: str = "") -> int:
    """A new sweep, queued; its number. What is in the store already is done from the start. It is timed on
    this machine, or in the environment whose key is ``device``.

    Raises InputError for no requests, UnavailableError when too many items wait already.
    """
    if not requests:
        raise InputError("a sweep needs at least one configuration")
    keyed = _keyed(requests, device)
    with store.writing() as connection, _room(connection, device):
        sweep = _new(connection, asked, who, device)
        _append(connection, sweep, 0, keyed)
    return sweep


@again_if_lost
def ask(store: Store, asked: bytes, base: Request, key: str, answer: str, who: str) -> int:
    """The question of that ``answer``: its number. One that is not there yet is queued, one that was ended
    early, was cancelled or has failed waits again; ``who`` asked first stays.

    Of questions with one ``key`` one is worked on at a time. Raises UnavailableError when too many items wait
    already.
    """
    versions = _versions([base])  # folders are looked at before others wait
    with store.writing() as connection:
        question = connection.scalar(select(ITEMS.c.sweep).where(ITEMS.c.answer == answer))
        if question is None:
            with _room(connection):
                question = _new(connection, asked, who)
                row = _row(question, 0, key, base)
                connection.execute(insert(ITEMS).values(row | {"answer": answer}))
        else:
            again(connection, question, versions)
            settle(connection)
    return int(question)


@again_if_lost
def extend(store: Store, sweep: int, asked: bytes, requests: Sequence[Request]) -> int:
    """Have a sweep ask for ``asked``, which are these requests: how many are new to it.

    Raises InputError where there is no such sweep, UnavailableError when too many items wait already.
    """
    device = find(store, sweep).device
    keyed = _keyed(requests, device)
    with store.writing() as connection:
        known = connection.scalars(select(ITEMS.c.key).where(ITEMS.c.sweep == sweep)).all()
        new = {key: request for key, request in keyed.items() if key not in set(known)}
        connection.execute(update(SWEEPS).where(SWEEPS.c.id == sweep).values(asked=asked))
        _move_here(connection, sweep)
        with _room(connection, device):
            _append(connection, sweep, len(known), new)
    return len(new)


@again_if_lost
def claim(store: Store, owner: str, sweep: int | None = None, device: str = "") -> Item | None:
    """The next item, of one sweep or of all that are timed on this ``device``, which ``owner`` runs from now
    on; None where none is to be had.

    None of which another sweep's item is being run, and none that this server is :func:`lacking` something
    of. Those who ask take turns: the next item is of the one who was served longest ago, and of the oldest of
    their sweeps. An owner works on one item at a time: what else it had begun waits again.
    """
    mine = (ITEMS.c.state == RUNNING) & (ITEMS.c.owner == owner)
    left = lacking(store)  # folders are looked at before others wait
    with store.writing() as connection:
        change(connection, mine, **_untried())
        _take_back(connection)
        settle(connection)
        while (item := next_item(connection, sweep, device, left.keys())) is not None:
            if item.request is None:
                words = "this version can't read what was asked for: ask for it anew"
                change(connection, is_item(item), state="failed", message=words)
                continue
            now, tried = _now(), ITEMS.c.attempts + 1
            begun = {"state": "running", "owner": owner, "beaten": now, "attempts": tried, "message": ""}
            change(connection, is_item(item), **begun)
            served = update(SWEEPS).where(SWEEPS.c.id == item.sweep)
            connection.execute(served.values(served=now))
            return read_items(connection, is_item(item))[0]
    return None


@again_if_lost
def lacking(store: Store) -> Mapping[int, str]:
    """In words, by the numbers of the sweeps that wait, which server they wait for and why: what this one has
    not got of what they were asked for, where others use the store too, is left to them."""
    if not store.shared:
        return {}
    with store.reading() as connection:
        waiting = first_queued(connection)
    found = dict[int, str]()
    for sweep, request, weights, files, timed_in in waiting:
        if request is None or weights is None:
            continue
        if timed_in not in ("", environment().key):
            found[sweep] = "the processor, governor and libraries of the one that was asked"
        elif weights_version(request.model) != weights:
            what = f"the model {request.model} as it was"
            found[sweep] = f"{what} when the sweep was started; here it is missing or has changed"
        elif not _has(request.data, files):
            what = f"the images in {request.data.path or 'memory'} as they were"
            found[sweep] = f"{what} when the sweep was started; here they are missing or have changed"
    return found


def check_not_left(store: Store, sweep: int) -> None:
    """Raises InputError for a sweep that this server is :func:`lacking` something of."""
    if words := lacking(store).get(sweep):
        title = find(store, sweep).title
        raise InputError(f"{title} waits for a server that has {words}. Go on with it there, or ask anew")


def _has(data: DataSpec, files: str | None) -> bool:
    try:
        return not data.content and recent_fingerprint(data) == files
    except InputError:  # no such folder here
        return False


def _versions(requests: Iterable[Request | None]) -> Versions:
    """Those of the weights and images that requests name, as they are here today."""
    found = dict[tuple[str, DataSpec], tuple[str, str]]()
    for model, data in {(request.model, request.data) for request in requests if request}:
        with suppress(InputError):  # no such folder here
            found[model, data] = weights_version(model), recent_fingerprint(data)
    return found


def is_left(item: Item) -> bool:
    """Whether the owner of an item that was begun is gone."""
    return item.beaten < _now() - SILENT_SECONDS or is_gone(item.owner)


def beat(store: Store, item: Item) -> bool:
    """Tell that an item is still worked on: whether it still should be, by this owner."""
    return _change(store, is_own(item), beaten=_now()) > 0


def advance(store: Store, key: str) -> None:
    """The search under a key got further: owners that died under it before count no more."""
    _change(store, (ITEMS.c.state == RUNNING) & (ITEMS.c.key == key), attempts=1)


def is_enough(store: Store, item: Item) -> bool:
    """Whether an item is to end with the best that is found."""
    return bool(store.read(select(ITEMS.c.enough).where(is_item(item)))[0][0])


def finish(store: Store, item: Item, key: str, seconds: float | None) -> None:
    """The result of an item, or its answer, is in the store, under ``key``; so it is done, whatever has
    become of it meanwhile."""
    found = {"key" if item.answer is None else "answer": key}
    those = is_item(item) & (ITEMS.c.state != "done")
    _change(store, those, state="done", seconds=seconds, owner="", message="", **found)


def fail(store: Store, item: Item, message: str) -> None:
    """An item could not be measured; one that is not this owner's any more is left as it is."""
    words = message.replace("\0", "")[:MAX_MESSAGE]  # which PostgreSQL's text can't hold
    _change(store, is_own(item), state="failed", owner="", message=words)


def screen_out(store: Store, item: Item, message: str) -> None:
    """An item of a sweep of the frontier is left, since it can't be on it; one that is not this owner's any
    more is left as it is."""
    _change(store, is_own(item), state="screened out", owner="", message=message)


def put_back(store: Store, item: Item) -> None:
    """An item that was begun and not ended waits again, as if it had not been tried."""
    _change(store, is_own(item), **_untried())


def lose(store: Store, item: Item) -> None:
    """Whoever did an item for this owner was lost under it: it waits again, and that it was tried counts."""
    _change(store, is_own(item), state="queued", owner="")


@again_if_lost
def cancel(store: Store, sweep: int) -> int:
    """Nothing of a sweep is begun any more; who runs an item learns it at the next :func:`beat`. How many
    items that ends. Raises InputError where there is no such sweep."""
    with store.writing() as connection:
        found(connection, sweep)
        return change(connection, _open(sweep), state="cancelled", owner="")


@again_if_lost
def conclude(store: Store, sweep: int) -> int:
    """A question ends with the best that is found; whoever works on it learns it as at :func:`cancel`. How
    many items that concerns: none of other sweeps. Raises InputError where there is no such sweep."""
    with store.writing() as connection:
        found(connection, sweep)
        return change(connection, _open(sweep) & ITEMS.c.answer.is_not(None), enough=1)


@again_if_lost
def resume(store: Store, sweep: int) -> int:
    """What was cancelled, has failed, was ended early or is in the store no more waits again, for the weights
    and images that are here today; and all of it to be timed here: how many items.

    Raises InputError where there is no such sweep.
    """
    versions = _versions(item.request for item in items(store, sweep))
    with store.writing() as connection:
        found(connection, sweep)
        _move_here(connection, sweep)
        return again(connection, sweep, versions)


def repeat(store: Store, sweep: int, who: str) -> int:
    """A new sweep that asks for the same, by today's code and libraries: its number.

    Raises InputError where there is no such sweep, or nothing of it can be read, and what :func:`create`
    does.
    """
    before = find(store, sweep)
    requests = [item.request for item in items(store, sweep) if item.request]
    return create(store, before.asked, requests, who, before.device)


@again_if_lost
def sweeps(store: Store, limit: int = 100) -> list[Sweep]:
    """The newest ones, newest first."""
    newest = select(SWEEPS.c.id).order_by(SWEEPS.c.id.desc()).limit(limit)
    with store.reading() as connection:
        return described(connection, newest)


@again_if_lost
def find(store: Store, sweep: int) -> Sweep:
    """One sweep. Raises InputError where there is no such."""
    with store.reading() as connection:
        return found(connection, sweep)


@again_if_lost
def items(store: Store, sweep: int) -> list[Item]:
    """Those of a sweep, in their order."""
    with store.reading() as connection:
        return read_items(connection, ITEMS.c.sweep == sweep)


def any_open(store: Store, device: str = "") -> bool:
    """Whether anything waits or runs, in any sweep that is timed on this ``device``."""
    here = (ITEMS.c.sweep == SWEEPS.c.id) & (SWEEPS.c.device == device)
    return bool(store.read(select(ITEMS.c.key).where(ITEMS.c.state.in_(OPEN), here).limit(1)))


def line(store: Store, sweep: int) -> Line:
    """Where an open sweep stands among the others."""
    number, who, its = SWEEPS.c.id, SWEEPS.c.who, SWEEPS.alias()
    device = select(its.c.device).where(its.c.id == sweep).scalar_subquery()
    rows = store.read(
        select(number, who, func.count(), SERVED, func.max(ITEMS.c.answer))
        .join_from(SWEEPS, ITEMS, ITEMS.c.sweep == number)
        .where(ITEMS.c.state == QUEUED, SWEEPS.c.device == device)
        .group_by(number, who)
        .order_by(number)
    )
    mine = next((row for row in rows if row[0] == sweep), None)
    if mine is None:
        return Line(0, 0)
    _, who, own, *_ = mine
    turn = {one: min((row[3], row[0]) for row in rows if row[1] == one) for one in {row[1] for row in rows}}
    waiting = Counter[str]()
    for _, one, number, *_ in rows:
        waiting[one] += number
    earlier = sum(row[2] for row in rows if row[1] == who and row[0] < sweep)

    def turns(one: str, own_turns: int) -> int:
        """Items of another visitor that come before the last of so many turns of this one."""
        return min(waiting[one], own_turns - 1 + (turn[one] < turn[who]))

    def before(own_turns: int) -> int:
        return sum(turns(one, own_turns) for one in waiting if one != who)

    left = {one: earlier if one == who else turns(one, earlier + own) for one in waiting}
    questions = list[int]()
    for sweep_of, one, items_of, _, answer in rows:  # of each visitor the oldest sweep comes first
        if answer is not None and left[one] > 0 and sweep_of != sweep:
            questions.append(sweep_of)
        left[one] -= items_of
    asked = (ITEMS.c.state == RUNNING) & ITEMS.c.answer.is_not(None) & (ITEMS.c.sweep == SWEEPS.c.id)
    at_work = store.read(select(ITEMS.c.sweep).where(asked, SWEEPS.c.device == device))
    return Line(
        earlier + before(earlier + 1),
        earlier + before(earlier + own),
        tuple(questions),
        tuple(row[0] for row in at_work),
    )


@again_if_lost
def seconds_each(store: Store, like: Request, device: str = "") -> float | None:
    """What a request of this model, images and way of timing took lately on this ``device``, in seconds (the
    median of those among the last 200 items); None where fewer than three did: the first loads what the
    others share."""
    with store.reading() as connection:
        timed = newest_timed(connection, 200, device)
    alike = [item for item in timed if item.request and _cost(item.request) == _cost(like)]
    times = [item.seconds for item in alike if item.seconds is not None]
    return median_high(times) if len(times) > 2 else None


def _cost(request: Request) -> tuple[object, ...]:
    return request.model, request.data, request.settings.quick, request.recipe.finetune_steps


def _keyed(requests: Sequence[Request], device: str) -> dict[str, Request]:
    return dict(zip(request_keys(requests, device), requests, strict=True))


# In a transaction


@contextmanager
def _room(connection: Connection, device: str = "") -> Iterator[None]:
    """For items that the block adds: what is in the store is done, and does not wait. Raises UnavailableError
    where too many do."""
    waits = (ITEMS.c.state == QUEUED) & (ITEMS.c.sweep == SWEEPS.c.id) & (SWEEPS.c.device == device)
    waiting_now = select(func.count(ITEMS.c.key)).where(waits)
    settle(connection)
    waiting = connection.execute(waiting_now).scalar_one()
    yield
    settle(connection)
    more = connection.execute(waiting_now).scalar_one() - waiting
    if more and waiting + more > MAX_WAITING:
        raise UnavailableError(
            f"no room for {count(more, 'more configuration')}: {waiting:,} wait already, and "
            f"{MAX_WAITING:,} may. Ask for fewer, try again when some of them are done, or cancel a sweep"
        )


def _new(connection: Connection, asked: bytes, who: str, device: str = "") -> int:
    """A sweep without items: its number."""
    here = "" if device else environment().key
    row = {"asked": asked, "who": who, "created": timestamp(), "device": device, "environment": here}
    made = connection.execute(insert(SWEEPS).values(row))
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def _move_here(connection: Connection, sweep: int) -> None:
    """Unless a device of a cluster times it."""
    here = update(SWEEPS).where(SWEEPS.c.id == sweep, SWEEPS.c.device == "")
    connection.execute(here.values(environment=environment().key))


def _append(connection: Connection, sweep: int, first: int, keyed: Mapping[str, Request]) -> None:
    rows = [_row(sweep, number, key, request) for number, (key, request) in enumerate(keyed.items(), first)]
    if rows:
        connection.execute(insert(ITEMS), rows)


def _row(sweep: int, number: int, key: str, request: Request) -> dict[str, object]:
    return {
        "sweep": sweep,
        "number": number,
        "key": key,
        "request": encode(request),
        "state": "queued",
        "weights": weights_version(request.model),
        "files": recent_fingerprint(request.data),
    }


def _take_back(connection: Connection) -> None:
    """What owners that are gone had begun waits again, or has failed where that happened too often."""
    words = f"the process that measured it was gone {MAX_ATTEMPTS} times in a row"
    for item in read_items(connection, ITEMS.c.state == RUNNING):
        if is_left(item):
            gave_up = item.attempts >= MAX_ATTEMPTS
            state, message = ("failed", words) if gave_up else ("queued", "")
            change(connection, is_item(item), owner="", state=state, message=message)


def _untried() -> dict[str, object]:
    return {"state": "queued", "owner": "", "attempts": ITEMS.c.attempts - 1}


def _open(sweep: int) -> ColumnElement[bool]:
    return (ITEMS.c.sweep == sweep) & ITEMS.c.state.in_(OPEN)


@again_if_lost
def _change(store: Store, /, those: ColumnElement[bool], **values: object) -> int:
    with store.writing() as connection:
        return change(connection, those, **values)


def _now() -> float:
    return time.time()
