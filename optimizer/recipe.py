"""What to do to a model, as plain frozen data: validated at the door, hashable, JSON in and out."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

import msgspec

from optimizer.errors import InputError, unknown

PRUNING = ("magnitude", "compensated", "channels")
SNAPS = (1, 8, 16)
ALLOCATIONS = ("uniform", "global", "normalised", "measured")
PATTERNS = ("unstructured", "2:4", "4:8", "1x4", "4x4", "16x1")
EFFORTS = ("fast", "best")
ROUNDING = ("nearest", "compensated")
GRANULARITIES = ("tensor", "channel", "group")
RANGES = ("absmax", "mse", "percentile")
WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8, 16, 32)
MAX_FINETUNE_STEPS = 2_000
"""A step takes 0.02 to 0.06 s for thumbnails and about 1 s for photographs on two cores: a minute or two, and
half an hour to an hour. 500 steps brought a network of photographs as far as it came."""
STEPS_A_SECOND = 5
"""How a budget in seconds, as recipes, links and commands once had it, is read: between the 20 to 50 steps
that thumbnails take in a second and the one of photographs."""
MAX_OVERRIDES = 1_000
MAX_JSON_BYTES = 256 * 1024
"""Of a recipe's text: room for that many overrides of layers with long names."""
ACTIVATION_BITS = (2, 3, 4, 5, 6, 7, 8, 32)
PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
"""What layers may compute in where they have no integer kernels, and what it is called."""


def _one_of(kind: str, value: object, known: Iterable[object]) -> None:
    if value not in known:
        raise unknown(kind, value, known)


@dataclass(frozen=True, slots=True)
class PruneSpec:
    """Which weights go: those with ``|w| <= threshold``, or the given share of them.

    At most one of ``sparsity`` (0 to 1, the share removed) and ``threshold`` (in units of the weights) is
    given; with neither, nothing is pruned. ``allocation`` shares a sparsity out: the same in each layer, by
    magnitude over the whole model, the same relative to each layer's root mean square, or by what each
    layer's weights were measured to be worth.

    ``compensated`` chooses by second-order cost and refits the weights that stay, on calibration images; at
    effort ``best`` it also searches for a better choice. Patterns ``N:M`` keep N of each M inputs in a row;
    those with an x remove blocks of outputs x inputs whole.

    ``channels`` removes that share of the channels that can go, so that a smaller network is left; in the
    order of their magnitude, the same share everywhere, or with a measured allocation by what the outputs
    lose, the rest refitted. ``snap`` rounds what is left to multiples that vector units like.

    ``match`` gives layers' outputs the mean and variance back that they had, where that helps: what taking
    batch norm's statistics anew does. Compensated pruning keeps them by itself.
    """

    method: str = "magnitude"
    sparsity: float | None = None
    threshold: float | None = None
    allocation: str = "global"
    pattern: str = "unstructured"
    effort: str = "fast"
    snap: int = 1
    match: bool = False

    def __post_init__(self) -> None:
        _one_of("snap", self.snap, SNAPS)
        _one_of("pruning method", self.method, PRUNING)
        _one_of("allocation", self.allocation, ALLOCATIONS)
        _one_of("pattern", self.pattern, PATTERNS)
        _one_of("effort", self.effort, EFFORTS)
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
        if self.method == "channels" and (self.threshold is not None or self.pattern != "unstructured"):
            raise InputError("channels go whole: give a sparsity, and neither a threshold nor a pattern")
        if self.threshold is not None and self.pattern != "unstructured":
            raise InputError(
                f"a threshold looks at one weight at a time: give a sparsity with pattern {self.pattern}, or "
                "leave the pattern out"
            )
        fixed = self.fixed_sparsity
        if fixed is not None and self.sparsity not in (None, fixed):
            raise InputError(
                f"sparsity {self.sparsity:g} does not go with pattern {self.pattern}, which removes "
                f"{100 * fixed:g} % of the layers it fits: leave the sparsity out, or "
                "take pattern unstructured"
            )

    @property
    def fixed_sparsity(self) -> float | None:
        """The share that an ``N:M`` pattern removes; None for the patterns that leave it open."""
        kept, colon, of = self.pattern.partition(":")
        return 1 - int(kept) / int(of) if colon else None

    @property
    def share(self) -> float:
        """The share to remove, by sparsity or by pattern; 0 with a threshold."""
        asked = self.fixed_sparsity if self.sparsity is None else self.sparsity
        return 0.0 if asked is None else asked

    @property
    def active(self) -> bool:
        """Whether any weight can be removed."""
        return bool(self.share) or self.threshold is not None

    @property
    def needs_data(self) -> bool:
        """Whether it works from calibration images."""
        shared_out = self.allocation == "measured" and self.threshold is None and not self.fixed_sparsity
        return self.active and (self.method in ("compensated", "channels") or shared_out)

    @property
    def matches(self) -> bool:
        """Whether outputs are matched, and not already kept by the method."""
        return self.match and self.active and self.method != "compensated"

    @property
    def shrinks(self) -> bool:
        """Whether a smaller network comes of it."""
        return self.method == "channels" and self.active


