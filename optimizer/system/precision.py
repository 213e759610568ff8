"""The precision that torch computes in, whatever a script of the caller's has set before."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

FLOAT32 = "ieee"
FOLLOWS = "none"
"""The precision of a kind that has none of its own: that of all kinds."""
ALL = torch.backends.mkldnn
KINDS = tuple(getattr(ALL, kind) for kind in ("matmul", "conv", "rnn"))
"""What may compute float32 in less, each by a setting of its own."""

_one = threading.Lock()
_before: list[tuple[torch.dtype, list[str]]] = []
"""What was set before the first of the blocks that are under way, once for each of them."""


@contextmanager
def float32_throughout() -> Iterator[None]:
    """Float32 is computed in float32 on the CPU, and what is made is float32 there: no autocast, no bfloat16
    in its place (``torch.set_float32_matmul_precision``, ``fp32_precision``), no other default type or
    device. All is put back once no thread is in such a block. Results are kept under keys that don't know of
    these settings."""
    with _one:
        _before.append(_before[0] if _before else _replaced())
    here = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    try:
        with torch.autocast("cpu", enabled=False), here:
            yield
    finally:
        with _one:
            before = _before.pop()
            if not _before:
                _put_back(*before)


def _replaced() -> tuple[torch.dtype, list[str]]:
    """Torch's settings until now, with float32 set in their place."""
    dtype, kinds = torch.get_default_dtype(), [kind.fp32_precision for kind in KINDS]
    torch.set_default_dtype(torch.float32)
    for kind in KINDS:
        kind.fp32_precision = FLOAT32
    return dtype, kinds


def _put_back(dtype: torch.dtype, kinds: list[str]) -> None:
    torch.set_default_dtype(dtype)
    for kind, precision in zip(KINDS, kinds, strict=True):  # what all have, this one may have by following
        kind.fp32_precision = FOLLOWS if precision == ALL.fp32_precision else precision
