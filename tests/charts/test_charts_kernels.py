"""What the charts of where a call's time goes say, and that they are drawn."""

from dataclasses import replace

import pytest
from test_coverage import INT8, between, conversion, layer, profile

from optimizer.charts import alternative, figure, kernels_info, parts_info
from optimizer.charts.drawing import LEGEND_PIXELS, ROW_PIXELS
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe

COVERAGE = profile(conversion(6), layer("first", 30, "u8"), layer("second", 19))


def test_parts_add_up_to_the_call() -> None:
    info = parts_info(COVERAGE)
    assert [one.name for one in info.parts.values()] == [
        "int8 kernels",
        "float32 kernels",
        "re-quantization, reorders",
        "everything else",
    ]
    (_, before), (name, after) = info.rows
    assert name.replace("\n", " ") == INT8.describe()
    assert sum(one.value for one in before) == 100_000
    assert sum(one.value for one in after) == 56_000
    drawn = figure(info)
    assert [bar.name for bar in drawn.data] == [one.name for one in info.parts.values()]
    assert [sum(bar.x[row] for bar in drawn.data) for row in (0, 1)] == pytest.approx([100, 56])
    words = f"{INT8.describe()}: int8 kernels, 30.0 µs, 53.6 %, float32 kernels, 19.0 µs, "
    assert words in alternative(info), "each part is named once"
    assert len(parts_info(profile(layer("first", 60), made=Recipe())).rows) == 1
    exactly = Recipe(PruneSpec("compensated", 0.5), QuantizeSpec("compensated", 4, range="mse"))
    (_, (name, _)) = parts_info(profile(layer("first", 60), made=exactly)).rows
    assert name == "50 % of layer weights\npruned · 4-bit weights", "more lines would lie on the axis below"


def test_rows_of_the_legend_are_not_taken_from_the_bars() -> None:
    info = parts_info(COVERAGE)
    long = {part: replace(style, name=f"{style.name:<50}") for part, style in info.parts.items()}
    short = replace(info, parts=dict(list(info.parts.items())[:2]))
    one, two, four = (figure(each, height=240).layout for each in (short, info, replace(info, parts=long)))
    assert one.height == 240
    assert two.height == 240 + ROW_PIXELS
    assert four.height == 240 + 3 * ROW_PIXELS, "one below the other"
    for layout in (one, two, four):
        plot = layout.height - layout.margin.t - layout.margin.b - LEGEND_PIXELS
        assert layout.legend.y * plot == pytest.approx(-LEGEND_PIXELS), "below what the axis says"


def test_layers_stand_beside_what_they_took_before() -> None:
    info = kernels_info(COVERAGE)
    assert info.y.categories == ("conversion of the input", "first", "second")
    rows = {line.name: [(point.y, point.x) for point in line.points] for line in info.series}
    assert rows == {
        "uncompressed": [(1, 60_000), (2, 39_000)],
        "re-quantization, reorders": [(0, 6_000)],
        "int8 kernels": [(1, 30_000)],
        "float32 kernels": [(2, 19_000)],
    }
    small = kernels_info(profile(conversion(0.1), layer("first", 30, "u8"), between()))
    assert small.y.categories == ("first",), "a conversion that hardly takes time is in the table"
