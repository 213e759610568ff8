"""The blocks that a network is made of."""

from collections.abc import Iterator

from torch import nn

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
