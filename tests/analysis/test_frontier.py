"""The frontier against pictures and brute force."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from factories import make_result, make_sweep, recipe, remade
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optimizer.analysis import frontier
from optimizer.analysis.frontier import (
    FRONTIER,
    JointFrontier,
    chances,
    frontier_of,
    joint_frontier,
    optimal_in_each,
    pareto_mask,
    ranked_words,
)
from optimizer.analysis.measures import Measure
from optimizer.analysis.summary import Summary, summarise
from optimizer.charts import accuracy_info
from optimizer.errors import InputError


def cells(picture: str) -> list[tuple[str, int, int]]:
    lines = picture.split("\n")[1:-1]
    return [
        (c, x, len(lines) - y) for y, line in enumerate(lines) for x, c in enumerate(line.split()) if c != "."
    ]


@pytest.mark.parametrize(
    ("picture", "frontier"),
    [
        ("\nA . d\n. B .\n. . C\n", "ABC"),
        ("\n. d f\nA . e\n. . .\n", "A"),  # the same height further left dominates
        ("\nd . .\nA . .\n. B c\n", "AB"),  # the same column further down dominates
        ("\nA . . d .\n. . e . .\n. B . . f\n. . . . g\n. . . C h\n", "ABC"),
    ],
)
def test_dominance_as_drawn(picture: str, frontier: str) -> None:
    names, *losses = zip(*cells(picture), strict=True)
    mask = pareto_mask(np.array(losses).T)
    assert "".join(name for name, kept in zip(names, mask, strict=True) if kept) == frontier


def test_equal_results_stay_together_and_a_missing_value_keeps_a_row_off() -> None:
    losses = np.array([[1, 2], [1, 2], [0.0, 3], [-0.0, 3], [np.nan, 0], [0, np.nan], [2, 2]])
    assert pareto_mask(losses).tolist() == [True, True, True, True, False, False, False]


def test_nothing_missing_and_infinite_losses() -> None:
    assert pareto_mask(np.empty((0, 2))).tolist() == []
    assert pareto_mask([[np.nan, np.nan]]).tolist() == [False]
    assert pareto_mask([[np.inf, np.inf]]).tolist() == [True]
    assert pareto_mask([[0, np.inf], [1, np.inf]]).tolist() == [True, False]


def brute_force(losses: np.ndarray) -> list[bool]:
    return [
        not np.isnan(row).any() and not any((other <= row).all() and (other < row).any() for other in losses)
        for row in losses
    ]


values = st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0, np.nan, np.inf])
tables = st.tuples(st.integers(0, 12), st.integers(1, 4)).flatmap(
    lambda shape: arrays(float, shape, elements=values)
)


@settings(deadline=None)
@given(tables)
def test_the_frontier_is_what_brute_force_finds(losses: np.ndarray) -> None:
    assert pareto_mask(losses).tolist() == brute_force(losses)


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_many_rows_are_compared_in_parts(columns: int) -> None:
    losses = np.random.default_rng(columns).integers(0, 12, (400, columns)).astype(float)
    assert pareto_mask(losses).tolist() == brute_force(losses)
    hollow = np.sort(np.random.default_rng(0).random((200, 1)), axis=0)
    falling = np.hstack([hollow, -hollow])
    assert pareto_mask(np.hstack([falling] * columns)).all()


@pytest.mark.parametrize("losses", [[1, 2], 3, np.empty((2, 0)), np.zeros((1, 1, 1))])
def test_other_shapes_are_refused(losses: object) -> None:
    with pytest.raises(InputError, match="one row a result"):
        pareto_mask(losses)  # type: ignore[arg-type]


# How likely


def test_what_has_no_interval_is_on_the_frontier_always_or_never() -> None:
    results = [make_result(recipe(sparsity), images=200) for sparsity in (0.0, 0.5, 0.9)]
    summaries, metrics = [summarise(one) for one in results], ("packed_size", "nonzero")
    found = frontier_of(summaries, metrics)
    assert chances(summaries, metrics).tolist() == found.optimal.astype(float).tolist()


def test_a_point_that_wins_by_luck_is_on_the_frontier_about_half_of_the_time() -> None:
    """Two recipes of one true accuracy and one size: the better one of this sample is not the better one."""
    random = np.random.default_rng(5)
    made = make_result(recipe(0.5), images=1_000)
    before = made.baseline_accuracy.outcomes
    right = [np.packbits(before & (random.random(1_000) > 0.05)).tobytes() for _ in range(2)]
    results = [remade(made, accuracy=replace(made.accuracy, correct=bits)) for bits in right]
    summaries, metrics = [summarise(one) for one in results], ("drop", "packed_size")
    found, chance = frontier_of(summaries, metrics), chances(summaries, metrics)
    assert found.optimal.sum() == 1
    assert 0.1 < chance[~found.optimal][0] < 0.9
    assert chance.sum() == pytest.approx(1, abs=0.15)


def of_sizes(losses: np.ndarray, error: float) -> list[Summary]:
    """Results of rising size whose divergence was measured with a standard error."""
    made = summarise(make_result(recipe(0.5), images=200))
    return [
        replace(
            made,
            key=str(size),
            measures=made.measures
            | {
                "packed_size": Measure(1_000 + size),
                "kl": Measure(loss, loss - 1.96 * error, loss + 1.96 * error),
            },
        )
        for size, loss in enumerate(losses.tolist())
    ]


def shares_on_the_true_frontier(
    falls: float, spread: float, low: float, high: float
) -> tuple[float, float, float]:
    """Of 40 results whose true divergence falls by so much from size to size and scatters, measured with an
    error of 1: of those with a chance near 0, between ``low`` and ``high``, and near 1."""
    random, found = np.random.default_rng(48), []
    for _ in range(60):
        truth = 1_000 - falls * np.arange(40) + random.normal(0, spread, 40)
        summaries = of_sizes(truth + random.normal(size=40), 1)
        on = frontier_of(of_sizes(truth, 1), ("kl", "packed_size")).optimal
        found.append((chances(summaries, ("kl", "packed_size")), on))
    chance, on = (np.concatenate(one) for one in zip(*found, strict=True))
    groups = chance < 0.02, (chance >= low) & (chance <= high), chance > 0.98
    return tuple(float(on[group].mean()) for group in groups)  # type: ignore[return-value]


@pytest.mark.parametrize(("falls", "spread"), [(0, 5), (0.5, 3)])
def test_of_results_with_a_chance_near_one_half_half_are_on_the_true_frontier(
    falls: float, spread: float
) -> None:
    never, half, always = shares_on_the_true_frontier(falls, spread, 0.35, 0.65)
    assert never <= 0.02
    assert half == pytest.approx(0.5, abs=0.1)
    assert always >= 0.98


def test_on_a_smooth_curve_a_chance_errs_on_the_low_side() -> None:
    """Neighbours of a steep curve confirm each other, which no chance counts."""
    never, half, always = shares_on_the_true_frontier(3, 2, 0.4, 0.6)
    assert never <= 0.1
    assert 0.55 <= half <= 0.8
    assert always >= 0.98


def test_what_anything_beats_measurably_is_not_tied_though_the_frontier_s_interval_is_wide() -> None:
    best, middle, last = of_sizes(np.array([100.0, 200.0, 300.0]), 5)
    wide = replace(best, measures=best.measures | {"kl": Measure(100.0, 1.0, 900.0)})
    sized = [
        replace(one, measures=one.measures | {"packed_size": Measure(7)}) for one in (wide, middle, last)
    ]
    found = frontier_of(sized, ("kl", "packed_size"))
    assert found.optimal.tolist() == [True, False, False]
    assert found.tied.tolist() == [False, True, False]


def test_what_is_clearly_better_is_likely_and_what_shares_a_time_ties() -> None:
    clear = [make_result(recipe(sparsity, 4), images=10_000) for sparsity in (0.3, 0.9)]
    assert chances([summarise(one) for one in clear], ("drop", "latency_ratio"))[0] == 1
    shared = [remade(clear[0], latency=clear[0].latency, notes=(name,)) for name in "ab"]
    assert chances([summarise(one) for one in shared], ("drop", "latency_ratio")).tolist() == [1, 1]


@pytest.mark.parametrize("metrics", [("drop", "compressed_size"), FRONTIER, ("accuracy",), ("drop", "sqnr")])
def test_what_is_left_out_for_being_far_behind_was_never_on_a_frontier(
    metrics: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [
        make_result(recipe(step / 40), images=2_000, engine="sparse", ratio=1.3 - step / 40, seed=step)
        for step in range(40)
    ]
    worse = [  # of one size and time with another that loses less
        remade(lossy, inspection=one.inspection, latency=one.latency)
        for one, lossy in zip(made[:20], made[20:], strict=True)
    ]
    summaries, seen = [summarise(one) for one in [*made, *worse]], []

    def watched(*given: Any) -> np.ndarray:
        seen.append(far_behind(*given))
        return seen[-1]

    def none(summaries: list[Any], others: np.ndarray) -> np.ndarray:
        return np.zeros(len(summaries), bool)

    far_behind = frontier._far_behind
    monkeypatch.setattr(frontier, "_far_behind", watched)
    found = chances(summaries, metrics)
    assert np.concatenate(seen).any()
    frontier._chances.cache_clear()
    monkeypatch.setattr(frontier, "_far_behind", none)
    assert chances(summaries, metrics).tolist() == found.tolist()


def test_a_network_that_had_the_name_before_is_no_rival() -> None:
    small, large = (summarise(make_result(recipe(sparsity, 4))) for sparsity in (0.9, 0.3))
    whole = ("drop", "file_size", "packed_size")
    worse = replace(large, measures=large.measures | {"drop": small.measures["drop"]})
    assert frontier_of([small, worse], whole).optimal.tolist() == [True, False]
    for weights, rivals in (("b", False), ("a", True), ("", True)):
        pair = replace(small, weights="a"), replace(worse, weights=weights)
        assert frontier_of(pair, whole).optimal.tolist() == [True, not rivals]


@pytest.mark.slow
@given(
    arrays(
        float, st.tuples(st.integers(1, 4), st.integers(0, 12), st.integers(1, 5)), elements=st.integers(0, 3)
    )
)
def test_frontiers_of_all_resamples_are_those_of_each(losses: np.ndarray) -> None:
    each = [pareto_mask(resample) for resample in losses.transpose(2, 1, 0)]
    assert optimal_in_each(losses).tolist() == np.array(each).T.tolist()


@pytest.mark.parametrize(
    ("path", "files", "apart"),
    [
        ("/photos", ("before", "after"), True),
        ("/photos", ("before", "before"), False),
        ("/photos", ("", "after"), True),
        ("/photos", ("", ""), False),
        (None, ("", "after"), False),
        (None, ("before", "after"), True),
    ],
)
def test_results_are_ranked_with_those_of_the_same_files(
    path: str | None, files: tuple[str, str], apart: bool
) -> None:
    """A folder may hold as many images as before, and others. Of results from before files were recorded the
    images that come with this program are known to be the same."""
    results = [make_result(recipe(sparsity, 4), path=path, images=300) for sparsity in (0.5, 0.95)]
    better, worse = (
        summarise(
            remade(
                result,
                inspection=results[0].inspection,  # of one size
                accuracy=replace(result.accuracy, images=name),
            )
        )
        for result, name in zip(results, files, strict=True)
    )
    assert frontier_of([better, worse], ("drop", "compressed_size")).optimal.tolist() == [True, apart]
    assert (chances([better, worse], ("drop", "compressed_size"))[1] == 1) == apart
    chart = accuracy_info([better, worse])
    assert ("2 sets of images" in chart.y.title) == (apart and all(files))


def test_chances_come_back_and_missing_figures_have_none() -> None:
    results = [make_result(recipe(sparsity), images=500, quick=True) for sparsity in (0.2, 0.4, 0.6)]
    summaries = [summarise(one) for one in results]
    first = chances(summaries, ("drop", "latency_ratio"))
    assert first.tolist() == chances(summaries, ("drop", "latency_ratio")).tolist()
    assert chances(summaries, ("drop", "memory")).tolist() == [0, 0, 0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([(True, False), (False, True), (True, True)]), min_size=9, max_size=9))
def test_whose_results_are_on_the_frontier_of_two_sets_together(whose: list[tuple[bool, bool]]) -> None:
    summaries = [summarise(one) for one in make_sweep((0.3, 0.7, 0.9), (32, 8, 4), int8=False)]
    sets = [[one for one, its in zip(summaries, whose, strict=True) if its[number]] for number in (0, 1)]
    optimal = frontier_of(summaries).optimal
    counted = [
        sum(its == pair and on for its, on in zip(whose, optimal, strict=True))
        for pair in ((True, False), (False, True), (True, True))
    ]
    assert joint_frontier(*sets) == (JointFrontier(*counted) if all(sets) else None)


def test_what_cant_be_ranked_with_the_other_set_is_on_no_frontier_of_both() -> None:
    here, elsewhere = (
        [summarise(one) for one in make_sweep((0.3, 0.7), (32,), int8=False, engine=engine)]
        for engine in ("openvino", "torch")
    )
    assert joint_frontier(here, elsewhere) is None
    assert joint_frontier([], here) is None
    found = joint_frontier(here, [*here, *elsewhere])
    assert found is not None
    assert (found.first, found.second, found.both) == (0, 0, int(frontier_of(here).optimal.sum()))


def test_times_are_left_out_where_all_of_them_are_noisy_and_ranked_where_some_are_not() -> None:
    noisy = [summarise(make_result(recipe(one), noisy=True)) for one in (0.0, 0.5, 0.9)]
    calm = [summarise(make_result(recipe(one), images=2_000, path="/other")) for one in (0.0, 0.5)]
    sizes = frontier_of(noisy, ("drop", "compressed_size")).optimal.tolist()
    assert any(sizes)
    assert frontier_of(noisy).optimal.tolist() == sizes
    assert chances(noisy).tolist() == chances(noisy, ("drop", "compressed_size")).tolist()
    assert not frontier_of(noisy, FRONTIER).optimal.any()
    assert ranked_words(noisy) == "accuracy lost and zstd size, as every latency is noisy"
    both = frontier_of([*noisy, *calm]).optimal.tolist()
    assert both == [*sizes, *frontier_of(calm).optimal.tolist()]
    words = "accuracy lost, zstd size and latency ratio"
    assert ranked_words(calm) == words
    assert ranked_words([*noisy, *calm]) == f"{words}; by the first two where every latency is noisy"
    mixed = [*noisy, summarise(make_result(recipe(0.7)))]
    assert frontier_of(mixed).optimal.tolist() == [False, False, False, True]
    assert ranked_words(mixed) == words
