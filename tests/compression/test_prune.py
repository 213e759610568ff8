from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from optimizer.compression.apply import compress_weights
from optimizer.compression.calibration.moments import collect
from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.prune.magnitude import masks, thresholds
from optimizer.methods.pruners import PRUNERS
from optimizer.recipe import PruneSpec, Recipe

# Quarters, so that many magnitudes tie; and any finite float32.
weights = st.lists(st.integers(-8, 8).map(lambda q: q / 4), min_size=1, max_size=60) | st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60
)
sparsities = st.floats(0, 1, exclude_max=True)


def matrix(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, -1)


def spec(**arguments: object) -> PruneSpec:
    return PruneSpec(**arguments)  # type: ignore[arg-type]


def survives_by_hand(values: Tensor, sparsity: float) -> list[bool]:
    """Sort, find the last to go, and keep what is larger, weight by weight."""
    magnitudes = [abs(value) for value in values.flatten().tolist()]
    removed = round(sparsity * len(magnitudes))
    last = sorted(magnitudes)[removed - 1] if removed else -1.0
    return [magnitude > last for magnitude in magnitudes]


@given(weights, st.floats(0, 4, width=32))
def test_a_weight_survives_if_it_is_larger_than_the_threshold(values: list[float], threshold: float) -> None:
    mask = masks({"w": matrix(values)}, spec(threshold=threshold))["w"]
    assert mask.dtype == torch.bool
    assert mask.flatten().tolist() == [abs(w) > threshold for w in matrix(values).flatten().tolist()]


@pytest.mark.slow
@given(st.lists(weights, min_size=1, max_size=4), sparsities)
def test_layer_by_layer_masks_against_brute_force(layers: list[list[float]], sparsity: float) -> None:
    named = {str(index): matrix(values) for index, values in enumerate(layers)}
    found = masks(named, spec(sparsity=sparsity, allocation="uniform"))
    for name, weight in named.items():
        assert found[name].shape == weight.shape
        assert found[name].flatten().tolist() == survives_by_hand(weight, sparsity)


@given(st.lists(weights, min_size=1, max_size=4), sparsities)
def test_global_masks_are_those_of_one_long_layer(layers: list[list[float]], sparsity: float) -> None:
    named = {str(index): matrix(values) for index, values in enumerate(layers)}
    found = masks(named, spec(sparsity=sparsity, allocation="global"))
    together = torch.cat([found[name].flatten() for name in named])
    assert together.tolist() == survives_by_hand(torch.cat(list(named.values()), 1), sparsity)


@pytest.mark.slow
@given(weights, sparsities, st.sampled_from(["uniform", "global"]))
def test_a_sparsity_and_the_threshold_it_becomes_give_the_same_mask(
    values: list[float], sparsity: float, allocation: str
) -> None:
    named = {"w": matrix(values)}
    share = spec(sparsity=sparsity, allocation=allocation)
    threshold = thresholds(named, share)["w"]
    mask = masks(named, share)["w"]
    if threshold >= 0:
        assert torch.equal(mask, masks(named, spec(threshold=threshold))["w"])
    else:
        assert mask.all()


@given(weights, st.lists(sparsities, min_size=2, max_size=5))
def test_masks_of_rising_sparsities_are_nested(values: list[float], rising: list[float]) -> None:
    found = [masks({"w": matrix(values)}, spec(sparsity=share))["w"] for share in sorted(rising)]
    assert all(bool((looser | ~tighter).all()) for looser, tighter in pairwise(found))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_equal_weights_go_together_or_not_at_all(allocation: str) -> None:
    named = {"w": torch.full((4, 5), -0.3)}
    assert masks(named, spec(sparsity=0.02, allocation=allocation))["w"].all()  # less than half a weight
    assert not masks(named, spec(sparsity=0.03, allocation=allocation))["w"].any()


def test_threshold_0_removes_zeros_only_and_no_spec_removes_nothing() -> None:
    named = {"w": torch.tensor([[0.0, -0.0, 1e-45, -2.0]])}
    assert masks(named, spec(threshold=0.0))["w"].tolist() == [[False, False, True, True]]
    assert masks(named, PruneSpec())["w"].all()
    assert masks(named, spec(sparsity=0.0))["w"].all()
    assert thresholds(named, spec(sparsity=0.0)) == {"w": -1.0}


def test_a_weight_equal_to_the_threshold_goes() -> None:
    # 0.1 is no float32: the comparison is made with the weights' own precision.
    assert masks({"w": torch.tensor([[0.1, 0.25, -0.25, 0.5]])}, spec(threshold=0.1))["w"].tolist() == [
        [False, True, True, True]
    ]
    assert masks({"w": torch.tensor([[0.1, 0.25, -0.25, 0.5]])}, spec(threshold=0.25))["w"].tolist() == [
        [False, False, False, True]
    ]


def test_99_percent_of_a_real_network(resnet) -> None:  # type: ignore[no-untyped-def]
    named = {name: tensor for name, tensor in resnet.module.named_parameters() if tensor.dim() > 1}
    total = sum(weight.numel() for weight in named.values())
    kept = masks(named, spec(sparsity=0.99))
    assert sum(int(mask.sum()) for mask in kept.values()) == total - round(0.99 * total)
    kept = masks(named, spec(sparsity=0.99, allocation="uniform"))
    for mask in kept.values():
        assert int(mask.sum()) == mask.numel() - round(0.99 * mask.numel())


def test_a_small_global_threshold_empties_a_layer_of_small_weights() -> None:
    named = {"small": torch.full((2, 2), 0.01), "large": torch.linspace(1, 2, 12).reshape(3, 4)}
    found = masks(named, spec(sparsity=0.25))
    assert not found["small"].any()
    assert found["large"].all()


def test_a_weight_that_two_modules_share_counts_once(small) -> None:  # type: ignore[no-untyped-def]
    """Counted twice, the shared small weights would pull the global threshold down."""
    model = small("tied")
    with torch.no_grad():
        model.left.weight.copy_(torch.linspace(0.001, 0.002, 256).reshape(16, 16))
        for layer in (model.first, model.head):
            layer.weight.copy_(torch.linspace(1, 2, layer.weight.numel()).reshape(layer.weight.shape))
    total = 1024 + 256 + 160
    sparsity = 512 / total
    kept = compress_weights(model, Recipe(spec(sparsity=sparsity)))
    assert set(kept) == {"first.weight", "left.weight", "head.weight"}
    assert sum(int(weight.mask.sum()) for weight in kept.values()) == total - 512
    assert kept["left.weight"].mask.sum() == 0
    assert kept["first.weight"].mask.sum() + kept["head.weight"].mask.sum() == 1024 + 160 - 256


def test_pruners_leave_the_weights_alone() -> None:
    weight = torch.randn(8, 8)
    before = weight.clone()
    moments = collect(nn.Sequential(nn.Linear(8, 8)), torch.randn(40, 8))
    statistics = Statistics({"w": moments["0.weight"]}, {"w": torch.ones(8)}, frozenset(["w"]))
    for entry in PRUNERS.values():
        if entry.shrinks:
            continue
        pruner = entry.load()
        for allocation in ("uniform", "global", "normalised", "measured"):
            pruner({"w": weight}, {"w": weight}, spec(sparsity=0.5, allocation=allocation), statistics)
    assert np.array_equal(weight, before)
