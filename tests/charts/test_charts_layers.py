"""What the charts of a model's layers say: one layer's histogram, and their sensitivity."""

from dataclasses import replace

from test_charts import series, span

from optimizer.charts import figure, histogram_info, sensitivity_info
from optimizer.records import Anatomy, Sensitivity

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
    assert all(span(info.y)[0] < point.y < 0 for point in grid.points)
    assert len(figure(info).data) == 5


def test_a_histogram_of_a_layer_left_alone_has_one_line_from_zero() -> None:
    info = histogram_info(replace(ANATOMY, after=ANATOMY.before, zeros=0, threshold=-1.0, levels=()))
    assert [line.name for line in info.series] == ["before"]
    assert span(info.y)[0] == 0


def test_sensitivities_are_one_row_a_layer_and_leave_out_zeros() -> None:
    info = sensitivity_info(SENSITIVITIES, "9.weight")
    assert info.y.categories == ("0.0", "9")
    assert info.y.span == (1.5, -0.5)
    assert info.x.log
    pruned = series(info, "pruned to its share of 60 % sparsity")
    assert [(point.x, point.y, point.simulated) for point in pruned.points] == [(1e-6, 0, False)]
    for bits, values in ((4, [1e-5, 2e-5]), (2, [1e-3, 2e-3])):
        assert [point.x for point in series(info, f"{bits} bits").points] == values
        assert all(point.simulated for point in series(info, f"{bits} bits").points)
    assert len({line.points[0].marker for line in info.series[:4]}) == 4
    chosen = series(info, "this layer")
    assert [(point.x, point.y) for point in chosen.points] == [(2e-5, 1), (2e-4, 1), (2e-3, 1)]


def test_sensitivities_without_a_layer_say_so() -> None:
    assert "No layer" in figure(sensitivity_info(())).layout.annotations[0].text
