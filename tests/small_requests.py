"""Requests of the bundled residual network on a few of its images, and a network of a script's own."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec, Request, Result, Settings

IMAGES = 120
MLP = "fashion-mlp"
"""Where it makes no difference which network it is: an engine prepares it in a fifth of the time."""
BASE = Request("fashion-resnet", data=DataSpec(limit=IMAGES), settings=Settings(threads=1))
HALF = Recipe(PruneSpec(sparsity=0.5))
FOUR_BITS = Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=4))
INT8 = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8))
INT8_KERNELS = Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=4, activation_bits=8))
Measured = Callable[..., Result]


def request(recipe: Recipe, **changes: object) -> Request:
    return replace(BASE, recipe=recipe, **changes)  # type: ignore[arg-type]


class Own(nn.Module):
    """As a script or a notebook has it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))
