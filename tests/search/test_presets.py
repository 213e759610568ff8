"""Presets: which candidate is taken, on results that are made up."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from factories import detector, make_latency, make_result, remade

from optimizer.analysis.limits import MIN_CONFIRMING, halves
from optimizer.analysis.outcomes import images_needed
from optimizer.errors import EngineError, InputError, UnavailableError, WorkError
from optimizer.recipe import NORMAL, PRESETS, Preset, Recipe
from optimizer.records import Latency, Request, Result
from optimizer.search.presets import find

BASE = Request("fashion-resnet")
CANDIDATES = tuple(Recipe(quantize=NORMAL.quantize.at(bits)) for bits in (2, 3, 4, 8))
"""Made-up results of these lose some 23, 6, 1.4 and no points."""


def same_time(result: Result) -> Latency:
    return result.latency


def never(result: Result) -> Latency:
    raise AssertionError("none is taken")


def measuring(asked: list[int]) -> Callable[[Request], Result]:
    """A measurement that notes the bits it was asked for."""

    def measure(request: Request) -> Result:
        asked.append(request.recipe.quantize.weight_bits)
        return make_result(request.recipe)

    return measure


def test_the_first_that_keeps_to_the_limit_is_taken() -> None:
    asked: list[int] = []
    found = find(Preset("little", 2.0, 30, CANDIDATES), BASE, measuring(asked), same_time)
    assert (found.met, found.tried, asked) == (True, 3, [2, 3, 4])
    assert found.result.request.recipe == CANDIDATES[2]
    assert found.words.startswith("little: 4-bit weights (GPTQ, asymmetric, MSE range), accuracy lost ")
    assert " on the 5,000 images that chose it, and " in found.words
    chosen, confirmed = halves(found.result, MIN_CONFIRMING)
    assert confirmed is not None
    outcomes = found.result.accuracy.outcomes
    lost = chosen.lost - chosen.gained + confirmed.lost - confirmed.gained
    assert lost == found.result.baseline_accuracy.outcomes.sum() - outcomes.sum(), "each image is in one half"


def test_when_none_keeps_to_it_the_nearest_is_given_and_said_to_be_no_more() -> None:
    asked: list[int] = []
    told: list[tuple[float | None, str]] = []
    preset = Preset("little", 0.1, 30, CANDIDATES[:3])
    found = find(preset, BASE, measuring(asked), never, lambda *progress: told.append(progress))
    assert (found.met, found.tried, asked) == (False, 3, [2, 3, 4])
    assert found.result.request.recipe == CANDIDATES[2]
    assert "none of 3 recipes is shown to keep to that, by a bound that holds for all at once" in found.words
    assert "; 4-bit weights" in found.words
    assert found.afresh is None
    assert [share for share, _ in told] == pytest.approx([0, 1 / 3, 2 / 3])
    assert told[1][1] == "trying 3-bit weights (GPTQ, asymmetric, MSE range), 2 of at most 3"


def truly_losing(points: float, images: int, seed: int) -> Result:
    """A recipe that gets so many percent of all images of the world wrong that were right before."""
    random = np.random.default_rng(seed)
    before = random.random(images) < 0.9
    after = before & (random.random(images) >= points / 90)
    made = make_result(images=images)
    accuracy = replace(made.accuracy, correct=np.packbits(after).tobytes())
    baseline = replace(made.baseline_accuracy, correct=np.packbits(before).tobytes())
    return replace(made, accuracy=accuracy, baseline_accuracy=baseline)


def test_what_truly_loses_more_is_hardly_ever_taken() -> None:
    """Twice the limit on 500 images was accepted in 28 % of cases by its point estimate."""
    preset = Preset("little", 0.5, 30, CANDIDATES[:1])
    for images in (500, 2_000):
        made = [truly_losing(1.0, images, seed) for seed in range(200)]
        taken = [find(preset, BASE, lambda _, one=one: one, same_time).met for one in made]  # type: ignore[misc]
        assert np.mean(taken) <= 0.03
    made = [truly_losing(0.1, 6_000, seed) for seed in range(50)]
    easy = [find(preset, BASE, lambda _, one=one: one, same_time).met for one in made]  # type: ignore[misc]
    assert np.mean(easy) >= 0.9


@pytest.mark.slow
def test_of_many_at_the_limit_hardly_any_is_taken() -> None:
    """Each by its own bound, more than one search in twenty took one of six."""
    preset = Preset(
        "little", 1.0, 30, tuple(Recipe(quantize=NORMAL.quantize.at(bits)) for bits in range(2, 8))
    )
    taken = 0
    for search in range(200):
        made = iter([truly_losing(1.0, 4_000, 6 * search + number) for number in range(6)])
        taken += find(preset, BASE, lambda _, made=made: next(made), same_time).met  # type: ignore[misc]
    assert taken <= 0.05 * 200


def test_the_time_of_the_one_that_is_taken_is_taken_afresh_and_both_are_said() -> None:
    preset = Preset("little", 2.0, 30, CANDIDATES)
    shared = make_latency(0.5, timed=CANDIDATES[0])
    measured = [remade(make_result(recipe), latency=shared) for recipe in CANDIDATES]
    asked: list[Result] = []

    def afresh(result: Result) -> Latency:
        asked.append(result)
        return make_latency(0.8)

    results = iter(measured)
    found = find(preset, BASE, lambda request: next(results), afresh)
    assert asked == [found.result] == [measured[2]]
    assert found.result.latency == shared
    assert found.afresh == make_latency(0.8)
    _, times = found.words.split("Time when it was chosen (that of: 2-bit weights")
    before, after = times.split("; timed afresh: ")
    assert ("0.50" in before, "0.80" in after) == (True, True)


def test_where_half_of_the_images_contradicts_the_other_the_next_is_tried() -> None:
    made = make_result(images=2_000)
    first = np.random.default_rng(0).permutation(2_000) < 1_000
    before, after = np.ones(2_000, bool), first | (np.arange(2_000) % 10 > 0)
    baseline = replace(made.baseline_accuracy, correct=np.packbits(before).tobytes())
    accuracy = replace(made.accuracy, correct=np.packbits(after).tobytes())
    lucky = replace(made, accuracy=accuracy, baseline_accuracy=baseline)
    chosen, confirmed = halves(lucky, MIN_CONFIRMING)
    assert (chosen.points, chosen.high <= 1) == (0, True)
    assert confirmed is not None
    assert confirmed.points > 5
    good = replace(lucky, accuracy=baseline)
    results = iter([lucky, good])
    found = find(Preset("little", 1.0, 30, CANDIDATES[:2]), BASE, lambda request: next(results), same_time)
    assert (found.met, found.tried, found.result) == (True, 2, good)


@pytest.mark.parametrize("points", [0.5, 1.0, 2.0])
def test_too_few_images_are_said_to_be_too_few(points: float) -> None:
    same = make_result(CANDIDATES[0], images=100)
    same = replace(same, accuracy=same.baseline_accuracy)
    found = find(Preset("little", points, 30, CANDIDATES[:1]), BASE, lambda request: same, never)
    assert not found.met
    assert f"that takes {images_needed(points):,}, even where no answer changes" in found.words
    images = 2 * max(MIN_CONFIRMING, images_needed(points)) - 1
    many = make_result(CANDIDATES[0], images=images)
    many = replace(many, accuracy=many.baseline_accuracy)
    found = find(Preset("little", points, 30, CANDIDATES[:1]), BASE, lambda request: many, same_time)
    assert found.met
    assert f"on the {images:,} images that chose it, too few to confirm it on others" in found.words


def test_a_network_that_is_no_classifier_is_judged_by_its_sqnr() -> None:
    noise = dict(zip(CANDIDATES, (0.3, 0.1, 0.03, 0.0), strict=True))

    def measure(request: Request) -> Result:
        return detector(request.recipe, noise[request.recipe])

    found = find(Preset("little", 0.1, 25, CANDIDATES), BASE, measure, same_time)
    assert (found.met, found.tried) == (True, 3)
    assert found.words.startswith("SQNR of 25 dB or more: 4-bit weights (GPTQ, asymmetric, MSE range), SQNR ")
    assert ") on 50 images. Time when it was chosen" in found.words
    assert "points" not in found.words
    worst = found.result.accuracy.outputs[0]
    assert worst.sqnr_db is not None
    near = find(Preset("little", 50, worst.sqnr_db, CANDIDATES[:3]), BASE, measure, never)
    assert not near.met, "its figure is the limit, but its bound is not"
    assert near.result.request.recipe == CANDIDATES[2]
    assert "comes nearest, SQNR " in near.words
    equal = find(Preset("little", 0.1, 100, CANDIDATES), BASE, measure, same_time)
    assert "outputs equal on 50 images" in equal.words


def failing(*bits: int) -> Callable[[Request], Result]:
    """A measurement in which recipes of so many bits fail."""

    def measure(request: Request) -> Result:
        if request.recipe.quantize.weight_bits in bits:
            raise WorkError(f"no kernels for {request.recipe.quantize.weight_bits} bits")
        return make_result(request.recipe)

    return measure


def test_a_recipe_that_fails_is_told_and_the_next_is_tried() -> None:
    found = find(Preset("little", 2.0, 30, CANDIDATES), BASE, failing(2, 4), same_time)
    assert (found.met, found.tried, found.result.request.recipe) == (True, 4, CANDIDATES[3])
    assert found.words.endswith(". 2 recipes failed, the first with: no kernels for 2 bits")
    near = find(Preset("little", 0.1, 30, CANDIDATES[:3]), BASE, failing(4), never)
    assert not near.met
    assert near.words.endswith(". 1 recipe failed: no kernels for 4 bits")


def test_a_recipe_that_this_network_can_not_take_fails_alone() -> None:
    """Weights beyond 65,504 have no halves, and of "safe" those come last: the three before were lost."""

    def measure(request: Request) -> Result:
        if request.recipe.quantize.weight_bits == 8:
            raise InputError("it has weights beyond 65,504")
        return make_result(request.recipe)

    found = find(Preset("little", 0.1, 30, CANDIDATES), BASE, measure, never)
    assert (found.met, found.result.request.recipe) == (False, CANDIDATES[2])
    assert found.words.endswith(". 1 recipe failed: it has weights beyond 65,504")
    with pytest.raises(InputError, match="65,504"):
        find(Preset("little", 0.1, 30, CANDIDATES[3:]), BASE, measure, never)


def test_where_all_fail_the_first_reason_is_raised_and_what_no_recipe_mends_at_once() -> None:
    with pytest.raises(WorkError, match="no kernels for 2 bits"):
        find(Preset("little", 2.0, 30, CANDIDATES), BASE, failing(2, 3, 4, 8), never)
    for error in EngineError("not even uncompressed"), UnavailableError("full"):
        asked: list[Request] = []

        def measure(request: Request, error: Exception = error, asked: list[Request] = asked) -> Result:
            asked.append(request)
            raise error

        with pytest.raises(type(error), match=str(error)):
            find(Preset("little", 2.0, 30, CANDIDATES), BASE, measure, never)
        assert len(asked) == 1


def test_a_recipe_whose_time_can_not_be_taken_afresh_is_found_all_the_same() -> None:
    def fail(result: Result) -> Latency:
        raise WorkError("out of memory")

    found = find(Preset("little", 2.0, 30, CANDIDATES), BASE, measuring([]), fail)
    assert (found.met, found.result.request.recipe, found.afresh) == (True, CANDIDATES[2], None)
    assert found.words.endswith("; it could not be timed afresh: out of memory")


def test_what_is_announced_of_a_found_recipe_is_its_limit_and_not_what_others_would_have_had() -> None:
    """Of "balanced" the last resort has no int8 kernels, of "small" all weights."""
    for preset in PRESETS.values():
        last = preset.candidates[-1]
        found = find(
            replace(preset, candidates=(last,)), BASE, lambda _: make_result(images=10_000), same_time
        )
        assert found.words.startswith(f"At most {preset.points:g} point")
        announced = found.words.partition(":")[0]
        assert not {"kernel", "precision", "half", "bits"} & {*re.findall("[a-z]+", announced.lower())}
        assert preset.tries in preset.help


def test_where_no_sqnr_has_an_interval_the_nearest_is_the_one_with_the_most() -> None:
    """Of fewer than 20 images none has: the first one, at 2 dB, was given as the nearest."""
    noise = dict(zip(CANDIDATES, (2.0, 0.1, 0.01, 0.03), strict=True))

    def measure(request: Request) -> Result:
        result = detector(request.recipe, noise[request.recipe])
        few = [replace(one, noise_images=None, signal_images=None) for one in result.accuracy.outputs]
        return replace(result, accuracy=replace(result.accuracy, outputs=tuple(few)))

    found = find(Preset("little", 0.1, 25, CANDIDATES), BASE, measure, never)
    assert not found.met
    assert found.result.request.recipe == CANDIDATES[2]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_both_limits(name: str) -> None:
    preset = PRESETS[name]
    assert f"t most {preset.points:g} point" in preset.help
    assert f"no classifier: SQNR of {preset.sqnr_db:g} dB" in preset.help


def test_the_less_accuracy_a_preset_keeps_the_less_sqnr() -> None:
    ordered = sorted(PRESETS.values(), key=lambda preset: preset.points)
    assert [one.sqnr_db for one in ordered] == sorted((one.sqnr_db for one in ordered), reverse=True)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_canonical_and_none_tries_a_recipe_twice(name: str) -> None:
    candidates = PRESETS[name].candidates
    assert len(set(candidates)) == len(candidates)
    assert all(recipe.canonical() == recipe and not recipe.identity for recipe in candidates)
