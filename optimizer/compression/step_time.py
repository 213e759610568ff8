"""What a fine-tuning step takes on this machine, model by model, as it was last measured. No torch here."""

from contextlib import suppress
from pathlib import Path

from optimizer.errors import UnavailableError
from optimizer.records import digest
from optimizer.system.paths import home


def keep_step_time(model: str, seconds: float) -> None:
    """Kept where the data folder can be written: it is only told, and nothing depends on it."""
    with suppress(OSError, UnavailableError):
        path = _path(model)
        path.parent.mkdir(exist_ok=True)
        path.write_text(repr(seconds))


def step_time(model: str) -> float | None:
    """Seconds a step, or None where none was measured yet."""
    with suppress(OSError, UnavailableError, ValueError):
        seconds = float(_path(model).read_text())
        return seconds if 0 < seconds < float("inf") else None
    return None


def _path(model: str) -> Path:
    return home() / "step-seconds" / digest(model)
