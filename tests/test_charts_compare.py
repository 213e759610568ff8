"""What the chart of chosen configurations says."""

from factories import make_result
from test_charts import SWEEP

from optimizer.charts import compare_info
from optimizer.frame import summarise


def test_compare_puts_each_configuration_in_its_row_with_its_interval() -> None:
    chosen = [SWEEP[0], SWEEP[8], SWEEP[-1]]
    info = compare_info(chosen)
    points = sorted((point for line in info.series for point in line.points), key=lambda point: point.y)
    assert [point.key for point in points] == [result.key for result in chosen]
    for point, result in zip(points, chosen, strict=True):
        measure = summarise(result).measures["accuracy"]
        assert (point.x, point.x_low, point.x_high) == (measure.value, measure.low, measure.high)
    assert len(info.y.categories) == 3


def test_compare_names_models_where_they_differ() -> None:
    info = compare_info([make_result(), make_result(model="fashion-vit")])
    assert [label.split(" ")[0] for label in info.y.categories] == ["fashion-resnet", "fashion-vit"]
