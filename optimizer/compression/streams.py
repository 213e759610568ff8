"""Which channels have nothing but sums between the layers that make them and those that read them.

Found by watching one forward: what a layer gives is followed through operations that treat all channels
alike, and joined where two are added. Anything else that sees it, a curve, a norm, a split or a product, ends
it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from optimizer.compression.calibration.moments import CONVOLUTIONS, PADDED_BY_NAME
from optimizer.compression.prune.group import Group
from optimizer.model.examples import examples
from optimizer.model.layers import Layer, walk, whole_attention
from optimizer.model.operations import Operations
from optimizer.model.unused import values_decide

aten = torch.ops.aten
SUMS = {aten.add, aten.add_, aten.sub, aten.sub_}
ALIKE = {
    *(aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.squeeze, aten.unsqueeze),
    *(aten.permute, aten.transpose, aten.movedim, aten.contiguous, aten.clone, aten.alias, aten.detach),
    *(aten.mean, aten.avg_pool2d, aten.adaptive_avg_pool2d, aten._adaptive_avg_pool2d, aten.dropout),
    *(aten.upsample_nearest2d, aten.upsample_bilinear2d, aten._to_copy, aten.to),
}
"""Operations that give of mixtures of channels the same mixtures, as long as they don't go along channels."""


def streams(model: nn.Module, input_shape: tuple[int, ...]) -> list[Group]:
    """Groups of channels of ``model`` (for inputs ``[C, H, W]``) that any mixture may stand for, if all that
    makes and reads them has it, in the order of their first layers; as far as the operations of one forward
    tell. None where the values of its input decide which layers run."""
    layers = list(walk(model))
    watch = _Watch(layers)
    with whole_attention(), torch.inference_mode():
        inputs = examples(model, input_shape)
        with watch:
            outputs = model(inputs)
    watch.end(outputs)
    if len(watch.calls) < len(layers) and values_decide(model, input_shape):
        return []
    return watch.groups()


class _Watch(Operations):
    """``of`` has by the address of each value which layer's outputs it is made of, by the first of those
    that were added; ``read`` has the layers that read them. Values are held, so that no address is used
    again."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = {one.weight.data_ptr(): one for one in layers}
        self.order = {one.name: place for place, one in enumerate(layers)}
        self.held: list[Any] = []
        self.of: dict[int, str] = {}
        self.joined: dict[str, str] = {}
        self.read: dict[str, set[str]] = {}
        self.ended: set[str] = set()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        result = operation(*arguments, **(options or {}))
        self.held += [arguments, result]
        seen = [self.of[id(one)] for one in tree_leaves((arguments, options)) if id(one) in self.of]
        if layer := self._multiplied(operation, arguments):
            self._multiply(layer, arguments[0], result)
        elif seen and operation.overloadpacket in ALIKE:
            self.of[id(result)] = seen[0]
        elif operation.overloadpacket in SUMS and len(seen) == 2 and arguments[0].shape == arguments[1].shape:
            self.of[id(result)] = self._join(*seen)
        else:
            self.ended.update(seen)
        return result

    def _multiplied(self, operation: Any, arguments: Sequence[Any]) -> Layer | None:
        """The layer whose weight, all of it and of one group, the operation multiplies its input with."""
        if operation is not aten.linear.default and operation not in CONVOLUTIONS + PADDED_BY_NAME:
            return None
        layer = self.layers.get(arguments[1].data_ptr())
        if layer is not None:
            self.calls[layer.name] += 1
        grouped = operation is not aten.linear.default and (arguments[6:] or (1,))[0] != 1
        whole = layer is not None and arguments[1].shape == layer.weight.shape
        return layer if whole and not grouped else None

    def _multiply(self, layer: Layer, inputs: Tensor, result: Tensor) -> None:
        if id(inputs) in self.of:
            self.read.setdefault(self.of[id(inputs)], set()).add(layer.name)
        self.of[id(result)] = layer.name
        self.joined.setdefault(layer.name, layer.name)

    def _root(self, name: str) -> str:
        while self.joined[name] != name:
            name = self.joined[name]
        return name

    def _join(self, one: str, other: str) -> str:
        first, second = sorted((self._root(one), self._root(other)), key=self.order.__getitem__)
        self.joined[second] = first
        return first

    def end(self, outputs: Any) -> None:
        """What the model gives is to stay as it is."""
        self.ended.update(self.of[id(one)] for one in tree_leaves(outputs) if id(one) in self.of)

    def groups(self) -> list[Group]:
        ended = {self._root(name) for name in self.ended}
        readers: dict[str, set[str]] = {}
        for name, some in self.read.items():
            readers.setdefault(self._root(name), set()).update(some)
        widths = {one.name: len(one.weight) for one in self.layers.values()}
        found = []
        for root in sorted(readers.keys() - ended, key=self.order.__getitem__):
            makers = [name for name in self.order if name in self.joined and self._root(name) == root]
            consumers = sorted(readers[root], key=self.order.__getitem__)
            if all(self.calls[name] == 1 for name in (*makers, *consumers)):
                found.append(Group(root, widths[root], tuple(makers), (), tuple(consumers)))
        return found
