"""Which recipes are on one line of a chart: those that differ in the amount of pruning and in bits alone."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from optimizer.analysis.summary import Summary
from optimizer.formats import count
from optimizer.recipe import PRECISIONS, Recipe

Family = tuple[Hashable | None, ...]
"""What recipes on one line have in common; None, of what does not prune or does not round, goes with any."""
WAY = 2
"""So many parts of a family say how weights are pruned and rounded; the rest are options on top of that."""


def family(recipe: Recipe) -> Family:
    """Everything but the amount of pruning and the bits: how weights are pruned, how they are rounded, and
    then the options of pruning, those of rounding, layers apart, and the precision of the kernels."""
    prune, quantize = recipe.prune, recipe.quantize
    prunes = any(spec.active for spec in recipe.prune_specs)
    rounds = any(spec.integer for spec in recipe.quantize_specs)
    pruning = (
        "best effort" if prune.effort == "best" else "",
        f"snapped to {prune.snap}" if prune.snap > 1 else "",
        "outputs matched" if recipe.matches else "",
        f"fine-tuned {recipe.finetune_steps:,} steps" if recipe.finetunes else "",
    )
    equalised = any(spec.equalises for spec in recipe.quantize_specs)
    return (
        replace(prune, sparsity=None, threshold=None, effort="fast", snap=1, match=False)
        if prune.active
        else None,
        replace(
            quantize.at(32),
            activation_bits=32,
            symmetric=quantize.automatic,
            equalise=False,
            precision="f32",
        )
        if quantize.integer
        else None,
        pruning if prunes else None,
        ("equalised" if equalised else "",) if rounds else None,
        recipe.layers,
        quantize.precision,
    )


def options_of(line: Family) -> str:
    """The options of a family in words."""
    pruning, rounding, layers, precision = line[WAY:]
    words = [*(pruning or ()), *(rounding or ())]  # type: ignore[misc]
    words += [f"{count(len(layers), 'layer')} apart"] if layers else []  # type: ignore[arg-type]
    words += [f"in {PRECISIONS[precision]}"] if precision not in (None, "f32") else []  # type: ignore[index]
    return ", ".join(filter(None, words))


def belongs(one: Family, line: Family) -> bool:
    """Whether a recipe of the family ``one`` is on that line, for all that both say."""
    return all(None in pair or pair[0] == pair[1] for pair in zip(one, line, strict=True))


def main_family(summaries: Sequence[Summary], selected: str | None) -> Family:
    """The family of the selected result; what it leaves open, and all without one, is the most frequent."""
    families = [family(summary.recipe) for summary in summaries]
    chosen = [one for one, summary in zip(families, summaries, strict=True) if summary.key == selected]
    main: Family = chosen[0] if chosen else (None,) * len(families[0])
    for place, known in enumerate(main):
        if known is None:
            found = _most_common(one[place] for one in families if belongs(one, main))
            main = (*main[:place], found, *main[place + 1 :])
    return main


T = TypeVar("T")


def _most_common(values: Iterable[T | None]) -> T | None:
    counted = Counter(value for value in values if value is not None).most_common(1)
    return counted[0][0] if counted else None
