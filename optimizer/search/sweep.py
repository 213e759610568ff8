"""Many recipes on one model: a grid, and an iterator of results or recorded failures."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

from optimizer.analysis.screening import ScreenedOut
from optimizer.analysis.summary import describe_asked_images
from optimizer.analysis.view import Failed, Screened
from optimizer.data.selection import recent_fingerprint
from optimizer.errors import InputError, words_of
from optimizer.methods.engines import engine_info
from optimizer.recipe import WEIGHT_BITS, Recipe
from optimizer.records import Request, Result, decode
from optimizer.store.keys import key_under, weights_version

STARTER_SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9)
STARTER_BITS = (32, 8, 4, 3)
SPARSITY_STEP = 0.01
WORK_AHEAD_VARIABLE = "PARETOSCOPE_WORK_AHEAD"
"""Environment variable: 0 where a page measures nothing that nobody has asked for."""
MAX_GRID = 2_000


@dataclass(frozen=True, slots=True)
class Grid:
    """A question of the ledger: every sparsity with every bit width, on each of the engines, all else as in
    ``base``, whose recipe says how to prune and to round. ``on`` names the processor that it is timed on,
    where that is another machine's. With ``frontier_only`` what can't be on the frontier is left once that is
    known (:mod:`optimizer.analysis.screening`)."""

    base: Request
    sparsities: tuple[float, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    engines: tuple[str, ...]
    on: str = ""
    frontier_only: bool = False

    def beside(self, before: "Grid") -> "Grid":
        """This one, with all that ``before`` asked for."""
        return replace(
            self,
            sparsities=tuple(sorted({*before.sparsities, *self.sparsities})),
            weight_bits=tuple(sorted({*before.weight_bits, *self.weight_bits}, reverse=True)),
            activation_bits=tuple(sorted({*before.activation_bits, *self.activation_bits}, reverse=True)),
            engines=tuple(dict.fromkeys((*before.engines, *self.engines))),
            on=before.on,
            frontier_only=before.frontier_only,
        )

    def requests(self) -> list[Request]:
        """Raises what :func:`grid` does, and InputError for more than MAX_GRID."""
        if not self.engines or not self.activation_bits:
            raise InputError("a sweep needs at least one engine and one width of activations")
        bases = [
            replace(
                self.base,
                engine=engine,
                recipe=replace(
                    self.base.recipe, quantize=replace(self.base.recipe.quantize, activation_bits=bits)
                ),
            )
            for engine in self.engines
            for bits in self.activation_bits
        ]
        if len(bases) * len(self.sparsities) * len(self.weight_bits) > MAX_GRID:
            raise InputError(
                f"{len(self.sparsities)} sparsities x {len(self.weight_bits)} bit widths, "
                f"{len(bases)} times, are more than {MAX_GRID:,} configurations: take fewer steps"
            )
        requests = [request for base in bases for request in grid(base, self.sparsities, self.weight_bits)]
        return sorted(requests, key=self.sort_key) if self.frontier_only else requests

    def sort_key(self, request: Request) -> tuple[float, ...]:
        """The order if only the frontier counts: first what beats others, the fast and small."""
        recipe = request.recipe
        bits = recipe.quantize.average_bits or recipe.quantize.weight_bits
        left = 1 - recipe.prune.share
        packed = min(bits, 1 + left * bits)  # a weight, with a bitmap of those that are left
        engine = self.engines.index(request.engine)
        return engine, not recipe.identity, recipe.quantize.activation_bits, packed, left


def describe_asked(asked: bytes) -> str:
    """What a sweep of the ledger asks for, in a line."""
    try:
        grid = decode(asked, Grid)
    except InputError:
        return "asked for by another version"
    pruner, engines = grid.base.recipe.prune.pruner, (engine_info(name).label for name in grid.engines)
    shares = ", ".join(f"{100 * share:.4g}" for share in sorted(set(grid.sparsities)))
    bits = ", ".join(map(str, sorted(set(grid.weight_bits), reverse=True)))
    activations = ", ".join(map(str, sorted(set(grid.activation_bits), reverse=True)))
    rounded = "" if activations == "32" else f", activations at {activations} bits"
    timed = f", timed on {grid.on}" if grid.on else ""
    engine = ", ".join(engines)
    only = ", the frontier only" if grid.frontier_only else ""
    images = describe_asked_images(grid.base.data)
    what = f"{pruner.label}, {shares} % at {bits} bits{rounded}{timed}{only}"
    return f"{grid.base.model} on {engine}, {images}: {what}"


def is_frontier_only(asked: bytes) -> bool:
    """Whether a sweep of the ledger asks for its frontier alone."""
    try:
        return decode(asked, Grid).frontier_only
    except InputError:  # a question, or of another version
        return False


def grid_keys(asked: bytes) -> Sequence[str]:
    """The keys that the configurations of a sweep of the ledger have today. (Its items keep those that they
    were measured under; images and weights may be others by now.)"""
    base = decode(asked, Grid).base
    return _grid_keys(asked, weights_version(base.model), recent_fingerprint(base.data))


@lru_cache(maxsize=8)
def _grid_keys(asked: bytes, weights: str, files: str) -> Sequence[str]:
    """Kept, since each of thousands of items is screened against the keys of the whole grid."""
    return tuple(key_under(request, weights, files) for request in decode(asked, Grid).requests())


def grid(base: Request, sparsities: Sequence[float], weight_bits: Sequence[int]) -> list[Request]:
    """Every sparsity with every bit width, all else as in ``base``; the baseline's own recipe comes first.

    Raises InputError for an empty axis and a value out of range.
    """
    if not sparsities or not weight_bits:
        raise InputError("a sweep needs at least one sparsity and one bit width, such as 0,0.5 and 32,8")
    requests = [
        replace(base, recipe=_recipe(base.recipe, sparsity, bits))
        for bits, sparsity in product(sorted(set(weight_bits), reverse=True), sorted(set(sparsities)))
    ]
    return sorted(requests, key=lambda request: not request.recipe.identity)


def any_amount(recipe: Recipe) -> Recipe:
    """The same way of pruning and rounding for every sparsity: N:M patterns know only one."""
    if recipe.prune.fixed_sparsity is None:
        return recipe
    return replace(recipe, prune=replace(recipe.prune, pattern="unstructured"))


def works_ahead() -> bool:
    """Whether the positions beside one are measured while its visitor looks."""
    return os.environ.get(WORK_AHEAD_VARIABLE) != "0"


def neighbours(request: Request) -> list[Request]:
    """The positions a step of sparsity or of weight bits away, and that with activations of 8 bits in place
    of 32 or the other way round, all else the same; none where a step takes long (what learns, another
    network)."""
    recipe = request.recipe
    prune, quantize = recipe.prune, recipe.quantize
    if recipe.learns or prune.shrinks or recipe.layers:
        return []
    found = []
    if prune.sparsity is not None and prune.fixed_sparsity is None:
        steps = (round(prune.sparsity + step, 9) for step in (SPARSITY_STEP, -SPARSITY_STEP))
        found += [replace(recipe, prune=replace(prune, sparsity=one)) for one in steps if 0 < one < 1]
    if quantize.average_bits is None:
        index = WEIGHT_BITS.index(quantize.weight_bits)
        near = [WEIGHT_BITS[one] for one in (index + 1, index - 1) if 0 <= one < len(WEIGHT_BITS)]
        found += [replace(recipe, quantize=quantize.at(bits)) for bits in near]
    if other := {32: 8, 8: 32}.get(quantize.activation_bits):  # the first of an engine and a model takes long
        found.append(replace(recipe, quantize=replace(quantize, activation_bits=other)))
    return [replace(request, recipe=one.canonical()) for one in found]


def _recipe(base: Recipe, sparsity: float, bits: int) -> Recipe:
    """``base`` with another amount of pruning and other bits. Raises InputError for a share that its pattern
    refuses."""
    if not sparsity:
        prune = replace(base.prune, sparsity=None, threshold=None, pattern="unstructured")
    else:
        prune = replace(base.prune, sparsity=sparsity, threshold=None)
    return replace(base, prune=prune, quantize=base.quantize.at(bits)).canonical()


def sweep(
    requests: Iterable[Request], measure: Callable[[Request], Result]
) -> Iterator[Result | Failed | Screened]:
    """Measure one after the other. A configuration that fails, however, is recorded and the rest go on; so is
    one that was screened out."""
    for request in requests:
        try:
            result = measure(request)
        except ScreenedOut as out:
            yield Screened(request, str(out), out.scored)
        except Exception as error:  # engines raise what they like, such as RuntimeError for want of memory
            yield Failed(request, words_of(error))
        else:
            yield result
