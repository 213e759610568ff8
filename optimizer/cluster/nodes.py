"""What nodes are to whoever hands them work: an executor's, or those of a cluster with several kinds."""

import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, Protocol

from optimizer import __version__
from optimizer.cluster import node
from optimizer.cluster.content import Asked
from optimizer.errors import UnavailableError, WorkError, words_of
from optimizer.progress import stop_if_cancelled
from optimizer.recipe import Recipe
from optimizer.records import Environment, decode

POLL_SECONDS = 0.05
CHECK_SECONDS = 2.0
"""Between two looks at whether the node that has a configuration is still there."""
MAX_SUBMITTED = 16
"""To an executor that doesn't tell how many it works on at once."""
ATTEMPTS = 3
"""How often a configuration is handed out while nodes are lost under it."""


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


def check_version(version: str, host: str) -> None:
    """Raises UnavailableError for a node of another version."""
    if version != __version__:
        raise UnavailableError(f"{host} has paretoscope {version}, this is {__version__}: install the same")
