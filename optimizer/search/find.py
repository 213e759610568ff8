"""Ask a question, get a configuration: the best under limits that can be found in the time for it.

What can't win is known cheaply, and is not measured to the end: sizes are exact before an image is run, a
growing part of the images shows what loses too much, and dense kernels take the same time whatever the values
of the weights. What wins was chosen for being good, so it is timed afresh, and judged on images that did not
choose it where there are enough.

A search that ended, however, goes on from its :class:`Progress`: the same question, whatever its budget, asks
for the same positions in the same order, and what became of them is known.

One class: all of it reads and moves what is known of a search so far, so it stays one file.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

from optimizer.analysis.gate import Outcome as Verdict
from optimizer.analysis.gate import sqnr_check
from optimizer.analysis.labels import engine_label
from optimizer.analysis.limits import (
    LIMITED,
    TIMES,
    bound,
    covered,
    figure,
    keeping,
    loss_of,
    noise,
    relaxations,
)
from optimizer.analysis.summary import summarise, summarise_scores
from optimizer.errors import EngineError, UnavailableError, words_of
from optimizer.progress import Report, quiet, stop_if_cancelled
from optimizer.recipe import Recipe
from optimizer.records import Known, Latency, Request, Result
from optimizer.search.confirming import (
    CONFIRMING_SHARE,
    MAX_CONFIRMING_SECONDS,
    Retime,
    candidates,
    confirmed,
    loses,
)
from optimizer.search.records import NOT_BEGUN, Answer, Outcome, Progress, Question, Step, Trial
from optimizer.search.space import Position
from optimizer.search.strategies import STRATEGIES
from optimizer.search.times import KernelTimes, fastest_visit, least, may_be_in_time, retimed, same_kernels

Unwanted = Callable[[Known | None], bool]
"""Whether a measurement may end early, by what is known of it; None: by its time alone."""
Measure = Callable[[Request, Unwanted, Report], Result | None]
"""Gives None where it ended early."""

MAX_TIMES = 3
"""How often a position is begun while the process dies under it."""
AGAIN_SHARE = 0.1
"""Of the time so far, after which no time is taken again for now: what keeps a machine busy may last, so one
that stays uncertain is taken once more later, not several times at once. With the last of them, which is as
long as those before together, it may be some two or three times as much."""
AGAIN_LONGER = 2.0
"""How much longer a time is taken than the one in whose place it is: more of the same would tell no more."""
WORST = {"drop": 100.0, "sqnr": 1.0}
"""Losses of what nothing is known of: every answer; as much noise as signal."""


def find(
    question: Question,
    measure: Measure,
    again: Retime,
    confirm: Retime,
    report: Report = quiet,
    before: Progress = NOT_BEGUN,
    stored: Sequence[Result] = (),
    keep: Callable[[Progress], object] = lambda progress: None,
    enough: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Answer:
    """Search, and look again at what was found; from where a search was ``before``, whose results are
    ``stored``. How far it is now goes to ``keep``, again and again. It ends with what it has found when that
    is ``enough``. ``again`` takes a time that is too uncertain once more, ``confirm`` that of the winner.

    Raises what the first measurement raises where it fails on each engine and number of threads; later ones
    that fail are told.
    """
    search = _Search(question, measure, again, report, before, stored, keep, enough, clock)
    search.run()
    surely, perhaps = candidates(search.results, question)
    # While there is time, what may be within the limit of time comes after what is shown to be.
    tried = [*surely, *([] if search.is_early else perhaps)]
    best, refused = confirmed(
        question, tried, confirm, lambda: question.budget_seconds - search.seconds, search.is_early, report
    )
    checksums = {one.key: one.latency.checksum for one in search.results}
    afresh = {checksums[one.key]: one.afresh for one in (*refused, *([best] if best else []))}
    results = retimed(search.results, afresh)
    chosen = next((one for one in results if best and one.key == best.key), None)
    others = [one for one in results if not _seems_to_lose_little(one, question)]
    return Answer(
        question,
        search.progress,
        best,
        refused,
        relaxations(others, question.limits, question.minimise, chosen),
        search.is_early,
    )


def _seems_to_lose_little(result: Result, question: Question) -> bool:
    """On the images that choose alone: it keeps to no limit on what is lost, and is not said to."""
    return loses(result, question) and bound(result, "drop") <= question.limits.given["drop"]


class _Search:
    """What a search has seen so far."""

    def __init__(
        self,
        question: Question,
        measure: Measure,
        again: Retime,
        report: Report,
        before: Progress,
        stored: Sequence[Result],
        keep: Callable[[Progress], object],
        enough: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self.question, self.limits = question, question.limits
        self.losses = [name for name in LIMITED if name in {*question.limits.given, question.minimise}]
        self.measure, self.again, self.report, self.keep = measure, again, report, keep
        self.enough, self.clock = enough, clock
        self.begun = clock() - before.seconds
        self.results: list[Result] = []
        self.trials: list[Trial] = []
        self.steps = list(before.steps)
        self.at, self.times = before.at, before.times
        self.told: dict[Request, tuple[float, ...]] = {}
        self.timed: dict[object, KernelTimes] = {}
        self.newest: dict[int, Latency] = {}
        self.unable: dict[tuple[str, int], str] = {}
        self.seconds_again = before.seconds_again
        self.best: Result | None = None
        self.may_answer = self.is_early = False
        by_key = {one.key: one for one in stored}
        for trial in before.trials:
            over = trial.outcome not in (Outcome.UNFINISHED, Outcome.FAILED)
            if over and (not trial.key or trial.key in by_key):
                self._take(trial, by_key.get(trial.key))
        self._choose()

    @property
    def seconds(self) -> float:
        """Since the question was asked, without the time in which nobody searched."""
        return self.clock() - self.begun

    @property
    def seconds_left(self) -> float:
        """Until the search ends; as long as nothing may be the answer, nothing is left for timing it."""
        budget = self.question.budget_seconds
        confirming = min(CONFIRMING_SHARE * budget, MAX_CONFIRMING_SECONDS)
        return budget - self.seconds - confirming * self.may_answer

    @property
    def share(self) -> float:
        """Of the budget that is spent."""
        return min(1.0, self.seconds / self.question.budget_seconds)

    @property
    def progress(self) -> Progress:
        return Progress(
            self.seconds, tuple(self.trials), tuple(self.steps), self.at, self.times, self.seconds_again
        )

    def run(self) -> None:
        """As the strategy goes, and then through what it has left out."""
        question, asked = self.question, set[Request]()
        self.keep(self.progress)
        for name in dict.fromkeys((question.search, "random")):
            self._forget_what_may_be_faster()
            chooser = STRATEGIES[name](question.space, question.settings.seed, len(self.losses))
            known = 0
            while known < chooser.patience and self._goes_on():
                position = chooser.ask()
                if position is None:
                    break
                request = question.request(position)
                known = known + 1 if request in asked else 0
                asked.add(request)
                if request not in self.told:
                    self._try(position, request)
                losses, limits = self.told[request], self.limits.losses
                chooser.tell(
                    losses,
                    [
                        loss / limits[name] - 1
                        for name, loss in zip(self.losses, losses, strict=True)
                        if name in limits
                    ],
                )

    def _goes_on(self) -> bool:
        has_time = self.seconds_left > 0
        self.is_early = has_time and self.enough()
        return has_time and not self.is_early

    def _try(self, position: Position, request: Request) -> None:
        if outcome := self._known_by_time(request):
            self._note(position, request, outcome)
            return
        if words := self.unable.get((request.engine, request.settings.threads)):
            self._note(position, request, Outcome.FAILED, message=words)
            return
        if position != self.at:
            self.at, self.times = position, 0
        if self.times >= MAX_TIMES:
            gone = f"the process that measured it was gone {MAX_TIMES} times in a row"
            self._note(position, request, Outcome.GONE, message=gone)
            return
        self.times += 1
        self.keep(self.progress)
        try:
            result, why, known = self._measured(request)
        except UnavailableError:  # nothing could be kept of the others either
            raise
        except Exception as error:  # engines raise what they like
            self._fail(position, request, error)
            return
        if result is None:
            self._note(position, request, why, known)
        else:
            losses = tuple(bound(result, name) for name in self.losses)
            self._take(Trial(position, Outcome.MEASURED, self.seconds, losses, result.key), result)
        self._step()

    def _measured(self, request: Request) -> tuple[Result | None, Outcome, Known | None]:
        """The result; where there is none, why not and what was known by then."""
        why, seen = Outcome.UNFINISHED, None

        def unwanted(known: Known | None) -> bool:
            nonlocal why, seen
            if known is None:
                return not self._goes_on()
            seen = known
            why = self._ruled_out(known) or why
            return why is not Outcome.UNFINISHED

        result = self.measure(request, unwanted, partial(self._tell, request))
        return result and self._settled(result), why, seen

    def _fail(self, position: Position, request: Request, error: Exception) -> None:
        """Raises the error where nothing else can be measured either."""
        is_first, words = not self.trials, words_of(error)
        if isinstance(error, EngineError):
            self.unable[request.engine, request.settings.threads] = words
        self._note(position, request, Outcome.FAILED, message=words)
        if is_first:
            self._try_elsewhere(position)
            if all(trial.outcome is Outcome.FAILED for trial in self.trials):
                raise error

    def _try_elsewhere(self, position: Position) -> None:
        """The first position, which has failed, on the other engines and numbers of threads, until it is
        measured: one that can't run the network at all may not be the only one."""
        space = self.question.space
        for engine, threads in product(space.engine, space.threads):
            other = position | {"engine": engine, "threads": threads}
            request = self.question.request(other)
            if self.results or not self._goes_on():
                return
            if request not in self.told:
                self._try(other, request)

    def _take(self, trial: Trial, result: Result | None) -> None:
        """What became of a position, now or before. Raises InputError where limits don't fit the network."""
        if result and result.accuracy.is_fidelity:
            self.limits.check_for(self.question.model, self.question.minimise)
        self.trials.append(trial)
        if trial.position == self.at:
            self.at, self.times = None, 0
        self.told[self.question.request(trial.position)] = trial.losses
        if result:
            self.results.append(result)
            self._learn_times(result)

    def _settled(self, result: Result) -> Result:
        """With the newest time of its kernels, which is taken again where a limit hangs on it, or whether it
        is the fastest: by noise in one measurement of int8 kernels, all that run them would seem too slow."""
        shared = result.latency.checksum
        (timed,) = retimed([result], self.newest)
        took = timed.latency.seconds
        is_spent = self.seconds_again > AGAIN_SHARE * self.seconds or self.seconds_left < AGAIN_LONGER * took
        matters = may_be_in_time(timed, self.limits) or self._may_be_fastest(timed)
        if is_spent or not matters or not self._goes_on():
            return timed
        if not keeping([timed], self.limits, but=TIMES):
            return timed
        recipe = result.request.recipe.describe(details=False)
        self.report(self.share, f"timing {recipe} again, since its time is uncertain")
        begun, before = self.clock(), timed.latency.checksum
        latency = self.newest[shared] = self.again(timed, AGAIN_LONGER * took)
        self.seconds_again += self.clock() - begun
        self.results = retimed(self.results, {before: latency})
        return replace(timed, latency=latency)

    def _may_be_fastest(self, result: Result) -> bool:
        """Whether noise may be all that makes it seem no faster than the best."""
        if self.question.minimise != "latency" or self.best is None or not summarise(result).noise:
            return False
        if result.latency.checksum == self.best.latency.checksum:
            return False
        return least(result, "latency") < bound(self.best, "latency") <= bound(result, "latency")

    def _known_by_time(self, request: Request) -> Outcome | None:
        """Why a position is not worth measuring, where others with the same kernels were timed."""
        if (kernels := same_kernels(request)) not in self.timed:
            return None
        timed = self.timed[kernels]
        if any(timed.least[name] > self.limits.given.get(name, math.inf) for name in TIMES):
            return Outcome.TOO_SLOW
        if self.question.minimise == "latency" and self.best:
            may_be_faster = timed.is_noisy and kernels != same_kernels(self.best.request)
            time = (timed.least if may_be_faster else timed.most)["latency"]
            return Outcome.NO_FASTER if time >= bound(self.best, "latency") else None
        return None

    def _forget_what_may_be_faster(self) -> None:
        """What was no faster than a best that holds no more, so that it is tried."""
        requests = {self.question.request(one.position): one for one in self.trials}
        self.trials = [
            trial
            for request, trial in requests.items()
            if trial.outcome is not Outcome.NO_FASTER or self._known_by_time(request)
        ]
        self.told = {self.question.request(one.position): one.losses for one in self.trials}

    def _learn_times(self, result: Result) -> None:
        """The time of a result, and that of the uncompressed model, which was timed beside it."""
        summary, request = summarise(result), result.request
        is_noisy = bool(summary.noise)
        if (kernels := same_kernels(request)) is not None:
            lower, upper = ({name: end(result, name) for name in TIMES} for end in (least, bound))
            self.timed[kernels] = KernelTimes(lower, upper, is_noisy)
        if (kernels := same_kernels(replace(request, recipe=Recipe()))) is not None:
            time = summary.measures["latency"].baseline or bound(result, "latency")
            fastest = min(fastest_visit(one) for one in result.latency.baseline) if is_noisy else time
            lower, upper = ({"latency": end, "latency_ratio": 1.0} for end in (fastest, time))
            self.timed.setdefault(kernels, KernelTimes(lower, upper, is_noisy))

    def _ruled_out(self, known: Known) -> Outcome | None:
        """Why what is known of a position is enough: it is beyond a limit, and something that was measured
        is not further beyond."""
        limits = self.limits.losses
        size, scores = known.inspection.size.file_bytes, summarise_scores(known)
        if size > limits.get("file_size", math.inf) and self._measured_within("file_size", size):
            return Outcome.TOO_LARGE
        if scores and scores.drop.low > limits.get("drop", math.inf):
            return Outcome.LOSES if self._measured_within("drop", scores.drop.low) else None
        if known.accuracy and scores and not scores.partial and "sqnr" in limits:
            check = sqnr_check(known.accuracy, self.limits.given["sqnr"])
            if check.outcome is Verdict.FAIL and self._measured_within("sqnr", loss_of("sqnr", check.high)):
                return Outcome.LOSES
        return None

    def _measured_within(self, name: str, value: float) -> bool:
        return any(bound(one, name) <= value for one in self.results)

    def _note(
        self,
        position: Position,
        request: Request,
        outcome: Outcome,
        known: Known | None = None,
        message: str = "",
    ) -> None:
        """What was not measured to the end, with a guess of its losses, none better than what is known."""
        worst = [
            max((losses[i] for losses in self.told.values()), default=1.0) for i in range(len(self.losses))
        ]
        guess = dict(zip(self.losses, worst, strict=True))
        if "drop" in guess:
            scores = summarise_scores(known) if known else None
            guess["drop"] = scores.drop.points if scores else WORST["drop"]
        if "sqnr" in guess:
            guess["sqnr"] = noise(known.accuracy) if known and known.accuracy else WORST["sqnr"]
        if "file_size" in guess and known:
            guess["file_size"] = float(known.inspection.size.file_bytes)
        if timed := self.timed.get(same_kernels(request)):
            guess |= {name: time for name, time in timed.most.items() if name in guess}
        losses = tuple(guess[name] for name in self.losses)
        self._take(Trial(position, outcome, self.seconds, losses, message=message), None)

    def _choose(self) -> None:
        surely, perhaps = candidates(self.results, self.question)
        # What loses too much on the other images is no answer: what is no faster than that may be one.
        self.best = next((one for one in surely if not loses(one, self.question)), None)
        self.may_answer = self.best is not None or not all(loses(one, self.question) for one in perhaps)

    def _step(self) -> None:
        self._choose()
        value = figure(self.best, self.question.minimise) if self.best else None
        self.steps.append(Step(self.seconds, len(self.results), value, self._covered()))
        self.keep(self.progress)

    def _covered(self) -> float:
        if not self.results:
            return 0.0
        limits, before = self.limits.losses, summarise(self.results[0]).measures["latency"].baseline
        lost = "sqnr" if "sqnr" in self.losses else "drop"
        allowed = (before or 1.0) * limits.get("latency_ratio", 1.0)
        reference = limits.get(lost, WORST[lost]), limits.get("latency", allowed)
        points = [
            [
                summarise(one).drop.points if lost == "drop" else noise(one.accuracy),
                summarise(one).measures["latency"].value or reference[1],
            ]
            for one in self.results
            if bound(one, "file_size") <= limits.get("file_size", math.inf)
        ]
        return covered(points, reference)

    def _tell(self, request: Request, _: float | None, message: str) -> None:
        """How far the search is, in place of how far a measurement is, which may end here."""
        stop_if_cancelled()
        self.keep(self.progress)
        best = "none keeps to the limits yet"
        if self.best:
            best = f"best so far {summarise(self.best).text(self.question.minimise)}"
        tried = f"{request.recipe.describe(details=False)} on {engine_label(request.engine)}"
        self.report(self.share, f"{best}; {tried}: {message}")
