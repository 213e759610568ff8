"""Methods that installed packages offer, in every process: entry points of the group ``paretoscope.methods``.

Each names an entry of one of the :data:`REGISTRIES`. Its module is imported
with the registries, so it should import no torch: the entry names the code that does.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from optimizer.methods.artifacts import ARTIFACTS, ArtifactInfo
from optimizer.methods.engines import ENGINES, EngineInfo
from optimizer.methods.pruners import PRUNERS, PrunerInfo
from optimizer.methods.quantizers import QUANTIZERS, QuantizerInfo

GROUP = "paretoscope.methods"
REGISTRIES: dict[type, dict[str, Any]] = {
    PrunerInfo: PRUNERS,
    QuantizerInfo: QUANTIZERS,
    EngineInfo: ENGINES,
    ArtifactInfo: ARTIFACTS,
}
packages: dict[str, str] = {}
"""By the name of a method that a plugin added: the package and its version."""
problems: list[str] = []
"""In words, each plugin that is left out."""


def add_installed() -> None:
    """Puts the entries of all installed plugins into their registries."""
    for point in sorted(entry_points(group=GROUP)):
        try:
            _add(point)
        except Exception as error:  # a stranger's code: whatever it raises, the other methods stay
            problems.append(
                f"plugin {point.name} ({point.value}) is left out: {type(error).__name__}: {error}"
            )


def _add(point: EntryPoint) -> None:
    entry = point.load()
    if type(entry) not in REGISTRIES:
        known = ", ".join(kind.__name__ for kind in REGISTRIES)
        raise TypeError(f"gives {type(entry).__name__}, not a {known}")
    if REGISTRIES[type(entry)].setdefault(entry.name, entry) is not entry:
        raise ValueError(f"another method is called {entry.name}")
    packages[entry.name] = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
