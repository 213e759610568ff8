"""A result as a point: what it shows when pointed at, and what fades it."""

from collections.abc import Callable

import pytest
from factories import make_result, make_sweep, recipe

from optimizer.analysis.summary import summarise
from optimizer.charts import accuracy_info, compare_info, figure, frontier_info, latency_info
from optimizer.charts.points import hover, wrapped
from optimizer.charts.spec import Lines


def test_noise_fades_times_and_nothing_else() -> None:
    noisy = make_result(recipe(0.6), noisy=True)
    assert latency_info([noisy]).series[0].points[0].noisy
    assert not accuracy_info([noisy]).series[0].points[0].noisy
    assert all(not point.noisy for line in frontier_info([noisy]).series for point in line.points)
    assert any(point.noisy for line in frontier_info([noisy], cost="latency").series for point in line.points)


@pytest.mark.parametrize("draw", [accuracy_info, frontier_info, latency_info, compare_info])
def test_what_hollow_points_mean_is_said_where_there_are_some(draw: Callable[..., Lines]) -> None:
    plain, rounded = make_result(recipe(0.6)), make_result(recipe(0.6, 4))
    assert summarise(rounded).simulated
    assert "hollow: simulated" in draw([plain, rounded]).note
    assert "hollow" not in draw([plain]).note


def test_shapes_are_named_where_there_are_several() -> None:
    dense = [one for one in make_sweep((0, 0.5), (32,), int8=True) if one.request.recipe.quantize.bits == 32]
    info = frontier_info(make_sweep((0, 0.5), (32,), int8=True))
    assert info.shapes == (("circle", "dense fp32"), ("square", "int8 kernels"))
    assert {"dense fp32", "int8 kernels"} < {trace.name for trace in figure(info).data}
    assert not frontier_info(dense).shapes


def test_hover_has_the_recipe_all_figures_and_how_they_were_measured() -> None:
    summary = summarise(make_result(recipe(0.5, 4), noisy=True, quick=True))
    text = hover(summary)
    for part in (
        "50 % of layer weights pruned · 4-bit weights",
        "fashion-resnet on OpenVINO, 10,000 bundled images",
        f"accuracy {summary.text('accuracy')}",
        f"lost {summary.text('drop')}",
        "p &lt; 0.001",
        "file 593 kB",
        "ratio ",
        "rounds, 2 threads, batch size 1",
        "simulated: 4-bit weights",
        "noisy: ",
        "preliminary: ",
    ):
        assert part in text, part


def test_without_labels_answers_are_called_others_and_not_worse() -> None:
    summary = summarise(make_result(recipe(0.5, 4), labelled=False))
    drop = summary.drop
    assert drop.lost, "else there is nothing to say"
    changed = f"{drop.lost} of {drop.total:,} images answered otherwise"
    assert f"lost {summary.text('drop')}: {changed}<br>" in hover(summary)
    assert "worse" not in hover(summary)
    assert "otherwise" not in hover(summarise(make_result(recipe(), labelled=False)))


def test_hover_escapes_what_users_name() -> None:
    result = make_result(model="<img src=x onerror=alert(1)>", path="/photos/<b>bold</b>")
    text = hover(summarise(result))
    assert "<img" not in text
    assert "<b>bold" not in text


def test_no_line_of_a_long_name_begins_with_the_dot_between_its_parts() -> None:
    lines = wrapped("60 % of layer weights pruned · 4-bit weights", 26).splitlines()
    assert lines == ["60 % of layer weights", "pruned · 4-bit weights"]
