"""ONNX operators as torch modules: layers, whose weights can be pruned and quantized, norms, pools, resizing.

Each function takes the node's attributes and its inputs, None where one depends on the image, and gives a
module of one input, or None where it takes a function (:data:`OPERATORS`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optimizer.model.added.onnx_operators import Attributes, UnsupportedError, word
from optimizer.model.added.onnx_recurrent import KINDS as RECURRENT
from optimizer.model.added.onnx_recurrent import recurrent

Inputs = Sequence[Tensor | None]
CONVOLUTIONS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}
MAX_POOLS: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOLS: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def convolution(a: Attributes, inputs: Inputs) -> nn.Module:
    weight, bias = _weights(inputs)
    strides, dilations, groups = _window(a, weight.ndim - 2)
    begin, end = _paddings(a, weight.shape[2:], strides, dilations)
    made = CONVOLUTIONS[weight.ndim](
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        strides,
        begin if begin == end else 0,
        dilations,
        groups,
        bias is not None,
    )
    return _padded(_filled(made, weight, bias), begin, end)


def transposed_convolution(a: Attributes, inputs: Inputs) -> nn.Module:
    weight, bias = _weights(inputs)
    strides, dilations, groups = _window(a, weight.ndim - 2)
    if "output_shape" in a or word(a, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError("padding that follows from the output")
    begin, end = _paddings(a, weight.shape[2:], strides, dilations)
    if begin != end:
        raise UnsupportedError(f"padding {begin} before and {end} behind")
    made = TRANSPOSED[weight.ndim](
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(weight.shape[2:]),
        strides,
        begin,
        tuple(a.get("output_padding", [0] * (weight.ndim - 2))),
        groups,
        bias is not None,
        dilations,
    )
    return _filled(made, weight, bias)


def gemm(a: Attributes, inputs: Inputs) -> nn.Module | None:
    weight, bias = inputs[1], inputs[2] if len(inputs) > 2 else None
    if a.get("transA"):
        raise UnsupportedError("a transposed input")
    if weight is None or (len(inputs) > 2 and bias is None):
        raise UnsupportedError("a weight or a bias that depends on the image")
    weight = a.get("alpha", 1.0) * (weight if a.get("transB") else weight.T)
    return _linear(weight, None if bias is None else a.get("beta", 1.0) * bias.reshape(-1))


class Columns(nn.Sequential):
    """A linear layer that mixes rows, of each column by itself: ``W x`` in place of ``x W``."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = super().forward(x.transpose(-2, -1))
        return found.transpose(-2, -1)


def product(a: Attributes, inputs: Inputs) -> nn.Module | None:
    """A linear layer, where one factor is a matrix that doesn't depend on the image; else a function."""
    first, second = inputs
    if second is not None and second.ndim == 2:
        return _linear(second.T, None)
    if first is not None and first.ndim == 2 and len(a.shapes[1]) > 2:
        return Columns(_linear(first, None))
    return None


def batch_norm(a: Attributes, inputs: Inputs) -> nn.Module:
    _, scale, bias, mean, variance = inputs
    if scale is None or bias is None or mean is None or variance is None:
        raise UnsupportedError("statistics that depend on the image")
    return _batch_norm(a.rank, a.get("epsilon", 1e-5), scale, bias, mean, variance)


