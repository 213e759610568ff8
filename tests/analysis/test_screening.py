"""What can't be on the frontier is told from a part of the images, and nothing else is left."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from factories import detector, make_result, make_sweep, recipe, remade

from optimizer.analysis.frontier import frontier_of
from optimizer.analysis.screening import Bar, ScreenedOut, bar_for, likely_errors_first
from optimizer.analysis.summary import summarise
from optimizer.measurement.scoring import score_unless_beaten
from optimizer.records import Result, Settings
from optimizer.search.sweep import Grid


def bar(result: Result, rivals: list[Result]) -> Bar | None:
    size = result.inspection.size.compressed_bytes
    return bar_for(result.request, [summarise(one) for one in rivals], size, result.latency)


def scored(result: Result, found: Bar) -> int:
    """The images that a result is scored on. Raises ScreenedOut."""
    right, taken = result.accuracy.outcomes, 0

    def score(images: np.ndarray) -> np.ndarray:
        nonlocal taken
        taken += len(images)
        return np.eye(2, dtype=np.float32)[right[images[:, 0]].astype(int)]

    def errors(logits: np.ndarray, of: np.ndarray) -> int:
        assert (logits[of].argmax(1) == right[of]).all()
        return int((logits[of, 0] == 1).sum())

    images, sure = np.arange(len(right))[:, None], np.zeros((len(right), 2))
    score_unless_beaten(score, images, found, sure, errors)
    return taken


def in_turn(results: list[Result]) -> tuple[list[Result], list[ScreenedOut]]:
    """Those that a sweep of the frontier measures, and those that it leaves."""
    asked = Grid(results[0].request, (0.0,), (32,), (32,), ("openvino",), frontier_only=True)
    measured, left = list[Result](), list[ScreenedOut]()
    for one in sorted(results, key=lambda result: asked.sort_key(result.request)):
        try:
            if found := bar(one, measured):
                scored(one, found)
            measured.append(one)
        except ScreenedOut as out:
            left.append(out)
    return measured, left


def optimal(results: list[Result]) -> set[str]:
    summaries = [summarise(one) for one in results]
    found = frontier_of(summaries)
    return {one.key for one, is_on in zip(summaries, found.optimal, strict=True) if is_on}


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("images", [50, 2000])
def test_the_frontier_is_that_of_the_whole_grid_and_less_than_half_of_the_images_are_scored(
    images: int, labelled: bool
) -> None:
    sweep = make_sweep(images=images, labelled=labelled)
    measured, left = in_turn(sweep)
    assert optimal(measured) == optimal(sweep)
    assert len(measured) + len(left) == len(sweep)
    assert len(left) > len(sweep) / 3
    assert sum(one.scored for one in left) < 0.5 * images * len(left)


def test_what_is_left_has_as_many_errors_as_one_that_is_smaller_has_on_all() -> None:
    small, large = make_result(recipe(0.5, 8), images=500), make_result(recipe(0.8, 32), images=500)
    found = bar(large, [small])
    assert found
    assert found.errors == 500 - small.accuracy.outcomes.sum()
    with pytest.raises(ScreenedOut) as caught:
        scored(large, found)
    assert found.errors <= caught.value.errors <= caught.value.scored < caught.value.total == 500
    assert "50 % of layer weights pruned · 8-bit weights is no larger and no slower" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_equal_is_on_the_frontier_too_and_is_measured_whole() -> None:
    one = make_result(recipe(0.5, 8), images=500)
    found = bar(remade(one), [one])
    assert found
    assert scored(one, found) == 500


def test_what_is_larger_beats_nothing() -> None:
    assert bar(make_result(recipe(0.5, 4)), [make_result(recipe(0.5, 8))]) is None


def test_what_has_another_time_beats_nothing() -> None:
    """Both may be on the frontier, where their times have no measurable difference."""
    slow, fast = (make_result(recipe(0.5, 8), ratio=ratio) for ratio in (0.9, 0.5))
    assert bar(fast, [slow]) is None
    assert bar(slow, [fast]) is None


def test_a_noisy_time_is_shared_as_well() -> None:
    noisy = make_result(recipe(0.5, 8), noisy=True, ratio=0.5)
    assert bar(make_result(recipe(0.5, 32)), [noisy]) is None
    assert bar(make_result(recipe(0.5, 32), noisy=True, ratio=0.5), [noisy])


@pytest.mark.parametrize(
    "change", [{"engine": "onnxruntime"}, {"model": "fashion-mlp"}, {"settings": Settings(batch=8)}]
)
def test_what_was_asked_for_otherwise_beats_nothing(change: dict[str, object]) -> None:
    small = make_result(recipe(0.5, 8))
    other = remade(small, request=replace(small.request, **change))  # type: ignore[arg-type]
    assert bar(make_result(recipe(0.5, 32)), [other]) is None


def test_a_network_without_classes_beats_nothing() -> None:
    assert bar(detector(recipe(0.5, 32), 0.1), [detector(recipe(0.5, 8), 0.1)]) is None


def test_images_that_most_have_wrong_come_first_and_then_those_of_which_the_model_is_least_sure() -> None:
    logits = np.array([[0, 9], [5, 4], [0, 3], [8, 0]])
    assert likely_errors_first(np.array([0.5, 0, 1, 0]), logits).tolist() == [2, 0, 1, 3]


def test_what_has_no_errors_leaves_the_others_unscored() -> None:
    with pytest.raises(ScreenedOut) as caught:
        scored(make_result(images=100), Bar(0, "it", np.zeros(100)))
    assert caught.value.scored == 0
