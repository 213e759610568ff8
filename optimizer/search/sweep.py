"""Many recipes on one model: a grid, and an iterator of results or recorded failures."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product

from optimizer.analysis.view import Failed
from optimizer.errors import InputError, ParetoscopeError
from optimizer.recipe import WEIGHT_BITS, Recipe
from optimizer.records import Request, Result

STARTER_SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9)
STARTER_BITS = (32, 8, 4, 3)
SPARSITY_STEP = 0.01
WORK_AHEAD_VARIABLE = "PARETOSCOPE_WORK_AHEAD"
"""Environment variable: 0 where a page measures nothing that nobody has asked for."""
MAX_GRID = 2_000


def grid(base: Request, sparsities: Sequence[float], weight_bits: Sequence[int]) -> list[Request]:
    """Every sparsity with every bit width, all else as in ``base``; the baseline's own recipe comes first.

    Raises InputError for an empty axis, a value out of range, or more than 2,000 combinations.
    """
    if not sparsities or not weight_bits:
        raise InputError("a sweep needs at least one sparsity and one bit width, such as 0,0.5 and 32,8")
    if len(sparsities) * len(weight_bits) > MAX_GRID:
        raise InputError(
            f"{len(sparsities)} sparsities x {len(weight_bits)} bit widths are more than {MAX_GRID:,} "
            "configurations: take fewer steps"
        )
    requests = [
        replace(base, recipe=_recipe(base.recipe, sparsity, bits))
        for bits, sparsity in product(sorted(set(weight_bits), reverse=True), sorted(set(sparsities)))
    ]
    return sorted(requests, key=lambda request: not request.recipe.identity)


def works_ahead() -> bool:
    """Whether the positions beside one are measured while its visitor looks."""
    return os.environ.get(WORK_AHEAD_VARIABLE) != "0"


def neighbours(request: Request) -> list[Request]:
    """The positions a step of sparsity or of weight bits away, all else the same; none where a step takes
    long (fine-tuning, another network)."""
    recipe = request.recipe
    prune, quantize = recipe.prune, recipe.quantize
    if recipe.finetunes or prune.shrinks or prune.staged or recipe.layers:
        return []
    found = []
    if prune.sparsity is not None and prune.fixed_sparsity is None:
        steps = (round(prune.sparsity + step, 9) for step in (SPARSITY_STEP, -SPARSITY_STEP))
        found += [replace(recipe, prune=replace(prune, sparsity=one)) for one in steps if 0 < one < 1]
    if quantize.average_bits is None:
        index = WEIGHT_BITS.index(quantize.weight_bits)
        near = [WEIGHT_BITS[one] for one in (index + 1, index - 1) if 0 <= one < len(WEIGHT_BITS)]
        found += [replace(recipe, quantize=quantize.at(bits)) for bits in near]
    return [replace(request, recipe=one.canonical()) for one in found]


def _recipe(base: Recipe, sparsity: float, bits: int) -> Recipe:
    """``base`` with another amount of pruning and other bits. Raises InputError for a share that its pattern
    refuses."""
    if not sparsity:
        prune = replace(base.prune, sparsity=None, threshold=None, pattern="unstructured")
    else:
        prune = replace(base.prune, sparsity=sparsity, threshold=None)
    return replace(base, prune=prune, quantize=base.quantize.at(bits)).canonical()


def sweep(requests: Iterable[Request], measure: Callable[[Request], Result]) -> Iterator[Result | Failed]:
    """Measure one after the other. A configuration that fails, however, is recorded and the rest go on."""
    for request in requests:
        try:
            result = measure(request)
        except ParetoscopeError as error:
            yield Failed(request, str(error))
        except Exception as error:  # engines raise what they like, such as RuntimeError for want of memory
            yield Failed(request, f"{type(error).__name__}: {error}")
        else:
            yield result
