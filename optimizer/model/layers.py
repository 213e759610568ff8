"""The one walk over the layers that a recipe may touch, and the batch norm folded before it.

A layer here is a weight of two or more dimensions that multiplies activations: convolutions, linear layers
and the joint projection of ``nn.MultiheadAttention``. Biases, normalisation and position embeddings are not.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, slots=True)
class Layer:
    """A weight and where it lives. ``name`` is its parameter's path, such as ``head.weight``."""

    name: str
    kind: str
    module: nn.Module
    weight: nn.Parameter

    @property
    def module_name(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def bias(self) -> nn.Parameter | None:
        """What the layer adds to each of its outputs ``[out]``, if anything."""
        name = self.bias_name.rpartition(".")[2]
        bias = getattr(self.module, name, None)
        return bias if isinstance(bias, nn.Parameter) else None

    @property
    def bias_name(self) -> str:
        return f"{self.name.removesuffix('weight')}bias"


def walk(model: nn.Module) -> Iterator[Layer]:
    """Every layer in definition order; a weight that several modules share comes once."""
    seen: set[str] = set()
    for layer in uses(model):
        if layer.name not in seen:
            seen.add(layer.name)
            yield layer


def uses(model: nn.Module) -> Iterator[Layer]:
    """Every module that multiplies with a weight of :func:`walk`; those that share one give the same name."""
    names: dict[int, str] = {}
    for path, module in model.named_modules():
        kind = _kind(module)
        if kind is None:
            continue
        attribute = "in_proj_weight" if kind == "attention projection" else "weight"
        weight = getattr(module, attribute)
        if not isinstance(weight, nn.Parameter):  # three weights instead of one, or computed from others
            continue
        name = names.setdefault(id(weight), f"{path}.{attribute}" if path else attribute)
        yield Layer(name, kind, module, weight)


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, CONVOLUTIONS):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        return "depthwise convolution" if depthwise else "convolution"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.MultiheadAttention):
        return "attention projection"
    return None


@torch.inference_mode()
def multiplications(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """How often each weight of a layer is multiplied for one input of ``input_shape`` (``[C, H, W]``).

    Pixels of the output for a convolution, tokens for a linear layer; times the weights it is the layer's
    multiply-accumulates. Layers that do not run get 0.
    """
    names = {id(layer.weight): layer.name for layer in walk(model)}
    counts = dict.fromkeys(names.values(), 0)

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        weights: list[Any]
        if isinstance(module, nn.MultiheadAttention):  # multiplies with both itself: out_proj is never called
            weights = [module.in_proj_weight, module.out_proj.weight]
            runs = output[0].numel() // output[0].shape[-1]
        elif isinstance(module, nn.Linear):
            weights, runs = [module.weight], output.numel() // output.shape[-1]
        else:
            weights, runs = [module.weight], output[0, 0].numel()
        for weight in weights:
            if id(weight) in names:
                counts[names[id(weight)]] += runs

    handles = [module.register_forward_hook(count) for module in model.modules() if _kind(module)]
    try:
        model(torch.zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return counts


class LayerTracer(torch.fx.Tracer):
    """Keeps convolutions, norms and attention whole, also those of libraries that derive their own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kinds = (*CONVOLUTIONS, *BATCH_NORMS, nn.MultiheadAttention)
        return isinstance(m, kinds) or super().is_leaf_module(m, module_qualified_name)


def fold_batch_norm(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy in which each batch norm that alone follows a convolution is folded into it.

    Returns the copy (in evaluation mode) and notes: what could not be folded, if anything. The argument is
    left as it was.
    """
    folded = copy.deepcopy(model).eval()
    for parameter in folded.parameters():
        parameter.requires_grad_(False)
    modules = dict(folded.named_modules())
    if not any(isinstance(module, BATCH_NORMS) for module in modules.values()):
        return folded, ()
    try:
        graph = LayerTracer().trace(folded)
    except Exception as error:  # tracing runs the model's own code: anything may come out of it
        return folded, (f"batch norm is not folded: the model can't be traced ({error})",)
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], BATCH_NORMS):
            continue
        source = (*node.args, *node.kwargs.values())[0]
        if (
            source.op == "call_module"
            and isinstance(modules[source.target], CONVOLUTIONS)
            and len(source.users) == 1
            and calls[source.target] == calls[node.target] == 1
            and modules[node.target].running_mean is not None
        ):
            fused = fuse_conv_bn_eval(modules[source.target], modules[node.target])  # type: ignore[type-var]
            folded.set_submodule(source.target, fused)
            folded.set_submodule(node.target, nn.Identity().eval())
    left = sum(isinstance(module, BATCH_NORMS) for module in folded.modules())
    return folded, (f"batch norms that can't be folded into a convolution: {left}",) if left else ()
