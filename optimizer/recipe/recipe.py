"""A recipe: what to do to a model, as plain frozen data. Validated at the door, hashable, JSON in and out."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import msgspec

from optimizer.errors import InputError, number, unknown
from optimizer.methods.pruners import PRUNE_OPTIONS, pruner_info
from optimizer.methods.quantizers import QUANTIZE_OPTIONS
from optimizer.recipe.specs import (
    NORMAL_PRUNE,
    NORMAL_QUANTIZE,
    Aim,
    Override,
    PruneSpec,
    QuantizeSpec,
    best_grid,
    take_numbers,
)
from optimizer.recipe.words import describe_layers, describe_learning, describe_prune, describe_quantize

MAX_FINETUNE_STEPS = 2_000
"""A step takes 0.02 to 0.06 s for thumbnails and about 1 s for photographs on two cores: a minute or two, and
half an hour to an hour. 500 steps brought a network of photographs as far as it came."""
MAX_EFFORT_SECONDS = 600
EFFORT_SECONDS = 60
"""Unless somebody asks otherwise."""
STEPS_A_SECOND = 5
"""How a budget in seconds, as recipes, links and commands once had it, is read: between the 20 to 50 steps
that thumbnails take in a second and the one of photographs."""
MAX_OVERRIDES = 1_000
MAX_JSON_BYTES = 256 * 1024
"""Of a recipe's text: room for that many overrides of layers with long names."""


