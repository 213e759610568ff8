"""What is asked of a search, what it keeps of the positions that it tried, and its answer."""

import math
from dataclasses import dataclass, field, replace

from optimizer.analysis.labels import Labelled
from optimizer.analysis.limits import MINIMISED, Limits, Relaxation
from optimizer.errors import InputError, unknown
from optimizer.recipe import Recipe
from optimizer.records import DataSpec, Latency, Request, Result, Settings
from optimizer.search.space import Position, Space
from optimizer.search.strategies import STRATEGIES

DEFAULT_BUDGET_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: ``minimise`` is one of latency, drop, file_size and sqnr, ``search`` a strategy by name.
    With ``settings`` that are not quick the winner is timed in full; the space says on how many threads.

    Raises InputError for an unknown metric or strategy and a budget that is no time.
    """

    model: str
    limits: Limits
    minimise: str
    space: Space = field(default_factory=Space)
    search: str = "guided"
    budget_seconds: float = DEFAULT_BUDGET_SECONDS
    data: DataSpec = field(default_factory=DataSpec)
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if self.minimise not in MINIMISED:
            raise unknown("metric to minimise", self.minimise, MINIMISED)
        if self.search not in STRATEGIES:
            raise unknown("search", self.search, STRATEGIES)
        if not 0 < self.budget_seconds < math.inf:
            raise InputError(f"a budget of {self.budget_seconds:g} s is not allowed: give seconds above 0")

    @property
    def base(self) -> Request:
        """The uncompressed model, timed as everything is that is tried: quickly."""
        settings = replace(self.settings, threads=self.space.threads[0], quick=True)
        return Request(self.model, Recipe(), self.space.engine[0], self.data, settings)

    def request(self, position: Position) -> Request:
        """What a position of the space asks to be measured."""
        return self.space.request(self.base, position)


class Outcome(Labelled):
    """What became of a position."""

    MEASURED = "measured"
    TOO_LARGE = "too large", "with a file larger than allowed"
    LOSES = "loses", "given up before timing, with accuracy or SQNR beyond the limit"
    TOO_SLOW = "too slow", "slower than allowed, as others with the same kernels were"
    NO_FASTER = "no faster", "no faster than the best so far, as others with the same kernels were"
    UNFINISHED = "unfinished", "not done when the search ended"
    FAILED = "failed"
    GONE = "gone", "given up, since each process that measured it was gone"


@dataclass(frozen=True, slots=True)
class Trial:
    """One position that was tried, done ``seconds`` after the question was asked. ``losses`` are those of the
    metrics that count, guessed where it was not measured; ``key`` is that of its result."""

    position: Position
    outcome: Outcome
    seconds: float
    losses: tuple[float, ...]
    key: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """How far a search was after ``seconds``: the number ``measured``, the ``value`` of the best, in the
    unit of its metric (None: none keeps to the limits yet), and the share of the losses and times
    within the limits that are ``covered`` (:func:`optimizer.analysis.limits.covered`)."""

    seconds: float
    measured: int
    value: float | None
    covered: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search is: the ``seconds`` that it took so far, in whatever processes, and what it tried; and
    the position ``at`` which it is, begun for so many ``times``: what ends each process that measures it is
    given up for good. ``seconds_again`` went into times that were taken again."""

    seconds: float = 0.0
    trials: tuple[Trial, ...] = ()
    steps: tuple[Step, ...] = ()
    at: Position | None = None
    times: int = 0
    seconds_again: float = 0.0


NOT_BEGUN = Progress()


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The result under ``key``, which was chosen, and its time taken ``afresh``."""

    key: str
    afresh: Latency

    def timed(self, result: Result) -> Result:
        """The result with the time that was taken afresh."""
        return replace(result, latency=self.afresh)


@dataclass(frozen=True, slots=True)
class Answer:
    """The best configuration that keeps to the limits, None where none does; ``refused`` might have been it,
    and did not hold when they were timed afresh and judged on other images. Results are named by their keys.
    ``is_early``: the search was ended before its time."""

    question: Question
    progress: Progress
    best: Confirmed | None
    refused: tuple[Confirmed, ...]
    relaxations: tuple[Relaxation, ...]
    is_early: bool = False

    @property
    def keys(self) -> list[str]:
        """Of the results that it speaks of."""
        best = [self.best.key] if self.best else []
        others = [one.key for one in self.refused] + [one.key for one in self.relaxations]
        return list(dict.fromkeys([*best, *others]))
