"""An ONNX graph as a torch module: layers, and the functions between them, as one ``torch.fx`` graph.

Every operator is run on one image and on two while it is recorded. So what depends on shapes alone
(``Shape``, ``Gather``, ``Concat``, ... before a ``Reshape``) is a constant afterwards, and it shows on which
axis images lie one behind another: their number stays open, also where the file says 1. (onnx2torch keeps
these as tensors that are looked at in each call, which neither ``torch.fx`` nor ``torch.export`` can follow,
has no linear layers for ``MatMul``, and ends at opset 17.)
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import onnx
import torch
import torch.fx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from optimizer.errors import InputError, one_line
from optimizer.model.added import onnx_shapes  # noqa: F401  (adds its operators)
from optimizer.model.added.limits import lacks_memory
from optimizer.model.added.onnx_layers import LAYERS, Padded, add_bias, for_channels, scaling
from optimizer.model.added.onnx_operators import KINDS, OPERATORS, Attributes, UnsupportedError
from optimizer.model.added.onnx_reading import CHANNELS_FIRST, dimensions, named
from optimizer.model.layers import CONVOLUTIONS
from optimizer.records import Part

DOMAINS = ("", "ai.onnx")
NAMED = 5
ROUNDS = (
    "the file rounds its activations: measured is a float32 network that does this rounding as operations of "
    "its own, larger and slower than the file, which `paretoscope compare` measures as it is"
)


class Converted(nn.Module):
    """The network, with one tensor of outputs: as it is, ``flat`` where that is ``[N, K, 1, 1]``; of several
    ``[N, 1, M]``, one behind the other. ``parts`` are their names and shapes for one image. One that was made
    ``for_one`` image gets one at a time. ``input_name`` is the file's; it ``rounds`` activations where the
    file does."""

    input_name = "images"
    rounds = False

    def __init__(self, network: nn.Module, parts: tuple[Part, ...], flat: bool, for_one: bool) -> None:
        super().__init__()
        self.network = network
        self.parts = parts
        self.flat = flat
        self.for_one = for_one

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of it."""
        return (ROUNDS,) if self.rounds else ()

    def forward(self, x: Tensor) -> Tensor:
        if self.for_one and len(x) > 1:
            return torch.cat([self._answer(one) for one in x.split(1)])
        return self._answer(x)

    def _answer(self, x: Tensor) -> Tensor:
        found: tuple[Tensor, ...] = self.network.forward(x)  # called, it prints whatever fails in it
        if len(self.parts) == 1:
            return found[0].flatten(1) if self.flat else found[0]
        return torch.cat([one.flatten(1) for one in found], 1).unsqueeze(1)


def convert(file: Path, input_shape: tuple[int, ...], for_one: bool = False) -> Converted:
    """The module of a graph that :func:`optimizer.model.added.onnx_reading.read_onnx` wrote, for images
    ``[C, H, W]``, any number at once or one at a time. Raises InputError, which names operator and node, for
    what has no counterpart here."""
    graph = onnx.load(file)
    known = {"Constant", *LAYERS, *OPERATORS}
    foreign = [node for node in graph.graph.node if node.op_type not in known or node.domain not in DOMAINS]
    if foreign:
        kinds = dict.fromkeys(named(node) for node in foreign[:NAMED])
        more = f" and {len(foreign) - NAMED} others" if len(foreign) > NAMED else ""
        raise InputError(
            f"it can't be converted: there is nothing here for {', '.join(kinds)}{more}. Export it with "
            "other operators, or at another opset; `paretoscope compare` measures it as it is"
        )
    with torch.no_grad():
        images = torch.rand(1 if for_one else 2, *input_shape, generator=torch.Generator().manual_seed(0))
        return _Conversion(graph).run(images)


