"""Nodes of a Dask cluster (extra ``cluster``): workers that offer the resource ``paretoscope``.

Each works on one configuration at a time, so that nothing of ours runs beside what it times. How a scheduler
and nodes are started, and TLS, is in docs/cluster.md; certificates are those of Dask's own configuration.

The cluster and what it lends know of each other who is there and what was sent, so it stays one file.
"""

import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from optimizer.cluster import content, node
from optimizer.cluster.content import Asked, Parcel
from optimizer.cluster.dask_client import CONNECT_SECONDS, client_of
from optimizer.cluster.nodes import Cluster, Device, Nodes, NotTaken, Pending, check_version
from optimizer.errors import InputError, ParetoscopeError, UnavailableError, unknown, words_of
from optimizer.progress import Report, ended_by, quiet, stop_if_cancelled
from optimizer.recipe import Recipe
from optimizer.records import Environment, Request, decode, encode
from optimizer.system.environment import lanes

RESOURCE = "paretoscope"
"""Dask's name of what a worker has to offer."""
START = (
    f"dask worker ADDRESS --resources {RESOURCE}=1 --nthreads 1 --no-nanny --memory-limit 0 "
    "--preload optimizer.cluster.node"
)
ANSWER_SECONDS = 5.0
"""Until a node has said who it is."""
TOLD_SECONDS = 9.0
"""Until a scheduler's nodes are known, connecting included, or what is wrong is told: 10 s with its end."""
AGAIN_SECONDS = 30.0
"""Until a node that was silent is asked again who it is."""
PATIENCE_SECONDS = 30.0
"""Until a scheduler whose nodes were met is given up; one that has ended is at once."""
LOST_SECONDS = 5.0
"""Until a scheduler is said to be lost where its nodes are looked at time and again."""
GONE_SECONDS = 2.0
"""Until the scheduler knows that a node is gone."""
SEND_SECONDS = 60.0
"""Until a node has taken a few megabytes."""
WANTED_SECONDS = 1.0
"""Between two looks of a node at whether its work is still wanted."""
AHEAD = 2
"""Configurations that a node has at once: one that runs, and one that waits while a result travels."""
MAX_FAILED = 2
"""Requests in a row that a node could not work out the accuracy of: it is asked for no more."""


@dataclass(frozen=True, slots=True)
class Node:
    """One that can be used; ``name`` is what it was given, or its host's."""

    name: str
    environment: Environment


class Gone(Exception):
    """A node has ended, or is silent."""


