"""Which weights of one layer go, given what each would cost: alone, N of each M, or in blocks.

A layer's weights are looked at as ``[out, d]`` with the input channels last, tap by tap: the order in which
matrix kernels for channels-last images and NVIDIA's 2:4 tensor cores read them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Pattern:
    """Weights go in blocks of ``outputs`` x ``inputs``; or, with ``kept``, all but that many of each.

    Blocks at the far edges of a layer are smaller. With ``kept`` the groups lie along the input channels of
    one tap, and layers whose outputs are no multiple of 8 or inputs (in a group) none of 16 stay dense, as in
    NVIDIA's ASP (apex.contrib.sparsity): depthwise convolutions, a stem on three colours. Sparse tensor cores
    can't run those, and they are where few weights cost much.
    """

    outputs: int = 1
    inputs: int = 1
    kept: int | None = None


SPARSE_OUTPUTS = 8
SPARSE_INPUTS = 16
"""What sparse tensor cores take the sizes of a matrix in multiples of."""

PATTERNS: dict[str, Pattern] = {
    "unstructured": Pattern(),
    "2:4": Pattern(1, 4, kept=2),
    "4:8": Pattern(1, 8, kept=4),
    "1x4": Pattern(1, 4),
    "4x4": Pattern(4, 4),
    "16x1": Pattern(16, 1),
}


def fits(shape: torch.Size, pattern: Pattern) -> bool:
    """Whether a layer of this shape ``[out, in, ...]`` loses anything to it; blocks fit everywhere."""
    return pattern.kept is None or (shape[0] % SPARSE_OUTPUTS == 0 and shape[1] % SPARSE_INPUTS == 0)


def keep_mask(costs: Tensor, pattern: Pattern, removed: int = 0) -> Tensor:
    """True where a weight stays, in the shape of ``costs`` ``[out, in, ...]`` (finite, at least 0).

    The cheapest ``removed`` weights go, of equal ones the first; blocks go by their mean cost a weight, as
    many as come nearest to ``removed``, and one stays. With ``pattern.kept`` the number follows from the
    pattern, and ``removed`` is not looked at.
    """
    flat = _channels_last(costs)
    if pattern.kept is not None:
        return _back(_keep_in_groups(flat, costs.shape, pattern), costs.shape)
    means, sizes = block_costs(costs, pattern)
    if pattern != PATTERNS["unstructured"]:
        removed = min(nearest_count(means.flatten(), sizes.flatten(), removed), means.numel() - 1)
    goes = cheapest(means.flatten(), removed).reshape(means.shape)
    spread = goes.repeat_interleave(pattern.outputs, 0).repeat_interleave(pattern.inputs, 1)
    return _back(~spread[: flat.shape[0], : flat.shape[1]], costs.shape)


def block_costs(costs: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Mean cost a weight of each block, and its weights (float32), both ``[block rows, block columns]``."""
    flat = _channels_last(costs)
    if pattern.outputs == pattern.inputs == 1:
        return flat, torch.ones_like(flat)
    sizes = _block_sums(torch.ones_like(flat), pattern)
    return _block_sums(flat, pattern) / sizes, sizes


def cheapest(costs: Tensor, count: int) -> Tensor:
    """Boolean ``[n]``: exactly ``count`` of the costs ``[n]``, the lowest; of equal ones the first.

    So the choices for growing counts are nested.
    """
    if count <= 0:
        return torch.zeros_like(costs, dtype=torch.bool)
    limit = float(np.partition(costs.numpy(), count - 1)[count - 1])
    below = costs < limit
    ties = (costs == limit).nonzero().flatten()
    below[ties[: count - int(below.sum())]] = True
    return below


def nearest_count(means: Tensor, sizes: Tensor, removed: int) -> int:
    """How many of the cheapest blocks ``[n]`` (of finite cost) hold nearest to ``removed`` weights."""
    order = means.argsort(stable=True)[: int(means.isfinite().sum())]
    held = torch.cat([torch.zeros(1, dtype=torch.float64), sizes[order].cumsum(0, dtype=torch.float64)])
    return int((held - removed).abs().argmin())


def _keep_in_groups(flat: Tensor, shape: torch.Size, pattern: Pattern) -> Tensor:
    assert pattern.kept is not None
    keep = torch.ones_like(flat, dtype=torch.bool)
    if not fits(shape, pattern):
        return keep
    groups = flat.reshape(-1, pattern.inputs)
    lost = groups.argsort(dim=1, stable=True)[:, : pattern.inputs - pattern.kept]
    return keep.reshape(groups.shape).scatter_(1, lost, False).reshape(flat.shape)


def _block_sums(flat: Tensor, pattern: Pattern) -> Tensor:
    missing = -flat.shape[1] % pattern.inputs, -flat.shape[0] % pattern.outputs
    padded = functional.pad(flat, (0, missing[0], 0, missing[1]))
    rows, columns = padded.shape[0] // pattern.outputs, padded.shape[1] // pattern.inputs
    return padded.reshape(rows, pattern.outputs, columns, pattern.inputs).sum((1, 3))


def _channels_last(weight: Tensor) -> Tensor:
    """``[out, in, ...]`` as ``[out, d]``, the input channels running fastest."""
    return weight.movedim(1, -1).reshape(len(weight), -1)


def _back(flat: Tensor, shape: torch.Size) -> Tensor:
    return flat.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()