def _batch_norm(
    rank: int, epsilon: float, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> nn.Module:
    made = NORMS[rank](len(scale), eps=epsilon)
    with torch.no_grad():
        made.weight.copy_(scale)
        made.bias.copy_(bias)
    assert made.running_mean is not None
    assert made.running_var is not None
    made.running_mean.copy_(mean)
    made.running_var.copy_(variance)
    return made


BIASED = (nn.Linear, *CONVOLUTIONS.values(), *TRANSPOSED.values(), *set(NORMS.values()))
"""Layers whose outputs a number for each channel can be added to."""


def for_channels(layer: nn.Module | None, numbers: Tensor | None, made: Tensor) -> bool:
    """Whether a constant has one finite number for each channel of what a layer ``made``."""
    if not isinstance(layer, BIASED) or numbers is None or not numbers.is_floating_point():
        return False
    if not numbers.isfinite().all():  # a mask
        return False
    shape = [1] * made.ndim
    axis = -1 if isinstance(layer, nn.Linear) else 1
    shape[axis] = made.shape[axis]
    return numbers.ndim <= made.ndim and [*[1] * (made.ndim - numbers.ndim), *numbers.shape] == shape


def add_bias(layer: Any, numbers: Tensor) -> None:
    """To every output of a channel, its number."""
    before = 0 if layer.bias is None else layer.bias.detach()
    layer.bias = nn.Parameter(numbers.flatten() + before)


def scaling(numbers: Tensor, rank: int) -> nn.Module:
    """The batch norm that multiplies each channel of ``rank`` axes with a number."""
    ones = torch.ones(numbers.numel())
    return _batch_norm(rank, 0.0, numbers.flatten(), 0 * ones, 0 * ones, ones)


def pool(a: Attributes, inputs: Inputs) -> nn.Module:
    """``MaxPool`` and ``AveragePool``."""
    kernel, rank, ceil = tuple(a["kernel_shape"]), a.rank - 2, bool(a.get("ceil_mode", 0))
    strides, dilations, _ = _window(a, rank)
    begin, end = _paddings(a, kernel, strides, dilations)
    inside = begin == end and all(2 * side <= size for side, size in zip(begin, kernel, strict=True))
    padding = begin if inside else 0
    if a["operator"] == "MaxPool":
        made = MAX_POOLS[rank](kernel, strides, padding, dilations, ceil_mode=ceil)
        return made if inside else _padded(made, begin, end, float("-inf"))
    counted = bool(a.get("count_include_pad", 0))
    if set(dilations) != {1}:
        raise UnsupportedError("dilation")
    if not inside and not counted:
        raise UnsupportedError(f"padding {begin} before and {end} behind that does not count")
    made = AVERAGE_POOLS[rank](kernel, strides, padding, ceil, counted)
    return made if inside else _padded(made, begin, end)


class Resize(nn.Module):
    """Rows and columns taken from ``rows`` and ``columns``: the nearest, by whichever rule."""

    def __init__(self, places: Sequence[Tensor]) -> None:
        super().__init__()
        for number, place in enumerate(places):
            self.register_buffer(f"places_{number}", place)
        self.axes = len(places)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(self.axes):
            x = x.index_select(2 + number, getattr(self, f"places_{number}"))
        return x


class Interpolate(nn.Module):
    """By torch's own rules."""

    def __init__(self, size: tuple[int, ...], mode: str, align: bool | None) -> None:
        super().__init__()
        self.size, self.mode, self.align = size, mode, align

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, self.size, mode=self.mode, align_corners=self.align)


def resize(a: Attributes, inputs: Inputs) -> nn.Module:
    """ONNX's ``Resize`` and ``Upsample``, for an input of this size."""
    older = a["operator"] == "Upsample" or a["opset"] < 11
    given = (
        [a.get("scales"), None] if older and len(inputs) < 2 else list(inputs[1:] if older else inputs[2:])
    )
    scales, sizes = [*given, None, None][:2]
    have = a.shapes[0]
    if sizes is not None and len(sizes):
        want = [int(side) for side in sizes]
        factors = [side / size for side, size in zip(want, have, strict=True)]
    elif scales is not None and len(scales):
        factors = [float(scale) for scale in scales]
        want = [math.floor(size * factor) for size, factor in zip(have, factors, strict=True)]
    else:
        raise UnsupportedError("a size that depends on the image")
    if want[:2] != list(have[:2]) or a.get("antialias") or a.get("axes"):
        raise UnsupportedError("another axis than height and width, or antialiasing")
    rule = "asymmetric" if older else word(a, "coordinate_transformation_mode", "half_pixel")
    mode = word(a, "mode", "nearest")
    if mode == "nearest":
        how = word(a, "nearest_mode", "floor" if older else "round_prefer_floor")
        axes = zip(have[2:], want[2:], factors[2:], strict=True)
        return _nearest([_nearest_places(*one, rule, how) for one in axes], have[2:], want[2:])
    names = {
        ("linear", 3): "linear",
        ("linear", 4): "bilinear",
        ("linear", 5): "trilinear",
        ("cubic", 4): "bicubic",
    }
    exact = all(size * factor == side for size, side, factor in zip(have, want, factors, strict=True))
    fits = exact or rule == "align_corners" or sizes is not None
    same = all(side == size for size, side in zip(have, want, strict=True))
    if (rule not in ("half_pixel", "pytorch_half_pixel", "align_corners") and not same) or not fits:
        raise UnsupportedError(f"{mode} with the rule {rule}")
    if (mode, a.rank) not in names or (mode == "cubic" and a.get("cubic_coeff_a", -0.75) != -0.75):
        raise UnsupportedError(f"mode {mode}")
    return Interpolate(tuple(want[2:]), names[mode, a.rank], rule == "align_corners")


