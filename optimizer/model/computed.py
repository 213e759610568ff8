"""Weights that a module computes from others: torch's parametrizations, and the hooks that it had before.

They are made parameters of the values that they have in evaluation mode, so that they are layers as others
are (:func:`optimizer.model.layers.walk`), and engines convert them.
"""

import copy
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm
from torch.utils._pytree import tree_leaves

HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
"""Before each forward they compute a weight, under ``name`` or ``_tensor_name``."""


def copied(module: nn.Module) -> nn.Module:
    """A copy, with what torch.compile was given in place of what it gave back. Tensors that a forward with
    gradients left in attributes, which torch does not copy, are copied without them."""
    module, memo = uncompiled(module), dict[int, Any]()
    for part in module.modules():
        for held in tree_leaves(vars(part)):
            if isinstance(held, Tensor) and not held.is_leaf:
                memo[id(held)] = copy.deepcopy(held.detach(), memo)
    taken = copy.deepcopy(module, memo)
    _uncompile_parts(taken)
    return taken


def uncompiled(module: nn.Module) -> nn.Module:
    """What torch.compile was given: inductor would compile what it gave back, for each input anew, and it
    has other names."""
    dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")  # importing it takes a second
    if dynamo is None or not isinstance(module, dynamo.OptimizedModule):
        return module
    inner: nn.Module = module._orig_mod
    return uncompiled(inner)


def _uncompile_parts(taken: nn.Module) -> None:
    for name, part in [*taken.named_children()]:
        plain = uncompiled(part)
        if plain is not part:
            setattr(taken, name, plain)
        _uncompile_parts(plain)


def replace_computed(module: nn.Module) -> None:
    """Make each computed weight of ``module``, which is in evaluation mode, a parameter of its value."""
    for part in [*module.modules()]:
        # The last may compute what the one before reads.
        for hook in reversed([*part._forward_pre_hooks.values()]):
            _remove_hook(part, hook)
        if parametrize.is_parametrized(part):
            _remove_parametrizations(part)


def without_computed(module: nn.Module) -> nn.Module:
    """A module in evaluation mode itself, or a copy where it has weights to replace."""
    if any(computed(module)):
        module = copied(module)
        replace_computed(module)
    return module


def computed(module: nn.Module) -> Iterator[str]:
    """The names of what :func:`replace_computed` would replace."""
    for path, part in module.named_modules():
        hooks: list[Any] = [hook for hook in part._forward_pre_hooks.values() if isinstance(hook, HOOKS)]
        names = [hook.name if hasattr(hook, "name") else hook._tensor_name for hook in hooks]
        if parametrize.is_parametrized(part):
            lists: Any = part.parametrizations
            names += lists
        yield from (f"{path}.{name}" if path else name for name in names)


def _remove_hook(module: nn.Module, hook: Any) -> None:
    if isinstance(hook, WeightNorm):
        remove_weight_norm(module, hook.name)
    elif isinstance(hook, SpectralNorm):
        remove_spectral_norm(module, hook.name)
    elif isinstance(hook, prune.BasePruningMethod):
        whole = f"{hook._tensor_name}_orig"  # written into by what removes it, and maybe another's weight too
        module.register_parameter(whole, nn.Parameter(module.get_parameter(whole).detach().clone()))
        prune.remove(module, hook._tensor_name)


def _remove_parametrizations(module: nn.Module) -> None:
    """As ``torch.nn.utils.parametrize.remove_parametrizations``, which changes the module's class: that of
    the module that it was copied from too."""
    lists: Any = module.parametrizations
    values = {}
    for name, parametrization in lists.items():
        first = parametrization.original if parametrization.is_tensor else parametrization.original0
        with torch.no_grad():
            values[name] = getattr(module, name).detach().clone(), isinstance(first, nn.Parameter)
    before = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = before
    for name, (value, is_parameter) in values.items():
        if is_parameter:
            setattr(module, name, nn.Parameter(value, requires_grad=False))
        else:
            module.register_buffer(name, value)
