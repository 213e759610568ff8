import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from factories import OTHER_MACHINE, make_latency, make_result, make_sweep, recipe, remade

from optimizer.analysis.frame import AGAINST, COLUMNS, Column, frame, table, timed_alike
from optimizer.analysis.frontier import frontier_of
from optimizer.analysis.metrics import METRICS
from optimizer.analysis.result_json import JSON_VERSION, as_json
from optimizer.analysis.summary import Summary, label_of, summarise
from optimizer.analysis.view import ResultView
from optimizer.charts import compare_info, frontier_info, parallel_info
from optimizer.errors import InputError
from optimizer.formats import MISSING
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import Accuracy, ColdStart, Result, Settings, decode, encode
from optimizer.system.environment import threads_available


def test_frame_has_one_row_a_result_in_order_with_numbers_as_numbers() -> None:
    results = make_sweep()
    rows = frame(results)
    assert list(rows.columns) == [*COLUMNS, "frontier", "frontier_tied", "frontier_chance"]
    assert list(rows["key"]) == [result.key for result in results]
    assert rows["accuracy_percent"].dtype == float
    assert pd.api.types.is_integer_dtype(rows["file_bytes"])
    assert rows["latency_p99_ns"].isna().all()
    assert rows["latency_p99_ns"].dtype == float
    for measured in METRICS.values():
        assert measured.column in rows


def test_frame_of_nothing_has_all_columns() -> None:
    rows = frame([])
    assert len(rows) == 0
    assert list(rows.columns) == [*COLUMNS, "frontier", "frontier_tied", "frontier_chance"]
    assert list(table([]).columns) == list(table(make_sweep()[:1]).columns)


def test_where_nothing_is_pruned_sparsity_is_0_and_with_a_threshold_there_is_none() -> None:
    """A missing one would leave the uncompressed model out of whatever is grouped or drawn by it."""
    asked = (recipe(), recipe(0.5), recipe(weight_bits=8), recipe(pattern="2:4"), recipe(threshold=0.1))
    sparsities = frame([make_result(one) for one in asked])["sparsity"]
    assert [*sparsities[:4]] == [0, 0.5, 0, 0.5]
    assert sparsities.isna()[4]


def test_images_have_a_column_where_they_differ() -> None:
    one, other = make_result(), make_result(images=500)
    assert Column.IMAGES.label not in table([one, one])
    shown = table([one, other])
    assert [*shown[Column.IMAGES.label]] == [summarise(each).images for each in (one, other)]


def test_only_what_was_timed_alike_shares_a_line() -> None:
    cores = threads_available()

    def timed(asked: int, threads: int, batch: int = 1) -> Summary:
        made = make_result()
        settings = replace(made.request.settings, threads=asked, batch=batch)
        return summarise(
            remade(
                made,
                request=replace(made.request, settings=settings),
                latency=replace(made.latency, threads=threads, batch=batch),
            )
        )

    every_core, said_so, elsewhere = timed(0, cores), timed(cores, cores), timed(0, cores + 7)
    another, batched = timed(cores + 1, cores + 1), timed(0, cores, batch=8)
    results = [every_core, said_so, elsewhere, another, batched]
    assert timed_alike(results, Settings()) == [every_core, said_so, elsewhere]
    assert timed_alike(results, Settings(threads=cores)) == [every_core, said_so]
    assert timed_alike(results, Settings(threads=cores + 1)) == [another]
    assert timed_alike(results, Settings(batch=8)) == [batched]


def test_frontier_is_pareto_and_follows_the_chosen_metrics() -> None:
    results = make_sweep()
    rows = frame(results, ("drop", "packed_size"))
    losses = rows[["drop_points", "packed_bytes"]].to_numpy()
    for index, on_frontier in enumerate(rows["frontier"]):
        dominated = ((losses <= losses[index]).all(1) & (losses < losses[index]).any(1)).any()
        assert on_frontier == (not dominated)
    with pytest.raises(InputError, match="unknown metric 'speed'"):
        frame(results, ("drop", "speed"))


def test_results_that_cannot_be_compared_do_not_dominate_each_other() -> None:
    here, better_elsewhere = (
        make_result(recipe(0.5), ratio=1.0),
        make_result(recipe(0.5), ratio=0.1, other_machine=True),
    )
    assert frame([here, better_elsewhere])["frontier"].all()
    worse_here = make_result(recipe(0.7), ratio=1.5)
    rows = frame([here, worse_here], ("drop", "latency"))
    assert list(rows["frontier"]) == [True, False]


