"""What the chart of chosen configurations says."""

from dataclasses import replace

from factories import make_result, remade
from test_charts import SWEEP

from optimizer.analysis.summary import summarise
from optimizer.charts import brief, compare_info, figure
from optimizer.charts.drawing import row_pixels
from optimizer.formats import count
from optimizer.recipe import PruneSpec, Recipe


def test_compare_puts_each_configuration_in_its_row_with_its_interval() -> None:
    chosen = [SWEEP[0], SWEEP[8], SWEEP[-1]]
    info = compare_info(chosen)
    points = sorted((point for line in info.series for point in line.points), key=lambda point: point.y)
    assert [point.key for point in points] == [result.key for result in chosen]
    for point, result in zip(points, chosen, strict=True):
        measure = summarise(result).measures["accuracy"]
        assert (point.x, point.x_low, point.x_high) == (measure.value, measure.low, measure.high)
    assert len(info.y.categories) == 3


def test_rows_leave_out_what_is_in_brackets_unless_it_tells_them_apart() -> None:
    compensated = Recipe(PruneSpec("compensated", 0.5))
    alone = compare_info([make_result(compensated), make_result()])
    assert alone.y.categories == ("50 % of layer weights pruned", "uncompressed")
    measured = Recipe(PruneSpec("compensated", 0.5, allocation="measured"))
    both = compare_info([make_result(compensated), make_result(measured)])
    assert len(set(both.y.categories)) == 2
    assert all("data-aware" in name for name in both.y.categories)
    pairs = [("a", "a (b)"), ("a", "a (b)"), ("c", "c (d)"), ("c", "c")]
    assert brief(pairs) == ["a", "a", "c (d)", "c"]
    assert figure(both).layout.height >= 330
    assert row_pixels(both.y) >= 16 * max(name.count("\n") + 1 for name in both.y.categories)


def test_compare_names_threads_and_batch_where_they_differ() -> None:
    one = make_result()
    more = remade(one, latency=replace(one.latency, threads=one.latency.threads + 1, batch=8))
    threads = count(one.latency.threads, "thread")
    assert compare_info([one, more]).y.categories == (
        f"uncompressed · {threads}",
        f"uncompressed · {one.latency.threads + 1} threads,\nbatch size 8",
    )


def test_compare_names_models_where_they_differ() -> None:
    info = compare_info([make_result(), make_result(model="fashion-vit")])
    assert [label.split(" ")[0] for label in info.y.categories] == ["fashion-resnet", "fashion-vit"]


def test_what_is_relative_is_drawn_against_the_reference_that_is_chosen() -> None:
    chosen = [SWEEP[0], SWEEP[8], make_result(path="/other")]
    info = compare_info(chosen, "drop", SWEEP[8])
    assert info.title == "Accuracy lost against the reference"
    assert info.note.startswith(f"reference: {summarise(SWEEP[8]).recipe.describe(False)} · ")
    others = compare_info([SWEEP[8], make_result(model="fashion-vit")], "drop", SWEEP[8])
    assert others.note.startswith("reference: fashion-resnet · "), "the same recipe may be there of another"
    points = {point.key: point for line in info.series for point in line.points}
    assert set(points) == {SWEEP[0].key, SWEEP[8].key}
    assert (points[SWEEP[8].key].x, points[SWEEP[0].key].x) == (0, -summarise(SWEEP[8]).drop.points)
    assert (points[SWEEP[8].key].x_low, points[SWEEP[8].key].x_high) == (0, 0), "it is the reference"
    assert "1 can't be compared" in info.note
    assert compare_info(chosen, "file_size", SWEEP[8]) == compare_info(chosen, "file_size")
