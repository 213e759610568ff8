"""Which recipes are on one line of a chart."""

from dataclasses import replace

from factories import make_result, recipe
from test_charts import SWEEP, series

from optimizer.charts import accuracy_info
from optimizer.recipe import Override, PruneSpec, QuantizeSpec, Recipe


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
        "4, 1 layer override": Recipe(half, four, (Override("9.weight", sparsity=0.1),)),
        "4, fine-tuned 30 steps": Recipe(half, four, finetune_steps=30),
        "4, in bfloat16": Recipe(half, replace(four, precision="bf16")),
        "4, batch norm re-estimated": Recipe(replace(half, match=True), four),
        "4, equalised": Recipe(half, replace(four, equalise=True)),
        "32, in multiples of 16": Recipe(PruneSpec("channels", 0.5, allocation="measured", snap=16)),
        "32, best effort 60 s": Recipe(PruneSpec("compensated", 0.5), effort_seconds=60),
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
    trained = [make_result(Recipe(PruneSpec(sparsity=share), finetune_steps=9)) for share in (0.5, 0.7)]
    info = accuracy_info([*SWEEP, *trained], trained[0].key)
    line = series(info, "32, fine-tuned 9 steps")
    assert [point.x for point in line.points] == [0, 50, 70]
    assert [point.x for point in series(info, "32").points] == [30, 50, 70, 80, 90]
    assert series(info, "32").line == "dash"
    assert "4" in {line.name for line in info.series}, "nothing of 4 bits was trained"
