"""Ask a question, get a configuration: the best under limits that can be found in the time for it.

What can't win is known cheaply, and is not measured to the end: sizes are exact before an image is run, a
growing part of the images shows what loses too much, and dense kernels take the same time whatever the values
of the weights. What wins was chosen for being good, so it is timed afresh, and judged on images that did not
choose it where there are enough.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from optimizer.analysis.labels import Labelled, engine_label
from optimizer.analysis.limits import (
    MIN_CONFIRMING,
    MINIMISED,
    Concession,
    Limits,
    bound,
    concessions,
    covered,
    halves,
    in_order,
    keeping,
)
from optimizer.analysis.outcomes import PairedDrop
from optimizer.analysis.summary import summarise, summarise_scores
from optimizer.errors import InputError, ParetoscopeError, unknown
from optimizer.methods.engines import ENGINES
from optimizer.progress import Report, publish, quiet
from optimizer.recipe import Recipe
from optimizer.records import Known, Latency, Request, Result
from optimizer.search.space import Space
from optimizer.search.strategies import STRATEGIES

Unwanted = Callable[[Known | None], bool]
"""Whether a measurement may end early, by what is known of it; None: by its time alone."""
Measure = Callable[[Request, Unwanted, Report], Result | None]
"""Gives None where it ended early."""

DEFAULT_BUDGET_SECONDS = 60.0
SEARCH_SHARE = 0.85
"""Of the budget, after which nothing new is tried: the rest is for timing the winner once more."""
MAX_CONFIRMED = 3
"""The best so many are looked at again, one after the other, until one holds."""
WORST_POINTS = 100.0


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: ``minimise`` is one of latency, drop and file_size, ``search`` a strategy by name.

    Raises InputError for an unknown metric or strategy and a budget that is no time.
    """

    limits: Limits
    minimise: str
    space: Space = field(default_factory=Space)
    search: str = "guided"
    budget_seconds: float = DEFAULT_BUDGET_SECONDS

    def __post_init__(self) -> None:
        if self.minimise not in MINIMISED:
            raise unknown("metric to minimise", self.minimise, MINIMISED)
        if self.search not in STRATEGIES:
            raise unknown("search", self.search, STRATEGIES)
        if not 0 < self.budget_seconds < math.inf:
            raise InputError(f"a budget of {self.budget_seconds:g} s is not allowed: give seconds above 0")


