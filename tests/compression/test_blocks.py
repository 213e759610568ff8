"""Which modules are a network's blocks, and how far two networks' outputs of them are apart."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from optimizer.compression.blocks import blocks, distance, outputs_of
from optimizer.model.architectures import ARCHITECTURES

Small = Callable[[str], nn.Module]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fashion-resnet", ("3", "4", "5", "6")),
        ("fashion-vit", tuple(f"blocks.{index}.mlp" for index in range(4))),
        ("fashion-mlp", ("1", "4", "7")),  # no blocks: its layers
    ],
)
def test_blocks_are_the_smallest_modules_of_several_layers(name: str, expected: tuple[str, ...]) -> None:
    assert blocks(ARCHITECTURES[name]()) == expected


def test_a_model_that_is_one_layer_has_no_blocks() -> None:
    assert blocks(nn.Linear(3, 2)) == ()


@pytest.mark.parametrize("name", ["cnn", "encoder", "shared"])
def test_outputs_are_those_of_the_last_run_and_hooks_are_gone_after(
    small: Small, small_images: Tensor, name: str
) -> None:
    model = small(name)
    paths = blocks(model)
    with torch.no_grad(), outputs_of(model, paths) as found:
        model(small_images)
        model(small_images[:2])
    assert set(found) == set(paths)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_distance_is_relative_to_what_is_wanted() -> None:
    wanted = {"small": torch.full((2, 3), 0.1), "large": torch.full((2, 3), 100.0)}
    half = {name: one / 2 for name, one in wanted.items()}
    assert distance(half, wanted).item() == pytest.approx(0.25)
    assert distance(wanted, wanted).item() == 0


def test_blocks_of_another_shape_or_of_zeros_have_no_say() -> None:
    wanted = {"narrowed": torch.ones(2, 4), "dead": torch.zeros(2, 3), "missing": torch.ones(1)}
    assert distance({"narrowed": torch.ones(2, 3), "dead": torch.ones(2, 3)}, wanted).item() == 0
