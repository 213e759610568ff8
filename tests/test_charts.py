import re
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from factories import make_latency, make_result, make_sweep, recipe, remade

from optimizer.charts import (
    EXECUTIONS,
    accuracy_info,
    alternative,
    compare_info,
    complexity_info,
    figure,
    frontier_info,
    histogram_info,
    hover,
    latency_info,
    layers_info,
    samples_info,
    sensitivity_info,
    size_info,
)
from optimizer.errors import InputError
from optimizer.figures import MOST_LETTERS, Axis, Bars, Lines, Point, Series
from optimizer.frame import summarise
from optimizer.recipe import WEIGHT_BITS, Override, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import Anatomy, Result, Sensitivity
from optimizer.theme import DARK, LIGHT, MARKERS, Theme

SWEEP = make_sweep()


@dataclass(frozen=True)
class Fit:
    slope: float
    low: float
    high: float
    floor_ns: float
    from_n: float


def key_of(results: list[Result], sparsity: float, bits: int, activation_bits: int = 32) -> str:
    wanted = recipe(sparsity, bits, activation_bits)
    return next(result.key for result in results if result.request.recipe == wanted)


def series(info: Lines, name: str) -> Series:
    return next(line for line in info.series if line.name == name)


def complexity_points() -> pd.DataFrame:
    rows = []
    for execution, share, cost_ns in (("dense", 1.0, 0.1), ("csr", 0.5, 0.4), ("rows removed", 0.5, 0.1)):
        for n in (10, 1_000, 100_000, 10_000_000):
            time_ns = 2_000 + n * share * cost_ns
            rows.append(
                {
                    "execution": execution,
                    "n": n,
                    "operations": int(n * share),
                    "surviving": n // 2,
                    "removed_share": 0.5,
                    "median_ns": time_ns,
                    "low_ns": 0.98 * time_ns,
                    "high_ns": 1.03 * time_ns,
                }
            )
    return pd.DataFrame(rows)


FITS = {name: Fit(1.0, 0.98, 1.02, 2_000.0, 20_000) for name in EXECUTIONS}

ALL = {
    "accuracy": accuracy_info(SWEEP, SWEEP[8].key),
    "accuracy, waiting": accuracy_info(SWEEP, "not measured yet", cursor=60.0),
    "size": size_info(SWEEP, SWEEP[8].key),
    "latency": latency_info(SWEEP, SWEEP[-1].key),
    "frontier": frontier_info(SWEEP, SWEEP[8].key),
    "frontier, log": frontier_info(SWEEP, cost="latency", log=True),
    "rounds": samples_info(SWEEP[-1]),
    "distribution": samples_info(SWEEP[-1], "distribution"),
    "compare": compare_info(SWEEP[:4]),
    "complexity": complexity_info(complexity_points(), FITS),
    "operations": complexity_info(complexity_points(), FITS, "operations"),
    "layers": layers_info(SWEEP[8]),
}
EMPTY = {
    "accuracy": accuracy_info([]),
    "size": size_info([]),
    "latency": latency_info([]),
    "frontier": frontier_info([]),
    "compare": compare_info([]),
    "complexity": complexity_info(complexity_points().iloc[:0], {}),
    "layers": Bars("Layers", Axis("weights"), ()),
}


# What the charts say


def test_accuracy_has_one_line_a_bit_width_from_many_bits_to_few() -> None:
    info = accuracy_info(SWEEP)
    assert [line.name for line in info.series] == ["32", "8", "8, act. 8", "4", "3"]
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


def test_simulated_points_are_hollow_and_measured_ones_filled() -> None:
    info = accuracy_info(SWEEP)
    assert not any(point.simulated for point in series(info, "32").points)
    assert all(point.simulated for point in series(info, "4").points)
    assert not any(point.simulated for point in series(info, "8, act. 8").points)


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


