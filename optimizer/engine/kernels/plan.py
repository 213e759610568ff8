"""The steps that compute a traced network; :mod:`optimizer.engine.kernels.layout` says where values lie.

One class with a method for each kind of operation: they share the buffers, so it stays one file.
"""

import ctypes
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from optimizer.engine.kernels import Kernels, Kind, Step
from optimizer.engine.kernels.fusion import fusion
from optimizer.engine.kernels.layout import (
    SLACK,
    MemoryLayout,
    Planes,
    Region,
    Value,
    by_rows,
    gaps,
    layout_of,
    reach,
    shifts,
)
from optimizer.engine.kernels.matrix import (
    A_FEW_ROWS,
    ALGORITHMS,
    ROWS,
    Algorithm,
    Product,
    algorithms,
    copy_of,
)
from optimizer.engine.kernels.memory import Arena
from optimizer.engine.kernels.trace import Op, Trace, taps

BAND = 1 << 17
"""Floats at most, half a MiB, of a band of a depthwise convolution's outputs that goes on to its reader."""


@dataclass(frozen=True)
class Choice:
    """A layer's algorithms; with how many of its weights they multiply (``kept``), of ``total``."""

    algorithms: Mapping[Algorithm, Step]
    kept: int
    total: int


@dataclass(frozen=True)
class Call:
    """An operation that torch runs."""

    op: Op


@dataclass(frozen=True)
class Bring:
    """What torch computed, copied to where the kernels read it."""

    name: str
    value: Value


@dataclass(frozen=True)
class Item:
    """One thing to do. ``weights`` are the paths of the layers' weights that it multiplies with, if any."""

    name: str
    work: Step | Choice | Call | Bring
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class KernelPlan:
    """What to do in order, where the values are, the steps that read the network's input, whose address is to
    be filled in, and the memory that all this points into."""

    items: tuple[Item, ...]
    values: Mapping[str, Value]
    from_input: tuple[Step, ...]
    memory: tuple[object, ...]


def plan(
    trace: Trace,
    parameters: Mapping[str, Tensor],
    kernels: Kernels,
    taken: Mapping[str, Algorithm] | None = None,
) -> KernelPlan:
    """Places and steps for the operations of ``trace`` with the weights ``parameters``, by path. Layers have
    every algorithm that suits them, or the one that ``taken`` has by an item's name (the first, where it
    doesn't suit)."""
    planner = _Planner(trace, parameters, kernels, taken)
    for index, op in enumerate(trace.ops):
        planner.add(op, index)
        planner.release(index)
    return KernelPlan(tuple(planner.items), planner.placed, tuple(planner.from_input), tuple(planner.memory))


