"""A chain of segments is the network: its own modules, and nothing but one tensor passed on between two."""

import pytest
import torch
from small_models import Branching, Small
from torch import Tensor, nn

from optimizer.compression.segments import outputs, segments
from optimizer.model.architectures import ARCHITECTURES


def chained(parts: list[nn.Module], images: Tensor) -> Tensor:
    for part in parts:
        images = outputs(part, images)
    return images


@pytest.mark.parametrize("name", ["cnn", "encoder", "shared", "tied", "auxiliary"])
def test_the_chain_gives_what_the_network_gives(small: Small, small_images: Tensor, name: str) -> None:
    model = small(name)
    with torch.no_grad():
        assert torch.equal(
            chained(segments(model, small_images[:1]), small_images[:16]), model(small_images[:16])
        )


@pytest.mark.parametrize(
    ("name", "count"),
    [("fashion-resnet", 5), ("fashion-vit", 5), ("fashion-mlp", 3), ("fashion-mobilenet", 7)],
)
def test_bundled_networks_are_parted_at_their_blocks(name: str, count: int) -> None:
    model = ARCHITECTURES[name]().eval()
    images = torch.randn(2, 1, 28, 28)
    parts = segments(model, images[:1])
    assert len(parts) == count
    with torch.no_grad():
        assert torch.equal(chained(parts, images), model(images))
    held = [id(one) for part in parts for one in part.parameters()]
    assert set(held) == {id(one) for one in model.parameters()}
    assert len(held) == len(set(held)), "each in one segment"


def test_what_changes_in_a_segment_changes_in_the_network(small: Small, small_images: Tensor) -> None:
    model = small("cnn")
    with torch.no_grad():
        for one in segments(model, small_images[:1])[-1].parameters():
            one.zero_()
        assert not model(small_images[:2]).any()


@pytest.mark.parametrize("model", [Branching(64, 10), nn.Flatten(), nn.Linear(64, 3)])
def test_what_can_not_be_parted_is_one_segment(model: nn.Module) -> None:
    assert len(segments(model, torch.zeros(1, 64))) == 1
