"""The blocks that a network is made of, and how far their outputs are from those of another one's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from optimizer.model.layers import uses


def blocks(model: nn.Module) -> tuple[str, ...]:
    """Paths of the smallest modules that hold two layers or more: residual blocks, inverted bottlenecks, a
    transformer's feed-forward parts. Where only the whole model does, its layers."""
    layers = {id(layer.module) for layer in uses(model)}
    held = {
        path: sum(id(part) in layers for part in module.modules()) for path, module in model.named_modules()
    }
    several = [path for path, count in held.items() if count > 1 and path]
    parents = {path.rpartition(".")[0] for path in several}
    parents |= {above for path in parents for above in _above(path)}
    smallest = tuple(path for path in several if path not in parents)
    return smallest or tuple(path for path, module in model.named_modules() if id(module) in layers and path)


def _above(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


@contextmanager
def outputs_of(model: nn.Module, paths: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """What the modules at ``paths`` put out when the model last ran, filled anew at each run."""
    found: dict[str, Tensor] = {}

    def note(path: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output  # attention gives its weights too
        if isinstance(first, Tensor) and first.is_floating_point():
            found[path] = first

    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda module, inputs, output, path=path: note(path, output)
        )
        for path in paths
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def distance(outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """The mean over the blocks of the square of the change relative to the square of what is wanted.

    Blocks that put out another shape (channels were removed), or nothing but zeros, have no say.
    """
    shares = [
        (outputs[path] - one).square().sum() / power
        for path, one in wanted.items()
        if path in outputs and outputs[path].shape == one.shape and (power := one.square().sum()) > 0
    ]
    return torch.stack(shares).mean() if shares else torch.zeros(())
