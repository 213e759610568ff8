"""The ledger's sweeps and questions worked off, item after item, by a command or by a dashboard's server."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import cast

from optimizer.analysis.screening import ScreenedOut
from optimizer.errors import UnavailableError, WorkError, words_of
from optimizer.progress import Cancelled, ended_by, is_enough, stop_if_cancelled
from optimizer.store import ledger
from optimizer.store.items import Item
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.system.process_pool import Job, Pool
from optimizer.system.processes import identity

BEAT_SECONDS = 2.0
LOOK_SECONDS = 5.0
"""Between two looks at whether there is work."""
ASK_SECONDS = 0.5
MAX_SEARCHES = 5
"""How often a search is begun by a pool while its workers die: three positions that end each are given up."""

_BEGUN = list[int]()
"""The sweep of each item that is being done in this process: for a signal's handler to see, which may not
look into the store."""

Work = Callable[[Item], str]
"""Does an item: puts its result, or the answer to a question, into the store and gives the key. Where
:func:`optimizer.progress.stop_if_cancelled` raises, it lets that pass, and where
:func:`optimizer.progress.is_enough` says so, a search ends with the best that it has. Raises ScreenedOut for
what a sweep of the frontier alone leaves out."""


def drain(
    store: Store, do: Work, sweep: int | None = None, owner: str = "", device: str = ""
) -> Iterator[Item]:
    """Each item that was worked on, of one sweep or question or of all that are timed on this ``device``, as
    it is afterwards, until none is to be had: what is left is being done by others.

    An item that can't be done has failed, and the others go on. Raises UnavailableError where the store can't
    be written, Cancelled where whoever asked for all of this wants it no more; what was begun waits again
    then.
    """
    while True:
        store.check_room()
        item = ledger.claim(store, owner or identity(), sweep, device)
        if item is None:
            return
        yield _run(store, item, do)


def until_over(store: Store, sweep: int, work: Callable[[], Iterator[Item]]) -> Iterator[Item | None]:
    """Each item of a sweep or a question that ``work`` ends, time and again until nothing of it waits or
    runs, here or with others; None whenever they may have ended some. Raises what ``work`` does,
    InputError for what this server has got no more, and Cancelled."""
    while True:
        idle = True
        for item in work():
            idle = False
            yield item
        yield None
        if not ledger.find(store, sweep).open:
            return
        if idle:
            ledger.check_not_left(store, sweep)
        stop_if_cancelled()
        if is_enough():
            ledger.conclude(store, sweep)
        time.sleep(ASK_SECONDS)


def _run(store: Store, item: Item, do: Work) -> Item:
    begun = time.monotonic()
    try:
        with _beating(store, item):
            key = do(item)
    except ScreenedOut as out:
        ledger.screen_out(store, item, str(out))
        return replace(item, state="screened out", message=str(out))
    except Exception as error:  # engines raise what they like
        words = words_of(error)
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
        stop_if_cancelled()  # not the item alone
        return replace(item, state="cancelled")
    except BaseException:
        with suppress(UnavailableError):
            ledger.put_back(store, item)
        raise
    seconds = time.monotonic() - begun
    ledger.finish(store, item, key, seconds)
    done = replace(item, answer=key) if item.answer else replace(item, key=key)
    return replace(done, state="done", seconds=seconds)


@contextmanager
def _beating(store: Store, item: Item) -> Iterator[None]:
    """In the block the item is told to be worked on, and the work learns what is wanted of it: that it ends,
    or that it ends with the best so far."""
    over, lost, enough = threading.Event(), threading.Event(), threading.Event()
    if item.enough:
        enough.set()
    _BEGUN.append(item.sweep)

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with suppress(UnavailableError):  # told again in a moment
                if not ledger.beat(store, item):
                    lost.set()
                    return
                if item.answer and ledger.is_enough(store, item):
                    enough.set()

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()
    try:
        with ended_by(lost.is_set, enough.is_set):
            yield
    finally:
        _BEGUN.remove(item.sweep)
        over.set()


def works_on(sweep: int) -> bool:
    """Whether an item of a sweep or a question is being done in this process."""
    return sweep in _BEGUN


def screening_key(item: Item) -> str:
    """Under which a pool works on an item that may be screened out."""
    return f"{item.key} for {item.sweep}"


def by_pool(pool: Pool, priority: float, screens: Callable[[Item], bool] = lambda item: False) -> Work:
    """Done by a pool's worker, when it is the turn of its ``priority``; where it ``screens``, under a key of
    its own, since who else waits for that result wants it whole (unless somebody does by now). A search under
    which workers die goes on: it gives up the position that ends them."""

    def do(item: Item) -> str:
        assert item.request is not None
        task, asked, key = "measure", cast(object, item.request), request_key(item.request)
        if item.answer:
            task, asked, key = "find", item.sweep, item.key
        elif screens(item) and ((past := pool.get(key)) is None or past.over):
            task, asked, key = "measure for", (item.sweep, item.request), screening_key(item)
        for _ in range(MAX_SEARCHES if item.answer else 1):
            job = _ended(pool, key, lambda: pool.submit("measure", task, asked, key, priority))
            if not job.died:
                break
        if job.state == "cancelled":
            raise Cancelled
        if job.state == "failed":
            raise WorkError(job.error)
        if isinstance(job.result, ScreenedOut):
            raise job.result
        return str(job.result)

    return do


def _ended(pool: Pool, key: str, submit: Callable[[], Job]) -> Job:
    """A job of a pool once it is over, begun anew where an earlier one of its key is. Raises Cancelled."""
    past = pool.get(key)
    if past and past.over:
        pool.forget(key)
    while True:
        try:
            job = submit()
            break
        except UnavailableError:  # too many jobs wait already
            time.sleep(ASK_SECONDS)
            stop_if_cancelled()
    try:
        while not pool.wait(job, ASK_SECONDS).over:
            stop_if_cancelled()
            if is_enough():
                pool.conclude(key)
    except Cancelled:
        pool.withdraw(key)
        raise
    return job


class Background:
    """A thread that works off all that the ledger has, whoever put it there, until it is closed.

    ``problem`` says why nothing is done at the moment, where that is so.
    """

    def __init__(self, store: Store, do: Work) -> None:
        self.problem = ""
        self._store, self._do = store, do
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
        with suppress(Cancelled), ended_by(self._closed.is_set):
            while not self._closed.is_set():
                try:
                    for _ in drain(self._store, self._do):
                        self.problem = ""
                        stop_if_cancelled()
                    self.problem = ""
                except Exception as error:  # the thread goes on when what was wrong is mended
                    self.problem = words_of(error)
                self._bell.wait(LOOK_SECONDS)
                self._bell.clear()
