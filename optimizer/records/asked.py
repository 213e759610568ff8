"""What is asked for: a model, its images, a recipe, an engine, and how to time it."""

from dataclasses import dataclass, field

from optimizer.errors import InputError
from optimizer.methods.engines import DEFAULT_ENGINE
from optimizer.recipe import Recipe
from optimizer.recipe.specs import take_numbers
from optimizer.records.encoding import LATER

MAX_INTEGER = 2**63 - 1
"""Larger ones can't be stored."""


@dataclass(frozen=True, slots=True)
class DataSpec:
    """Which images. No path is the bundled set; a path is a folder with one subfolder a class.

    ``calibration`` is a folder of its own; without it ``calibration_share`` of the images, chosen with
    ``seed``, is set aside and never evaluated on. ``class_index`` is a file that maps folder names to the
    model's outputs. At most ``limit`` images, drawn with ``seed``, are evaluated. ``content`` is the digest
    of images that were given in memory, which no path leads to.
    """

    path: str | None = None
    calibration: str | None = None
    class_index: str | None = None
    calibration_share: float = 0.2
    limit: int = 10_000
    seed: int = 0
    content: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.calibration_share < 1:
            raise InputError(
                f"calibration share {self.calibration_share:g} is out of range: between 0 and 1, such as 0.2"
            )
        if not 1 <= self.limit <= MAX_INTEGER:
            raise InputError(f"image limit {self.limit} is not allowed: from 1 to {MAX_INTEGER:,}")
        check_seed(self.seed)


LATER[DataSpec] = {"content": ("", {})}


@dataclass(frozen=True, slots=True)
class Settings:
    """How latency is measured. ``quick`` is the short mode behind the sliders."""

    threads: int = 0
    batch: int = 1
    quick: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        take_numbers(self, whole=("threads", "batch", "seed"))
        if self.batch < 1:
            raise InputError(f"batch size {self.batch} is too small: at least 1 image")
        check_threads(self.threads)
        check_seed(self.seed)


def check_seed(seed: int) -> None:
    """Raises InputError for one that no generator takes, or that can't be stored."""
    if not 0 <= seed <= MAX_INTEGER:
        raise InputError(f"seed {seed} is not allowed: from 0 to {MAX_INTEGER:,}")


def check_threads(threads: int) -> None:
    """Raises InputError for a number below 0."""
    if threads < 0:
        raise InputError(f"threads {threads} is not allowed: 1 or more, or 0 for every core")


@dataclass(frozen=True, slots=True)
class Request:
    """One experiment: a model, its images, a recipe, an engine, and how to time it."""

    model: str
    recipe: Recipe = field(default_factory=Recipe)
    engine: str = DEFAULT_ENGINE
    data: DataSpec = field(default_factory=DataSpec)
    settings: Settings = field(default_factory=Settings)
