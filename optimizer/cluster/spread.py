"""A sweep of the ledger handed to nodes: any executor takes configurations, and gives them back measured.

Each is claimed from the ledger like any other work, submitted, and kept in this machine's store when its
result comes home; so what a node was working on when it, or this machine, was lost waits again. What nodes
are stands beside what hands them work, which is all that asks anything of them.
"""

import contextvars
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, Protocol

from optimizer import __version__
from optimizer.analysis import stored
from optimizer.cluster import content, node
from optimizer.cluster.content import Asked, Parcel
from optimizer.errors import InputError, UnavailableError, WorkError, unknown, words_of
from optimizer.methods.engines import ENGINES
from optimizer.progress import Cancelled, Report, ended_by, quiet, stop_if_cancelled
from optimizer.recipe import Recipe
from optimizer.records import Environment, Request, Result, Scores, decode, encode
from optimizer.search.drain import drain
from optimizer.store import ledger
from optimizer.store.items import Item
from optimizer.store.results import Store
from optimizer.system.processes import identity

PREFIX = "slurm:"
"""Of the address of a SLURM cluster, which a partition follows."""
POLL_SECONDS = 0.05
CHECK_SECONDS = 2.0
"""Between two looks at whether the node that has a configuration is still there."""
MAX_SUBMITTED = 16
"""To an executor that doesn't tell how many it works on at once."""
ATTEMPTS = 3
"""How often a configuration is handed out while nodes are lost under it."""
SCORES = "scores"
"""Kind of document: what nodes of another kind worked out of an item that is not timed yet, by its key."""


class NodeLost(UnavailableError):
    """The last node ended while it had what was waited for."""


class NotTaken(UnavailableError):
    """Nodes are there that can't be given what a request names: it would be the same the next time."""


class Pending(Protocol):
    """Of ``concurrent.futures.Future`` what is needed; submitit's jobs have it too."""

    def done(self) -> bool: ...
    def result(self) -> Any: ...
    def cancel(self) -> Any: ...


class Executor(Protocol):
    """Of ``concurrent.futures.Executor`` what is needed."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Pending: ...


class Nodes:
    """What an executor is to a sweep: where configurations are measured, all in one environment.

    ``slots``: how many it is given at once. Raises UnavailableError where it does nothing.
    """

    environment: Environment

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.slots: int = getattr(executor, "_max_workers", MAX_SUBMITTED)
        version, host, about = self.outcome(node.introduce)
        check_version(version, host)
        self.environment = decode(about, Environment)

    def outcome(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function gives at a node. Raises UnavailableError where no node takes it, NodeLost where the
        last one ended under it, WorkError where it was lost ``ATTEMPTS`` times, and whatever stops the
        wait."""
        for _ in range(ATTEMPTS):
            try:
                pending = self.submit(function, *arguments)
            except UnavailableError:
                raise
            except Exception as error:
                raise UnavailableError(f"the executor takes no more work: {words_of(error)}") from error
            checked, lost = time.monotonic(), False
            try:
                while not pending.done():
                    stop_if_cancelled()
                    time.sleep(POLL_SECONDS)
                    if time.monotonic() > checked + CHECK_SECONDS:
                        if lost := self.is_lost(pending):
                            break
                        checked = time.monotonic()
                if pending.done():
                    return pending.result()
                self.cancel(pending)
            except CancelledError:  # by who lost it
                pass
            except BaseException:
                self.cancel(pending)
                raise
            try:
                self.check()
            except UnavailableError as error:
                raise (NodeLost if lost else UnavailableError)(str(error)) from error
        raise WorkError(f"its node was lost {ATTEMPTS} times in a row")

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Pending:
        return self.executor.submit(function, *arguments)

    def cancel(self, pending: Pending) -> None:
        """What is pending is wanted no more."""
        pending.cancel()

    def is_lost(self, pending: Pending) -> bool:
        """Whether the nodes that could have done it are gone. Raises UnavailableError where nobody knows."""
        return False

    def check(self) -> None:
        """Raises UnavailableError where no node is left."""

    def deliver(self, asked: Asked, anew: bool = False) -> None:
        """See to it that nodes have what a request names, ``anew`` where one said that it has not; as here,
        those that share this machine's disk. Raises UnavailableError, NotTaken where a node can't take it."""

    def scorer(self, recipe: Recipe) -> "Nodes | None":
        """One of another kind, with nothing else to do, that works out a recipe's accuracy for these, so that
        they only time it; None for none, as where all are alike. Raises UnavailableError."""
        return None

    def close(self) -> None:
        """Wait for no node any more."""

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Device:
    """Nodes that are alike, by their names, and how many configurations they are given at once."""

    environment: Environment
    names: tuple[str, ...]
    slots: int


