"""Sweeps and questions that survive: what was asked, by whom, and how far each of its items is.

An item is one request of a sweep, or a question under limits, which is a sweep of that one item. Whoever
works on it (a command, a dashboard's server) owns it, and tells every few seconds that it still does. What an
owner that is gone had begun is taken up by the next who asks for work. A result or an answer is put into the
store before its item is done, so that a kill in between costs nothing: the item is found done.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from sqlite3 import Connection
from typing import Any, get_args

from optimizer.errors import InputError, UnavailableError
from optimizer.records import SCHEMA, Request, decode, encode
from optimizer.store.keys import request_keys
from optimizer.store.results import ANSWER, MAX_MESSAGE, NOT_A_RECORD, Store
from optimizer.system.process_pool import State
from optimizer.system.processes import is_gone

SILENT_SECONDS = 60.0
"""An owner that has told nothing for so long is gone. One of this machine whose process has ended is at
once."""
MAX_ID = 2**63 - 1
"""SQLite's; a link may name any."""
MAX_ATTEMPTS = 3
"""How often an item is begun while its owners die under it."""
MAX_WAITING = 5_000
"""Items that wait, of all sweeps; more are refused."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What ``who`` asked for (JSON, as :func:`create` or :func:`ask` was given it) and how many items are in
    which state. ``device`` is the key of the environment that it is timed in, empty for this machine's.
    ``answer`` is the key of the document that answers a question; None for other sweeps."""

    id: int
    asked: bytes
    who: str
    created: str
    device: str
    answer: str | None
    counts: Mapping[State, int]

    @property
    def title(self) -> str:
        """What it is called: ``question 3``."""
        return f"{'sweep' if self.answer is None else 'question'} {self.id}"

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def over(self) -> int:
        """How many neither wait nor run."""
        return self.total - self.counts.get("queued", 0) - self.counts.get("running", 0)

    @property
    def open(self) -> bool:
        """Whether anything waits or runs."""
        return self.over < self.total

    def described(self) -> str:
        """How many are in which state, in words."""
        states = [f"{self.counts[state]:,} {state}" for state in get_args(State) if self.counts.get(state)]
        return f"{self.total:,} configurations, {', '.join(states)}"

    @property
    def state(self) -> State:
        """Queued until one of its items is begun; failed when one has failed and none is left."""
        if self.open:
            begun = self.counts.keys() - {"queued"}
            return "running" if begun else "queued"
        return next((state for state in ("cancelled", "failed") if self.counts.get(state)), "done")  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Item:
    """One request of a sweep, ``request`` None where today's version can't read it.

    ``key`` is that of its result. ``seconds`` is what it took to be measured, None where nothing was.
    ``beaten`` is when its owner was last heard of, in seconds of the epoch.

    Of a question ``answer`` is the key of its answer, ``key`` that of its search, which questions share that
    differ in their budget alone, and ``request`` has its model, images and timing. ``enough``: it is to end
    with the best that is found.
    """

    sweep: int
    number: int
    key: str
    request: Request | None
    state: State
    owner: str
    beaten: float
    attempts: int
    seconds: float | None
    message: str
    answer: str | None
    enough: bool


_ITEM = "sweep, number, key, request, state, owner, beaten, attempts, seconds, message, answer, enough"
_KNOWN = (
    f"(EXISTS (SELECT 1 FROM results WHERE results.key = items.key AND +schema = {SCHEMA}) OR EXISTS"
    f" (SELECT 1 FROM documents WHERE kind = '{ANSWER}' AND documents.key = items.answer))"
)
"""Whether the store has what an item is to find out."""
_AGAIN = (
    "state = 'queued', owner = '', attempts = 0, message = '', enough = 0",
    f"state IN ('cancelled', 'failed') OR (state = 'done' AND NOT {_KNOWN})",
)
"""What has an item wait again, and which of them."""


@dataclass(frozen=True, slots=True)
class Line:
    """Where a sweep stands: items of others that come before its next one, and before its last one."""

    before_next: int
    before_last: int


def create(store: Store, asked: bytes, requests: Sequence[Request], who: str, device: str = "") -> int:
    """A new sweep, queued; its number. What is in the store already is done from the start. It is timed on
    this machine, or in the environment whose key is ``device``.

    Raises InputError for no requests, UnavailableError when too many items wait already.
    """
    if not requests:
        raise InputError("a sweep needs at least one configuration")
    keyed = _keyed(requests, device)
    with store.writing() as connection:
        _check_room(connection, len(keyed))
        sweep = _new(connection, asked, who, device)
        _append(connection, sweep, 0, keyed)
    return sweep


