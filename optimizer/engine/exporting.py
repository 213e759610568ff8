"""Around torch's exporter: what it says of its own workings, and what to do where it fails."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from optimizer.methods.engines import REFERENCE_ENGINE, use_another

DEPENDS = (
    "Which operations it runs depends on the values of its input, which no exported graph follows: "
    f"use engine {REFERENCE_ENGINE}."
)


@contextmanager
def quiet() -> Iterator[None]:
    """What torch says while it exports is no concern of a user's: graphs, printed where it fails, too."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        logger.setLevel(level)


def advice(engine: str, error: BaseException) -> str:
    """What to do where an engine can't run a model because of ``error``, as a sentence. What computes by the
    values of its input can be exported for no engine."""
    return DEPENDS if depends_on_values(error) else use_another(engine)


def depends_on_values(error: BaseException) -> bool:
    """Whether an export failed, in the end, since the model's own code looks at values."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, GuardOnDataDependentSymNode):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False
