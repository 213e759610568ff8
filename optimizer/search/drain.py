"""Sweeps of the ledger worked off, item after item, by a command or by a dashboard's server."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from optimizer.errors import ParetoscopeError, UnavailableError, WorkError
from optimizer.progress import Cancelled
from optimizer.records import Request
from optimizer.store import ledger
from optimizer.store.keys import request_key
from optimizer.store.ledger import Item
from optimizer.store.results import Store
from optimizer.system.process_pool import Pool
from optimizer.system.processes import identity

BEAT_SECONDS = 2.0
LOOK_SECONDS = 5.0
"""Between two looks at whether there is work."""
ASK_SECONDS = 0.5

Measure = Callable[[Request, Callable[[], bool]], str]
"""Puts the result of a request into the store and gives its key. The function that it is given says whether
that is wanted no more; then it raises Cancelled."""


def drain(store: Store, measure: Measure, sweep: int | None = None, owner: str = "") -> Iterator[Item]:
    """Each item that was worked on, of one sweep or of all, as it is afterwards, until none is to be had:
    what is left is being run by others.

    An item that can't be measured has failed, and the others go on. Raises UnavailableError where the store
    can't be written; what was begun waits again then.
    """
    while True:
        store.check_room()
        item = ledger.claim(store, owner or identity(), sweep)
        if item is None:
            return
        yield _run(store, item, measure)


def _run(store: Store, item: Item, measure: Measure) -> Item:
    assert item.request is not None
    begun = time.monotonic()
    with _beating(store, item) as is_lost:
        try:
            key = measure(item.request, is_lost)
        except Exception as error:  # engines raise what they like
            words = str(error) if isinstance(error, ParetoscopeError) else f"{type(error).__name__}: {error}"
            try:
                store.check_room()  # nothing is wrong with what could only not be kept
            except UnavailableError:
                with suppress(UnavailableError):
                    ledger.put_back(store, item)
                raise
            ledger.fail(store, item, words)
            return replace(item, state="failed", message=words)
        except Cancelled:
            ledger.put_back(store, item)
            return replace(item, state="cancelled")
        except BaseException:
            with suppress(UnavailableError):
                ledger.put_back(store, item)
            raise
        seconds = time.monotonic() - begun
        ledger.finish(store, item, key, seconds)
        return replace(item, state="done", key=key, seconds=seconds)


@contextmanager
def _beating(store: Store, item: Item) -> Iterator[Callable[[], bool]]:
    """In the block the item is told to be worked on; what it gives says whether it is not wanted any more."""
    over, lost = threading.Event(), threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with suppress(UnavailableError):  # told again in a moment
                if not ledger.beat(store, item):
                    lost.set()
                    return

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()
    try:
        yield lost.is_set
    finally:
        over.set()


def by_pool(pool: Pool, lane: str, task: str, priority: float) -> Measure:
    """Measured by a pool's worker, when it is the turn of its ``priority``."""

    def measure(request: Request, is_lost: Callable[[], bool]) -> str:
        key = request_key(request)
        past = pool.get(key)
        if past and past.over:
            pool.forget(key)
        while True:
            try:
                job = pool.submit(lane, task, request, key, priority)
                break
            except UnavailableError:  # too many jobs wait already
                time.sleep(ASK_SECONDS)
                if is_lost():
                    raise Cancelled from None
        while not pool.wait(job, ASK_SECONDS).over:
            if is_lost():
                pool.withdraw(key)
                raise Cancelled
        if job.state == "cancelled":
            raise Cancelled
        if job.state == "failed":
            raise WorkError(job.error)
        return str(job.result)

    return measure


class Background:
    """A thread that works off all that the ledger has, whoever put it there, until it is closed.

    ``problem`` says why nothing is done at the moment, where that is so.
    """

    def __init__(self, store: Store, measure: Measure) -> None:
        self.problem = ""
        self._store, self._measure = store, measure
        self._bell, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="sweeps", daemon=True)
        self._thread.start()

    def ring(self) -> None:
        """There is work."""
        self._bell.set()

    def close(self) -> None:
        """Begin nothing any more; what runs waits again."""
        self._closed.set()
        self._bell.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closed.is_set():
            try:
                for _ in drain(self._store, self._until_closed):
                    self.problem = ""
                    if self._closed.is_set():
                        return
                self.problem = ""
            except ParetoscopeError as error:
                self.problem = str(error)
            self._bell.wait(LOOK_SECONDS)
            self._bell.clear()

    def _until_closed(self, request: Request, is_lost: Callable[[], bool]) -> str:
        return self._measure(request, lambda: self._closed.is_set() or is_lost())