def ask(store: Store, asked: bytes, base: Request, key: str, answer: str, who: str) -> int:
    """The question of that ``answer``: its number. One that is not there yet is queued, one that was ended
    early, was cancelled or has failed waits again; ``who`` asked first stays.

    Of questions with one ``key`` one is worked on at a time. Raises UnavailableError when too many items wait
    already.
    """
    with store.writing() as connection:
        row = connection.execute("SELECT sweep FROM items WHERE answer = ?", (answer,)).fetchone()
        if row is None:
            _check_room(connection, 1)
            question = _new(connection, asked, who)
            connection.execute(
                "INSERT INTO items (sweep, number, key, request, state, answer)"
                " VALUES (?, 0, ?, ?, 'queued', ?)",
                (question, key, encode(base), answer),
            )
        else:
            (question,) = row
            _change(connection, question, *_AGAIN)
        _settle(connection)
    return int(question)


def extend(store: Store, sweep: int, asked: bytes, requests: Sequence[Request]) -> int:
    """Have a sweep ask for ``asked``, which are these requests: how many are new to it.

    Raises InputError where there is no such sweep, UnavailableError when too many items wait already.
    """
    keyed = _keyed(requests, find(store, sweep).device)
    with store.writing() as connection:
        rows = connection.execute("SELECT key FROM items WHERE sweep = ?", (sweep,)).fetchall()
        known = {key for (key,) in rows}
        new = {key: request for key, request in keyed.items() if key not in known}
        _check_room(connection, len(new))
        connection.execute("UPDATE sweeps SET asked = ? WHERE id = ?", (asked, sweep))
        _append(connection, sweep, len(rows), new)
    return len(new)


def claim(store: Store, owner: str, sweep: int | None = None, device: str = "") -> Item | None:
    """The next item, of one sweep or of all that are timed on this ``device``, which ``owner`` runs from now
    on; None where none is to be had.

    None of which another sweep's item is being run. Those who ask take turns: the next item is of the one who
    was served longest ago, and of the oldest of their sweeps. An owner works on one item at a time: what else
    it had begun waits again.
    """
    with store.writing() as connection:
        connection.execute(
            "UPDATE items SET state = 'queued', owner = '', attempts = attempts - 1"
            " WHERE state = 'running' AND owner = ?",
            (owner,),
        )
        _take_back(connection)
        _settle(connection)
        while (row := _next(connection, sweep, device)) is not None:
            item = _item(row)
            place = (item.sweep, item.number)
            if item.request is None:
                words = "this version can't read what was asked for: ask for it anew"
                connection.execute(
                    "UPDATE items SET state = 'failed', message = ? WHERE sweep = ? AND number = ?",
                    (words, *place),
                )
                continue
            now = _now()
            connection.execute(
                "UPDATE items SET state = 'running', owner = ?, beaten = ?, attempts = attempts + 1,"
                " message = '' WHERE sweep = ? AND number = ?",
                (owner, now, *place),
            )
            connection.execute("UPDATE sweeps SET served = ? WHERE id = ?", (now, item.sweep))
            return _item(_one(connection, *place))
    return None


def beat(store: Store, item: Item) -> bool:
    """Tell that an item is still worked on: whether it still should be, by this owner."""
    return _as_owner(store, item, "beaten = ?", _now())


def advance(store: Store, key: str) -> None:
    """The search under a key got further: owners that died under it before count no more."""
    with store.writing() as connection:
        connection.execute("UPDATE items SET attempts = 1 WHERE state = 'running' AND key = ?", (key,))


def is_enough(store: Store, item: Item) -> bool:
    """Whether an item is to end with the best that is found."""
    return bool(
        store.read("SELECT enough FROM items WHERE sweep = ? AND number = ?", item.sweep, item.number)[0][0]
    )


def finish(store: Store, item: Item, key: str, seconds: float | None) -> None:
    """The result of an item, or its answer, is in the store, under ``key``; so it is done, whatever has
    become of it meanwhile."""
    found = "key" if item.answer is None else "answer"
    with store.writing() as connection:
        connection.execute(
            f"UPDATE items SET state = 'done', {found} = ?, seconds = ?, owner = '', message = ''"
            " WHERE sweep = ? AND number = ? AND state != 'done'",
            (key, seconds, item.sweep, item.number),
        )


def fail(store: Store, item: Item, message: str) -> None:
    """An item could not be measured; one that is not this owner's any more is left as it is."""
    _as_owner(store, item, "state = 'failed', owner = '', message = ?", message[:MAX_MESSAGE])


def put_back(store: Store, item: Item) -> None:
    """An item that was begun and not ended waits again, as if it had not been tried."""
    _as_owner(store, item, "state = 'queued', owner = '', attempts = attempts - 1")


def cancel(store: Store, sweep: int) -> int:
    """Nothing of a sweep is begun any more; who runs an item learns it at the next :func:`beat`. How many
    items that ends. Raises InputError where there is no such sweep."""
    return _set(store, sweep, "state = 'cancelled', owner = ''", "state IN ('queued', 'running')")


