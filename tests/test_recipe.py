import contextlib
import cProfile
import dataclasses
import doctest
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer import errors, recipe
from optimizer.errors import InputError
from optimizer.methods.pruners import PRUNERS
from optimizer.methods.quantizers import QUANTIZERS
from optimizer.recipe import (
    ACTIVATION_BITS,
    ALLOCATIONS,
    EFFORTS,
    GRANULARITIES,
    MAX_FINETUNE_STEPS,
    MAX_JSON_BYTES,
    MAX_OVERRIDES,
    NORMAL,
    PATTERNS,
    PRESETS,
    RANGES,
    SNAPS,
    WEIGHT_BITS,
    Override,
    PruneSpec,
    QuantizeSpec,
    Recipe,
)
from optimizer.records import DataSpec, Request, Settings, digest

ways = {
    "method": st.sampled_from([name for name, pruner in PRUNERS.items() if not pruner.shrinks]),
    "allocation": st.sampled_from(ALLOCATIONS),
    "effort": st.sampled_from(EFFORTS),
    "match": st.booleans(),
}
sparsities = st.builds(
    PruneSpec,
    sparsity=st.none() | st.floats(0, 1, exclude_max=True),
    pattern=st.sampled_from([pattern for pattern in PATTERNS if ":" not in pattern]),
    **ways,
)
thresholds = st.builds(PruneSpec, threshold=st.floats(0, allow_infinity=False, allow_nan=False), **ways)
fixed = st.builds(PruneSpec, pattern=st.sampled_from(["2:4", "4:8"]), **ways)
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
    sparsities | thresholds | fixed | channels,
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
        ("activation_bits", 9, "activation bits 9: use one of 2, 3, 4, 5, 6, 7, 8, 32"),
        ("method", "gptq", "rounding 'gptq': use one of nearest, compensated"),
        ("granularity", "row", "granularity 'row': use one of tensor, channel, group"),
        ("range", "max", "range 'max': use one of absmax, mse, percentile"),
    ],
)
def test_quantize_choices_are_checked(field: str, value: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        QuantizeSpec(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("method", "random", "pruning method 'random': use one of magnitude, compensated, channels"),
        ("allocation", "block", "allocation 'block': use one of uniform, global, normalised, measured"),
        ("pattern", "3:4", "pattern '3:4': use one of unstructured, 2:4, 4:8, 1x4, 4x4, 16x1"),
        ("effort", "worst", "effort 'worst': use one of fast, best"),
    ],
)
def test_prune_choices_are_checked(field: str, value: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        PruneSpec(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_a_pattern_that_fixes_the_sparsity_takes_no_other(pattern: str) -> None:
    assert PruneSpec(pattern=pattern).active
    assert PruneSpec(pattern=pattern).share == PruneSpec(pattern=pattern, sparsity=0.5).share == 0.5
    with pytest.raises(
        InputError,
        match=f"sparsity 0.7 does not go with pattern {pattern}.*removes 50 % of the layers it fits",
    ):
        PruneSpec(pattern=pattern, sparsity=0.7)
    with pytest.raises(InputError, match="one weight at a time"):
        PruneSpec(pattern=pattern, threshold=0.1)


@pytest.mark.parametrize("bits", [1.9, 8.1, float("nan"), float("inf")])
def test_bits_on_average_out_of_range_are_refused(bits: float) -> None:
    with pytest.raises(InputError, match="average bits are out of range: layers take 2 to 8"):
        QuantizeSpec(average_bits=bits)


def test_bits_and_bits_on_average_together_are_refused() -> None:
    with pytest.raises(InputError, match="give only one"):
        QuantizeSpec(average_bits=4.0, weight_bits=4)


def test_what_needs_data() -> None:
    half, four = PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=4)
    assert not Recipe(half, four).needs_data
    assert Recipe(dataclasses.replace(half, method="compensated")).needs_data
    assert Recipe(dataclasses.replace(half, allocation="measured")).needs_data
    assert Recipe(quantize=dataclasses.replace(four, method="compensated")).needs_data
    assert Recipe(quantize=QuantizeSpec(average_bits=4)).needs_data
    assert not Recipe(PruneSpec("compensated"), QuantizeSpec("compensated")).needs_data  # nothing to be done
    assert Recipe(half, four, (Override("a", pruning="compensated"),)).needs_data


def test_an_override_is_what_its_layer_has_to_itself() -> None:
    made = Recipe(
        PruneSpec(sparsity=0.5, allocation="global"),
        QuantizeSpec(average_bits=4),
        (Override("a", sparsity=0.1), Override("b", weight_bits=8, rounding="compensated")),
    )
    own = PruneSpec(sparsity=0.1, allocation="uniform")
    assert made.prune_for("abc") == {"a": own, "b": made.prune, "c": made.prune}
    assert made.quantize_for("ab") == {
        "a": made.quantize,
        "b": QuantizeSpec("compensated", weight_bits=8),
    }
    with pytest.raises(InputError, match="layer a is overridden 2 times"):
        Recipe(layers=(Override("a"), Override("a", sparsity=0.1)))
    with pytest.raises(InputError, match="sparsity 1.5 is out of range"):
        Override("a", sparsity=1.5)
    with pytest.raises(InputError, match="weight bits 9"):
        Override("a", weight_bits=9)


@given(recipes)
def test_the_canonical_recipe_does_the_same(made: Recipe) -> None:
    canonical = made.canonical()
    assert canonical.canonical() == canonical
    assert canonical.describe() == made.describe()
    assert canonical.identity == made.identity
    assert canonical.needs_data == made.needs_data


def test_what_makes_no_difference_is_not_in_the_canonical_recipe() -> None:
    assert Recipe(PruneSpec("compensated", effort="best")).canonical() == Recipe()
    assert Recipe(quantize=QuantizeSpec("compensated", symmetric=False)).canonical() == Recipe()
    pattern = Recipe(PruneSpec(pattern="2:4", sparsity=0.5, allocation="uniform"))
    assert pattern.canonical() == Recipe(PruneSpec(pattern="2:4"))


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
        (Recipe(PruneSpec(sparsity=0.955, allocation="uniform")), "95.5 % of each layer pruned"),
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
            "3-bit weights (per tensor, asymmetric, MSE range)",
        ),
        (
            Recipe(PruneSpec("compensated", 0.5, allocation="measured")),
            "50 % of all weights pruned (data-aware, by sensitivity)",
        ),
        (Recipe(PruneSpec("compensated", pattern="2:4")), "pruned 2:4 (data-aware)"),
        (Recipe(PruneSpec(sparsity=0.5, pattern="1x4")), "50 % of all weights pruned (in blocks 1x4)"),
        (
            Recipe(PruneSpec("compensated", 0.5, effort="best")),
            "50 % of all weights pruned (data-aware, best effort)",
        ),
        (
            Recipe(quantize=QuantizeSpec("compensated", average_bits=3.5, symmetric=False)),
            "3.5 average bits (GPTQ, asymmetric)",
        ),
        (Recipe(layers=(Override("a", sparsity=0.5),)), "1 layer override"),
        (
            Recipe(PruneSpec("channels", 0.2, allocation="measured", snap=8), finetune_steps=30),
            "20 % of channels removed (by sensitivity, snapped to 8) · fine-tuned for 30 steps",
        ),
    ],
)
def test_recipes_in_words(made: Recipe, words: str) -> None:
    assert made.describe() == words