class DaskCluster(Cluster):
    """The nodes of a scheduler, of whatever kinds. ``report`` is told which can't be used, and why.

    Raises InputError for what is no address, UnavailableError where no scheduler answers.
    """

    def __init__(self, address: str, report: Report = quiet) -> None:
        self._known_by = time.monotonic() + TOLD_SECONDS
        self.client, self._report = client_of(address), report
        self._met: dict[str, Node | str] = {}
        self._silent: dict[str, float] = {}
        self._meeting, self._taking = threading.Lock(), threading.Lock()
        self._taken = Counter[str]()
        self._sent: dict[str, tuple[threading.Lock, set[Asked]]] = {}

    def devices(self) -> tuple[Device, ...]:
        alike = dict[str, list[Node]]()
        met = self.meet(LOST_SECONDS)
        for one in met.values():
            alike.setdefault(one.environment.key, []).append(one)
        self.unused = tuple(found for found in self._met.values() if isinstance(found, str))
        self._known_by = math.inf
        return tuple(
            Device(
                nodes[0].environment,
                tuple(sorted(one.name for one in nodes)),
                self.slots(nodes[0].environment, len(nodes)),
            )
            for nodes in alike.values()
        )

    def nodes(self, environment: Environment) -> "DaskNodes":
        found = DaskNodes(self, environment)
        found.check()
        return found

    def chosen(self, on: str) -> "DaskNodes":
        """Those like the node called ``on``, or the only kind that there is. Raises InputError for a name
        that no node has, and several kinds without one, UnavailableError where no node can be used."""
        found = self.nodes(self._chosen(on))
        for one in self._faster(found.environment).values():
            if apart := node.other_libraries(one.environment, found.environment):
                self._report(
                    None, f"{one.name} can't score for {on or found.environment.cpu}: it has {apart}"
                )
        self._known_by = math.inf
        return found

    def close(self) -> None:
        with suppress(Exception):
            self.client.close(timeout=self.left(CONNECT_SECONDS))

    def left(self, seconds: float) -> float:
        """Of so many what may be waited for: less where one connects."""
        return min(seconds, max(0.25, self._known_by - time.monotonic()))

    def ask(
        self, address: str, function: Callable[..., Any], *arguments: Any, seconds: float = SEND_SECONDS
    ) -> Any:
        """What a function gives at a node, beside what it works on, or the error."""
        try:
            answers = self.client.run(
                function, *arguments, workers=[address], on_error="return", callback_timeout=seconds
            )
            return answers[address]
        except Exception as error:
            return error

    def name(self, address: str) -> str:
        found = self._met.get(address)
        return found.name if isinstance(found, Node) else address

    # Who is there

    def listed(self, patience: float = PATIENCE_SECONDS) -> Mapping[str, Any]:
        """What the scheduler says of each worker, by its address. Raises UnavailableError."""
        found: Mapping[str, Any] = self._asked("identity", patience, n_workers=-1)["workers"]
        return found

    def meet(self, patience: float = PATIENCE_SECONDS) -> dict[str, Node]:
        """Every node that can be used, of whatever environment; those that are new have introduced
        themselves. Raises UnavailableError."""
        listed = self.listed(patience)
        with self._meeting:
            again = {address for address, when in self._silent.items() if time.monotonic() > when}
            new = [address for address in listed if address not in self._met or address in again]
            if new:
                with ThreadPoolExecutor(len(new)) as asking:
                    found = [*asking.map(self._introduced, new, map(listed.get, new))]
                for address, problem in zip(new, found, strict=True):
                    if isinstance(problem, str) and self._met.get(address) != problem:
                        self._report(None, f"not used: {problem}")
                self._met |= zip(new, found, strict=True)
            for address in self._met.keys() - listed.keys():
                del self._met[address]
            return {address: one for address in listed if isinstance(one := self._met[address], Node)}

    def scorers(self, device: Environment, recipe: Recipe) -> dict[str, Node]:
        """Nodes by their addresses, of those met, that may work out a recipe's accuracy for a device."""
        return {
            address: one
            for address, one in self._faster(device).items()
            if node.may_score(one.environment, device, recipe)
        }

    def _faster(self, device: Environment) -> dict[str, Node]:
        """Nodes of other kinds, of those met, that compute as fast as a device at least: it would wait for
        others."""
        return {
            address: one
            for address, one in self._met.copy().items()
            if isinstance(one, Node)
            and one.environment.key != device.key
            and lanes(one.environment) >= lanes(device)
        }

    def slots(self, device: Environment, nodes: int) -> int:
        """How many configurations so many nodes of a device are given at once, with one for each that scores
        for them."""
        return AHEAD * nodes + len(self.scorers(device, Recipe()))

    def take_scorer(self, device: Environment, recipe: Recipe, failed: Set[str]) -> str | None:
        """The address of the node that works out a recipe's accuracy for a device next, until it is given to
        :meth:`give_back`: of those that may, have not ``failed``, do nothing but that and have no
        more than ``AHEAD`` configurations yet, the one that has least to do, and the fastest of several. None
        where there is none: the device does both. Raises UnavailableError."""
        may = {address: one for address, one in self.scorers(device, recipe).items() if address not in failed}
        if not may:
            return None  # and nobody is asked
        tasks: Mapping[str, Any] = self._asked("processing", PATIENCE_SECONDS)
        name = _score_while_wanted.__name__
        with self._taking:
            load = {
                address: scorings
                for address, keys in tasks.items()
                if address in may
                and all(str(key).startswith(name) for key in keys)
                and (scorings := max(self._taken[address], len(keys))) <= AHEAD
            }
            found = min(load, key=lambda one: (load[one], -lanes(may[one].environment)), default=None)
            if found is not None:
                self._taken[found] += 1
        return found

    @contextmanager
    def sending(self, address: str) -> Iterator[set[Asked]]:
        """What a node was sent, or had, of models and images; nobody else sends it any in the block."""
        lock, delivered = self._sent.setdefault(address, (threading.Lock(), set()))
        with lock:
            yield delivered

    def give_back(self, scorer: str) -> None:
        with self._taking:
            self._taken[scorer] -= 1

    def _asked(self, question: str, patience: float, **how: Any) -> Any:
        """What the scheduler answers. Raises UnavailableError."""
        try:
            ask = getattr(self.client.scheduler, question)
            return self.client.sync(ask, callback_timeout=self.left(patience), **how)
        except Exception as error:
            raise UnavailableError(f"the scheduler answers no more ({words_of(error)})") from error

    def _introduced(self, address: str, about: Mapping[str, Any]) -> Node | str:
        """A node, or why it can't be used."""
        name = str(about["name"])
        if about["resources"].get(RESOURCE, 0) < 1:
            return f"{name} offers no {RESOURCE}: start it with `{START}`"
        answer = self.ask(address, node.introduce, seconds=self.left(ANSWER_SECONDS))
        self._silent.pop(address, None)
        if isinstance(answer, ImportError | AttributeError):
            return f"{name} has no paretoscope, or another version ({answer})"
        if isinstance(answer, Exception):
            self._silent[address] = time.monotonic() + AGAIN_SECONDS
            return f"{name} doesn't answer ({words_of(answer)}): is it started with `{START}`?"
        version, host, environment = answer
        try:
            check_version(version, name)
        except UnavailableError as error:
            return str(error)
        return Node(host if name == address else name, decode(environment, Environment))

    def _chosen(self, on: str) -> Environment:
        end = self._known_by - ANSWER_SECONDS
        while not (nodes := self.meet()) and not self._met and time.monotonic() < end:
            time.sleep(0.1)  # they come after their scheduler
        if not nodes:
            why = "; ".join(found for found in self._met.values() if isinstance(found, str))
            raise UnavailableError(
                f"no node can be used: {why or f'none has joined the scheduler. Start one with `{START}`'}"
            )
        named = {found.name: found.environment for found in nodes.values()}
        if on:
            if on not in named:
                raise unknown("node", on, named)
            return named[on]
        if len({environment.key for environment in named.values()}) > 1:
            known = ", ".join(f"{name} ({environment.cpu})" for name, environment in named.items())
            raise InputError(f"the nodes are of several kinds: say which to time on, as one of {known}")
        return next(iter(named.values()))


