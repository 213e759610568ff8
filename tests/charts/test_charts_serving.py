"""What the charts of throughput and of gains say, and that they are drawn."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from test_serving import GRID, make_run

from optimizer.analysis.realisation import Realisation
from optimizer.analysis.served import Configuration
from optimizer.analysis.serving import best_under, comparisons
from optimizer.charts import figure, gains_info, serving_info
from optimizer.charts.spec import Lines
from optimizer.charts.theme import LIGHT
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import Execution

RUN = make_run()


def test_a_line_for_each_network_and_number_of_threads_and_streams() -> None:
    info = serving_info(RUN)
    assert [(line.name, line.line, line.legend, len(line.points)) for line in info.series] == [
        ("uncompressed", "solid", True, 2),
        ("uncompressed", "dash", False, 1),
        ("8-bit weights · 8-bit activations", "solid", True, 2),
        ("8-bit weights · 8-bit activations", "dash", False, 1),
    ]
    one, point = comparisons(RUN)[1], info.series[2].points[1]
    assert (point.x, point.y) == (one.variant.latency_ns, one.variant.throughput)
    assert (point.x_low, point.high) == (one.variant.latency_low, one.variant.throughput_high)
    assert point.label == "4, 1 × 1"
    assert "of uncompressed, same configuration: faster" in point.hover
    assert info.limit is None
    assert info.selected is None


def test_the_legend_names_a_recipe_in_short_and_a_point_exactly() -> None:
    exactly = Recipe(quantize=QuantizeSpec("compensated", 4, range="mse"))
    line = serving_info(replace(RUN, request=replace(RUN.request, recipe=exactly))).series[-1]
    assert line.name == "4-bit weights"
    assert exactly.describe() in line.points[0].hover


def test_a_network_without_some_of_its_channels_is_told_from_a_dense_one() -> None:
    layers = tuple(replace(layer, precision="f32") for layer in RUN.execution.layers)
    run = make_run(
        Recipe.of(pruning="channels", sparsity=0.3), execution=replace(RUN.execution, layers=layers)
    )
    assert serving_info(run).series[-1].colour is Realisation.SHRUNK
    assert gains_info(run).series[-1].name == "channels removed"


def test_what_stands_in_for_the_sparse_kernels_is_told_from_them() -> None:
    layers = tuple(replace(layer, skips_zeros=True) for layer in RUN.execution.layers)
    names = [
        gains_info(replace(RUN, execution=Execution(layers, (), fallback))).series[-1].name
        for fallback in ("", "no compiler")
    ]
    assert names == ["sparse kernels", "torch CSR"]


def boxes(info: Lines) -> list[tuple[float, float, float, float]]:
    """Where a telephone has the labels, in pixels: left, bottom, right, top."""
    assert info.x.span is not None
    assert info.y.span is not None
    found = []
    for point in (point for line in info.series for point in line.points if point.label):
        across = np.log(point.x / info.x.span[0]) / np.log(info.x.span[1] / info.x.span[0])
        x, y = 320 * across, 240 * point.y / info.y.span[1]
        left = x - 5 - 6.5 * len(point.label) if "left" in point.label_at else x + 5
        bottom = y + 5 if "top" in point.label_at else y - 18
        found.append((left, bottom, left + 6.5 * len(point.label), bottom + 13))
    return found


def test_labels_stand_clear_of_each_other_and_ends_of_lines_come_first() -> None:
    batches, ways = (1, 2, 4, 8, 16, 32, 64), ((1, 1), (2, 1), (2, 2))
    crowded = make_run(grid=tuple(Configuration(batch, *way) for way in ways for batch in batches))
    info = serving_info(crowded)
    placed = boxes(info)
    points = sum(len(line.points) for line in info.series)
    assert 6 <= len(placed) < points
    for one, other in combinations(placed, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)
    assert all(left >= 0 and right <= 320 and bottom >= 0 for left, bottom, right, _ in placed)
    last = info.series[-1].points[-1]
    assert last.label == "64, 2 × 2"
    assert figure(info).data[-1].textposition[-1] == last.label_at


def test_labels_of_lines_far_apart_are_all_there() -> None:
    assert all(point.label for line in serving_info(RUN).series for point in line.points)


def test_the_best_under_a_limit_is_marked() -> None:
    choice = best_under(RUN, 60.125e6)
    info = serving_info(RUN, 60.125e6, choice)
    assert info.limit is not None
    assert (info.limit.name, info.limit.x) == ("limit 60.125 ms", 60.125e6)
    assert info.selected is not None
    assert (info.selected.x, info.selected.y) == (
        choice.performance.latency_ns,
        choice.performance.throughput,
    )
    drawn = figure(info)
    assert drawn.data[-1].name == "best under the limit"
    assert drawn.data[-1].marker.color == LIGHT.colours["accent"]
    (line,) = drawn.layout.shapes
    assert (line.x0, line.x1) == pytest.approx((60.125, 60.125))
    assert line.line.dash == "dash"
    assert "limit 60.125 ms" in [note.text for note in drawn.layout.annotations]


def test_where_nothing_is_in_time_the_limit_is_drawn_alone() -> None:
    info = serving_info(RUN, 1_000, best_under(RUN, 1_000))
    assert info.selected is None
    assert info.limit is not None
    assert info.x.span is not None
    assert info.x.span[0] < 1_000


def test_noise_fades_and_an_uncompressed_recipe_is_drawn_once() -> None:
    noisy = serving_info(make_run(noisy=True))
    assert all(point.noisy for line in noisy.series for point in line.points)
    assert {line.name for line in serving_info(make_run(Recipe())).series} == {"uncompressed"}


def test_gains_are_rows_with_the_baseline_at_one() -> None:
    info = gains_info(RUN)
    assert info.y.categories == ("1 · 1 · 1", "4 · 1 · 1", "4 · 2 · 2")
    assert info.note == "rows: batch size · threads · streams"
    alike = gains_info(replace(RUN, points=RUN.points[:2]))
    assert (alike.y.categories, alike.note) == (("1", "4"), "rows: batch size"), "no more than what differs"
    assert [point.x for point in info.series[0].points] == [1, 1]
    assert [point.x for point in info.series[1].points] == [one.fair.ratio for one in comparisons(RUN)]
    assert len(info.series[1].points) == len(GRID)
