from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from factories import OTHER_MACHINE, make_latency, make_result, recipe, remade, visits

from optimizer.analysis.badges import BADGES
from optimizer.analysis.metrics import METRICS
from optimizer.analysis.outcomes import paired_drop, wilson
from optimizer.analysis.realisation import Realisation, realisation
from optimizer.analysis.result_json import as_json
from optimizer.analysis.rounds import mean_interval
from optimizer.analysis.statistics import mean_time_interval, summarise_visits
from optimizer.analysis.summary import describe_images, summarise, summarise_scores
from optimizer.recipe import PruneSpec, Recipe
from optimizer.records import DataSpec, Execution, Known, LayerExecution, Result


def names(result: Result) -> list[str]:
    return [badge.kind for badge in summarise(result).badges]


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
    timed = result.latency
    assert summary.latency == summarise_visits(timed.baseline, timed.variant, 0.0, timed.processes)
    assert summary.measures["latency"].value == np.median(timed.variant.medians_ns)
    first = summary.measures["first_call"]
    assert first.value == np.median(timed.variant.first_ns) > summary.measures["latency"].value
    assert first.low <= first.value <= first.high  # type: ignore[operator]


def test_median_interval_holds_the_median_and_needs_samples() -> None:
    latency = summarise(make_result()).measures["latency"]
    assert latency.low is not None
    assert latency.high is not None
    assert latency.low <= latency.value <= latency.high  # type: ignore[operator]
    few = summarise(remade(make_result(), latency=make_latency(rounds=5))).measures["latency"]
    assert (few.low, few.high) == (None, None)


def test_throughput_is_images_over_all_the_time() -> None:
    result = make_result()
    result = remade(result, latency=replace(result.latency, batch=8))
    measures = summarise(result).measures
    assert measures["throughput"].value == pytest.approx(8e9 / np.mean(result.latency.variant.means_ns))
    _, _, longest = mean_interval(result.latency.variant.means_ns)
    assert measures["throughput"].low == pytest.approx(8e9 / longest)
    processes = (40,) * 5
    in_full = remade(result, latency=replace(result.latency, processes=processes))
    alike = replace(in_full.latency, baseline=(in_full.latency.variant,) * 2)
    throughput = summarise(remade(in_full, latency=alike)).measures["throughput"]
    assert throughput.value == pytest.approx(throughput.baseline), "it is the same mean of both"
    _, _, longest = mean_time_interval(result.latency.variant.means_ns, processes)
    assert summarise(in_full).measures["throughput"].low == pytest.approx(8e9 / longest)


def test_a_latency_over_processes_is_one_figure_wherever_it_is_told() -> None:
    """The middle of the processes, which the interval is of: the median of all rounds is another one."""
    pace = np.repeat([1.0, 1.1, 1.9], [10, 30, 20])
    first, again, variant = (visits(time * pace) for time in (1e6, 1.2e6, 5e5))
    latency = replace(
        make_latency(rounds=60), baseline=(first, again), variant=variant, processes=(10, 30, 20)
    )
    result = remade(make_result(recipe(0.5)), latency=latency)
    summary, told = summarise(result), as_json(result)
    measure = summary.measures["latency"]
    middle = (1.1 * 1.9) ** (1 / 3)
    assert measure.value == pytest.approx(5e5 * middle)
    assert summary.latency.median_ns == told["latency"]["median_ns"] == measure.value
    assert measure.baseline == pytest.approx(1.2**0.5 * 1e6 * middle), "of both builds"
    assert told["baseline"]["latency_median_ns"] == measure.baseline
    assert summary.latency.ratio == pytest.approx(measure.value / measure.baseline)


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


@pytest.mark.parametrize("bits", [32, 2])
def test_what_went_beyond_the_share_since_weights_tie_is_shown(bits: int) -> None:
    result = make_result(recipe(0.3, bits))
    layers = result.inspection.layers
    for share, shown in ((0.3001, 30), (0.338, 33.8)):
        counted = tuple(replace(one, pruned=round(share * one.elements)) for one in layers)
        summary = summarise(remade(result, inspection=replace(result.inspection, layers=counted)))
        assert summary.pruned_percent == pytest.approx(shown, abs=0.001)


def test_badges_say_how_far_to_trust() -> None:
    assert names(make_result()) == ["measured"]
    assert names(make_result(recipe(0, 4))) == ["simulated"]
    assert names(make_result(recipe(0, 8, 8))) == ["measured"]
    assert names(make_result(noisy=True, quick=True)) == ["measured", "noisy", "preliminary"]
    assert names(make_result(other_machine=True)) == ["measured", "other machine"]
    assert set(names(make_result(recipe(0, 4), noisy=True, quick=True, other_machine=True))) < set(BADGES)


