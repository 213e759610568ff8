"""The parts of a recipe: how weights are pruned, how numbers are rounded, and layer overrides."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from optimizer.errors import InputError, number, unknown, whole_number
from optimizer.methods.pruners import PRUNE_OPTIONS, PrunerInfo, pruner_info
from optimizer.methods.quantizers import QUANTIZE_OPTIONS, QuantizerInfo, quantizer_info

ALLOCATIONS, PATTERNS, SNAPS = (
    tuple(PRUNE_OPTIONS[name].choices) for name in ("allocation", "pattern", "snap")
)
GRANULARITIES, RANGES = (tuple(QUANTIZE_OPTIONS[name].choices) for name in ("granularity", "range"))
Aim = Literal["prune", "round", "both"]
"""What channels are rotated for."""
WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8, 16, 32)
ACTIVATION_BITS = (2, 3, 4, 5, 6, 7, 8, 32)
COARSE_BITS = 4
"""Rounding to more loses too little to be won back."""
PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
"""What layers may compute in where they have no integer kernels, and what it is called."""


def _one_of(kind: str, value: object, known: Iterable[object]) -> None:
    if value not in known:
        raise unknown(kind, value, known)


def take_numbers(spec: Any, whole: Iterable[str] = (), real: Iterable[str] = ()) -> None:
    """Makes these fields of a frozen ``spec`` Python's own numbers, as JSON and keys need them; those that
    are None by default may be. Raises InputError for what is none."""
    for names, taken in ((whole, whole_number), (real, number)):
        for name in names:
            value = getattr(spec, name)
            if value is not None or spec.__dataclass_fields__[name].default is not None:
                object.__setattr__(spec, name, taken(name, value))


@dataclass(frozen=True, slots=True)
class PruneSpec:
    """Which weights go: those with ``|w| <= threshold``, or the given share of them.

    ``method`` is one of :data:`optimizer.methods.pruners.PRUNERS`, whose entry says which of the other fields
    it reads.

    At most one of ``sparsity`` (0 to 1, the share removed) and ``threshold`` (in units of the weights) is
    given; with neither, nothing is pruned. ``allocation`` shares a sparsity out: the same in each layer, by
    magnitude over the whole model, the same relative to each layer's root mean square, or by what each
    layer's weights were measured to be worth.

    ``compensated`` chooses by second-order cost and refits the weights that stay, on calibration images.
    Patterns ``N:M`` keep N of each M inputs in a row; those with an x remove blocks of outputs x inputs
    whole.

    ``channels`` removes that share of the channels and attention heads that can go, so that a smaller network
    is left; in the order of their magnitude, the same share everywhere, or with a measured allocation by what
    the outputs lose, the rest refitted. ``snap`` rounds what is left to multiples that vector units like.

    ``match`` gives layers' outputs the mean and variance back that they had, where that helps: what taking
    batch norm's statistics anew does. Compensated pruning keeps them by itself.
    """

    method: str = "magnitude"
    sparsity: float | None = None
    threshold: float | None = None
    allocation: str = "global"
    pattern: str = "unstructured"
    snap: int = 1
    match: bool = False

    def __post_init__(self) -> None:
        take_numbers(self, whole=("snap",), real=("sparsity", "threshold"))
        pruner = pruner_info(self.method)
        _one_of("snap", self.snap, SNAPS)
        _one_of("allocation", self.allocation, ALLOCATIONS)
        _one_of("pattern", self.pattern, PATTERNS)
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
        patterned = self.pattern != "unstructured" and "pattern" not in pruner.options
        if patterned or (self.threshold is not None and not pruner.thresholds):
            raise InputError(
                f"pruning method {self.method} takes no {'pattern' if patterned else 'threshold'}: "
                "give a sparsity in its place"
            )
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
    def pruner(self) -> PrunerInfo:
        """The registry's entry of its method."""
        return pruner_info(self.method)

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
        return self.active and (self.pruner.needs_data or shared_out)

    @property
    def permutes(self) -> bool:
        """Whether channels are put into an order in which its pattern costs less, as images tell."""
        return self.fixed_sparsity is not None and self.pruner.needs_data

    @property
    def rotates(self) -> bool:
        """Whether channels may be rotated before it: magnitudes and thresholds look at the weights as they
        stand."""
        by_images = self.fixed_sparsity is not None or self.allocation in ("measured", "uniform")
        by_images = by_images and self.pruner.needs_data and self.threshold is None
        return self.active and by_images and not self.shrinks

    @property
    def matches(self) -> bool:
        """Whether outputs are matched, and not already kept by the method."""
        return self.match and self.active and "match" in self.pruner.options

    @property
    def shrinks(self) -> bool:
        """Whether a smaller network comes of it."""
        return self.active and self.pruner.shrinks


