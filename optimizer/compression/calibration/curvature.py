"""What a change in each row of each layer does to the outputs of the whole model, to second order.

The divergence (KL) of the outputs for a small change is half of ``change F change``, F the Fisher
information. Its part for one row and one input weight is the mean square of a gradient, so that one backward
pass an image tells it for all rows of all layers at once, without labels.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from optimizer.compression.calibration.moments import ENOUGH_IMAGES, Moments, as_rows
from optimizer.compression.divergence import direction, is_classifier
from optimizer.compression.gradients import gradients, trainable
from optimizer.model.layers import Layer, walk
from optimizer.progress import Report, quiet

ROUNDING = 1e-12
"""Inputs that vary by no larger share of their mean square are constant: what is left is rounding."""


def row_effects(
    model: nn.Module,
    images: Tensor,
    moments: Mapping[str, Moments],
    biased: Collection[str],
    report: Report = quiet,
) -> dict[str, Tensor]:
    """Nats for each unit of ``change C change`` in each row, float32 ``[out]``, by layer of ``moments``.

    ``model`` takes ``images`` ``[N, ...]`` to outputs ``[N, ...]`` and is left as it was. Gradients are
    those of logits projected on ``(diag(p) - p p^T)^(1/2) z`` with random signs ``z``, whose mean square
    is the Fisher information: steadier than drawing labels. Rows are shrunk towards their layer's mean as far
    as the sampling error, images being the samples, says: a classifier's rows for classes that none of the
    images shows would seem to be worth nothing. Layers that no gradient reaches have 0 everywhere, as
    have those whose bias takes up inputs that never change, the ``biased`` ones; few images don't tell those.
    """
    copied = trainable(model)
    layers = {layer.name: layer for layer in walk(copied) if layer.name in moments}
    generator = torch.Generator().manual_seed(0)
    energies: dict[str, list[Tensor]] = {name: [] for name in layers}
    centred = len(images) >= ENOUGH_IMAGES
    with torch.enable_grad():
        for index in range(len(images)):
            report(index / len(images), f"measuring sensitivities: image {index} of {len(images)}")
            _differentiate(copied, images[index : index + 1], generator)
            for name, layer in layers.items():
                energies[name].append(_energies(layer, moments[name], centred and name in biased))
    return {name: _shrunk(torch.stack(one)).nan_to_num(0, 0, 0) for name, one in energies.items()}


def _differentiate(model: nn.Module, image: Tensor, generator: torch.Generator) -> None:
    """Gradients of the outputs for ``image`` ``[1, ...]`` into the parameters; none where there are none."""
    random = generator.get_state()
    for in_place, everywhere in ((False, True), (True, True), (True, False)):
        model.zero_grad()
        generator.set_state(random)
        # values that it changes in place, or what can't be done with gradients
        with suppress(RuntimeError), gradients(in_place, everywhere):
            outputs = model(image)[0]
            if outputs.requires_grad:
                (outputs * direction(outputs.detach(), generator, is_classifier(model))).sum().backward()
            return
    model.zero_grad()


def _energies(layer: Layer, moments: Moments, centred: bool) -> Tensor:
    """Half the squared gradient of each row ``[out]``, relative to the variance of its inputs if it is
    ``centred`` and has a bias that takes up their mean, else to their mean square."""
    groups = len(moments.mean)
    if layer.weight.grad is None:
        return torch.zeros(len(layer.weight))
    gradient = as_rows(layer.weight.grad, groups)
    size = moments.covariance.diagonal(dim1=1, dim2=2).sum(1)
    if centred and layer.bias is not None and layer.bias.grad is not None:
        gradient = gradient - moments.mean.unsqueeze(1) * layer.bias.grad.reshape(groups, -1, 1)
        if size.sum() <= ROUNDING * moments.mean.square().sum():
            return torch.zeros(len(layer.weight))
    else:
        size = size + moments.mean.square().sum(1)
    floor = 1e-6 * size.mean().clamp(min=torch.finfo(size.dtype).tiny)
    return (0.5 * gradient.square().sum(2) / size.clamp(min=floor).unsqueeze(1)).flatten()


def _shrunk(energies: Tensor) -> Tensor:
    """Mean ``[out]`` over images ``[N, out]``, shrunk towards the mean of all (James and Stein)."""
    means = energies.mean(0)
    spread = (means - means.mean()).square().sum()
    if len(energies) < 2 or spread == 0:
        return means.mean().expand_as(means).clone()
    share = (energies.var(0).sum() / len(energies) / spread).clamp(max=1)
    return (1 - share) * means + share * means.mean()
