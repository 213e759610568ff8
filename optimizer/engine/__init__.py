"""What executes a model. One file an engine, and an entry in :mod:`optimizer.methods.engines`."""

from optimizer.engine.base import Engine, Runner
from optimizer.errors import UnavailableError, unknown
from optimizer.methods.engines import ENGINES


def problem_of(name: str) -> str:
    """Why an engine can't run here, or nothing. Raises InputError for an unknown name."""
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    try:
        engine: Engine = ENGINES[name].load()
        return engine.problem() or ""
    except Exception as error:  # of a plugin: whatever it raises, the other engines stay
        return f"its code fails ({type(error).__name__}: {error})"


def engine_named(name: str) -> Engine:
    """The engine, ready to run. Raises InputError for an unknown name, UnavailableError when it can't run."""
    problem = problem_of(name)
    if problem:
        raise UnavailableError(f"engine {name} can't run here: {problem}")
    engine: Engine = ENGINES[name].load()
    return engine


__all__ = ["Engine", "Runner", "engine_named", "problem_of"]
