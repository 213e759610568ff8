"""The one way in which long work tells how far it is."""

from collections.abc import Callable

Report = Callable[[float | None, str], None]
"""Called with the share done (0 to 1, or None where it can't be told) and what is being done. What it raises
ends the work."""


def quiet(share: float | None, message: str) -> None:
    """A report that nobody reads."""
