"""How many bytes of model weights may be downloaded onto this machine: its operator decides.

Counted are the weights on the models' cards that are here already, wherever their source keeps them. Two
downloads at the same time may exceed the limit by one file.
"""

import os
import re
from collections.abc import Iterable

from optimizer.errors import InputError, UnavailableError
from optimizer.formats import format_bytes
from optimizer.records import ModelCard

DOWNLOADS_VARIABLE = "PARETOSCOPE_DOWNLOADS"
DEFAULT_DOWNLOADS = "10GB"
"""What visitors of a dashboard may download where its operator says nothing: room for every file of
torchvision's below 200 MB and for any one of the largest beside them, and not for all 36 GB."""
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {f"{unit}i": 2 ** (10 * power) for power, unit in enumerate(UNITS) if unit}


def parse_bytes(text: str, variable: str = DOWNLOADS_VARIABLE) -> int:
    """A number of bytes, with or without a unit. Raises InputError, which names the ``variable`` and the
    option of that name.

    >>> parse_bytes("2GB"), parse_bytes("1.5 MiB"), parse_bytes("0")
    (2000000000, 1572864, 0)
    """
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kmgt]?i?)b?", text.strip().lower())
    if found is None or found[2] not in UNITS:
        what = variable.rpartition("_")[2].lower()
        raise InputError(
            f"{text!r} is not a number of bytes for {what}: give one such as 2GB, 500MB or 0 (none), with "
            f"--{what} or {variable}"
        )
    return round(float(found[1]) * UNITS[found[2]])


def limit_visitors() -> None:
    """Set a limit for this process and those that it starts, where their operator has set none."""
    os.environ.setdefault(DOWNLOADS_VARIABLE, DEFAULT_DOWNLOADS)


def refusal(card: ModelCard, cards: Iterable[ModelCard]) -> str:
    """In words, why a model may not be downloaded, or nothing. ``cards`` are of all models.

    What is here may be fetched again, in place of a damaged file, unless nothing may be downloaded at all.
    Without ``PARETOSCOPE_DOWNLOADS`` all may. Raises InputError where that is not a number of bytes.
    """
    said = os.environ.get(DOWNLOADS_VARIABLE)
    if said is None:
        return ""
    allowed = parse_bytes(said)
    size = card.download_bytes or 0
    here = sum(other.download_bytes or 0 for other in cards if other.ready)
    if allowed and (card.ready or here + size <= allowed):
        return ""
    limit = (
        f"{format_bytes(allowed)} of weights may be downloaded to this machine, {format_bytes(here)} are here"
        if allowed
        else "no weights may be downloaded to this machine"
    )
    return (
        f"{card.name} ({format_bytes(size)}) can't be downloaded: {limit}. Choose "
        f"{'a smaller model or ' if allowed else ''}one that is here, or have whoever runs this dashboard "
        f"allow more, with `paretoscope dashboard --downloads BYTES` or {DOWNLOADS_VARIABLE}"
    )


def check_allowed(card: ModelCard, cards: Iterable[ModelCard]) -> None:
    """Raise UnavailableError where :func:`refusal` has something to say."""
    if words := refusal(card, cards):
        raise UnavailableError(words)