class Fate(Labelled):
    """What became of a position."""

    MEASURED = "measured"
    TOO_LARGE = "too large", "with a file larger than allowed"
    LOSES = "loses", "less accurate than allowed, which a part of the images showed"
    TOO_SLOW = "too slow", "slower than allowed, as others with the same kernels were"
    NO_FASTER = "no faster", "no faster than the best so far, as others with the same kernels were"
    UNFINISHED = "unfinished", "not done when the time was over"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Trial:
    """One position that was tried, ``seconds`` after the question was asked."""

    request: Request
    fate: Fate
    seconds: float
    result: Result | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """How far a search was after ``seconds``: the number ``measured``, the ``value`` of the best (None: none
    keeps to the limits yet), and the share of the losses and times within the limits that are ``covered``
    (:func:`optimizer.analysis.limits.covered`)."""

    seconds: float
    measured: int
    value: float | None
    covered: float


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What a chosen result lost on the images that chose it and on the others (None: too few), and its time
    taken afresh."""

    result: Result
    chosen: PairedDrop
    others: PairedDrop | None
    afresh: Latency

    @property
    def timed(self) -> Result:
        """The result with the time that was taken afresh."""
        return replace(self.result, latency=self.afresh)


@dataclass(frozen=True, slots=True)
class Answer:
    """The best configuration that keeps to the limits, None where none does; ``refused`` looked as if they
    did until they were looked at again."""

    question: Question
    best: Confirmed | None
    refused: tuple[Confirmed, ...]
    trials: tuple[Trial, ...]
    steps: tuple[Step, ...]
    concessions: tuple[Concession, ...]
    seconds: float

    @property
    def results(self) -> tuple[Result, ...]:
        """All that was measured."""
        return tuple(trial.result for trial in self.trials if trial.result)


def find(
    question: Question,
    base: Request,
    measure: Measure,
    confirm: Callable[[Result], Latency],
    report: Report = quiet,
    clock: Callable[[], float] = time.monotonic,
) -> Answer:
    """Search, and look again at what was found. All but model, images and timing of ``base`` is searched.

    The same question with the same seed asks for the same positions: what was measured before a search ended
    is in the store, and costs nothing when it is asked again. Raises what the first measurement raises; later
    ones that fail are told.
    """
    search = _Search(question, base, measure, report, clock)
    search.run()
    best, refused = search.confirmed(confirm)
    held = [one for one in search.results if one not in [each.result for each in refused]]
    return Answer(
        question,
        best,
        refused,
        tuple(search.trials),
        tuple(search.steps),
        concessions(held, question.limits, question.minimise, best.result if best else None),
        clock() - search.begun,
    )


class _Search:
    """What a search has seen so far."""

    def __init__(
        self,
        question: Question,
        base: Request,
        measure: Measure,
        report: Report,
        clock: Callable[[], float],
    ) -> None:
        self.question, self.base, self.limits = question, base, question.limits
        self.losses = [name for name in MINIMISED if name in {*question.limits.given, question.minimise}]
        self.measure, self.report, self.clock = measure, report, clock
        self.begun = clock()
        self.until = self.begun + SEARCH_SHARE * question.budget_seconds
        self.results: list[Result] = []
        self.trials: list[Trial] = []
        self.steps: list[Step] = []
        self.told: dict[Request, list[float]] = {}
        self.timed: dict[object, tuple[float, float]] = {}
        self.best: Result | None = None

    def run(self) -> None:
        """As the strategy goes, and then through what it has left out."""
        question = self.question
        for name in dict.fromkeys((question.search, "random")):
            chooser = STRATEGIES[name](question.space, self.base.settings.seed, len(self.losses))
            known = 0
            while known < chooser.patience and self.clock() < self.until:
                position = chooser.ask()
                if position is None:
                    break
                request = question.space.request(self.base, position)
                known = known + 1 if request in self.told else 0
                if not known:
                    self._try(request)
                losses, limits = self.told[request], self.limits.given
                chooser.tell(
                    losses,
                    [
                        loss / limits[name] - 1
                        for name, loss in zip(self.losses, losses, strict=True)
                        if name in limits
                    ],
                )

    def _try(self, request: Request) -> None:
        if fate := self._known_by_time(request):
            self._note(request, fate)
            return
        why, seen = Fate.UNFINISHED, None

        def unwanted(known: Known | None) -> bool:
            nonlocal why, seen
            if known is None:
                return self.clock() > self.until
            seen = known
            why = self._ruled_out(known) or why
            return why is not Fate.UNFINISHED

        try:
            result = self.measure(request, unwanted, partial(self._tell, request))
        except ParetoscopeError as error:
            if not self.trials:
                raise
            self._note(request, Fate.FAILED, message=str(error))
            return
        if result is None:
            self._note(request, why, seen)
        else:
            self.results.append(result)
            self.told[request] = [bound(result, name) for name in self.losses]
            self.trials.append(Trial(request, Fate.MEASURED, self.clock() - self.begun, result))
            self._learn_times(result)
        self._step()

    def _known_by_time(self, request: Request) -> Fate | None:
        """Why a position is not worth measuring, where others with the same kernels were timed."""
        if (kernels := _same_kernels(request)) not in self.timed:
            return None
        low, high = self.timed[kernels]
        if low > self.limits.given.get("latency", math.inf):
            return Fate.TOO_SLOW
        if self.question.minimise == "latency" and self.best:
            return Fate.NO_FASTER if high >= bound(self.best, "latency") else None
        return None

    def _learn_times(self, result: Result) -> None:
        """The time of a result, and that of the uncompressed model, which was timed beside it."""
        measure = summarise(result).measures["latency"]
        high = bound(result, "latency")
        for recipe, times in (
            (result.request.recipe, (high if measure.low is None else measure.low, high)),
            (Recipe(), (measure.baseline or high,) * 2),
        ):
            kernels = _same_kernels(replace(result.request, recipe=recipe))
            if kernels is not None:
                self.timed.setdefault(kernels, times)

    def _ruled_out(self, known: Known) -> Fate | None:
        """Why what is known of a position is enough: it is beyond a limit, and something that was measured
        is not further beyond."""
        limits = self.limits.given
        size, scores = known.inspection.size.file_bytes, summarise_scores(known)
        if size > limits.get("file_size", math.inf) and self._measured_within("file_size", size):
            return Fate.TOO_LARGE
        if scores and scores.drop.low > limits.get("drop", math.inf):
            return Fate.LOSES if self._measured_within("drop", scores.drop.low) else None
        return None

    def _measured_within(self, name: str, value: float) -> bool:
        return any(bound(one, name) <= value for one in self.results)

    def _note(self, request: Request, fate: Fate, known: Known | None = None, message: str = "") -> None:
        """What was not measured to the end, with a guess of its losses, none better than what is known."""
        worst = [max((self.told[one][i] for one in self.told), default=1.0) for i in range(len(self.losses))]
        guess = dict(zip(self.losses, worst, strict=True))
        if "drop" in guess:
            scores = summarise_scores(known) if known else None
            guess["drop"] = scores.drop.points if scores else WORST_POINTS
        if "file_size" in guess and known:
            guess["file_size"] = float(known.inspection.size.file_bytes)
        if "latency" in guess and (timed := self.timed.get(_same_kernels(request))):
            guess["latency"] = timed[1]
        self.told[request] = [guess[name] for name in self.losses]
        self.trials.append(Trial(request, fate, self.clock() - self.begun, message=message))

    def _step(self) -> None:
        found = in_order(keeping(self.results, self.limits), self.question.minimise)
        self.best = found[0] if found else None
        value = bound(self.best, self.question.minimise) if self.best else None
        seconds = self.clock() - self.begun
        self.steps.append(Step(seconds, len(self.results), value, self._covered()))
        publish(tuple(self.steps))

    def _covered(self) -> float:
        if not self.results:
            return 0.0
        limits, before = self.limits.given, summarise(self.results[0]).measures["latency"].baseline
        reference = limits.get("drop", WORST_POINTS), limits.get("latency", before or 1.0)
        points = [
            [summarise(one).drop.points, summarise(one).measures["latency"].value or reference[1]]
            for one in self.results
            if bound(one, "file_size") <= limits.get("file_size", math.inf)
        ]
        return covered(points, reference)

    def _tell(self, request: Request, _: float | None, message: str) -> None:
        """How far the search is, in place of how far a measurement is."""
        share = (self.clock() - self.begun) / self.question.budget_seconds
        best = "none keeps to the limits yet"
        if self.best:
            best = f"best so far {summarise(self.best).text(self.question.minimise)}"
        tried = f"{request.recipe.describe(details=False)} on {engine_label(request.engine)}"
        self.report(min(1.0, share), f"{best}; {tried}: {message}")

    def confirmed(
        self, confirm: Callable[[Result], Latency]
    ) -> tuple[Confirmed | None, tuple[Confirmed, ...]]:
        """The best that holds when it is looked at again, and those before it that did not."""
        limits = self.limits.given
        refused: list[Confirmed] = []
        for result in in_order(keeping(self.results, self.limits), self.question.minimise)[:MAX_CONFIRMED]:
            self.report(SEARCH_SHARE, f"timing {result.request.recipe.describe()} afresh")
            chosen, others = halves(result, MIN_CONFIRMING)
            one = Confirmed(result, chosen, others, confirm(result))
            loses = "drop" in limits and others is not None and others.points > limits["drop"]
            late = "latency" in limits and bound(one.timed, "latency") > limits["latency"]
            if not loses and not late:
                return one, tuple(refused)
            refused.append(one)
        return None, tuple(refused)


def _same_kernels(request: Request) -> object:
    """Equal where the same instructions run, whatever the weights' values; None where that can't be said."""
    prune, quantize = request.recipe.prune, request.recipe.quantize
    if prune.shrinks or (ENGINES[request.engine].skips_zeros and prune.active):
        return None
    integer = quantize.activation_bits == 8 and quantize.weight_bits <= 8
    return request.engine, request.settings, quantize.activation_bits, integer, quantize.precision
