"""How time grows with the number of weights: what is asked and what was measured.

Inference loops over the layers and, in each, over the weights that remain, so its time is O(n).
:mod:`optimizer.measurement.complexity` measures that; the figures that follow are in
:mod:`optimizer.analysis.growth`. No torch.

In all of it ``n`` counts *visits*: how often one input makes the layers visit a weight when none is removed.
In a stack of linear layers that is the number of weights; a convolution visits each weight once a pixel.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from optimizer import __version__
from optimizer.analysis.labels import Labelled
from optimizer.errors import InputError, unknown
from optimizer.model.added.cards import version_of
from optimizer.records import Environment, check_seed, check_threads, digest
from optimizer.system.environment import environment, threads_available

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 4
"""Version of the records here and of their JSON for others (:func:`optimizer.analysis.conclusions.as_json`).
Up to version 2 the two series before the removal were one build, at one place in memory; up to 3 a sample
followed one untimed call."""

STACK = "stack"
"""The family of stacks of linear layers; any other family is a model's name."""


class ExecutionKind(Labelled):
    """Dense multiplies the zeros too; our sparse kernel and torch's CSR skip them; rows removed is a smaller
    dense layer; int8 multiplies every weight, in OpenVINO's kernels."""

    DENSE = "dense"
    SPARSE = "sparse kernel"
    CSR = "csr"
    ROWS = "rows removed"
    INT8 = "int8"


SKIPPING = (ExecutionKind.SPARSE, ExecutionKind.CSR)


def against_dense(execution: str) -> str:
    """The name of an effect whose ratio is to dense before the removal."""
    return f"{execution} against dense"


QUICK_SIZES = tuple(10**k for k in range(1, 8))
STACK_SIZES = tuple(sorted({*QUICK_SIZES, *(3 * size for size in QUICK_SIZES[:-1])}))
SMALLEST, LARGEST = STACK_SIZES[0], STACK_SIZES[-1]
MAX_INPUTS = 1024

STACK_BATCH = 32
"""Each weight that is fetched multiplies 32 columns, so that arithmetic sets the time. With one column the
caches set it, and the line bends wherever n outgrows one; and torch's dense product of a matrix and a vector
runs on one thread while its CSR product takes all."""
MODEL_BATCH = 1
"""A convolution multiplies many columns for one image already: its pixels."""


@dataclass(frozen=True, slots=True)
class ComplexityRequest:
    """What to time: stacks of weights, or the layers of a model (``family`` is its name).

    ``removed_share`` of each layer's weights goes. ``batch`` is the number of inputs in a call (None: 32 for
    stacks, 1 for a model). One thread (the default) shows the work itself; with more, small layers stay on
    one and large ones don't, which is a step in the line; 0 is every core. ``sizes`` are the stacks' numbers
    of weights, 10 to 10,000,000 (empty: all decades); ``quick`` takes fewer of them, and fewer rounds.
    """

    family: str = STACK
    removed_share: float = 0.5
    batch: int | None = None
    threads: int = 1
    sizes: tuple[int, ...] = ()
    quick: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_share(self.removed_share)
        if self.batch is not None and not 1 <= self.batch <= MAX_INPUTS:
            raise InputError(f"batch size {self.batch} is out of range: 1 to {MAX_INPUTS} inputs a call")
        check_threads(self.threads)
        check_seed(self.seed)
        if self.sizes and self.family != STACK:
            raise InputError(
                f"sizes are for the family {STACK!r}: the layers of {self.family} have their own"
            )
        for size in self.sizes:
            if not SMALLEST <= size <= LARGEST:
                raise InputError(f"{size:,} weights are out of range: {SMALLEST} to {LARGEST:,}")

    @property
    def inputs(self) -> int:
        """Inputs in one call."""
        return self.batch or (STACK_BATCH if self.family == STACK else MODEL_BATCH)

    @property
    def stack_sizes(self) -> tuple[int, ...]:
        """Weights of each stack, ascending; the smallest is always among them: it shows the overhead."""
        if self.family != STACK:
            return (SMALLEST,)
        return tuple(sorted({SMALLEST, *(self.sizes or (QUICK_SIZES if self.quick else STACK_SIZES))}))


def check_share(share: float) -> None:
    """Raises InputError unless ``share`` is from 0 to 0.99."""
    if not 0 <= share <= 0.99:
        raise InputError(
            f"removed share {share:g} is out of range: the share of the weights that goes, "
            "from 0 to 0.99 (0.5 removes half)"
        )


def complexity_key(request: ComplexityRequest) -> str:
    """Equal for two requests that would give the same on this machine; the key of the run. Another network
    may have been added under the family's name."""
    added = version_of(request.family) if request.family != STACK else ""
    usual = replace(request, batch=None, sizes=())
    same = replace(
        request,
        batch=None if request.inputs == usual.inputs else request.batch,
        threads=request.threads or threads_available(),
        sizes=() if request.stack_sizes == usual.stack_sizes else request.stack_sizes,
    )
    return digest([SCHEMA, __version__, same, environment().key, *([added] if added else [])])


