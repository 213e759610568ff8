"""The precision that torch computes in, whatever a script of the caller's has set before."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

FLOAT32 = "ieee"
KINDS = tuple(getattr(torch.backends.mkldnn, kind) for kind in ("matmul", "conv", "rnn"))
"""What may compute float32 in less, each by a setting of its own."""


@contextmanager
def float32_throughout() -> Iterator[None]:
    """Float32 is computed in float32, and what is made is float32: no autocast, no bfloat16 in its place
    (``torch.set_float32_matmul_precision``, ``fp32_precision``), no other default type. All is put back.
    Results are kept under keys that don't know of these settings."""
    dtype, kinds = torch.get_default_dtype(), [kind.fp32_precision for kind in KINDS]
    products = None
    with suppress(RuntimeError):  # where the newer settings were used, torch refuses to tell the older one
        products = torch.get_float32_matmul_precision()
    try:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        for kind in KINDS:
            kind.fp32_precision = FLOAT32
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(dtype)
        if products:
            torch.set_float32_matmul_precision(products)
        for kind, precision in zip(KINDS, kinds, strict=True):
            kind.fp32_precision = precision
