"""What a recipe may be, what it means, and what stored results are filed under."""

import dataclasses
import doctest

import numpy as np
import pytest

from optimizer import errors, recipe
from optimizer.errors import InputError
from optimizer.recipe import (
    NORMAL,
    PRESETS,
    WEIGHT_BITS,
    Override,
    PruneSpec,
    QuantizeSpec,
    Recipe,
)
from optimizer.records import DataSpec, Request, Settings, digest

NAN, INFINITY = float("nan"), float("inf")

NO_SPECS = [
    *((PruneSpec, {"sparsity": value}, f"sparsity {value:g} is out of range.*from 0 to below 1")
      for value in (1.5, 1.0, -0.1, NAN, INFINITY)),
    *((PruneSpec, {"threshold": value}, f"threshold {value:g} is not allowed.*finite number of at least 0")
      for value in (-0.01, NAN, INFINITY, -INFINITY)),
    (PruneSpec, {"sparsity": 0.0, "threshold": 0.0}, "give only one"),
    (PruneSpec, {"method": "random"}, "pruning method 'random': use one of magnitude, compensated, channels"),
    (PruneSpec, {"allocation": "block"}, "allocation .block.: use one of uniform, global"),
    (PruneSpec, {"pattern": "3:4"}, "pattern '3:4': use one of unstructured, 2:4, 4:8, 1x4, 4x4, 16x1"),
    *((QuantizeSpec, {"weight_bits": bits}, f"weight bits {bits}: use one of 2, 3, 4, 5, 6, 7, 8, 16, 32")
      for bits in (9, 1, 0, -4, 15, 64)),
    *((QuantizeSpec, {"average_bits": bits}, "average bits are out of range: layers take 2 to 8")
      for bits in (1.9, 8.1, NAN, INFINITY)),
    (QuantizeSpec, {"average_bits": 4.0, "weight_bits": 4}, "give only one"),
    (QuantizeSpec, {"activation_bits": 9}, "activation bits 9: use one of 2, 3, 4, 5, 6, 7, 8, 32"),
    (QuantizeSpec, {"method": "gptq"}, "rounding 'gptq': use one of nearest, compensated"),
    (QuantizeSpec, {"granularity": "row"}, "granularity 'row': use one of tensor, channel, group"),
    (QuantizeSpec, {"range": "max"}, "range 'max': use one of absmax, mse, percentile"),
    (Override, {"layer": "a", "sparsity": 1.5}, "sparsity 1.5 is out of range"),
    (Override, {"layer": "a", "weight_bits": 9}, "weight bits 9"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "fields", "words"), NO_SPECS, ids=lambda value: str(value)[:40])
