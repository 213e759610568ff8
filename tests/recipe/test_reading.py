"""Recipes as JSON: any recipe comes back, anything else is refused in words, and older ones are read."""

import contextlib
import cProfile
import dataclasses
import json
import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.methods.pruners import PRUNERS
from optimizer.methods.quantizers import QUANTIZERS
from optimizer.recipe import (
    ACTIVATION_BITS,
    ALLOCATIONS,
    GRANULARITIES,
    MAX_FINETUNE_STEPS,
    MAX_JSON_BYTES,
    MAX_OVERRIDES,
    PATTERNS,
    RANGES,
    SNAPS,
    WEIGHT_BITS,
    Override,
    PruneSpec,
    QuantizeSpec,
    Recipe,
)

options = {
    "method": st.sampled_from([name for name, pruner in PRUNERS.items() if not pruner.shrinks]),
    "allocation": st.sampled_from(ALLOCATIONS),
    "match": st.booleans(),
}
sparsities = st.builds(
    PruneSpec,
    sparsity=st.none() | st.floats(0, 1, exclude_max=True),
    pattern=st.sampled_from([pattern for pattern in PATTERNS if ":" not in pattern]),
    **options,
)
thresholds = st.builds(PruneSpec, threshold=st.floats(0, allow_infinity=False, allow_nan=False), **options)
patterned = st.builds(PruneSpec, pattern=st.sampled_from(["2:4", "4:8"]), **options)
grids = {
    "method": st.sampled_from(list(QUANTIZERS)),
    "activation_bits": st.sampled_from(ACTIVATION_BITS),
    "granularity": st.sampled_from(GRANULARITIES),
    "symmetric": st.booleans(),
    "range": st.sampled_from(RANGES),
    "equalise": st.booleans(),
}
quantize_specs = st.builds(QuantizeSpec, weight_bits=st.sampled_from(WEIGHT_BITS), **grids) | st.builds(
    QuantizeSpec, average_bits=st.floats(2, 8), **grids
)
overrides = st.lists(
    st.builds(
        Override,
        layer=st.text(max_size=8),
        sparsity=st.none() | st.floats(0, 1, exclude_max=True),
        weight_bits=st.none() | st.sampled_from(WEIGHT_BITS),
        pruning=st.none() | st.sampled_from(["magnitude", "compensated"]),
        rounding=st.none() | st.sampled_from(list(QUANTIZERS)),
    ),
    max_size=3,
    unique_by=lambda override: override.layer,
).map(tuple)
channels = st.builds(
    PruneSpec,
    method=st.just("channels"),
    sparsity=st.none() | st.floats(0, 1, exclude_max=True),
    allocation=st.sampled_from(ALLOCATIONS),
    snap=st.sampled_from(SNAPS),
    match=st.booleans(),
)
recipes = st.builds(
    Recipe,
    sparsities | thresholds | patterned | channels,
    quantize_specs,
    overrides,
    st.integers(0, MAX_FINETUNE_STEPS),
)


@given(recipes)
def test_json_and_dict_round_trips_give_an_equal_recipe(made: Recipe) -> None:
    again = Recipe.from_json(made.to_json())
    assert again == made
    assert hash(again) == hash(made)
    assert again.to_json() == made.to_json()
    assert Recipe.from_dict(made.to_dict()) == made
    assert json.loads(made.to_json()) == made.to_dict()


@pytest.mark.slow
@given(recipes, recipes)
def test_equal_recipes_are_those_of_equal_json(one: Recipe, other: Recipe) -> None:
    assert (one == other) == (one.to_json() == other.to_json())


@given(recipes)
def test_the_canonical_recipe_does_the_same(made: Recipe) -> None:
    canonical = made.canonical()
    assert canonical.canonical() == canonical
    assert canonical.describe() == made.describe()
    assert canonical.identity == made.identity
    assert canonical.needs_data == made.needs_data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"prune": {"sparisty": 0.5}}, "'sparisty': use one of method, sparsity, threshold, allocation"),
        ({"quantise": {}}, "'quantise': use one of prune, quantize"),
        ({"quantize": {"bits": 4}}, "'bits': use one of method, weight_bits"),
        ({"layers": [{"layer": "a", "bits": 4}]}, "'bits': use one of layer, sparsity, weight_bits"),
        ({"layers": [{}]}, "missing required field `layer`"),
        ({"prune": {"sparsity": "0.5"}}, r"Expected `float \| null`, got `str`.*sparsity"),
        ({"prune": {"sparsity": 1.5}}, "sparsity 1.5 is out of range"),
        ({"prune": None}, "Expected `object`"),
        ({"prune": [0.5]}, "Expected `object`"),
        ({"quantize": {"weight_bits": True}}, "Expected `int`, got `bool`"),
        ({"quantize": {"weight_bits": 4.5}}, "Expected `int`, got `float`"),
        ({"quantize": {"weight_bits": 9}}, "unknown weight bits 9"),
        ({"layers": [{"layer": "a", "weight_bits": 0}]}, "unknown weight bits 0"),
        ({"layers": [{"layer": "a", "pruning": ""}]}, "unknown pruning method ''"),
        ({"layers": [{"layer": "a", "rounding": ""}]}, "unknown rounding ''"),
        ({"layers": [{"layer": "a", "sparsity": float("nan")}]}, "not a recipe|out of range"),
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


def with_overrides(number: int) -> dict[str, object]:
    return {"layers": [{"layer": f"blocks.{n}.weight", "sparsity": n / (n + 1)} for n in range(number)]}


