"""How time grows with the number of weights: what was measured, and the figures that follow.

Inference loops over the layers and, in each, over the weights that remain, so its time is O(n). Here is what
:mod:`optimizer.complexity` measures of that, and every figure that is derived from it. No torch.

In all of it ``n`` counts *visits*: how often one input makes the layers visit a weight when none is removed.
In a stack of linear layers that is the number of weights; a convolution visits each weight once a pixel.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from optimizer import __version__
from optimizer.environment import environment
from optimizer.errors import InputError, unknown
from optimizer.records import Environment, digest
from optimizer.statistics import LatencySummary, median_interval, summarise_latency

SCHEMA = 2
"""Version of the records here and of their JSON for others (:func:`optimizer.conclusions.as_json`)."""

STACK = "stack"
"""The family of stacks of linear layers; any other family is a model's name."""

DENSE, KERNEL, CSR, ROWS, INT8 = EXECUTIONS = ("dense", "sparse kernel", "csr", "rows removed", "int8")
"""Dense multiplies the zeros too; our sparse kernel and torch's CSR skip them; rows removed is a smaller
dense layer; int8 multiplies every weight, in OpenVINO's kernels."""

SKIPPING = (KERNEL, CSR)


def against_dense(execution: str) -> str:
    """The name of an effect whose ratio is to dense before the removal."""
    return f"{execution} against dense"


QUICK_SIZES = tuple(10**k for k in range(1, 8))
SIZES = tuple(sorted({*QUICK_SIZES, *(3 * size for size in QUICK_SIZES[:-1])}))
SMALLEST, LARGEST = SIZES[0], SIZES[-1]
MOST_INPUTS = 1024

STACK_BATCH = 32
"""Each weight that is fetched multiplies 32 columns, so that arithmetic sets the time. With one column the
caches set it, and the line bends wherever n outgrows one; and torch's dense product of a matrix and a vector
runs on one thread while its CSR product takes all."""
MODEL_BATCH = 1
"""A convolution multiplies many columns for one image already: its pixels."""

FLOOR_FACTOR = 2.0
"""From twice the overhead on, the weights take longer than the call."""
LEAST_FIT_POINTS = 3


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
        if self.batch is not None and not 1 <= self.batch <= MOST_INPUTS:
            raise InputError(f"batch {self.batch} is out of range: 1 to {MOST_INPUTS} inputs a call")
        if self.threads < 0:
            raise InputError(f"threads {self.threads} is not allowed: 1 or more, or 0 for every core")
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is not allowed: 0 or more")
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
        return tuple(sorted({SMALLEST, *(self.sizes or (QUICK_SIZES if self.quick else SIZES))}))


def check_share(share: float) -> None:
    """Raises InputError unless ``share`` is from 0 to 0.99."""
    if not 0 <= share <= 0.99:
        raise InputError(
            f"removed share {share:g} is out of range: the share of the weights that goes, "
            "from 0 to 0.99 (0.5 removes half)"
        )


def request_key(request: ComplexityRequest) -> str:
    """Equal for two requests that would give the same on this machine; the key of the run."""
    return digest([SCHEMA, __version__, request, environment().key])


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
            DENSE: self.weights,
            **dict.fromkeys(SKIPPING, self.surviving if removed else self.nonzero),
            INT8: self.weights,
            ROWS: self.kept_rows * self.kept_columns if removed else self.weights,
        }
        if execution not in visited:
            raise unknown("execution", execution, visited)
        return visited[execution] * self.pixels


@dataclass(frozen=True, slots=True)
class Timing:
    """Raw samples ``[K][R]`` in ns, each of ``repeats`` calls in a row.

    Round i of all of a point's timings ran together, in an order shuffled from the request's seed. Before the
    removal (not ``removed``) K is 2, so that the same can be compared with itself; after it K is 1. Rows
    removed is dense before the removal, and timed as that.
    """

    execution: str
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
        return self.operations(DENSE, removed=False)

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def surviving(self) -> int:
        """Visits of weights above the threshold, for one input."""
        return self.operations(CSR, removed=True)

    def operations(self, execution: str, removed: bool) -> int:
        """Visits that an execution makes for one input. Raises InputError for an unknown execution."""
        return sum(layer.operations(execution, removed) for layer in self.layers)

    def call_ns(self, execution: str, removed: bool) -> NDArray[np.float64]:
        """Nanoseconds a call ``[K, R]``. Raises InputError for an execution that wasn't timed."""
        timed = DENSE if execution == ROWS and not removed else execution
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
    def executions(self) -> tuple[str, ...]:
        """Those that were timed at every point: a machine may lack one."""
        timed = [{timing.execution for timing in point.timings} for point in self.points]
        return tuple(execution for execution in EXECUTIONS if all(execution in one for one in timed))

    @property
    def subjects(self) -> tuple[ComplexityPoint, ...]:
        """The points of the family that was asked for."""
        return tuple(point for point in self.points if point.family == self.request.family)


