"""The Pareto frontier: of rows of losses (lower is better in every column), and of results.

Ties stay on the frontier; a row with a missing value (NaN) is never on it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from optimizer.analysis.comparison import measurably_better
from optimizer.analysis.metrics import METRICS, metric
from optimizer.analysis.summary import Measure, Summary, quality
from optimizer.errors import InputError

FRONTIER = ("drop", "compressed_size", "latency_ratio")
"""The metrics of the frontier unless others are chosen."""


def pareto_mask(losses: ArrayLike) -> NDArray[np.bool_]:
    """Which rows of ``losses`` ``[N, D]`` no other row dominates, as a boolean ``[N]``.

    A row dominates another when it is nowhere larger and somewhere smaller. O(N log N) in two columns,
    O(N F) for a frontier of F rows in more. Raises InputError when ``losses`` is not two-dimensional.
    """
    rows = _as_rows(losses)
    known = ~np.isnan(rows).any(axis=1)
    # Equal rows share a fate. In lexicographic order only an earlier row can dominate a later one.
    points, of_row = np.unique(rows[known], axis=0, return_inverse=True)
    mask = np.zeros(len(rows), bool)
    mask[known] = _unique_mask(points)[of_row.reshape(-1)]
    return mask


def _as_rows(losses: ArrayLike) -> NDArray[np.float64]:
    rows = np.asarray(losses, float)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"losses of shape {list(rows.shape)}: give one row a result and one column a metric")
    return rows + 0.0  # -0.0 becomes 0.0, so that equal rows are equal bit by bit


def _unique_mask(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The frontier of distinct rows in lexicographic order."""
    mask = np.zeros(len(points), bool)
    if points.shape[1] == 2:
        lowest_before = np.minimum.accumulate(np.concatenate(([np.inf], points[:-1, 1])))
        mask[:] = points[:, 1] < lowest_before
        mask[:1] = True  # even at infinity nothing comes before the first
        return mask
    left = np.arange(len(points))
    while len(left):
        best = left[0]
        mask[best] = True
        left = left[(points[left] < points[best]).any(axis=1)]
    return mask


@dataclass(frozen=True, slots=True)
class Frontier:
    """Which of N results are Pareto-optimal, boolean ``[N]`` each.

    ``tied`` are beaten, though by nothing that is measurably better. ``noisy`` have a time that can't be
    trusted: they neither beat nor join. ``chance`` ``[N]`` is how often each would be Pareto-optimal if
    images and rounds were drawn anew: the best of many points is in part the luckiest.
    """

    optimal: np.ndarray
    tied: np.ndarray
    noisy: np.ndarray
    chance: np.ndarray


def frontier_of(summaries: Sequence[Summary], metrics: Sequence[str] = FRONTIER) -> Frontier:
    """On the frontier no comparable result is at least as good in all of ``metrics`` and better in one.

    Comparable are the same images; for what is measured against the uncompressed model, model and engine; and
    where a metric depends on them, batch, threads and environment. Raises InputError for an unknown metric.
    """
    metrics = [quality(name, summaries) for name in metrics]
    losses = np.array([metric(name).loss(_values(summaries, name)) for name in metrics], float).T
    served = any(METRICS[name].served for name in metrics)
    relative = any(METRICS[name].relative for name in metrics)
    timed = any(METRICS[name].timed for name in metrics)
    noisy = np.array([timed and bool(summary.noise) for summary in summaries], bool)
    groups: dict[object, list[int]] = {}
    for index, summary in enumerate(summaries):
        if noisy[index]:
            continue
        machine = (summary.batch, summary.threads, summary.environment_key) if served else ()
        baseline = (summary.request.model, summary.request.engine) if relative else ()
        images = (summary.request.data, summary.total)  # a folder may have changed
        groups.setdefault((images, machine, baseline), []).append(index)
    optimal, tied = np.zeros(len(summaries), bool), np.zeros(len(summaries), bool)
    chance = np.zeros(len(summaries))
    for members in groups.values():
        optimal[members] = pareto_mask(losses[members])
        chance[members] = chances(tuple(summaries[index] for index in members), tuple(metrics))
        best = [index for index in members if optimal[index]]
        for index in members:
            if not optimal[index] and not np.isnan(losses[index]).any():
                beaten = [one for one in best if (losses[one] <= losses[index]).all()]
                tied[index] = not any(
                    measurably_better(summaries[one], summaries[index], name)
                    for one in beaten
                    for name in metrics
                )
    return Frontier(optimal, tied, noisy, chance)


