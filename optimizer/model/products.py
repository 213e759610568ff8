"""Which products a network makes with its weights, whichever module or function multiplies."""

import copy
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from optimizer.model.examples import same_draws
from optimizer.model.operations import Operations

aten = torch.ops.aten
ADDING = {aten.addmm, aten.baddbmm, aten.addmv}
"""Products whose factors come after what is added to them."""
PRODUCTS = {aten.convolution, aten.mm, aten.bmm, aten.mv, *ADDING}
"""All that functions multiply by, in the end."""


class Products(Operations):
    """Multiply-accumulates with each of the ``weights``, or a view of it, as they lie in memory, whichever
    module or function multiplies."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = {weight.untyped_storage().data_ptr(): name for name, weight in weights.items()}
        self.macs = dict.fromkeys(weights, 0)

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        kind, options = operation.overloadpacket, options or {}
        if kind not in PRODUCTS:
            with self:  # in inference mode torch would not show what a function consists of
                output = operation.decompose(*arguments, **options)
            return operation(*arguments, **options) if output is NotImplemented else output
        output = operation(*arguments, **options)
        first, second = arguments[1:3] if kind in ADDING else arguments[:2]
        read = {one.untyped_storage().data_ptr() for one in (first, second) if one.layout is torch.strided}
        for place in read & self.names.keys():
            if kind is aten.convolution:
                transposed = arguments[6]
                macs = (first if transposed else output).numel() * second[0].numel()
            else:
                macs = output.numel() * first.shape[-1]
            self.macs[self.names[place]] += macs
        return output


_MULTIPLY: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def multiplies_with_weight(module: Any) -> bool:
    """Whether a library's own class multiplies with its weight as it is.

    Zeros in a weight that it standardises first are none in what is multiplied. Found once, by a random
    input; what takes another input is believed.
    """
    if module not in _MULTIPLY:
        _MULTIPLY[module] = _seen_to_multiply(module)
    return _MULTIPLY[module]


def deep_copy(model: nn.Module) -> nn.Module:
    """A copy, of whose modules is known what is known of the model's."""
    found = copy.deepcopy(model)
    modules = dict(found.named_modules())
    for name, module in model.named_modules():
        if module in _MULTIPLY and name in modules:
            _MULTIPLY[modules[name]] = _MULTIPLY[module]
    return found


@torch.no_grad()
def _seen_to_multiply(module: Any) -> bool:
    weight = module.weight
    shape = (weight.shape[1],) if isinstance(module, nn.Linear) else small_input(module)
    products = Products({"weight": weight})
    with same_draws(), products:
        try:
            module.forward(torch.randn(1, *shape, dtype=weight.dtype))  # hooks are those of whoever measures
        except Exception:  # a library's own code: anything may come out of it
            return True
    return products.macs["weight"] > 0


def small_input(convolution: Any) -> tuple[int, ...]:
    """The shape of an input that its kernel fits in."""
    sides = zip(convolution.kernel_size, convolution.dilation, strict=True)
    return convolution.in_channels, *(2 * side * apart for side, apart in sides)
