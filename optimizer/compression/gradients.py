"""Gradients of networks whose own code stands in their way: it changes values in place, or computes without
them."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.overrides import TorchFunctionMode

from optimizer.errors import InputError, first_line


class _Everywhere(TorchFunctionMode):
    """What a model's own code does without gradients (``torch.no_grad``) has them too."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch._C._set_grad_enabled:
            return None
        return function(*arguments, **(options or {}))


@contextmanager
def gradients(in_place: bool, everywhere: bool) -> Iterator[None]:
    """A block for a forward and a backward pass. Values may change ``in_place`` that the backward pass needs
    as they were; and what the model's own code does without gradients has them too, ``everywhere``."""
    with ExitStack() as stack:
        if in_place:
            stack.enter_context(allow_mutation_on_saved_tensors())
        if everywhere:
            stack.enter_context(_Everywhere())
        yield


def gradient_context(model: nn.Module, image: Tensor) -> Callable[[], AbstractContextManager[None]]:
    """The plainest :func:`gradients` that ``model`` learns by, tried on ``image`` ``[1, ...]``; it stays as
    it was. Raises InputError where there is none."""
    copied = trainable(model)
    reason = "its code keeps gradients from its outputs"
    for in_place, everywhere in product((False, True), repeat=2):
        context = partial(gradients, in_place, everywhere)
        try:
            with torch.enable_grad(), context():
                outputs = copied(image)
                if outputs.requires_grad:
                    outputs.sum().backward()
                    return context
        except RuntimeError as error:
            reason = first_line(error)
    raise InputError(f"this network can't learn ({reason}): leave best effort and fine-tuning out")


def trainable(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode of which all parameters that can have gradients do."""
    with torch.inference_mode(False):
        copied = copy.deepcopy(model).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return copied