def n_label(run: ComplexityRun) -> str:
    """What n counts in this run, as the label of an axis."""
    return "weights n" if run.request.family == STACK else "weights × output pixels n"


def frame(run: ComplexityRun, removed: bool = True) -> pd.DataFrame:
    """One row a point and execution, after the removal or before it.

    ``n``, ``operations`` and ``surviving`` count visits for one input, ``removed_share`` the weights that are
    zero or gone. ``low_ns`` and ``high_ns`` are the median's 95 % interval by order statistics (rounds taken
    as independent), or the range where there are too few rounds for one. Times are of a call of ``batch``
    inputs.
    """
    return pd.DataFrame(
        [_row(point, execution, removed) for execution in run.executions for point in run.points],
    )


def _row(point: ComplexityPoint, execution: str, removed: bool) -> dict[str, Any]:
    operations = point.operations(execution, removed)
    left = point.surviving if removed and execution in (DENSE, INT8) else operations
    median, low, high = _median(point, execution, removed)
    return {
        "execution": execution,
        "name": point.name,
        "n": point.n,
        "weights": point.weights,
        "operations": operations,
        "surviving": left,
        "removed_share": 1 - left / point.n,
        "median_ns": median,
        "low_ns": low,
        "high_ns": high,
        "rounds": point.call_ns(execution, removed).shape[1],
    }


@lru_cache(maxsize=1024)
def _median(point: ComplexityPoint, execution: str, removed: bool) -> tuple[float, float, float]:
    """The median time of a call and its interval, in ns."""
    return median_interval(point.call_ns(execution, removed).ravel())


def counts(run: ComplexityRun) -> pd.DataFrame:
    """One row a layer: its matrix, its threshold, and the visits that each execution makes for one input."""
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
                "visited before": layer.operations(DENSE, removed=False),
                "above the threshold": layer.surviving * layer.pixels,
                **{execution: layer.operations(execution, removed=True) for execution in run.executions},
            }
            for point in run.points
            for layer in point.layers
        ]
    )


def effect(run: ComplexityRun, execution: str, against: str | None = None) -> LatencySummary:
    """What the removal does to an execution's time at :func:`headline`: its ratio to ``against`` before the
    removal (None: to itself before it), with a block bootstrap interval.

    Raises InputError for an unknown execution.
    """
    return _effect(headline(run), execution, against or execution, run.stolen_share)


@lru_cache(maxsize=256)
def _effect(
    points: tuple[ComplexityPoint, ...], execution: str, against: str, stolen_share: float
) -> LatencySummary:
    """The effect on several points together: their times are added up, round by round."""
    before = [point.call_ns(against, removed=False) for point in points]
    after = [point.call_ns(execution, removed=True) for point in points]
    rounds = min(samples.shape[1] for samples in after)
    baseline, variant = (np.sum([each[:, :rounds] for each in group], axis=0) for group in (before, after))
    return summarise_latency(baseline, variant[0], stolen_share)


def effects(run: ComplexityRun) -> dict[str, LatencySummary]:
    """The :func:`effect` on each execution, and on those of other kernels against dense, as
    ``csr against dense``."""
    others = [execution for execution in run.executions if execution not in (DENSE, ROWS)]
    return {
        **{execution: effect(run, execution) for execution in run.executions},
        **{against_dense(execution): effect(run, execution, DENSE) for execution in others},
    }


