"""Inputs that a network is tried on: by checks, and by what converts it by running it.

They are the first that were given for it; without any, random ones if it answers those, else zeros, as what
takes tokens does. A module holds its own, so that copies of it, in other processes too, are tried on the
same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

HELD = "_paretoscope_examples"
MAX_HELD = 2
TOLERANCE = 1e-3
"""Of a model's outputs: more than rounding changes in them."""
PATCH = 16
"""Pixels to a side of what is of one colour in a smooth made-up image."""


class _Held:
    """Inputs ``[N, ...]``. A copy of their module has the same ones."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def __deepcopy__(self, memo: Any) -> "_Held":
        return self


def hold(module: nn.Module, shape: tuple[int, ...], given: Tensor | None = None) -> None:
    """Have ``module`` be tried on the first of the ``given`` inputs ``[N, *shape]``; without any finite one,
    on what :func:`examples` makes up."""
    forget(module)
    if given is not None and tuple(given.shape[1:]) == shape:
        given = given[given.flatten(1).isfinite().all(1)][:MAX_HELD]
    inputs = given if given is not None and len(given) else examples(module, shape, MAX_HELD)
    vars(module)[HELD] = _Held(inputs.detach().cpu().float().clone())


def is_held(module: nn.Module) -> bool:
    """Whether it has inputs of its own to be tried on."""
    return HELD in vars(module)


def forget(module: nn.Module) -> None:
    """Leave nothing of :func:`hold` in it."""
    vars(module).pop(HELD, None)


def examples(module: nn.Module, shape: tuple[int, ...], count: int = 1) -> Tensor:
    """``count`` inputs ``[count, *shape]``, the same each time: those that it holds in turns, else random
    ones, or zeros where it fails on these."""
    held = vars(module).get(HELD)
    if held is not None and tuple(held.inputs.shape[1:]) == tuple(shape):
        return _turns(held.inputs, count)
    return _turns(_made_up(module, shape), count)


def noise(module: nn.Module, shape: tuple[int, ...], count: int = 1) -> Tensor:
    """Random inputs, where values are to differ wherever they can: :func:`examples` if it fails on these."""
    random = _random(shape)
    return _turns(random, count) if _takes(module, random) else examples(module, shape, count)


def made_up_images(shape: tuple[int, ...], count: int) -> np.ndarray:
    """Noise from 0 to 1, normal noise, and what is smooth as photographs are, in turns: ``[count, C, H, W]``,
    the same each time."""
    random = np.random.default_rng(0)
    found = np.empty((count, *shape), np.float32)
    channels, height, width = shape
    for number, image in enumerate(found):
        if number % 4 == 0:
            image[:] = random.random(shape)
        elif number % 4 == 1:
            image[:] = random.normal(size=shape)
        else:
            coarse = random.normal(size=(channels, -(-height // PATCH), -(-width // PATCH)))
            image[:] = np.kron(coarse, np.ones((1, PATCH, PATCH)))[:, :height, :width]
    return found


@contextmanager
def same_draws(seed: int = 0) -> Iterator[None]:
    """In the block, what a module draws is the same each time; after it, random numbers go on as before."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)  # of no other device: those are not put back
        yield


@torch.inference_mode()
def answers(
    module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    """All that it gives for one of its :func:`examples`, the same each time; by ``seed`` where it draws."""
    inputs = examples(module, shape).to(dtype)
    with same_draws(seed):
        given = module(inputs)
    return [one for one in tree_leaves(given) if isinstance(one, Tensor)]


def _turns(inputs: Tensor, count: int) -> Tensor:
    return inputs[torch.arange(count) % len(inputs)]  # a copy, whatever is written into it


def _made_up(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    random = _random(shape)
    return random if _takes(module, random) else torch.zeros_like(random)


def _random(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(MAX_HELD, *shape, generator=torch.Generator().manual_seed(0))


def _takes(module: nn.Module, inputs: Tensor) -> bool:
    kinds = (one.dtype for one in module.parameters() if one.is_floating_point())
    dtype = next(kinds, inputs.dtype)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            module(inputs.to(dtype, copy=True))
    except Exception:  # a model's own code: anything may come out of it
        return False
    return True


def agree(some: list[Tensor], others: list[Tensor], tolerance: float = TOLERANCE) -> bool:
    """Whether two models' :func:`answers` differ by no more than rounding."""
    return all(
        torch.equal(one.isfinite(), other.isfinite())  # logits of what is masked out are none
        and torch.linalg.norm(_finite(one) - _finite(other)) <= tolerance * torch.linalg.norm(_finite(one))
        for one, other in zip(some, others, strict=True)
    )


def _finite(values: Tensor) -> Tensor:
    return values.float().nan_to_num(0, 0, 0)
