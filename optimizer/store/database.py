"""Transactions on the tables. What is special to one database is in a file of its own."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import ColumnElement, Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from optimizer.errors import UnavailableError
from optimizer.store import migrations

BUSY_SECONDS = 30.0
"""How long a call waits for another process's write, and for a server that is started anew."""

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class ConnectionLost(UnavailableError):
    """The server went away in the middle: whether a change was kept is not known."""


class Database(ABC):
    """``place`` is what it is called, without a password; ``elsewhere`` says how another one is chosen, and
    ``check`` what to look at where it can't be used. One that is ``shared`` is used by several machines."""

    place: str
    shared: bool
    elsewhere: str
    check: str

    @abstractmethod
    def open(self) -> None:
        """Have today's tables there. Raises UnavailableError."""

    @abstractmethod
    def connect(self) -> Connection:
        """A connection to use and to close."""

    @abstractmethod
    def lock(self, connection: Connection) -> None:
        """Begin a transaction that no other writer is beside."""

    @abstractmethod
    def version(self, connection: Connection) -> int:
        """How many of the migrations it has had."""

    @abstractmethod
    def step(self, connection: Connection, done: int) -> None:
        """What follows the first ``done`` migrations, and that it is done."""

    @abstractmethod
    def contains(self, column: ColumnElement[bytes], part: ColumnElement[bytes]) -> ColumnElement[bool]:
        """Whether bytes are in bytes."""

    @abstractmethod
    def words(self, error: Exception) -> str:
        """What is wrong."""

    @abstractmethod
    def check_room(self) -> None:
        """Raises UnavailableError where nothing could be kept now."""

    @abstractmethod
    def prepare(self, connection: Connection) -> None:
        """What has to be so before the tables are there."""

    @contextmanager
    def connected(self, connect: Callable[[], Connection]) -> Iterator[Connection]:
        """A connection to today's tables. Raises UnavailableError, also for what goes wrong in the block."""
        try:
            with connect() as connection:
                self._migrate(connection)
                yield connection
        except (DBAPIError, PoolTimeout, OSError) as error:
            raise self.unavailable(error) from error

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection to read with."""
        return self.connected(self.connect)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that no other writer is beside, kept whole or not at all."""
        with self.connected(self.connect) as connection:
            self.lock(connection)
            yield connection
            connection.commit()  # not reached after an error: closing rolls back

    def unavailable(self, error: Exception) -> UnavailableError:
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        return (ConnectionLost if lost else UnavailableError)(
            f"can't use the results in {self.place}: {self.words(error)}. {self.check}, or {self.elsewhere}"
        )

    def _migrate(self, connection: Connection) -> None:
        if self._known_version(connection) == len(migrations.MIGRATIONS):
            return
        self.prepare(connection)
        while True:
            self.lock(connection)
            done = self._known_version(connection)  # again: another process may have been quicker
            if done == len(migrations.MIGRATIONS):
                connection.rollback()
                return
            self.step(connection, done)
            connection.commit()

    def _known_version(self, connection: Connection) -> int:
        version = self.version(connection)
        if version > len(migrations.MIGRATIONS):
            raise UnavailableError(
                f"{self.place} is from a newer Paretoscope (database version {version}, this one reads up to"
                f" {len(migrations.MIGRATIONS)}): upgrade, or {self.elsewhere}"
            )
        return version


def again_if_lost(act: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """``act`` on a store, which may as well happen twice: it does where the connection was lost in it. A new
    sweep is another matter."""

    @wraps(act)
    def kept(store: S, /, *given: P.args, **named: P.kwargs) -> T:
        end = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return act(store, *given, **named)
            except ConnectionLost:  # connecting waits until the server is there again
                if time.monotonic() > end:
                    raise

    return kept
