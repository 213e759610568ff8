"""The Pareto frontier: of rows of losses (lower is better in every column), and of results.

Ties stay on the frontier; a row with a missing value (NaN) is never on it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from optimizer.analysis.comparison import PAIRED, baselines_of, image_files, measurably_better
from optimizer.analysis.measures import Measure
from optimizer.analysis.metrics import METRICS, metric
from optimizer.analysis.summary import Summary, label_of, quality
from optimizer.errors import InputError

FRONTIER = ("drop", "compressed_size", "latency_ratio")
"""The metrics of the frontier unless others are chosen."""
UNTIMED = ("drop", "compressed_size")
"""Those of results whose times are all noisy."""


def pareto_mask(losses: ArrayLike) -> NDArray[np.bool_]:
    """Which rows of ``losses`` ``[N, D]`` no other row dominates, as a boolean ``[N]``.

    A row dominates another when it is nowhere larger and somewhere smaller. O(N log N) in two columns,
    O(N F) for a frontier of F rows in more. Raises InputError when ``losses`` is not two-dimensional.
    """
    rows = _as_rows(losses)
    known = ~np.isnan(rows).any(axis=1)
    # Equal rows share a fate. In lexicographic order only an earlier row can dominate a later one.
    order = np.flatnonzero(known)[np.lexsort(rows[known].T[::-1])]
    points = rows[order]
    distinct = np.ones(len(points), bool)
    distinct[1:] = np.any(points[1:] != points[:-1], axis=1)
    mask = np.zeros(len(rows), bool)
    mask[order] = _unique_mask(points[distinct])[np.cumsum(distinct) - 1]
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
        first, left = left[:TOGETHER], left[TOGETHER:]
        first = first[_not_larger(points[first], points[first]).sum(axis=0) == 1]  # none but itself
        # All of these come later, so that the first column needs no look.
        left = left[~_not_larger(points[first, 1:], points[left, 1:]).any(axis=0)]
        mask[first] = True
    return mask


TOGETHER = 64
"""Rows that are compared with all others at once."""


def _not_larger(some: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of ``some`` ``[M, D]`` are nowhere larger than which of ``rows`` ``[N, D]``, as ``[M, N]``."""
    found = np.ones((len(some), len(rows)), bool)
    for column, its in zip(some.T, rows.T, strict=True):
        found &= column[:, None] <= its
    return found


@dataclass(frozen=True, slots=True)
class Frontier:
    """Which of N results are Pareto-optimal, boolean ``[N]`` each.

    ``tied`` are beaten, though by nothing that is measurably better. What has a time that can't be trusted
    neither beats nor joins. Those of one ``group`` (integers) are ranked with each other.
    """

    optimal: np.ndarray
    tied: np.ndarray
    group: np.ndarray


def ranked_by(summaries: Sequence[Summary]) -> tuple[str, ...]:
    """The metrics of the frontier of comparable results, unless others are chosen: without the time where
    that of every one is noisy."""
    return UNTIMED if all(one.noise for one in summaries) else FRONTIER


def ranked_words(summaries: Sequence[Summary]) -> str:
    """By what results are ranked: ``accuracy lost, zstd size and latency ratio``."""
    lost, size, ratio = (label_of(name, summaries) for name in FRONTIER)
    by = {names == UNTIMED for _, names in _ranked(summaries, None)}
    if by == {True}:
        return f"{lost} and {size}, as every latency is noisy"
    where = "; by the first two where every latency is noisy" if True in by else ""
    return f"{lost}, {size} and {ratio}{where}"


def frontier_of(summaries: Sequence[Summary], metrics: Sequence[str] | None = None) -> Frontier:
    """On the frontier no comparable result is at least as good in all of ``metrics`` (by default
    :func:`ranked_by`) and better in one.

    Comparable are the same images; for what is measured against the uncompressed model, model and engine; and
    where a metric depends on them, batch, threads and environment. Raises InputError for an unknown metric.
    """
    optimal, tied = np.zeros(len(summaries), bool), np.zeros(len(summaries), bool)
    group = np.full(len(summaries), -1)
    for number, (members, names) in enumerate(_ranked(summaries, metrics)):
        some = [summaries[index] for index in members]
        losses = np.array([metric(name).loss(values_of(some, name)) for name in names], float).T
        quickly_told = sorted(names, key=PAIRED.__contains__)
        best = pareto_mask(losses)
        group[members], optimal[members] = number, best
        first = np.flatnonzero(best)
        for place, index in enumerate(members):
            if not best[place] and not np.isnan(losses[place]).any():
                beating = first[(losses[first] <= losses[place]).all(axis=1)]
                tied[index] = not (
                    any(
                        measurably_better(some[one], some[place], name)
                        for name in quickly_told  # what is paired image by image takes longest
                        for one in beating
                    )
                    or _beaten_off_the_frontier(some, losses, place, quickly_told)
                )
    return Frontier(optimal, tied, group)


