"""The four cards: they say what the summary says, and what is not known is a dash."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from factories import LAYERS, make_result, recipe, remade

from optimizer.analysis.headline import OVERRIDE_COLUMNS, group_rows, headlines, layer_rows, overrides_of
from optimizer.analysis.summary import summarise
from optimizer.charts import accuracy_info
from optimizer.errors import InputError
from optimizer.formats import MISSING, format_ns
from optimizer.recipe import Override
from optimizer.records import Accuracy, GroupSensitivity, Inspection, Result


def of(result: Result) -> dict[str, object]:
    return {card.label: card for card in headlines(summarise(result), result.inspection)}


def test_nothing_known_is_four_dashes() -> None:
    cards = headlines(None, None)
    assert [card.value for card in cards] == [MISSING] * 4
    assert all(card.basis and not card.change for card in cards)


def test_counts_and_sizes_do_not_wait_for_images() -> None:
    accuracy, size, latency, operations = headlines(None, make_result(recipe(0.5)).inspection)
    assert accuracy.value == latency.value == MISSING
    assert MISSING not in (size.value, operations.value)


def test_a_drop_is_told_with_its_sign_and_interval() -> None:
    result = make_result(recipe(0.9, 3))
    summary = summarise(result)
    assert summary.drop.low > 0, "the factory's heavy compression loses accuracy"
    card = headlines(summary, result.inspection)[0]
    assert card.mood == "worse"
    assert (card.change, summary.drop.words) == (
        "−46.8 points (−47.8 to −45.8)",
        "46.8 points (45.8 to 47.8)",
    )


@pytest.mark.parametrize(
    ("points", "low", "high", "written"),
    [
        (0.016, 0.004, 0.03, "−0.02 points (−0.03 to −0.004)"),
        (1.84, 0.84, 3.02, "−1.8 points (−3.0 to −0.8)"),
        (-1.84, -3.02, -0.84, "+1.8 points (+0.8 to +3.0)"),
    ],
)
def test_a_change_has_the_digits_that_its_interval_leaves_it(
    points: float, low: float, high: float, written: str
) -> None:
    result = make_result(recipe(0.9, 3))
    summary = summarise(result)
    drop = replace(summary.drop, points=points, low=low, high=high)
    assert headlines(replace(summary, drop=drop), result.inspection)[0].change == written


def test_the_uncompressed_model_differs_in_nothing() -> None:
    result = make_result(recipe())
    accuracy, size, latency, operations = headlines(summarise(result), result.inspection)
    assert accuracy.change == latency.change == "this is the baseline"
    assert size.change == operations.change == "no change"
    assert {card.mood for card in (accuracy, size, latency, operations)} == {"same"}


def test_a_noisy_latency_has_no_mood() -> None:
    result = make_result(recipe(0.5, 8, 8), noisy=True)
    summary = summarise(result)
    card = headlines(summary, result.inspection)[2]
    assert summary.timed
    assert not summary.timed.identity
    assert (card.change, card.mood) == (f"noisy: {summary.text('latency_ratio')}", "same")


@pytest.mark.parametrize("noisy", [False, True])
def test_a_recipe_that_runs_the_kernels_of_the_uncompressed_model_says_so(noisy: bool) -> None:
    result = make_result(recipe(0.5), noisy=noisy, ratio=1.0)
    card = headlines(summarise(result), result.inspection)[2]
    assert (card.change, card.mood) == ("same kernels as uncompressed", "same")


def test_titles_of_cards_are_short_enough_for_them() -> None:
    result = make_result(recipe(0.5), labelled=False)
    cards = headlines(summarise(result), result.inspection)
    assert cards[0].label == "Agreement"
    assert "uncompressed model" in cards[0].help
    assert accuracy_info([result]).title == "Agreement against sparsity"


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [([-1, -1], ""), ([0.0196, 0.02], "|w| ≤ 0.02"), ([0.01, 0.03], "|w| ≤ 0.01 to 0.03")],
)
def test_a_sparsity_is_also_shown_as_thresholds(thresholds: list[float], words: str) -> None:
    plain = make_result(recipe(0.5)).inspection
    layers = tuple(
        replace(layer, threshold=threshold)
        for layer, threshold in zip(plain.layers, thresholds, strict=False)
    )
    basis = headlines(None, Inspection(layers, plain.size, plain.baseline_size))[3].basis
    assert basis.endswith(words)
    assert ("|w|" in basis) == bool(words)


APART = (
    Override("0.0.weight", sparsity=0.0, weight_bits=8),
    Override("9.weight", sparsity=0.07, pruning="compensated", rounding="nearest"),
)


def test_layer_rows_say_what_each_layer_got_and_has_to_itself() -> None:
    rows = layer_rows(make_result(recipe(0.5, 4)).inspection, replace(recipe(0.5, 4), layers=APART))
    named = {row["layer"]: row for row in rows}
    assert list(named) == list(LAYERS)
    assert named["9.weight"]["zeros"] == pytest.approx(50)
    assert [named["9.weight"][column] for column in OVERRIDE_COLUMNS] == [7, None, "compensated", "nearest"]
    assert [named["0.0.weight"][column] for column in OVERRIDE_COLUMNS] == [0, 8, None, None]
    assert {named["3.first.0.weight"][column] for column in OVERRIDE_COLUMNS} == {None}


@pytest.mark.parametrize("layers", [(), APART, APART[1:]])
def test_a_table_of_layers_is_read_back(layers: tuple[Override, ...]) -> None:
    rows = layer_rows(make_result().inspection, replace(recipe(), layers=layers))
    assert overrides_of(rows) == layers
    table = pd.DataFrame(rows).astype({"own sparsity": float, "own bits": float})  # None becomes NaN
    assert overrides_of(table.to_dict("records")) == layers


def test_no_percentage_changes_on_its_way_through_the_table() -> None:
    for percent in range(100):
        layers = (Override("9.weight", sparsity=percent / 100),)
        assert overrides_of(layer_rows(make_result().inspection, replace(recipe(), layers=layers))) == layers


@pytest.mark.parametrize(
    ("column", "value"),
    [("own sparsity", 100), ("own sparsity", -1), ("own bits", 9), ("own rounding", "up")],
)
def test_what_no_layer_can_have_is_refused(column: str, value: object) -> None:
    rows = layer_rows(make_result().inspection, recipe())
    rows[0][column] = value
    with pytest.raises(InputError):
        overrides_of(rows)


def test_a_row_for_each_group_of_layers() -> None:
    group = GroupSensitivity(("stem.weight", "body.conv.weight"), 16, "a residual sum", 0.5, 0.2)
    (row,) = group_rows([group])
    assert row["layers"] == "stem + body.conv"
    assert (row["why"], row["channels"], row["together"], row["apart"]) == ("a residual sum", 16, 0.5, 0.2)


def test_latency_names_the_engine_and_what_its_kernels_did() -> None:
    dense = make_result(recipe(0.8))
    assert of(dense)["Latency"].basis == "OpenVINO, dense fp32, 1 image, 2 threads; p95 " + (  # type: ignore[attr-defined]
        f"{format_ns(summarise(dense).latency.p95_ns)}; first call {summarise(dense).parts('first_call')[0]}"
    )
    sparse = make_result(recipe(0.8), engine="sparse")
    basis = of(sparse)["Latency"].basis  # type: ignore[attr-defined]
    assert basis.startswith(f"sparse kernels in none of {len(LAYERS)} layers, 1 image")


def test_latency_says_what_stood_in_for_the_sparse_kernels_and_why() -> None:
    sparse = make_result(recipe(0.8), engine="sparse")
    first, *rest = sparse.execution.layers
    execution = replace(
        sparse.execution,
        layers=(replace(first, skips_zeros=True), *rest),
        fallback="none was built",
    )
    card = headlines(summarise(remade(sparse, execution=execution)), sparse.inspection)[2]
    assert card.basis.startswith(f"torch CSR in 1 of {len(LAYERS)} layers, 1 image")
    assert "No sparse kernels here (none was built)" in card.help


def test_balanced_accuracy_is_said_where_classes_are_unequal() -> None:
    made = make_result(recipe(0.8), images=4)
    assert "Balanced" not in headlines(summarise(made), made.inspection)[0].help
    labels = np.array([0, 0, 0, 1], "<u2").tobytes()
    uneven = remade(made, accuracy=replace(made.accuracy, labels=labels))
    assert "Balanced accuracy, each class counting the same" in headlines(summarise(uneven), None)[0].help


@pytest.mark.parametrize("images", [96, 10_000])
def test_what_it_was_before_has_as_many_decimals(images: int) -> None:
    """Beside 5 % (1 to 11) stands 6 % and not 6.25 %: else one looks as if it were known better."""
    before, after = (
        Accuracy.of(
            np.arange(images) < round(share * images),
            reference="labels",
            agreement=images,
            sqnr_db=None,
            kl=0.0,
        )
        for share in (0.0625, 0.0521)
    )
    result = remade(make_result(recipe(0.9, 3)), accuracy=after, baseline_accuracy=before)
    card = headlines(summarise(result), result.inspection)[0]
    decimals = [len(text.removesuffix(" %").partition(".")[2]) for text in (card.value, card.basis)]
    assert decimals[0] == decimals[1], (card.value, card.basis)
