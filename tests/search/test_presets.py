"""Presets: which candidate is taken, on results that are made up."""

from collections.abc import Callable

import pytest
from factories import make_result

from optimizer.recipe import NORMAL, PRESETS, Preset, Recipe
from optimizer.records import Request, Result
from optimizer.search.presets import find

BASE = Request("fashion-resnet")
CANDIDATES = tuple(Recipe(quantize=NORMAL.quantize.at(bits)) for bits in (2, 3, 4, 8))
"""Made-up results of these lose some 23, 6, 1.4 and no points."""


def measuring(asked: list[int]) -> Callable[[Request], Result]:
    """A measurement that notes the bits it was asked for."""

    def measure(request: Request) -> Result:
        asked.append(request.recipe.quantize.weight_bits)
        return make_result(request.recipe)

    return measure


def test_the_first_that_keeps_to_the_limit_is_taken() -> None:
    asked: list[int] = []
    found = find(Preset("little", 2.0, CANDIDATES), BASE, measuring(asked))
    assert (found.met, found.tried, asked) == (True, 3, [2, 3, 4])
    assert found.result.request.recipe == CANDIDATES[2]
    assert found.words.startswith("little: 4-bit weights (GPTQ, asymmetric, MSE range) loses")


def test_when_none_keeps_to_it_the_nearest_is_given_and_said_to_be_no_more() -> None:
    asked: list[int] = []
    told: list[tuple[float | None, str]] = []
    preset = Preset("little", 0.1, CANDIDATES[:3])
    found = find(preset, BASE, measuring(asked), lambda *progress: told.append(progress))
    assert (found.met, found.tried, asked) == (False, 3, [2, 3, 4])
    assert found.result.request.recipe == CANDIDATES[2]
    assert "none of 3 recipes keeps to that; 4-bit weights" in found.words
    assert [share for share, _ in told] == pytest.approx([0, 1 / 3, 2 / 3])
    assert told[1][1] == "trying 3-bit weights (GPTQ, asymmetric, MSE range), 2 of at most 3"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_canonical_and_none_tries_a_recipe_twice(name: str) -> None:
    candidates = PRESETS[name].candidates
    assert len(set(candidates)) == len(candidates)
    assert all(recipe.canonical() == recipe and not recipe.identity for recipe in candidates)
