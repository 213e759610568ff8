"""What the chart of latency against sparsity says."""

from dataclasses import replace

import pytest
from factories import OTHER_MACHINE, make_latency, make_result, recipe, remade, visits
from test_charts import SWEEP, series, span

from optimizer.analysis.summary import summarise
from optimizer.charts import frontier_info, latency_info
from optimizer.charts.axes import baseline_of
from optimizer.formats import count
from optimizer.recipe import Override, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import Result


def test_latency_has_one_line_a_realisation_with_its_own_marker() -> None:
    info = latency_info(SWEEP)
    assert [(line.name, line.points[0].marker) for line in info.series] == [
        ("dense fp32", "circle"),
        ("int8 kernels", "square"),
    ]
    assert span(info.y)[0] == 0
    assert "from 0" in info.y.title
    assert info.reference is not None
    assert info.reference.y == 1.0


def test_another_machine_is_a_line_of_its_own_with_a_visible_mark() -> None:
    elsewhere = make_result(recipe(0.5), ratio=1.4, other_machine=True)
    info = latency_info([*SWEEP, elsewhere])
    line = series(info, "dense fp32, other environment")
    assert [(point.key, point.marker) for point in line.points] == [(elsewhere.key, "x")]
    assert elsewhere.key not in {point.key for point in series(info, "dense fp32").points}
    frontier = frontier_info([*SWEEP, elsewhere], cost="latency")
    assert elsewhere.key not in {point.key for point in series(frontier, "frontier").points}


def test_two_other_machines_are_two_lines_told_apart_by_name() -> None:
    one = make_result(recipe(0.5), ratio=1.4, other_machine=True)
    two = remade(one, environment=replace(OTHER_MACHINE, cpu="A third CPU"), key="third")
    info = latency_info([*SWEEP, one, two])
    lines = [line for line in info.series if "other environment" in line.name]
    assert sorted(line.name for line in lines) == [
        f"dense fp32, other environment {number}" for number in (1, 2)
    ]
    assert sorted(point.key for line in lines for point in line.points) == sorted([one.key, "third"])


def test_engines_are_told_apart_by_name_and_line() -> None:
    info = latency_info([*SWEEP, make_result(recipe(0.5), engine="torch")])
    assert series(info, "dense fp32, OpenVINO").line == "solid"
    assert series(info, "dense fp32, torch eager").line == "dash"


def skipped(fallback: str = "") -> Result:
    """Of which every layer skipped zeros."""
    made = make_result(recipe(0.7), engine="sparse", ratio=0.8)
    layers = tuple(replace(layer, skips_zeros=True) for layer in made.execution.layers)
    return remade(made, execution=replace(made.execution, layers=layers, fallback=fallback))


def test_the_chosen_engine_has_the_line_of_each_realisation_that_it_has() -> None:
    eager = make_result(recipe(0.5), engine="torch", ratio=1.1)
    results = [*SWEEP, skipped(), eager]
    lines = {
        "openvino": [("dense fp32", "solid"), ("int8 kernels", "solid"), ("sparse kernels", "dash")],
        "sparse": [("dense fp32", "dash"), ("int8 kernels", "dash"), ("sparse kernels", "solid")],
        "torch": [("dense fp32", "solid"), ("int8 kernels", "dash"), ("sparse kernels", "dash")],
    }  # fmt: skip
    for engine, expected in lines.items():
        info = latency_info(results, engine=engine)
        others, *drawn = info.series
        assert [(line.name, line.line) for line in drawn] == expected
        assert others.name == "others"
        assert info.note == "hollow: simulated · dashed: another engine"
        assert (eager.key in {point.key for point in others.points}) == (engine != "torch")


def test_where_torch_stands_in_for_our_kernels_its_name_is_on_the_line() -> None:
    line = series(latency_info([*SWEEP, skipped("none was built")], engine="sparse"), "torch CSR")
    assert (line.colour, line.points[0].marker) == ("sparse kernels", "diamond")
    assert "ran: torch CSR" in line.points[0].hover


def test_what_tells_on_the_clock_has_a_line_of_its_own() -> None:
    def removed(share: float, snap: int = 1) -> Recipe:
        return Recipe(PruneSpec("channels", share, allocation="measured", snap=snap))

    apart = Recipe(PruneSpec(sparsity=0.5), layers=(Override("9.weight", sparsity=0.1),))
    info = latency_info([make_result(way) for way in (removed(0.2), removed(0.4), removed(0.4, 16), apart)])
    assert [(line.name, line.line, len(line.points)) for line in info.series] == [
        ("dense fp32, 1 layer override", "none", 1),
        ("channels removed", "solid", 2),
        ("channels removed, in multiples of 16", "solid", 1),
    ]
    int8 = QuantizeSpec(weight_bits=8, activation_bits=8)
    rounded = [make_result(Recipe(prune, int8)) for prune in (PruneSpec(), removed(0.2).prune)]
    assert [line.name for line in latency_info(rounded).series] == [
        "int8 kernels",
        "int8 kernels, channels removed",
    ]


