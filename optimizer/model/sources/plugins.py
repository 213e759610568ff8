"""Sources that installed packages offer through the entry-point group ``paretoscope.models``."""

import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from optimizer.model.sources import Source

GROUP = "paretoscope.models"


def sources() -> dict[str, Source]:
    """By the entry point's name, without those that :func:`problems` names."""
    return _discover(tuple(sys.path))[0]


def problems() -> tuple[str, ...]:
    """In words, each plugin that can't be imported or gives no source."""
    return _discover(tuple(sys.path))[1]


@lru_cache(maxsize=8)
def _discover(path: tuple[str, ...]) -> tuple[dict[str, Source], tuple[str, ...]]:
    """Scanning every installed package takes a while, so it is done once for a search path."""
    found: dict[str, Source] = {}
    trouble = []
    for entry in sorted(entry_points(group=GROUP)):
        try:
            source = _source(entry)
        except Exception as error:  # a stranger's code: whatever it raises, the other models stay
            trouble.append(
                f"plugin {entry.name} ({entry.value}) is left out: {type(error).__name__}: {error}"
            )
            continue
        if found.setdefault(entry.name, source) is not source:
            trouble.append(f"plugin {entry.name} ({entry.value}) is left out: another has its name")
    return found, tuple(trouble)


def _source(entry: EntryPoint) -> Source:
    loaded = entry.load()
    source = loaded if isinstance(loaded, Source) else loaded()
    if not isinstance(source, Source):
        raise TypeError(f"gives {type(source).__name__}, not optimizer.model.sources.Source")
    return source
