"""Around torch's exporter and compiler: what they say of their workings, and what to do where they fail."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from torch import Tensor
from torch.nn.modules import transformer

from optimizer.methods.engines import REFERENCE_ENGINE, use_another
from optimizer.model.layers import whole_attention


@contextmanager
def exporting() -> Iterator[None]:
    """Around a call of torch's exporter. What torch says while it exports is no concern of a user's: graphs,
    printed where it fails, too. Its fused attention is no operation of ONNX, and looks at masks fail."""
    nowhere = io.StringIO()
    with (
        logged_from(logging.CRITICAL),
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
        whole_attention(),
        _masks_as_given(),
    ):
        yield


@contextmanager
def _masks_as_given() -> Iterator[None]:
    """``nn.TransformerEncoder`` and ``nn.TransformerDecoder`` compare a mask with a causal one, of which
    attention may then leave the values unread. An export has no values to compare; read, they give the same
    answers."""
    name = "_detect_is_causal_mask"
    detect = getattr(transformer, name, None)

    def as_said(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
        return is_causal is True

    setattr(transformer, name, as_said)
    try:
        yield
    finally:
        setattr(transformer, name, detect)


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