class _Tracer(torch.fx.Tracer):
    """Records what is called with proxies on a module that is still being built."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.root, self.graph = root, torch.fx.Graph()
        self.tensor_attrs: dict[Any, str] = {}


class _Conversion:
    """Values by name: ``samples`` of one image, ``pairs`` of two where that differs, and what records:
    ``proxies`` of those that depend on the image."""

    def __init__(self, model: Any) -> None:
        self.graph = model.graph
        self.opset = next((one.version for one in model.opset_import if one.domain in DOMAINS), 1)
        self.root = nn.Module()
        self.tracer = _Tracer(self.root)
        self.samples: dict[str, Any] = {
            one.name: _tensor(one) for one in self.graph.initializer if one.data_type in KINDS
        }
        self.uses = Counter(name for node in self.graph.node for name in node.input)
        self.uses.update(one.name for one in self.graph.output)
        self.pairs: dict[str, Any] = {}
        self.proxies: dict[str, Any] = {}
        self.rounds = False
        del self.graph.initializer[:]  # which may be most of the memory

    def run(self, images: Tensor) -> Converted:
        name = self.graph.input[0].name
        self.samples[name], self.pairs[name] = images[:1], images
        self.any_batch = not isinstance(dimensions(self.graph.input[0])[0], int)
        self.proxies[name] = self.tracer.create_proxy("placeholder", "images", (), {})
        for node in self.graph.node:
            try:
                if not self._folds(node):
                    self._convert(node)
                self._let_go(node)
            except UnsupportedError as error:
                raise InputError(f"it can't be converted: {named(node)} has {error}") from error
            except InputError:
                raise
            except Exception as error:
                reason = one_line(error, 200)
                shapes = [list(one.shape) for one in map(self.samples.get, node.input) if one is not None]
                if lacks_memory(error):
                    raise InputError(
                        f"it can't be converted: {named(node)} on {shapes} takes more memory than it may"
                    ) from error
                raise InputError(
                    f"it can't be converted for this input shape: {named(node)} fails on {shapes} ({reason})"
                ) from error
        outputs = [one.name for one in self.graph.output]
        for output in outputs:
            if output not in self.proxies:
                raise InputError(f"its output {output[:60]!r} does not depend on the image")
            axis = 0 if len(images) == 1 else self._batch(output)
            if axis != 0 or self.samples[output].shape[:1] != (1,):
                raise InputError(
                    f"its output {output[:60]!r} has the shape {list(self.samples[output].shape)} for one "
                    "image, not a row for each: export it without what follows the network, such as the "
                    "selection of boxes"
                )
        self.tracer.create_proxy("output", "output", (tuple(self.proxies[one] for one in outputs),), {})
        network = torch.fx.GraphModule(self.root, self.tracer.graph)
        shape = self.samples[outputs[0]].shape
        parts = tuple((one, tuple(self.samples[one].shape[1:])) for one in outputs)
        made = Converted(network, parts, len(shape) > 2 and shape[2:].numel() == 1, len(images) == 1)
        if not name.endswith(CHANNELS_FIRST):  # the file's takes images of another layout
            made.input_name = name
        made.rounds = self.rounds
        return made

    def _convert(self, node: Any) -> None:
        given = [self.samples[name] if name else None for name in node.input]
        depends = [name in self.proxies for name in node.input]
        a = self._attributes(node, given)
        if node.op_type == "QuantizeLinear":
            self.rounds |= depends[0]
        constants = [None if of_image else one for one, of_image in zip(given, depends, strict=True)]
        as_layer = node.op_type in LAYERS and (any(depends) or node.op_type not in OPERATORS)
        layer = LAYERS[node.op_type](a, constants) if as_layer else None
        recorded: Any = None
        if layer is not None:
            place = depends.index(True) if any(depends) else 0
            found = layer.eval()(given[place]), layer(a.pairs[place]) if any(depends) else None
            if any(depends):
                path, read = self._place(node, layer), self.proxies[node.input[place]]
                recorded = self.tracer.create_proxy("call_module", path, (read,), {})
            if recorded is not None and isinstance(found[0], tuple):
                recorded = tuple(recorded[number] for number in range(len(found[0])))
        else:
            function = OPERATORS[node.op_type]
            found = function(a, *given), None
            if any(depends) and node.op_type not in ("Shape", "Size"):
                found = found[0], function(a, *a.pairs)
                recorded = function(a, *self._given(node, self.proxies))
            elif any(name in self.pairs for name in node.input):  # a shape: a constant, but for more images
                two = Attributes(a)
                two.shapes, two.batches, two.outputs = _shapes(a.pairs), (None,) * len(given), a.outputs
                found = found[0], function(two, *a.pairs)
        self._keep(node, found, recorded)

    def _attributes(self, node: Any, given: Sequence[Tensor | None]) -> Attributes:
        """What an operator is asked with, beside its inputs as they are ``given`` for one image."""
        a = Attributes({one.name: _plain(helper.get_attribute_value(one)) for one in node.attribute})
        a |= {"operator": node.op_type, "opset": self.opset, "any_batch": self.any_batch}
        a.shapes = _shapes(given)
        a.batches = tuple(map(self._batch, node.input))
        a.pairs = tuple(self._given(node, self.pairs))
        a.outputs = len(node.output)
        if node.op_type == "QuantizeLinear" and len(given) > 2 and given[2] is not None:
            a["zero_type"] = given[2].dtype
        if node.op_type == "CastLike" and given[1] is not None:
            a["like"] = given[1].dtype
        return a

    def _keep(self, node: Any, found: tuple[Any, Any], recorded: Any) -> None:
        """What a node gives for one image and for two, and in the graph, by the names of its outputs."""
        for number, name in enumerate(node.output):
            one, both, proxy = (
                value[number] if isinstance(value, tuple) else value for value in (*found, recorded)
            )
            if name:
                self.samples[name] = one
                if both is not None:
                    self.pairs[name] = both
                if isinstance(proxy, torch.fx.Proxy):
                    self.proxies[name] = proxy
            if not isinstance(found[0], tuple):
                break

    def _folds(self, node: Any) -> bool:
        """Whether a sum or a product with a number for each channel was folded into the layer before it:
        exporters write biases as ``Add``, and batch norms as ``Mul`` and ``Add``."""
        if node.op_type not in ("Add", "Mul"):
            return False
        for made, other in (node.input, reversed(node.input)):
            layer, numbers = self._layer_of(made), cast(Any, self.samples.get(other))
            if other in self.proxies or not self._read_alone(made):
                continue
            if not for_channels(layer, numbers, self.samples[made]):
                continue
            if node.op_type == "Add":
                add_bias(layer, numbers)
                folded = self.proxies[made]
            elif isinstance(layer, CONVOLUTIONS):
                path = self._place(node, scaling(numbers, self.samples[made].ndim))
                folded = self.tracer.create_proxy("call_module", path, (self.proxies[made],), {})
            else:
                continue
            for values in (self.samples, self.pairs):
                values[node.output[0]] = OPERATORS[node.op_type](Attributes(), values[made], numbers)
            self.proxies[node.output[0]] = folded
            return True
        return False

    def _read_alone(self, name: str) -> bool:
        """Whether nothing else has read a value, or will, under this name or another."""
        if name not in self.proxies:
            return False
        node = self.proxies[name].node
        left = sum(self.uses[other] for other, proxy in self.proxies.items() if proxy.node is node)
        return not node.users and left == 1

    def _layer_of(self, name: str) -> Any:
        """The module that gives a value."""
        proxy = self.proxies.get(name)
        if proxy is None or proxy.node.op != "call_module":
            return None
        module = self.root.get_submodule(proxy.node.target)
        return module[-1] if isinstance(module, Padded) else module

    def _let_go(self, node: Any) -> None:
        """Of what was read for the last time."""
        for name in node.input:
            self.uses[name] -= 1
            if name and not self.uses[name]:
                self.samples.pop(name, None)
                self.pairs.pop(name, None)

    def _given(self, node: Any, values: dict[str, Any]) -> list[Any]:
        return [values.get(name, self.samples.get(name)) if name else None for name in node.input]

    def _batch(self, name: str) -> int | None:
        """The axis on which two images take twice the place of one."""
        if name not in self.proxies:
            return None
        axes = enumerate(zip(self.samples[name].shape, self.pairs[name].shape, strict=True))
        return next((axis for axis, (one, two) in axes if one != two), None)

    def _place(self, node: Any, layer: nn.Module) -> str:
        """Where a module goes: under its weight's name in the file, if it has one that reads like a path."""
        weight = node.input[1] if len(node.input) > 1 else ""
        written = (
            weight.removesuffix(".weight") if weight.endswith(".weight") else node.name or node.output[0]
        )
        parts = [re.sub(r"\W", "_", part) for part in re.split(r"[./]+", written) if part] or ["layer"]
        parts = [f"_{part}" if part[0].isdigit() and len(parts) == 1 else part for part in parts]
        path, number = ".".join(parts), 1
        while self._taken(path):
            number += 1
            path = f"{'.'.join(parts)}_{number}"
        parent = self.root
        for part in path.split(".")[:-1]:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(path.rpartition(".")[2], layer)
        return path

    def _taken(self, path: str) -> bool:
        """Whether something lies there, or a layer on the way."""
        module = self.root
        for part in path.split("."):
            if type(module) is not nn.Module:
                return True
            if not hasattr(module, part):
                return False
            module = getattr(module, part)
        return True


def _shapes(values: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(() if one is None else tuple(one.shape) for one in values)


def _tensor(value: Any) -> Tensor:
    array = numpy_helper.to_array(value)
    if value.data_type not in KINDS:
        raise UnsupportedError(f"a tensor of type {TensorProto.DataType.Name(value.data_type)}")
    return torch.from_numpy(array.copy()).to(KINDS[value.data_type])


def _plain(value: Any) -> Any:
    return _tensor(value) if isinstance(value, TensorProto) else value