def test_threads_and_batch_have_lines_of_their_own_where_they_differ() -> None:
    one, two, four = (make_result(recipe(share)) for share in (0.2, 0.4, 0.6))
    two = remade(two, latency=replace(two.latency, threads=one.latency.threads + 1))
    four = remade(four, latency=replace(four.latency, batch=4))
    threads = count(one.latency.threads, "thread")
    assert [(line.name, line.line) for line in latency_info([one, two, four]).series] == [
        (f"dense fp32, {threads}", "solid"),
        (f"dense fp32, {threads}, batch size 4", "dash"),
        (f"dense fp32, {one.latency.threads + 1} threads", "dash"),
    ]
    assert [line.name for line in latency_info([one]).series] == ["dense fp32"]


def test_two_results_at_one_place_keep_the_line_straight_and_the_selected_one_on_it() -> None:
    again = make_result(recipe(0.5, 4), seed=9, ratio=1.2)
    for results in ([*SWEEP, again], [again, *SWEEP]):
        info = latency_info(results, again.key)
        line = series(info, "dense fp32")
        assert len({point.x for point in line.points}) == len(line.points)
        assert again.key in {point.key for point in line.points}
        others = series(info, "others").points
        assert len(others) == 1
        assert others[0].y == pytest.approx(1.0, abs=0.01)


def test_a_disturbed_interval_does_not_squeeze_the_others() -> None:
    noisy = make_result(recipe(0.6), noisy=True)
    times = [*noisy.latency.variant.medians_ns[:100], *[10**8] * 100]
    wild = remade(noisy, latency=replace(noisy.latency, variant=visits(times)))
    info = latency_info([*SWEEP, wild])
    assert span(info.y)[1] < 100


def disturbed(ratio: float, sparsity: float = 0.6) -> Result:
    """A noisy result at so many times the baseline's time."""
    noisy = make_result(recipe(sparsity), noisy=True)
    slow = visits(ratio * noisy.latency.baseline[0].medians_ns)
    return remade(noisy, latency=replace(noisy.latency, variant=slow))


def test_the_axis_follows_the_calm_points_and_says_what_lies_above() -> None:
    calm, wild, near = latency_info(SWEEP), disturbed(9.0), disturbed(1.3, 0.4)
    info = latency_info([*SWEEP, wild], engine="openvino")
    assert info.y.span == calm.y.span
    assert info.note == "hollow: simulated · 1 noisy point above the axis"
    assert wild.key in {point.key for point in series(info, "dense fp32").points}
    both = latency_info([*SWEEP, wild, near])
    assert 1.3 < span(both.y)[1] < 2
    assert both.note == "hollow: simulated · 1 noisy point above the axis"


def test_the_selected_point_is_on_the_axis_however_disturbed() -> None:
    wild = disturbed(9.0)
    info = latency_info([*SWEEP, wild], wild.key)
    assert span(info.y)[1] > 9
    assert "above" not in info.note


def test_where_all_are_noisy_the_axis_follows_the_usual_ones() -> None:
    wild = disturbed(9.0, 0.9)
    info = latency_info([*(disturbed(1.0, share) for share in (0.3, 0.5, 0.7)), wild])
    assert span(info.y)[1] < 2
    assert info.note == "1 noisy point above the axis"


def test_a_noisy_interval_is_whole_where_there_is_room() -> None:
    """Else of a machine that is never quiet every interval ends at the frame."""
    noisy = make_result(recipe(0.6), noisy=True)
    medians = noisy.latency.baseline[0].medians_ns
    swinging = visits([*(1.25 * medians[:100]), *(0.8 * medians[100:])])
    info = latency_info([remade(noisy, latency=replace(noisy.latency, variant=swinging))])
    ((point,),) = (line.points for line in info.series)
    assert point.high is not None
    assert point.y * 1.08 < point.high < span(info.y)[1]


def test_a_calm_slow_point_is_never_left_out() -> None:
    slow = make_result(recipe(0.6), ratio=6.0)
    info = latency_info([*SWEEP, slow])
    assert span(info.y)[1] > 6
    assert "above" not in info.note


def test_unpaired_measurements_do_not_share_a_baseline_line() -> None:
    slower = remade(make_result(recipe(0.6), ratio=1.0), latency=make_latency(1.0, seed=5))
    both = [summarise(SWEEP[0]), summarise(slower)]
    assert baseline_of(both, None, "latency") is None
    chosen = baseline_of(both, slower.key, "latency")
    assert chosen is not None
    assert chosen.y == both[1].measures["latency"].baseline