def test_threads_matter_to_a_frontier_over_what_depends_on_them() -> None:
    small, large = make_result(recipe(0.5, 4)), make_result(recipe(0.5, 32), ratio=1.5)
    size = large.inspection.size
    assert size.memory_bytes
    small = remade(small, cold_start=ColdStart(1_000_000, 1_000_000))
    larger = replace(large.inspection, size=replace(size, memory_bytes=2 * size.memory_bytes))
    large = remade(large, inspection=larger, cold_start=ColdStart(2_000_000, 1_000_000))
    elsewhere = remade(large, latency=replace(large.latency, threads=large.latency.threads + 1))
    for name in ("latency_ratio", "memory", "cold_start"):
        assert list(frame([small, large], (name,))["frontier"]) == [True, False], name
        assert list(frame([small, elsewhere], (name,))["frontier"]) == [True, True], name
    assert list(frame([small, elsewhere], ("packed_size",))["frontier"]) == [True, False]


def test_what_is_relative_to_another_baseline_is_not_ranked() -> None:
    torch, openvino = (
        make_result(recipe(0.5), engine="torch", ratio=0.3),
        make_result(recipe(0.5), ratio=0.5),
    )
    other = make_result(recipe(0.5), model="fashion-linear", ratio=0.2)
    assert frame([torch, openvino, other], ("drop", "latency_ratio"))["frontier"].all()
    assert list(frame([torch, openvino], ("accuracy", "latency"))["frontier"]) == [True, False]


def test_a_noisy_time_neither_beats_nor_joins() -> None:
    clean = make_result(recipe(0.5), ratio=0.5)
    noisy = remade(clean, latency=make_latency(0.3, noisy=True))
    assert summarise(noisy).noise
    timed = frontier_of([summarise(clean), summarise(noisy)], ("drop", "latency_ratio"))
    assert (list(timed.optimal), list(timed.group)) == ([True, False], [0, -1])
    untimed = frontier_of([summarise(clean), summarise(noisy)], ("drop", "packed_size"))
    assert list(untimed.optimal) == [True, True]


def test_what_chance_may_have_beaten_is_tied() -> None:
    best = make_result(recipe(0.5), ratio=1.0)
    flipped = best.accuracy.outcomes.copy()
    flipped[np.flatnonzero(flipped)[:4]] = False
    level = remade(best, accuracy=Accuracy.of(flipped, reference="labels", agreement=1, sqnr_db=1.0, kl=1.0))
    flipped = flipped.copy()
    flipped[np.flatnonzero(flipped)[:40]] = False
    worse = remade(best, accuracy=Accuracy.of(flipped, reference="labels", agreement=1, sqnr_db=1.0, kl=1.0))
    rows = frame([best, level, worse], ("drop", "packed_size"))
    assert list(rows["frontier"]) == [True, False, False]
    assert list(rows["frontier_tied"]) == [False, True, False]
    assert list(table([best, level, worse])["frontier"]) == ["yes", "tied", ""]


def test_any_result_is_compared_with_any_other() -> None:
    results = [make_result(recipe(0.9, 3)), make_result(recipe(0.9, 4)), make_result(recipe(0.9), path="/a")]
    rows = frame(results, against=results[1])
    assert list(rows.columns)[-len(AGAINST) :] == list(AGAINST)
    assert set(rows["against"]) == {results[1].key}
    assert list(rows["against_accuracy_verdict"])[:2] == ["worse", "no measurable difference"]
    lost = rows["against_lost_points"]
    assert lost[0] == pytest.approx(rows["drop_points"][0] - rows["drop_points"][1])
    assert lost[1] == 0
    assert np.isnan(lost[2])
    assert "not the same images" in rows["against_missing"][2]
    written = table(results, results[1])
    assert list(written["accuracy differs"]) == ["worse", "the reference", "not the same images"]
    assert list(written["lost against reference"])[1:] == ["the reference", "–"]


def test_without_labels_it_is_agreement_that_differs() -> None:
    results = [make_result(recipe(0.9, 3), labelled=False), make_result(recipe(), labelled=False)]
    written = table(results, results[1])
    assert list(written["agreement differs"]) == ["worse", "the reference"]
    assert "accuracy differs" not in written
    assert "agreement differs" not in table([make_result(), *results], results[1])


def test_missing_memory_is_never_on_a_frontier_over_memory() -> None:
    rows = frame([make_result(quick=True), make_result(recipe(0.5))], ("drop", "memory"))
    assert list(rows["frontier"]) == [False, True]


