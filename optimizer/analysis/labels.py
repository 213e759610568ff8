"""What engines are called where people read."""

from optimizer.methods.engines import engine_info


def engine_label(engine: str) -> str:
    """An engine's name on screen; one that is not here is called by its own name."""
    return engine_info(engine).label
