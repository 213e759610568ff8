"""A Dask scheduler, spoken to: what answers at an address, and with which certificates."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from optimizer.errors import InputError, ParetoscopeError, UnavailableError

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

INSTALL = "pip install 'paretoscope[cluster]'"
HOW = "give one such as tcp://10.0.0.5:8786 or tls://10.0.0.5:8786"
CONNECT_SECONDS = 4.0
"""Until a scheduler has answered."""


def check_scheduler(address: str) -> None:
    """Whether a scheduler answers. Raises InputError for what is no address, UnavailableError."""
    with _connecting(address):
        _security_of(address)


def client_of(address: str) -> "Client":
    """Raises what :func:`check_scheduler` does."""
    with _connecting(address):
        security = _security_of(address)
        from distributed import Client

        return Client(address, security=security, timeout=CONNECT_SECONDS, set_as_default=False)


def _security_of(address: str) -> "Security":
    """What a scheduler that answers is spoken to with."""
    try:
        from distributed import Security
    except ImportError as error:
        raise UnavailableError(f"a cluster needs Dask: {INSTALL}") from error
    security = Security()
    with ThreadPoolExecutor(1) as asking:  # a notebook has a loop of its own in this thread
        kind = asking.submit(asyncio.run, _kind(address, security)).result()
    if kind != "Scheduler":
        raise InputError(f"{address} is the address of a {kind}, not of a scheduler: {HOW}")
    return security


@contextmanager
def _connecting(address: str) -> Iterator[None]:
    """What goes wrong where one connects to an address, in words."""
    try:
        yield
    except ParetoscopeError:
        raise
    except OSError as error:
        why = f" ({error})" if str(error) else ""
        raise UnavailableError(
            f"no Dask scheduler answers at {address}{why}: `dask scheduler` starts one; with TLS its address "
            "begins with tls://, and Dask's configuration names the certificates"
        ) from error
    except TypeError as error:
        raise InputError(
            f"{address} needs certificates, which Dask's configuration names: {error}"
        ) from error
    except RuntimeError as error:  # as of Dask's configuration, which requires encryption
        raise InputError(
            f"{address} is not reached as Dask is configured ({error}): with TLS its address begins with tls://"
        ) from error
    except ValueError as error:
        raise InputError(f"{address!r} is not the address of a scheduler ({error}): {HOW}") from error


async def _kind(address: str, security: "Security") -> str:
    """What answers at an address. (A client would wait for ever for what takes connections and is silent.)"""
    from distributed.comm.core import connect

    async def ask() -> str:
        comm = await connect(address, CONNECT_SECONDS, **security.get_connection_args("client"))
        try:
            await comm.write({"op": "identity", "reply": True})
            return str((await comm.read())["type"])
        finally:
            comm.abort()

    return await asyncio.wait_for(ask(), CONNECT_SECONDS)
