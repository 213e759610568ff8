"""What an engine is: two functions. What it gives back in the end is a runner."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from optimizer.errors import UnavailableError, words_of
from optimizer.records import Execution, KernelTime, LayerExecution

if TYPE_CHECKING:  # importing torch takes a second or more, and what only loads a graph needs none
    from torch import Tensor, nn

    from optimizer.compression.apply import CompressedModel

Array = np.ndarray


@dataclass(frozen=True)
class Service:
    """A network compiled for a batch size, a number of threads and of streams (requests at once).

    ``run`` answers ``requests`` requests for the same images ``[batch, C, H, W]``, as many at once as there
    are streams, and gives the nanoseconds at which each began and ended ``[requests, 2]``. ``session`` is
    entered around it.
    """

    run: Callable[[Array, int], Array]
    session: Callable[[], AbstractContextManager[object]] = field(default=nullcontext)


def one_by_one(infer: Callable[[Array], Array]) -> Callable[[Array, int], Array]:
    """The ``run`` of a :class:`Service` with one stream."""

    def run(images: Array, requests: int) -> Array:
        times = np.empty((requests, 2), np.int64)
        for number in range(requests):
            times[number, 0] = time.perf_counter_ns()
            infer(images)
            times[number, 1] = time.perf_counter_ns()
        return times

    return run


def in_batches(infer: Callable[[Array], Array], images: Array, batch: int) -> Array:
    """Any number of images by a function that takes ``batch`` at a time: the last ones are filled up."""
    chunks = (images[start : start + batch] for start in range(0, len(images), batch))
    return np.concatenate([infer(filled(chunk, batch))[: len(chunk)] for chunk in chunks])


def filled(images: Array, batch: int) -> Array:
    """So many images: where there are too few, the last one again."""
    missing = batch - len(images)
    return np.concatenate([images, np.repeat(images[-1:], missing, 0)]) if missing else images


def scoring_batch(shape: Sequence[int], elements: int = 320_000, most: int = 50) -> int:
    """Images ``[C, H, W]`` to score at once: about so many input values, which stay in the cache (two
    photographs, fifty thumbnails). Larger batches score slower."""
    return min(most, max(1, elements // math.prod(shape)))


Load = Callable[[Path, int, tuple[int, ...]], Callable[[Array], Array]]
"""From a folder's files, a thread count and the shape of images ``[N, C, H, W]`` to what ``infer`` of a
runner is."""

Loader = Callable[[], Load]
"""Imports what an engine needs. Defined at the top of its module: a fresh process finds it by name."""


def save_for_process(runner: "Runner", folder: Path) -> str | None:
    """Write what a fresh process needs to load the model into ``folder``; the name of what loads it there
    (for :func:`optimizer.methods.entries.load`). None where the engine has no loader.

    Raises UnavailableError for a network that can't be written, such as one of a class within a function.
    """
    if runner.memory_probe is None or runner.loader is None:
        return None
    folder.mkdir(exist_ok=True)
    try:
        runner.memory_probe(str(folder))
    except Exception as error:  # a user's own module is pickled, which may refuse in ways of its own
        raise UnavailableError(f"no other process can load this network: {words_of(error)}") from error
    return f"{runner.loader.__module__}:{runner.loader.__qualname__}"


class Serve(Protocol):
    """Compiles a network for one way of serving it, anew each time."""

    def __call__(self, *, batch: int, threads: int, streams: int) -> Service: ...


@dataclass(frozen=True)
class Runner:
    """A compiled model. ``infer`` is one timed call; ``score`` runs many images as fast as it can.

    Both take float32 ``[N, C, H, W]`` and return logits ``[N, K]``; ``infer`` takes exactly the batch that
    the runner was built for. Both run the same graph with the same weights. ``score`` may have it compiled
    for another batch; its kernels never depend on a timing, so that the same recipe gives the same answers.
    ``session`` is entered around timed calls (thread counts are set and put back there). ``memory_probe``
    writes what a fresh process needs to load the model into a folder, and ``loader`` does so there: memory,
    cold start and latency in full are measured in such processes. ``loads_slowly``: that takes minutes.

    ``executed`` reads off what ``infer`` runs, at its batch and threads. ``scored`` reads the same off what
    ``score`` runs. None: each layer runs in the same precision there, whatever the batch. An engine may put
    off what a timed call alone needs (compiling, choosing kernels) until ``executed`` or ``infer`` is called:
    accuracy is known sooner. :meth:`ready` has it done, and comes before anything is timed.

    ``profile`` times each operation over so many calls, with the engine's own profiler and in a network
    compiled apart, so that the timed one is not slowed; each row has one sample. ``serve`` compiles the
    network for a batch, threads and streams, anew each time. None: the engine has no such thing.
    """

    infer: Callable[[Array], Array]
    score: Callable[[Array], Array]
    executed: Callable[[], Execution]
    memory_probe: Callable[[str], None] | None = None
    loader: Loader | None = None
    loads_slowly: bool = False
    session: Callable[[], AbstractContextManager[object]] = field(default=nullcontext)
    profile: Callable[[Array, int], tuple[KernelTime, ...]] | None = None
    serve: Serve | None = None
    scored: Callable[[], tuple[LayerExecution, ...]] | None = None

    @cached_property
    def execution(self) -> Execution:
        """What really runs in a timed call."""
        return self.executed()

    def ready(self) -> "Runner":
        """Itself, with all made that a timed call needs."""
        _ = self.execution
        return self

    @property
    def scored_otherwise(self) -> tuple[str, ...]:
        """Layers that ``score`` runs in another precision than ``infer``, by name."""
        timed = {layer.name: layer.precisions for layer in self.execution.layers}
        scored = self.scored() if self.scored else ()
        return tuple(layer.name for layer in scored if layer.precisions != timed.get(layer.name))


class Build(Protocol):
    """The runner of one compressed model, given calibration images for activation ranges ``[N, C, H, W]`` (a
    single one where its recipe does not round activations), the threads of a call, and the images of a timed
    one."""

    def __call__(
        self, compressed: "CompressedModel", calibration: "Tensor", *, threads: int, batch: int
    ) -> Runner: ...


@dataclass(frozen=True)
class Engine:
    """``problem`` says why the engine can't run here, or None. ``prepare`` does what all recipes of a model
    ``[C, H, W]`` share, once, and returns the function that builds the runner of one of them. ``lacking``
    says why something else takes the place of its kernels here, or None."""

    problem: Callable[[], str | None]
    prepare: "Callable[[nn.Module, tuple[int, ...]], Build]"
    lacking: Callable[[], str | None] = lambda: None
