"""Paretoscope: how far can a model be pruned and quantized, and what does it buy on this machine?

    import optimizer as px

    result = px.measure(model, px.Recipe.of(sparsity=0.5, weight_bits=4), data=(images, labels))

The verbs are documented in :mod:`optimizer.api`. Nothing heavy is imported before the first of them is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.17"

if TYPE_CHECKING:
    from optimizer.analysis.view import Results
    from optimizer.analysis.view import ResultView as Result
    from optimizer.api import (
        compare,
        compress,
        engines,
        find,
        measure,
        models,
        plot_accuracy,
        plot_frontier,
        plot_latency,
        plot_size,
        save,
        sweep,
    )
    from optimizer.errors import ParetoscopeError
    from optimizer.recipe import Recipe
    from optimizer.records import Settings
    from optimizer.search.space import Space

__all__ = [
    "ParetoscopeError",
    "Recipe",
    "Result",
    "Results",
    "Settings",
    "Space",
    "compare",
    "compress",
    "engines",
    "find",
    "measure",
    "models",
    "plot_accuracy",
    "plot_frontier",
    "plot_latency",
    "plot_size",
    "save",
    "sweep",
]

_ELSEWHERE = {
    "ParetoscopeError": ("errors", "ParetoscopeError"),
    "Recipe": ("recipe", "Recipe"),
    "Result": ("analysis.view", "ResultView"),
    "Results": ("analysis.view", "Results"),
    "Settings": ("records", "Settings"),
    "Space": ("search.space", "Space"),
}
"""Names that are not of :mod:`optimizer.api`: where they are, and what they are called there."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, there = _ELSEWHERE.get(name, ("api", name))
    return getattr(import_module(f"{__name__}.{module}"), there)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
