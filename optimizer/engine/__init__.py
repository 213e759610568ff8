"""What executes a model. One file an engine, and the dict that names them."""

from optimizer.engine import compile, onnxruntime, openvino, sparse, torch
from optimizer.engine.base import Engine, Runner
from optimizer.errors import UnavailableError, unknown

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (openvino.ENGINE, onnxruntime.ENGINE, sparse.ENGINE, compile.ENGINE, torch.ENGINE)
}


def engine_named(name: str) -> Engine:
    """The engine, ready to run. Raises InputError for an unknown name, UnavailableError when it can't run."""
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    problem = ENGINES[name].problem()
    if problem:
        raise UnavailableError(f"engine {name} can't run here: {problem}")
    return ENGINES[name]


__all__ = ["ENGINES", "Engine", "Runner", "engine_named"]