@pytest.mark.parametrize(
    "given",
    [
        {"weight_bits": 0},
        {"pruning": ""},
        {"rounding": ""},
        {"sparsity": float("nan")},
    ],
)
def test_an_override_of_nothing_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Recipe.from_dict({"layers": [{"layer": "a", **given}]})


def test_a_pattern_goes_with_no_other_sparsity_not_even_0() -> None:
    with pytest.raises(InputError, match="sparsity 0 does not go with pattern 2:4, which removes 50 %"):
        PruneSpec(sparsity=0.0, pattern="2:4")


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
    known = st.sampled_from(
        [*PRUNERS, *ALLOCATIONS, *PATTERNS, *EFFORTS, *QUANTIZERS, *GRANULARITIES, *RANGES]
    )
    value = NUMBERS | known | JSON
    return st.fixed_dictionaries({}, optional={name: own.get(name, value) for name in names})


LINKED = _fields(
    Recipe,
    prune=_fields(PruneSpec) | JSON,
    quantize=_fields(QuantizeSpec) | JSON,
    layers=st.lists(_fields(Override) | JSON, max_size=4) | JSON,
)


@given(LINKED | JSON)
def test_whatever_a_link_holds_is_a_recipe_or_refused_in_words(data: object) -> None:
    text = json.dumps(data)
    try:
        made = Recipe.from_json(text)
    except InputError:
        return
    assert made.canonical().canonical() == made.canonical()
    assert Recipe.from_json(made.to_json()) == made
    assert made.describe()


@given(st.text(max_size=80) | st.binary(max_size=80))
def test_any_text_is_a_recipe_or_refused_in_words(text: str | bytes) -> None:
    with contextlib.suppress(InputError):
        Recipe.from_json(text)


def test_recipes_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().prune = PruneSpec()  # type: ignore[misc]


