"""Modules that evaluation never runs, such as a classifier that helps in training only: what is served has
none of their weights, so nothing is to be pruned, counted or kept of them."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from optimizer.formats import listed
from optimizer.model.examples import answers, examples, same_draws
from optimizer.model.layers import hooked
from optimizer.model.operations import Operations
from optimizer.system.threads import thread_count

LOOKING = (Tensor.tolist, Tensor.numpy, Tensor.__array__)
"""Calls by which a model's code looks at values, beside operations that are tagged as such."""
VALUES_DECIDE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


def drop_unused(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Take :func:`unused` modules out of ``module``, which is in evaluation mode: None stands in their place.
    Gives notes: what was left out, if anything."""
    total, gone = _elements(module), _drop(module, input_shape)
    left_out = total - _elements(module)
    if not left_out:
        return ()
    return (
        f"{left_out:,} weights ({100 * left_out / total:.2g} % of the model's) never run in evaluation, and "
        f"are left out: those of {listed([*gone])}",
    )


def unused(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[str, ...]:
    """The paths of modules with parameters that a forward in evaluation mode neither calls nor reads anything
    of, and without which it answers the same. None where that may depend on the values of the input, as it
    does for a mixture of experts."""
    gone = _drop(module, input_shape)
    _put(module, gone)
    return (*gone,)


def values_decide(module: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Whether a forward in evaluation mode looks at values, so that what it runs may depend on its input;
    also where it fails."""
    return _traced(module, input_shape) is None


def _drop(module: nn.Module, input_shape: tuple[int, ...]) -> dict[str, nn.Module]:
    """Those that were taken out, by their paths: all, or one by one those that it can be without."""
    names = _candidates(module, input_shape)
    if not names:
        return {}
    before, parts = _answers(module, input_shape), {name: module.get_submodule(name) for name in names}
    gone: dict[str, nn.Module] = {}
    for several in (parts, *({name: part} for name, part in parts.items())):
        _put(module, dict.fromkeys(several))
        after = None
        with suppress(Exception):  # the model's own code: anything may come out of it
            after = _answers(module, input_shape)
        if after is not None and len(after) == len(before) and all(map(torch.equal, before, after)):
            gone |= several
            if several is parts:
                break
        else:
            _put(module, several)
    return gone


def _put(module: nn.Module, parts: Mapping[str, nn.Module | None]) -> None:
    for name, part in parts.items():
        path, _, last = name.rpartition(".")
        module.get_submodule(path)._modules[last] = part


def _answers(module: nn.Module, input_shape: tuple[int, ...]) -> list[Tensor]:
    return [one.nan_to_num() for one in answers(module, input_shape)]  # NaN would equal nothing


def _candidates(module: nn.Module, input_shape: tuple[int, ...]) -> list[str]:
    used = _traced(module, input_shape)
    if used is None:
        return []
    ran, read = used
    found: list[str] = []
    for path, part in module.named_modules(remove_duplicate=False):  # it goes under each of its names
        if not path or any(path.startswith(f"{one}.") for one in found) or not _elements(part):
            continue
        held = [*part.parameters(), *part.buffers()]
        if ran.isdisjoint(map(id, part.modules())) and read.isdisjoint(map(_place, held)):
            found.append(path)
    return found


def _traced(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[set[int], set[int]] | None:
    """Which modules ran, by ``id``, and the places in memory that were read, for one input and for two; None
    where it fails, or a value may have decided."""
    ran, reads = set[int](), _Reads()
    watched = (part.register_forward_pre_hook(lambda part, _: ran.add(id(part))) for part in module.modules())
    decides = _Decides()
    try:
        # One or two inputs: more threads would wait for each other, long where other work goes on.
        with (
            thread_count(1),
            same_draws(),
            torch.inference_mode(False),  # in it a branch would be no operation of its own
            torch.no_grad(),
            hooked(watched),
        ):
            one, two = (examples(module, input_shape, count) for count in (1, 2))
            with decides, reads:
                module(one)
            with suppress(Exception), decides, reads:  # some take one at a time
                module(two)
    except Exception:  # the model's own code: anything may come out of it
        return None
    return None if decides.found or reads.values_decide else (ran, reads.places)


class _Decides(TorchFunctionMode):
    """Whether the model's code looks at a value."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= func in LOOKING
        return func(*args, **(kwargs or {}))


class _Reads(Operations):
    """The places in memory of all that operations read, and whether values decided on the shape of any."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()
        self.values_decide = False

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        tensors = [one for one in tree_leaves((arguments, options)) if isinstance(one, Tensor)]
        self.places |= {*map(_place, tensors)}
        if any(tag in operation.tags for tag in VALUES_DECIDE):
            # Of an index that is numbers, its own shape decides.
            masks = any(one.dtype in (torch.bool, torch.uint8) for one in tensors[1:])
            self.values_decide |= masks or operation.overloadpacket is not torch.ops.aten.index
        return operation(*arguments, **(options or {}))


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _elements(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())