def best_grid(method: str, weight_bits: float) -> bool:
    """Whether a symmetric grid is the better default.

    Compensated rounding finds room for a zero point below 8 bits; at 8 it gains nothing and keeps int8
    kernels from being used.
    """
    return method == "nearest" or weight_bits >= 8


@dataclass(frozen=True, slots=True)
class QuantizeSpec:
    """How numbers are rounded. 32 bits leave them alone, 16 is IEEE half, 2 to 8 is an integer grid.

    ``average_bits`` in the place of ``weight_bits`` gives each layer the width that its measured effect
    deserves, 2 to 8, with so many bits a weight over the whole model. ``compensated`` lets the weights that
    are yet to be rounded make up for those that were, on calibration images.

    ``equalise`` gives channels one range in the layer that makes them and the one that reads, where nothing
    but ReLU and pooling stands between; for rounding to nearest.

    ``precision`` is what the engine computes in, outside of integer kernels.
    """

    method: str = "nearest"
    weight_bits: int = 32
    average_bits: float | None = None
    activation_bits: int = 32
    granularity: str = "channel"
    symmetric: bool = True
    range: str = "absmax"
    precision: str = "f32"
    equalise: bool = False

    def __post_init__(self) -> None:
        _one_of("rounding", self.method, ROUNDING)
        _one_of("weight bits", self.weight_bits, WEIGHT_BITS)
        _one_of("activation bits", self.activation_bits, ACTIVATION_BITS)
        _one_of("granularity", self.granularity, GRANULARITIES)
        _one_of("range", self.range, RANGES)
        _one_of("precision", self.precision, PRECISIONS)
        if self.average_bits is None:
            return
        if not 2 <= self.average_bits <= 8:
            raise InputError(
                f"{self.average_bits:g} bits on average are out of range: layers take 2 to 8 bits, so give a "
                "number from 2 to 8"
            )
        if self.weight_bits != 32:
            raise InputError(
                f"weight bits {self.weight_bits} and {self.average_bits:g} bits on average are two ways to "
                "say one thing: give only one of them"
            )

    @property
    def bits(self) -> float:
        """Bits a weight, on average where layers differ."""
        return float(self.weight_bits) if self.average_bits is None else self.average_bits

    @property
    def integer(self) -> bool:
        """Whether weights lie on an integer grid."""
        return self.bits <= 8

    @property
    def equalises(self) -> bool:
        """Whether channels are equalised before they are rounded."""
        return self.equalise and self.integer and self.method == "nearest"

    @property
    def automatic(self) -> bool:
        """Whether the grid is symmetric or not as is best for its method and width."""
        return self.symmetric == best_grid(self.method, self.bits)

    def at(self, weight_bits: int) -> "QuantizeSpec":
        """The same way of rounding at another width; what was best for the old one becomes best for the
        new."""
        symmetric = best_grid(self.method, weight_bits) if self.automatic else self.symmetric
        return replace(self, weight_bits=weight_bits, average_bits=None, symmetric=symmetric)

    @property
    def needs_data(self) -> bool:
        """Whether weights are rounded by what calibration images say."""
        return self.integer and (self.method == "compensated" or self.average_bits is not None)


