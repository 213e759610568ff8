"""A network on the sparse engine's kernels: runs a plan, times its steps, and chooses each layer's kernel."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import map_arg

from optimizer.engine.base import Array
from optimizer.engine.kernels import Kernels, Kind, Step
from optimizer.engine.kernels.matrix import DENSE, Algorithm
from optimizer.engine.kernels.plan import Bring, Call, Choice, Item, KernelPlan, plan
from optimizer.engine.kernels.trace import Trace
from optimizer.records import KernelTime

NOT_CONTIGUOUS: dict[Any, Any] = {torch.ops.aten.view.default: torch.ops.aten.reshape.default}
"""What takes channel-major values in the place of operations that don't."""
COPIES = (Kind.COPY, Kind.PHASES)
REPEATS = 5
"""Runs of the network for each algorithm that a layer may use; the shortest counts."""
FINALISTS = 3
"""Algorithms of a layer that are timed a second time."""
SCORED_DENSE = 0.45
"""Share of its weights from which on a layer is scored by the dense path: about where that is the faster."""


@dataclass(frozen=True)
class Native:
    """Steps that follow each other, as the library takes them."""

    steps: Any  # a ctypes array of Step
    items: tuple[Item, ...]


@dataclass(frozen=True)
class InTorch:
    """One operation of torch's."""

    run: Callable[[], None]
    item: Item


class Network:
    """A network for one batch, ready to run. What it reads and writes is its own: one call at a time."""

    def __init__(
        self,
        found: Trace,
        parameters: Mapping[str, Tensor],
        library: Kernels,
        threads: int,
        taken: Mapping[str, Algorithm] | None = None,
    ) -> None:
        """``taken``: each layer's algorithm by an item's name; without, the fastest is found. The others'
        weights don't stay in memory."""
        self.found, self.parameters, self.library, self.threads = found, parameters, library, threads
        if taken is None:
            taken = fastest(plan(found, parameters, library), found, library, threads)
        self.plan = plan(found, parameters, library, taken)
        self.computed: dict[str, Any] = {}  # the input, and what torch made
        self.waiting: list[Step] = []  # for the address of the input
        self.actions = self.build_actions()
        name = found.root(found.output)
        value = self.plan.values.get(name)
        self.logits = value.tensor().reshape(found.shapes[found.output]).numpy() if value else None
        self.uses_torch = any(isinstance(action, InTorch) for action in self.actions)

    def infer(self, images: Array) -> Array:
        """``images`` ``[N, C, H, W]`` float32 to logits ``[N, K]``."""
        with torch.inference_mode() if self.uses_torch else nullcontext():
            self._point_to(images)
            for action in self.actions:
                if isinstance(action, Native):
                    self.library.functions.run(action.steps, len(action.steps), self.threads)
                else:
                    action.run()
            return self._logits()

    def profile(self, images: Array, calls: int) -> tuple[KernelTime, ...]:
        """The median time of each step over ``calls`` calls."""
        taken: dict[int, list[int]] = {}
        self._point_to(images)
        for _ in range(calls):
            for action in self.actions:
                if isinstance(action, Native):
                    spent = self.library.time(action.steps, self.threads, 1)
                    for item, nanoseconds in zip(action.items, spent, strict=True):
                        taken.setdefault(id(item), []).append(nanoseconds)
                else:
                    begun = time.perf_counter_ns()
                    action.run()
                    taken.setdefault(id(action.item), []).append(time.perf_counter_ns() - begun)
        return tuple(self._row(item, round(np.median(taken[id(item)]))) for item in self.plan.items)

    def kernel(self, item: Item) -> str:
        """What runs an item. Sparse kernels name their work: two of one name take the same time."""
        name = self.library.name
        if isinstance(item.work, Step):
            return f"{name} {Kind(item.work.kind).name.lower().replace('_', ' ')}"
        if not isinstance(item.work, Choice):
            return "torch"
        if not skips_zeros(item):
            return f"{name} dense"
        return f"{name} sparse, {item.work.kept:,} of {item.work.total:,} weights"

    @property
    def share(self) -> float:
        """Of the weights of layers with a choice, those that are multiplied: neither zero, nor of a channel
        that nothing reads."""
        choices = [item.work for item in self.plan.items if isinstance(item.work, Choice)]
        return sum(choice.kept for choice in choices) / max(1, sum(choice.total for choice in choices))

    @property
    def kernels(self) -> dict[str, tuple[str, bool]]:
        """For each weight, by its path, what runs it, and whether that skips zeros."""
        found: dict[str, tuple[str, bool]] = {}
        for item in self.plan.items:
            found |= dict.fromkeys(item.weights, (self.kernel(item), skips_zeros(item)))
            found |= dict.fromkeys(item.weights[1:2], (f"{self.library.name} depthwise, fused", False))
        return found

    def _row(self, item: Item, nanoseconds: int) -> KernelTime:
        kernel = self.kernel(item)
        if item.weights:
            return KernelTime.of_layers(item.weights, "f32", kernel, nanoseconds, skips_zeros(item))
        copies = isinstance(item.work, Bring) or (isinstance(item.work, Step) and item.work.kind in COPIES)
        return KernelTime(item.name, "conversion" if copies else "other", "f32", kernel, (nanoseconds,))

    def _point_to(self, images: Array) -> None:
        self.images = np.ascontiguousarray(images, np.float32)  # kept: the steps read it
        for step in self.waiting:
            step.input = self.images.ctypes.data
        if self.uses_torch:
            self.computed[self.found.input] = torch.from_numpy(self.images)

    def _logits(self) -> Array:
        if self.logits is not None:
            return self.logits.copy()
        logits: Tensor = self._value(self.found.output)
        return logits.numpy().copy()  # it may be a view of memory that the next call writes to

    def build_actions(self) -> list[Native | InTorch]:
        actions: list[Native | InTorch] = []
        from_input = {id(step) for step in self.plan.from_input}
        for native, group in groupby(self.plan.items, lambda item: isinstance(item.work, (Step, Choice))):
            if not native:
                actions += [InTorch(self._torch(item), item) for item in group]
                continue
            items = tuple(group)
            steps = [step_of(item) for item in items]
            array = (Step * len(steps))(*steps)
            self.waiting += [array[index] for index, step in enumerate(steps) if id(step) in from_input]
            actions.append(Native(array, items))
        return actions

    def _value(self, name: str) -> Any:
        """A constant, or a value of the network as torch sees it."""
        if name in self.found.constants:
            where = self.found.constants[name]
            return self.parameters[where] if isinstance(where, str) else where
        root = self.found.root(name)
        value = self.computed[root] if root in self.computed else self.plan.values[root].tensor()
        return value if root == name else value.reshape(self.found.shapes[name])

    def _torch(self, item: Item) -> Callable[[], None]:
        if isinstance(item.work, Bring):
            name, target = item.work.name, item.work.value.tensor()

            def load() -> None:
                target.copy_(self._value(name))

            return load
        assert isinstance(item.work, Call)
        op = item.work.op
        function: Any = NOT_CONTIGUOUS.get(op.node.target, op.node.target)

        def call() -> None:
            arguments, named = map_arg((op.node.args, op.node.kwargs), lambda node: self._value(node.name))
            result = function(*arguments, **named)
            if op.added and op.kind != "add":
                result = result + self._value(op.added)
            if op.low > -math.inf or op.high < math.inf:
                result = result.clamp(op.low, op.high)
            self.computed[op.output] = result

        return call


