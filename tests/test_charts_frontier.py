"""What the chart of the frontier says."""

from test_charts import SWEEP, key_of, series

from optimizer.charts import frontier_info
from optimizer.summary import summarise


def test_frontier_separates_optimal_from_dominated() -> None:
    info = frontier_info(SWEEP, cost="packed_size")
    optimal = {point.key for point in series(info, "frontier").points}
    dominated = {point.key for point in series(info, "dominated").points}
    assert optimal | dominated == {result.key for result in SWEEP}
    assert not optimal & dominated
    line = series(info, "frontier").points
    assert [point.x for point in line] == sorted(point.x for point in line)
    assert [point.y for point in line] == sorted((point.y for point in line), reverse=True)


def test_collapsed_models_do_not_squeeze_the_frontier_and_are_counted() -> None:
    info = frontier_info(SWEEP)
    far = sum(summarise(result).drop.points > 15 for result in SWEEP)
    assert far > 0
    assert info.note.endswith(f"{far} lie above 15")
    assert info.y.span is not None
    assert info.y.span[1] < 25
    collapsed = key_of(SWEEP, 0.9, 3)
    shown = frontier_info(SWEEP, collapsed)
    assert shown.selected is not None
    assert shown.y.span is not None
    assert shown.y.span[0] <= shown.selected.y <= shown.y.span[1]
