"""What compensation promises on every bundled model: never clearly worse than the plain way, and by how much
better."""

from dataclasses import replace
from functools import cache

import pytest
from by_request import score

from optimizer.analysis.outcomes import PairedDrop, paired_drop
from optimizer.recipe import NORMAL, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import Accuracy, DataSpec, Request

LARGER = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("fashion-resnet", "fashion-mobilenet", "fashion-vit")
]
DATA = DataSpec(limit=1_000)
SPARSITIES = (0.5, 0.8, 0.97)
BITS = (4, 3, 2)
BY_MODEL = pytest.mark.parametrize("model", ["fashion-mlp", *LARGER], scope="module")
"""Of this scope: pytest puts the tests of one model together, which is calibrated and scored whole once."""


def pruned(sparsity: float) -> tuple[Recipe, Recipe]:
    return Recipe(replace(NORMAL.prune, sparsity=sparsity)), Recipe(PruneSpec(sparsity=sparsity))


def rounded(bits: int) -> tuple[Recipe, Recipe]:
    return Recipe(quantize=NORMAL.quantize.at(bits)), Recipe(quantize=QuantizeSpec(weight_bits=bits))


@cache
def accuracy(model: str, recipe: Recipe) -> Accuracy:
    return score(Request(model, recipe, data=DATA)).accuracy


def loss(model: str, recipe: Recipe, against: Recipe = Recipe()) -> PairedDrop:  # noqa: B008 - frozen
    return paired_drop(accuracy(model, against).outcomes, accuracy(model, recipe).outcomes)


@BY_MODEL
@pytest.mark.slow
def test_compensated_is_nowhere_clearly_worse_than_plain(model: str) -> None:
    """At the ends, and the smallest model in the middle too."""
    worse, step = {}, 1 if model == "fashion-mlp" else 2
    for position, (compensated, plain) in {
        **{f"{sparsity:.0%} pruned": pruned(sparsity) for sparsity in SPARSITIES[::step]},
        **{f"{bits} bits": rounded(bits) for bits in BITS[::step]},
    }.items():
        lost = loss(model, compensated, plain)
        if lost.low > 0:
            worse[position] = lost
    assert not worse


@pytest.mark.slow
@BY_MODEL
@pytest.mark.parametrize(
    ("recipe", "points"),
    [(pruned(0.5)[0], 1.0), (rounded(4)[0], 0.7), (rounded(3)[0], 2.5)],
    ids=["50 %", "4", "3"],
)
def test_little_is_lost_where_little_is_taken(model: str, recipe: Recipe, points: float) -> None:
    assert loss(model, recipe).points <= points


@pytest.mark.slow
def test_widths_that_differ_by_layer_lose_less_than_one_width() -> None:
    mixed = Recipe(quantize=replace(NORMAL.quantize.at(2), weight_bits=32, average_bits=2.5))
    assert loss("fashion-mobilenet", mixed).points < loss("fashion-mobilenet", rounded(2)[0]).points


@pytest.mark.slow
def test_removed_channels_leave_a_smaller_network_that_answers() -> None:
    found = score(
        Request("fashion-resnet", Recipe(PruneSpec("channels", 0.3, allocation="measured")), data=DATA)
    )
    assert found.inspection.size.file_bytes < 0.85 * found.inspection.baseline_size.file_bytes
    assert found.inspection.size.nonzero < found.inspection.size.elements
    assert paired_drop(found.baseline_accuracy.outcomes, found.accuracy.outcomes).points < 3


@pytest.mark.slow
def test_fine_tuning_wins_back_what_pruning_lost() -> None:
    plain = Recipe(PruneSpec(sparsity=0.85))
    trained = replace(plain, finetune_steps=40)
    assert loss("fashion-resnet", trained).points < loss("fashion-resnet", plain).points - 5
    again = score(Request("fashion-resnet", trained, data=DATA)).accuracy
    assert again == accuracy("fashion-resnet", trained)  # kept, not made anew
    rounded_too = replace(trained, quantize=NORMAL.quantize.at(4))
    found = score(Request("fashion-resnet", rounded_too, data=DATA)).inspection.size
    assert found.nonzero <= round(0.15 * found.elements) + 1  # zeros stay zeros
