"""What to do to a model, as plain frozen data: a prune spec, a quantize spec, and layer overrides."""

from optimizer.recipe.presets import NORMAL, PRESETS, Preset
from optimizer.recipe.recipe import (
    EFFORT_SECONDS,
    MAX_EFFORT_SECONDS,
    MAX_FINETUNE_STEPS,
    MAX_JSON_BYTES,
    MAX_OVERRIDES,
    Recipe,
    steps_of_seconds,
)
from optimizer.recipe.specs import (
    ACTIVATION_BITS,
    ALLOCATIONS,
    GRANULARITIES,
    PATTERNS,
    PRECISIONS,
    RANGES,
    SNAPS,
    WEIGHT_BITS,
    Override,
    PruneSpec,
    QuantizeSpec,
    best_grid,
)

__all__ = [
    "ACTIVATION_BITS",
    "ALLOCATIONS",
    "EFFORT_SECONDS",
    "GRANULARITIES",
    "MAX_EFFORT_SECONDS",
    "MAX_FINETUNE_STEPS",
    "MAX_JSON_BYTES",
    "MAX_OVERRIDES",
    "NORMAL",
    "PATTERNS",
    "PRECISIONS",
    "PRESETS",
    "RANGES",
    "SNAPS",
    "WEIGHT_BITS",
    "Override",
    "Preset",
    "PruneSpec",
    "QuantizeSpec",
    "Recipe",
    "best_grid",
    "steps_of_seconds",
]