def test_recipes_of_another_family_recede() -> None:
    other = make_result(Recipe(recipe(0.5).prune, QuantizeSpec(weight_bits=4, granularity="tensor")))
    info = accuracy_info([*SWEEP, other])
    assert [point.key for point in series(info, "other recipes").points] == [other.key]
    assert other.key not in {point.key for point in series(info, "4").points}
    chosen = accuracy_info([*SWEEP, other], other.key)
    assert [point.key for point in series(chosen, "4").points] == [other.key]
    rounded = {
        (point.x, point.y)
        for line in accuracy_info(SWEEP).series
        if line.name != "32"
        for point in line.points
    }
    assert {(point.x, point.y) for point in series(chosen, "other recipes").points} == rounded
    assert series(chosen, "32") == series(info, "32")  # what is not rounded goes with any rounding


def test_collapsed_recipes_that_recede_do_not_squeeze_the_lines_and_are_counted() -> None:
    tensor = QuantizeSpec(weight_bits=2, granularity="tensor")
    near = make_result(Recipe(recipe(0.7).prune, replace(tensor, weight_bits=3)))
    collapsed = make_result(Recipe(recipe(0.9).prune, tensor))
    lines = [one for one in SWEEP if one.request.recipe.prune.sparsity in (None, 0.3, 0.5)]
    info, alone = accuracy_info([*lines, near, collapsed]), accuracy_info(lines)
    assert len(series(info, "other recipes").points) == 2
    assert info.y.span is not None
    assert alone.y.span is not None
    assert info.y.span[0] > 80
    assert info.y.span[1] - info.y.span[0] <= 2.2 * (alone.y.span[1] - alone.y.span[0])
    assert (info.note, alone.note) == ("1 lies below", "")
    chosen = accuracy_info([*lines, near, collapsed], collapsed.key)
    assert chosen.y.span is not None
    assert chosen.y.span[0] < 29
    assert chosen.note == ""


def test_a_long_heading_is_broken_between_its_parts_and_the_plot_makes_room() -> None:
    info = ALL["frontier"]
    short, long = (figure(replace(info, note=note)).layout for note in ("faint", " · ".join(["more"] * 12)))  # type: ignore[type-var]
    assert short.title.text.count("<br>") == 1
    assert long.title.text.count("<br>") == 2
    assert long.margin.t > short.margin.t
    assert max(len(re.sub("<.*?>", "", line)) for line in long.title.text.split("<br>")) <= MOST_LETTERS


def test_grids_that_are_best_for_their_width_are_of_one_family() -> None:
    ways = [
        make_result(Recipe(quantize=QuantizeSpec("compensated", bits, symmetric=symmetric)))
        for bits, symmetric in ((8, True), (4, False), (4, True))
    ]
    info = accuracy_info(ways, ways[0].key)
    assert [point.key for point in series(info, "4").points] == [ways[1].key]
    assert [point.key for point in series(info, "other recipes").points] == [ways[2].key]


def test_options_are_lines_of_their_own_named_as_such() -> None:
    half, four = PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=4)
    ways = {
        "4, 1 layer apart": Recipe(half, four, (Override("9.weight", sparsity=0.1),)),
        "4, trained 30 s": Recipe(half, four, training_seconds=30),
        "4, in bfloat16": Recipe(half, replace(four, precision="bf16")),
        "4, outputs matched": Recipe(replace(half, match=True), four),
        "4, equalised": Recipe(half, replace(four, equalise=True)),
        "32, snapped to 16": Recipe(PruneSpec("channels", 0.5, allocation="measured", snap=16)),
        "32, best effort": Recipe(PruneSpec("compensated", 0.5, effort="best")),
    }
    for name, way in ways.items():
        apart = make_result(way)
        info = accuracy_info([*SWEEP, apart])
        if way.prune.method == "magnitude":
            line = series(info, name)
            assert [point.key for point in line.points] == [apart.key]
            assert line.line == ("none" if way.layers else "dash")
            assert apart.key not in {point.key for point in series(info, "4").points}
        chosen = accuracy_info([*SWEEP, apart], apart.key)
        assert apart.key in {point.key for point in series(chosen, name).points}
        assert series(chosen, name).line == "solid"


