"""A layer looked at closely: its weights as a histogram, and what changing it does to the outputs."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from optimizer.compression.apply import CompressedWeight
from optimizer.compression.calibration.layer_sensitivity import Alone
from optimizer.compression.calibration.statistics import Statistics
from optimizer.compression.quantize import bits
from optimizer.compression.quantize.grid import Codes, code_range
from optimizer.recipe import QuantizeSpec
from optimizer.records import Anatomy, Sensitivity

BINS = 101
"""Odd, so that zero lies in the middle of one."""
LEVELS_DRAWN = 64
"""A grid of more values is finer than the bins."""


def anatomy_of(layer: str, before: Tensor, after: CompressedWeight, as_published: bool) -> Anatomy:
    """Both histograms share their bins, which are symmetric about zero.

    A threshold, where there is one, is of the weights that were pruned. It is told where those are ``before``
    (``as_published``): where batch norm was folded into them since, it is another one in each channel.
    """
    values = after.values.numpy().ravel()
    original = before.numpy().ravel()
    reach = float(max(np.abs(original).max(), np.abs(values).max(), 1e-12))
    edges = np.linspace(-reach, reach, BINS + 1)
    return Anatomy(
        layer=layer,
        edges=tuple(edges.tolist()),
        before=tuple(np.histogram(original, edges)[0].tolist()),
        after=tuple(np.histogram(values[values != 0], edges)[0].tolist()),
        zeros=original.size - int((values != 0).sum()),
        threshold=after.threshold if as_published else -1.0,
        levels=_levels(after.codes, after.spec) if after.codes is not None else (),
    )


def _levels(codes: Codes, spec: QuantizeSpec) -> tuple[float, ...]:
    first, last = code_range(spec)
    if last - first >= LEVELS_DRAWN:
        return ()
    widest = int(codes.scale.argmax())
    scale, zero_point = codes.scale.flatten()[widest].item(), codes.zero_point.flatten()[widest].item()
    return tuple(scale * (code - zero_point) for code in range(first, last + 1))


def sensitivities_of(
    weights: Mapping[str, Tensor], statistics: Statistics, pruned: Mapping[str, Alone]
) -> tuple[Sensitivity, ...]:
    """Layers that the statistics know, in the order of ``weights``; ``pruned`` is what each does alone."""
    known = {name: weight for name, weight in weights.items() if name in pruned}
    predicted = bits.errors(known, statistics, QuantizeSpec("compensated", symmetric=False, range="mse"))
    return tuple(
        Sensitivity(name, pruned[name].divergence, pruned[name].measured, predicted[name]) for name in known
    )
