"""Which operations of a traced network are computed together, so that what lies between stays in a cache.

A depthwise convolution takes along the convolution that computes its input for it alone, and where its
output is large and only a 1x1 convolution reads it, that one too.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from optimizer.engine.kernels.layout import MemoryLayout, by_rows
from optimizer.engine.kernels.trace import Op, Trace, fits

BANDED = 1 << 16
"""Floats of a depthwise convolution's output from which on it goes to its reader band by band."""


@dataclass(frozen=True)
class Fusion:
    """``native``: outputs of the operations that the kernels compute. ``makers``: by a depthwise
    convolution's output, the convolution that computes its input on the way. ``sources``: by a 1x1
    convolution's output, the depthwise convolution that it reads band by band. ``last_reads``: by value, the
    index of the operation with which it is read last; never (infinite) where torch may hold a view of it.
    """

    native: Set[str]
    makers: Mapping[str, Op]
    sources: Mapping[str, Op]
    last_reads: Mapping[str, float]

    @property
    def made_within(self) -> set[str]:
        """Values that are never in memory as a whole."""
        return {op.output for op in (*self.makers.values(), *self.sources.values())}


def fusion(trace: Trace, layout: Callable[[tuple[int, ...]], MemoryLayout]) -> Fusion:
    """``layout`` says how values of a shape lie in memory."""
    native = {op.output for op in trace.ops if op.kind != "torch" and fits(op, trace.shapes[op.inputs[0]])}
    alone = _read_once(trace)
    makers = _makers(trace, native, alone)
    sources = _sources(trace, native, alone, makers, layout)
    return Fusion(native, makers, sources, _last_reads(trace, native, makers, sources))


def _read_once(trace: Trace) -> set[str]:
    """Values that one operation reads, and the caller doesn't."""
    reads = Counter(trace.root(name) for op in trace.ops for name in op.reads)
    return {name for name, count in reads.items() if count == 1} - {trace.root(trace.output)}


def _makers(trace: Trace, native: Set[str], alone: Set[str]) -> dict[str, Op]:
    convolutions = {op.output: op for op in trace.ops if op.kind == "convolution"}
    makers = {}
    for op in trace.ops:
        if op.kind != "depthwise" or op.output not in native or op.window is None:
            continue
        name = trace.root(op.inputs[0])
        usual = op.window.stride == 1 or by_rows(op)
        if usual and name in convolutions and name in native and name in alone:
            makers[op.output] = convolutions[name]
    return makers


def _sources(
    trace: Trace,
    native: Set[str],
    alone: Set[str],
    makers: Mapping[str, Op],
    layout: Callable[[tuple[int, ...]], MemoryLayout],
) -> dict[str, Op]:
    operations = {op.output: op for op in trace.ops}
    taken_along = {maker.output for maker in makers.values()}
    sources = {}
    for op in trace.ops:
        name = trace.root(op.inputs[0]) if op.kind == "convolution" else ""
        if name not in makers or name not in alone or op.output not in native or op.window is None:
            continue
        if op.output in taken_along:  # by the depthwise convolution behind it
            continue
        depthwise, before = operations[name], makers[name].shape
        large = before[0] == 1 and math.prod(depthwise.shape) >= BANDED
        plain = by_rows(depthwise) and not depthwise.added and layout(before).gap > 0
        if large and plain and op.window.kernel == (1, 1) and op.window.stride == 1:
            sources[op.output] = depthwise
    return sources


def _last_reads(
    trace: Trace, native: Set[str], makers: Mapping[str, Op], sources: Mapping[str, Op]
) -> dict[str, float]:
    """What is computed on the way reads when the operation that takes it along does."""
    runs = {op.output: index for index, op in enumerate(trace.ops)}
    runs |= {depthwise.output: runs[output] for output, depthwise in sources.items()}
    runs |= {maker.output: runs[output] for output, maker in makers.items()}
    last: dict[str, float] = {}
    for op in trace.ops:
        for name in map(trace.root, op.reads):
            outside = op.kind != "same" and op.output not in native
            last[name] = math.inf if outside else max(last.get(name, 0), runs[op.output])
    return {**last, trace.root(trace.output): math.inf}