def test_a_time_of_the_one_process_that_was_left_is_preliminary() -> None:
    made = make_result()
    few = remade(made, latency=replace(made.latency, lost=4))
    assert names(few) == ["measured", "preliminary"]
    assert summarise(few).badges[-1].words.startswith("4 processes ended early")
    halves = (made.latency.processes[0] // 2,) * 2
    assert names(remade(made, latency=replace(made.latency, lost=3, processes=halves))) == ["measured"]


def test_badges_carry_their_reasons() -> None:
    badges = {badge.kind: badge.words for badge in summarise(make_result(recipe(0, 4), noisy=True)).badges}
    assert badges["simulated"] == "4-bit weights: the values are exact, the kernels are f32"
    assert "second half" in badges["noisy"]


def test_a_sparse_result_tells_which_layers_skipped_zeros() -> None:
    made = make_result(recipe(0.8), engine="sparse")
    kernels = ["AVX2 sparse, 90 of 450 weights"] * 7 + ["AVX2 dense"] * 3

    def told(kernels: list[str], simulated: tuple[str, ...] = ()) -> tuple[str, int, str]:
        layers = tuple(
            LayerExecution(layer.name, "f32", kernel, skips_zeros="sparse" in kernel)
            for layer, kernel in zip(made.execution.layers, kernels, strict=True)
        )
        summary = summarise(remade(made, execution=Execution(layers, simulated)))
        return summary.badges[0].kind, summary.skipping, summary.badges[0].words

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
        ([("f32", "sparse csr")], Realisation.DENSE),  # whatever a kernel is called
        ([("f32", "jit"), ("i8", "brgconv")], Realisation.INT8),
        ([("u8", "brgconv")], Realisation.INT8),
        ([("f32", "brgconv", ("i8",))], Realisation.INT8),
        ([("bf16", "brgemm")], Realisation.HALF),
        ([("i8", "brgconv"), ("f32", "dense", (), True)], Realisation.SPARSE),
        ([("unknown", "unknown")], Realisation.UNKNOWN),
    ],
)
def test_realisation_is_what_the_kernels_did(layers: list[tuple[Any, ...]], expected: Realisation) -> None:
    execution = Execution(tuple(LayerExecution("layer", *layer) for layer in layers), ())
    assert realisation(execution, shrunk=False) is expected
    shrunk = Realisation.SHRUNK if expected is Realisation.DENSE else expected
    assert realisation(execution, shrunk=True) is shrunk


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


def test_other_environment_is_named_in_its_badge() -> None:
    words = {badge.kind: badge.words for badge in summarise(make_result(other_machine=True)).badges}
    assert OTHER_MACHINE.cpu in words["other machine"]


@pytest.mark.parametrize("bits", [32, 4])
def test_another_machine_that_worked_out_the_accuracy_is_named_in_the_first_badge(bits: int) -> None:
    result = make_result(recipe(0.5, bits))
    first = summarise(remade(result, scored_on=OTHER_MACHINE)).badges[0]
    assert first.kind == ("measured" if bits == 32 else "simulated")
    assert f"accuracy was worked out on another machine ({OTHER_MACHINE.cpu}" in first.words
    assert "another machine" not in "".join(badge.words for badge in summarise(result).badges)


def unbalanced(seed: int, images: int = 500) -> Result:
    """Three classes of unequal size, right in 90, 60 and 30 % of their images."""
    random = np.random.default_rng(seed)
    classes = random.choice(3, images, p=[0.7, 0.2, 0.1])
    outcomes = random.random(images) < np.array([0.9, 0.6, 0.3])[classes]
    made = make_result(recipe(0.5), images=images)
    accuracy = replace(
        made.accuracy, correct=np.packbits(outcomes).tobytes(), labels=classes.astype("<u2").tobytes()
    )
    return remade(made, accuracy=accuracy)


def test_balanced_accuracy_is_the_mean_over_the_classes() -> None:
    result = unbalanced(0)
    outcomes, classes = result.accuracy.outcomes, result.accuracy.classes
    balanced = summarise(result).measures["balanced_accuracy"]
    assert balanced.value == pytest.approx(
        100 * np.mean([outcomes[classes == one].mean() for one in range(3)])
    )
    assert summarise(make_result()).measures["balanced_accuracy"].value is None


def test_balanced_accuracy_has_no_interval_while_images_are_scored() -> None:
    """Its own holds at one look, and whoever waits looks often."""
    result = unbalanced(0)
    known = Known(
        result.request, result.inspection, result.accuracy.total, result.accuracy, result.baseline_accuracy
    )
    whole, growing = summarise_scores(known), summarise_scores(replace(known, images=1_000))
    assert whole
    assert growing
    assert " to " in whole.text("balanced_accuracy")
    assert " to " not in growing.text("balanced_accuracy")
    for name in ("value", "baseline"):
        assert getattr(growing.measures["balanced_accuracy"], name) == getattr(
            whole.measures["balanced_accuracy"], name
        )
    assert growing.measures["sqnr"].low is None


@pytest.mark.parametrize(
    ("path", "total", "words"),
    [
        (None, 10_000, "10,000 bundled images"),
        ("/home/images 0554d58b0f43", 1, "1 uploaded image"),
        ("/home/birds 0554d58b0f43", 500, "500 images of birds"),
        ("/data/images", 1, "1 image of images"),
        ("/data/birds of 2024", 2, "2 images of birds of 2024"),
    ],
)
def test_images_are_told_without_the_hash_of_an_upload(path: str | None, total: int, words: str) -> None:
    assert describe_images(DataSpec(path), total) == words
