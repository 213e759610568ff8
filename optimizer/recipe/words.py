"""A recipe in words, part by part."""

from collections.abc import Sequence
from typing import NamedTuple

from optimizer.formats import count
from optimizer.recipe.specs import PRECISIONS, Override, PruneSpec, QuantizeSpec

ALLOCATED = {
    "normalised": "normalised magnitude",
    "measured": "by sensitivity",
}


class Phrase(NamedTuple):
    """What a recipe does, in words, and how exactly."""

    what: str
    how: Sequence[str] = ()

    def words(self, details: bool) -> str:
        return f"{self.what} ({', '.join(self.how)})" if details and self.how else self.what


def describe_prune(prune: PruneSpec) -> list[Phrase]:
    if not prune.active:
        return []
    how = [prune.pruner.described] if prune.pruner.described else []
    if prune.shrinks:
        if len(prune.pruner.allocations) > 1:
            how += ["by sensitivity" if prune.allocation == "measured" else "by magnitude"]
        how += [f"in multiples of {prune.snap}"] if prune.snap > 1 else []
        how += ["batch norm re-estimated"] if prune.matches else []
        return [Phrase(f"{100 * prune.share:.4g} % of removable channels pruned", how)]
    if prune.threshold is not None:
        words = f"|w| ≤ {prune.threshold:.3g} pruned"
    elif prune.fixed_sparsity:
        words = f"pruned {prune.pattern}"
    else:
        what = "each layer" if prune.allocation == "uniform" else "layer weights"
        words = f"{100 * prune.share:.4g} % of {what} pruned"
        how += [f"in blocks {prune.pattern}"] if prune.pattern != "unstructured" else []
        how += [ALLOCATED[prune.allocation]] if prune.allocation in ALLOCATED else []
    how += ["batch norm re-estimated"] if prune.matches else []
    return [Phrase(words, how)]


def describe_quantize(quantize: QuantizeSpec) -> list[Phrase]:
    parts = []
    details = [
        quantize.quantizer.described,
        {"tensor": "per tensor", "channel": "", "group": "per group"}[quantize.granularity],
        "" if quantize.symmetric else "asymmetric",
        {"absmax": "", "mse": "MSE range", "percentile": "percentile range"}[quantize.range],
        "equalised" if quantize.equalises else "",
    ]
    how = [*filter(None, details)] if quantize.integer else []
    if quantize.average_bits is not None:
        parts.append(Phrase(f"{quantize.average_bits:g} average bits", how))
    elif quantize.weight_bits < 32:
        parts.append(Phrase(f"{quantize.weight_bits}-bit weights", how))
    if quantize.rounds_activations:
        parts.append(Phrase(f"{quantize.activation_bits}-bit activations"))
    if quantize.precision != "f32":
        parts.append(Phrase(f"compute precision {PRECISIONS[quantize.precision]}"))
    return parts


def describe_learning(effort_seconds: int, finetune_steps: int) -> list[Phrase]:
    parts = [f"best effort, {effort_seconds} s"] if effort_seconds else []
    parts += [f"fine-tuned for {finetune_steps:,} steps"] if finetune_steps else []
    return [Phrase(part) for part in parts]


def describe_layers(layers: tuple[Override, ...]) -> list[Phrase]:
    return [Phrase(count(len(layers), "layer override"))] if layers else []