def test_what_has_no_place_for_an_option_joins_the_line_that_has_it() -> None:
    trained = [make_result(Recipe(PruneSpec(sparsity=share), training_seconds=9)) for share in (0.5, 0.7)]
    info = accuracy_info([*SWEEP, *trained], trained[0].key)
    line = series(info, "32, trained 9 s")
    assert [point.x for point in line.points] == [0, 50, 70]
    assert [point.x for point in series(info, "32").points] == [30, 50, 70, 80, 90]
    assert series(info, "32").line == "dash"
    assert "4" in {line.name for line in info.series}, "nothing of 4 bits was trained"


def test_many_options_do_not_hide_the_main_lines() -> None:
    trained = [
        make_result(Recipe(PruneSpec(sparsity=0.5), training_seconds=seconds)) for seconds in (1, 2, 3, 4, 5)
    ]
    info = accuracy_info([*SWEEP, *trained])
    assert sum("trained" in line.name for line in info.series) == 3
    assert len(series(info, "other recipes").points) == 2


def test_size_is_of_the_selected_layers_apart() -> None:
    apart = make_result(Recipe(PruneSpec(sparsity=0.5), layers=(Override("9.weight", weight_bits=8),)))
    info = size_info([*SWEEP, apart], apart.key)
    assert info.title == "Size against bits, 50 % of all weights pruned, 1 layer apart"
    assert {point.key for line in info.series for point in line.points} == {apart.key}
    assert apart.key not in {
        point.key for line in size_info([*SWEEP, apart], SWEEP[6].key).series for point in line.points
    }


def test_bits_on_average_are_a_line_of_their_own() -> None:
    info = accuracy_info([make_result(Recipe(quantize=QuantizeSpec(average_bits=3.5)))])
    assert [(line.name, line.colour) for line in info.series] == [("3.5 mixed", "bits 3")]
    size = size_info([make_result(Recipe(quantize=QuantizeSpec(average_bits=3.5)))])
    assert size.series[0].points[0].x == pytest.approx(1.5)  # between 3 and 4


def test_a_disturbed_interval_does_not_squeeze_the_others() -> None:
    noisy = make_result(recipe(0.6), noisy=True)
    wild = remade(
        noisy, latency=replace(noisy.latency, variant_ns=(*noisy.latency.variant_ns[:100], *[10**8] * 100))
    )
    info = latency_info([*SWEEP, wild])
    assert info.y.span is not None
    assert info.y.span[1] < 100


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


def test_agreement_is_called_agreement() -> None:
    info = accuracy_info([make_result(labelled=False)])
    assert info.y.title.startswith("agreement with the uncompressed model")


def test_size_is_drawn_at_the_selected_pruning() -> None:
    info = size_info(SWEEP, key_of(SWEEP, 0.5, 4))
    assert info.title == "Size against bits, 50 % of all weights pruned"
    assert [line.name for line in info.series] == ["file as served", "compressed (zstd)", "packed (counted)"]
    at = [WEIGHT_BITS[int(point.x)] for point in info.series[0].points]
    assert at == [3, 4, 8, 32]
    assert all(point.simulated for point in series(info, "packed (counted)").points)
    assert not any(point.simulated for point in series(info, "file as served").points)
    assert info.y.span is not None
    assert info.y.span[0] == 0
    assert size_info(SWEEP).title == "Size against bits, nothing pruned"


def test_latency_has_one_line_a_realisation_with_its_own_marker() -> None:
    info = latency_info(SWEEP)
    assert [(line.name, line.points[0].marker) for line in info.series] == [
        ("dense fp32", "circle"),
        ("int8 kernels", "square"),
    ]
    assert info.y.span is not None
    assert info.y.span[0] == 0
    assert "from 0" in info.y.title
    assert info.reference is not None
    assert info.reference.y == 1.0


def test_another_machine_is_a_line_of_its_own_with_a_visible_mark() -> None:
    elsewhere = make_result(recipe(0.5), ratio=1.4, other_machine=True)
    for name in ("latency", "latency_ratio"):
        info = latency_info([*SWEEP, elsewhere], name=name)
        line = series(info, "dense fp32, other machine")
        assert [(point.key, point.marker) for point in line.points] == [(elsewhere.key, "x")]
        assert elsewhere.key not in {point.key for point in series(info, "dense fp32").points}
    frontier = frontier_info([*SWEEP, elsewhere], cost="latency")
    assert elsewhere.key not in {point.key for point in series(frontier, "frontier").points}


