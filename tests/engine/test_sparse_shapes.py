"""The sparse engine on networks of other shapes than images to features to logits."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optimizer.engine import kernels
from optimizer.engine.kernels.network import Network
from optimizer.engine.kernels.trace import trace
from optimizer.engine.sparse import parameters_of


class Ending(nn.Module):
    """A layer, and what is done to its outputs."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.end = nn.Linear(6, 5), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.layer(x.flatten(1)))


def network_of(model: nn.Module, images: Tensor) -> Network:
    return Network(trace(model, images.shape), parameters_of(model), kernels.kernels(), threads=1)


@pytest.mark.parametrize(
    "end",
    [lambda x: x[:, :3], lambda x: x[:, :, None, None].sigmoid().flatten(1)],
    ids=["a view of the kernels' memory", "another name of what torch made"],
)
@torch.inference_mode()
def test_an_answer_is_not_overwritten_by_the_next_where_torch_ends_a_network(
    end: Callable[[Tensor], Tensor],
) -> None:
    model, images = Ending(end).eval(), torch.randn(2, 6, 1, 1)
    network = network_of(model, images)
    first = network.infer(images.numpy())
    network.infer(-images.numpy())
    np.testing.assert_allclose(first, model(images), atol=1e-5)
