"""ONNX's recurrent layers as torch's: text recognisers have one behind their convolutions.

Their gates come in another order, and torch has two biases where ONNX has them one behind the other. Pruning
and rounding leave them as they are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optimizer.model.added.onnx_operators import Attributes, UnsupportedError, word

GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""For each of torch's gates, in their order, which of ONNX's it is."""
KINDS: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
BIAS, LENGTHS, INITIAL, PEEPHOLES = 3, 4, slice(5, 7), 7
"""Where these are among the inputs."""


class Recurrent(nn.Module):
    """``[T, N, I]`` to what ONNX gives: ``[T, D, N, H]`` for ``D`` directions, and the last states, each
    ``[D, N, H]``."""

    def __init__(self, layer: Any, directions: int) -> None:
        super().__init__()
        self.layer, self.directions = layer, directions

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        steps, last = self.layer(x)
        steps = steps.unflatten(2, (self.directions, -1)).transpose(1, 2)
        return (steps, *last) if isinstance(last, tuple) else (steps, last)


def recurrent(a: Attributes, inputs: Sequence[Tensor | None]) -> nn.Module:
    """``LSTM``, ``GRU`` or ``RNN`` that begins with zeros and runs over all of each sequence."""
    kind, weight, again = a["operator"], inputs[1], inputs[2]
    given = [*inputs, *[None] * (PEEPHOLES + 1 - len(inputs))]
    if weight is None or again is None:
        raise UnsupportedError("weights that depend on the image")
    directions, rows, features = weight.shape
    _check(a, kind, directions, given)
    size = rows // len(GATES[kind])
    layer = KINDS[kind](features, size, bidirectional=directions == 2)
    bias = given[BIAS]
    if bias is None:
        bias = torch.zeros(directions, 2 * rows)
    order = torch.cat([torch.arange(size) + gate * size for gate in GATES[kind]])
    with torch.no_grad():
        for number, end in enumerate(("", "_reverse")[:directions]):
            getattr(layer, f"weight_ih_l0{end}").copy_(weight[number][order])
            getattr(layer, f"weight_hh_l0{end}").copy_(again[number][order])
            getattr(layer, f"bias_ih_l0{end}").copy_(bias[number][:rows][order])
            getattr(layer, f"bias_hh_l0{end}").copy_(bias[number][rows:][order])
    return Recurrent(layer, directions)


def _check(a: Attributes, kind: str, directions: int, given: Sequence[Tensor | None]) -> None:
    lengths, steps = given[LENGTHS], a.shapes[0][0]
    states = [one for one, shape in zip(given[INITIAL], a.shapes[INITIAL], strict=False) if shape]
    if any(one is None or one.any() for one in states):
        raise UnsupportedError("a first state that is not zero")
    if a.shapes[LENGTHS : LENGTHS + 1] not in ((), ((),)) and (lengths is None or (lengths != steps).any()):
        raise UnsupportedError("sequences of several lengths")
    if given[PEEPHOLES] is not None:
        raise UnsupportedError("peepholes")
    if kind == "GRU" and not a.get("linear_before_reset"):
        raise UnsupportedError("a reset before the product (linear_before_reset 0)")
    used = [one.decode() if isinstance(one, bytes) else one for one in a.get("activations", [])]
    if used and used != ACTIVATIONS[kind] * directions:
        raise UnsupportedError(f"activations {', '.join(used)}")
    if a.get("layout") or a.get("clip") or a.get("input_forget") or word(a, "direction", "") == "reverse":
        raise UnsupportedError("another layout or direction, a clip or coupled gates")
