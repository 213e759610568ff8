from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from optimizer.compression.prune.patterns import PATTERNS, block_costs, cheapest, keep_mask

BLOCKS = ("1x4", "4x4", "16x1")
GROUPS = ("2:4", "4:8")
SHAPES = ((7, 10), (17, 3, 3, 3), (32, 1, 3, 3), (8, 16, 1, 1), (5, 6, 3))


def random_costs(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def blocks_by_hand(costs: Tensor, outputs: int, inputs: int) -> list[tuple[float, list[tuple[int, int]]]]:
    """Mean cost and places of each block in ``[out, taps * channels]``, channels fastest."""
    flat = costs.movedim(1, -1).reshape(len(costs), -1)
    found = []
    for top in range(0, flat.shape[0], outputs):
        for left in range(0, flat.shape[1], inputs):
            places = [
                (row, column)
                for row in range(top, min(top + outputs, flat.shape[0]))
                for column in range(left, min(left + inputs, flat.shape[1]))
            ]
            found.append((sum(flat[place].item() for place in places) / len(places), places))
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_go_whole_and_cheapest_first(name: str, shape: tuple[int, ...]) -> None:
    costs, pattern = random_costs(shape), PATTERNS[name]
    removed = costs.numel() // 2
    kept = keep_mask(costs, pattern, removed).movedim(1, -1).reshape(shape[0], -1)
    blocks = blocks_by_hand(costs, pattern.outputs, pattern.inputs)
    gone = [mean for mean, places in blocks if not any(kept[place] for place in places)]
    stays = [mean for mean, places in blocks if all(kept[place] for place in places)]
    assert len(gone) + len(stays) == len(blocks)
    assert stays
    assert max(gone, default=0) <= min(stays)
    assert abs(int((~kept).sum()) - removed) <= pattern.outputs * pattern.inputs


@pytest.mark.parametrize("name", ["unstructured", *BLOCKS])
def test_block_costs_are_means_over_the_weights_that_a_block_has(name: str) -> None:
    costs, pattern = random_costs((18, 3, 3, 3)), PATTERNS[name]
    means, sizes = block_costs(costs, pattern)
    by_hand = blocks_by_hand(costs, pattern.outputs, pattern.inputs)
    assert sizes.flatten().tolist() == [len(places) for _, places in by_hand]
    torch.testing.assert_close(means.flatten(), torch.tensor([mean for mean, _ in by_hand]))


@pytest.mark.parametrize("shape", [(8, 16), (8, 32, 3, 3), (16, 48, 1, 1)])
@pytest.mark.parametrize("name", GROUPS)
def test_the_dearest_of_each_group_of_channels_stay(name: str, shape: tuple[int, ...]) -> None:
    costs, pattern = random_costs(shape), PATTERNS[name]
    kept = keep_mask(costs, pattern)
    assert (~kept).sum() == kept.numel() // 2
    flat_costs, flat_kept = (one.movedim(1, -1).reshape(-1, pattern.inputs) for one in (costs, kept))
    for group, stays in zip(flat_costs.tolist(), flat_kept.tolist(), strict=True):
        dearest = sorted(group)[-(pattern.kept or 0) :]
        assert sorted(cost for cost, stay in zip(group, stays, strict=True) if stay) == dearest


@pytest.mark.parametrize("shape", [(32, 3, 3, 3), (32, 1, 3, 3), (10, 16), (8, 24, 1, 1)])
def test_layers_that_sparse_tensor_cores_can_not_run_stay_dense(shape: tuple[int, ...]) -> None:
    for name in GROUPS:
        assert keep_mask(random_costs(shape), PATTERNS[name]).all()


@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.data())
def test_exactly_as_many_weights_go_whatever_ties(values: list[int], data: st.DataObject) -> None:
    costs = torch.tensor([values], dtype=torch.float32)
    removed = data.draw(st.integers(0, len(values) - 1))
    kept = keep_mask(costs, PATTERNS["unstructured"], removed)
    assert int((~kept).sum()) == removed
    if removed:
        assert costs[~kept].max() <= costs[kept].min()


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40))
def test_choices_for_growing_counts_are_nested(values: list[int]) -> None:
    costs = torch.tensor(values, dtype=torch.float32)
    chosen = [cheapest(costs, count) for count in range(len(values) + 1)]
    for fewer, more in pairwise(chosen):
        assert (more | ~fewer).all()


def test_masks_have_the_shape_of_the_costs() -> None:
    for shape in SHAPES:
        for pattern in PATTERNS.values():
            mask = keep_mask(random_costs(shape), pattern, 3)
            assert mask.shape == torch.Size(shape)
            assert mask.dtype == torch.bool


def test_blocks_never_take_the_whole_layer() -> None:
    for name in BLOCKS:
        assert keep_mask(random_costs((4, 4)), PATTERNS[name], 15).any()
