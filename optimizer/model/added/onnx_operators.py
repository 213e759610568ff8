"""ONNX operators as plain torch functions: of tensors, or of ``torch.fx`` proxies, which record them.

``OPERATORS`` has one function for each operator: it takes the node's :class:`Attributes` and its inputs (None
where one is left out) and gives its output, or a tuple of several. What an operator needs to know at once
(shapes, axes, paddings) is a tensor always. What does not depend on the input is worked out while converting.
Operators with weights become modules (:mod:`optimizer.model.added.onnx_layers`); those that look at shapes
are in :mod:`optimizer.model.added.onnx_shapes`.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATORS: dict[str, Callable[..., Any]] = {}
KINDS = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64}
KINDS |= {4: torch.int32}  # of 16 bits without a sign: torch computes little with them
KINDS |= {9: torch.bool, 10: torch.float32, 11: torch.float32, 16: torch.float32}
"""ONNX's types as torch's. Every floating type is computed in float32."""


class UnsupportedError(Exception):
    """Says what of an operator has no counterpart here."""


class Attributes(dict[str, Any]):
    """A node's attributes; ``shapes`` are those of its inputs for one image, ``batches`` the axes on which
    more images make them longer (None for what is the same for all), ``pairs`` its inputs for two images
    where it gives a shape, ``outputs`` how many it gives.

    Axes are given as attributes by older files and as an input by newer ones: :meth:`ints` takes either.
    """

    shapes: tuple[tuple[int, ...], ...] = ()
    batches: tuple[int | None, ...] = ()
    pairs: tuple[Any, ...] = ()
    outputs: int = 1

    @property
    def rank(self) -> int:
        return len(self.shapes[0])

    def ints(self, name: str, given: Tensor | None) -> list[int] | None:
        if given is not None:
            return [int(one) for one in given.reshape(-1)]
        value = self.get(name)
        return None if value is None else list(value)


def operator(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return add


def _simple(**functions: Callable[..., Any]) -> None:
    for name, function in functions.items():
        OPERATORS[name] = lambda a, *inputs, function=function: function(*inputs)


_simple(
    Relu=torch.relu, Sigmoid=torch.sigmoid, Tanh=torch.tanh, Exp=torch.exp, Log=torch.log, Sqrt=torch.sqrt,
    Neg=torch.neg, Abs=torch.abs, Floor=torch.floor, Ceil=torch.ceil, Round=torch.round, Sign=torch.sign,
    Reciprocal=torch.reciprocal, Erf=torch.erf, Sin=torch.sin, Cos=torch.cos, Softplus=F.softplus,
    Softsign=F.softsign, Mish=F.mish, HardSwish=F.hardswish, Not=torch.logical_not, And=torch.logical_and,
    Or=torch.logical_or, Add=torch.add, Sub=torch.sub, Mul=torch.mul, Pow=torch.pow, Equal=torch.eq,
    Greater=torch.gt, Less=torch.lt, GreaterOrEqual=torch.ge, LessOrEqual=torch.le, Where=torch.where,
    MatMul=torch.matmul, Tan=torch.tan, Asin=torch.asin, Acos=torch.acos, Atan=torch.atan, Sinh=torch.sinh,
    Cosh=torch.cosh, Asinh=torch.asinh, Acosh=torch.acosh, Atanh=torch.atanh, Xor=torch.logical_xor,
    IsNaN=torch.isnan,
)  # fmt: skip
_simple(
    Min=lambda *several: reduce(torch.minimum, several),
    Max=lambda *several: reduce(torch.maximum, several),
    Sum=lambda *several: reduce(torch.add, several),
    Mean=lambda *several: reduce(torch.add, several) / len(several),
    Identity=lambda x: x,
    Dropout=lambda x, *_: x,
    GlobalAveragePool=lambda x: x.flatten(2).mean(2)[..., None, None],
    GlobalMaxPool=lambda x: x.flatten(2).amax(2)[..., None, None],
)


@operator("Div")
def _div(a: Attributes, x: Any, y: Any) -> Any:
    whole = all(isinstance(one, Tensor) and not one.is_floating_point() for one in (x, y))
    return torch.div(x, y, rounding_mode="trunc" if whole else None)


@operator("Mod")
def _mod(a: Attributes, x: Any, y: Any) -> Any:
    return torch.fmod(x, y) if a.get("fmod") else torch.remainder(x, y)


@operator("LeakyRelu")
def _leaky_relu(a: Attributes, x: Any) -> Any:
    return F.leaky_relu(x, a.get("alpha", 0.01))


@operator("Elu", "Celu")
def _elu(a: Attributes, x: Any) -> Any:
    return (F.elu if a["operator"] == "Elu" else F.celu)(x, a.get("alpha", 1.0))


@operator("Selu")
def _selu(a: Attributes, x: Any) -> Any:
    return a.get("gamma", 1.0507009873554805) * F.elu(x, a.get("alpha", 1.6732632423543772))


@operator("Swish")
def _swish(a: Attributes, x: Any) -> Any:
    return x * torch.sigmoid(x * a.get("alpha", 1.0))


@operator("ThresholdedRelu")
def _thresholded_relu(a: Attributes, x: Any) -> Any:
    return F.threshold(x, a.get("alpha", 1.0), 0.0)


@operator("Shrink")
def _shrink(a: Attributes, x: Any) -> Any:
    edge, bias = a.get("lambd", 0.5), a.get("bias", 0.0)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, x * 0))


@operator("HardSigmoid")
def _hard_sigmoid(a: Attributes, x: Any) -> Any:
    """torch's own where it is the same: OpenVINO would fold another's factor into the layer before it, whose
    weights could then be replaced no more."""
    slope, middle = a.get("alpha", 0.2), a.get("beta", 0.5)
    if middle == 0.5 and math.isclose(slope, 1 / 6, rel_tol=1e-6):
        return F.hardsigmoid(x)
    return torch.clamp(x * slope + middle, 0, 1)


@operator("PRelu")
def _prelu(a: Attributes, x: Any, slope: Any) -> Any:
    return torch.relu(x) - slope * torch.relu(-x)


@operator("Gelu")
def _gelu(a: Attributes, x: Any) -> Any:
    return F.gelu(x, approximate=word(a, "approximate", "none"))


@operator("Clip")
def _clip(a: Attributes, x: Any, low: Tensor | None = None, high: Tensor | None = None) -> Any:
    least = a.get("min") if low is None else low.item()
    most = a.get("max") if high is None else high.item()
    return x if least is None and most is None else torch.clamp(x, least, most)


@operator("Cast", "CastLike")
def _cast(a: Attributes, x: Any, like: Any = None) -> Any:
    if a.get("to", 1) not in KINDS.keys() - {4}:  # which would have to wrap around
        raise UnsupportedError(f"type {a.get('to')}")
    return x.to(a.get("like", KINDS[a.get("to", 1)]))


@operator("Softmax", "LogSoftmax")
def _softmax(a: Attributes, x: Any) -> Any:
    function = F.log_softmax if a["operator"] == "LogSoftmax" else F.softmax
    if a["opset"] >= 13:
        return function(x, a.get("axis", -1))
    axis = a.get("axis", 1) % a.rank  # over all that follows, in one
    flat = function(x.flatten(axis), axis)
    return flat.reshape([-1, *a.shapes[0][1:]] if axis else a.shapes[0])


# What sums up


REDUCED: dict[str, Callable[[Any, list[int], bool], Any]] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
}


@operator(*REDUCED, "ReduceProd")
def _reduced(a: Attributes, x: Any, axes: Tensor | None = None) -> Any:
    chosen, keep = a.ints("axes", axes), bool(a.get("keepdims", 1))
    if not chosen:
        if a.get("noop_with_empty_axes"):
            return x
        chosen = list(range(a.rank))
    if reduced := REDUCED.get(a["operator"]):
        return reduced(x, chosen, keep)
    for axis in sorted((axis % a.rank for axis in chosen), reverse=True):
        x = x.prod(axis, keep)
    return x


@operator("ArgMax", "ArgMin")
def _arg(a: Attributes, x: Any) -> Any:
    function = torch.argmax if a["operator"] == "ArgMax" else torch.argmin
    return function(x, a.get("axis", 0), bool(a.get("keepdims", 1)))


@operator("TopK")
def _top_k(a: Attributes, x: Any, k: Tensor) -> Any:
    found = torch.topk(x, int(k), a.get("axis", -1), bool(a.get("largest", 1)), True)
    return found[0], found[1]


@operator("Einsum")
def _einsum(a: Attributes, *several: Any) -> Any:
    return torch.einsum(word(a, "equation", ""), *several)


@operator("LayerNormalization")
def _layer_norm(a: Attributes, x: Any, scale: Any, bias: Any = None) -> Any:
    shape = a.shapes[0][a.get("axis", -1) % a.rank :]
    return F.layer_norm(x, shape, scale, bias, a.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def _instance_norm(a: Attributes, x: Any, scale: Any, bias: Any) -> Any:
    return F.instance_norm(x, weight=scale, bias=bias, eps=a.get("epsilon", 1e-5))


@operator("GroupNormalization")
def _group_norm(a: Attributes, x: Any, scale: Any, bias: Any) -> Any:
    groups = a["num_groups"]
    if a["opset"] < 21:  # one of each a group, not a channel
        scale, bias = (one.repeat_interleave(a.shapes[0][1] // groups) for one in (scale, bias))
    return F.group_norm(x, groups, scale, bias, a.get("epsilon", 1e-5))


@operator("RMSNormalization")
def _rms_norm(a: Attributes, x: Any, scale: Any) -> Any:
    return F.rms_norm(x, a.shapes[0][a.get("axis", -1) % a.rank :], scale, a.get("epsilon", 1e-5))


@operator("LpNormalization")
def _lp_norm(a: Attributes, x: Any) -> Any:
    """What has no length stays 0."""
    length = torch.linalg.vector_norm(x, a.get("p", 2), a.get("axis", -1), keepdim=True)
    return x / torch.where(length == 0, 1.0, length)


@operator("LRN")
def _local_response_norm(a: Attributes, x: Any) -> Any:
    if a["size"] % 2 == 0:
        raise UnsupportedError(f"an even size of {a['size']}")
    return F.local_response_norm(x, a["size"], a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0))


@operator("Attention")
def _attention(a: Attributes, query: Any, key: Any, value: Any, mask: Any = None, *more: Any) -> Any:
    """Of heads apart ``[N, H, T, E]``, or side by side ``[N, T, H * E]``."""
    if more or a.get("softcap") or a.outputs > 1 or "qk_matmul_output_mode" in a:
        raise UnsupportedError("keys and values of before, a cap, or more than one output")
    joined = a.rank == 3
    if joined:
        heads = a["q_num_heads"], a["kv_num_heads"], a["kv_num_heads"]
        query, key, value = (
            one.unflatten(2, (number, -1)).transpose(1, 2)
            for one, number in zip((query, key, value), heads, strict=True)
        )
    found = F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=bool(a.get("is_causal")), scale=a.get("scale"), enable_gqa=True
    )
    return found.transpose(1, 2).flatten(2) if joined else found


MAX_FLOAT = torch.finfo(torch.float32).max


CODES = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int16: (-(2**15), 2**15 - 1)}
CODES |= {KINDS[4]: (0, 2**16 - 1)}


@operator("QuantizeLinear")
def _quantize(a: Attributes, x: Any, scale: Any, zero: Any = None) -> Any:
    """The values on the grid, still as float32."""
    kind = KINDS.get(a.get("output_dtype") or 2) if zero is None else a["zero_type"]
    if kind not in CODES:
        raise UnsupportedError("codes that are not of 8 or 16 bits")
    scale, zero = _along(a, scale), 0 if zero is None else _along(a, zero)
    low, high = CODES[kind]
    return torch.clamp(torch.round(x / scale) + zero, low, high)


@operator("DequantizeLinear")
def _dequantize(a: Attributes, x: Any, scale: Any, zero: Any = None) -> Any:
    x = x.float()
    found = (x if zero is None else x - _along(a, zero).float()) * _along(a, scale)
    # What clips nothing parts the scale of activations from a product, whose weights OpenVINO would multiply
    # with it: a layer has to keep its own.
    return found if a.batches[0] is None else torch.clamp(found, -MAX_FLOAT, MAX_FLOAT)


def _along(a: Attributes, values: Any) -> Any:
    """A scale or zero point for each place on an axis, to be spread over the others."""
    if len(a.shapes[1]) != 1 or a.shapes[1] == (1,):
        return values
    axis = a.get("axis", 1) % a.rank
    return values.reshape([-1 if one == axis else 1 for one in range(a.rank)])


def word(a: Attributes, name: str, usual: str) -> str:
    value = a.get(name, usual)
    return value.decode() if isinstance(value, bytes) else str(value)
