"""Whether what an engine built follows the weights that are put into it, and answers as torch does.

A graph is converted once and then given each recipe's weights. What was worked out from a layer's weight
while it was converted (twice the weight, a standardised one) stays as it was, and every accuracy would be
wrong without anybody seeing it.
"""

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from optimizer.compression.apply import compress
from optimizer.engine.base import Array, Build
from optimizer.errors import WorkError
from optimizer.recipe import PruneSpec, Recipe

OTHER_WEIGHTS = Recipe(PruneSpec(sparsity=0.5, allocation="uniform"))
IMAGES = 2
TOLERANCE = 0.01
"""Share of what other weights change in the answers that may be missing."""
ROUNDING = 1e-4
"""Of the answers: what sums in another order come to."""


@torch.inference_mode()
def check_follows(build: Build, model: nn.Module, input_shape: tuple[int, ...], engine: str) -> None:
    """Raises WorkError where a runner of other weights does not answer as ``model`` with these does."""
    changed = compress(model, OTHER_WEIGHTS)
    images = torch.randn(IMAGES, *input_shape, generator=torch.Generator().manual_seed(0))
    before, after = model(images), changed.module(images)
    found = torch.from_numpy(build(changed, images, threads=1, batch=1).score(images.numpy()))
    if (found - after).norm() > TOLERANCE * (after - before).norm() + ROUNDING * after.norm():
        raise WorkError(
            f"{engine} can't take other weights for this model: it multiplies with values that are worked "
            "out from a layer's weight, and they would stay as they are. Use engine torch for it."
        )


@torch.inference_mode()
def check_answers(module: nn.Module, images: Array, answers: Array, engine: str) -> None:
    """Raises WorkError where ``answers`` for the first and the last of ``images`` are not ``module``'s."""
    ends = [0, -1]
    expected = tree_leaves(module(torch.from_numpy(images[ends])))[0].numpy()
    found = answers[ends]
    wrong = found.shape != expected.shape
    if wrong or np.linalg.norm(found - expected) > TOLERANCE * np.linalg.norm(expected) + ROUNDING:
        raise WorkError(
            f"{engine} does not give torch's answers for this model, so its accuracy would be that of "
            "another network. Use engine torch for it."
        )
