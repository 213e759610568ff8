"""Which channels have nothing but sums and norms between the layers that make them and those that read them.

Found by watching one forward: what a layer gives is followed through operations that treat all channels
alike, and joined where two are added. A layer norm lets it pass that only layers read: its scales can be
theirs. Anything else that sees it, a curve, a split or a product, ends it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from optimizer.compression.calibration.moments import CONVOLUTIONS, PADDED_BY_NAME
from optimizer.compression.prune.heads import head_groups
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
    *(aten.upsample_nearest2d, aten.upsample_bilinear2d, aten._to_copy, aten.to, aten.expand, aten.embedding),
}
"""Operations that give of mixtures of channels the same mixtures, as long as they don't go along channels."""
TOKENS = {aten.select, aten.slice}
"""Those that do where they take some of the tokens of ``[N, tokens, C]``."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Channels that any mixture may stand for, if all that makes and reads them has it: layers, by the names
    of :func:`optimizer.model.layers.walk`, which make or read them, and parameters ``[..., channels]``
    that are ``added`` or stand beside them, such as position embeddings.

    ``normed`` layers read them through a norm, of which it has the module's path; its scales and offsets are
    then to be the layers'. A layer norm takes the mean of all channels, which mixtures have to keep:
    ``centred``.

    Producers make them from their ``first`` rows on (without any, 0). Where they are of several attention
    ``heads``, only those of one may be mixed, as many for each.
    """

    name: str
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    added: tuple[str, ...] = ()
    normed: tuple[tuple[str, str], ...] = ()
    centred: bool = False
    first: tuple[int, ...] = ()
    heads: int = 1

    @property
    def rows(self) -> list[tuple[str, slice]]:
        """Which rows of which layer's weight make them."""
        first = self.first or (0,) * len(self.producers)
        return [(name, slice(at, at + self.channels)) for name, at in zip(self.producers, first, strict=True)]

    @property
    def members(self) -> tuple[str, ...]:
        """All its layers: one that makes the channels and reads them is there twice."""
        return (*self.producers, *self.consumers)


def streams(model: nn.Module, input_shape: tuple[int, ...]) -> list[Stream]:
    """The streams of ``model`` (for inputs ``[C, H, W]``), in the order of their first layers; as far as the
    operations of one forward tell. None where the values of its input decide which layers run."""
    layers = list(walk(model))
    watch = _Watch(model, layers)
    with whole_attention(), torch.inference_mode():
        inputs = examples(model, input_shape)
        with watch:
            outputs = model(inputs)
    watch.end(outputs)
    if len(watch.calls) < len(layers) and values_decide(model, input_shape):
        return []
    return watch.streams()


def attention_streams(model: nn.Module, input_shape: tuple[int, ...]) -> list[Stream]:
    """Queries with keys, and values with what the output projection reads of them, of every attention of
    ``model`` whose heads are known: scores and sums of a head are the same of any mixture of its own
    channels. As far as order and place of queries, keys and values are those of torch's attention."""
    layers = {layer.name: layer for layer in walk(model)}
    found = []
    for group in head_groups(model, input_shape):
        width = layers[group.consumers[0]].weight[0].numel()
        joint = group.parts == 3
        if width == group.channels or not (joint or len(group.producers) == 3):
            continue
        query, key, value = group.producers * 3 if joint else group.producers
        first = (0, width, 2 * width) if joint else (0, 0, 0)
        path, heads = group.attention, group.channels
        found += [
            Stream(f"queries and keys of {path}", width, (query, key), (), first=first[:2], heads=heads),
            Stream(f"values of {path}", width, (value,), group.consumers, first=first[2:], heads=heads),
        ]
    return found


@dataclass(frozen=True, slots=True)
class _Value:
    """Of which layer's outputs, or parameter, it is made, by the first of those that were added; the path of
    the norm that it came through since, if any."""

    maker: str
    norm: str = ""