def conclude(store: Store, sweep: int) -> int:
    """A question ends with the best that is found; whoever works on it learns it as at :func:`cancel`. How
    many items that concerns: none of other sweeps. Raises InputError where there is no such sweep."""
    return _set(store, sweep, "enough = 1", "answer IS NOT NULL AND state IN ('queued', 'running')")


def resume(store: Store, sweep: int) -> int:
    """What was cancelled, has failed, was ended early or is in the store no more waits again: how many items.

    Raises InputError where there is no such sweep.
    """
    return _set(store, sweep, *_AGAIN)


def repeat(store: Store, sweep: int, who: str) -> int:
    """A new sweep that asks for the same, by today's code and libraries: its number.

    Raises InputError where there is no such sweep, or nothing of it can be read, and what :func:`create`
    does.
    """
    before = find(store, sweep)
    requests = [item.request for item in items(store, sweep) if item.request]
    return create(store, before.asked, requests, who, before.device)


def sweeps(store: Store, limit: int = 100) -> list[Sweep]:
    """The newest ones, newest first."""
    rows = store.read(
        "SELECT id, asked, who, created, device, answer, state, count(*) FROM"
        " (SELECT * FROM sweeps ORDER BY id DESC LIMIT ?) JOIN items ON sweep = id"
        " GROUP BY id, state ORDER BY id DESC",
        limit,
    )
    counts: dict[int, dict[State, int]] = {}
    for row in rows:
        counts.setdefault(row[0], {})[row[6]] = row[7]
    return [Sweep(*(*row, counts[row[0]])) for row in dict.fromkeys(row[:6] for row in rows)]


def find(store: Store, sweep: int) -> Sweep:
    """One sweep. Raises InputError where there is no such."""
    with store.reading() as connection:
        row = _found(connection, sweep)
        counts = connection.execute(
            "SELECT state, count(*) FROM items WHERE sweep = ? GROUP BY state", (sweep,)
        )
        return Sweep(*(*row, dict(counts.fetchall())))


def items(store: Store, sweep: int) -> list[Item]:
    """Those of a sweep, in their order."""
    rows = store.read(f"SELECT {_ITEM} FROM items WHERE sweep = ? ORDER BY number", sweep)
    return [_item(row) for row in rows]


def any_open(store: Store) -> bool:
    """Whether anything waits or runs, in any sweep that is timed on this machine."""
    return bool(
        store.read(
            "SELECT 1 FROM items JOIN sweeps ON sweep = id"
            " WHERE state IN ('queued', 'running') AND device = '' LIMIT 1"
        )
    )


def line(store: Store, sweep: int) -> Line:
    """Where an open sweep stands among the others."""
    rows = store.read(
        "SELECT id, who, count(*), (SELECT max(served) FROM sweeps AS all_of WHERE all_of.who = sweeps.who)"
        " FROM sweeps JOIN items ON sweep = id WHERE state = 'queued'"
        " AND device = (SELECT device FROM sweeps WHERE id = ?) GROUP BY id ORDER BY id",
        sweep,
    )
    mine = next((row for row in rows if row[0] == sweep), None)
    if mine is None:
        return Line(0, 0)
    _, who, own, _ = mine
    turn = {one: min((row[3], row[0]) for row in rows if row[1] == one) for one in {row[1] for row in rows}}
    waiting = Counter[str]()
    for _, one, number, _ in rows:
        waiting[one] += number
    earlier = sum(row[2] for row in rows if row[1] == who and row[0] < sweep)

    def before(own_turns: int) -> int:
        """Items of the other visitors that come before the last of so many turns of this one."""
        return sum(
            min(waiting[one], own_turns - 1 + (turn[one] < turn[who])) for one in waiting if one != who
        )

    return Line(earlier + before(earlier + 1), earlier + before(earlier + own))