def test_json_has_the_documented_keys_and_plain_values() -> None:
    result = make_result(recipe(0.5, 4), notes=("3 images were skipped",))
    plain = as_json(result)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["version"] == JSON_VERSION == 3
    for key in plain:
        assert f"``{key}``" in as_json.__doc__  # type: ignore[operator]
    for part in ("agreement", "weights", "latency", "drop", "accuracy", "baseline", "execution"):
        for key in plain[part]:
            assert f"``{key}``" in as_json.__doc__, key  # type: ignore[operator]
    assert plain["model"] == "fashion-resnet"
    assert plain["engine"] == "openvino"
    assert Recipe.from_dict(plain["recipe"]) == result.request.recipe
    accuracy = plain["accuracy"]
    assert accuracy["correct"] / accuracy["total"] == accuracy["value"]
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert plain["drop"]["lost"] - plain["drop"]["gained"] == pytest.approx(plain["drop"]["points"] * 100)
    assert set(plain["size_bytes"]) == {"file", "packed", "compressed", "memory"}
    assert plain["latency"]["ratio_low"] <= plain["latency"]["ratio"] <= plain["latency"]["ratio_high"]
    assert plain["latency"]["shared_with"] == "uncompressed"
    assert plain["execution"]["precisions"] == {"f32": 10}
    assert plain["environment"]["libraries"] == result.environment.libraries
    assert plain["scored_on"] is None
    assert plain["notes"] == ["3 images were skipped"]


def test_json_and_the_frame_name_another_machine_that_worked_out_the_accuracy() -> None:
    result = make_result(recipe(0.5))
    other = remade(result, scored_on=OTHER_MACHINE)
    assert as_json(other)["scored_on"]["cpu"] == OTHER_MACHINE.cpu
    (here, there) = frame([result, other])["scored_on"]
    assert here == ""
    assert there.startswith(OTHER_MACHINE.cpu)


def test_json_writes_missing_and_not_finite_as_null() -> None:
    result = make_result(quick=True)
    accuracy = Accuracy.of(
        result.accuracy.outcomes, reference="labels", agreement=0, sqnr_db=None, kl=math.nan
    )
    plain = as_json(remade(result, accuracy=accuracy))
    assert plain["agreement"]["kl_nats"] is None
    assert plain["size_bytes"]["memory"] is None


def test_summary_survives_the_store() -> None:
    result = make_result(recipe(0.7, 3), notes=("a note",))
    again = decode(encode(result), Result)
    assert as_json(again) == as_json(result)


def test_table_writes_units_and_intervals() -> None:
    row = table([make_result(recipe(0.5, 8))]).iloc[0]
    assert row["recipe"] == "50 % of layer weights pruned · 8-bit weights"
    assert row["engine"] == "OpenVINO"
    assert row["file"] == "593 kB"
    assert row["zstd"].endswith(" kB"), "as cards and charts call it"
    assert row["accuracy"].startswith("92.9 % (92.4 to ")
    assert row["badges"] == "simulated"


def test_without_labels_tables_and_charts_say_agreement() -> None:
    alone = [make_result(recipe(one), labelled=False) for one in (0.3, 0.5)]
    (first, _), kept = table(alone).iloc, summarise(alone[0])
    assert (first["agreement"], first["agreement lost"]) == (kept.text("accuracy"), kept.text("drop"))
    assert not {"accuracy", "accuracy lost"} & {*table(alone).columns}
    assert "agreement" not in table([make_result()]).columns
    assert "accuracy" in table([]).columns
    mixed = [*alone, make_result(recipe(0.5))]
    assert [[one == MISSING for one in table(mixed)[name]] for name in ("accuracy", "agreement")] == [
        [True, True, False],
        [False, False, True],
    ]
    titles = [info.title for info in (compare_info(alone), compare_info(alone, "drop"), frontier_info(alone))]
    assert titles == ["Agreement", "Agreement lost", "Frontier: agreement lost against zstd size"]
    assert "agreement" in [axis.title for axis in parallel_info(alone).axes]
    info = compare_info(mixed)
    assert info.title == "Accuracy"
    assert [name.endswith("agreement") for name in info.y.categories] == [True, True, False]
    (hover,) = [one.hover for line in info.series for one in line.points if one.key == alone[0].key]
    assert f"agreement {kept.text('accuracy')}" in hover
    assert "agreement lost" in repr(ResultView(alone[0]))
    assert label_of("file_size", map(summarise, alone)) == "file size"


def test_quantize_details_are_columns() -> None:
    made = Recipe(quantize=QuantizeSpec(weight_bits=4, granularity="tensor", symmetric=False, range="mse"))
    row = frame([make_result(made)]).iloc[0]
    assert (row["granularity"], row["symmetric"], row["range"]) == ("tensor", False, "mse")
