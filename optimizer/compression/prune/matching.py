"""Outputs that are given back the mean and variance they had, layer by layer: batch norm, estimated anew.

Pruning shifts and shrinks what a layer puts out, and the layers behind it were trained on the old statistics.
With batch norm folded there is nothing left to re-estimate; scaling each output channel of a layer and moving
its bias does the same. It helps where much went and can hurt where little did, so the divergence of the
outputs on images that it did not look at decides.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from optimizer.compression.calibration.moments import both_channels_last
from optimizer.compression.divergence import divergence, is_classifier, prepared
from optimizer.compression.segments import outputs
from optimizer.errors import InputError
from optimizer.model.layers import CONVOLUTIONS, Layer, hooked, uses, with_shared_bias
from optimizer.progress import Report, quiet
from optimizer.system.threads import pinned_threads

MATCHED_IMAGES = 32
"""That statistics are read from, in one batch; as many others judge."""
MIN_IMAGES = 16
"""Fewer say too little of a channel's variance."""
MAX_GAIN = 4.0
"""A channel that lost nearly all of its variance would only have its noise blown up by more."""


@pinned_threads()
@torch.no_grad()
def matched(
    dense: nn.Module,
    changed: nn.Module,
    images: Tensor,
    names: Iterable[str] | None = None,
    report: Report = quiet,
) -> nn.Module | None:
    """``changed``, its layers' outputs with ``dense``'s means and variances; None where that doesn't help.

    Both take ``images`` ``[N, C, H, W]`` and have layers of the same names and output channels; both stay as
    they were. ``names`` are the layers that may be touched (all, without); of them those are that run once
    and have a bias of their own to move. In the order in which they run, so that each sees what those before
    it give now. It helps if the outputs (KL) for other images come closer to the dense ones. Raises
    InputError for fewer than 16 images.
    """
    if len(images) < MIN_IMAGES:
        raise InputError(
            f"{len(images)} images are too few to match outputs on: give at least {MIN_IMAGES}, or leave "
            "batch-norm re-estimation off"
        )
    report(None, "matching the layers' outputs")
    copied = copy.deepcopy(changed)
    dense, images = both_channels_last(dense, copied, images)
    count = min(MATCHED_IMAGES, len(images) // 2)
    seen, others = images[:count], images[-count:]
    classifier = is_classifier(dense)
    answers = prepared(outputs(dense, others), classifier)

    def apart() -> float:
        return divergence(prepared(outputs(copied, others), classifier), answers, classifier).item()

    before = apart()
    modules = Counter(layer.name for layer in uses(dense))
    wanted = {name for name, times in modules.items() if times == 1}
    wanted -= with_shared_bias(dense)
    if names is not None:
        wanted &= set(names)
    spreads: dict[str, tuple[Tensor, Tensor]] = {}
    calls: Counter[str] = Counter()

    def note(layer: Layer, module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls[layer.name] += 1
        spreads[layer.name] = _spread(layer, output)

    def follow(layer: Layer, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Later layers see the outputs as they are once this layer is changed."""
        (mean, deviation), (mean_now, deviation_now) = spreads[layer.name], _spread(layer, output)
        gain = (deviation / deviation_now.clamp(min=1e-12)).clamp(1 / MAX_GAIN, MAX_GAIN)
        shift = mean - gain * mean_now
        layer.weight.mul_(gain.reshape(-1, *(1,) * (layer.weight.dim() - 1)))
        assert layer.bias is not None
        layer.bias.mul_(gain).add_(shift)
        shape = (1, -1, *(1,) * (output.dim() - 2)) if isinstance(layer.module, CONVOLUTIONS) else (-1,)
        return output * gain.reshape(shape) + shift.reshape(shape)

    _run_with(dense, seen, wanted, note)
    _run_with(copied, seen, {name for name in wanted if calls[name] == 1}, follow)
    if apart() >= before:
        return None
    return copied.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


def _run_with(model: nn.Module, images: Tensor, names: set[str], hook: Callable[..., Any]) -> None:
    layers = [layer for layer in uses(model) if layer.name in names and layer.bias is not None]
    known = [layer for layer in layers if isinstance(layer.module, (*CONVOLUTIONS, nn.Linear))]
    with hooked(layer.module.register_forward_hook(partial(hook, layer)) for layer in known):
        model(images)


def _spread(layer: Layer, output: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``[out]`` of a layer's output over images and positions."""
    channels = 1 if isinstance(layer.module, CONVOLUTIONS) else output.dim() - 1
    others = [axis for axis in range(output.dim()) if axis != channels]
    mean = output.mean(others)
    deviation = (output.square().mean(others) - mean.square()).clamp(min=0).sqrt()
    return mean, deviation
