"""Every way of pruning, and the options that a prune spec has."""

from dataclasses import dataclass

from optimizer.methods.entries import Entry, Option, by_name, named

PATTERNS = ("unstructured", "2:4", "4:8", "1x4", "4x4", "16x1")
SNAPS = (1, 8, 16)

PRUNE_OPTIONS: dict[str, Option] = {
    "allocation": Option(
        "Sparsity allocation",
        {
            "uniform": "uniform",
            "global": "global magnitude",
            "normalised": "normalised magnitude",
            "measured": "by sensitivity",
        },
        "global",
        "How much each layer loses. By sensitivity: what a change in each does to the outputs, measured on "
        "calibration images. Global magnitude: one threshold for all. Normalised: relative to each layer's "
        "root mean square. Uniform: the same share everywhere.",
    ),
    "pattern": Option(
        "Pattern",
        {pattern: pattern for pattern in PATTERNS},
        "unstructured",
        "N:M keeps N of every M inputs in a row, as sparse tensor cores want it. Data-aware pruning first "
        "puts channels into an order in which that costs less. Blocks are outputs × inputs that go "
        "together.",
    ),
    "snap": Option(
        "Channels left are a multiple of",
        {snap: str(snap) for snap in SNAPS},
        1,
        "One channel past a multiple of 16 can cost more time than it saves.",
    ),
    "match": Option(
        "Batch-norm re-estimation",
        {False: "no", True: "yes"},
        False,
        "On calibration images, each channel gets its mean and variance back, as if batch norm's statistics "
        "were estimated anew; also where batch norm was folded. Kept only where it helps.",
    ),
}
"""By the field of :class:`optimizer.recipe.PruneSpec`."""


@dataclass(frozen=True, slots=True)
class PrunerInfo(Entry):
    """A way of pruning. ``code`` names an :data:`optimizer.compression.prune.Pruner`, or is one; where the
    entry ``shrinks`` that is a :data:`optimizer.compression.prune.Shrinker`.

    ``options`` are those of ``PRUNE_OPTIONS`` that it reads, beside ``allocations``: the sparsity
    allocations that it knows, in the order of a menu. Another one is read as the last, and ``allocation`` is
    what it takes unless it is told. One without the option ``match`` keeps the mean and the variance of its
    layers' outputs by itself. ``rounding`` is what rounds its weights unless that is chosen.

    ``thresholds``: it can be given a magnitude in place of a sparsity. ``by_magnitude``: nothing but a
    weight's magnitude decides, so that the largest one to go is worth telling. ``needs_data``: it works from
    calibration images. ``shrinks``: channels go, and a smaller network comes of it. ``per_layer``: a single
    layer can be overridden with it. ``words`` is what descriptions of recipes say of it; None is its label.
    """

    options: tuple[str, ...] = ("pattern", "match")
    allocations: tuple[str, ...] = ("measured", "global", "normalised", "uniform")
    allocation: str = "measured"
    rounding: str = "nearest"
    thresholds: bool = True
    by_magnitude: bool = False
    needs_data: bool = False
    shrinks: bool = False
    per_layer: bool = True
    words: str | None = None

    @property
    def described(self) -> str:
        return self.label.lower() if self.words is None else self.words


PRUNERS: dict[str, PrunerInfo] = by_name(
    PrunerInfo(
        "magnitude",
        "Magnitude",
        "the smallest weights go; no images needed.",
        "optimizer.compression.prune.magnitude:prune",
        allocation="global",
        by_magnitude=True,
        words="",
    ),
    PrunerInfo(
        "compensated",
        "Data-aware (OBS)",
        "calibration images tell which weights matter, and those that stay make up for those that go "
        "(optimal brain surgeon).",
        "optimizer.compression.prune.compensated:prune",
        options=("pattern",),
        rounding="compensated",
        needs_data=True,
        words="data-aware",
    ),
    PrunerInfo(
        "channels",
        "Channels",
        "whole channels and attention heads go, and a smaller network that runs faster everywhere is left.",
        "optimizer.compression.prune.channels:remove_channels",
        options=("snap", "match"),
        allocations=("measured", "uniform"),
        rounding="compensated",
        thresholds=False,
        needs_data=True,
        shrinks=True,
        per_layer=False,
        words="",
    ),
)


def pruner_info(name: str) -> PrunerInfo:
    """The entry of that name. Raises InputError for an unknown one."""
    return named("pruning method", name, PRUNERS)
