"""What the chart of the frontier says."""

from factories import make_result, recipe
from test_charts import SWEEP, key_of, series

from optimizer.analysis.summary import summarise
from optimizer.charts import frontier_info


def test_frontier_separates_optimal_from_dominated() -> None:
    info = frontier_info(SWEEP, cost="packed_size")
    optimal = {point.key for point in series(info, "frontier").points}
    dominated = {point.key for point in series(info, "dominated").points}
    tied = {point.key for line in info.series if line.name.endswith("tied") for point in line.points}
    assert optimal | dominated | tied == {result.key for result in SWEEP}
    assert not optimal & dominated
    assert not tied & (optimal | dominated)
    assert tied
    assert "small: uncertain" in info.note
    line = series(info, "frontier").points
    assert [point.x for point in line] == sorted(point.x for point in line)
    assert [point.y for point in line] == sorted((point.y for point in line), reverse=True)


def test_noisy_ones_are_faint_and_off_the_line() -> None:
    noisy = make_result(recipe(0.5, 4), ratio=0.1, noisy=True)
    info = frontier_info([*SWEEP, noisy], cost="latency_ratio")
    assert noisy.key not in {point.key for point in series(info, "frontier").points}
    assert next(point for point in series(info, "dominated").points if point.key == noisy.key).noisy
    assert "noisy ones left out" in info.note


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