class _Planner:
    """The values that are there at one point of the network, and what was built so far."""

    def __init__(
        self,
        trace: Trace,
        parameters: Mapping[str, Tensor],
        kernels: Kernels,
        taken: Mapping[str, Algorithm] | None,
    ) -> None:
        self.trace = trace
        self.taken = taken
        self.among: Collection[Algorithm] = ALGORITHMS  # of the operation that is added
        self.parameters = parameters
        self.kernels = kernels
        self.gaps = gaps(trace)
        self.items: list[Item] = []
        self.arena = Arena()
        self.memory: list[object] = [self.arena]
        self.values: dict[str, Value] = {}  # those whose buffers are in use
        self.placed: dict[str, Value] = {}
        self.fusion = fusion(trace, self.layout)
        self.read = self._channels_read()
        self.index = 0  # of the operation that is added
        self.free: dict[MemoryLayout, list[Tensor]] = {}
        self.masks: dict[MemoryLayout, int | None] = {}
        self.from_input: list[Step] = []

    def release(self, index: int) -> None:
        for name in [
            name for name, value in self.values.items() if self.fusion.last_reads.get(name, index) <= index
        ]:
            value = self.values.pop(name)
            self.free.setdefault(value.layout, []).append(value.buffer)

    def layout(self, shape: tuple[int, ...]) -> MemoryLayout:
        return layout_of(shape, self.gaps, self.kernels.width)

    def _value(self, layout: MemoryLayout, shape: tuple[int, ...], used_again: bool = True) -> Value:
        """In the smallest free buffer that is large enough, or a new one of zeros: gaps stay zero, since
        nothing but zeros is ever written there. Not ``used_again``: always a new one."""
        channels = shape[2] if len(shape) == 3 else shape[1]
        size = channels * layout.plane + SLACK + layout.border
        free = self.free.get(layout, []) if used_again else []
        fitting = sorted((buffer for buffer in free if len(buffer) >= size), key=len)
        if fitting:
            self.free[layout] = [buffer for buffer in self.free[layout] if buffer is not fitting[0]]
        buffer = fitting[0] if fitting else self.arena.zeros(size)
        return Value(layout, channels, buffer, shape)

    def _output(self, op: Op) -> Value:
        value = self._value(self.layout(op.shape), op.shape)
        self.values[op.output] = self.placed[op.output] = value
        return value

    def _output_over(self, op: Op, added: Value | None) -> Value:
        """In the place of what is added, if nothing is to read that any more: a sum is then written to where
        an addend was read a moment ago."""
        name = self.trace.root(op.added) if op.added else ""
        if (
            added is None
            or self.fusion.last_reads[name] > self.index
            or name == self.trace.root(op.inputs[0])
        ):
            return self._output(op)
        del self.values[name]
        value = replace(added, shape=op.shape)
        self.values[op.output] = self.placed[op.output] = value
        return value

    def _planes(self, name: str) -> Value:
        """The value for kernels to read, brought from torch or from the images where it isn't theirs."""
        name = self.trace.root(name)
        if name not in self.values:
            shape = self.trace.shapes[name]
            value = self._value(self.layout(shape), shape)
            if name == self.trace.input and len(shape) == 4:
                self._copy(self._images(), value, shape)
            else:
                self._emit(name, Bring(name, value))
            self.values[name] = self.placed[name] = value
        return self.values[name]

    def _images(self) -> Region:
        """The network's input, whose address is only known when it runs."""
        shape = self.trace.shapes[self.trace.input]
        _, channels, height, width = shape
        return Region(0, (channels * height * width, height * width, width, 1), shape)

    def _source(self, name: str) -> Region:
        """To copy from, without bringing the images into planes first."""
        if self.trace.root(name) == self.trace.input and self.trace.root(name) not in self.values:
            return self._images()
        value = self._planes(name)
        return Region(value.address, value.strides, value.shape)

    def _copy(
        self,
        source: Region,
        value: Value,
        counts: tuple[int, ...],
        into: tuple[int, int, int, int] | None = None,
    ) -> None:
        """``counts`` ``[N, C, H, W]`` elements of ``source`` to ``value``, with the strides ``into``."""
        images, channels, height, width = counts
        image, plane, row, column = into or value.strides
        step = Step(
            kind=Kind.COPY,
            output=value.address,
            rows=channels,
            images=images,
            height=height,
            width=width,
            output_stride=plane,
            output_image=image,
            output_row=row,
            output_column=column,
        )
        self._read(step, source)
        self._emit("copy", step)

    def _read(self, step: Step, source: Region) -> None:
        """The images' address is only known when the network runs."""
        step.input = source.address or None
        step.input_image, step.input_stride, step.input_row, step.input_column = source.strides
        if not source.address:
            self.from_input.append(step)

    def _emit(self, name: str, work: Step | Choice | Call | Bring, *weights: str) -> None:
        self.items.append(Item(name, work, tuple(self._path(weight) for weight in weights)))

    def _path(self, name: str) -> str:
        """Of a parameter in the module; the name in the trace for a constant."""
        where = self.trace.constants[name]
        return where if isinstance(where, str) else name

    def add(self, op: Op, index: int) -> None:
        self.index = index
        if op.kind == "same" or op.output in self.fusion.made_within:
            return
        if op.output not in self.fusion.native:
            self._emit(op.output, Call(op), *([op.weight] if op.weight else []))
            return
        added = self._planes(op.added) if op.added else None
        if self.taken is not None:
            self.among = {self.taken[op.output]} if op.output in self.taken else ()
        {
            "convolution": self._convolution,
            "depthwise": self._depthwise,
            "linear": self._linear,
            "add": self._elementwise,
            "clip": self._elementwise,
            "max pool": self._max_pool,
            "mean": self._mean,
            "flatten": self._flatten,
        }[op.kind](op, added)

    def _mask(self, layout: MemoryLayout) -> int | None:
        if layout not in self.masks:
            mask = layout.mask()
            self.masks[layout] = None if mask is None else self.arena.hold(mask)
        return self.masks[layout]

    def _step(
        self, op: Op, layout: MemoryLayout, output: Value | None, added: Value | None, rows: int
    ) -> Step:
        """What all steps over pixels in a row have in common."""
        return Step(
            other=added.address if added else None,
            output=output.address if output else None,
            output_stride=layout.plane,
            mask=self._mask(layout),
            rows=rows,
            vectors=layout.vectors,
            tail=layout.tail,
            tile=ROWS[0].tile,
            low=op.low,
            high=op.high,
        )

    def _phases(self, op: Op) -> tuple[Value, int, np.ndarray]:
        """What a convolution reads, the planes of one channel there, and each tap's offset in floats."""
        assert op.window is not None
        positions = taps(op.window)
        phases = sorted({tap.phase for tap in positions})
        value = self._planes(op.inputs[0]) if op.window.stride == 1 else self._split(op, phases)
        layout = value.layout
        offsets = [
            phases.index(tap.phase) * layout.plane + tap.down * layout.row + tap.right for tap in positions
        ]
        return value, len(phases), np.array(offsets, np.int64)

    def _split(self, op: Op, phases: list[tuple[int, int]]) -> Value:
        """The phases of each channel of an input, one after another."""
        assert op.window is not None
        source, stride = self._source(op.inputs[0]), op.window.stride
        images, channels, height, width = source.shape
        full = all(  # or some pixels of a phase stay zero
            -(-(size - phase) // stride) >= out
            for place in phases
            for phase, size, out in zip(place, (height, width), op.shape[2:], strict=True)
        )
        planes = (images, channels * len(phases), *op.shape[2:])
        value = self._value(self.layout(op.shape), planes, used_again=full)
        step = Step(
            kind=Kind.PHASES,
            output=value.address,
            rows=channels,
            images=images,
            height=op.shape[2],
            width=op.shape[3],
            step=stride,
            taps_count=len(phases),
            offsets=self.arena.hold(np.array(phases, np.int32)),
            input_height=height,
            input_width=width,
            border=SLACK if source.address else 0,
            output_stride=value.layout.plane,
            output_image=value.layout.image,
            output_row=value.layout.row,
        )
        self._read(step, source)
        self._emit("phases", step)
        if full:
            self.values[f"{op.output} phases"] = value  # free again after this operation
        return value

    def _parameter(self, name: str) -> Tensor:
        """The tensor of a placeholder of the trace."""
        where = self.trace.constants[name]
        value = self.parameters[where] if isinstance(where, str) else where
        assert isinstance(value, Tensor)
        return value.detach()

    def _channels_read(self) -> dict[str, np.ndarray]:
        """Of values that are never in memory as a whole, the channels that some surviving weight of the
        operation behind them multiplies. The others are not computed."""
        read = {}
        for op in self.trace.ops:
            depthwise = self.fusion.sources.get(op.output)
            maker = self.fusion.makers[depthwise.output] if depthwise else None
            if depthwise and maker and not maker.added:
                channels = np.flatnonzero(self._parameter(op.weight).flatten(1).any(0).numpy())
                read[depthwise.output] = read[maker.output] = channels if len(channels) else np.array([0])
        return read

    def _weight(self, op: Op) -> Tensor:
        """float32, for the channels that are read."""
        weight = self._parameter(op.weight).float()
        if op.output in self.read:
            weight = weight[self.read[op.output]]
        if op.kind == "convolution" and (source := self.trace.root(op.inputs[0])) in self.read:
            weight = weight[:, self.read[source]]
        return weight

    def _convolution(self, op: Op, added: Value | None) -> None:
        depthwise = self.fusion.sources.get(op.output)
        if depthwise:
            self._through_bands(op, depthwise, added)
            return
        source, phases, offsets = self._phases(op)
        output = self._output_over(op, added)
        self._emit(op.output, self._matrix(op, source.planes, phases, offsets, output, added), op.weight)

    def _through_bands(self, op: Op, depthwise: Op, added: Value | None) -> None:
        """A 1x1 convolution, and the depthwise one that it alone reads: a band of rows at a time."""
        maker = self.fusion.makers[depthwise.output]
        first, last = self._produced(depthwise, maker, None, None), self._projection(op, depthwise, added)
        for algorithm, step in first.algorithms.items():
            consumer = last.algorithms.get(algorithm) or next(iter(last.algorithms.values()))
            step.consumer, step.band = ctypes.addressof(consumer), self._band(depthwise)
            self.memory.append(consumer)
        both = Choice(first.algorithms, first.kept + last.kept, first.total + last.total)
        self._emit(op.output, both, maker.weight, depthwise.weight, op.weight)

    def _projection(self, op: Op, depthwise: Op, added: Value | None) -> Choice:
        """A 1x1 convolution that reads a band of rows of a depthwise convolution's outputs."""
        layout = self.layout(op.shape)
        channels, rows = depthwise.shape[1], self._band(depthwise)
        lines = -(-(rows * layout.row + 2 * layout.lanes) // 16)
        band = Planes(0, 16 * (lines | 1), channels)
        choice = self._matrix(op, band, 1, np.zeros(1, np.int64), self._output(op), added)
        for algorithm in choice.algorithms.values():
            algorithm.input_stride = band.plane
        return choice

    def _band(self, op: Op) -> int:
        """Rows of a depthwise convolution's outputs that go on at once: whole vectors of pixels."""
        row, lanes = self.layout(op.shape).row, self.kernels.width
        least = lanes // math.gcd(row, lanes)
        return max(1, BAND // (op.shape[1] * row * least)) * least

    def _matrix(
        self,
        op: Op,
        source: Planes,
        phases: int,
        offsets: np.ndarray,
        output: Value | None,
        added: Value | None,
        suited: Collection[Algorithm] = ALGORITHMS,
    ) -> Choice:
        """A convolution as a matrix over the taps of all channels."""
        weight = self._weight(op)
        step = self._step(op, self.layout(op.shape), output, added, len(weight))
        step.input = source.address
        planes = np.arange(weight.shape[1]) * phases * source.plane
        step.rows_first = weight.count_nonzero() > source.channels * source.plane
        return self._choice(op, step, weight.flatten(1).numpy(), (planes[:, None] + offsets).ravel(), suited)

    def _depthwise(self, op: Op, added: Value | None) -> None:
        maker = self.fusion.makers.get(op.output)
        if maker:
            work = self._produced(op, maker, self._output(op), added)
            self._emit(op.output, work, maker.weight, op.weight)
            return
        if by_rows(op):
            source, phases, offsets = self._planes(op.inputs[0]), 1, np.zeros(0)
        else:
            source, phases, offsets = self._phases(op)
        step = self._window(op, source.layout, phases, offsets, self._output(op), added)
        step.input = source.address
        self._emit(op.output, step, op.weight)

    def _produced(self, op: Op, maker: Op, output: Value | None, added: Value | None) -> Choice:
        """A depthwise convolution whose input ``maker`` computes for it, a few channels at a time."""
        beside = self._planes(maker.added) if maker.added else None
        source, phases, offsets = self._phases(maker)
        producer = self._matrix(maker, source.planes, phases, offsets, None, beside, A_FEW_ROWS)
        layout = self.layout(maker.shape)
        assert op.window is not None
        inside = np.array([tap.down * layout.row + tap.right for tap in taps(op.window)])
        step = self._window(op, layout, 1, inside, output, added)
        made = {algorithm: copy_of(step) for algorithm in producer.algorithms}
        for algorithm, fused in made.items():
            fused.producer = ctypes.addressof(producer.algorithms[algorithm])
            self.memory.append(producer.algorithms[algorithm])
        return Choice(made, producer.kept, producer.total)

    def _window(
        self,
        op: Op,
        layout: MemoryLayout,
        phases: int,
        offsets: np.ndarray,
        output: Value | None,
        added: Value | None,
    ) -> Step:
        """A depthwise convolution over planes of ``layout``, whose address the caller fills in."""
        assert op.window is not None
        below, before = self.layout(op.shape), self.trace.shapes[op.inputs[0]]
        weight = self._weight(op)
        step = self._step(op, below, output, added, len(weight))
        step.kind = Kind.DEPTHWISE_ROWS if by_rows(op) else Kind.DEPTHWISE
        step.input_stride, step.border = phases * layout.plane, layout.border
        step.input_height, step.input_width = before[2:]
        compact = by_rows(op) and not layout.gap
        if compact and max(before[3], op.shape[3]) <= self.kernels.width:
            step.kind, offsets = Kind.DEPTHWISE_SHIFTED, shifts(op, before, self.kernels.width)
        elif compact:  # the kernel spreads it
            layout = replace(layout, gap=max(1, reach(op, before)))
            step.compact = layout.images * layout.image + layout.border + 2 * layout.lanes
            step.border = layout.border
        step.weights = self.arena.hold(weight.reshape(len(weight), -1).numpy())
        step.taps_count, step.offsets = len(offsets), self.arena.hold(offsets.astype(np.int32))
        step.bias = self.arena.hold(self._bias(op, len(weight)))
        step.images, _, step.height, step.width = op.shape
        step.input_image, step.input_row = layout.image, layout.row
        step.output_image, step.output_row = below.image, below.row
        step.kernel, step.step = op.window.kernel[0], op.window.stride
        step.pad_top, step.pad_left = op.window.top, op.window.left
        return step

    def _linear(self, op: Op, added: Value | None) -> None:
        source = self._planes(op.inputs[0])
        output = self._output_over(op, added)
        weight = self._parameter(op.weight).float()
        step = self._step(op, output.layout, output, added, len(weight))
        step.input = source.address
        offsets = np.arange(weight.shape[1]) * source.layout.plane
        self._emit(op.output, self._choice(op, step, weight.numpy(), offsets), op.weight)

    def _bias(self, op: Op, rows: int) -> np.ndarray:
        """float32, zeros behind the last row as far as a dense block may read."""
        bias = np.zeros(rows + 4 * self.kernels.width + self.kernels.dense_rows, np.float32)
        if op.bias:
            own = self._parameter(op.bias).float().numpy()
            bias[:rows] = own[self.read[op.output]] if op.output in self.read else own
        return bias

    def _choice(
        self,
        op: Op,
        step: Step,
        weight: np.ndarray,
        offsets: np.ndarray,
        suited: Collection[Algorithm] = ALGORITHMS,
    ) -> Choice:
        """A matrix ``[rows, taps]`` over pixels, by the algorithms that may be taken."""
        step.bias = self.arena.hold(self._bias(op, len(weight)))
        single = self.layout(op.shape).single
        product = Product(step, weight, offsets, single, self.kernels, self.arena.hold)
        makes = algorithms(product)
        there = [algorithm for algorithm in makes if algorithm in suited]
        asked = [algorithm for algorithm in there if algorithm in self.among] or there[:1]
        total = self._parameter(op.weight).numel()
        return Choice({algorithm: makes[algorithm]() for algorithm in asked}, product.kept, total)

    def _elementwise(self, op: Op, added: Value | None) -> None:
        source = self._planes(op.inputs[0])
        output = self._output(op)
        step = self._step(op, output.layout, output, added, source.channels)
        step.kind, step.input, step.input_stride = Kind.ADD, source.address, source.layout.plane
        self._emit(op.output, step)

    def _max_pool(self, op: Op, added: Value | None) -> None:
        step = self._pooled(op, Kind.MAX_POOL)
        assert op.window is not None
        step.height, step.width = op.shape[2:]
        step.output_row = self.layout(op.shape).row
        step.kernel, step.step = op.window.kernel[0], op.window.stride
        step.pad_top, step.pad_left = op.window.top, op.window.left
        self._emit(op.output, step)

    def _mean(self, op: Op, added: Value | None) -> None:
        self._emit(op.output, self._pooled(op, Kind.MEAN))

    def _pooled(self, op: Op, kind: Kind) -> Step:
        source = self._planes(op.inputs[0])
        output = self._output(op)
        step = self._step(op, output.layout, output, None, source.channels)
        step.kind, step.input, step.input_stride = kind, source.address, source.layout.plane
        step.images, step.output_image = op.shape[0], output.strides[0]
        step.input_image, step.input_row = source.layout.image, source.layout.row
        step.input_height, step.input_width = source.shape[2:]
        return step

    def _flatten(self, op: Op, added: Value | None) -> None:
        source = self._source(op.inputs[0])
        output = self._output(op)
        _, _, height, width = source.shape
        plane = output.layout.plane
        into = (1, height * width * plane, width * plane, plane)
        self._copy(source, output, source.shape, into)