class Cluster:
    """The nodes at an address: an executor's, which are all alike and have the one ``name``. ``unused`` says
    of which others no use can be made, and why.

    Raises what :class:`Nodes` does.
    """

    unused: tuple[str, ...] = ()

    def __init__(self, executor: Executor, name: str) -> None:
        self._name, self._nodes = name, Nodes(executor)

    def devices(self) -> tuple[Device, ...]:
        """Who is there now. Raises UnavailableError where nobody knows."""
        return (Device(self._nodes.environment, (self._name,), self._nodes.slots),)

    def nodes(self, environment: Environment) -> Nodes:
        """Those of one device. Raises UnavailableError where none is left."""
        return self._nodes

    def close(self) -> None:
        """Wait for no node any more."""


def connect(executor: Executor | str, on: str = "", report: Report = quiet) -> Nodes:
    """The nodes of an executor, or of the cluster at an address: those that are like the one called ``on``.

    Raises InputError for what is no address and a name that no node has, UnavailableError where nobody
    answers.
    """
    if isinstance(executor, str) and executor.startswith(PREFIX):
        executor = _slurm(executor)
    if isinstance(executor, str):
        from optimizer.cluster.dask_nodes import connect_to

        return connect_to(executor, on, report)
    if on:
        raise InputError("an executor's nodes have no names: leave `on` out")
    return Nodes(executor)


def open_cluster(address: str) -> Cluster:
    """All the nodes of the cluster at an address. Raises what :func:`connect` does."""
    if address.startswith(PREFIX):
        return Cluster(_slurm(address), address)
    from optimizer.cluster.dask_nodes import DaskCluster

    return DaskCluster(address)


def check_address(address: str) -> None:
    """Whether a cluster answers at an address. Raises what :func:`connect` does."""
    if address.startswith(PREFIX):
        _slurm(address)
        return
    from optimizer.cluster.dask_client import check_scheduler

    check_scheduler(address)


def _slurm(address: str) -> Executor:
    from optimizer.cluster.slurm import slurm_executor

    return slurm_executor(address.removeprefix(PREFIX))


def check_version(version: str, host: str) -> None:
    """Raises UnavailableError for a node of another version."""
    if version != __version__:
        raise UnavailableError(f"{host} has paretoscope {version}, this is {__version__}: install the same")


def check(request: Request) -> None:
    """Whether a model, an engine and images of these names are known here: what would fail all of a sweep.
    Raises InputError."""
    from optimizer.model import catalogue

    catalogue.card(request.model)
    if request.engine not in ENGINES:
        raise unknown("engine", request.engine, ENGINES)
    content.pack(request)


def measure(nodes: Nodes, request: Request, scores: Scores | None = None) -> Result:
    """A request measured by a node, as if it had been here, but for the environment; only timed where there
    are ``scores`` of these very images.

    Raises WorkError where that fails, InputError where an executor gave it to another kind of machine than
    the sweep is timed on, UnavailableError where no node takes it, NotTaken where none can, Cancelled.
    """
    asked = content.pack(request)
    given = (encode(scores),) if scores and scores.files == asked.files else ()
    ending, found = _outcome(nodes, node.measure, asked, *given)
    if ending == node.LACKING:
        lacking = decode(found, Parcel)
        raise NotTaken(
            f"the nodes lack the {lacking.kind} of {request.model} on {request.data.path or 'images'},"
            " and can be sent nothing: let them share this machine's folders, PARETOSCOPE_HOME among them"
        )
    if ending == node.REFUSED:
        raise InputError(
            f"nothing was measured: {found.decode()}, where the sweep is timed: use an executor whose nodes "
            "are all of one kind"
        )
    if ending == node.FAILED:
        raise WorkError(found.decode())
    return decode(found, Result)


def score(nodes: Nodes, request: Request) -> Scores | None:
    """What others work out of a request for the nodes that time it; None where none may, has time, or can:
    those nodes do it then. Raises Cancelled."""
    try:
        scorer = nodes.scorer(request.recipe)
        if scorer is None:
            return None
        with scorer:
            ending, found = _outcome(scorer, node.score, content.pack(request))
            if ending != node.DONE:
                raise WorkError(found.decode())
            return decode(found, Scores)
    except Exception:  # what is wrong with more than that node is told by those that time
        return None


