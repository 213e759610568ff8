"""What executes a model. One file an engine, and an entry in :mod:`optimizer.methods.engines`."""

from optimizer.engine.base import Engine, Runner
from optimizer.errors import UnavailableError, unknown
from optimizer.methods.engines import ENGINES


def engine_named(name: str) -> Engine:
    """The engine, ready to run. Raises InputError for an unknown name, UnavailableError when it can't run."""
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    engine: Engine = ENGINES[name].load()
    problem = engine.problem()
    if problem:
        raise UnavailableError(f"engine {name} can't run here: {problem}")
    return engine


__all__ = ["Engine", "Runner", "engine_named"]
