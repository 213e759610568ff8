"""The ledger's items handed to nodes: each is claimed like any other work, measured by a node, and kept in
this machine's store when its result comes home; so what a node was working on when it, or this machine, was
lost waits again.
"""

import contextvars
import queue
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from optimizer.analysis import stored
from optimizer.cluster.nodes import POLL_SECONDS, NodeLost, Nodes, NotTaken
from optimizer.cluster.remote import measure, score
from optimizer.errors import UnavailableError, WorkError
from optimizer.progress import Cancelled, ended_by, stop_if_cancelled
from optimizer.records import Request, Result, Scores, encode
from optimizer.search.drain import drain
from optimizer.store import ledger
from optimizer.store.items import Item
from optimizer.store.results import Store
from optimizer.system.processes import identity

SCORES = "scores"
"""Kind of document: what nodes of another kind worked out of an item that is not timed yet, by its key."""


def work_off(store: Store, nodes: Nodes, sweep: int | None = None) -> Iterator[Item]:
    """Each item of a sweep, or of all that are timed on this device, as it ends, until none waits. What was
    begun waits again where this is left early.

    Raises UnavailableError where no node is left, or the store can't be written; of one sweep also where
    nodes can't take what it needs, which is otherwise told as the item's failure.
    """
    work = _Work(store, nodes, sweep)
    owner = f"{identity()}/{uuid.uuid4().hex}"  # another sweep of this process is another owner
    threads = list[threading.Thread]()

    def begin() -> None:
        """As many threads as nodes have slots: some may have joined."""
        while len(threads) < nodes.slots:
            name, run = f"{owner}-{len(threads)}", contextvars.copy_context().run
            threads.append(threading.Thread(target=run, args=(work.run, name), name=name, daemon=True))
            threads[-1].start()

    begin()
    try:
        for _ in threads:
            while (item := work.ended.get()) is not None:
                begin()
                yield item
    finally:
        work.stop.set()
        for thread in threads:
            thread.join()
    if work.problems:
        raise work.problems[0]
    stop_if_cancelled()


class _SharedLock:
    """Held by any number at once, or by one alone (a readers-writer lock); who waits for
    it learns where the work is cancelled."""

    def __init__(self) -> None:
        self._changed, self._inside, self._closed = threading.Condition(), 0, False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """By any number, unless one has it alone or waits for that. Raises Cancelled while it waits."""
        with self._changed:
            self._wait_until(lambda: not self._closed)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """By one, once all others have left; until then nobody comes. Raises Cancelled while it waits."""
        with self._changed:
            self._wait_until(lambda: not self._closed)
            self._closed = True
        try:
            with self._changed:
                self._wait_until(lambda: not self._inside)
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()

    def _wait_until(self, may: Callable[[], bool]) -> None:
        while not self._changed.wait_for(may, POLL_SECONDS):
            stop_if_cancelled()


@dataclass(eq=False)
class _Work:
    """What the threads of a ``sweep``, or of a device where there is none, have in common: items that have
    ``ended``, with None after a thread's last, and the ``problems`` that ``stop`` them all."""

    store: Store
    nodes: Nodes
    sweep: int | None
    ended: "queue.SimpleQueue[Item | None]" = field(default_factory=queue.SimpleQueue)
    stop: threading.Event = field(default_factory=threading.Event)
    problems: list[Exception] = field(default_factory=list)
    lock: _SharedLock = field(default_factory=_SharedLock)

    def run(self, owner: str) -> None:
        """One thread's: item after item, until none waits."""
        try:
            with ended_by(self.stop.is_set):
                for item in drain(self.store, self._do, self.sweep, owner, self.nodes.environment.key):
                    self.ended.put(item)
        except Cancelled:
            pass
        except Exception as error:
            self._give_up(error)
        finally:
            self.ended.put(None)

    def _give_up(self, error: Exception) -> None:
        self.problems.append(error)
        self.stop.set()

    def _do(self, item: Item) -> str:
        waits = False
        try:
            return self._done(item)
        except Cancelled:
            waits = True  # and so do its scores
            raise
        finally:
            if not waits:
                with suppress(UnavailableError):
                    self.store.forget_document(SCORES, item.key)

    def _done(self, item: Item) -> str:
        assert item.request is not None
        try:
            result = self._measured(item, item.request)
        except UnavailableError as error:
            self._wait_again(item, error)
            raise Cancelled from error
        except WorkError as error:
            self.store.put_failure(item.key, item.request, str(error))
            raise
        stored.put(self.store, result)
        return result.key

    def _wait_again(self, item: Item, error: UnavailableError) -> None:
        """Nothing is wrong with the configuration, but nodes can't go on. Raises WorkError where it has
        waited often enough, or where they refuse this one alone."""
        lost = isinstance(error, NodeLost)
        if lost and item.attempts >= ledger.MAX_ATTEMPTS:
            words = f"the last node that had it was lost {ledger.MAX_ATTEMPTS} times in a row"
            raise WorkError(words) from error
        if self.sweep is None and isinstance(error, NotTaken):
            raise WorkError(str(error)) from error
        self._give_up(error)
        if lost:  # only now, or another worker would lose it too before it is told to stop
            ledger.lose(self.store, item)

    def _measured(self, item: Item, request: Request) -> Result:
        """One that was begun before and lost is measured alone: what the node had beside it is innocent."""
        stop_if_cancelled()  # another may have lost it a moment ago
        with self.lock.shared() if item.attempts <= 1 else self.lock.exclusive():
            return measure(self.nodes, request, self._scores(item, request))

    def _scores(self, item: Item, request: Request) -> Scores | None:
        """Those that came home before, or do now; they are kept until the item is done or has failed."""
        found = self.store.get_document(SCORES, item.key, Scores)
        if found is None and item.attempts <= 1 and (found := score(self.nodes, request)):
            self.store.put_document(SCORES, item.key, encode(found))
        return found
