"""Around torch's exporter and compiler: what they say of their workings, and what to do where they fail."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from optimizer.methods.engines import REFERENCE_ENGINE, use_another


@contextmanager
def quiet() -> Iterator[None]:
    """What torch says while it exports is no concern of a user's: graphs, printed where it fails, too."""
    nowhere = io.StringIO()
    with logged_from(logging.CRITICAL), redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def logged_from(level: int) -> Iterator[None]:
    """Of what torch logs only what is of this level or worse, and no warnings."""
    logger = logging.getLogger("torch")
    before = logger.level
    logger.setLevel(level)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(before)


TORCH_ALONE = (
    "Which operations it runs depends on the values of its input, which no exported graph follows: use "
    f"engine {REFERENCE_ENGINE}."
)


def advice(engine: str, error: BaseException) -> str:
    """What to do where an engine can't run a model because of ``error``, as a sentence."""
    return TORCH_ALONE if depends_on_values(error) else use_another(engine)


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
