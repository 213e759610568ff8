"""Modules that evaluation never runs, such as a classifier that helps in training only: what is served has
none of their weights, so nothing is to be pruned, counted or kept of them."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from optimizer.formats import listed
from optimizer.model.examples import answers, examples, same_draws
from optimizer.model.layers import hooked
from optimizer.model.operations import Operations
from optimizer.system.threads import thread_count

LOOKING = (Tensor.tolist, Tensor.numpy, Tensor.__array__)
"""Calls by which a model's code looks at values, beside operations that are tagged as such."""
MASKS = (torch.bool, torch.uint8)
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
    """Whether a forward in evaluation mode looks at values that follow from its input, so that what it runs
    may depend on them; also where it fails."""
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
    decides = _Decides(reads)
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
            reads.follow([one, two])
            with decides, reads:
                module(one)
            with suppress(Exception), decides, reads:  # some take one at a time
                module(two)
    except Exception:  # the model's own code: anything may come out of it
        return None
    return None if reads.values_decide else (ran, reads.places)


class _Decides(TorchFunctionMode):
    """Tells ``reads`` of looks at values that are no operations."""

    def __init__(self, reads: "_Reads") -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads.values_decide |= func in LOOKING and self.reads.follows(args[0])
        return func(*args, **(kwargs or {}))


class _Reads(Operations):
    """The places in memory of all that operations read, and whether values that follow from the input, or are
    drawn, decided on anything: a mask that the model holds is the same for every input."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()
        self.values_decide = False
        self.following: set[StorageWeakRef] = set()  # of which no other takes the place once they are gone

    def follow(self, tensors: Iterable[Tensor]) -> None:
        self.following |= {StorageWeakRef(one.untyped_storage()) for one in tensors}

    def follows(self, tensor: Tensor) -> bool:
        return StorageWeakRef(tensor.untyped_storage()) in self.following

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        tensors = _tensors((arguments, options))
        self.places |= {*map(_place, tensors)}
        if any(tag in operation.tags for tag in VALUES_DECIDE):
            # Of an index that is numbers, its own shape decides.
            index = operation.overloadpacket is torch.ops.aten.index
            deciding = [one for one in tensors[1:] if one.dtype in MASKS] if index else tensors
            self.values_decide |= any(map(self.follows, deciding))
        answer = operation(*arguments, **(options or {}))
        if torch.Tag.nondeterministic_seeded in operation.tags or any(map(self.follows, tensors)):
            self.follow(_tensors(answer))
            if operation._schema.is_mutable:
                self.follow(tensors)
        return answer


def _tensors(values: Any) -> list[Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, Tensor)]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _elements(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())