RESAMPLES = 100
AT_ONCE = 256
"""Results whose images are in memory together."""
INTERVAL_ERRORS = 2 * 1.96
"""Standard errors from one end of a 95 % interval to the other."""


@lru_cache(maxsize=16)
def chances(summaries: tuple[Summary, ...], metrics: tuple[str, ...]) -> np.ndarray:
    """How often each of the comparable results is Pareto-optimal, ``[N]``, when images and rounds are drawn
    anew.

    Images are drawn for all results at once (a bootstrap with Poisson weights), since all have run on the
    same ones. Of any other figure with an interval, a value is drawn that scatters as the interval says; one
    for all results that share a measurement.
    """
    random = np.random.default_rng(0)
    drawn = np.array([_drawn(summaries, name, random) for name in metrics])  # [metric, result, resample]
    return np.asarray(np.mean([pareto_mask(losses) for losses in drawn.transpose(2, 1, 0)], axis=0))


def _drawn(summaries: Sequence[Summary], name: str, random: np.random.Generator) -> np.ndarray:
    """Losses ``[results, resamples]`` of one metric."""
    if name in ("drop", "accuracy"):
        weights = _weights(summaries[0].total).T
        return np.concatenate(
            [
                _changes(summaries[first : first + AT_ONCE]) @ weights
                for first in range(0, len(summaries), AT_ONCE)
            ]
        )
    scatter: dict[Measure, np.ndarray] = {}
    for summary in summaries:
        measure = summary.measures[name]
        if measure not in scatter:
            scatter[measure] = metric(name).loss(_scattered(measure, random))
    return np.array([scatter[summary.measures[name]] for summary in summaries])


def _changes(summaries: Sequence[Summary]) -> np.ndarray:
    """1 for each image that is wrong now and was right, -1 for the reverse, ``[results, images]``."""
    before, after = (
        np.unpackbits(np.array([np.frombuffer(bits, np.uint8) for bits in packed]), axis=1)
        for packed in (
            [summary.baseline_outcomes for summary in summaries],
            [summary.outcomes for summary in summaries],
        )
    )
    return before[:, : summaries[0].total].astype(np.float32) - after[:, : summaries[0].total]


@lru_cache(maxsize=8)
def _weights(images: int) -> np.ndarray:
    """``[resamples, images]``: the share that each image has of a resample."""
    drawn = np.random.default_rng(1).poisson(1.0, (RESAMPLES, images)).astype(np.float32)
    return np.asarray(drawn / np.maximum(drawn.sum(axis=1, keepdims=True), 1))


def _scattered(measure: Measure, random: np.random.Generator) -> np.ndarray:
    value, low, high = measure.value, measure.low, measure.high
    if value is None:
        return np.full(RESAMPLES, math.nan)
    if low is None or high is None:
        return np.full(RESAMPLES, float(value))
    errors = random.standard_normal(RESAMPLES) / INTERVAL_ERRORS
    if low > 0:
        return np.asarray(value * np.exp(errors * math.log(high / low)))
    return np.asarray(value + errors * (high - low))


def _values(summaries: Sequence[Summary], name: str) -> list[float]:
    values = [summary.measures[name].value for summary in summaries]
    return [math.nan if value is None else float(value) for value in values]
