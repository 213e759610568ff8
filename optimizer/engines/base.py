"""What an engine is: a name and two functions. What it gives back in the end is a runner."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from optimizer.compress import CompressedModel
from optimizer.records import Execution

Array = np.ndarray


@dataclass(frozen=True)
class Runner:
    """A compiled model. ``infer`` is one timed call; ``score`` runs many images as fast as it can.

    Both take float32 ``[N, C, H, W]`` and return logits ``[N, K]``; ``infer`` takes exactly the batch that
    the runner was built for. Both run the same network in the same precision. ``session`` is entered around
    timed calls (thread counts are set and put back there). ``memory_probe`` writes what a fresh process
    needs to load the model into a folder, for :mod:`optimizer.engines.memory`.
    """

    infer: Callable[[Array], Array]
    score: Callable[[Array], Array]
    execution: Execution
    memory_probe: Callable[[str], None] | None = None
    session: Callable[[], AbstractContextManager[object]] = field(default=nullcontext)


Build = Callable[[CompressedModel, Tensor, int, int], Runner]
"""The runner of one compressed model, given calibration images for activation ranges ``[N, C, H, W]``, a
thread count, and the batch of a timed call."""


@dataclass(frozen=True)
class Engine:
    """``problem`` says why the engine can't run here, or None. ``prepare`` does what all recipes of a model
    ``[C, H, W]`` share, once, and returns the function that builds the runner of one of them."""

    name: str
    label: str
    problem: Callable[[], str | None]
    prepare: Callable[[nn.Module, tuple[int, int, int]], Build]