@pytest.mark.parametrize("module", [recipe.recipe, errors])
def test_examples_in_the_docstrings(module: object) -> None:
    results = doctest.testmod(module)  # type: ignore[arg-type]
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize(
    ("seconds", "steps"), [(0, 0), (0.0, 0), (0.01, 1), (30, 150), (30.5, 153), (86_400, MAX_FINETUNE_STEPS)]
)
def test_a_budget_in_seconds_is_read_as_steps(seconds: float, steps: int) -> None:
    data = {"prune": {"sparsity": 0.5}, "training_seconds": seconds}
    assert Recipe.from_dict(data) == Recipe(PruneSpec(sparsity=0.5), finetune_steps=steps)
    assert Recipe.from_json(json.dumps(data)).to_dict().get("training_seconds") is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"training_seconds": "long"}, "'long' is not a number: give finetune_steps"),
        ({"training_seconds": True}, "True is not a number"),
        ({"training_seconds": -1}, "-1 seconds of fine-tuning are not allowed"),
        ({"training_seconds": 1, "finetune_steps": 5}, "two ways to say one thing: give the steps"),
        ({"finetune_steps": MAX_FINETUNE_STEPS + 1}, r"2,001 fine-tuning steps .* 0 \(none\) to 2,000"),
        ({"finetune_steps": -1}, "-1 fine-tuning steps are not allowed"),
        ({"finetune_steps": 1.5}, "not a recipe"),
    ],
)
def test_bad_budgets_are_refused(data: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Recipe.from_dict(data)


@pytest.mark.parametrize(
    ("made", "own", "canonical"),
    [
        (Recipe(), "aa6b96c65ff2e6a29b66", "b3c70103c6db1eb43972"),
        (Recipe(PruneSpec(sparsity=0.5)), "a475457c92b613062a24", "168d9187181def5f32c8"),
        (
            Recipe(PruneSpec(threshold=0.03, allocation="uniform")),
            "a8134e5cec8b88389c0c",
            "16b339789cc4134821bf",
        ),
        (
            Recipe(
                PruneSpec("compensated", 0.6, allocation="measured", effort="best"),
                QuantizeSpec("compensated", 4, symmetric=False, range="mse"),
            ),
            "6b109b5b68cee8990a65",
            "c806c568fcf7b6828c6f",
        ),
        (
            Recipe(PruneSpec("compensated", pattern="2:4", allocation="measured", match=True, snap=8)),
            "3625c8cf453c36ee74ff",
            "de520758fe1bd66da70c",
        ),
        (
            Recipe(PruneSpec(sparsity=0.5, effort="best", snap=16, match=True, pattern="4x4")),
            "9f81ed7b08f36dcdd9b4",
            "b276cd1f5b5a1e638d59",
        ),
        (
            Recipe(PruneSpec("channels", 0.3, allocation="normalised", effort="best", snap=8)),
            "cca272fe10a5ea02876d",
            "8ce07058547920e475a6",
        ),
        (
            Recipe(PruneSpec("channels", 0.3, allocation="measured", match=True)),
            "c8475e52a12cdf393b5e",
            "2b7e72b8d0cc6b78e913",
        ),
        (
            Recipe(PruneSpec("channels"), layers=(Override("a", 0.5, 4, "magnitude", "compensated"),)),
            "15ae82926fab2501d7c6",
            "2851c61b3482a6ef5cbf",
        ),
        (
            Recipe(
                PruneSpec("compensated", 0.4, match=True),
                layers=(Override("a", pruning="magnitude"), Override("b", rounding="nearest", weight_bits=8)),
            ),
            "12dbb83fc41a87a54e41",
            "219111abeec7cfa6c623",
        ),
        (
            Recipe(
                quantize=QuantizeSpec("nearest", 8, activation_bits=8, equalise=True, granularity="tensor")
            ),
            "097925867e6ffcbd6c6c",
            "4f8a7f62b5e1b86c86bf",
        ),
        (
            Recipe(quantize=QuantizeSpec("compensated", 6, equalise=True, symmetric=False)),
            "586b4bc14c2a20f0eaf5",
            "ff383a55435f68396c21",
        ),
        (
            Recipe(
                quantize=QuantizeSpec(
                    "compensated", average_bits=3.5, range="percentile", granularity="group"
                )
            ),
            "606b278acf98ad85f4d9",
            "fddfaa9841fb64e19751",
        ),
        (
            Recipe(
                PruneSpec(sparsity=0.2),
                QuantizeSpec("compensated", 16, granularity="group", equalise=True, precision="bf16"),
                finetune_steps=100,
            ),
            "47e6073677a8685f6bb0",
            "687387cd586e4ee6012d",
        ),
        (
            Recipe(PruneSpec("compensated"), QuantizeSpec("compensated"), finetune_steps=100),
            "db7b8fdbf121adb11294",
            "b3c70103c6db1eb43972",
        ),
    ],
)
def test_digests_are_those_that_stored_results_were_filed_under(
    made: Recipe, own: str, canonical: str
) -> None:
    assert digest(made) == own
    assert digest(Request("m", made.canonical(), "sparse", DataSpec("/x"), Settings(2))) == canonical


def test_presets_are_those_that_stored_searches_tried() -> None:
    assert digest([preset.candidates for preset in PRESETS.values()]) == "084ad79e5771fc6404ab"
    assert digest(NORMAL) == "5f1f27edc1a161ada15f"
