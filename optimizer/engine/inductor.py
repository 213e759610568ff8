"""What torch's profiler tells of a network that inductor compiled with marks around its kernels."""

import re
import timeit
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from optimizer.model.layers import uses
from optimizer.records import KernelTime

GRAPH = "## Call CompiledFxGraph"
KERNEL = re.compile(r"graph_\d+_cpp_fused_(.+)_\d+")
"""A kernel of inductor's own: the graph's number, what it does, and its number."""
OWN = "inductor "
WEIGHTS = {"aten::convolution": 1, "aten::addmm": 2, "aten::mm": 1, "aten::bmm": 1}
"""Operations that inductor leaves to torch, and which of their arguments is the weight."""


def profile(
    call: Callable[[], object], module: nn.Module, precision: str, calls: int
) -> tuple[KernelTime, ...]:
    """Each kernel's median time over so many calls, in the order in which they ran; layers by name.

    Inductor writes a kernel for what stands between layers; layers it leaves to torch's operations, which are
    told apart by the shapes of their weights. The smallest may become part of a kernel, and have no row.
    """
    # By itself: the profiler takes time between operations.
    whole = timeit.repeat(call, number=1, repeat=calls)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as profiled:
        for _ in range(calls):
            call()
    ran = [list(_kernels(event)) for event in profiled.events() or () if event.name.startswith(GRAPH)]
    layers, rows = _by_shape(module), []
    for samples in zip(*ran, strict=True):
        layer = _layer(samples[0], layers)
        taken = round(1e3 * np.median([event.cpu_time_total for event in samples]))
        kernel = _busiest(samples)
        rows.append(
            KernelTime.of_layers([layer], precision, kernel, taken)
            if layer
            else KernelTime(kernel.removeprefix(OWN), "other", precision, kernel, (taken,))
        )
    rest = round(1e9 * np.median(whole)) - sum(row.times_ns[0] for row in rows)
    return (*rows, KernelTime.between_operations(rest))


def _kernels(graph: Any) -> Iterator[Any]:
    """The operations of one call of a graph, in order."""
    for event in sorted(graph.cpu_children, key=lambda event: event.time_range.start):
        if KERNEL.match(event.name) or event.name in WEIGHTS:
            yield event


def _by_shape(module: nn.Module) -> dict[tuple[int, ...], deque[str]]:
    names: dict[tuple[int, ...], deque[str]] = defaultdict(deque)
    for layer in uses(module):
        names[tuple(layer.weight.shape)].append(layer.name)
    return names


def _layer(event: Any, layers: dict[tuple[int, ...], deque[str]]) -> str | None:
    """The next layer with a weight of that shape, which a matrix product takes transposed."""
    if event.name not in WEIGHTS:
        return None
    shape = tuple(event.input_shapes[WEIGHTS[event.name]])
    waiting = layers.get(shape if event.name == "aten::convolution" else shape[::-1])
    return waiting.popleft() if waiting else None


def _busiest(samples: Sequence[Any]) -> str:
    """The operation inside of an operation that takes longest by itself, over all calls."""
    taken: Counter[str] = Counter()
    waiting = list(samples)
    while waiting:
        event = waiting.pop()
        taken[event.name] += event.self_cpu_time_total
        waiting += event.cpu_children
    return KERNEL.sub(rf"{OWN}\1", taken.most_common(1)[0][0])
