"""Where a search looks: the choices on each axis, and the request that they make."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from optimizer.errors import InputError, number, unknown, whole_number
from optimizer.methods.engines import ENGINES
from optimizer.methods.pruners import PRUNERS
from optimizer.methods.quantizers import QUANTIZERS
from optimizer.recipe import ACTIVATION_BITS, PRECISIONS, WEIGHT_BITS, Recipe
from optimizer.records import LATER, Request, check_threads

Value = str | float | int
Position = dict[str, Value]
"""One choice on each axis."""

UNPRUNED = "none"
NUMBERS = ("threads", "sparsity", "weight_bits", "activation_bits")
"""Axes that have them."""
MAX_POSITIONS = 200_000


def several(given: object) -> tuple[Any, ...]:
    """Choices, or one that was given alone."""
    return tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)


@dataclass(frozen=True, slots=True)
class Space:
    """Choices, in the order in which a grid goes through them; one alone needs no brackets. ``pruning`` has
    methods, or ``none``; ``sparsity`` is of those. Engines without integer kernels compute on activations as
    they are.

    Raises InputError for an axis without choices, an unknown one, text in place of a number, what is no
    number of threads, or too many positions in all.
    """

    engine: tuple[str, ...] = tuple(name for name, one in ENGINES.items() if one.int8 or one.skips_zeros)
    threads: tuple[int, ...] = (0,)
    precision: tuple[str, ...] = ("f32",)
    pruning: tuple[str, ...] = (UNPRUNED, "compensated", "channels")
    sparsity: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(1, 19))
    weight_bits: tuple[int, ...] = (32, 8, 6, 5, 4, 3)
    activation_bits: tuple[int, ...] = (32, 8)
    rounding: tuple[str, ...] = ("compensated", "nearest")

    def __post_init__(self) -> None:
        for one in fields(self):
            choices = several(getattr(self, one.name))
            if one.name in NUMBERS:
                taken = whole_number if one.name == "threads" else number
                choices = tuple(taken(one.name, choice) for choice in choices)
            object.__setattr__(self, one.name, choices)
        known: dict[str, Collection[object]] = {
            "engine": ENGINES,
            "precision": PRECISIONS,
            "pruning": (UNPRUNED, *PRUNERS),
            "weight_bits": WEIGHT_BITS,
            "activation_bits": ACTIVATION_BITS,
            "rounding": QUANTIZERS,
        }
        for name, choices in self.axes.items():
            if not choices:
                raise InputError(f"{name.replace('_', ' ')} has nothing to choose from: give at least one")
            for choice in choices if name in known else ():
                if choice not in known[name]:
                    raise unknown(name.replace("_", " "), choice, known[name])
        for threads in self.threads:
            check_threads(threads)
        for share in self.sparsity:
            if not 0 < share < 1:
                raise InputError(f"sparsity {share:g} is out of range: between 0 and 1, such as 0.5")
        if self.positions > MAX_POSITIONS:
            raise InputError(
                f"{self.positions:,} positions are too many to search: give at most {MAX_POSITIONS:,}, with "
                "fewer choices on an axis"
            )

    @property
    def axes(self) -> dict[str, tuple[Value, ...]]:
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @property
    def positions(self) -> int:
        """How many there are, with those that come to the same recipe."""
        return math.prod(map(len, self.axes.values()))

    def all(self) -> list[Position]:
        axes = self.axes
        return [dict(zip(axes, choices, strict=True)) for choices in product(*axes.values())]

    def likely(self) -> list[Position]:
        """Where to begin, of what the space has: int8 kernels, first without calibration statistics, which
        may take longer than there is time; a little and much of each way of pruning, few bits, and the
        uncompressed model, on each engine."""
        int8: dict[str, Value] = {"pruning": UNPRUNED, "weight_bits": 8, "activation_bits": 8}
        without_data = [name for name in self.rounding if not QUANTIZERS[name].needs_data][:1]
        wanted: list[dict[str, Value]] = [*(int8 | {"rounding": name} for name in without_data), int8]
        for pruning in (one for one in self.pruning if one != UNPRUNED):
            shares = (0.1, 0.3) if PRUNERS[pruning].shrinks else (0.5, 0.8)
            wanted += [
                {"pruning": pruning, "sparsity": share, "weight_bits": bits, "activation_bits": bits}
                for bits, share in product((8, 32), shares)
            ]
        wanted += [{"pruning": UNPRUNED, "weight_bits": bits, "activation_bits": 32} for bits in (4, 32)]
        first = {name: choices[0] for name, choices in self.axes.items()}
        return [
            first | {"engine": engine} | one
            for engine in self.engine
            for one in wanted
            if all(value in self.axes[name] for name, value in one.items())
        ]

    def request(self, base: Request, position: Position) -> Request:
        """All else as in ``base``. What comes to the same recipe comes to an equal request."""
        engine, pruning = str(position["engine"]), str(position["pruning"])
        pruned = pruning != UNPRUNED
        recipe = Recipe.of(
            sparsity=float(position["sparsity"]) if pruned else None,
            weight_bits=int(position["weight_bits"]),
            activation_bits=int(position["activation_bits"]) if ENGINES[engine].int8 else 32,
            pruning=pruning if pruned else None,
            rounding=str(position["rounding"]) if "rounding" in position else None,  # older ones have none
        )
        quantize = replace(recipe.quantize, precision=str(position["precision"]))
        settings = replace(base.settings, threads=int(position["threads"]))
        return replace(
            base, recipe=replace(recipe, quantize=quantize).canonical(), engine=engine, settings=settings
        )


LATER[Space] = {"rounding": (("compensated",), {})}


def subspace(space: Space, given: Mapping[str, Value | Sequence[Value] | None]) -> Space:
    """With other choices on the axes that are given."""
    changed: dict[str, Any] = {name: choices for name, choices in given.items() if choices is not None}
    return replace(space, **changed)
