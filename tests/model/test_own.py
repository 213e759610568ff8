"""A module of one's own, named by what it computes."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from optimizer.errors import InputError
from optimizer.model.own import own_model
from optimizer.model.sources.imagenet import class_names, wordnet_ids


def test_the_size_of_its_inputs_is_part_of_a_name() -> None:
    """Images in a folder are the same ones, whatever they are scaled to."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    small, again, large = (own_model(net, (3, side, side)).card for side in (8, 8, 16))
    assert small.name == again.name != large.name


OWN = tuple(f"part {number:03}" for number in range(1000))


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (OWN, OWN),
        (("banana", *OWN[1:]), ("banana", *OWN[1:])),
        (OWN[:10], ()),
        ((), ()),
        (wordnet_ids(), class_names()),
        (wordnet_ids()[:7], class_names()),
        (("Golden_Retriever", "tench, Tinca tinca", "other"), class_names()),
    ],
    ids=["own", "one of a name", "some of its own", "unknown", "ids", "some ids", "names"],
)
def test_a_thousand_outputs_are_imagenet_s_where_the_folders_are(
    folders: tuple[str, ...], names: tuple[str, ...]
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 1000))
    loaded = own_model(net, (3, 2, 2), folders)
    assert loaded.classes == names
    assert loaded.wordnet_ids == (wordnet_ids() if names == class_names() else ())


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
