"""Memory that steps point into.

A processor remembers where few pages are, and a layer reads a little from each of hundreds of planes. In
pages of 2 MiB instead of 4 KiB a pruned network is some 4 % faster (EfficientNet-Lite0 and ResNet-50).
"""

import mmap

import numpy as np
import torch
from torch import Tensor

HUGE_PAGE = 1 << 21
CHUNK = 8 * HUGE_PAGE
CACHE_LINE = 64
"""Bytes. A vector that begins in the middle of a line is read twice."""


class Arena:
    """Arrays one after another, each at the beginning of a cache line. They live as long as the arena."""

    def __init__(self) -> None:
        self.chunks: list[np.ndarray] = []
        self.free = np.zeros(0, np.uint8)

    def zeros(self, floats: int) -> Tensor:
        """float32 ``[floats]``."""
        return torch.from_numpy(self._take(4 * floats).view(np.float32))

    def hold(self, array: np.ndarray) -> int:
        """The address of a copy."""
        taken = self._take(array.nbytes)
        taken.view(array.dtype)[:] = array.ravel()
        return int(taken.ctypes.data)

    def _take(self, size: int) -> np.ndarray:
        whole = -(-size // CACHE_LINE) * CACHE_LINE
        if whole > len(self.free):
            self.free = _pages(max(whole, CHUNK))
            self.chunks.append(self.free)
        taken, self.free = self.free[:size], self.free[whole:]
        return taken


def _pages(size: int) -> np.ndarray:
    """``size`` bytes of zeros, in large pages where the system has them; untouched ones take no memory."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        private = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        private.madvise(mmap.MADV_HUGEPAGE)
        mapped, edge = np.frombuffer(private, np.uint8), HUGE_PAGE
    else:
        mapped, edge = np.zeros(size + CACHE_LINE, np.uint8), CACHE_LINE
    begin = -mapped.ctypes.data % edge
    return mapped[begin : begin + size]
