"""The figures that follow from a complexity run: what a removal does, how time grows with n, what the linear
model predicts, and where skipping zeros breaks even with multiplying them. No torch."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.analysis.rounds import median_interval
from optimizer.analysis.scaling import (
    SKIPPING,
    STACK,
    ComplexityPoint,
    ComplexityRun,
    ExecutionKind,
    LayerWork,
    against_dense,
    check_share,
    kept_count,
    removed_count,
)
from optimizer.analysis.slopes import Fit, fit_power
from optimizer.analysis.statistics import LatencySummary, LatencyVerdict, summarise_latency

if TYPE_CHECKING:
    import pandas as pd

PLACEMENT_CHANGE = 0.035
"""The smallest change that is told of a product of matrices. Where its weights lie in memory shifts its time,
by about 1 % from build to build; a floor of 3.5 % holds false verdicts below 2 in 100."""
FLOOR_FACTOR = 2.0
"""From twice the overhead on, the weights take longer than the call."""
MIN_FIT_POINTS = 3


def frame(run: ComplexityRun, removed: bool = True) -> "pd.DataFrame":
    """One row a point and execution, after the removal or before it.

    ``n``, ``operations`` and ``surviving`` count visits for one input, ``removed_share`` the weights that are
    zero or gone. ``low_ns`` and ``high_ns`` are the median's 95 % interval
    (:func:`optimizer.analysis.rounds.median_interval`), or the range where there are too few rounds for one.
    Times are of a call of ``batch`` inputs.
    """
    import pandas as pd

    return pd.DataFrame(
        [_row(point, execution, removed) for execution in run.executions for point in run.points],
    )


def _row(point: ComplexityPoint, execution: str, removed: bool) -> dict[str, Any]:
    operations = point.operations(execution, removed)
    left = (
        point.surviving if removed and execution in (ExecutionKind.DENSE, ExecutionKind.INT8) else operations
    )
    median, low, high = _median(point, execution, removed)
    return {
        "execution": execution,
        "name": point.name,
        "n": point.n,
        "weights": point.weights,
        "layers": len(point.layers),
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
    return median_interval(point.call_ns(execution, removed).T)


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
    baseline, compressed = (np.sum([each[:, :rounds] for each in group], axis=0) for group in (before, after))
    return summarise_latency(baseline, compressed[0], stolen_share, smallest_change=PLACEMENT_CHANGE)


def effects(run: ComplexityRun) -> dict[str, LatencySummary]:
    """The :func:`effect` on each execution, and on those of other kernels against dense, as
    ``csr against dense``."""
    others = [
        execution
        for execution in run.executions
        if execution not in (ExecutionKind.DENSE, ExecutionKind.ROWS)
    ]
    return {
        **{execution: effect(run, execution) for execution in run.executions},
        **{against_dense(execution): effect(run, execution, ExecutionKind.DENSE) for execution in others},
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


def floor_ns(run: ComplexityRun, execution: str, removed: bool = True) -> float:
    """The overhead of one layer's call: the median time of the smallest stack, whose few weights cost next to
    nothing."""
    return run.points[0].median_ns(execution, removed) / len(run.points[0].layers)


def fits(run: ComplexityRun, removed: bool = True) -> dict[ExecutionKind, Fit]:
    """Each execution's overhead and slope, fitted together to all points.

    An execution with fewer than three points that take more than twice the overhead has no entry: the slope
    would be the overhead's.
    """
    found = {}
    for execution in run.executions:
        clear = _clear(run, execution, removed)
        if len(clear) < MIN_FIT_POINTS or len({point.n for point in clear}) < 2:
            continue
        points = [run.points[0], *(point for point in run.subjects if point is not run.points[0])]
        medians = [_median(point, execution, removed) for point in points]
        found[execution] = fit_power(
            [point.n for point in points],
            [len(point.layers) for point in points],
            [median for median, _, _ in medians],
            [(high - low) / 2 / median for median, low, high in medians],
            _from_n(run, clear),
        )
    return found


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


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the linear model says of the headline's points together; ``ratio`` is to dense, none removed."""

    time_ns: float
    ratio: float


def predicted_effects(run: ComplexityRun, share: float) -> dict[str, Prediction]:
    """What the linear model says for another share removed, by execution; nothing of it is measured.

    Time = overhead + operations x cost of an operation, with each point's own cost as measured at the run's
    share; between that share and none removed, on the line between the two measurements. Raises InputError
    for a share that is not allowed.
    """
    check_share(share)
    points = headline(run)
    dense = sum(point.median_ns(ExecutionKind.DENSE, removed=False) for point in points)
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
        if execution == ExecutionKind.ROWS and layer.kept_columns < layer.columns:
            return layer.rows * kept_count(layer.columns, share)
        if execution == ExecutionKind.ROWS:
            return layer.columns * kept_count(layer.rows, share)
        return layer.weights

    return sum(weights(layer) * layer.pixels for layer in point.layers)


def predicted_break_even(run: ComplexityRun, execution: str = ExecutionKind.CSR) -> float | None:
    """The smallest share, in steps of 0.01, at which the linear model has an execution that skips zeros take
    no longer than dense did; None if there is none."""
    points = headline(run)
    dense = sum(point.median_ns(ExecutionKind.DENSE, removed=False) for point in points)
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
    alike = [one for one in others if _conditions(one) == _conditions(run) and execution in one.executions]
    for one in [*alike, run]:
        points = tuple(point for point in one.subjects if point.name in names)
        verdicts[one.request.removed_share] = _effect(
            points, execution, ExecutionKind.DENSE, one.stolen_share
        ).verdict
    known = [
        (share, verdict)
        for share, verdict in sorted(verdicts.items())
        if verdict in (LatencyVerdict.FASTER, LatencyVerdict.SLOWER)
    ]
    for (low, before), (high, after) in pairwise(known):
        if (before, after) == (LatencyVerdict.SLOWER, LatencyVerdict.FASTER):
            return low, high
    return None


def _conditions(run: ComplexityRun) -> tuple[object, ...]:
    points = [(point.name, point.n) for point in run.subjects]
    return run.schema, run.request.family, run.batch, run.threads, run.environment.key, points


def ten_times(run: ComplexityRun) -> tuple[ComplexityPoint, ComplexityPoint] | None:
    """The headline's largest point (the largest of all if that is too small), and of those with at most half
    its n the one nearest to a tenth, clear of the overhead in dense execution."""
    clear = _clear(run, ExecutionKind.DENSE, removed=True)
    for large in (headline(run)[-1], *clear[-1:]):
        if smaller := [point for point in clear if 2 * point.n <= large.n]:
            return min(smaller, key=lambda point: abs(math.log(10 * point.n / large.n))), large
    return None


def growth_factors(
    run: ComplexityRun, small: ComplexityPoint, large: ComplexityPoint
) -> dict[ExecutionKind, tuple[float, float, float]]:
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
