"""Which modules are a network's blocks."""

import pytest
from torch import nn

from optimizer.compression.blocks import blocks
from optimizer.model.architectures import ARCHITECTURES


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
