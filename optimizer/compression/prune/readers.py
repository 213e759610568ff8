"""What reads removed channels, refitted: the channels that stay make up for those that go.

By least squares (after arXiv 1707.06168), all readers at once from the dense model's moments: refitting them
in turn, each on inputs that are already pruned, did worse.
"""

import torch
from torch import Tensor

from optimizer.compression.calibration.moments import Moments, damped
from optimizer.compression.calibration.sensitivity import Trial
from optimizer.compression.prune.group import Group
from optimizer.model.layers import Layer

RIDGE = 0.01
"""Of the mean variance of the inputs: how strongly a refit is held to the weights as they were."""


def refit(weight: Tensor, kept: Tensor, covariance: Tensor, ridge: float = RIDGE) -> Tensor:
    """The weight ``[out, d]`` with 0 in columns outside ``kept`` (bool ``[d]``), the others making up for
    them.

    Least squares of what changes in the outputs for inputs of this ``covariance`` ``[d, d]``, held to the
    weight as it was by ``ridge`` times the mean variance.
    """
    inside = covariance[kept][:, kept]
    inside = damped(inside.unsqueeze(0), ridge)[0]
    lost = weight[:, ~kept] @ covariance[~kept][:, kept]
    fitted = torch.zeros_like(weight)
    fitted[:, kept] = weight[:, kept] + torch.cholesky_solve(lost.T, torch.linalg.cholesky(inside)).T
    return fitted


def refitted(layer: Layer, gone: Tensor, group: Group, moments: Moments | None, order: str) -> Trial:
    """A layer that no longer reads some channels: the others refitted, or as they were, by magnitude."""
    weight = layer.weight.detach().flatten(1)
    kept = group.staying(gone).repeat_interleave(weight.shape[1] // group.channels)
    if moments is None:
        fitted, change = weight * kept, None
    else:
        fitted = refit(weight, kept, moments.covariance[0]) if order == "compensated" else weight * kept
        change = (weight - fitted) @ moments.mean[0]
    return Trial(fitted.reshape(layer.weight.shape), change)
