"""How the charts are drawn, whatever they say."""

import html
import json
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from factories import make_result, make_sweep, recipe
from test_charts_kernels import COVERAGE
from test_charts_serving import RUN

from optimizer.analysis.measures import Measure
from optimizer.analysis.scaling import ExecutionKind
from optimizer.analysis.serving import best_under
from optimizer.analysis.slopes import Fit
from optimizer.analysis.summary import Summary, summarise
from optimizer.charts import (
    accuracy_info,
    align,
    alternative,
    compare_info,
    complexity_info,
    figure,
    frontier_info,
    frontiers_info,
    gains_info,
    kernels_info,
    latency_info,
    parallel_info,
    parts_info,
    samples_info,
    serving_info,
    size_info,
)
from optimizer.charts.drawing import HEIGHT, LEGEND_PIXELS, MAX_LETTERS, ROW_PIXELS
from optimizer.charts.spec import Axis, Lines, Point, Series, Stacks
from optimizer.charts.theme import DARK, LIGHT
from optimizer.errors import InputError
from optimizer.records import Result

SWEEP = make_sweep()


def key_of(results: list[Result], sparsity: float, bits: int, activation_bits: int = 32) -> str:
    wanted = recipe(sparsity, bits, activation_bits)
    return next(result.key for result in results if result.request.recipe == wanted)


def span(axis: Axis) -> tuple[float, float]:
    assert axis.span is not None
    return axis.span


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


FITS = {name: Fit(1.0, 0.98, 1.02, 2_000.0, 0.1, 20_000, 7, 4, ()) for name in ExecutionKind}

ALL = {
    "accuracy": accuracy_info(SWEEP, SWEEP[8].key),
    "accuracy, waiting": accuracy_info(SWEEP, "not measured yet", cursor=60.0),
    "size": size_info(SWEEP, SWEEP[8].key),
    "latency": latency_info(SWEEP, SWEEP[-1].key),
    "frontier": frontier_info(SWEEP, SWEEP[8].key),
    "rounds": samples_info(SWEEP[-1]),
    "distribution": samples_info(SWEEP[-1], "distribution"),
    "compare": compare_info(SWEEP[:4]),
    "complexity": complexity_info(complexity_points(), FITS),
    "operations": complexity_info(complexity_points(), FITS, "operations"),
    "serving": serving_info(RUN, 2e6, best_under(RUN, 2e6)),
    "gains": gains_info(RUN),
    "parts": parts_info(COVERAGE),
    "kernels": kernels_info(COVERAGE),
}
EMPTY = {
    "accuracy": accuracy_info([]),
    "size": size_info([]),
    "latency": latency_info([]),
    "frontier": frontier_info([]),
    "compare": compare_info([]),
    "complexity": complexity_info(complexity_points().iloc[:0], {}),
    "serving": serving_info(None),
    "gains": gains_info(None),
}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_every_chart_is_drawn_in_the_pages_colours_and_told_in_words(name: str, dark: bool) -> None:
    info = ALL[name]
    drawn = figure(info, dark=dark)
    assert drawn.layout.template.layout.font.color == (DARK if dark else LIGHT).text
    assert drawn.layout.template.layout.paper_bgcolor == "rgba(0,0,0,0)"
    assert html.escape(info.title) in drawn.layout.title.text
    assert isinstance(info, Stacks) or drawn.layout.height >= HEIGHT
    sent = json.loads(drawn.to_json())["data"]  # what a browser gets
    assert len(sent) == len(drawn.data) > 0
    words = alternative(info)
    assert words.startswith(info.title)
    assert words.endswith(".")


