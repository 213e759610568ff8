"""The scales and offsets of norms, taken into the layers that alone read what they give.

A layer that multiplies ``scale * x + offset`` with ``W`` computes the same from ``x``, with ``W * scale`` and
``W offset`` more in its bias (as SliceGPT, arXiv 2401.15024, does before it rotates).
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from optimizer.compression.calibration.statistics import Statistics
from optimizer.model.layers import Layer, walk
from optimizer.model.products import deep_copy

MIN_SCALE = 1e-3
"""Of a norm's largest: by a smaller one, statistics of what it gives say too little of what it was given."""

Normed = Collection[tuple[str, str]]
"""Layers, and the path of the norm that each reads."""


def absorbable(model: nn.Module, layers: Mapping[str, Layer], normed: Normed) -> bool:
    """Whether the layers can take those scales and offsets, and statistics are known without them."""
    for name, path in normed:
        scale, offset = _of(model, path)
        fits = layers[name].weight[0].numel() == len(scale)
        takes = layers[name].bias is not None or not offset.any()
        if not (fits and takes and scale.abs().min() > MIN_SCALE * scale.abs().max()):
            return False
    return True


@torch.no_grad()
def absorbed(model: nn.Module, normed: Normed) -> nn.Module:
    """A copy of ``model`` whose norms scale and add nothing: the layers do."""
    copied = deep_copy(model)
    layers = {layer.name: layer for layer in walk(copied)}
    for name, path in normed:
        layer, (scale, offset) = layers[name], _of(model, path)
        rows = layer.weight.flatten(1).double()
        if layer.bias is not None:
            layer.bias.data = (layer.bias + rows @ offset).to(layer.bias.dtype)
        layer.weight.data = (rows * scale).to(layer.weight.dtype).view_as(layer.weight)
    for path in {path for _, path in normed}:
        norm: Any = copied.get_submodule(path)
        norm.weight.data = torch.ones_like(norm.weight)
        if _offset(norm) is not None:
            norm.bias.data = torch.zeros_like(norm.bias)
    return copied


def absorbed_statistics(statistics: Statistics, model: nn.Module, normed: Normed) -> Statistics:
    """The statistics of :func:`absorbed`, of those of ``model``."""
    moments = dict(statistics.moments)
    for name, path in normed:
        if name in moments:
            one, (scale, offset) = moments[name], _of(model, path)
            covariance = (one.covariance / scale / scale[:, None]).float()
            moments[name] = replace(one, covariance=covariance, mean=((one.mean - offset) / scale).float())
    return replace(statistics, moments=moments)


def _of(model: nn.Module, path: str) -> tuple[Tensor, Tensor]:
    """The scales and offsets of a norm, float64 ``[channels]``."""
    norm: Any = model.get_submodule(path)
    scale, offset = norm.weight.detach().double(), _offset(norm)
    return scale, torch.zeros_like(scale) if offset is None else offset.detach().double()


def _offset(norm: nn.Module) -> Tensor | None:
    """What it adds, if anything: norms by the root of mean squares have no such parameter."""
    return getattr(norm, "bias", None)
