"""The frontier against pictures, brute force and Monte Carlo."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optimizer.analysis.frontier import hypervolume, pareto_mask
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


points = st.integers(1, 4).flatmap(
    lambda d: arrays(float, st.tuples(st.integers(0, 6), st.just(d)), elements=st.integers(0, 5).map(float))
)


def cells_dominated(losses: np.ndarray, corner: np.ndarray) -> int:
    """Unit cells of the grid that some row dominates: the hypervolume of integer losses, counted."""
    grid = np.stack(np.meshgrid(*(np.arange(c) for c in corner), indexing="ij"), axis=-1)
    return int(np.any([np.all(grid >= row, axis=-1) for row in losses], axis=0).sum())


@settings(deadline=None)
@given(points)
def test_hypervolume_counts_the_dominated_cells(losses: np.ndarray) -> None:
    corner = np.full(losses.shape[1], 4)
    assert hypervolume(losses, corner) == cells_dominated(losses, corner)


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_hypervolume_against_monte_carlo(columns: int) -> None:
    random = np.random.default_rng(columns)
    losses = random.random((15, columns))
    samples = random.random((50_000, columns))
    hits = np.any(np.all(samples[:, None] >= losses, axis=2), axis=1)
    assert hypervolume(losses, np.ones(columns)) == pytest.approx(np.mean(hits), abs=0.01)


def test_hypervolume_ignores_missing_rows_and_rows_beyond_the_reference() -> None:
    losses = np.array([[1, 1], [np.nan, 0], [5, 0], [0, 5]])
    assert hypervolume(losses, [3, 3]) == 4
    assert hypervolume(np.empty((0, 3)), [1, 1, 1]) == 0


@settings(deadline=None)
@given(points)
def test_only_the_frontier_adds_volume(losses: np.ndarray) -> None:
    corner = np.full(losses.shape[1], 4)
    assert hypervolume(losses[pareto_mask(losses)], corner) == hypervolume(losses, corner)


@pytest.mark.parametrize("losses", [[1, 2], 3, np.empty((2, 0)), np.zeros((1, 1, 1))])
def test_other_shapes_are_refused(losses: object) -> None:
    with pytest.raises(InputError, match="one row a result"):
        pareto_mask(losses)  # type: ignore[arg-type]


@pytest.mark.parametrize("reference", [[1], [1, 2, 3], [1, np.nan], [1, np.inf], 1])
def test_a_reference_that_does_not_fit_is_refused(reference: object) -> None:
    with pytest.raises(InputError, match="one finite number a column"):
        hypervolume([[0, 0]], reference)  # type: ignore[arg-type]
