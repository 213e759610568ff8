"""A machine that measures made-up results for a search, in made-up time."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from factories import detector, make_result

from optimizer.analysis.limits import Limits
from optimizer.progress import Report, quiet
from optimizer.recipe import Recipe
from optimizer.records import Known, Latency, Request, Result, digest, unpacked
from optimizer.search.find import Unwanted, find
from optimizer.search.questions import Answered
from optimizer.search.records import Progress, Question, Trial
from optimizer.search.space import Space

SMALL = Space(
    engine=("openvino",),
    pruning=("none", "compensated"),
    sparsity=(0.3, 0.5, 0.7, 0.9),
    weight_bits=(32, 8, 4),
    activation_bits=(32, 8),
    rounding=("compensated",),
)
SECONDS = 2.0


def question(limits: Limits, search: str = "grid", budget: float = 1000.0, space: Space = SMALL) -> Question:
    return Question("fashion-resnet", limits, limits.usual(10), space, search, budget)


BASE = question(Limits(drop_points=1)).base


def trials(found: Answered) -> tuple[Trial, ...]:
    return found.answer.progress.trials


def winner(found: Answered) -> Result:
    """Of a search that has found one."""
    assert found.best is not None
    return found.best


@cache
def _made(recipe: Recipe, engine: str, images: int, ratio: float | None, noisy: bool) -> Result:
    """Once for all searches that come to it."""
    return make_result(recipe, engine=engine, quick=True, images=images, ratio=ratio, noisy=noisy)


def losing(result: Result, chosen: int, others: int) -> Result:
    """With so many answers lost on the images that choose, and on the others."""
    total = result.accuracy.total
    correct = unpacked(result.baseline_accuracy.correct, total).copy()
    first = np.random.default_rng(0).permutation(total) < total // 2
    for half, lost in ((first, chosen), (~first, others)):
        correct[np.flatnonzero(half & correct)[:lost]] = False
    return replace(result, accuracy=replace(result.accuracy, correct=np.packbits(correct).tobytes()))


@dataclass
class Bench:
    """A machine that measures what is made up, in ``SECONDS`` each, and counts. With ``noise``, of a network
    that is no classifier. ``lost``: how many answers are lost on the images that choose and on the others,
    where that is not made up from the recipe. The times of what ``is_noisy`` are; those that are taken again
    until the second ``calm_at``."""

    ratio: Callable[[Request], float | None] = lambda request: None
    images: int = 10_000
    noise: Callable[[Request], float] | None = None
    lost: Callable[[Request], tuple[int, int] | None] = lambda request: None
    is_noisy: Callable[[Request], bool] = lambda request: False
    calm_at: float = 0.0
    now: float = 0.0
    measured: list[Request] = field(default_factory=list)
    given_up: list[Request] = field(default_factory=list)
    again_of: dict[int, Latency] = field(default_factory=dict)
    timed_again: list[tuple[float, Result]] = field(default_factory=list)
    again_for: list[float] = field(default_factory=list)
    confirmed_for: list[float] = field(default_factory=list)
    afresh: dict[str, float] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    kept: list[Progress] = field(default_factory=list)

    def result(self, request: Request) -> Result:
        made = _made(request.recipe, request.engine, self.images, self.ratio(request), self.is_noisy(request))
        if self.noise:
            told = detector(request.recipe, self.noise(request))
            made = replace(made, accuracy=told.accuracy, baseline_accuracy=told.baseline_accuracy)
        lost = self.lost(request)
        if lost is not None:
            made = losing(made, *lost)
        return replace(
            made, request=request, key=digest([request, made.accuracy.is_fidelity, self.images, lost])
        )

    def measure(self, request: Request, unwanted: Unwanted, report: Report = quiet) -> Result | None:
        made = self.result(request)
        self.now += SECONDS / 10
        known = Known(request, made.inspection, made.accuracy.total, made.accuracy, made.baseline_accuracy)
        if unwanted(Known(request, made.inspection)) or unwanted(known) or unwanted(None):
            self.given_up.append(request)
            return None
        self.now += SECONDS
        self.measured.append(request)
        self.results[made.key] = made
        return made

    def again(self, result: Result, seconds: float) -> Latency:
        if found := self.again_of.get(result.latency.checksum):
            return found
        self.now += max(SECONDS, seconds)
        self.timed_again.append((self.now, result))
        self.again_for.append(seconds)
        noisy, seed = self.now < self.calm_at, len(self.timed_again)
        made = make_result(result.request.recipe, quick=True, noisy=noisy, seed=seed).latency
        self.again_of[result.latency.checksum] = made
        return made

    def newest(self, result: Result) -> Result:
        while latency := self.again_of.get(result.latency.checksum):
            result = replace(result, latency=latency)
        return result

    def confirm(self, result: Result, seconds: float) -> Latency:
        self.now += max(SECONDS, seconds)
        self.confirmed_for.append(seconds)
        worse = self.afresh.get(result.key)
        return result.latency if worse is None else make_result(ratio=worse).latency

    def ask(
        self, limits: Limits, search: str = "grid", budget: float = 1000.0, space: Space = SMALL
    ) -> Answered:
        return self.go_on(question(limits, search, budget, space), Progress())

    def go_on(
        self,
        asked: Question,
        before: Progress,
        measure: Callable[[Request, Unwanted, Report], Result | None] | None = None,
        enough: Callable[[], bool] = lambda: False,
    ) -> Answered:
        """From where a search was before."""
        answer = find(
            asked,
            measure or self.measure,
            self.again,
            self.confirm,
            before=before,
            stored=[self.newest(one) for one in self.results.values()],
            keep=self.kept.append,
            enough=enough,
            clock=lambda: self.now,
        )
        return Answered(answer, self.results)