def _outcome(
    nodes: Nodes, function: Callable[..., node.Outcome], asked: Asked, *given: bytes
) -> node.Outcome:
    """How a node ended with a request that it had been sent all for. Raises Cancelled, and what the nodes'
    methods do."""
    ending, found = node.LACKING, b""
    for anew in (False, True):
        nodes.deliver(asked, anew)
        ending, found = nodes.outcome(function, __version__, encode(nodes.environment), encode(asked), *given)
        if ending != node.LACKING:
            break
    if ending == node.CANCELLED:
        raise Cancelled
    return ending, found


def work_off(store: Store, nodes: Nodes, sweep: int | None = None) -> Iterator[Item]:
    """Each item of a sweep, or of all that are timed on this device, as it ends, until none waits. What was
    begun waits again where this is left early.

    Raises UnavailableError where no node is left, or the store can't be written; of one sweep also where
    nodes can't take what it needs, which is otherwise told as the item's failure.
    """
    ended, stop, problems = queue.SimpleQueue[Item | None](), threading.Event(), list[Exception]()
    gate, under_way, kept = threading.Lock(), list[str](), set[str]()

    def give_up(error: Exception) -> None:
        problems.append(error)
        stop.set()

    def scores(item: Item, request: Request) -> Scores | None:
        """Those that came home before, or do now, and are kept until the item is done."""
        found = store.get_document(SCORES, item.key, Scores)
        if found is None and item.attempts <= 1 and (found := score(nodes, request)):
            store.put_document(SCORES, item.key, encode(found))
        if found:
            kept.add(item.key)
        return found

    def measured(item: Item, request: Request) -> Result:
        """One that was begun before and lost is measured alone: what the node had beside it is innocent."""
        stop_if_cancelled()  # another may have lost it a moment ago
        while not gate.acquire(timeout=POLL_SECONDS):
            stop_if_cancelled()
        try:
            if item.attempts > 1:
                while under_way:
                    stop_if_cancelled()
                    time.sleep(POLL_SECONDS)
                return measure(nodes, request, scores(item, request))
            under_way.append(item.key)
        finally:
            gate.release()
        try:
            return measure(nodes, request, scores(item, request))
        finally:
            under_way.remove(item.key)

    def do(item: Item) -> str:
        try:
            return done(item)
        except Cancelled:  # it waits, and so do its scores
            kept.discard(item.key)
            raise
        finally:
            if item.key in kept:
                kept.remove(item.key)
                store.forget_document(SCORES, item.key)

    def done(item: Item) -> str:
        assert item.request is not None
        try:
            result = measured(item, item.request)
        except UnavailableError as error:
            lost = isinstance(error, NodeLost)
            if lost and item.attempts >= ledger.MAX_ATTEMPTS:
                words = f"the last node that had it was lost {ledger.MAX_ATTEMPTS} times in a row"
                raise WorkError(words) from error
            if sweep is None and isinstance(error, NotTaken):
                raise WorkError(str(error)) from error
            give_up(error)  # nothing is wrong with the configuration: it waits again
            if lost:  # only now, or another worker would lose it too before it is told to stop
                ledger.lose(store, item)
            raise Cancelled from error
        except WorkError as error:
            store.put_failure(item.key, item.request, str(error))
            raise
        stored.put(store, result)
        return result.key

    def work(owner: str) -> None:
        try:
            with ended_by(stop.is_set):
                for item in drain(store, do, sweep, owner, nodes.environment.key):
                    ended.put(item)
        except Cancelled:
            pass
        except Exception as error:
            give_up(error)
        finally:
            ended.put(None)

    name = f"{identity()}/{uuid.uuid4().hex}"  # another sweep of this process is another owner
    threads = list[threading.Thread]()

    def begin() -> None:
        """As many workers as nodes have slots: some may have joined."""
        while len(threads) < nodes.slots:
            owner = f"{name}-{len(threads)}"
            run = contextvars.copy_context().run
            threads.append(threading.Thread(target=run, args=(work, owner), name=owner, daemon=True))
            threads[-1].start()

    begin()
    try:
        for _ in threads:
            while (item := ended.get()) is not None:
                begin()
                yield item
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if problems:
        raise problems[0]
    stop_if_cancelled()