def test_what_is_no_spec_is_refused_with_what_is_allowed(
    kind: type, fields: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        kind(**fields)


NUMBERS = [
    (PruneSpec, {"sparsity": np.float32(0.5), "snap": np.int64(8)}, PruneSpec(sparsity=0.5, snap=8)),
    (PruneSpec, {"threshold": np.float64(0.25)}, PruneSpec(threshold=0.25)),
    (QuantizeSpec, {"weight_bits": np.int64(4)}, QuantizeSpec(weight_bits=4)),
    (
        QuantizeSpec,
        {"weight_bits": 4.0, "activation_bits": 8.0},
        QuantizeSpec(weight_bits=4, activation_bits=8),
    ),
    (QuantizeSpec, {"average_bits": np.float32(3.5)}, QuantizeSpec(average_bits=3.5)),
    (QuantizeSpec, {"average_bits": 4}, QuantizeSpec(average_bits=4)),
    (Override, {"layer": "a", "sparsity": np.float64(0.5), "weight_bits": 4.0}, Override("a", 0.5, 4)),
    (
        Recipe,
        {"finetune_steps": np.int32(5), "effort_seconds": 60.0},
        Recipe(finetune_steps=5, effort_seconds=60),
    ),
]


@pytest.mark.parametrize(("kind", "fields", "same"), NUMBERS, ids=lambda value: str(value)[:40])
def test_numbers_from_outside_become_pythons_own(kind: type, fields: dict[str, object], same: object) -> None:
    made = kind(**fields)
    for name in fields:
        one, other = getattr(made, name), getattr(same, name)
        assert (one, type(one)) == (other, type(other)), name


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (PruneSpec, {"sparsity": "0.5"}, "sparsity '0.5' is no number: give one without quotes"),
        (QuantizeSpec, {"weight_bits": "4"}, "weight bits '4' is no number"),
        (QuantizeSpec, {"weight_bits": None}, "weight bits None is no number"),
        (QuantizeSpec, {"weight_bits": 4.5}, "weight bits 4.5 is no whole number: give one, such as 8"),
        (QuantizeSpec, {"activation_bits": INFINITY}, "activation bits inf is no whole number"),
        (Override, {"layer": "a", "weight_bits": 4.5}, "weight bits 4.5 is no whole number"),
        (Recipe, {"finetune_steps": 2.5}, "finetune steps 2.5 is no whole number"),
        (Recipe, {"effort_seconds": NAN}, "effort seconds nan is no whole number"),
    ],
)
def test_what_is_no_number_is_refused(kind: type, fields: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        kind(**fields)


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_a_pattern_that_fixes_the_sparsity_takes_no_other(pattern: str) -> None:
    assert PruneSpec(pattern=pattern).active
    assert PruneSpec(pattern=pattern).share == PruneSpec(pattern=pattern, sparsity=0.5).share == 0.5
    for other in (0, 0.7):
        words = f"sparsity {other} does not go with pattern {pattern}.*removes 50 % of the layers it fits"
        with pytest.raises(InputError, match=words):
            PruneSpec(pattern=pattern, sparsity=other)
    with pytest.raises(InputError, match="one weight at a time"):
        PruneSpec(pattern=pattern, threshold=0.1)


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


@pytest.mark.parametrize("share", [None, 0.25])
def test_a_layer_is_overridden_by_magnitude_where_channels_are_chosen(share: float | None) -> None:
    made = Recipe(PruneSpec("channels", sparsity=share, snap=8), layers=(Override("a", sparsity=0.1),))
    own = PruneSpec(sparsity=0.1, allocation="uniform")
    assert made.prune_for("ab") == {"a": own, "b": PruneSpec()}, "no layer is left to what removes channels"
    assert made.prune_specs == (made.prune, own)


def test_what_makes_no_difference_is_not_in_the_canonical_recipe() -> None:
    assert Recipe(PruneSpec("compensated"), effort_seconds=60).canonical() == Recipe()
    assert Recipe(quantize=QuantizeSpec("compensated", symmetric=False)).canonical() == Recipe()
    pattern = Recipe(PruneSpec(pattern="2:4", sparsity=0.5, allocation="uniform"))
    assert pattern.canonical() == Recipe(PruneSpec(pattern="2:4"))


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
        (Recipe(PruneSpec(sparsity=0.5)), "50 % of layer weights pruned"),
        (Recipe(PruneSpec(sparsity=0.955, allocation="uniform")), "95.5 % of each layer pruned"),
        (Recipe(PruneSpec(threshold=0.05)), "|w| ≤ 0.05 pruned"),
        (Recipe(PruneSpec(threshold=0.0)), "|w| ≤ 0 pruned"),
        (Recipe(quantize=QuantizeSpec(weight_bits=16)), "16-bit weights"),
        (Recipe(quantize=QuantizeSpec(activation_bits=8)), "8-bit activations"),
        (
            Recipe(PruneSpec(sparsity=0.3), QuantizeSpec(weight_bits=8, activation_bits=8)),
            "30 % of layer weights pruned · 8-bit weights · 8-bit activations",
        ),
        (
            Recipe(quantize=QuantizeSpec(weight_bits=3, granularity="tensor", symmetric=False, range="mse")),
            "3-bit weights (per tensor, asymmetric, MSE range)",
        ),
        (
            Recipe(PruneSpec("compensated", 0.5, allocation="measured")),
            "50 % of layer weights pruned (data-aware, by sensitivity)",
        ),
        (Recipe(PruneSpec("compensated", pattern="2:4")), "pruned 2:4 (data-aware)"),
        (Recipe(PruneSpec(sparsity=0.5, pattern="1x4")), "50 % of layer weights pruned (in blocks 1x4)"),
        (
            Recipe(PruneSpec("compensated", 0.5), effort_seconds=60),
            "50 % of layer weights pruned (data-aware) · best effort, 60 s",
        ),
        (
            Recipe(quantize=QuantizeSpec(weight_bits=3), effort_seconds=5, finetune_steps=10),
            "3-bit weights · best effort, 5 s · fine-tuned for 10 steps",
        ),
        (
            Recipe(quantize=QuantizeSpec("compensated", average_bits=3.5, symmetric=False)),
            "3.5 average bits (GPTQ, asymmetric)",
        ),
        (Recipe(layers=(Override("a", sparsity=0.5),)), "1 layer override"),
        (
            Recipe(PruneSpec("channels", 0.2, allocation="measured", snap=8), finetune_steps=30),
            "20 % of removable channels pruned (by sensitivity, in multiples of 8) · fine-tuned for 30 steps",
        ),
    ],
)
def test_recipes_in_words(made: Recipe, words: str) -> None:
    assert made.describe() == words


def test_recipes_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().prune = PruneSpec()  # type: ignore[misc]


@pytest.mark.parametrize("module", [recipe.recipe, errors])
def test_examples_in_the_docstrings(module: object) -> None:
    results = doctest.testmod(module)  # type: ignore[arg-type]
    assert results.attempted
    assert not results.failed


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
            Recipe(PruneSpec("compensated", pattern="2:4", allocation="measured", match=True, snap=8)),
            "3625c8cf453c36ee74ff",
            "de520758fe1bd66da70c",
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
