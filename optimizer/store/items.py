"""The ledger's rows: sweeps, the items of each, and what is asked of them inside a transaction."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, Select, func, select, update

from optimizer.errors import InputError
from optimizer.formats import count
from optimizer.records import MAX_INTEGER, SCHEMA, DataSpec, Request, decode
from optimizer.store.results import ANSWER
from optimizer.store.rows import NOT_A_RECORD
from optimizer.store.tables import QUEUED, RUNNING, documents, items, results, sweeps

State = Literal["queued", "running", "done", "screened out", "failed", "cancelled"]
"""Of an item. Screened out: left since it can't be on the frontier, in a sweep that asks for no more."""
Versions = Mapping[tuple[str, DataSpec], tuple[str, str]]
"""Of the weights and the images, by the model's name and where the images are."""


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
        return f"{count(self.total, 'configuration')}, {', '.join(states)}"

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

    @property
    def open(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("queued", "running")


@dataclass(frozen=True, slots=True)
class Line:
    """Where a sweep stands: items of others that come before its next one, and before its last one, and the
    numbers of the ``questions`` among these, and of those ``at_work`` now, which take longer than an item."""

    before_next: int
    before_last: int
    questions: tuple[int, ...] = ()
    at_work: tuple[int, ...] = ()


KNOWN = (
    select(results.c.key).where(results.c.key == items.c.key, results.c.schema + 0 == SCHEMA).exists()
    | select(documents.c.key).where(documents.c.kind == ANSWER, documents.c.key == items.c.answer).exists()
)
"""Whether the store has what an item is to find out."""
_ALL = sweeps.alias()
SERVED = select(func.max(_ALL.c.served)).where(_ALL.c.who == sweeps.c.who).scalar_subquery()
"""When the one who asked for a sweep was served last."""
_ITEM = select(
    *(items.c[name] for name in ("sweep", "number", "key", "request", "state", "owner", "beaten")),
    *(items.c[name] for name in ("attempts", "seconds", "message", "answer", "enough")),
)


def read_items(connection: Connection, *those: ColumnElement[bool]) -> list[Item]:
    """Those items, in their order."""
    rows = connection.execute(_ITEM.where(*those).order_by(items.c.sweep, items.c.number))
    return [_item(row) for row in rows]


def first_queued(connection: Connection) -> list[tuple[int, Request | None, str | None, str | None, str]]:
    """Of each sweep that waits its number, the first request that does, the versions of the weights and
    images that this is meant for, and the environment; that is empty where it is timed on a device of a
    cluster, or is not known."""
    first = (
        select(items.c.sweep, func.min(items.c.number).label("number"))
        .where(items.c.state == QUEUED)
        .group_by(items.c.sweep)
        .subquery()
    )
    same = (items.c.sweep == first.c.sweep) & (items.c.number == first.c.number)
    asked = (
        select(items.c.sweep, items.c.request, items.c.weights, items.c.files, sweeps.c.environment)
        .join(first, same)
        .join(sweeps, sweeps.c.id == items.c.sweep)
    )
    return [
        (sweep, _request(content), weights, files, environment)
        for sweep, content, weights, files, environment in connection.execute(asked)
    ]


def newest_timed(connection: Connection, limit: int, device: str) -> list[Item]:
    """Items of sweeps that were measured on this ``device``, newest first."""
    elsewhere = select(sweeps.c.id).where(sweeps.c.device != device)
    timed = _ITEM.where(
        items.c.seconds.is_not(None), items.c.answer.is_(None), items.c.sweep.not_in(elsewhere)
    )
    return [_item(row) for row in connection.execute(timed.order_by(items.c.rowid.desc()).limit(limit))]


def _item(row: Any) -> Item:
    return Item(*(*row[:3], _request(row.request), *row[4:-1], bool(row[-1])))


def _request(content: bytes) -> Request | None:
    try:
        return decode(content, Request)
    except NOT_A_RECORD:
        return None


def is_item(item: Item) -> ColumnElement[bool]:
    return (items.c.sweep == item.sweep) & (items.c.number == item.number)


def is_own(item: Item) -> ColumnElement[bool]:
    """Whether an item is still run by this owner."""
    return is_item(item) & (items.c.state == RUNNING) & (items.c.owner == item.owner)


def next_item(
    connection: Connection, sweep: int | None, device: str, left: Collection[int] = ()
) -> Item | None:
    """The one whose turn it is, of one sweep or of all that are timed on a device but for those that are
    ``left`` to others."""
    others = items.alias()
    running = select(others.c.key).where(others.c.state == RUNNING)
    free = [items.c.state == QUEUED, sweeps.c.device == device, items.c.key.not_in(running)]
    if sweep is not None:
        free.append(items.c.sweep == sweep)
    if left:
        free.append(items.c.sweep.not_in(left))
    place = connection.execute(
        select(items.c.sweep, func.min(items.c.number))
        .join_from(items, sweeps, sweeps.c.id == items.c.sweep)
        .where(*free)
        .group_by(items.c.sweep, sweeps.c.who)
        .order_by(SERVED, items.c.sweep)
        .limit(1)
    ).first()
    if place is None:
        return None
    (found,) = read_items(connection, items.c.sweep == place[0], items.c.number == place[1])
    return found


def settle(connection: Connection) -> None:
    """What is in the store is done, whoever measured it."""
    connection.execute(update(items).where(items.c.state == QUEUED, KNOWN).values(state="done"))


def change(connection: Connection, those: ColumnElement[bool], **values: object) -> int:
    """Change those items: how many."""
    return connection.execute(update(items).where(those).values(values)).rowcount


def again(connection: Connection, sweep: int, versions: Versions) -> int:
    """Those of a sweep that were cancelled, have failed, or are in the store no more wait again, for the
    weights and images of today's ``versions`` where these are known: how many. So do those that were screened
    out where one is gone that may have beaten them."""
    gone = (items.c.state == "done") & ~KNOWN
    ended = items.c.state.in_(("cancelled", "failed")) | gone
    if read_items(connection, items.c.sweep == sweep, gone):
        ended |= items.c.state == "screened out"
    those = (items.c.sweep == sweep) & ended
    numbers = dict[tuple[str, str], list[int]]()
    for item in read_items(connection, those):
        if item.request and (today := versions.get((item.request.model, item.request.data))):
            numbers.setdefault(today, []).append(item.number)
    for (weights, files), alike in numbers.items():
        one = (items.c.sweep == sweep) & items.c.number.in_(alike)
        change(connection, one, weights=weights, files=files)
    return change(connection, those, state="queued", owner="", attempts=0, message="", enough=0)


def found(connection: Connection, sweep: int) -> Sweep:
    """One sweep. Raises InputError where there is no such."""
    number = max(0, min(sweep, MAX_INTEGER))  # a link may name any
    one = described(connection, select(sweeps.c.id).where(sweeps.c.id == number))
    if not one:
        raise InputError(f"there is no sweep {sweep}: `paretoscope sweeps` lists those that there are")
    return one[0]


def described(connection: Connection, numbers: Select[Any]) -> list[Sweep]:
    """Those sweeps, newest first."""
    first = (items.c.sweep == sweeps.c.id) & (items.c.number == 0)
    rows = connection.execute(
        select(sweeps.c.id, sweeps.c.asked, sweeps.c.who, sweeps.c.created, sweeps.c.device, items.c.answer)
        .outerjoin_from(sweeps, items, first)
        .where(sweeps.c.id.in_(numbers))
        .order_by(sweeps.c.id.desc())
    ).fetchall()
    states = (items.c.sweep, items.c.state)
    counts: dict[int, dict[State, int]] = {row.id: {} for row in rows}
    for sweep, state, number in connection.execute(
        select(*states, func.count()).where(items.c.sweep.in_(list(counts))).group_by(*states)
    ):
        counts[sweep][state] = number
    return [Sweep(*row, counts[row.id]) for row in rows]
