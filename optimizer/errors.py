"""The one root exception. A message names the value, what is allowed, and what to do."""

import re
from numbers import Integral, Real
from typing import Any

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""What a terminal shows the rest of a text in another colour by."""


class ParetoscopeError(Exception):
    """Anything this package refuses or cannot do, in words meant for its user."""


class InputError(ParetoscopeError, ValueError):
    """A value from outside that is not allowed: an unknown name, a sparsity of 1.5, an empty folder."""


class UnavailableError(ParetoscopeError):
    """Something this machine lacks: a network, a package, a writable folder, a free port."""


class WorkError(ParetoscopeError):
    """Work that was accepted and failed: a worker that died twice, a model an engine can't convert."""


class EngineError(WorkError):
    """An engine that can't run a network even uncompressed: no recipe of it will do."""


LITTLE_MEMORY = (
    "this machine has too little memory for it. End other programs, or take fewer images, a smaller batch "
    "size or a smaller model"
)
"""What is said of a MemoryError."""


def unknown(kind: str, value: object, known: object) -> InputError:
    """The error for a name that is not in a registry, listing the names that are.

    >>> str(unknown("engine", "tvm", ["openvino", "torch"]))
    "unknown engine 'tvm': use one of openvino, torch"
    """
    return InputError(f"unknown {kind} {value!r}: use one of {', '.join(map(str, known))}")  # type: ignore[call-overload]


def number(name: str, value: object) -> Any:
    """A number from outside, such as one of NumPy's, as Python's own int or float. Raises InputError for
    text, and what else is none."""
    if type(value) in (int, float):  # as of each recipe that is read: the questions below take long
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise InputError(
        f"{name.replace('_', ' ')} {value!r} is no number: give one without quotes, such as 8 or 0.5"
    )


def whole_number(name: str, value: object) -> int:
    """The same of what counts something. Raises InputError for what has a fraction too."""
    taken = number(name, value)
    if isinstance(taken, float) and not taken.is_integer():
        raise InputError(f"{name.replace('_', ' ')} {value!r} is no whole number: give one, such as 8")
    return int(taken)


def one_line(error: object, most: int | None = None) -> str:
    """What another library's error says, on one line of at most so many letters, cut between words; its kind
    where it says nothing.

    >>> one_line(ValueError("shape of\\n  [3, 4]"))
    'shape of [3, 4]'
    >>> one_line("\\x1b[96mstep 1\\x1b[0m of 3")
    'step 1 of 3'
    >>> one_line(ValueError("could not guard"), 12)
    'could...'
    >>> one_line(MemoryError())
    'MemoryError'
    """
    words = " ".join(COLOURS.sub("", str(error)).split()) or type(error).__name__
    return words if most is None or len(words) <= most else f"{words[: most - 3].rsplit(' ', 1)[0]}..."


def shown(value: object) -> str:
    """A value as an error names it, or another error's own words, cut where it is long."""
    text = one_line(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def first_line(error: Exception) -> str:
    """The first line of what another library's error says, where more follows that helps nobody; its kind
    where it says nothing.

    >>> first_line(RuntimeError("size mismatch\\n  [3] and [4]"))
    'size mismatch'
    >>> first_line(EOFError())
    'EOFError'
    """
    return str(error).strip().partition("\n")[0] or type(error).__name__


def words_of(error: Exception) -> str:
    """What to tell of an error: its own words, and of one that is not ours its kind as well.

    >>> words_of(KeyError("conv"))
    "KeyError: 'conv'"
    """
    return str(error) if isinstance(error, ParetoscopeError) else f"{type(error).__name__}: {error}"