def _beaten_off_the_frontier(
    some: Sequence[Summary], losses: NDArray[np.float64], place: int, names: Sequence[str]
) -> bool:
    """Whether one that is better in all is so measurably, though none on the frontier is: that one's interval
    may be wide. What is paired image by image takes long: there only results on the frontier are asked."""
    beating = (losses <= losses[place]).all(axis=1) & (losses < losses[place]).any(axis=1)
    return any(
        measurably_better(some[one], some[place], name)
        for name in names
        if name not in PAIRED
        for one in np.flatnonzero(beating).tolist()
    )


def _ranked(
    summaries: Sequence[Summary], metrics: Sequence[str] | None
) -> list[tuple[list[int], tuple[str, ...]]]:
    """Indices of those that are ranked with each other, and by what. Noisy ones are left out of times."""
    asked = FRONTIER if metrics is None else tuple(metrics)
    found = []
    for members in _comparable(summaries, asked):
        names = ranked_by([summaries[index] for index in members]) if metrics is None else asked
        if any(METRICS[name].timed for name in names):
            members = [index for index in members if not summaries[index].noise]
        if members:
            found.append((members, tuple(quality(name, summaries) for name in names)))
    return found


def _comparable(summaries: Sequence[Summary], metrics: Sequence[str]) -> list[list[int]]:
    """Indices of those that can be ranked with each other."""
    kinds = [metric(name) for name in metrics]
    served, relative = any(one.served for one in kinds), any(one.relative for one in kinds)
    files, baselines = image_files(summaries), baselines_of(summaries)
    groups: dict[object, list[int]] = {}
    for index, summary in enumerate(summaries):
        machine = (summary.batch, summary.threads, summary.environment_key) if served else ()
        # Another network may have had the name before, and a folder may have changed.
        baseline = baselines[index] if relative else ()
        images = (summary.request.data, summary.total, files[index])
        groups.setdefault((images, machine, baseline), []).append(index)
    return [*groups.values()]


@dataclass(frozen=True, slots=True)
class JointFrontier:
    """How many results are on the frontier of two sets together: of ``first`` alone, of ``second`` alone, of
    both."""

    first: int
    second: int
    both: int


def joint_frontier(
    first: Sequence[Summary], second: Sequence[Summary], metrics: Sequence[str] = FRONTIER
) -> JointFrontier | None:
    """The two sets on one frontier, as far as results of both are comparable; None where none are. Raises
    InputError for an unknown metric."""
    every = {one.key: one for one in (*first, *second)}
    found = frontier_of([*every.values()], metrics)
    group = dict(zip(every, found.group.tolist(), strict=True))
    shared = {group[one.key] for one in first} & {group[one.key] for one in second} - {-1}
    optimal = {key for key, on in zip(every, found.optimal, strict=True) if on and group[key] in shared}
    one, other = ({summary.key for summary in some} & optimal for some in (first, second))
    return JointFrontier(len(one - other), len(other - one), len(one & other)) if shared else None


RESAMPLES = 100
FAR = 7.0
"""Standard errors that no resample makes up for: one in 10^11 would."""
AT_ONCE = 256
"""Results whose images are in memory together."""
INTERVAL_ERRORS = 2 * 1.96
"""Standard errors from one end of a 95 % interval to the other."""


def chances(summaries: Sequence[Summary], metrics: Sequence[str] | None = None) -> np.ndarray:
    """How often each result would be Pareto-optimal, ``[N]``, if images and rounds were drawn anew: the best
    of many points is in part the luckiest. Raises InputError for an unknown metric.

    That is the chance that it is on the true frontier as far as nothing is known but the measurements (a flat
    prior): of simulated results that lie anywhere, half of those with chances near 0.5 are. It is less than
    that chance on a smooth curve, where 70 of 100 are, since neighbours confirm each other, which no chance
    here counts; and of results that differ by less than their errors it says which were lucky, not which are
    on the frontier: those are :attr:`Frontier.tied`.
    """
    found = np.zeros(len(summaries))
    for members, names in _ranked(summaries, metrics):
        found[members] = _chances(tuple(summaries[index] for index in members), names)
    return found


@lru_cache(maxsize=16)
def _chances(summaries: tuple[Summary, ...], metrics: tuple[str, ...]) -> np.ndarray:
    """Of comparable results.

    Images are drawn for all of them at once (a bootstrap with Poisson weights), since all have run on the
    same ones. Of any other figure with an interval, a value is drawn that scatters as the interval says; one
    for all results that share a measurement.
    """
    random = np.random.default_rng(0)
    unpaired = [_drawn(summaries, name, random) for name in metrics if name not in PAIRED]
    drawn = np.array(unpaired).reshape(-1, len(summaries), RESAMPLES)  # [metric, result, resample]
    left = np.flatnonzero(~np.isnan(drawn).any(axis=(0, 2)))
    if len(unpaired) < len(metrics):  # what is right and what is lost differ by the same for all results
        left = left[[not summaries[index].fidelity for index in left]]
        left = left[~_far_behind([summaries[index] for index in left], drawn[:, left])]
        right = _right_images([summaries[index] for index in left])
        drawn = np.concatenate([drawn[:, left], -right[None]])
    else:
        drawn = drawn[:, left]
    found, hopeful = np.zeros(len(summaries)), _sometimes_best(drawn)
    found[left[hopeful]] = optimal_in_each(drawn[:, hopeful]).mean(axis=1)
    return found


