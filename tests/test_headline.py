"""The four cards: they say what the summary says, and what is not known is a dash."""

from dataclasses import replace

import pytest
from factories import make_result, recipe

from optimizer.frame import summarise
from optimizer.headline import headlines
from optimizer.metrics import MISSING
from optimizer.records import Inspection, Result


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
    assert card.change.startswith(f"−{summary.drop.points:.2f} points (−{summary.drop.high:.2f} to ")


def test_the_uncompressed_model_differs_in_nothing() -> None:
    result = make_result(recipe())
    accuracy, size, latency, operations = headlines(summarise(result), result.inspection)
    assert accuracy.change == latency.change == "this is the baseline"
    assert size.change == operations.change == "no change"
    assert {card.mood for card in (accuracy, size, latency, operations)} == {"same"}


def test_a_noisy_latency_has_no_mood() -> None:
    result = make_result(recipe(0.5), noisy=True)
    card = headlines(summarise(result), result.inspection)[2]
    assert (card.change, card.mood) == ("noisy", "same")


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