def _may_be_rotated(prune: PruneSpec, quantize: QuantizeSpec) -> bool:
    """Whether neither looks at weights as they stand."""
    by_images = quantize.quantizer.needs_data or not quantize.integer
    return by_images and (prune.rotates or not prune.active)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A prune spec and a quantize spec, in that order: quantized on the fixed mask. And overrides of layers.

    What is left learns between the two to answer as the uncompressed network does: first by best effort, for
    up to ``effort_seconds``, then by ``finetune_steps`` of fine-tuning. Where weights are rounded to
    4 bits or fewer it learns after both: codes then move on their grids.
    """

    prune: PruneSpec = field(default_factory=PruneSpec)
    quantize: QuantizeSpec = field(default_factory=QuantizeSpec)
    layers: tuple[Override, ...] = ()
    finetune_steps: int = 0
    effort_seconds: int = 0

    def __post_init__(self) -> None:
        take_numbers(self, whole=("finetune_steps", "effort_seconds"))
        if not 0 <= self.effort_seconds <= MAX_EFFORT_SECONDS:
            raise InputError(
                f"{self.effort_seconds:,} seconds of best effort are not allowed: give 0 (none) to "
                f"{MAX_EFFORT_SECONDS}"
            )
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

    @classmethod
    def of(
        cls,
        sparsity: float | None = None,
        weight_bits: int | None = None,
        activation_bits: int = 32,
        *,
        threshold: float | None = None,
        average_bits: float | None = None,
        pruning: str | None = None,
        rounding: str | None = None,
        finetune_steps: int = 0,
        effort_seconds: int = 0,
    ) -> Self:
        """A recipe by what is most often chosen; the methods are the dashboard's own where none is named.

        ``sparsity`` is the share of weights to remove, or of the channels that can go (0 to below 1);
        ``threshold`` in its place removes ``|w| <= threshold`` by magnitude. Weights keep float32 unless
        ``weight_bits`` (2 to 8, or 16) or ``average_bits`` (2 to 8, layer by layer) is given. ``pruning`` and
        ``rounding`` are methods, such as ``magnitude`` and ``nearest``, which need no images. Raises
        InputError.

        >>> Recipe.of(sparsity=0.5, weight_bits=4, pruning="magnitude", rounding="nearest").describe()
        '50 % of layer weights pruned · 4-bit weights'
        """
        usual = NORMAL_PRUNE if threshold is None else PruneSpec()
        if pruning not in (None, usual.method):
            usual = PruneSpec(pruning, allocation=pruner_info(pruning).allocation)
        prune = replace(usual, sparsity=sparsity)
        quantize = NORMAL_QUANTIZE if rounding in (None, NORMAL_QUANTIZE.method) else QuantizeSpec(rounding)
        if weight_bits is not None:
            quantize = quantize.at(number("weight_bits", weight_bits))
        elif average_bits is not None:
            quantize = replace(
                quantize, symmetric=best_grid(quantize.method, number("average_bits", average_bits))
            )
        return cls(
            replace(prune, threshold=threshold),
            replace(quantize, average_bits=average_bits, activation_bits=activation_bits),
            finetune_steps=finetune_steps,
            effort_seconds=effort_seconds,
        )

    @property
    def identity(self) -> bool:
        """Whether the recipe leaves the model as it is (the baseline's recipe)."""
        pruned = any(spec.active for spec in self.prune_specs)
        rounded = any(spec.integer or spec.weight_bits < 32 for spec in self.quantize_specs)
        return not pruned and not rounded and self.quantize.computes_in_float32

    @property
    def can_learn(self) -> bool:
        """What was neither pruned nor coarsely rounded has nothing to win back."""
        return self._is_coarse or any(spec.active for spec in self.prune_specs)

    @property
    def learns(self) -> bool:
        """Whether anything learns."""
        return self.can_learn and bool(self.finetune_steps or self.effort_seconds)

    @property
    def learns_on_grids(self) -> bool:
        """Whether it learns after it was rounded, and not before."""
        return self.learns and self._is_coarse

    @property
    def _is_coarse(self) -> bool:
        return any(spec.coarse for spec in self.quantize_specs)

    @property
    def learnt(self) -> Self:
        """The part that learns, equal for recipes that share it: what is pruned, whatever is rounded later;
        all of it where grids are held."""
        if self.learns_on_grids:
            return self
        layers = tuple(replace(one, weight_bits=None) for one in self.layers)
        return replace(self, quantize=QuantizeSpec(), layers=layers)

    @property
    def of_weights(self) -> "Recipe":
        """What the recipe does to weights, equal for recipes that share it: whatever becomes of activations,
        and in which precision the layers compute."""
        return replace(self, quantize=replace(self.quantize, activation_bits=32, precision="f32"))

    @property
    def unlearnt(self) -> "Recipe":
        """The same recipe with nothing learnt."""
        return replace(self, finetune_steps=0, effort_seconds=0).canonical()

    @property
    def matches(self) -> bool:
        """Whether the pruned network is run on calibration images to match its outputs."""
        return any(spec.matches for spec in self.prune_specs)

    @property
    def needs_data(self) -> bool:
        """Whether the weights depend on calibration images."""
        pruned = any(spec.needs_data for spec in self.prune_specs)
        return pruned or self.matches or self.learns or any(spec.needs_data for spec in self.quantize_specs)

    @property
    def rotates_to(self) -> Aim | None:
        """What channels are rotated for before anything is pruned or rounded; None where they are not."""
        if not _may_be_rotated(self.prune, self.quantize):
            return None
        coarse = any(spec.coarse and spec.quantizer.needs_data for spec in self.quantize_specs)
        if any(spec.rotates for spec in self.prune_specs):
            return "both" if coarse else "prune"
        return "round" if coarse else None

    @property
    def unrotated(self) -> frozenset[str]:
        """Layers whose channels stay as they are, though others are rotated."""
        rest = self._prune_of_layers
        return frozenset(
            one.layer
            for one in self.layers
            if not _may_be_rotated(one.prune(rest), one.quantize(self.quantize))
        )

    @property
    def needs_images(self) -> bool:
        """Whether the compressed model can't be made, on whatever engine, without calibration images."""
        return self.needs_data or self.quantize.rounds_activations

    @property
    def prune_specs(self) -> tuple[PruneSpec, ...]:
        """The recipe's own, then those of its overrides, each once."""
        own = {(override.pruning, override.sparsity): override for override in self.layers}
        return (self.prune, *(override.prune(self._prune_of_layers) for override in own.values()))

    @property
    def _prune_of_layers(self) -> PruneSpec:
        """What holds for single layers: nothing where channels are removed, which is of the whole network."""
        return PruneSpec() if self.prune.pruner.shrinks else self.prune

    @property
    def quantize_specs(self) -> tuple[QuantizeSpec, ...]:
        """The recipe's own, then those of its overrides, each once."""
        own = {(override.rounding, override.weight_bits): override for override in self.layers}
        return (self.quantize, *(override.quantize(self.quantize) for override in own.values()))

    def prune_for(self, layers: Iterable[str]) -> dict[str, PruneSpec]:
        """What holds for each of these layers, by name."""
        rest = self._prune_of_layers
        own = {override.layer: override.prune(rest) for override in self.layers}
        return {layer: own.get(layer, rest) for layer in layers}

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
        elif prune.allocation not in (known := prune.pruner.allocations or (PruneSpec().allocation,)):
            prune = replace(prune, allocation=known[-1])
        if "snap" not in prune.pruner.options:
            prune = replace(prune, snap=PRUNE_OPTIONS["snap"].default)
        prune = replace(prune, match=prune.match and self.matches)
        if not any(spec.integer for spec in self.quantize_specs):
            quantize = QuantizeSpec(
                weight_bits=quantize.weight_bits,
                activation_bits=quantize.activation_bits,
                precision=quantize.precision,
            )
        read = set[str]().union(*(spec.quantizer.options for spec in self.quantize_specs))
        unread = {"granularity", "range"} - read
        quantize = replace(quantize, **{name: QUANTIZE_OPTIONS[name].default for name in unread})
        equalise = any(spec.equalises for spec in self.quantize_specs)
        quantize = replace(quantize, equalise=equalise)
        made = replace(self, prune=prune, quantize=quantize)
        return made if self.learns else replace(made, finetune_steps=0, effort_seconds=0)

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

        ``training_seconds``, as recipes once had it, is read by :func:`steps_of_seconds`, and a prune spec's
        ``effort`` as best effort or none. Raises InputError.
        """
        if not isinstance(data, dict):
            raise InputError(f"a recipe is a JSON object, not {type(data).__name__}")
        if EARLIER_BUDGET in data:
            data = _with_steps(data)
        if isinstance(data.get("prune"), dict) and EARLIER_EFFORT in data["prune"]:
            data = _with_seconds(data)
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
        '50 % of layer weights pruned · 4-bit weights'
        """
        if self.identity:
            return "uncompressed"
        learnt = describe_learning(self.effort_seconds, self.finetune_steps) if self.learns else []
        rounded = describe_quantize(self.quantize)
        parts = [
            *describe_prune(self.prune),
            *(rounded + learnt if self.learns_on_grids else learnt + rounded),
            *describe_layers(self.layers),
        ]
        return " · ".join(part.words(details) for part in parts)


EARLIER_BUDGET = "training_seconds"


def steps_of_seconds(seconds: float) -> int:
    """The fine-tuning steps that a budget in ``seconds`` is read as: five a second, at most as many as are
    allowed, and at least one of any. Raises InputError for what is not a number of at least 0."""
    if not 0 <= seconds < math.inf:
        raise InputError(f"{seconds} seconds of fine-tuning are not allowed: give a number of steps instead")
    return math.ceil(min(MAX_FINETUNE_STEPS, STEPS_A_SECOND * seconds))


def _with_steps(data: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in data.items() if key != EARLIER_BUDGET}
    seconds = data[EARLIER_BUDGET]
    if "finetune_steps" in data:
        raise InputError(f"finetune_steps and {EARLIER_BUDGET} are two ways to say one thing: give the steps")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InputError(f"{EARLIER_BUDGET} {seconds!r} is not a number: give finetune_steps")
    return rest | {"finetune_steps": steps_of_seconds(seconds)}


EARLIER_EFFORT = "effort"


def _with_seconds(data: dict[str, Any]) -> dict[str, Any]:
    prune = {key: value for key, value in data["prune"].items() if key != EARLIER_EFFORT}
    effort = data["prune"][EARLIER_EFFORT]
    known = {"fast": 0, "best": EFFORT_SECONDS}
    if not isinstance(effort, str) or effort not in known:
        raise unknown(EARLIER_EFFORT, effort, known)
    return {"effort_seconds": known[effort]} | data | {"prune": prune}


def _refuse_unknown_keys(where: str, data: dict[str, Any], kind: type) -> None:
    known = [f.name for f in fields(kind)]
    for key in data:
        if key not in known:
            raise unknown(f"key in {where}", key, known)


def _differences(plain: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    changed = {name: value for name, value in plain.items() if value != usual[name]}
    return {
        name: _differences(value, usual[name]) if isinstance(value, dict) else value
        for name, value in changed.items()
    }