def test_the_alternative_of_rows_names_them_with_their_values() -> None:
    words = alternative(compare_info([SWEEP[0], SWEEP[8]], "drop"))
    first, second = words.split("; ")
    assert first == "Accuracy lost. accuracy lost, points · ← better, by row: uncompressed: 0 points"
    assert re.fullmatch(r"50 % of layer weights pruned · 8-bit weights: [\d.]+ points\.", second)
    many = compare_info([replace(SWEEP[8], key=str(number)) for number in range(9)])
    assert alternative(many).endswith("; and 3 more rows.")
    assert alternative(ALL["gains"]).count("×;") == len(ALL["gains"].y.categories) - 1  # type: ignore[union-attr]
    assert "first: uncompressed 60.0 µs, int8 kernels 30.0 µs; " in alternative(ALL["kernels"])


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_chart_says_what_to_do(name: str) -> None:
    drawn = figure(EMPTY[name])
    assert len(drawn.data) == 0
    assert len(drawn.layout.annotations[0].text) > 20
    assert not drawn.layout.xaxis.visible


def test_a_long_heading_is_broken_between_its_parts_and_the_plot_makes_room() -> None:
    info = ALL["frontier"]
    short, long = (figure(replace(info, note=note)).layout for note in ("faint", " · ".join(["more"] * 9)))  # type: ignore[type-var]
    assert short.title.text.count("<br>") == 1
    assert long.title.text.count("<br>") == 2
    assert long.margin.t > short.margin.t
    assert max(len(re.sub("<.*?>", "", line)) for line in long.title.text.split("<br>")) <= MAX_LETTERS


def test_charts_side_by_side_are_of_one_height_with_their_plots_at_one_level() -> None:
    """Whichever of them has the longer heading, and whichever the longer legend."""
    frontier, accuracy = ALL["frontier"], ALL["accuracy"]
    assert isinstance(frontier, Lines)
    assert isinstance(accuracy, Lines)
    long = replace(
        frontier, note=" · ".join(["more"] * 20), series=frontier.series[:1], shapes=(), selected=None
    )
    point = next(line.points[0] for line in accuracy.series if line.points)
    many = replace(accuracy, series=tuple(Series(f"{one:020}", "accent", (point,)) for one in range(9)))
    empty = accuracy_info([])
    drawn = [figure(info, height=300) for info in (long, many, empty)]
    apart = [(one.layout.height, one.layout.margin.t) for one in drawn]
    assert len(set(apart)) > 1
    align(drawn)
    rooms = {(one.layout.height, one.layout.margin.t, one.layout.margin.b) for one in drawn}
    ((height, top, bottom),) = rooms
    assert height == max(height for height, _ in apart)
    assert top == max(top for _, top in apart)
    plot = height - top - bottom
    assert drawn[1].layout.legend.y * plot == pytest.approx(-LEGEND_PIXELS), "where it was below the axis"


def test_rows_of_a_legend_are_not_taken_from_the_plot() -> None:
    info = ALL["accuracy"]
    assert isinstance(info, Lines)
    point = next(series.points[0] for series in info.series if series.points)

    def height(count: int, letters: int) -> int:
        series = tuple(Series(f"{number:0{letters}}", "accent", (point,)) for number in range(count))
        return figure(replace(info, series=series, shapes=(), selected=None), height=240).layout.height

    assert height(4, 4) == 240, "one row"
    assert height(8, 4) == 240 + ROW_PIXELS
    assert height(8, 40) == 240 + 7 * ROW_PIXELS, "one below the other"


@pytest.mark.parametrize("info", ["accuracy", "size", "latency", "frontier"])
def test_only_the_selected_point_has_the_accent_and_it_is_on_top(info: str) -> None:
    for dark, theme in ((False, LIGHT), (True, DARK)):
        drawn = figure(ALL[info], dark=dark)
        accent = theme.colours["accent"]
        with_accent = [
            index for index, trace in enumerate(drawn.data) if accent in str(trace.to_plotly_json())
        ]
        assert with_accent == [len(drawn.data) - 1]
        assert drawn.data[-1].name == "this recipe"
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


@pytest.mark.parametrize(
    ("unit", "end", "value", "suffix"),
    [
        ("ns", 1e6, 0.6, " ms"),
        ("B", 2e6, 0.6, " MB"),
        ("", 9e6, 0.6, " M"),
        ("", 9e3, 6e5, ""),
        ("%", 50, 6e5, ""),
    ],
)
def test_all_ticks_of_an_axis_have_the_unit_that_its_end_reaches(
    unit: str, end: float, value: float, suffix: str
) -> None:
    line = Series("line", "faint", (Point(1.0, 6e5),))
    drawn = figure(Lines("values", Axis("x"), Axis("value", unit, span=(0, end)), (line,)))
    assert drawn.data[0].y[0] == pytest.approx(value)
    assert drawn.layout.yaxis.ticksuffix == suffix
    assert not drawn.layout.yaxis.tickformat, "which would give each tick a prefix of its own"
    assert drawn.layout.yaxis.range[0] == 0


