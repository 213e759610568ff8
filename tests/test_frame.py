import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from factories import OTHER_MACHINE, make_latency, make_result, make_sweep, recipe, remade

from optimizer.errors import InputError
from optimizer.frame import BADGES, COLUMNS, JSON_VERSION, as_json, frame, realisation, summarise, table
from optimizer.metrics import METRICS
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import Accuracy, Execution, LayerExecution, Result, decode, encode
from optimizer.statistics import paired_drop, summarise_latency, wilson


def names(result: Result) -> list[str]:
    return [badge.name for badge in summarise(result).badges]


def test_every_metric_has_a_measure() -> None:
    assert list(summarise(make_result()).measures) == list(METRICS)


def test_figures_come_from_the_raw_samples() -> None:
    result = make_result(recipe(0.7, 4))
    summary = summarise(result)
    low, high = wilson(summary.correct, summary.total)
    accuracy = summary.measures["accuracy"]
    assert (accuracy.value, accuracy.low, accuracy.high) == pytest.approx(
        (100 * summary.correct / 10_000, 100 * low, 100 * high)
    )
    assert summary.correct == int(result.accuracy.outcomes.sum())
    assert accuracy.baseline == pytest.approx(93.4)
    assert summary.drop == paired_drop(result.baseline_accuracy.outcomes, result.accuracy.outcomes)
    assert summary.latency == summarise_latency(result.latency.baseline_ns, result.latency.variant_ns)
    assert summary.measures["latency"].value == np.median(result.latency.variant_ns)


def test_median_interval_holds_the_median_and_needs_samples() -> None:
    latency = summarise(make_result()).measures["latency"]
    assert latency.low is not None
    assert latency.high is not None
    assert latency.low <= latency.value <= latency.high  # type: ignore[operator]
    few = summarise(remade(make_result(), latency=make_latency(rounds=5))).measures["latency"]
    assert (few.low, few.high) == (None, None)


def test_throughput_is_the_batch_over_the_time() -> None:
    result = make_result()
    result = remade(result, latency=replace(result.latency, batch=8))
    measures = summarise(result).measures
    assert measures["throughput"].value == pytest.approx(8e9 / measures["latency"].value)  # type: ignore[operator]
    assert measures["throughput"].low == pytest.approx(8e9 / measures["latency"].high)  # type: ignore[operator]


def test_operations_count_only_non_zero_weights() -> None:
    measure = summarise(make_result(recipe(0.5))).measures["operations"]
    assert measure.value == pytest.approx(measure.baseline / 2, rel=1e-3)  # type: ignore[operator]


def test_missing_figures_are_missing() -> None:
    quick = summarise(make_result(quick=True, rounds=40))
    for name in ("memory", "latency_p95", "latency_p99", "sqnr"):
        assert quick.measures[name].value is None
        assert quick.text(name) == "–"


def test_threshold_recipes_are_placed_at_the_share_that_is_zero() -> None:
    by_threshold = Recipe(PruneSpec(threshold=0.1))
    result = make_result(recipe(0.7))
    result = remade(result, request=replace(result.request, recipe=by_threshold))
    summary = summarise(result)
    assert summary.pruned_percent == summary.zeros_percent == pytest.approx(70, abs=0.01)