def headline(run: ComplexityRun) -> tuple[ComplexityPoint, ...]:
    """What the effect of a removal is read off.

    All layers of a model together; of the stacks the largest at which no comparison is noisy, or the largest
    where all are.
    """
    if run.request.family != STACK:
        return run.subjects
    for point in reversed(_clear_everywhere(run)):
        if not any(_effect((point,), one, one, run.stolen_share).noise for one in run.executions):
            return (point,)
    return run.subjects[-1:]


@dataclass(frozen=True, slots=True)
class Fit:
    """Time above the overhead as a power of n: its exponent with a 95 % interval, from ``points`` points.

    ``floor_ns`` is the overhead of one layer's call. From ``from_n`` on the weights take longer than that.
    """

    slope: float
    low: float
    high: float
    floor_ns: float
    from_n: int
    points: int


def floor_ns(run: ComplexityRun, execution: str, removed: bool = True) -> float:
    """The overhead of one layer's call: the median time of the smallest stack, whose few weights cost next to
    nothing."""
    return run.points[0].median_ns(execution, removed) / len(run.points[0].layers)


def fits(run: ComplexityRun, removed: bool = True) -> dict[str, Fit]:
    """The slope of each execution on log axes, by ordinary least squares.

    Fitted is the time less the overhead of its layers' calls, at the points that take more than twice that
    overhead: below, the slope would be the overhead's. The interval takes the points' scatter around the line
    as independent. An execution with fewer than three such points has no entry.
    """
    fitted = {}
    for execution in run.executions:
        floor = floor_ns(run, execution, removed)
        clear = _clear(run, execution, removed)
        if len(clear) < LEAST_FIT_POINTS or len({point.n for point in clear}) < 2:
            continue
        work = [point.median_ns(execution, removed) - floor * len(point.layers) for point in clear]
        line = stats.linregress(np.log([point.n for point in clear]), np.log(work))
        half = float(stats.t.ppf(0.975, len(clear) - 2) * line.stderr)
        slope = float(line.slope)
        fitted[execution] = Fit(slope, slope - half, slope + half, floor, _from_n(run, clear), len(clear))
    return fitted


def _clear(run: ComplexityRun, execution: str, removed: bool) -> list[ComplexityPoint]:
    """The points of the family that take more than twice their overhead."""
    floor = floor_ns(run, execution, removed)
    return [
        point
        for point in run.subjects
        if point.median_ns(execution, removed) > FLOOR_FACTOR * floor * len(point.layers)
    ]


def _clear_everywhere(run: ComplexityRun) -> list[ComplexityPoint]:
    clear_in = [_clear(run, execution, removed=True) for execution in run.executions]
    return [point for point in run.subjects if all(point in points for points in clear_in)]


def _from_n(run: ComplexityRun, clear: Sequence[ComplexityPoint]) -> int:
    """The smallest n from which on every point is clear of the overhead; of the last clear one if none is."""
    last_below = max((point.n for point in run.subjects if point not in clear), default=0)
    return min((point.n for point in clear if point.n > last_below), default=clear[-1].n)


def predicted(run: ComplexityRun, share: float) -> pd.DataFrame:
    """What the linear model says for another share removed; nothing of it is measured.

    Time = overhead + operations x cost of an operation, with each point's own cost as measured at the run's
    share; between that share and none removed, on the line between the two measurements. Columns:
    ``execution``, ``name``, ``n``, ``operations``, ``predicted_ns``. Raises InputError for another share.
    """
    check_share(share)
    return pd.DataFrame(
        [
            {
                "execution": execution,
                "name": point.name,
                "n": point.n,
                "operations": _operations_at(point, execution, share),
                "predicted_ns": _predicted_ns(run, point, execution, share),
            }
            for execution in run.executions
            for point in run.points
        ]
    )


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the linear model says of the headline's points together; ``ratio`` is to dense, none removed."""

    time_ns: float
    ratio: float


def predicted_effects(run: ComplexityRun, share: float) -> dict[str, Prediction]:
    """:func:`predicted` summed over the headline's points, by execution. Raises InputError as it does."""
    check_share(share)
    points = headline(run)
    dense = sum(point.median_ns(DENSE, removed=False) for point in points)
    times = {
        execution: sum(_predicted_ns(run, point, execution, share) for point in points)
        for execution in run.executions
    }
    return {execution: Prediction(time, time / dense) for execution, time in times.items()}


