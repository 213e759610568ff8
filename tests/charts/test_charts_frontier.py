"""What the chart of the frontier says."""

from dataclasses import replace

import pytest
from factories import make_latency, make_result, make_sweep, recipe, remade
from test_charts import SWEEP, key_of, series, span

from optimizer.analysis.summary import summarise
from optimizer.charts import figure, frontier_info, frontiers_info
from optimizer.charts.spec import NO_RESULTS


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
    assert "noisy: not ranked" in info.note


def test_collapsed_models_do_not_squeeze_the_frontier_and_are_counted() -> None:
    info = frontier_info(SWEEP)
    far = sum(summarise(result).drop.points > 15 for result in SWEEP)
    assert far > 0
    assert info.note.endswith(f"{far} lost more than 15 points")
    assert span(info.y)[1] < 25
    collapsed = key_of(SWEEP, 0.9, 3)
    shown = frontier_info(SWEEP, collapsed)
    assert shown.selected is not None
    assert span(shown.y)[0] <= shown.selected.y <= span(shown.y)[1]


def test_engines_share_a_frontier_where_their_figures_can_be_ranked_and_have_their_own_where_not() -> None:
    fast, slow = (
        [
            remade(one, latency=make_latency(0.5, center_ns=center_ns, seed=number))
            for number, one in enumerate(make_sweep((0.3, 0.7, 0.9), (32,), int8=False, engine=engine))
        ]
        for engine, center_ns in (("openvino", 5e5), ("torch", 2e6))
    )
    info = frontier_info([*fast, *slow], cost="latency")
    assert info.y.title == "accuracy"
    assert {point.key for point in series(info, "frontier").points} <= {one.key for one in fast}
    assert info.note.endswith("lost more than 15 points"), "nor do collapsed models squeeze it then"
    assert frontier_info(fast, cost="latency").y.title == "accuracy lost"
    lines = [
        {point.key for point in line.points}
        for line in frontier_info([*fast, *slow], cost="latency_ratio").series
        if line.name == "frontier"
    ]
    assert len(lines) == 2
    for line, engine in zip(lines, (fast, slow), strict=True):
        assert line <= {one.key for one in engine}


def test_models_that_agree_with_themselves_are_not_ranked_with_each_other() -> None:
    """Without labels accuracy is agreement with a model's own uncompressed one: each begins at 100 %."""
    models = [
        [
            remade(one, accuracy=replace(one.accuracy, reference="baseline"))
            for one in make_sweep((0.3, 0.7), (32,), int8=False, model=model)
        ]
        for model in ("fashion-resnet", "fashion-mlp")
    ]
    info = frontier_info([*models[0], *models[1]])
    assert info.y.title == "agreement lost"
    assert len([line for line in info.series if line.name == "frontier"]) == 2


def test_the_name_of_the_baseline_lies_on_no_point() -> None:
    far = [make_result(recipe(0.6, 8), ratio=0.9), make_result(recipe(0.5, 8), ratio=0.95)]
    info = frontier_info(far, cost="latency")
    assert info.reference is not None
    assert (info.reference.end, info.reference.at) == ("left", None)
    close = frontier_info([*far, make_result(recipe(0, 8), ratio=0.05)], cost="latency")
    assert close.reference is not None
    assert close.reference.at is not None
    places = sorted(point.x for line in close.series for point in line.points)
    assert places[0] < close.reference.at < min(place for place in places if place > places[0])
    (name,) = [one for one in figure(close).layout.annotations if one.text == close.reference.name]
    assert name.xanchor == "center"


@pytest.mark.parametrize("cost", ["kl", "drop"])
def test_a_cost_may_be_0_everywhere(cost: str) -> None:
    info = frontier_info([make_result(recipe(0, 32))], cost=cost)
    assert [point.x for line in info.series for point in line.points if line.markers] == [0]
    assert span(info.x)[1] > 0
    assert figure(info).layout.xaxis.range


@pytest.mark.parametrize(("cost", "shape"), [("latency", "hv"), ("throughput", "vh")])
def test_steps_of_the_frontier_go_through_what_was_measured_alone(cost: str, shape: str) -> None:
    """What a point has is had at any higher cost, and at any lower throughput."""
    (line,) = [trace for trace in figure(frontier_info(SWEEP, cost=cost)).data if trace.name == "frontier"]
    assert len(line.x) > 1
    assert line.line.shape == shape


@pytest.mark.parametrize("cost", ["compressed_size", "latency"])
def test_frontiers_of_two_sweeps_are_those_of_each_on_the_same_axes(cost: str) -> None:
    few, many = SWEEP[::2], SWEEP
    info = frontiers_info({"this sweep": few, "entry 2": many}, few[0].key, cost)
    for name, results in (("this sweep", few), ("entry 2", many)):
        alone = series(frontier_info(results, cost=cost), "frontier")
        steps, points = sorted((one for one in info.series if one.name == name), key=lambda one: one.markers)
        assert [point.key for point in steps.points] == [point.key for point in alone.points]
        assert {point.key for point in points.points} == {point.key for point in alone.points}
        assert (steps.line, steps.legend, points.line, points.legend) == ("steps", False, "none", True)
        assert steps.colour == points.colour
    assert len({one.colour for one in info.series}) == 2
    assert info.series[-1].name == "this sweep", "its points are drawn over those of the other"
    assert figure(info, dark=False).data
    assert frontiers_info({"this sweep": [], "entry 2": []}, cost=cost).empty == NO_RESULTS


def test_frontiers_of_two_sweeps_without_a_calm_time_say_so() -> None:
    noisy = [make_result(recipe(0.5), noisy=True)]
    info = frontiers_info({"this sweep": noisy, "entry 2": noisy}, cost="latency")
    assert "every latency is noisy" in info.empty
    assert frontiers_info({"this sweep": noisy, "entry 2": noisy}).series


def test_times_of_another_machine_are_on_no_line_of_two_sweeps() -> None:
    here, elsewhere = ([make_result(recipe(0.5), other_machine=other)] for other in (False, True))
    info = frontiers_info({"this sweep": here, "entry 2": elsewhere}, cost="latency")
    assert {one.name for one in info.series if one.line == "steps"} == {"this sweep"}
    assert {one.name for one in info.series} == {"this sweep", "entry 2"}
    by_size = frontiers_info({"this sweep": here, "entry 2": elsewhere})
    assert {one.name for one in by_size.series if one.line == "steps"} == {"this sweep", "entry 2"}
