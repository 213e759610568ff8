import contextlib
import dataclasses
import doctest
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer import errors, recipe
from optimizer.errors import InputError
from optimizer.recipe import (
    ACTIVATION_BITS,
    GRANULARITIES,
    RANGES,
    SCOPES,
    WEIGHT_BITS,
    PruneSpec,
    QuantizeSpec,
    Recipe,
)

sparsities = st.builds(
    PruneSpec,
    method=st.text(max_size=8),
    sparsity=st.none() | st.floats(0, 1, exclude_max=True),
    scope=st.sampled_from(SCOPES),
)
thresholds = st.builds(
    PruneSpec,
    threshold=st.floats(0, allow_infinity=False, allow_nan=False),
    scope=st.sampled_from(SCOPES),
)
quantize_specs = st.builds(
    QuantizeSpec,
    method=st.text(max_size=8),
    weight_bits=st.sampled_from(WEIGHT_BITS),
    activation_bits=st.sampled_from(ACTIVATION_BITS),
    granularity=st.sampled_from(GRANULARITIES),
    symmetric=st.booleans(),
    range=st.sampled_from(RANGES),
)
recipes = st.builds(Recipe, sparsities | thresholds, quantize_specs)


@given(recipes)
def test_json_and_dict_round_trips_give_an_equal_recipe(made: Recipe) -> None:
    again = Recipe.from_json(made.to_json())
    assert again == made
    assert hash(again) == hash(made)
    assert again.to_json() == made.to_json()
    assert Recipe.from_dict(made.to_dict()) == made
    assert json.loads(made.to_json()) == made.to_dict()


@given(recipes, recipes)
def test_equal_recipes_are_those_of_equal_json(one: Recipe, other: Recipe) -> None:
    assert (one == other) == (one.to_json() == other.to_json())


@pytest.mark.parametrize("value", [1.5, 1.0, -0.1, float("nan"), float("inf")])
def test_a_sparsity_out_of_range_is_refused_with_what_is_allowed(value: float) -> None:
    with pytest.raises(InputError, match=f"sparsity {value:g} is out of range.*from 0 to below 1"):
        PruneSpec(sparsity=value)


@pytest.mark.parametrize("value", [-0.01, float("nan"), float("inf"), -float("inf")])
def test_a_threshold_out_of_range_is_refused_with_what_is_allowed(value: float) -> None:
    with pytest.raises(InputError, match=f"threshold {value:g} is not allowed.*finite number of at least 0"):
        PruneSpec(threshold=value)


def test_sparsity_and_threshold_together_are_refused() -> None:
    with pytest.raises(InputError, match="give only one"):
        PruneSpec(sparsity=0.0, threshold=0.0)


@pytest.mark.parametrize("bits", [9, 1, 0, -4, 15, 64])
def test_weight_bits_that_do_not_exist_are_refused_listing_those_that_do(bits: int) -> None:
    with pytest.raises(InputError, match=f"weight bits {bits}: use one of 2, 3, 4, 5, 6, 7, 8, 16, 32"):
        QuantizeSpec(weight_bits=bits)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("activation_bits", 4, "activation bits 4: use one of 8, 32"),
        ("granularity", "row", "granularity 'row': use one of tensor, channel"),
        ("range", "max", "range 'max': use one of absmax, mse"),
    ],
)
def test_quantize_choices_are_checked(field: str, value: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        QuantizeSpec(**{field: value})  # type: ignore[arg-type]


def test_the_scope_is_checked() -> None:
    with pytest.raises(InputError, match="scope 'block': use one of layer, global"):
        PruneSpec(scope="block")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"prune": {"sparisty": 0.5}}, "'sparisty': use one of method, sparsity, threshold, scope"),
        ({"quantise": {}}, "'quantise': use one of prune, quantize"),
        ({"quantize": {"bits": 4}}, "'bits': use one of method, weight_bits"),
        ({"prune": {"sparsity": "0.5"}}, r"Expected `float \| null`, got `str`.*sparsity"),
        ({"prune": {"sparsity": 1.5}}, "sparsity 1.5 is out of range"),
        ({"prune": None}, "Expected `object`"),
        ({"prune": [0.5]}, "Expected `object`"),
        ({"quantize": {"weight_bits": True}}, "Expected `int`, got `bool`"),
        ({"quantize": {"weight_bits": 4.5}}, "Expected `int`, got `float`"),
        ({"quantize": {"weight_bits": 9}}, "unknown weight bits 9"),
        ([], "a JSON object, not list"),
        (None, "a JSON object, not NoneType"),
    ],
)
def test_what_is_no_recipe_is_refused_with_the_reason(data: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Recipe.from_dict(data)
    with pytest.raises(InputError, match=words):
        Recipe.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        b"\xff\xfe",
        "\ud800",
        '{"prune":{"threshold":NaN}}',
        '{"prune":{"sparsity":1e999}}',
        "[" * 100_000,
    ],
    ids=["empty", "cut", "not UTF-8", "surrogate", "NaN", "too large", "too deep"],
)
def test_text_that_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(InputError, match="not a recipe"):
        Recipe.from_json(text)