def best_grid(method: str, weight_bits: float) -> bool:
    """Whether a symmetric grid is the better default. Raises InputError for an unknown method."""
    return weight_bits >= quantizer_info(method).asymmetric_below


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
        take_numbers(self, whole=("weight_bits", "activation_bits"), real=("average_bits",))
        quantizer_info(self.method)
        _one_of("weight bits", self.weight_bits, WEIGHT_BITS)
        _one_of("activation bits", self.activation_bits, ACTIVATION_BITS)
        _one_of("granularity", self.granularity, GRANULARITIES)
        _one_of("range", self.range, RANGES)
        _one_of("precision", self.precision, PRECISIONS)
        if self.average_bits is None:
            return
        if not 2 <= self.average_bits <= 8:
            raise InputError(
                f"{self.average_bits:g} average bits are out of range: layers take 2 to 8 bits, so give a "
                "number from 2 to 8"
            )
        if self.weight_bits != 32:
            raise InputError(
                f"weight bits {self.weight_bits} and {self.average_bits:g} average bits are two ways to "
                "say one thing: give only one of them"
            )

    @property
    def quantizer(self) -> QuantizerInfo:
        """The registry's entry of its method."""
        return quantizer_info(self.method)

    @property
    def bits(self) -> float:
        """Bits a weight, on average where layers differ."""
        return float(self.weight_bits) if self.average_bits is None else self.average_bits

    @property
    def integer(self) -> bool:
        """Whether weights lie on an integer grid."""
        return self.bits <= 8

    @property
    def rounds_activations(self) -> bool:
        """Whether activations lie on an integer grid, over ranges that calibration images tell."""
        return self.activation_bits < 32

    @property
    def computes_in_float32(self) -> bool:
        """Whether layers compute as the uncompressed model's do, on other weights."""
        return not self.rounds_activations and self.precision == "f32"

    @property
    def equalises(self) -> bool:
        """Whether channels are equalised before they are rounded."""
        return self.equalise and self.integer and "equalise" in self.quantizer.options

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
    def coarse(self) -> bool:
        """Whether so much is lost that the network learns on the grid, and is rotated for it."""
        return self.bits <= COARSE_BITS

    @property
    def needs_data(self) -> bool:
        """Whether weights are rounded by what calibration images say."""
        return self.integer and (self.quantizer.needs_data or self.average_bits is not None)


NORMAL_PRUNE = PruneSpec("compensated", allocation="measured")
NORMAL_QUANTIZE = QuantizeSpec("compensated", range="mse")
"""How weights are pruned and rounded unless somebody asks otherwise; as they stand they do neither."""


@dataclass(frozen=True, slots=True)
class Override:
    """What one layer, named as in the Layers page, is overridden with. None is "as the recipe says"."""

    layer: str
    sparsity: float | None = None
    weight_bits: int | None = None
    pruning: str | None = None
    rounding: str | None = None

    def __post_init__(self) -> None:
        take_numbers(self, whole=("weight_bits",), real=("sparsity",))
        if self.pruning is not None and not pruner_info(self.pruning).per_layer:
            raise InputError(
                f"pruning method {self.pruning} changes the network, not one layer: override with another "
                "method"
            )
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