class _Watch(Operations):
    """``of`` has each value's origin by its address; values are held, so that no address is used again.
    ``read`` has the layers that read them, each with its norm."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = {one.weight.data_ptr(): one for one in layers}
        self.norms = {
            module.weight.data_ptr(): path
            for path, module in model.named_modules()
            if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.dim() == 1
        }
        self.model = model
        self.added = {
            name: one
            for name, one in model.named_parameters()
            if one.dim() > 1 and one.data_ptr() not in self.layers
        }
        self.order = {name: place for place, name in enumerate([*(one.name for one in layers), *self.added])}
        self.of = {id(one): _Value(name) for name, one in self.added.items()}
        self.joined = {name: name for name in self.added}
        self.held: list[Any] = []
        self.read: dict[str, set[tuple[str, str]]] = {}
        self.centred: set[str] = set()
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
        elif seen and (found := self._passed(operation.overloadpacket, arguments, seen, result)):
            self.of[id(result)] = found
        else:
            self.ended.update(one.maker for one in seen)
        return result

    def _passed(
        self, kind: Any, arguments: Sequence[Any], seen: Sequence[_Value], result: Any
    ) -> _Value | None:
        """The origin of a ``result`` that has the mixtures of what was ``seen``."""
        if kind in ALIKE or (kind in TOKENS and _along_tokens(arguments[0], *arguments[1:2])):
            return seen[0]
        raw = not any(one.norm for one in seen)
        if kind in SUMS and raw and len(seen) == 2 and self._fit(arguments[:2], seen):
            return self._join(*seen)
        if (
            kind is aten.cat
            and raw
            and len(seen) == len(arguments[0])
            and _along_tokens(result, *arguments[1:2])
        ):
            return self._join(*seen)
        if kind in (aten.layer_norm, aten.rms_norm) and raw and len(arguments[1]) == 1:
            return self._normed(kind, arguments, seen[0].maker)
        return None

    def _fit(self, values: Sequence[Tensor], seen: Sequence[_Value]) -> bool:
        """Whether the channels of both meet: a parameter may stand for all images and places."""
        some = any(one.maker in self.added for one in seen)
        return values[0].shape == values[1].shape or (some and values[0].shape[-1] == values[1].shape[-1])

    def _normed(self, kind: Any, arguments: Sequence[Any], maker: str) -> _Value | None:
        """What a norm along channels gives, if its scales and offsets are its module's."""
        _, _, weight, *more = (*arguments, None, None)
        if kind is aten.layer_norm:
            self.centred.add(maker)
        if weight is None:
            return _Value(maker)
        path = self.norms.get(weight.data_ptr())
        if path is None:
            return None
        own = getattr(self.model.get_submodule(path), "bias", None)
        same = kind is aten.rms_norm or more[0] is own
        return _Value(maker, path) if same else None

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
        if read := self.of.get(id(inputs)):
            self.read.setdefault(read.maker, set()).add((layer.name, read.norm))
        self.of[id(result)] = _Value(layer.name)
        self.joined.setdefault(layer.name, layer.name)

    def _root(self, name: str) -> str:
        while self.joined[name] != name:
            name = self.joined[name]
        return name

    def _join(self, *some: _Value) -> _Value:
        first, *others = sorted({self._root(one.maker) for one in some}, key=self.order.__getitem__)
        self.joined.update(dict.fromkeys(others, first))
        return _Value(first)

    def end(self, outputs: Any) -> None:
        """What the model gives is to stay as it is."""
        self.ended.update(self.of[id(one)].maker for one in tree_leaves(outputs) if id(one) in self.of)

    def streams(self) -> list[Stream]:
        ended, centred = ({*map(self._root, some)} for some in (self.ended, self.centred))
        readers: dict[str, dict[str, str]] = {}
        for maker, some in self.read.items():
            readers.setdefault(self._root(maker), {}).update(some)
        widths = {one.name: len(one.weight) for one in self.layers.values()}
        found = []
        for root in sorted(readers.keys() - ended - self.added.keys(), key=self.order.__getitem__):
            parts = [name for name in self.order if name in self.joined and self._root(name) == root]
            added = tuple(name for name in parts if name in self.added)
            makers = tuple(name for name in parts if name not in self.added)
            consumers = tuple(sorted(readers[root], key=self.order.__getitem__))
            normed = tuple((name, norm) for name in consumers if (norm := readers[root][name]))
            if all(self.calls[name] == 1 for name in (*makers, *consumers)):
                found.append(Stream(root, widths[root], makers, consumers, added, normed, root in centred))
        return found


def _along_tokens(values: Tensor, axis: int = 0) -> bool:
    """Whether that is the second of three axes."""
    return values.dim() == 3 and axis in (1, -2)
