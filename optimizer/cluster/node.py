"""What a node does for others: it introduces itself, and measures or scores what it is asked for.

Questions and answers are plain data or JSON, so that a node of another version is told by its words. The
parcels and pieces of :mod:`optimizer.cluster.content` are pickled: they go to nodes of this version alone.
"""

import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from optimizer import __version__
from optimizer.cluster import content
from optimizer.cluster.content import Asked
from optimizer.errors import words_of
from optimizer.on_demand import load_or_measure, scores_of
from optimizer.progress import Cancelled, stop_if_cancelled
from optimizer.recipe import Recipe
from optimizer.records import Environment, Scores, decode, encode
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.system.environment import environment

DONE, LACKING, REFUSED, FAILED, CANCELLED = "done", "lacking", "refused", "failed", "cancelled"
Outcome = tuple[str, bytes]
"""How it ended; the JSON of the result or the scores where it is done, the parcel's where something is
lacking, else words."""


def dask_setup(worker: Any) -> None:
    """What Dask calls of a preload before a node says that it is there: libraries load now, not in the first
    configuration, and Dask's profiler, which looks at all threads a hundred times a second, stays off."""
    import optimizer.measurement.experiment  # noqa: F401

    for name in ("profile", "profile-cycle"):
        worker.periodic_callbacks.pop(name, None)


def introduce() -> tuple[str, str, bytes]:
    """The version of this package here, the host's name, and the environment as JSON."""
    return __version__, socket.gethostname(), encode(environment())


def lacking(asked: bytes) -> bytes:
    """The parcel that this node lacks, as JSON; nothing for none. Raises UnavailableError."""
    parcel = content.lacking(decode(asked, Asked))
    return encode(parcel) if parcel else b""


def measure(version: str, wanted: bytes, asked: bytes, scores: bytes = b"") -> Outcome:
    """Measure a request of a sender who has a ``version`` of this package, or take the result from this
    node's store; it comes back as if it had been measured at the sender's, but for the environment. With the
    ``scores`` of another node it is only timed. A machine that is unlike the environment that is ``wanted``
    refuses."""

    def measured(one: Asked) -> bytes:
        given = decode(scores, Scores) if scores else None
        result = load_or_measure(content.at_this_place(one), Store(), _reported, scores=given)
        return encode(replace(result, request=one.request, key=request_key(one.request, one.files)))

    return _outcome(version, asked, measured, lambda one: differences(environment(), _read(wanted)))


def score(version: str, device: bytes, asked: bytes) -> Outcome:
    """Work out the accuracy of a request that is timed on a ``device`` of another environment: its
    :class:`Scores`. A machine that :func:`may_score` rules out refuses."""

    def scored(one: Asked) -> bytes:
        return encode(scores_of(content.at_this_place(one), _reported))

    def refused(one: Asked) -> str:
        here, there = environment(), _read(device)
        return "" if may_score(here, there, one.request.recipe) else differences(here, there)

    return _outcome(version, asked, scored, refused)


def _outcome(
    version: str, asked: bytes, do: Callable[[Asked], bytes], refused: Callable[[Asked], str]
) -> Outcome:
    """How it ended: with what ``do`` gives, unless this machine has what is ``refused``, in words."""
    host = socket.gethostname()
    if version != __version__:
        words = f"{host} has paretoscope {__version__} and this is {version}: install the same"
        return FAILED, words.encode()
    try:
        one = decode(asked, Asked)
        if apart := refused(one):
            return REFUSED, f"{host} has {apart}".encode()
        if parcel := content.lacking(one):
            return LACKING, encode(parcel)
        return DONE, do(one)
    except Cancelled:
        return CANCELLED, b""
    except Exception as error:  # engines raise what they like, and not all of it can travel
        return FAILED, f"{words_of(error)} (on {host})".encode()


def may_score(scorer: Environment, device: Environment, recipe: Recipe) -> bool:
    """Whether the accuracy that one machine works out of a recipe is that of another.

    Both have the same libraries: other versions compute otherwise. In float32 that is enough: kernels for
    other instruction sets add up in another order, and differ in last bits that decide only between answers
    which are as good as equal. Integer kernels are others: without VNNI they saturate at 16 bits ("Nuances of
    int8 Computations", oneDNN's documentation). So where activations are rounded, and in 16 bits, the
    instruction sets are the same too. Measured with OpenVINO's kernels for AVX2 in place of AVX-512 VNNI, on
    2,000 images and three bundled networks: in float32 1 image at most had another outcome (6 at 60 % and
    3 bits, which calibration chose anew), in int8 1, 9 and 20.

    What learns is another network each time, so it is scored where it is timed.
    """
    quantize = recipe.quantize
    known = set(scorer.instruction_sets)  # empty where they can't be read
    same = quantize.computes_in_float32 or (bool(known) and known == set(device.instruction_sets))
    return same and not recipe.learns and not other_libraries(scorer, device)


def other_libraries(here: Environment, wanted: Environment) -> str:
    """Versions of libraries, and variables that choose their kernels, that one environment has and another
    has not, in words; what a wheel was built for (``+cpu``) makes no other version."""
    mine, others = (
        {name: version.partition("+")[0] for name, version in one.libraries.items()} | one.variables
        for one in (here, wanted)
    )
    return _apart(mine, others)


def _read(environment: bytes) -> Environment:
    return decode(environment, Environment)


def differences(here: Environment, wanted: Environment) -> str:
    """What two environments whose results may not share an axis have each, in words; empty for one whose
    results may."""
    if here.key == wanted.key:
        return ""
    return _apart(_facts(here), _facts(wanted))


def _apart(mine: Mapping[str, object], others: Mapping[str, object]) -> str:
    names = [name for name in {**mine, **others} if mine.get(name) != others.get(name)]
    return ", ".join(f"{name} {mine.get(name, 'none')} and not {others.get(name, 'none')}" for name in names)


def _facts(one: Environment) -> dict[str, object]:
    return {
        "the processor": one.cpu,
        "instruction sets": " ".join(one.instruction_sets),
        "cores": one.cores,
        "threads": "one a core" if one.threads is None else one.threads,
        "governor": one.governor,
        **one.variables,
        **one.libraries,
    }


def _reported(share: float | None, words: str) -> None:
    """Nobody hears it; it ends where it is not wanted any more."""
    stop_if_cancelled()