def _nearest_places(have: int, want: int, factor: float, rule: str, how: str) -> Tensor:
    """Which row of ``have`` each of ``want`` rows is, as ONNX's reference has it."""
    to = torch.arange(want, dtype=torch.float64)
    match rule:
        case "half_pixel" | "half_pixel_symmetric":
            place = (to + 0.5) / factor - 0.5
        case "pytorch_half_pixel":
            place = (to + 0.5) / factor - 0.5 if want > 1 else to * 0
        case "asymmetric":
            place = to / factor
        case "align_corners":
            place = to * (have - 1) / (want - 1) if want > 1 else to * 0
        case _:
            raise UnsupportedError(f"nearest with the rule {rule}")
    rounding: dict[str, Callable[[Tensor], Tensor]] = {
        "floor": torch.floor,
        "ceil": torch.ceil,
        "round_prefer_floor": lambda x: torch.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: torch.floor(x + 0.5),
    }
    if how not in rounding:
        raise UnsupportedError(f"nearest mode {how}")
    return rounding[how](place).clamp(0, have - 1).long()


def _nearest(places: list[Tensor], have: Sequence[int], want: Sequence[int]) -> nn.Module:
    """torch's own where it takes the same rows: engines know that."""
    usual = [torch.arange(side) * size // side for size, side in zip(have, want, strict=True)]
    if all(map(torch.equal, places, usual)):
        return Interpolate(tuple(want), "nearest", None)
    return Resize(places)


LAYERS: dict[str, Callable[[Attributes, Inputs], nn.Module | None]] = {
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Gemm": gemm,
    "MatMul": product,
    "BatchNormalization": batch_norm,
    "MaxPool": pool,
    "AveragePool": pool,
    "Resize": resize,
    "Upsample": resize,
    **dict.fromkeys(RECURRENT, recurrent),
}


class Padded(nn.Sequential):
    """Padding of its own before a layer that can't pad so."""


def _padded(layer: nn.Module, begin: tuple[int, ...], end: tuple[int, ...], value: float = 0.0) -> nn.Module:
    if begin == end and value == 0.0 and (not any(begin) or getattr(layer, "padding", 0) == begin):
        return layer
    sides = [side for pair in zip(reversed(begin), reversed(end), strict=True) for side in pair]
    kinds: dict[int, Any] = {2: nn.ConstantPad1d, 4: nn.ConstantPad2d, 6: nn.ConstantPad3d}
    return Padded(kinds[len(sides)](tuple(sides), value), layer)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return _filled(made, weight, None if bias is None else bias.expand(weight.shape[0]))


def _filled(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    filled: nn.Module = layer
    return filled


def _weights(inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    weight, bias = inputs[1], inputs[2] if len(inputs) > 2 else None
    if weight is None or weight.ndim not in CONVOLUTIONS:
        raise UnsupportedError("weights that depend on the image")
    return weight, bias


def _window(a: Attributes, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    return tuple(a.get("strides", [1] * rank)), tuple(a.get("dilations", [1] * rank)), a.get("group", 1)


def _paddings(
    a: Attributes, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Pixels before and behind each axis."""
    rank, how = len(kernel), word(a, "auto_pad", "NOTSET")
    if how == "VALID":
        return (0,) * rank, (0,) * rank
    if how == "NOTSET":
        pads = a.get("pads", [0] * 2 * rank)
        return tuple(pads[:rank]), tuple(pads[rank:])
    begin, end = [], []
    for size, side, stride, dilation in zip(a.shapes[0][2:], kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + (side - 1) * dilation + 1 - size)
        less, more = total // 2, total - total // 2
        begin.append(more if how == "SAME_LOWER" else less)
        end.append(less if how == "SAME_LOWER" else more)
    return tuple(begin), tuple(end)