def test_overrides_are_bounded() -> None:
    assert len(Recipe.from_dict(with_overrides(MAX_OVERRIDES)).layers) == MAX_OVERRIDES
    with pytest.raises(InputError, match="1,001 layer overrides are too many: give at most 1,000"):
        Recipe.from_dict(with_overrides(MAX_OVERRIDES + 1))
    with pytest.raises(InputError, match="too long: give at most 262,144"):
        Recipe.from_json(" " * (MAX_JSON_BYTES + 1))
    assert len(json.dumps(with_overrides(MAX_OVERRIDES))) < MAX_JSON_BYTES


class Counted(str):
    """A layer's name that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)


def calls(work: Callable[[], object]) -> int:
    """How many Python functions are called by ``work``."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return sum(entry.callcount for entry in profile.getstats())


@pytest.mark.parametrize(
    "work",
    [
        lambda made: Recipe(made.prune, made.quantize, made.layers),
        lambda made: made.canonical(),
        lambda made: made.prune_for(override.layer for override in made.layers),
        lambda made: Recipe.from_json(json.dumps(dataclasses.asdict(made))),
    ],
    ids=["checked", "canonical", "looked up", "read"],
)
def test_many_overrides_cost_in_proportion(work: Callable[[Recipe], object]) -> None:
    costs = {}
    for number in (250, 1_000):
        layers = [Override(Counted(f"layer {n}"), sparsity=n / (n + 1)) for n in range(number)]
        made = Recipe(PruneSpec(sparsity=0.5), layers=tuple(layers))
        Counted.compared = 0
        called = calls(lambda: work(made))  # noqa: B023
        costs[number] = called + Counted.compared
    assert costs[1_000] < 5 * costs[250]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NUMBERS = st.sampled_from([-1, 0, 0.0, 1, 2, 7, 8, 16, 32, 0.5, 0.999, 1e308, 10**400, "8", True, None])


def _fields(kind: type, **own: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    names = [field.name for field in dataclasses.fields(kind)]
    known = st.sampled_from([*PRUNERS, *ALLOCATIONS, *PATTERNS, *QUANTIZERS, *GRANULARITIES, *RANGES])
    value = NUMBERS | known | JSON
    return st.fixed_dictionaries({}, optional={name: own.get(name, value) for name in names})


LINKED = _fields(
    Recipe,
    prune=_fields(PruneSpec) | JSON,
    quantize=_fields(QuantizeSpec) | JSON,
    layers=st.lists(_fields(Override) | JSON, max_size=4) | JSON,
)
EARLIER = st.fixed_dictionaries(
    {}, optional={"training_seconds": NUMBERS | JSON, "prune": st.fixed_dictionaries({"effort": JSON})}
)


@given(LINKED | EARLIER | JSON)
def test_whatever_a_link_holds_is_a_recipe_or_refused_in_words(data: object) -> None:
    text = json.dumps(data)
    try:
        made = Recipe.from_json(text)
    except InputError:
        return
    assert made.canonical().canonical() == made.canonical()
    assert Recipe.from_json(made.to_json()) == made
    assert made.describe()


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [
        (0, 0),
        (0.0, 0),
        (0.01, 1),
        (30, 150),
        (30.5, 153),
        (86_400, MAX_FINETUNE_STEPS),
        (1e308, MAX_FINETUNE_STEPS),
        (10**400, MAX_FINETUNE_STEPS),
    ],
)
def test_a_budget_in_seconds_is_read_as_steps(seconds: float, steps: int) -> None:
    data = {"prune": {"sparsity": 0.5}, "training_seconds": seconds}
    assert Recipe.from_dict(data) == Recipe(PruneSpec(sparsity=0.5), finetune_steps=steps)
    assert Recipe.from_json(json.dumps(data)).to_dict().get("training_seconds") is None


@pytest.mark.parametrize(("effort", "seconds"), [("fast", 0), ("best", 60)])
def test_an_effort_of_pruning_is_read_as_a_budget(effort: str, seconds: int) -> None:
    data = {"prune": {"method": "compensated", "sparsity": 0.5, "effort": effort}}
    assert Recipe.from_dict(data) == Recipe(PruneSpec("compensated", 0.5), effort_seconds=seconds)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"training_seconds": "long"}, "'long' is not a number: give finetune_steps"),
        ({"training_seconds": True}, "True is not a number"),
        ({"training_seconds": -1}, "-1 seconds of fine-tuning are not allowed"),
        ({"training_seconds": -(10**400)}, "0 seconds of fine-tuning are not allowed"),
        ({"training_seconds": math.inf}, "inf seconds of fine-tuning are not allowed"),
        ({"training_seconds": 1, "finetune_steps": 5}, "two ways to say one thing: give the steps"),
        ({"finetune_steps": MAX_FINETUNE_STEPS + 1}, r"2,001 fine-tuning steps .* 0 \(none\) to 2,000"),
        ({"finetune_steps": -1}, "-1 fine-tuning steps are not allowed"),
        ({"finetune_steps": 1.5}, "not a recipe"),
        ({"effort_seconds": 601}, r"601 seconds of best effort .* 0 \(none\) to 600"),
        ({"prune": {"effort": "worst"}}, "effort 'worst': use one of fast, best"),
        *(
            ({"prune": {"effort": value}}, f"effort {re.escape(repr(value))}: use one of fast, best")
            for value in (None, [1], {}, 1)
        ),
    ],
)
def test_bad_budgets_are_refused(data: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Recipe.from_dict(data)