@dataclass(frozen=True, slots=True)
class Override:
    """What one layer, named as in the Layers page, has to itself. None is "as the recipe says"."""

    layer: str
    sparsity: float | None = None
    weight_bits: int | None = None
    pruning: str | None = None
    rounding: str | None = None

    def __post_init__(self) -> None:
        if self.pruning == "channels":
            raise InputError("channels go from the network, not from one layer: override with another method")
        self.prune(PruneSpec())
        self.quantize(QuantizeSpec())

    def prune(self, spec: PruneSpec) -> PruneSpec:
        """``spec`` as it holds for this layer alone."""
        changed = replace(spec, method=spec.method if self.pruning is None else self.pruning)
        if self.sparsity is None:
            return changed
        return replace(
            changed, sparsity=self.sparsity, threshold=None, allocation="uniform", pattern="unstructured"
        )

    def quantize(self, spec: QuantizeSpec) -> QuantizeSpec:
        """``spec`` as it holds for this layer alone."""
        changed = replace(spec, method=spec.method if self.rounding is None else self.rounding)
        if self.weight_bits is None:
            return changed
        return replace(changed, weight_bits=self.weight_bits, average_bits=None)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A prune spec and a quantize spec, in that order: quantized on the fixed mask. And layers apart.

    ``finetune_steps`` are made between the two: fine-tuning that teaches the pruned network to answer as the
    dense one.
    """

    prune: PruneSpec = field(default_factory=PruneSpec)
    quantize: QuantizeSpec = field(default_factory=QuantizeSpec)
    layers: tuple[Override, ...] = ()
    finetune_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.finetune_steps <= MAX_FINETUNE_STEPS:
            raise InputError(
                f"{self.finetune_steps:,} fine-tuning steps are not allowed: give 0 (none) to "
                f"{MAX_FINETUNE_STEPS:,}"
            )
        if len(self.layers) > MAX_OVERRIDES:
            raise InputError(
                f"{len(self.layers):,} layer overrides are too many: give at most {MAX_OVERRIDES:,}, and say "
                "what holds for the other layers in the recipe itself"
            )
        for name, times in Counter(override.layer for override in self.layers).items():
            if times > 1:
                raise InputError(
                    f"layer {name} is overridden {times} times: give all of its settings in one override"
                )

    @property
    def identity(self) -> bool:
        """Whether the recipe leaves the model as it is (the baseline's recipe)."""
        pruned = any(spec.active for spec in self.prune_specs)
        rounded = any(spec.integer or spec.weight_bits < 32 for spec in self.quantize_specs)
        computed = self.quantize.activation_bits == 32 and self.quantize.precision == "f32"
        return not pruned and not rounded and computed

    @property
    def finetunes(self) -> bool:
        """Whether anything is fine-tuned: what was not pruned has nothing to recover from."""
        return self.finetune_steps > 0 and any(spec.active for spec in self.prune_specs)

    @property
    def matches(self) -> bool:
        """Whether the pruned network is run on calibration images to match its outputs."""
        return any(spec.matches for spec in self.prune_specs)

    @property
    def needs_data(self) -> bool:
        """Whether the weights depend on calibration images."""
        pruned = any(spec.needs_data for spec in self.prune_specs)
        return (
            pruned or self.matches or self.finetunes or any(spec.needs_data for spec in self.quantize_specs)
        )

    @property
    def prune_specs(self) -> tuple[PruneSpec, ...]:
        """The recipe's own, then those of its overrides, each once."""
        own = {(override.pruning, override.sparsity): override for override in self.layers}
        return (self.prune, *(override.prune(self.prune) for override in own.values()))

    @property
    def quantize_specs(self) -> tuple[QuantizeSpec, ...]:
        """The recipe's own, then those of its overrides, each once."""
        own = {(override.rounding, override.weight_bits): override for override in self.layers}
        return (self.quantize, *(override.quantize(self.quantize) for override in own.values()))

    def prune_for(self, layers: Iterable[str]) -> dict[str, PruneSpec]:
        """What holds for each of these layers, by name."""
        own = {override.layer: override.prune(self.prune) for override in self.layers}
        return {layer: own.get(layer, self.prune) for layer in layers}

    def quantize_for(self, layers: Iterable[str]) -> dict[str, QuantizeSpec]:
        """What holds for each of these layers, by name."""
        own = {override.layer: override.quantize(self.quantize) for override in self.layers}
        return {layer: own.get(layer, self.quantize) for layer in layers}

    def canonical(self) -> "Recipe":
        """The same recipe with what makes no difference at its default, so that equal work has one key."""
        prune, quantize = self.prune, self.quantize
        if not prune.active and not self.layers:
            prune = PruneSpec()
        if prune.threshold is not None or prune.fixed_sparsity:
            prune = replace(prune, allocation="global", sparsity=None)
        if prune.method != "compensated":
            prune = replace(prune, effort="fast")
        if prune.method == "channels":
            by_effect = prune.allocation == "measured"
            prune = replace(prune, allocation="measured" if by_effect else "uniform")
        else:
            prune = replace(prune, snap=1)
        prune = replace(prune, match=prune.match and self.matches)
        if not any(spec.integer for spec in self.quantize_specs):
            quantize = QuantizeSpec(
                weight_bits=quantize.weight_bits,
                activation_bits=quantize.activation_bits,
                precision=quantize.precision,
            )
        equalise = any(spec.equalises for spec in self.quantize_specs)
        quantize = replace(quantize, equalise=equalise)
        finetune_steps = self.finetune_steps if self.finetunes else 0
        return replace(self, prune=prune, quantize=quantize, finetune_steps=finetune_steps)

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = msgspec.json.decode(self.to_json())
        return plain

    def differences(self) -> dict[str, Any]:
        """What :meth:`to_dict` gives without the fields at their defaults: :meth:`from_dict` reads it too."""
        changed: dict[str, Any] = _differences(self.to_dict(), Recipe().to_dict())
        return changed

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read back what :meth:`to_dict` gives; a missing field takes its default, an unknown one is refused.

        ``training_seconds``, as recipes once had it, is read by :func:`steps_of_seconds`. Raises InputError.
        """
        if not isinstance(data, dict):
            raise InputError(f"a recipe is a JSON object, not {type(data).__name__}")
        if EARLIER_BUDGET in data:
            data = _with_steps(data)
        _refuse_unknown_keys("recipe", data, cls)
        for part, kind in (("prune", PruneSpec), ("quantize", QuantizeSpec)):
            if isinstance(data.get(part), dict):
                _refuse_unknown_keys(part, data[part], kind)
        for override in data["layers"] if isinstance(data.get("layers"), list | tuple) else ():
            if isinstance(override, dict):
                _refuse_unknown_keys("layers", override, Override)
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise InputError(f"not a recipe: {error}") from error

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse a recipe. Raises InputError when the text is not JSON or not a recipe, or too long."""
        if len(text) > MAX_JSON_BYTES:
            raise InputError(
                f"a recipe of {len(text):,} characters is too long: give at most {MAX_JSON_BYTES:,}"
            )
        try:
            return cls.from_dict(msgspec.json.decode(text))
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise InputError(f"not a recipe: {error}") from error

    def describe(self, details: bool = True) -> str:
        """The recipe in words, as charts and tables show it; without ``details``, not how exactly.

        >>> Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=4)).describe()
        '50 % of all weights pruned · 4-bit weights'
        """
        if self.identity:
            return "uncompressed"
        parts = [
            *_describe_prune(self.prune),
            *([Phrase(f"fine-tuned for {self.finetune_steps:,} steps")] if self.finetunes else []),
            *_describe_quantize(self.quantize),
            *_describe_layers(self.layers),
        ]
        return " · ".join(part.words(details) for part in parts)


EARLIER_BUDGET = "training_seconds"


def steps_of_seconds(seconds: float) -> int:
    """The fine-tuning steps that a budget in ``seconds`` is read as: five a second, at most as many as are
    allowed, and at least one of any. Raises InputError for what is not a number of at least 0."""
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(
            f"{seconds:g} seconds of fine-tuning are not allowed: give a number of steps instead"
        )
    return min(MAX_FINETUNE_STEPS, math.ceil(STEPS_A_SECOND * seconds))


def _with_steps(data: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in data.items() if key != EARLIER_BUDGET}
    seconds = data[EARLIER_BUDGET]
    if "finetune_steps" in data:
        raise InputError(f"finetune_steps and {EARLIER_BUDGET} are two ways to say one thing: give the steps")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InputError(f"{EARLIER_BUDGET} {seconds!r} is not a number: give finetune_steps")
    return rest | {"finetune_steps": steps_of_seconds(seconds)}


@dataclass(frozen=True, slots=True)
class Preset:
    """A recipe to be found: the first of ``candidates`` that loses at most ``points`` of accuracy.

    They come from the one that gains most to the one that loses least.
    """

    label: str
    points: float
    candidates: tuple[Recipe, ...]


NORMAL = Recipe(PruneSpec("compensated", allocation="measured"), QuantizeSpec("compensated", range="mse"))
"""How the dashboard prunes and rounds unless it is told otherwise; as it stands it does neither."""


def _rounded(bits: int, activation_bits: int = 32, sparsity: float | None = None) -> Recipe:
    prune = replace(NORMAL.prune, sparsity=sparsity)
    quantize = replace(NORMAL.quantize.at(bits), activation_bits=activation_bits)
    return Recipe(prune, quantize).canonical()


def _mixed(bits: float) -> Recipe:
    quantize = replace(NORMAL.quantize, average_bits=bits, symmetric=best_grid("compensated", bits))
    return Recipe(NORMAL.prune, quantize).canonical()


_INT8 = tuple(_rounded(bits, 8) for bits in (4, 6, 8))
_HALF = Recipe(quantize=QuantizeSpec(weight_bits=16))
PRESETS = {
    "safe": Preset("At most 0.5 points lost", 0.5, (*_INT8[1:], _rounded(8), _HALF)),
    "balanced": Preset("At most 1 point lost, int8 kernels", 1.0, (*_INT8, _rounded(6), _rounded(8))),
    "small": Preset(
        "The smallest file, at most 3 points lost",
        3.0,
        (
            _rounded(3, sparsity=0.5),
            _rounded(4, sparsity=0.5),
            _mixed(3),
            _mixed(4),
            _rounded(4),
            _rounded(6),
        ),
    ),
    "fast": Preset("The lowest latency, at most 2 points lost", 2.0, (*_INT8, _HALF)),
}
"""For people in a hurry. Each is found on the user's own images (:mod:`optimizer.search.presets`)."""


def _refuse_unknown_keys(where: str, data: dict[str, Any], kind: type) -> None:
    known = [f.name for f in fields(kind)]
    for key in data:
        if key not in known:
            raise unknown(f"key in {where}", key, known)


SHARED_OUT = {
    "normalised": "relative to each layer's weights",
    "measured": "shared out by measured effect",
}


class Phrase(NamedTuple):
    """What a recipe does, in words, and how exactly."""

    what: str
    how: Sequence[str] = ()

    def words(self, details: bool) -> str:
        return f"{self.what} ({', '.join(self.how)})" if details and self.how else self.what


def _describe_prune(prune: PruneSpec) -> list[Phrase]:
    if not prune.active:
        return []
    how = []
    if prune.shrinks:
        how += ["by measured effect" if prune.allocation == "measured" else "by magnitude"]
        how += [f"snapped to {prune.snap}"] if prune.snap > 1 else []
        how += ["outputs matched"] if prune.matches else []
        return [Phrase(f"{100 * prune.share:.4g} % of channels removed", how)]
    if prune.threshold is not None:
        words = f"|w| ≤ {prune.threshold:.3g} pruned"
    elif prune.fixed_sparsity:
        words = f"pruned {prune.pattern}"
    else:
        what = "each layer" if prune.allocation == "uniform" else "all weights"
        words = f"{100 * prune.share:.4g} % of {what} pruned"
        how += [f"in blocks {prune.pattern}"] if prune.pattern != "unstructured" else []
        how += [SHARED_OUT[prune.allocation]] if prune.allocation in SHARED_OUT else []
    if prune.method == "compensated":
        how.insert(0, "compensated" if prune.effort == "fast" else "compensated, best effort")
    how += ["outputs matched"] if prune.matches else []
    return [Phrase(words, how)]


def _describe_quantize(quantize: QuantizeSpec) -> list[Phrase]:
    parts = []
    details = [
        "compensated" if quantize.method == "compensated" else "",
        {"tensor": "per tensor", "channel": "", "group": "per group"}[quantize.granularity],
        "" if quantize.symmetric else "asymmetric",
        {"absmax": "", "mse": "least-squares range", "percentile": "percentile range"}[quantize.range],
        "equalised" if quantize.equalises else "",
    ]
    how = [*filter(None, details)] if quantize.integer else []
    if quantize.average_bits is not None:
        parts.append(Phrase(f"{quantize.average_bits:g}-bit weights on average", how))
    elif quantize.weight_bits < 32:
        parts.append(Phrase(f"{quantize.weight_bits}-bit weights", how))
    if quantize.activation_bits < 32:
        parts.append(Phrase(f"{quantize.activation_bits}-bit activations"))
    if quantize.precision != "f32":
        parts.append(Phrase(f"computed in {PRECISIONS[quantize.precision]}"))
    return parts


def _differences(plain: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    changed = {name: value for name, value in plain.items() if value != usual[name]}
    return {
        name: _differences(value, usual[name]) if isinstance(value, dict) else value
        for name, value in changed.items()
    }


def _describe_layers(layers: tuple[Override, ...]) -> list[Phrase]:
    return [Phrase(f"{len(layers)} layer{'s' if len(layers) > 1 else ''} apart")] if layers else []
