"""The one walk over the layers that a recipe may touch, and the batch norm folded before it.

A layer here is a weight of two or more dimensions that multiplies activations: convolutions, linear layers
and the joint projection of ``nn.MultiheadAttention``. Biases, normalisation and position embeddings are not,
nor is a library's convolution or linear layer that multiplies with something worked out from its weight.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optimizer.formats import listed
from optimizer.model.computed import copied, replace_computed
from optimizer.model.examples import answers, examples
from optimizer.model.unused import drop_unused

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TOLERANCE = 1e-3
"""Of a model's outputs: more than folding changes in them by rounding."""
MIN_OTHER_SHARE = 0.05
"""Of a model's weights, outside of all layers: a smaller share is biases, norms and position embeddings."""
MAX_NAMED = 3


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
        if not _is_plain(module) and not _multiplies_with_weight(module):
            continue
        name = names.setdefault(id(weight), f"{path}.{attribute}" if path else attribute)
        yield Layer(name, kind, module, weight)


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
        f"{listed(named, MAX_NAMED)}",
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether it runs torch's own code, or is attention, which has inputs of its own."""
    kind = type(module)
    for base in (*CONVOLUTIONS, nn.Linear):
        if isinstance(module, base):
            own = (getattr(one, "_conv_forward", None) for one in (kind, base))
            return kind.forward is base.forward and len({*own}) == 1
    return True


aten = torch.ops.aten
ADDING = {aten.addmm, aten.baddbmm, aten.addmv}
"""Products whose factors come after what is added to them."""
PRODUCTS = {aten.convolution, aten.mm, aten.bmm, aten.mv, *ADDING}
"""All that functions multiply by, in the end."""


class _Products(TorchDispatchMode):
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


def _multiplies_with_weight(module: Any) -> bool:
    """Whether a library's own class multiplies with its weight as it is.

    Zeros in a weight that it standardises first are none in what is multiplied. Found once, by a random
    input; what takes another input is believed.
    """
    if module not in _MULTIPLY:
        _MULTIPLY[module] = _seen_to_multiply(module)
    return _MULTIPLY[module]


@torch.no_grad()
def _seen_to_multiply(module: Any) -> bool:
    weight = module.weight
    shape = _small_input(module) if isinstance(module, CONVOLUTIONS) else (weight.shape[1],)
    products = _Products({"weight": weight})
    with torch.random.fork_rng(devices=()), products:
        torch.default_generator.manual_seed(0)  # of no other device: those are not put back
        try:
            module.forward(torch.randn(1, *shape, dtype=weight.dtype))  # hooks are those of whoever measures
        except Exception:  # a library's own code: anything may come out of it
            return True
    return products.macs["weight"] > 0


def _small_input(convolution: Any) -> tuple[int, ...]:
    """The shape of an input that its kernel fits in."""
    sides = zip(convolution.kernel_size, convolution.dilation, strict=True)
    return convolution.in_channels, *(2 * side * apart for side, apart in sides)


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
    calls, products = dict.fromkeys(weights, 0), _Products(weights)

    def count(name: str, module: Any, inputs: Any, output: Tensor) -> None:
        calls[name] += output.numel() // len(module.weight)

    handles = [
        layer.module.register_forward_hook(partial(count, layer.name))
        for layer in uses(model)
        if not isinstance(layer.module, nn.MultiheadAttention)
    ]
    try:
        with whole_attention(), products:
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    macs = products.macs
    return {
        name: round(macs[name] / one.numel()) if macs[name] else calls[name] for name, one in weights.items()
    }


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


class LayerTracer(torch.fx.Tracer):
    """Keeps convolutions, norms and attention whole, also those of libraries that derive their own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kinds = (*CONVOLUTIONS, *BATCH_NORMS, nn.MultiheadAttention)
        return isinstance(m, kinds) or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """As all call it, with one input: a placeholder for ``targets=None`` would not be None, and a loss
        would be traced in the place of logits."""
        return self.root.forward, [self.create_proxy("placeholder", "input", (), {})]


@torch.no_grad()
def traced(model: nn.Module, image: Tensor) -> torch.fx.Graph:
    """The graph by which ``model`` answers ``image`` ``[1, ...]``. Raises what its code does where it can't
    be traced, and ValueError where the graph answers otherwise: code that asks whether its input is a tensor
    may go another way with what stands for one."""
    graph = LayerTracer().trace(model)
    found = torch.fx.Interpreter(torch.fx.GraphModule(model, graph)).run(image.clone())
    if not agree([model(image.clone())], [found]):
        raise ValueError("its graph answers otherwise")
    return graph


def fold_batch_norm(
    model: nn.Module, input_shape: tuple[int, ...] | None = None
) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy in which each batch norm that alone follows a convolution is folded into it.

    A model that can't be traced is run once instead, where the ``input_shape`` of an example is known. Then
    the copy's outputs are compared with the model's too: where they differ nothing is folded; and modules
    that never run are left out of it (:func:`optimizer.model.unused.drop_unused`).
    Returns the copy (in evaluation mode) and notes: what was left out and what could not be folded, if
    anything. The argument is left as it was. Weights that it computes from others are parameters in the copy.
    """
    frozen = _frozen(model)
    notes = drop_unused(frozen, input_shape) if input_shape else ()
    folded, more = _folded(frozen, input_shape)
    return folded, (*notes, *more)


