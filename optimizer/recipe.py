"""What to do to a model, as plain frozen data: validated at the door, hashable, JSON in and out."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import msgspec

from optimizer.errors import InputError, unknown

SCOPES = ("layer", "global")
GRANULARITIES = ("tensor", "channel")
RANGES = ("absmax", "mse")
WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8, 16, 32)
ACTIVATION_BITS = (8, 32)


def _one_of(kind: str, value: object, known: Iterable[object]) -> None:
    if value not in known:
        raise unknown(kind, value, known)


@dataclass(frozen=True, slots=True)
class PruneSpec:
    """Which weights go: those with ``|w| <= threshold``, or the given share of them.

    ``scope`` says whether the share holds in each layer or over the whole model. At most one of
    ``sparsity`` (0 to 1, the share removed) and ``threshold`` (in units of the weights) is given; with
    neither, nothing is pruned.
    """

    method: str = "magnitude"
    sparsity: float | None = None
    threshold: float | None = None
    scope: str = "global"

    def __post_init__(self) -> None:
        _one_of("scope", self.scope, SCOPES)
        if self.sparsity is not None and self.threshold is not None:
            raise InputError("sparsity and threshold are two ways to say one thing: give only one of them")
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise InputError(
                f"sparsity {self.sparsity:g} is out of range: it is the share of weights removed, "
                "from 0 to below 1 (0.5 removes half)"
            )
        if self.threshold is not None and not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise InputError(
                f"threshold {self.threshold:g} is not allowed: give a finite number of at least 0, "
                "in units of the weights (0.05 removes every weight with |w| <= 0.05)"
            )

    @property
    def active(self) -> bool:
        """Whether any weight can be removed."""
        return bool(self.sparsity) or self.threshold is not None


@dataclass(frozen=True, slots=True)
class QuantizeSpec:
    """How numbers are rounded. 32 bits leave them alone, 16 is IEEE half, 2 to 8 is an integer grid."""

    method: str = "nearest"
    weight_bits: int = 32
    activation_bits: int = 32
    granularity: str = "channel"
    symmetric: bool = True
    range: str = "absmax"

    def __post_init__(self) -> None:
        _one_of("weight bits", self.weight_bits, WEIGHT_BITS)
        _one_of("activation bits", self.activation_bits, ACTIVATION_BITS)
        _one_of("granularity", self.granularity, GRANULARITIES)
        _one_of("range", self.range, RANGES)

    @property
    def integer(self) -> bool:
        """Whether weights lie on an integer grid."""
        return self.weight_bits <= 8


@dataclass(frozen=True, slots=True)
class Recipe:
    """A prune spec and a quantize spec: prune first, then quantize on the fixed mask."""

    prune: PruneSpec = field(default_factory=PruneSpec)
    quantize: QuantizeSpec = field(default_factory=QuantizeSpec)

    @property
    def identity(self) -> bool:
        """Whether the recipe leaves the model as it is (the baseline's recipe)."""
        return (
            not self.prune.active and self.quantize.weight_bits == 32 and self.quantize.activation_bits == 32
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read back what :meth:`to_dict` gives; a missing field takes its default, an unknown one is refused.

        Raises InputError.
        """
        if not isinstance(data, dict):
            raise InputError(f"a recipe is a JSON object, not {type(data).__name__}")
        _refuse_unknown_keys("recipe", data, cls)
        for part, kind in (("prune", PruneSpec), ("quantize", QuantizeSpec)):
            if isinstance(data.get(part), dict):
                _refuse_unknown_keys(part, data[part], kind)
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise InputError(f"not a recipe: {error}") from error

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse a recipe. Raises InputError when the text is not JSON or not a recipe."""
        try:
            return cls.from_dict(msgspec.json.decode(text))
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise InputError(f"not a recipe: {error}") from error

    def describe(self) -> str:
        """The recipe in words, as charts and tables show it.

        >>> Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=4)).describe()
        '50 % of all weights pruned · 4-bit weights'
        """
        if self.identity:
            return "uncompressed"
        return " · ".join([*_describe_prune(self.prune), *_describe_quantize(self.quantize)])


def _refuse_unknown_keys(where: str, data: dict[str, Any], kind: type) -> None:
    known = [f.name for f in fields(kind)]
    for key in data:
        if key not in known:
            raise unknown(f"key in {where}", key, known)


def _describe_prune(prune: PruneSpec) -> list[str]:
    if prune.threshold is not None:
        return [f"|w| ≤ {prune.threshold:.3g} pruned"]
    if prune.sparsity:
        what = "each layer" if prune.scope == "layer" else "all weights"
        return [f"{100 * prune.sparsity:.4g} % of {what} pruned"]
    return []


def _describe_quantize(quantize: QuantizeSpec) -> list[str]:
    words = []
    if quantize.weight_bits < 32:
        words.append(f"{quantize.weight_bits}-bit weights")
    if quantize.integer:
        details = [
            "per tensor" if quantize.granularity == "tensor" else "",
            "" if quantize.symmetric else "asymmetric",
            "least-squares range" if quantize.range == "mse" else "",
        ]
        if any(details):
            words[-1] += f" ({', '.join(filter(None, details))})"
    if quantize.activation_bits < 32:
        words.append(f"{quantize.activation_bits}-bit activations")
    return words