def _predicted_ns(run: ComplexityRun, point: ComplexityPoint, execution: str, share: float) -> float:
    overhead = floor_ns(run, execution) * len(point.layers)
    operations = [point.operations(execution, removed) for removed in (True, False)]
    times = [point.median_ns(execution, removed) for removed in (True, False)]
    return float(np.interp(_operations_at(point, execution, share), [0, *operations], [overhead, *times]))


def _operations_at(point: ComplexityPoint, execution: str, share: float) -> int:
    def weights(layer: LayerWork) -> int:
        if execution in SKIPPING:
            return min(layer.nonzero, layer.weights - removed_count(layer.weights, share))
        if execution == ROWS and layer.kept_columns < layer.columns:
            return layer.rows * kept_count(layer.columns, share)
        if execution == ROWS:
            return layer.columns * kept_count(layer.rows, share)
        return layer.weights

    return sum(weights(layer) * layer.pixels for layer in point.layers)


def removed_count(weights: int, share: float) -> int:
    """How many of a layer's weights are to go for a share."""
    return round(share * weights)


def kept_count(rows: int, share: float) -> int:
    """How many of a layer's rows stay when a share of them goes: rounded up, so at least one."""
    # (1 - 0.7) * 10 is a little more than 3 in binary: that must not keep a fourth row.
    return math.ceil(round((1 - share) * rows, 9))


def predicted_break_even(run: ComplexityRun, execution: str = CSR) -> float | None:
    """The smallest share, in steps of 0.01, at which :func:`predicted` has an execution that skips zeros take
    no longer than dense did; None if there is none."""
    points = headline(run)
    dense = sum(point.median_ns(DENSE, removed=False) for point in points)
    for share in (step / 100 for step in range(100)):
        if sum(_predicted_ns(run, point, execution, share) for point in points) <= dense:
            return share
    return None


def break_even_bracket(
    run: ComplexityRun, execution: str, others: Iterable[ComplexityRun]
) -> tuple[float, float] | None:
    """Two neighbouring shares, at the lower of which an execution is told slower than dense, at the higher
    faster.

    Read off the headline's points of ``run``, in all runs.
    """
    names = {point.name for point in headline(run)}
    verdicts = {}
    alike = [one for one in others if _setting(one) == _setting(run) and execution in one.executions]
    for one in [*alike, run]:
        points = tuple(point for point in one.subjects if point.name in names)
        verdicts[one.request.removed_share] = _effect(points, execution, DENSE, one.stolen_share).verdict
    told = [
        (share, verdict) for share, verdict in sorted(verdicts.items()) if verdict in ("faster", "slower")
    ]
    for (low, before), (high, after) in pairwise(told):
        if (before, after) == ("slower", "faster"):
            return low, high
    return None


def _setting(run: ComplexityRun) -> tuple[object, ...]:
    points = [(point.name, point.n) for point in run.subjects]
    return run.request.family, run.batch, run.threads, run.environment.key, points


def ten_times(run: ComplexityRun) -> tuple[ComplexityPoint, ComplexityPoint] | None:
    """The headline's largest point (the largest of all if that is too small), and of those with at most half
    its n the one nearest to a tenth, clear of the overhead in dense execution."""
    clear = _clear(run, DENSE, removed=True)
    for large in (headline(run)[-1], *clear[-1:]):
        if smaller := [point for point in clear if 2 * point.n <= large.n]:
            return min(smaller, key=lambda point: abs(math.log(10 * point.n / large.n))), large
    return None


def growth_factors(
    run: ComplexityRun, small: ComplexityPoint, large: ComplexityPoint
) -> dict[str, tuple[float, float, float]]:
    """How many times as long the larger point takes, and the extremes that the two medians' intervals allow,
    by execution; of those that are clear of the overhead at both."""
    return {
        execution: _factor(small, large, execution)
        for execution in run.executions
        if {small.name, large.name} <= {point.name for point in _clear(run, execution, removed=True)}
    }


def _factor(small: ComplexityPoint, large: ComplexityPoint, execution: str) -> tuple[float, float, float]:
    few, few_low, few_high = _median(small, execution, removed=True)
    many, many_low, many_high = _median(large, execution, removed=True)
    return many / few, many_low / few_high, many_high / few_low