@dataclass(frozen=True, slots=True)
class LayerWork:
    """One layer as a matrix ``[rows, columns]`` that multiplies ``pixels`` columns an input, and its weights
    counted: ``nonzero`` before the removal, ``surviving`` (``|w| > threshold``) after it, and the
    ``kept_rows`` x ``kept_columns`` that stay when rows are removed instead."""

    name: str
    kind: str
    rows: int
    columns: int
    pixels: int
    threshold: float
    nonzero: int
    surviving: int
    kept_rows: int
    kept_columns: int

    @property
    def weights(self) -> int:
        return self.rows * self.columns

    def operations(self, execution: str, removed: bool) -> int:
        """Weights that ``execution`` visits for one input, each a multiplication and an addition.

        ``removed`` says whether after the removal or before it. Raises InputError for an unknown execution.
        """
        visited = {
            ExecutionKind.DENSE: self.weights,
            **dict.fromkeys(SKIPPING, self.surviving if removed else self.nonzero),
            ExecutionKind.INT8: self.weights,
            ExecutionKind.ROWS: self.kept_rows * self.kept_columns if removed else self.weights,
        }
        if execution not in visited:
            raise unknown("execution", execution, visited)
        return visited[ExecutionKind(execution)] * self.pixels


@dataclass(frozen=True, slots=True)
class Timing:
    """Raw samples ``[K][R]`` in ns, each of ``repeats`` calls in a row.

    Round i of all of a point's timings ran together, in an order shuffled from the request's seed. Before the
    removal (not ``removed``) K is 2, two builds at places of their own in memory, so that the same can be
    compared with itself; after it K is 1. Rows removed is dense before the removal, and timed as that.
    """

    execution: ExecutionKind
    removed: bool
    repeats: int
    samples_ns: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ComplexityPoint:
    """A stack, or one layer of a model, and how long its executions took."""

    name: str
    family: str
    layers: tuple[LayerWork, ...]
    timings: tuple[Timing, ...]

    @property
    def n(self) -> int:
        """Visits for one input when no weight is removed."""
        return self.operations(ExecutionKind.DENSE, removed=False)

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def surviving(self) -> int:
        """Visits of weights above the threshold, for one input."""
        return self.operations(ExecutionKind.CSR, removed=True)

    def operations(self, execution: str, removed: bool) -> int:
        """Visits that an execution makes for one input. Raises InputError for an unknown execution."""
        return sum(layer.operations(execution, removed) for layer in self.layers)

    def call_ns(self, execution: str, removed: bool) -> NDArray[np.float64]:
        """Nanoseconds a call ``[K, R]``. Raises InputError for an execution that wasn't timed."""
        timed = ExecutionKind.DENSE if execution == ExecutionKind.ROWS and not removed else execution
        for timing in self.timings:
            if (timing.execution, timing.removed) == (timed, removed):
                return np.array(timing.samples_ns) / timing.repeats
        raise unknown("execution", execution, dict.fromkeys(timing.execution for timing in self.timings))

    def median_ns(self, execution: str, removed: bool) -> float:
        return float(np.median(self.call_ns(execution, removed)))


@dataclass(frozen=True, slots=True)
class ComplexityRun:
    """What was asked, what ran, and every sample. ``points`` ascend in n and begin with the smallest stack,
    whatever the family; ``skipped`` says which layers of a model were not timed, and why."""

    key: str
    request: ComplexityRequest
    environment: Environment
    created: str
    batch: int
    threads: int
    points: tuple[ComplexityPoint, ...]
    skipped: tuple[str, ...]
    stolen_share: float
    schema: int = SCHEMA

    @property
    def executions(self) -> tuple[ExecutionKind, ...]:
        """Those that were timed at every point: a machine may lack one."""
        timed = [{timing.execution for timing in point.timings} for point in self.points]
        return tuple(execution for execution in ExecutionKind if all(execution in one for one in timed))

    @property
    def subjects(self) -> tuple[ComplexityPoint, ...]:
        """The points of the family that was asked for."""
        return tuple(point for point in self.points if point.family == self.request.family)


def n_is(run: ComplexityRun) -> str:
    """What n counts in this run."""
    return "weights" if run.request.family == STACK else "weights × output pixels"


def n_label(run: ComplexityRun) -> str:
    """The label of an axis of n."""
    return f"{n_is(run)} n"


def counts(run: ComplexityRun) -> "pd.DataFrame":
    """One row a layer: its matrix, its threshold, and the visits that each execution makes for one input."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "point": point.name,
                "layer": layer.name,
                "kind": layer.kind,
                "rows": layer.rows,
                "columns": layer.columns,
                "pixels": layer.pixels,
                "threshold": layer.threshold,
                "visited before": layer.operations(ExecutionKind.DENSE, removed=False),
                "above the threshold": layer.surviving * layer.pixels,
                **{execution: layer.operations(execution, removed=True) for execution in run.executions},
            }
            for point in run.points
            for layer in point.layers
        ]
    )


def removed_count(weights: int, share: float) -> int:
    """How many of a layer's weights are to go for a share."""
    return round(share * weights)


def kept_count(rows: int, share: float) -> int:
    """How many of a layer's rows stay when a share of them goes: rounded up, so at least one."""
    # (1 - 0.7) * 10 is a little more than 3 in binary: that must not keep a fourth row.
    return math.ceil(round((1 - share) * rows, 9))