def test_engines_are_told_apart_by_name_and_line() -> None:
    info = latency_info([*SWEEP, make_result(recipe(0.5), engine="torch")])
    assert series(info, "dense fp32, OpenVINO").line == "solid"
    assert series(info, "dense fp32, torch eager").line == "dash"


def test_the_chosen_engine_has_the_line_of_each_realisation_that_it_has() -> None:
    skipped = make_result(recipe(0.7), engine="sparse", ratio=0.8)
    kernels = tuple(replace(layer, kernel="AVX2 sparse") for layer in skipped.execution.layers)
    skipped = remade(skipped, execution=replace(skipped.execution, layers=kernels))
    eager = make_result(recipe(0.5), engine="torch", ratio=1.1)
    results = [*SWEEP, skipped, eager]
    lines = {
        "openvino": [("dense fp32", "solid"), ("int8 kernels", "solid"), ("sparse kernels", "dash")],
        "sparse": [
            ("dense fp32", "dash"),
            ("int8 kernels", "dash"),
            ("sparse kernels", "solid"),
        ],
        "torch": [("dense fp32", "solid"), ("int8 kernels", "dash"), ("sparse kernels", "dash")],
    }  # fmt: skip
    for engine, expected in lines.items():
        info = latency_info(results, engine=engine)
        others, *drawn = info.series
        assert [(line.name, line.line) for line in drawn] == expected
        assert others.name == "others"
        assert info.note == "dashed: another engine"
        assert (eager.key in {point.key for point in others.points}) == (engine != "torch")


def test_where_torch_stands_in_for_our_kernels_its_name_is_on_the_line() -> None:
    skipped = make_result(recipe(0.7), engine="sparse", ratio=0.8)
    layers = tuple(replace(layer, kernel="torch CSR, 9 weights") for layer in skipped.execution.layers)
    why = "no sparse kernels here (none was built): torch's CSR for 9 of 9 layers"
    skipped = remade(skipped, execution=replace(skipped.execution, layers=layers, simulated=(why,)))
    line = series(latency_info([*SWEEP, skipped], engine="sparse"), "torch CSR")
    assert (line.colour, line.points[0].marker) == ("sparse kernels", "diamond")
    assert "ran: torch CSR" in line.points[0].hover


def test_what_tells_on_the_clock_has_a_line_of_its_own() -> None:
    def removed(share: float, snap: int = 1) -> Recipe:
        return Recipe(PruneSpec("channels", share, allocation="measured", snap=snap))

    apart = Recipe(PruneSpec(sparsity=0.5), layers=(Override("9.weight", sparsity=0.1),))
    info = latency_info([make_result(way) for way in (removed(0.2), removed(0.4), removed(0.4, 16), apart)])
    assert [(line.name, line.line, len(line.points)) for line in info.series] == [
        ("dense fp32, 1 layer apart", "none", 1),
        ("channels removed", "solid", 2),
        ("channels removed, snapped to 16", "solid", 1),
    ]


def test_noise_fades_times_and_nothing_else() -> None:
    noisy = make_result(recipe(0.6), noisy=True)
    assert latency_info([noisy]).series[0].points[0].noisy
    assert not accuracy_info([noisy]).series[0].points[0].noisy
    assert all(not point.noisy for line in frontier_info([noisy]).series for point in line.points)
    assert any(point.noisy for line in frontier_info([noisy], cost="latency").series for point in line.points)


def test_percentiles_need_a_full_measurement() -> None:
    info = latency_info([make_result(rounds=40)], name="latency_p95")
    assert info.series == ()
    assert "full measurement" in info.empty
    assert latency_info([make_result(rounds=200)], name="latency_p95").series


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


def test_unknown_metrics_are_refused() -> None:
    for draw in (lambda: frontier_info(SWEEP, cost="price"), lambda: compare_info(SWEEP, "price")):
        with pytest.raises(InputError, match="unknown metric 'price'"):
            draw()


