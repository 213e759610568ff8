"""A module of one's own, named by what it computes."""

from torch import nn

from optimizer.model.own import own_model


def test_the_size_of_its_inputs_is_part_of_a_name() -> None:
    """Images in a folder are the same ones, whatever they are scaled to."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    small, again, large = (own_model(net, (3, side, side)).card for side in (8, 8, 16))
    assert small.name == again.name != large.name
