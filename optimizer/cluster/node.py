"""What a node does for others: it introduces itself, and measures what it is asked for.

Questions and answers are plain data or JSON, so that a node of another version is told by its words. The
parcels and pieces of :mod:`optimizer.cluster.content` are pickled: they go to nodes of this version alone.
"""

import socket
from dataclasses import replace

from optimizer import __version__
from optimizer.cluster import content
from optimizer.cluster.content import Asked
from optimizer.errors import words_of
from optimizer.on_demand import load_or_measure
from optimizer.progress import Cancelled, stop_if_cancelled
from optimizer.records import Environment, decode, encode
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.system.environment import environment

DONE, LACKING, REFUSED, FAILED, CANCELLED = "done", "lacking", "refused", "failed", "cancelled"
Outcome = tuple[str, bytes]
"""How it ended; the result's JSON where it is done, the parcel's where something is lacking, else words."""


def introduce() -> tuple[str, str, bytes]:
    """The version of this package here, the host's name, and the environment as JSON."""
    return __version__, socket.gethostname(), encode(environment())


def lacking(asked: bytes) -> bytes:
    """The parcel that this node lacks, as JSON; nothing for none. Raises UnavailableError."""
    parcel = content.lacking(decode(asked, Asked))
    return encode(parcel) if parcel else b""


def measure(version: str, wanted: bytes, asked: bytes) -> Outcome:
    """Measure a request of a sender who has a ``version`` of this package, or take the result from this
    node's store; it comes back as if it had been measured at the sender's, but for the environment. A machine
    that is unlike the environment that is ``wanted`` refuses."""
    if version != __version__:
        words = (
            f"{socket.gethostname()} has paretoscope {__version__} and this is {version}: install the same"
        )
        return FAILED, words.encode()
    try:
        if apart := differences(environment(), decode(wanted, Environment)):
            return REFUSED, f"{socket.gethostname()} has {apart}".encode()
        one = decode(asked, Asked)
        if parcel := content.lacking(one):
            return LACKING, encode(parcel)
        result = load_or_measure(content.at_this_place(one), Store(), _reported)
        key = request_key(one.request, one.files)
        return DONE, encode(replace(result, request=one.request, key=key))
    except Cancelled:
        return CANCELLED, b""
    except Exception as error:  # engines raise what they like, and not all of it can travel
        return FAILED, f"{words_of(error)} (on {socket.gethostname()})".encode()


def differences(here: Environment, wanted: Environment) -> str:
    """What two environments whose results may not share an axis have each, in words; empty for one whose
    results may."""
    if here.key == wanted.key:
        return ""
    mine, others = _facts(here), _facts(wanted)
    names = [name for name in {**mine, **others} if mine.get(name) != others.get(name)]
    return ", ".join(f"{name} {mine.get(name, 'none')} and not {others.get(name, 'none')}" for name in names)


def _facts(one: Environment) -> dict[str, object]:
    return {
        "the processor": one.cpu,
        "instruction sets": " ".join(one.instruction_sets),
        "cores": one.cores,
        "governor": one.governor,
        **one.libraries,
    }


def _reported(share: float | None, words: str) -> None:
    """Nobody hears it; it ends where it is not wanted any more."""
    stop_if_cancelled()
