"""What the chart of size against bits says."""

from factories import make_result, make_sweep
from test_charts import SWEEP, key_of, series, span

from optimizer.charts import size_info
from optimizer.recipe import WEIGHT_BITS, Override, PruneSpec, Recipe


def test_size_is_of_the_selected_layers_apart() -> None:
    apart = make_result(Recipe(PruneSpec(sparsity=0.5), layers=(Override("9.weight", weight_bits=8),)))
    info = size_info([*SWEEP, apart], apart.key)
    assert info.title == "Size against bits, 50 % of layer weights pruned, 1 layer override"
    assert {point.key for line in info.series for point in line.points} == {apart.key}
    assert apart.key not in {
        point.key for line in size_info([*SWEEP, apart], SWEEP[6].key).series for point in line.points
    }


def test_size_is_drawn_at_the_selected_pruning() -> None:
    info = size_info(SWEEP, key_of(SWEEP, 0.5, 4))
    assert info.title == "Size against bits, 50 % of layer weights pruned"
    assert [line.name for line in info.series] == ["file as served", "zstd", "packed (counted)"]
    at = [WEIGHT_BITS[int(point.x)] for point in info.series[0].points]
    assert at == [3, 4, 8, 32]
    assert all(point.simulated for point in series(info, "packed (counted)").points)
    assert not any(point.simulated for point in series(info, "file as served").points)
    assert span(info.y)[0] == 0
    assert size_info(SWEEP).title == "Size against bits, nothing pruned"


def test_where_all_are_pruned_size_is_at_the_commonest_pruning() -> None:
    pruned = [*make_sweep((0.7,), (4,), int8=False), *make_sweep((0.5,), (8, 4), int8=False)]
    info = size_info(pruned)
    assert info.title == "Size against bits, 50 % of layer weights pruned"
    assert {point.key for line in info.series for point in line.points} == {one.key for one in pruned[1:]}
    assert info.series
