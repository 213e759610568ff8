"""Batch norm folded into the convolutions and linear layers before it."""

from collections import Counter, defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from optimizer.model.computed import copied, replace_computed
from optimizer.model.examples import agree, answers, examples
from optimizer.model.layers import BATCH_NORMS, CONVOLUTIONS, holders, hooked, whole_attention
from optimizer.model.products import small_input
from optimizer.model.tracing import LayerTracer
from optimizer.model.unused import drop_unused

Kinds = tuple[type[nn.Module], ...]


def fold_batch_norm(
    model: nn.Module, input_shape: tuple[int, ...] | None = None
) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy in which each batch norm that alone follows a convolution is folded into it.

    A model that can't be traced is run once instead, where the ``input_shape`` of an example is known. Then
    the copy's outputs are compared with the model's too: where they differ nothing is folded; those that
    follow a linear layer are folded as well, as exporters would do it, each in its own way; and modules that
    never run are left out of it (:func:`optimizer.model.unused.drop_unused`).
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
    # Of tokens [N, L, C] a norm may scale L: without answers to compare nobody would see it.
    kinds = CONVOLUTIONS if input_shape is None else (*CONVOLUTIONS, nn.Linear)
    try:
        try:
            pairs = _traced_pairs(folded, kinds)
        except Exception:
            if input_shape is None:
                raise
            pairs = _run_pairs(folded, examples(folded, input_shape), kinds)
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
    plain = type(convolution) in (*CONVOLUTIONS, nn.Linear) and type(norm) in BATCH_NORMS
    if isinstance(convolution, nn.Linear) and not (plain and norm.num_features == convolution.out_features):
        return None
    fused = fuse_conv_bn_eval(convolution, norm)  # of a linear layer, too: its weights are those of 1x1
    if plain:
        return fused, nn.Identity()
    shape = small_input(convolution)
    expected = answers(nn.Sequential(convolution, norm), shape)
    for rest in (nn.Identity(), nn.Sequential(*norm.children())):
        if agree(expected, answers(nn.Sequential(fused, rest), shape)):
            return fused, rest
    return None


def _traced_pairs(model: nn.Module, kinds: Kinds) -> list[tuple[str, str]]:
    """Layers of these kinds and the batch norms that alone read them, by name, of the model's graph."""
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
            and isinstance(modules[source.target], kinds)
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
        if func not in (Tensor.dim, Tensor.size) and func.__name__ != "__get__":  # those read no values
            self.count.update({id(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)})
        self.kept.append((args, kwargs, answer))
        return answer


@torch.inference_mode()
def _run_pairs(model: nn.Module, images: Tensor, kinds: Kinds) -> list[tuple[str, str]]:
    """The same, of one call with ``images`` ``[1, C, H, W]``, for a model whose graph can't be traced."""
    read: dict[str, list[Tensor]] = defaultdict(list)
    made: dict[str, list[Tensor]] = defaultdict(list)
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            handles.append(module.register_forward_hook(lambda _, inputs, out, n=name: made[n].append(out)))
        elif isinstance(module, BATCH_NORMS):
            handles.append(
                module.register_forward_pre_hook(lambda _, inputs, n=name: read[n].append(inputs[0]))
            )
    with hooked(handles), whole_attention(), _Readers() as readers:
        outputs = model(images)
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
