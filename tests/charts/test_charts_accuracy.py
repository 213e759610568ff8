"""What the chart of accuracy against sparsity says."""

from dataclasses import replace

import pytest
from factories import make_result, recipe
from test_charts import SWEEP, key_of, series, span

from optimizer.analysis.summary import summarise
from optimizer.charts import accuracy_info, size_info
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe


def test_accuracy_has_one_line_a_bit_width_from_many_bits_to_few() -> None:
    info = accuracy_info(SWEEP)
    assert [line.name for line in info.series] == ["32", "8", "8, activations 8", "4", "3"]
    assert [line.colour for line in info.series] == ["bits 32", "bits 8", "bits 8", "bits 4", "bits 3"]
    for line in info.series:
        assert [point.x for point in line.points] == [0, 30, 50, 70, 80, 90]


def test_points_are_the_results_with_their_intervals() -> None:
    info = accuracy_info(SWEEP)
    point = series(info, "4").points[2]
    summary = next(summarise(result) for result in SWEEP if result.key == point.key)
    measure = summary.measures["accuracy"]
    assert (point.y, point.low, point.high) == (measure.value, measure.low, measure.high)
    assert summary.recipe == recipe(0.5, 4)


def test_lines_join_results_of_the_same_images_alone() -> None:
    """The selected result's, else those of most; what was scored on others recedes."""
    few = replace(make_result(recipe(0.6, 4), images=500), key="few")
    info = accuracy_info([*SWEEP, few])
    assert [point.x for point in series(info, "4").points] == [0, 30, 50, 70, 80, 90]
    assert [point.key for point in series(info, "other recipes or images").points] == ["few"]
    info = accuracy_info([*SWEEP, few], "few")
    assert [[point.key for point in line.points] for line in info.series[1:]] == [["few"]]
    assert len(series(info, "other recipes or images").points) == len(SWEEP)


def test_simulated_points_are_hollow_and_measured_ones_filled() -> None:
    info = accuracy_info(SWEEP)
    assert not any(point.simulated for point in series(info, "32").points)
    assert all(point.simulated for point in series(info, "4").points)
    assert not any(point.simulated for point in series(info, "8, activations 8").points)


def test_baseline_is_named_and_the_selected_point_marked() -> None:
    key = key_of(SWEEP, 0.5, 4)
    info = accuracy_info(SWEEP, key, cursor=50.0)
    assert info.reference is not None
    assert (info.reference.name, info.reference.y) == ("uncompressed 93.4 %", pytest.approx(93.4))
    assert info.selected is not None
    assert info.selected.key == key
    assert info.cursor is None


def test_a_point_not_measured_yet_leaves_the_cursor() -> None:
    info = accuracy_info(SWEEP, None, cursor=65.0)
    assert info.selected is None
    assert info.cursor == 65.0


def test_collapsed_recipes_that_recede_do_not_squeeze_the_lines_and_are_counted() -> None:
    tensor = QuantizeSpec(weight_bits=2, granularity="tensor")
    near = make_result(Recipe(recipe(0.7).prune, replace(tensor, weight_bits=3)))
    collapsed = make_result(Recipe(recipe(0.9).prune, tensor))
    lines = [one for one in SWEEP if one.request.recipe.prune.sparsity in (None, 0.3, 0.5)]
    info, alone = accuracy_info([*lines, near, collapsed]), accuracy_info(lines)
    assert len(series(info, "other recipes").points) == 2
    assert span(info.y)[0] > 80
    assert span(info.y)[1] - span(info.y)[0] <= 2.2 * (span(alone.y)[1] - span(alone.y)[0])
    assert "1 point below the axis" in info.note
    assert "below" not in alone.note
    chosen = accuracy_info([*lines, near, collapsed], collapsed.key)
    assert span(chosen.y)[0] < 29
    assert "below" not in chosen.note


def test_many_options_do_not_hide_the_main_lines() -> None:
    trained = [
        make_result(Recipe(PruneSpec(sparsity=0.5), finetune_steps=steps)) for steps in (1, 2, 3, 4, 5)
    ]
    info = accuracy_info([*SWEEP, *trained])
    assert sum("fine-tuned" in line.name for line in info.series) == 3
    assert len(series(info, "other recipes").points) == 2


def test_bits_on_average_are_a_line_of_their_own() -> None:
    info = accuracy_info([make_result(Recipe(quantize=QuantizeSpec(average_bits=3.5)))])
    assert [(line.name, line.colour) for line in info.series] == [("3.5 mixed", "bits 3")]
    size = size_info([make_result(Recipe(quantize=QuantizeSpec(average_bits=3.5)))])
    assert size.series[0].points[0].x == pytest.approx(1.5)  # between 3 and 4


def test_agreement_is_called_agreement() -> None:
    info = accuracy_info([make_result(labelled=False)])
    assert info.y.title.startswith("agreement with the uncompressed model")
