"""A module of one's own, named by what it computes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from optimizer.errors import InputError
from optimizer.measurement.workspace import open_model
from optimizer.model.own import own_model


def test_the_size_of_its_inputs_is_part_of_a_name() -> None:
    """Images in a folder are the same ones, whatever they are scaled to."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    small, again, large = (own_model(net, (3, side, side)).card for side in (8, 8, 16))
    assert small.name == again.name != large.name


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda net: torch.jit.trace(net, torch.zeros(1, 3, 2, 2)),
        lambda net: nn.Sequential(net[0], torch.jit.trace(net[1], torch.zeros(1, 12))),
    ],
    ids=["whole", "a part"],
)
def test_torchscript_is_refused_with_what_to_give(make: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(InputError, match="is TorchScript.*: give the module that it was made from"):
        own_model(make(net), (3, 2, 2))


class Normalised(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        images -= 0.5
        return self.layers(images)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "make",
    [Normalised, lambda net: nn.Sequential(net[0], nn.ReLU(inplace=True), net[1])],
    ids=["subtracted", "clipped"],
)
def test_a_module_that_writes_into_its_input_is_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    """Of images that several networks see the second would see other ones."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(InputError, match="changes its input in place.*x = x - 0.5"):
        own_model(make(net), (3, 2, 2))
    loaded = replace(own_model(net, (3, 2, 2)), module=make(net).eval())
    with pytest.raises(InputError, match="Sequential-.* changes its input in place"):
        open_model(loaded)
    own_model(nn.Sequential(*net, nn.ReLU(inplace=True)), (3, 2, 2))