@given(st.text() | st.binary())
def test_any_text_is_a_recipe_or_an_input_error(text: str | bytes) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(Recipe.from_json(text), Recipe)


def test_missing_fields_take_their_defaults() -> None:
    assert Recipe.from_json("{}") == Recipe()
    assert Recipe.from_dict({"prune": {"sparsity": 0.5}}) == Recipe(PruneSpec(sparsity=0.5))


@pytest.mark.parametrize(
    ("prune", "active"),
    [
        (PruneSpec(), False),
        (PruneSpec(sparsity=0.0), False),
        (PruneSpec(sparsity=0.01), True),
        (PruneSpec(threshold=0.0), True),
    ],
)
def test_a_prune_spec_is_active_when_a_weight_can_go(prune: PruneSpec, active: bool) -> None:
    assert prune.active is active
    assert Recipe(prune).identity is not active


@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_eight_bits_and_fewer_are_an_integer_grid(bits: int) -> None:
    spec = QuantizeSpec(weight_bits=bits)
    assert spec.integer is (bits in range(2, 9))
    assert Recipe(quantize=spec).identity is (bits == 32)


def test_rounded_activations_alone_are_no_identity() -> None:
    assert not Recipe(quantize=QuantizeSpec(activation_bits=8)).identity


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (Recipe(), "uncompressed"),
        (Recipe(quantize=QuantizeSpec(method="nearest", granularity="tensor", range="mse")), "uncompressed"),
        (Recipe(PruneSpec(sparsity=0.5)), "50 % of all weights pruned"),
        (Recipe(PruneSpec(sparsity=0.955, scope="layer")), "95.5 % of each layer pruned"),
        (Recipe(PruneSpec(threshold=0.05)), "|w| ≤ 0.05 pruned"),
        (Recipe(PruneSpec(threshold=0.0)), "|w| ≤ 0 pruned"),
        (Recipe(quantize=QuantizeSpec(weight_bits=16)), "16-bit weights"),
        (Recipe(quantize=QuantizeSpec(activation_bits=8)), "8-bit activations"),
        (
            Recipe(PruneSpec(sparsity=0.3), QuantizeSpec(weight_bits=8, activation_bits=8)),
            "30 % of all weights pruned · 8-bit weights · 8-bit activations",
        ),
        (
            Recipe(quantize=QuantizeSpec(weight_bits=3, granularity="tensor", symmetric=False, range="mse")),
            "3-bit weights (per tensor, asymmetric, least-squares range)",
        ),
    ],
)
def test_recipes_in_words(made: Recipe, words: str) -> None:
    assert made.describe() == words


def test_recipes_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().prune = PruneSpec()  # type: ignore[misc]


@pytest.mark.parametrize("module", [recipe, errors])
def test_examples_in_the_docstrings(module: object) -> None:
    results = doctest.testmod(module)  # type: ignore[arg-type]
    assert results.attempted
    assert not results.failed
