"""The one walk over the layers that a recipe may touch, and how often each multiplies.

A layer here is a weight of two or more dimensions that multiplies activations: convolutions, linear layers
and the joint projection of ``nn.MultiheadAttention``. Biases, normalisation and position embeddings are not,
nor is a library's convolution or linear layer that multiplies with something worked out from its weight.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from optimizer.formats import listed
from optimizer.model.examples import examples
from optimizer.model.products import Products, multiplies_with_weight

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MIN_OTHER_SHARE = 0.05
"""Of a model's weights, outside of all layers: a smaller share is biases, norms and position embeddings."""


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
        if not weight.is_floating_point():  # complex: no threshold and no grid of integers is meant for it
            continue
        if not _is_plain(module) and not multiplies_with_weight(module):
            continue
        name = names.setdefault(id(weight), f"{path}.{attribute}" if path else attribute)
        yield Layer(name, kind, module, weight)


def by_path(model: nn.Module) -> dict[str, str]:
    """The layer of :func:`walk` by every path that its weight has."""
    names = {id(layer.weight): layer.name for layer in walk(model)}
    parameters = model.named_parameters(remove_duplicate=False)
    return {path: names[id(one)] for path, one in parameters if id(one) in names}


def with_shared_bias(model: nn.Module) -> set[str]:
    """Layers of :func:`walk`, by name, whose bias is also that of another weight, or of what is no layer: a
    change of it for one would change the other."""
    names = {id(layer.module): layer.name for layer in uses(model)}
    holders: defaultdict[int, set[str | int]] = defaultdict(set)
    for module in model.modules():
        for own in module.parameters(recurse=False):
            holders[id(own)].add(names.get(id(module), id(module)))
    return {layer.name for layer in uses(model) if len(holders[id(layer.bias)]) > 1}


def holders(model: nn.Module) -> Counter[int]:
    """How many modules hold each parameter, by its ``id``."""
    return Counter(id(one) for module in model.modules() for one in module.parameters(recurse=False))


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, CONVOLUTIONS):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        return "depthwise convolution" if depthwise else "convolution"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.MultiheadAttention):
        return "attention projection"
    return None


def notes_on_others(model: nn.Module) -> tuple[str, ...]:
    """What is to be said where a considerable share of the weights lies in what is no layer of :func:`walk`:
    recurrent layers, embeddings, transposed convolutions, a parameter of a module's own code. And where such
    a one has a layer's weight for its own."""
    return (*_outside_of_layers(model), *_tied_to_layers(model))


def _tied_to_layers(model: nn.Module) -> Iterator[str]:
    names = {id(layer.weight): layer.name for layer in walk(model)}
    layers = {id(layer.module) for layer in uses(model)}
    for path, module in model.named_modules():
        for own in module.parameters(recurse=False):
            if id(own) in names and id(module) not in layers:
                kind = f"{path} ({type(module).__name__})" if path else type(module).__name__
                yield (
                    f"{kind} has {names[id(own)]} for its own weight: what a recipe prunes and "
                    "rounds of one is pruned and rounded in both"
                )


def _outside_of_layers(model: nn.Module) -> tuple[str, ...]:
    within = {id(own) for layer in uses(model) for own in layer.module.parameters(recurse=False)}
    outside: Counter[str] = Counter()
    total = 0
    for name, own in model.named_parameters():
        if own.is_floating_point():
            total += own.numel()
            path = f".{name}".rpartition(".")[0].partition(".parametrizations.")[0][1:]
            outside[path] += 0 if id(own) in within else own.numel()
    if not total or outside.total() < MIN_OTHER_SHARE * total:
        return ()
    named = [
        f"{path} ({type(model.get_submodule(path)).__name__})" if path else type(model).__name__
        for path, elements in outside.most_common()
        if elements
    ]
    percent = 100 * outside.total() / total
    return (
        f"{percent:.0f} % of this model's weights are in layers that no recipe prunes or rounds: "
        f"{listed(named)}",
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether it runs torch's own code, or is attention, which has inputs of its own."""
    kind = type(module)
    for base in (*CONVOLUTIONS, nn.Linear):
        if isinstance(module, base):
            own = (getattr(one, "_conv_forward", None) for one in (kind, base))
            return kind.forward is base.forward and len({*own}) == 1
    return True


@torch.inference_mode()
def multiplications(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """How often each weight of a layer is multiplied for one input of ``input_shape`` (``[C, H, W]``).

    Pixels of the output for a convolution, also those of frames or patches that the model makes a batch of;
    tokens for a linear layer; for the joint projection of attention the mean (to a whole number) of those of
    queries, keys and values. Times the weights it is the layer's multiply-accumulates. What multiplies with
    something worked out from its weight is counted by its calls. Layers that do not run get 0.
    """
    inputs = examples(model, input_shape)
    weights = {layer.name: layer.weight for layer in walk(model)}
    calls, products = dict.fromkeys(weights, 0), Products(weights)

    def count(name: str, module: Any, inputs: Any, output: Tensor) -> None:
        calls[name] += output.numel() // len(module.weight)

    counted = (
        layer.module.register_forward_hook(partial(count, layer.name))
        for layer in uses(model)
        if not isinstance(layer.module, nn.MultiheadAttention)
    )
    with hooked(counted), whole_attention(), products:
        model(inputs)
    macs = products.macs
    return {
        name: round(macs[name] / one.numel()) if macs[name] else calls[name] for name, one in weights.items()
    }


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Takes hooks out in the end: also those before one that could not be registered."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield


@contextmanager
def whole_attention() -> Iterator[None]:
    """Keep torch off its fused attention: it cuts the joint projection into three, and leaves out what is
    padded by tensors of rows of several lengths, which hooks can't read."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Its state, without what it adds to that by a ``get_extra_state`` of its own, which may be anything."""
    return {name: one for name, one in module.state_dict().items() if isinstance(one, Tensor)}


def fold_batch_norm(
    model: nn.Module, input_shape: tuple[int, ...] | None = None
) -> tuple[nn.Module, tuple[str, ...]]:
    """:func:`optimizer.model.folding.fold_batch_norm`: here the cards of models that were saved before 0.1.6
    call it."""
    from optimizer.model import folding  # which imports this module

    return folding.fold_batch_norm(model, input_shape)