def _far_behind(summaries: Sequence[Summary], others: np.ndarray) -> np.ndarray:
    """Which results another one beats in every resample, by what is known without drawing images: it is
    nowhere larger in ``others`` ``[metrics, results, resamples]``, and its lead in right images is FAR
    standard errors, if as many of them have flipped as may have."""
    right = np.array([summary.correct for summary in summaries])
    behind = np.zeros(len(summaries), bool)
    for one in np.flatnonzero(pareto_mask(np.column_stack([*others.mean(axis=2), -right]))).tolist():
        lead = right[one] - right
        flips = lead + 2 * np.minimum(summaries[one].total - right[one], right)
        ahead = np.flatnonzero(lead > FAR * np.sqrt(np.maximum(flips, 0)))
        behind[ahead] |= (others[:, one, None] <= others[:, ahead]).all(axis=(0, 2))
    return behind


def optimal_in_each(losses: np.ndarray) -> np.ndarray:
    """Of losses ``[metrics, results, resamples]`` the frontier of every resample, as a boolean ``[results,
    resamples]``."""
    ranks = _ranks(losses)  # are compared sooner
    beaten = np.zeros(ranks.shape[1:], bool)
    best_first = ranks.sum(axis=(0, 2), dtype=int).argsort()  # what they beat beats no more than they
    for index in best_first:
        if not beaten[index].all():
            one = ranks[:, index, None]
            beaten |= (one <= ranks).all(axis=0) & (one < ranks).any(axis=0)
    return ~beaten


def _ranks(losses: np.ndarray) -> np.ndarray:
    """Of each column ``[:, results, :]`` how many smaller values there are in it, equal ones counted once.
    (SciPy's ``rankdata`` does this too, and takes half a second to import.)"""
    order = losses.argsort(axis=1)
    rising = np.take_along_axis(losses, order, axis=1)
    ranks, steps = np.zeros_like(order), np.zeros_like(order)
    steps[:, 1:] = rising[:, :-1] < rising[:, 1:]
    np.put_along_axis(ranks, order, steps.cumsum(axis=1), axis=1)
    return ranks.astype(np.min_scalar_type(losses.shape[1]))


def _sometimes_best(drawn: np.ndarray) -> np.ndarray:
    """Of losses ``[metrics, results, resamples]`` the indices of results that no one other dominates in every
    resample: those that one does are never on the frontier, nor keep others off it."""
    left = np.arange(drawn.shape[1])
    for one in np.flatnonzero(pareto_mask(drawn.mean(axis=2).T)):
        best = drawn[:, one, None]
        worse = np.flatnonzero((best[:, :, 0] <= drawn[:, left, 0]).all(axis=0))  # a look at the first alone
        others = drawn[:, left[worse]]
        in_each = (best <= others).all(axis=0) & (best < others).any(axis=0)  # [results, resamples]
        beaten = np.all(in_each, axis=1)
        left = np.delete(left, worse[beaten])
    return left


def _drawn(summaries: Sequence[Summary], name: str, random: np.random.Generator) -> np.ndarray:
    """Losses ``[results, resamples]`` of a metric that is not of images."""
    scatter: dict[Measure, np.ndarray] = {}
    for summary in summaries:
        measure = summary.ranked(name)
        if measure not in scatter:
            scatter[measure] = metric(name).loss(_scattered(measure, random))
    return np.array([scatter[summary.ranked(name)] for summary in summaries])


def _right_images(summaries: Sequence[Summary]) -> np.ndarray:
    """How many images of each resample are right, ``[results, resamples]``."""
    found = np.zeros((len(summaries), RESAMPLES), np.float32)
    for first in range(0, len(summaries), AT_ONCE):
        some = summaries[first : first + AT_ONCE]
        found[first : first + AT_ONCE] = _outcomes(some) @ _weights(some[0].total).T
    return found


def _outcomes(summaries: Sequence[Summary]) -> np.ndarray:
    """1 for each image that is right, ``[results, images]``."""
    packed = np.array([np.frombuffer(summary.outcomes, np.uint8) for summary in summaries])
    return np.unpackbits(packed, axis=1, count=summaries[0].total).astype(np.float32)


@lru_cache(maxsize=8)
def _weights(images: int) -> np.ndarray:
    """``[resamples, images]``: how often each image is in a resample. Sums of whole numbers are exact: equal
    results stay equal."""
    return np.random.default_rng(1).poisson(1.0, (RESAMPLES, images)).astype(np.float32)


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


def values_of(summaries: Sequence[Summary], name: str) -> list[float]:
    """A metric's value in each, as it is ranked; NaN where it is missing."""
    values = [summary.ranked(name).value for summary in summaries]
    return [math.nan if value is None else float(value) for value in values]