@pytest.mark.parametrize("view", ["rounds", "distribution"])
def test_samples_show_every_call_or_say_how_many_are_left_out(view: str) -> None:
    result = make_result(recipe(0.5, 8, 8))
    info = samples_info(result, view)  # type: ignore[arg-type]
    assert sum(len(line.points) for line in info.series) == 3 * 200
    top = (info.y if view == "rounds" else info.x).span[1]  # type: ignore[index]
    beyond = sum(
        time > top for times in (*result.latency.baseline_ns, result.latency.variant_ns) for time in times
    )
    assert info.note == f"faster · {beyond} call{'' if beyond == 1 else 's'} took longer"


def test_samples_of_the_baseline_itself_are_shown_too() -> None:
    info = samples_info(make_result())
    assert [line.name for line in info.series] == ["baseline", "baseline again", "uncompressed"]


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


def test_complexity_shows_points_slope_and_floor() -> None:
    info = complexity_info(complexity_points(), FITS)
    assert [line.name for line in info.series if line.markers] == [
        "dense, slope 1.00 (0.98 to 1.02)",
        "csr, slope 1.00 (0.98 to 1.02)",
        "rows removed, slope 1.00 (0.98 to 1.02)",
    ]
    assert info.reference is not None
    assert info.reference.name == "overhead of a layer's call: 2.00 µs"
    assert info.x.log
    assert info.y.log
    assert "log" in info.x.title
    assert "log" in info.y.title


def test_fitted_line_is_the_power_law_above_the_overhead() -> None:
    fitted = series(complexity_info(complexity_points(), FITS), "dense, fitted")
    assert fitted.line == "dot"
    first, last = fitted.points
    assert (first.x, last.x) == (100_000, 10_000_000)
    assert last.y == pytest.approx(0.1 * 10_000_000)
    assert np.log(last.y / first.y) / np.log(last.x / first.x) == pytest.approx(1.0)


def test_operations_are_counted_not_fitted() -> None:
    info = complexity_info(complexity_points(), FITS, "operations", n_label="weights × output pixels n")
    assert [line.name for line in info.series] == ["dense", "csr", "rows removed"]
    assert [point.y for point in series(info, "csr").points] == [5, 500, 50_000, 5_000_000]
    assert info.reference is None
    assert info.x.title.startswith("weights × output pixels n")


def test_unknown_execution_is_refused() -> None:
    points = complexity_points().assign(execution="magic")
    with pytest.raises(InputError, match="unknown execution 'magic': use one of dense, sparse kernel, csr"):
        complexity_info(points, {})


def test_layers_count_what_is_left_in_the_order_of_the_network() -> None:
    result = make_result(recipe(0.7, 4))
    info = layers_info(result)
    assert [bar.name for bar in info.bars][:2] == ["0.0", "3.first.0"]
    assert sum(bar.kept for bar in info.bars) == sum(layer.nonzero for layer in result.inspection.layers)
    assert {bar.colour for bar in info.bars} == {"bits 4"}


def test_hover_has_the_recipe_all_figures_and_how_they_were_measured() -> None:
    summary = summarise(make_result(recipe(0.5, 4), noisy=True, quick=True))
    text = hover(summary)
    for part in (
        "50 % of all weights pruned · 4-bit weights",
        "fashion-resnet on OpenVINO, 10,000 bundled images",
        f"accuracy {summary.text('accuracy')}",
        f"lost {summary.text('drop')}",
        "p &lt; 0.001",
        "file 593 kB",
        "ratio ",
        "rounds, 2 threads, batch 1",
        "simulated: 4-bit weights",
        "noisy: ",
        "preliminary: ",
    ):
        assert part in text, part


def test_hover_escapes_what_users_name() -> None:
    result = make_result(model="<img src=x onerror=alert(1)>", path="/photos/<b>bold</b>")
    text = hover(summarise(result))
    assert "<img" not in text
    assert "<b>bold" not in text