def seconds_each(store: Store, like: Request) -> float | None:
    """What a request of this model, images and way of timing took lately on this machine, in seconds (the
    median of those among the last 200 items); None where fewer than three did: the first loads what the
    others share."""
    rows = store.read(
        f"SELECT {_ITEM} FROM items WHERE seconds IS NOT NULL AND answer IS NULL"
        " AND sweep NOT IN (SELECT id FROM sweeps WHERE device != '') ORDER BY rowid DESC LIMIT 200"
    )
    found = [item for item in map(_item, rows) if item.request and _cost(item.request) == _cost(like)]
    times = sorted(item.seconds for item in found if item.seconds is not None)
    return times[len(times) // 2] if len(times) > 2 else None


def _cost(request: Request) -> tuple[object, ...]:
    return request.model, request.data, request.settings.quick, request.recipe.finetune_steps


def _keyed(requests: Sequence[Request], device: str) -> dict[str, Request]:
    return dict(zip(request_keys(requests, device), requests, strict=True))


# In a transaction


def _check_room(connection: Connection, more: int) -> None:
    (waiting,) = connection.execute("SELECT count(*) FROM items WHERE state = 'queued'").fetchone()
    if waiting + more > MAX_WAITING:
        raise UnavailableError(
            f"{more:,} configurations are too many now: {waiting:,} wait already, and {MAX_WAITING:,} may."
            " Ask for fewer, try again when some of them are done, or cancel a sweep"
        )


def _new(connection: Connection, asked: bytes, who: str, device: str = "") -> int:
    """A sweep without items: its number."""
    made = "INSERT INTO sweeps (asked, who, created, device) VALUES (?, ?, ?, ?)"
    number = connection.execute(made, (asked, who, _date(), device)).lastrowid
    assert number is not None
    return number


def _append(connection: Connection, sweep: int, first: int, keyed: Mapping[str, Request]) -> None:
    connection.executemany(
        "INSERT INTO items (sweep, number, key, request, state) VALUES (?, ?, ?, ?, 'queued')",
        [(sweep, number, key, encode(request)) for number, (key, request) in enumerate(keyed.items(), first)],
    )
    _settle(connection)


def _settle(connection: Connection) -> None:
    """What is in the store is done, whoever measured it."""
    connection.execute(f"UPDATE items SET state = 'done' WHERE state = 'queued' AND {_KNOWN}")


def _take_back(connection: Connection) -> None:
    """What owners that are gone had begun waits again, or has failed where that happened too often."""
    rows = connection.execute("SELECT sweep, number, owner, beaten FROM items WHERE state = 'running'")
    late = _now() - SILENT_SECONDS
    gone = [(*row[:2],) for row in rows.fetchall() if row[3] < late or is_gone(row[2])]
    words = f"the process that measured it was gone {MAX_ATTEMPTS} times in a row"
    connection.executemany(
        f"UPDATE items SET owner = '', state = iif(attempts < {MAX_ATTEMPTS}, 'queued', 'failed'),"
        f" message = iif(attempts < {MAX_ATTEMPTS}, '', '{words}') WHERE sweep = ? AND number = ?",
        gone,
    )


def _next(connection: Connection, sweep: int | None, device: str) -> tuple[Any, ...] | None:
    """The row of the item whose turn it is."""
    free = (
        "state = 'queued' AND device = ? AND key NOT IN (SELECT key FROM items WHERE state = 'running')"
        f"{'' if sweep is None else ' AND sweep = ?'}"
    )
    place = connection.execute(
        f"SELECT sweep, min(number) FROM items JOIN sweeps ON sweep = id WHERE {free} GROUP BY sweep ORDER BY"
        " (SELECT max(served) FROM sweeps AS all_of WHERE all_of.who = sweeps.who), sweep LIMIT 1",
        (device,) if sweep is None else (device, sweep),
    ).fetchone()
    return place and _one(connection, *place)


def _one(connection: Connection, sweep: int, number: int) -> tuple[Any, ...]:
    row: tuple[Any, ...] = connection.execute(
        f"SELECT {_ITEM} FROM items WHERE sweep = ? AND number = ?", (sweep, number)
    ).fetchone()
    return row


def _item(row: tuple[Any, ...]) -> Item:
    try:
        request = decode(row[3], Request)
    except NOT_A_RECORD:
        request = None
    return Item(*(*row[:3], request, *row[4:-1], bool(row[-1])))


def _found(connection: Connection, sweep: int) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = connection.execute(
        "SELECT id, asked, who, created, device, (SELECT answer FROM items WHERE sweep = id AND number = 0)"
        " FROM sweeps WHERE id = ?",
        (max(0, min(sweep, MAX_ID)),),
    ).fetchone()
    if row is None:
        raise InputError(f"there is no sweep {sweep}: `paretoscope sweeps` lists those that there are")
    return row


def _change(connection: Connection, sweep: int, change: str, those: str) -> int:
    """Change those items of a sweep: how many."""
    return connection.execute(f"UPDATE items SET {change} WHERE sweep = ? AND ({those})", (sweep,)).rowcount


def _as_owner(store: Store, item: Item, change: str, *values: object) -> bool:
    """Change an item that is still run by this owner: whether it is."""
    with store.writing() as connection:
        return bool(
            connection.execute(
                f"UPDATE items SET {change}"
                " WHERE sweep = ? AND number = ? AND state = 'running' AND owner = ?",
                (*values, item.sweep, item.number, item.owner),
            ).rowcount
        )


def _set(store: Store, sweep: int, change: str, those: str) -> int:
    with store.writing() as connection:
        _found(connection, sweep)
        return _change(connection, sweep, change, those)


def _now() -> float:
    return time.time()


def _date() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
