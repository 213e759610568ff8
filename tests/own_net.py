"""A small network of one's own, and how tests of the public API measure it."""

from typing import Any

from torch import Tensor, nn

import optimizer as px

HALF = px.Recipe.of(sparsity=0.5, pruning="magnitude")
EIGHT_BITS = px.Recipe.of(weight_bits=8, activation_bits=8, rounding="nearest")


class Net(nn.Module):
    """Ten classes of images of 3 x 16 x 16."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=stride),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def measured(model: Any, data: Any, recipe: px.Recipe = HALF, **others: Any) -> px.Result:
    return px.measure(
        model, recipe, data, engine="torch", settings=px.Settings(threads=1), progress=False, **others
    )
