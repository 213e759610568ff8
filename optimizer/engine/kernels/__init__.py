"""The sparse engine's kernels, loaded for what this processor has. See ``kernels.cpp``."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

from optimizer.engine.kernels.build import REASON, Target, library, targets
from optimizer.errors import UnavailableError
from optimizer.system.environment import environment


class Kind(IntEnum):
    """What a step does. The order is that of ``step.h``."""

    SPARSE = 0
    SPARSE_PAIRS = 1
    SPARSE_BLOCKS = 2
    DENSE = 3
    SPARSE_VECTOR = 4
    DENSE_VECTOR = 5
    DEPTHWISE = 6
    DEPTHWISE_ROWS = 7
    DEPTHWISE_SHIFTED = 8
    COPY = 9
    ADD = 10
    MAX_POOL = 11
    MEAN = 12
    PHASES = 13


POINTERS = (
    "producer", "consumer", "input", "other", "output", "bias", "weights", "taps", "starts", "order",
    "columns", "offsets", "mask",
)  # fmt: skip
SIZES = (
    "rows", "taps_count", "blocks", "gathered", "vectors", "tile", "tail", "rows_first",
    "input_stride", "output_stride",
)  # fmt: skip
COUNTS = (
    "images", "height", "width", "input_image", "input_row", "input_column", "output_image",
    "output_row", "output_column", "kernel", "step", "pad_top", "pad_left", "input_height", "input_width",
    "border", "compact", "band",
)  # fmt: skip


class Step(ctypes.Structure):
    """One operation, as ``step.h`` declares it: pointers are addresses, strides count floats."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in SIZES),
        ("low", ctypes.c_float),
        ("high", ctypes.c_float),
        *((name, ctypes.c_int64) for name in COUNTS),
    )


USUAL_CACHE = 32 * 1024
"""Bytes of a first-level cache, where the system doesn't say."""


@dataclass(frozen=True)
class Kernels:
    """The library of one instruction set: floats a vector, rows that the dense path does at once, rows that
    each block of the sparse path puts into an order of its own, and bytes of inputs that the first-level
    cache holds beside other things."""

    name: str
    width: int
    dense_rows: int
    ordered_rows: int
    nearby: int
    functions: ctypes.CDLL

    def time(self, steps: Sequence[Step], threads: int, repeats: int) -> list[int]:
        """Nanoseconds of each step, the shortest of so many runs of all."""
        array, shortest = (Step * len(steps))(*steps), (ctypes.c_int64 * len(steps))()
        self.functions.time_steps(array, len(steps), threads, repeats, shortest)
        return list(shortest)


def problem() -> str | None:
    """Why there are no kernels here, or None."""
    if REASON.exists():
        return REASON.read_text()
    if not targets() or not library(targets()[0]).exists():
        return "the kernels were not built for this version (reinstall the package)"
    if not usable():
        return f"this processor has none of {', '.join(target.name for target in targets())}"
    return None


def kernels() -> Kernels:
    """The best that this processor can run. Raises UnavailableError."""
    reason = problem()
    if reason:
        raise UnavailableError(f"no sparse kernels: {reason}")
    return load(usable()[0])


@cache
def load(target: Target) -> Kernels:
    """A target's library."""
    return opened(target.name, library(target))


def opened(name: str, file: Path) -> Kernels:
    """A library of kernels that was compiled to ``file``."""
    loaded = ctypes.CDLL(str(file))
    counts = (
        loaded.vector_width, loaded.dense_rows, loaded.ordered_rows, loaded.step_bytes, loaded.cache_bytes
    )  # fmt: skip
    for function in counts:
        function.restype = ctypes.c_int64
    steps = ctypes.POINTER(Step)
    loaded.run.argtypes = (steps, ctypes.c_int64, ctypes.c_int64)
    loaded.run.restype = None
    loaded.time_steps.argtypes = (*loaded.run.argtypes, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64))
    loaded.time_steps.restype = None
    assert loaded.step_bytes() == ctypes.sizeof(Step)
    nearby = 3 * (loaded.cache_bytes() or USUAL_CACHE) // 4
    return Kernels(name, loaded.vector_width(), loaded.dense_rows(), loaded.ordered_rows(), nearby, loaded)


def usable() -> list[Target]:
    """The instruction sets that this processor has, the fastest first."""
    has = set(environment().instruction_sets)
    return [target for target in targets() if has.issuperset(target.needs)]