class DaskNodes(Nodes):
    """The nodes of one environment."""

    def __init__(self, cluster: DaskCluster, environment: Environment) -> None:
        self._cluster, self.environment = cluster, environment
        self._given: dict[Pending, tuple[str, frozenset[str]]] = {}
        self._run = _while_wanted
        self._failed = Counter[str]()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Pending:
        name, usable = f"{RESOURCE}-{uuid.uuid4().hex}", self._usable()
        executor = self._cluster.client.get_executor(workers=[*usable], resources={RESOURCE: 1}, pure=False)
        pending: Future[Any] = executor.submit(self._run, name, function, *arguments)
        self._given[pending] = name, usable
        # A callback that held its own future would keep it alive, and Dask computes what is alive again when
        # its node is lost.
        pending.add_done_callback(lambda ended: self._given.pop(ended, None))
        return pending

    def cancel(self, pending: Pending) -> None:
        from distributed import Event

        name, _ = self._given.get(pending, ("", frozenset()))
        if name:
            with suppress(Exception):  # who can't be told is gone
                self._cluster.client.sync(
                    Event(name, client=self._cluster.client).set, callback_timeout=CONNECT_SECONDS
                )
        pending.cancel()

    def is_lost(self, pending: Pending) -> bool:
        given = self._given.get(pending)  # none of what ended since one looked
        return given is not None and not given[1] & self._cluster.listed().keys()

    def check(self) -> None:
        self._usable()

    def deliver(self, asked: Asked, anew: bool = False) -> None:
        goods = replace(asked, request=Request(asked.request.model, data=asked.request.data))
        for address in self._usable():
            with self._cluster.sending(address) as delivered, suppress(Gone):
                if anew or goods not in delivered:
                    self._send(address, goods)
                    delivered.add(goods)

    def scorer(self, recipe: Recipe) -> "DaskScorer | None":
        failed = {address for address, times in self._failed.items() if times >= MAX_FAILED}
        found = self._cluster.take_scorer(self.environment, recipe, failed)
        return None if found is None else DaskScorer(self._cluster, self.environment, found, self._failed)

    def close(self) -> None:
        self._cluster.close()

    def _usable(self) -> frozenset[str]:
        """The addresses of the nodes that are there, of this environment. Raises UnavailableError."""
        key = self.environment.key
        found = frozenset(
            address for address, one in self._cluster.meet().items() if one.environment.key == key
        )
        if not found:
            raise UnavailableError(f"no node is left with {self.environment.cpu}: what is not measured waits")
        self.slots = self._cluster.slots(self.environment, len(found))
        return found

    # What they are told

    def _send(self, address: str, asked: Asked) -> None:
        """All that a node lacks. Raises NotTaken, and Gone."""
        sent = set[Parcel]()
        sender = uuid.uuid4().hex  # another node may be sent the same at once, on the same disk
        while missing := self._told(address, node.lacking, encode(asked)):
            parcel = decode(missing, Parcel)
            if parcel in sent:
                raise NotTaken(
                    f"{self._cluster.name(address)} was sent the {parcel.kind} of {asked.request.model}, "
                    "which are others here by now: try again when nothing changes them any more"
                )
            sent.add(parcel)
            for pieces in content.loads(asked, parcel):
                stop_if_cancelled()
                self._told(address, content.receive, parcel, sender, pieces)
            self._told(address, content.keep, parcel, sender, asked)

    def _told(self, address: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The same. Raises NotTaken where the node can't do it, Gone where it is gone meanwhile."""
        answer = self._cluster.ask(address, function, *arguments)
        if isinstance(answer, ParetoscopeError):
            raise NotTaken(f"{self._cluster.name(address)}: {answer}")
        if isinstance(answer, Exception):
            if isinstance(answer, TimeoutError) or self._is_gone(address):
                raise Gone from answer
            raise NotTaken(f"{self._cluster.name(address)}: {words_of(answer)}") from answer
        return answer

    def _is_gone(self, address: str) -> bool:
        """Whether a node has ended, of which the scheduler may learn in a moment."""
        end = time.monotonic() + GONE_SECONDS
        while address in self._cluster.listed():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True


class DaskScorer(DaskNodes):
    """A node of another kind that works out the accuracy of one request for the nodes of an environment;
    ``failed`` counts how often each could not, one time after the other."""

    def __init__(self, cluster: DaskCluster, device: Environment, address: str, failed: Counter[str]) -> None:
        super().__init__(cluster, device)
        self._address, self._failed, self._run = address, failed, _score_while_wanted

    def close(self) -> None:
        self._cluster.give_back(self._address)

    def __exit__(self, *raised: object) -> None:
        self.close()
        _, error, _ = raised
        self._failed[self._address] = self._failed[self._address] + 1 if isinstance(error, Exception) else 0

    def _usable(self) -> frozenset[str]:
        if self._address not in self._cluster.meet():
            raise UnavailableError("the node that worked out the accuracy is gone")
        return frozenset({self._address})


def _while_wanted(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives, at a node; it learns by an event of that name that it is wanted no more."""
    from distributed import Event

    event, looked, over = Event(name), time.monotonic(), False

    def unwanted() -> bool:
        nonlocal looked, over
        if not over and time.monotonic() > looked + WANTED_SECONDS:
            looked = time.monotonic()
            try:
                over = event.is_set()
            except Exception:  # whom it would be told is gone
                over = True
        return over

    with ended_by(unwanted):
        return function(*arguments)


def _score_while_wanted(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The same. Whoever asks the scheduler what a node has to do knows by the name that it times nothing."""
    return _while_wanted(name, function, *arguments)


def connect_to(address: str, on: str, report: Report) -> DaskNodes:
    """The nodes like the one called ``on``. Raises what :class:`DaskCluster` and its choice do."""
    cluster = DaskCluster(address, report)
    try:
        return cluster.chosen(on)
    except BaseException:
        cluster.close()
        raise
