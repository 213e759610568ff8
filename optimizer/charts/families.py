"""Which recipes are on one line of a chart: those that differ in the amount of pruning and in bits alone."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from optimizer.analysis.summary import Summary
from optimizer.formats import count
from optimizer.recipe import PRECISIONS, Recipe

Family = tuple[Any, ...]
"""What recipes on one line have in common; None, of what does not prune or does not round, goes with any."""
WAY = 2
"""So many parts of a family say how weights are pruned and rounded; the rest are options on top of that."""


@lru_cache(maxsize=4096)
def family(recipe: Recipe) -> Family:
    """Everything but the amount of pruning and the bits: how weights are pruned, how they are rounded, and
    then the options of pruning, those of rounding, what learns, layer overrides, and the precision of the
    kernels."""
    prune, quantize = recipe.prune, recipe.quantize
    prunes = any(spec.active for spec in recipe.prune_specs)
    rounds = any(spec.integer for spec in recipe.quantize_specs)
    equalised = any(spec.equalises for spec in recipe.quantize_specs)
    return (
        replace(prune, sparsity=None, threshold=None, snap=1, match=False) if prune.active else None,
        replace(
            quantize.at(32),
            activation_bits=32,
            symmetric=quantize.automatic,
            equalise=False,
            precision="f32",
        )
        if quantize.integer
        else None,
        (prune.snap, recipe.matches) if prunes else None,
        equalised if rounds else None,
        (recipe.effort_seconds, recipe.finetune_steps) if recipe.can_learn else None,
        recipe.layers,
        quantize.precision,
    )


class Options(NamedTuple):
    """What a family does on top of how it prunes and rounds; so many ``overrides`` of layers it has."""

    snap: int = 1
    matched: bool = False
    equalised: bool = False
    effort: int = 0
    steps: int = 0
    overrides: int = 0
    precision: str = "f32"

    @property
    def words(self) -> str:
        parts = (
            f"in multiples of {self.snap}" if self.snap > 1 else "",
            "batch norm re-estimated" if self.matched else "",
            "equalised" if self.equalised else "",
            f"best effort {self.effort} s" if self.effort else "",
            f"fine-tuned {self.steps:,} steps" if self.steps else "",
            count(self.overrides, "layer override") if self.overrides else "",
            f"in {PRECISIONS[self.precision]}" if self.precision != "f32" else "",
        )
        return ", ".join(filter(None, parts))


NO_OPTIONS = Options()


def options_of(line: Family) -> Options:
    """The options of a family; of what it leaves open, none."""
    pruning, equalised, learning, layers, precision = line[WAY:]
    snap, matched = pruning or NO_OPTIONS[:2]
    effort, steps = learning or (0, 0)
    return Options(snap, matched, bool(equalised), effort, steps, len(layers or ()), precision or "f32")


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