def skips_zeros(item: Item) -> bool:
    """Whether an item is computed by kernels that do: a layer whose algorithm is not the dense one."""
    return isinstance(item.work, Choice) and DENSE not in item.work.algorithms


def step_of(item: Item, algorithm: Algorithm | None = None) -> Step:
    """An item's step; of a choice that of this algorithm, or the only one."""
    if isinstance(item.work, Step):
        return item.work
    assert isinstance(item.work, Choice)
    return item.work.algorithms[algorithm or next(iter(item.work.algorithms))]


def fastest(planned: KernelPlan, found: Trace, library: Kernels, threads: int) -> dict[str, Algorithm]:
    """The algorithm that each choice, by its item's name, is fastest with: all are timed, the best again.

    Values mean nothing here: sums in place grow with each run."""
    native = [item for item in planned.items if isinstance(item.work, (Step, Choice))]
    left = {item.name: list(item.work.algorithms) for item in native if isinstance(item.work, Choice)}
    taken: dict[str, dict[Algorithm, int]] = {name: {} for name in left}
    images = np.zeros(found.shapes[found.input], np.float32)
    for step in planned.from_input:
        step.input = images.ctypes.data
    while any(len(algorithms) > 1 for algorithms in left.values()):
        for number in range(max(map(len, left.values()))):
            now = {name: algorithms[min(number, len(algorithms) - 1)] for name, algorithms in left.items()}
            steps = [step_of(item, now.get(item.name)) for item in native]
            for item, nanoseconds in zip(native, library.time(steps, threads, REPEATS), strict=True):
                if item.name in now:
                    algorithm = now[item.name]
                    taken[item.name][algorithm] = min(
                        nanoseconds, taken[item.name].get(algorithm, nanoseconds)
                    )
        kept = FINALISTS if any(len(algorithms) > FINALISTS for algorithms in left.values()) else 1
        left = {
            name: sorted(algorithms, key=taken[name].__getitem__)[:kept] for name, algorithms in left.items()
        }
    return {name: algorithms[0] for name, algorithms in left.items()}


def fixed(planned: KernelPlan) -> dict[str, Algorithm]:
    """The algorithm of each choice, by its item's name, for scoring: by its weights alone, and no timing.
    They add up in different orders, so those that happened to be fastest would give other answers each
    time."""
    return {item.name: _fixed(item.work) for item in planned.items if isinstance(item.work, Choice)}


def _fixed(choice: Choice) -> Algorithm:
    dense = DENSE in choice.algorithms and choice.kept >= SCORED_DENSE * choice.total
    return (
        DENSE if dense else next((algorithm for algorithm in choice.algorithms if algorithm != DENSE), DENSE)
    )