# How they are drawn


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_every_chart_draws_valid_and_transparent(name: str, dark: bool) -> None:
    drawn = figure(ALL[name], dark=dark)
    assert isinstance(drawn, go.Figure)
    assert drawn.layout.template.layout.paper_bgcolor == "rgba(0,0,0,0)"
    assert drawn.layout.title.text
    assert drawn.layout.height >= 330
    assert len(drawn.to_json()) > 1000


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_chart_says_what_to_do(name: str) -> None:
    drawn = figure(EMPTY[name])
    assert len(drawn.data) == 0
    assert len(drawn.layout.annotations[0].text) > 20
    assert not drawn.layout.xaxis.visible


@pytest.mark.parametrize("info", ["accuracy", "size", "latency", "frontier"])
def test_only_the_selected_point_has_the_accent_and_it_is_on_top(info: str) -> None:
    for dark, theme in ((False, LIGHT), (True, DARK)):
        drawn = figure(ALL[info], dark=dark)
        accent = theme.colours["accent"]
        with_accent = [
            index for index, trace in enumerate(drawn.data) if accent in str(trace.to_plotly_json())
        ]
        assert with_accent == [len(drawn.data) - 1]
        assert drawn.data[-1].name == "this setting"
        assert len(drawn.data[-1].x) == 1


def test_drawn_points_carry_the_key_and_hollow_ones_the_page_colour() -> None:
    info = accuracy_info(SWEEP)
    drawn = figure(info)
    for trace, line in zip(drawn.data, info.series, strict=True):
        assert list(trace.customdata) == [point.key for point in line.points]
        for colour, point in zip(trace.marker.color, line.points, strict=True):
            assert (colour == LIGHT.page) == point.simulated
        assert trace.hovertemplate is None


def test_noisy_points_fade_and_keep_their_interval() -> None:
    drawn = figure(latency_info([make_result(recipe(0.6), noisy=True)]))
    trace = drawn.data[0]
    assert trace.marker.opacity[0] < 0.6
    assert trace.error_y.array[0] > 0
    assert trace.error_y.arrayminus[0] > 0


def test_times_are_drawn_in_seconds_with_their_unit_on_the_axis() -> None:
    info = latency_info([make_result()], name="latency")
    drawn = figure(info)
    assert drawn.data[0].y[0] == pytest.approx(info.series[0].points[0].y / 1e9)
    assert drawn.layout.yaxis.ticksuffix == "s"
    assert drawn.layout.yaxis.range[0] == 0


def test_log_axes_are_drawn_log_and_span_the_points() -> None:
    drawn = figure(ALL["frontier, log"])
    assert drawn.layout.xaxis.type == "log"
    low, high = drawn.layout.xaxis.range
    for trace in drawn.data:
        assert all(low <= np.log10(x) <= high for x in trace.x)


def test_baseline_is_a_grey_dashed_line_with_its_name() -> None:
    drawn = figure(accuracy_info(SWEEP))
    line = drawn.layout.shapes[0].line
    assert (line.dash, line.color) == ("dash", LIGHT.colours["baseline"])
    assert drawn.layout.annotations[0].text == "uncompressed 93.4 %"


def test_figures_escape_what_users_name() -> None:
    evil = "<img src=x onerror=alert(1)>"
    point = Point(0, 1, "key", hover="hover")
    info = Lines(
        evil, Axis(evil), Axis(evil, categories=(evil,)), (Series(evil, "faint", (point,)),), note=evil
    )
    assert "<img" not in figure(info).to_json().replace("\\u003c", "<")


def test_a_figure_needs_an_info() -> None:
    with pytest.raises(TypeError, match="DataFrame is not a chart"):
        figure(pd.DataFrame())


@pytest.mark.parametrize("name", ALL)
def test_every_chart_has_words_for_who_does_not_see_it(name: str) -> None:
    words = alternative(ALL[name])
    assert words.startswith(ALL[name].title)
    assert words.endswith(".")


def test_drawing_leaves_the_info_as_it_was() -> None:
    before = repr(ALL["frontier"])
    figure(ALL["frontier"])
    assert repr(ALL["frontier"]) == before