def _folded(frozen: nn.Module, input_shape: tuple[int, ...] | None) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy with its batch norm folded, or itself; and notes."""
    if not any(isinstance(module, BATCH_NORMS) for module in frozen.modules()):
        return frozen, ()
    folded = copied(frozen)
    try:
        try:
            pairs = _traced_pairs(folded)
        except Exception:
            if input_shape is None:
                raise
            pairs = _run_pairs(folded, examples(folded, input_shape))
    except Exception as error:  # both run the model's own code: anything may come out of it
        return folded, (f"batch norm is not folded: the model can't be traced ({error})",)
    try:
        before = answers(folded, input_shape) if input_shape else []
        _fold(folded, pairs)
        alike = agree(before, answers(folded, input_shape) if input_shape else [])
    except Exception:  # the model's own code again
        alike = False
    if not alike:
        return frozen, ("batch norm is not folded: the outputs would not stay the same",)
    left = sum(isinstance(module, BATCH_NORMS) for module in folded.modules())
    return folded, (f"batch norms that can't be folded into a convolution: {left}",) if left else ()


def _frozen(model: nn.Module) -> nn.Module:
    frozen = copied(model).eval()
    replace_computed(frozen)
    return frozen.requires_grad_(False)


def _fold(model: nn.Module, pairs: list[tuple[str, str]]) -> None:
    """Fold the second of each pair of modules into the first, under whatever names the model has them. A
    weight that several layers share stays as it is: each would be scaled by a norm of its own."""
    modules = dict(model.named_modules())
    users = holders(model)
    left: dict[nn.Module, nn.Module] = {}
    for convolution, norm in ((modules[first], modules[second]) for first, second in pairs):
        if users[id(convolution.weight)] <= 1 and (found := _fused(convolution, norm)):
            convolution.weight, convolution.bias = found[0].weight, found[0].bias
            left[norm] = found[1].eval()
    for name, module in [*model.named_modules(remove_duplicate=False)]:
        if module in left:
            model.set_submodule(name, left[module])


def _fused(convolution: Any, norm: Any) -> tuple[Any, nn.Module] | None:
    """A convolution that does the work of both, and what is left to do: nothing, or what the norm has inside,
    such as timm's activation. None where that is not the same: a library's own class may standardise its
    weight or work it out from others."""
    if norm.running_mean is None or not isinstance(convolution.weight, nn.Parameter):
        return None
    fused = fuse_conv_bn_eval(convolution, norm)
    if type(convolution) in CONVOLUTIONS and type(norm) in BATCH_NORMS:
        return fused, nn.Identity()
    shape = _small_input(convolution)
    expected = answers(nn.Sequential(convolution, norm), shape)
    for rest in (nn.Identity(), nn.Sequential(*norm.children())):
        if agree(expected, answers(nn.Sequential(fused, rest), shape)):
            return fused, rest
    return None


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Its state, without what it adds to that by a ``get_extra_state`` of its own, which may be anything."""
    return {name: one for name, one in module.state_dict().items() if isinstance(one, Tensor)}


def agree(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether two models' :func:`answers` differ by no more than rounding."""
    return all(
        torch.equal(one.isfinite(), other.isfinite())  # logits of what is masked out are none
        and torch.linalg.norm(_finite(one) - _finite(other)) <= TOLERANCE * torch.linalg.norm(_finite(one))
        for one, other in zip(some, others, strict=True)
    )


def _finite(values: Tensor) -> Tensor:
    return values.float().nan_to_num(0, 0, 0)


def _traced_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Convolutions and the batch norms that alone read them, by name, of the model's graph."""
    modules = dict(model.named_modules())
    graph = LayerTracer().trace(model)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], BATCH_NORMS):
            continue
        source = (*node.args, *node.kwargs.values())[0]
        if (
            source.op == "call_module"
            and isinstance(modules[source.target], CONVOLUTIONS)
            and len(source.users) == 1
            and calls[source.target] == calls[node.target] == 1
        ):
            found.append((source.target, node.target))
    return found


DECIDING = (Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.item, Tensor.tolist)
"""Calls by which a model's code looks at a value."""


class _Readers(TorchFunctionMode):
    """How many calls read each tensor; all stay, so that no two have one ``id``. Raises ValueError where the
    model's code looks at a value."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self.kept: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in DECIDING:
            raise ValueError("which layers it runs may depend on the values of its input")
        answer = func(*args, **(kwargs or {}))
        if func not in (Tensor.dim, Tensor.size) and "__get__" not in str(func):  # those read no values
            self.count.update({id(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)})
        self.kept.append((args, kwargs, answer))
        return answer


@torch.inference_mode()
def _run_pairs(model: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """The same, of one call with ``images`` ``[1, C, H, W]``, for a model whose graph can't be traced."""
    read: dict[str, list[Tensor]] = defaultdict(list)
    made: dict[str, list[Tensor]] = defaultdict(list)
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS):
            handles.append(module.register_forward_hook(lambda _, inputs, out, n=name: made[n].append(out)))
        elif isinstance(module, BATCH_NORMS):
            handles.append(
                module.register_forward_pre_hook(lambda _, inputs, n=name: read[n].append(inputs[0]))
            )
    try:
        with whole_attention(), _Readers() as readers:
            outputs = model(images)
    finally:
        for handle in handles:
            handle.remove()
    returned = {id(one) for one in tree_leaves(outputs)}
    makers = {id(out[0]): name for name, out in made.items() if len(out) == 1}
    return [
        (makers[id(inputs[0])], name)
        for name, inputs in read.items()
        if len(inputs) == 1
        and id(inputs[0]) in makers
        and readers.count[id(inputs[0])] == 1
        and id(inputs[0]) not in returned
    ]
