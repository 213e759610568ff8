"""Where the values of a traced network lie in memory.

A value is channel-major: ``[C]`` planes, each with all images' rows one after another. Values of one
resolution share a :class:`MemoryLayout`, so that a convolution with stride 1, an addition and a clip run over
pixels in a row. A gap of zeros behind each row, as wide as the widest window needs, is the padding of its end
and of the next row's beginning. Other strides first split their input into its phases: every second pixel of
every second row, four times, has the resolution of the output.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from optimizer.engine.kernels.matrix import in_vectors
from optimizer.engine.kernels.trace import Op, Trace, fits, taps

SLACK = 256
"""Floats behind the last plane: a tile may read that far."""
NARROW = 16
"""Pixels of a row below which gaps would be a large part of a plane."""


@dataclass(frozen=True)
class MemoryLayout:
    """Planes of one resolution: ``images`` of ``height`` x ``width`` pixels with a gap of ``gap`` pixels."""

    images: int
    height: int
    width: int
    gap: int
    lanes: int

    @property
    def row(self) -> int:
        """Floats from one row to the next."""
        return self.width + self.gap

    @property
    def image(self) -> int:
        """Floats from one image to the next."""
        return (self.height + self.gap) * self.row

    @property
    def span(self) -> int:
        """Floats from the first pixel to behind the last."""
        return (self.images - 1) * self.image + (self.height - 1) * self.row + self.width

    @property
    def single(self) -> bool:
        """One pixel in all: features in a row."""
        return self.span == 1

    @property
    def border(self) -> int:
        """Floats of zeros before the first pixel, and as many behind the last."""
        return -(-self.gap * (self.row + 1) // 16) * 16

    @property
    def tail(self) -> int:
        """Pixels behind the last vector. None where there are gaps: they would be in the way."""
        return 0 if self.gap else in_vectors(self.span, self.lanes)[1]

    @property
    def vectors(self) -> int:
        """Vectors of pixels, the last of them perhaps not full."""
        return -(-(self.span - self.tail) // self.lanes)

    @property
    def plane(self) -> int:
        """Floats from one channel to the next, whose borders are one. An odd number of cache lines, so that
        channels do not compete for the same place in the cache."""
        if self.single:
            return 1
        lines = -(-((self.vectors + (self.tail > 0)) * self.lanes + self.border) // 16)
        return 16 * (lines | 1)

    def mask(self) -> np.ndarray | None:
        """int32 ``[vectors * lanes]``: -1 for a pixel, 0 for a gap; None without gaps."""
        if not self.gap:
            return None
        position = np.arange(self.vectors * self.lanes)
        inside = position % self.image
        pixel = (inside // self.row < self.height) & (inside % self.row < self.width) & (position < self.span)
        return np.where(pixel, -1, 0).astype(np.int32)


@dataclass(frozen=True)
class Planes:
    """``channels`` planes of pixels, ``plane`` floats from one to the next, by the address of the first."""

    address: int
    plane: int
    channels: int


@dataclass(frozen=True)
class Value:
    """``channels`` planes in a buffer, read as a tensor of ``shape``."""

    layout: MemoryLayout
    channels: int
    buffer: Tensor
    shape: tuple[int, ...]

    @property
    def address(self) -> int:
        """Of the first pixel of the first channel."""
        return self.buffer.data_ptr() + 4 * self.layout.border

    @property
    def planes(self) -> Planes:
        return Planes(self.address, self.layout.plane, self.channels)

    @property
    def strides(self) -> tuple[int, ...]:
        """Floats from one to the next along each axis of ``shape``."""
        layout = self.layout
        if len(self.shape) == 3:
            return (self.shape[1], 1, layout.plane)
        if len(self.shape) == 2 or self.shape[2:] == (1, 1):
            return (1, layout.plane, 1, 1)[: len(self.shape)]
        return (layout.image, layout.plane, layout.row, 1)

    def tensor(self) -> Tensor:
        """The same memory as torch sees it, ``[N, C, H, W]``, ``[N, T, D]`` or ``[N, F]``."""
        return torch.as_strided(self.buffer, self.shape, self.strides, self.layout.border)


@dataclass(frozen=True)
class Region:
    """Memory of images ``[N, C, H, W]`` by address, and the floats from one to the next along each axis."""

    address: int
    strides: tuple[int, ...]
    shape: tuple[int, ...]


def by_rows(op: Op) -> bool:
    """Whether a depthwise convolution has a kernel that goes by rows of its output."""
    usual = op.window is not None and op.window.kernel in ((3, 3), (5, 5)) and op.window.stride in (1, 2)
    return op.kind == "depthwise" and usual


def reach(op: Op, before: tuple[int, ...]) -> int:
    """How far a convolution looks beyond the planes that it reads, of shape ``before`` where it reads the
    input itself and not its phases."""
    assert op.window is not None
    if not by_rows(op):
        return max(max(abs(tap.down), abs(tap.right)) for tap in taps(op.window))
    window = op.window
    ends = [
        (out - 1) * window.stride + kernel - first - size
        for out, kernel, first, size in zip(
            op.shape[2:], window.kernel, (window.top, window.left), before[2:], strict=True
        )
    ]
    return max(window.top, window.left, *ends)


def shifts(op: Op, before: tuple[int, ...], lanes: int) -> np.ndarray:
    """int32 ``[K, lanes]``: where in a row of the input, of shape ``before``, a row of outputs finds
    column ``k`` of its windows; -1 beside the image."""
    assert op.window is not None
    output, column = np.arange(lanes), np.arange(op.window.kernel[1])[:, None]
    places = output * op.window.stride + column - op.window.left
    inside = (output < op.shape[3]) & (places >= 0) & (places < before[3])
    return np.where(inside, places, -1).astype(np.int32)


def gaps(trace: Trace) -> dict[tuple[int, ...], int]:
    """For each resolution the widest padding that a convolution needs there.

    Where small planes are only padded for depthwise convolutions there is none: gaps would be a large part of
    them, and these convolutions can spread a plane themselves.
    """
    widest: dict[tuple[int, ...], int] = {}
    spreading = []
    for op in trace.ops:
        if op.kind not in ("convolution", "depthwise") or op.window is None:
            continue
        before = trace.shapes[op.inputs[0]]
        if not fits(op, before):
            continue
        resolution = before[2:] if by_rows(op) else op.shape[2:]
        if by_rows(op) and resolution[1] <= NARROW:
            spreading.append((resolution, reach(op, before)))
        else:
            widest[resolution] = max(reach(op, before), widest.get(resolution, 0))
    for resolution, needed in spreading:
        if widest.get(resolution):
            widest[resolution] = max(needed, widest[resolution])
    return widest


def layout_of(shape: tuple[int, ...], widest: Mapping[tuple[int, ...], int], lanes: int) -> MemoryLayout:
    """Of values of ``shape`` ``[N, C, H, W]``, ``[N, T, D]`` or ``[N, F]``; ``widest`` as :func:`gaps` has
    it, vectors of ``lanes`` floats. Without a resolution, pixels are what is counted in images and tokens."""
    if len(shape) == 4 and shape[2:] != (1, 1):
        return MemoryLayout(shape[0], *shape[2:], widest.get(shape[2:], 0), lanes)
    return MemoryLayout(1, 1, shape[0] * shape[1] if len(shape) == 3 else shape[0], 0, lanes)