# Colours


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_fewer_bits_are_darker(theme: Theme) -> None:
    ramp = [luminance(theme.colours[f"bits {bits}"]) for bits in WEIGHT_BITS]
    assert ramp == sorted(ramp)
    assert len(set(ramp)) == len(ramp)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_can_be_seen(theme: Theme) -> None:
    assert contrast(theme.text, theme.page) > 7
    assert contrast(theme.muted, theme.page) > 4.5
    assert contrast(theme.colours["accent"], theme.page) > 3
    for bits in WEIGHT_BITS[:-2]:
        assert contrast(theme.colours[f"bits {bits}"], theme.page) > 2.5


def test_realisations_differ_in_hue_and_in_marker() -> None:
    assert len(set(MARKERS.values())) == len(MARKERS)
    for theme in (LIGHT, DARK):
        assert len({theme.colours[name] for name in MARKERS}) == len(MARKERS)
        assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in theme.colours.values())


def test_unpaired_measurements_do_not_share_a_baseline_line() -> None:
    slower = make_result(recipe(0.6), ratio=1.0)
    slower = remade(slower, latency=replace(make_latency(1.0, seed=5), measured_for="uncompressed"))
    assert latency_info([SWEEP[0], slower], name="latency").reference is None
    chosen = latency_info([SWEEP[0], slower], slower.key, name="latency").reference
    assert chosen is not None
    assert chosen.y == summarise(slower).measures["latency"].baseline


ANATOMY = Anatomy("3.first.0.weight", (-0.3, -0.1, 0.1, 0.3), (2, 5, 3), (2, 0, 3), 5, 0.08, (-0.2, 0.0, 0.2))
SENSITIVITIES = (
    Sensitivity("0.0.weight", 1e-6, True, {4: 1e-5, 3: 1e-4, 2: 1e-3}),
    Sensitivity("9.weight", 0.0, False, {4: 2e-5, 3: 2e-4, 2: 2e-3}),
)


def test_a_histogram_steps_at_the_edges_of_its_bins() -> None:
    info = histogram_info(ANATOMY)
    after = series(info, "after, but for zeros")
    assert [(point.x, point.y) for point in after.points] == [(-0.3, 2), (-0.1, 0), (0.1, 3), (0.3, 3)]
    assert after.points[0].hover == "2 weights from -0.3 to -0.1"
    assert info.note == "5 of 10 are zero"


def test_a_histogram_shows_threshold_and_grid_inside_its_axes() -> None:
    info = histogram_info(ANATOMY)
    lines = [line for line in info.series if line.name == "threshold, |w| ≤ 0.08"]
    assert [line.points[0].x for line in lines] == [-0.08, 0.08]
    assert [line.legend for line in lines] == [False, True]
    grid = series(info, "grid of the widest channel")
    assert [point.x for point in grid.points] == [-0.2, 0.0, 0.2]
    assert info.y.span is not None
    assert all(info.y.span[0] < point.y < 0 for point in grid.points)
    assert len(figure(info).data) == 5


def test_a_histogram_of_a_layer_left_alone_has_one_line_from_zero() -> None:
    info = histogram_info(replace(ANATOMY, after=ANATOMY.before, zeros=0, threshold=-1.0, levels=()))
    assert [line.name for line in info.series] == ["before"]
    assert info.y.span is not None
    assert info.y.span[0] == 0


def test_sensitivities_are_one_row_a_layer_and_leave_out_zeros() -> None:
    info = sensitivity_info(SENSITIVITIES, "9.weight")
    assert info.y.categories == ("0.0", "9")
    assert info.y.span == (1.5, -0.5)
    assert info.x.log
    pruned = series(info, "pruned, its share of 60 %")
    assert [(point.x, point.y, point.simulated) for point in pruned.points] == [(1e-6, 0, False)]
    for bits, values in ((4, [1e-5, 2e-5]), (2, [1e-3, 2e-3])):
        assert [point.x for point in series(info, f"{bits} bits").points] == values
        assert all(point.simulated for point in series(info, f"{bits} bits").points)
    assert len({line.points[0].marker for line in info.series[:4]}) == 4
    chosen = series(info, "this layer")
    assert [(point.x, point.y) for point in chosen.points] == [(2e-5, 1), (2e-4, 1), (2e-3, 1)]


def test_sensitivities_without_a_layer_say_so() -> None:
    assert "No layer" in figure(sensitivity_info(())).layout.annotations[0].text
