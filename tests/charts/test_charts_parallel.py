"""Parallel coordinates: every result a line through what was asked and what came of it."""

import pytest
from factories import detector, make_result, recipe
from test_charts import SWEEP

from optimizer.analysis.summary import summarise
from optimizer.charts import alternative, figure, parallel_info
from optimizer.charts.theme import theme


def test_each_result_has_a_value_on_each_axis() -> None:
    info = parallel_info(SWEEP)
    assert [axis.title for axis in info.axes] == [
        "weights removed", "weight bits", "activation bits", "accuracy", "zstd size", "latency",
    ]  # fmt: skip
    assert len(info.rows) == len(info.colours) == len(SWEEP)
    for result, row, colour in zip(SWEEP, info.rows, info.colours, strict=True):
        removed, bits, _, accuracy, *_ = row
        summary = summarise(result)
        assert removed == summary.pruned_percent
        width = info.axes[1].categories[int(bits)]
        assert width == f"{summary.recipe.quantize.bits:g}"
        assert colour == f"bits {width}"
        assert accuracy == summary.measures["accuracy"].value


def test_widths_are_in_the_order_of_their_numbers_and_what_is_one_for_all_has_no_axis() -> None:
    info = parallel_info([make_result(recipe(0.5, bits)) for bits in (16, 4, 8)])
    assert info.axes[1].categories == ("4", "8", "16")
    assert {"activation bits", "engine"}.isdisjoint(axis.title for axis in info.axes)
    engines = parallel_info([make_result(recipe(0.5)), make_result(recipe(0.5), engine="sparse")])
    assert [axis.title for axis in engines.axes][1] == "engine"


def test_what_has_no_classes_is_told_by_sqnr_and_what_lacks_a_figure_has_no_line() -> None:
    info = parallel_info([detector(recipe(0.5), 0.1), detector(recipe(0.7), 0.2), detector(recipe(), 0)])
    assert "SQNR" in [axis.title for axis in info.axes]
    assert len(info.rows) == 2, "equal outputs have no SQNR"
    assert parallel_info([]).rows == ()


@pytest.mark.parametrize("dark", [False, True])
def test_a_line_has_the_colour_of_its_bits_and_units_their_prefixes(dark: bool) -> None:
    info = parallel_info(SWEEP)
    (trace,) = figure(info, dark=dark).data
    shades = dict(trace.line.colorscale)
    assert set(shades.values()) == {theme(dark).colours[role] for role in info.colours}
    latency = trace.dimensions[-1]
    assert latency.label == "latency<br>ms ↓"
    assert trace.dimensions[0].label == "weights<br>removed, %"
    assert trace.dimensions[-2].label == "zstd size<br>MB ↓"
    assert trace.dimensions[-2].values == pytest.approx([row[-2] / 1e6 for row in info.rows])
    assert latency.values == pytest.approx([row[-1] / 1e6 for row in info.rows])
    assert not any(dimension.tickformat for dimension in trace.dimensions), "no prefix beside ms or MB"
    assert "parallel axes: weights removed, %" in alternative(info)
    assert "Nothing measured yet" in figure(parallel_info([]), dark=dark).layout.annotations[0].text