def test_log_axes_are_drawn_log_and_span_the_points() -> None:
    drawn = figure(ALL["complexity"])
    assert drawn.layout.xaxis.type == "log"
    low, high = drawn.layout.xaxis.range
    for trace in drawn.data:
        assert all(low <= np.log10(x) <= high for x in trace.x)


def test_ticks_of_a_near_log_axis_have_their_unit_and_far_ones_are_powers_of_ten() -> None:
    line = Series("line", "faint", (Point(1.0, 3e5), Point(2.0, 4e6)))
    near = figure(Lines("near", Axis("x"), Axis("time", "ns", log=True, span=(2e5, 8e6)), (line,)))
    written = dict(zip(near.layout.yaxis.ticktext, near.layout.yaxis.tickvals, strict=True))
    assert written["200 µs"] == pytest.approx(0.2)
    assert written["5 ms"] == pytest.approx(5)
    assert near.data[0].y == pytest.approx([0.3, 4])
    assert not near.layout.yaxis.ticksuffix
    far = figure(Lines("far", Axis("x"), Axis("divergence", "nats", log=True, span=(1e-8, 1.0)), (line,)))
    assert far.layout.yaxis.tickvals is None
    times = figure(Lines("far", Axis("x"), Axis("time", "ns", log=True, span=(1e4, 1e8)), (line,)))
    assert times.layout.yaxis.ticktext == ("10 µs", "100 µs", "1 ms", "10 ms", "100 ms")
    assert (far.layout.yaxis.dtick, far.layout.yaxis.exponentformat) == (1, "power")


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


def test_drawing_leaves_the_info_as_it_was() -> None:
    before = repr(ALL["frontier"])
    figure(ALL["frontier"])
    assert repr(ALL["frontier"]) == before


def test_unknown_metrics_are_refused() -> None:
    for draw in (lambda: frontier_info(SWEEP, cost="price"), lambda: compare_info(SWEEP, "price")):
        with pytest.raises(InputError, match="unknown metric 'price'"):
            draw()


def test_empty_charts_of_a_network_without_classes_name_its_metric() -> None:
    empty = accuracy_info([], score="sqnr")
    assert (empty.title, empty.y.title) == ("Fidelity against sparsity", "SQNR of the outputs")
    assert frontier_info([], loss="sqnr").title.startswith("Frontier: SQNR against ")
    assert accuracy_info([]).title == "Accuracy against sparsity"


def lacking() -> Summary:
    """A result of which no figure is known."""
    one = summarise(make_result(recipe(0.5)))
    return replace(one, measures=dict.fromkeys(one.measures, Measure(None)))


@pytest.mark.parametrize(
    "drawn",
    [
        lambda some: accuracy_info(some),
        lambda some: size_info(some),
        lambda some: latency_info(some),
        lambda some: frontier_info(some),
        lambda some: frontier_info(some, cost="latency"),
        lambda some: frontiers_info({"this": some, "that": []}),
        lambda some: parallel_info(some),
        lambda some: compare_info(some, "drop"),
        lambda some: compare_info(some, "file_size"),
    ],
)
def test_a_chart_with_nothing_to_show_says_what_to_do(drawn: Callable[[list[Summary]], object]) -> None:
    """In the place of its axes; and not that nothing was measured where something was."""
    said = []
    for some in ([], [lacking()]):
        chart = figure(drawn(some))
        assert not chart.data
        assert not chart.layout.xaxis.visible
        assert not chart.layout.yaxis.visible
        (words,) = (one.text for one in chart.layout.annotations)
        assert words.count("<br>") == 1 or words.startswith("Pin"), "what is so, and what to do"
        said.append(words)
    assert said[0] != said[1]