def test_zeros_of_rounding_are_not_taken_for_pruning() -> None:
    result = make_result(recipe(0.3, 2))
    size = replace(result.inspection.size, nonzero=result.inspection.size.elements // 4)
    summary = summarise(remade(result, inspection=replace(result.inspection, size=size)))
    assert summary.pruned_percent == pytest.approx(30)
    assert summary.zeros_percent == pytest.approx(75)


def test_badges_say_how_far_to_trust() -> None:
    assert names(make_result()) == ["measured"]
    assert names(make_result(recipe(0, 4))) == ["simulated"]
    assert names(make_result(recipe(0, 8, 8))) == ["measured"]
    assert names(make_result(noisy=True, quick=True)) == ["measured", "noisy", "preliminary"]
    assert names(make_result(other_machine=True)) == ["measured", "other machine"]
    assert set(names(make_result(recipe(0, 4), noisy=True, quick=True, other_machine=True))) < set(BADGES)


def test_badges_carry_their_reasons() -> None:
    badges = {badge.name: badge.words for badge in summarise(make_result(recipe(0, 4), noisy=True)).badges}
    assert badges["simulated"] == "4-bit weights: the values are exact, the kernels are f32"
    assert "second half" in badges["noisy"]


def test_a_sparse_result_tells_which_layers_skipped_zeros() -> None:
    made = make_result(recipe(0.8), engine="sparse")
    kernels = ["AVX2 sparse, 90 of 450 weights"] * 7 + ["AVX2 dense"] * 3

    def told(kernels: list[str], simulated: tuple[str, ...] = ()) -> tuple[str, int, str]:
        layers = tuple(
            LayerExecution(layer.name, "f32", kernel)
            for layer, kernel in zip(made.execution.layers, kernels, strict=True)
        )
        summary = summarise(remade(made, execution=Execution(layers, simulated)))
        return summary.badges[0].name, summary.skipping, summary.badges[0].words

    names = "0.0, 3.first.0, 3.second.0, 4.first.0, 4.second.0, 5.first.0 and 1 more"
    words = f"7 of 10 layers skipped zeros: {names}; the other 3 ran dense, which was faster there"
    assert told(kernels) == ("measured", 7, f"{BADGES['measured']}; {words}")
    assert told(kernels, ("4-bit weights",)) == ("simulated", 7, f"4-bit weights; {words}")
    name, count, words = told(["AVX2 dense"] * 10)
    assert (name, count) == ("measured", 0)
    assert "none of 10 layers skipped zeros" in words
    assert "skipped" not in summarise(make_result(recipe(0.8))).badges[0].words


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([("f32", "jit_avx512")], "dense fp32"),
        ([("f32", "jit"), ("i8", "brgconv")], "int8 kernels"),
        ([("u8", "brgconv")], "int8 kernels"),
        ([("bf16", "brgemm")], "half-precision kernels"),
        ([("f32", "csr x dense")], "sparse kernels"),
        ([("unknown", "unknown")], "unknown kernels"),
    ],
)
def test_realisation_is_what_the_kernels_did(layers: list[tuple[str, str]], expected: str) -> None:
    execution = Execution(tuple(LayerExecution("layer", *layer) for layer in layers), ())
    assert realisation(execution) == expected


def test_shared_measurement_is_named() -> None:
    assert summarise(make_result()).shared_with is None
    assert summarise(make_result(recipe(0.5))).shared_with == "uncompressed"


def test_a_full_measurement_replaces_a_quick_one_of_the_same_key() -> None:
    quick = make_result(quick=True, rounds=40)
    full = replace(quick, latency=make_latency(0.8, rounds=200))
    assert summarise(quick).latency.rounds == 40
    assert summarise(full).latency.rounds == 200
    assert summarise(quick) is summarise(quick)


def test_unlabelled_images_are_scored_against_the_uncompressed_model() -> None:
    summary = summarise(make_result(recipe(0.7), labelled=False, images=500, path="/photos/holiday"))
    assert summary.reference == "baseline"
    assert summary.measures["accuracy"].baseline == 100
    assert summary.drop.gained == 0
    assert summary.images == "500 images of holiday"


def test_frame_has_one_row_a_result_in_order_with_numbers_as_numbers() -> None:
    results = make_sweep()
    rows = frame(results)
    assert list(rows.columns) == [*COLUMNS, "frontier"]
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
    assert list(rows.columns) == [*COLUMNS, "frontier"]
    assert list(table([]).columns) == list(table(make_sweep()[:1]).columns)


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


def test_missing_memory_is_never_on_a_frontier_over_memory() -> None:
    rows = frame([make_result(quick=True), make_result(recipe(0.5))], ("drop", "memory"))
    assert list(rows["frontier"]) == [False, True]


def test_json_has_the_documented_keys_and_plain_values() -> None:
    result = make_result(recipe(0.5, 4), notes=("3 images were skipped",))
    plain = as_json(result)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["version"] == JSON_VERSION == 1
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
    assert plain["notes"] == ["3 images were skipped"]


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
    assert row["recipe"] == "50 % of all weights pruned · 8-bit weights"
    assert row["engine"] == "OpenVINO"
    assert row["file"] == "593 kB"
    assert row["accuracy"].startswith("92.9 % (92.4 to ")
    assert row["badges"] == "simulated"


def test_other_environment_is_named_in_its_badge() -> None:
    words = {badge.name: badge.words for badge in summarise(make_result(other_machine=True)).badges}
    assert OTHER_MACHINE.cpu in words["other machine"]


def test_quantize_details_are_columns() -> None:
    made = Recipe(quantize=QuantizeSpec(weight_bits=4, granularity="tensor", symmetric=False, range="mse"))
    row = frame([make_result(made)]).iloc[0]
    assert (row["granularity"], row["symmetric"], row["range"]) == ("tensor", False, "mse")


def test_nothing_here_reaches_torch() -> None:
    code = (
        "import sys; import optimizer.report, optimizer.charts, optimizer.frame, optimizer.export; "
        "print('torch' in sys.modules, 'streamlit' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
