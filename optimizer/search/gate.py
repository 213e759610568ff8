"""A gate: measure until it can be told whether limits are kept, or the time for it is spent."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from optimizer.analysis.earlier import Conditions, check_same_network
from optimizer.analysis.gate import (
    Check,
    GateLimits,
    Outcome,
    check_against,
    drop_check,
    drop_of,
    drop_of_files,
    instructions_check,
    overall,
    size_check,
    slowdown_check,
    sqnr_check,
)
from optimizer.analysis.rounds import confidence_of_each
from optimizer.analysis.two_files import TwoFiles
from optimizer.progress import Report, quiet
from optimizer.records import Accuracy, Latency, OutputFidelity, Request, Result

MAX_LOOKS = 6
"""Series of one gate. The first that decides ends it, so each has the confidence for all to hold at once."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a gate: ``series`` of timing were looked at, in ``seconds``. ``against`` is the earlier
    result that it was held against, where that was not the uncompressed model."""

    result: Result | TwoFiles
    checks: tuple[Check, ...]
    series: int
    seconds: float
    against: Result | None = None

    @property
    def outcome(self) -> Outcome:
        return overall(self.checks)


def judge(
    request: Request,
    limits: GateLimits,
    measure: Callable[[Request], Result],
    time_again: Callable[[Request], Latency],
    budget_seconds: float,
    against: Result | None = None,
    report: Report = quiet,
    clock: Callable[[], float] = time.monotonic,
) -> Verdict:
    """Measure once, and time again until the limits are kept, broken, or ``budget_seconds`` are spent.

    At least one series is timed, and none is begun that would not end in time by what those before took: the
    first, which is scored too or comes from the store, by its calls alone, later ones on average.
    Raises InputError where ``against`` can't be compared with, and what the measurement raises.
    """
    begun = clock()
    report(None, "measuring")
    result = measure(request)
    size_bytes = result.inspection.size.file_bytes

    def lost(limit: float) -> Check:
        return drop_check(drop_of(result, against), limit, result.accuracy.reference == "labels")

    others = _checks(limits, lost, result.accuracy, size_bytes)
    if against is not None:
        check_against(Conditions.of(result), against, limits)
        if limits.slowdown_percent is not None:
            check_same_network(result, against)
    verdict = Verdict(result, others, 0, clock() - begun, against)
    return _timed(
        verdict, limits, lambda: time_again(request), budget_seconds, report, lambda: clock() - begun
    )


def judge_files(
    limits: GateLimits,
    compare: Callable[[], tuple[TwoFiles, Callable[[], Latency]]],
    budget_seconds: float,
    report: Report,
    size_bytes: int | None = None,
) -> Verdict:
    """As :func:`judge`, of two networks as they are: ``compare`` gives what was measured, and what times them
    once more. ``size_bytes`` are those of the second where its file is none to be served, but what an engine
    runs."""
    begun = time.monotonic()
    report(None, "comparing")
    run, time_again = compare()

    def lost(limit: float) -> Check:
        return drop_check(drop_of_files(run), limit, bool(run.a.correct))

    size_bytes = run.b.size_bytes if size_bytes is None else size_bytes
    others = _checks(limits, lost, run.outputs, size_bytes)
    verdict = Verdict(run, others, 0, time.monotonic() - begun)
    return _timed(verdict, limits, time_again, budget_seconds, report, lambda: time.monotonic() - begun)


def _checks(
    limits: GateLimits,
    lost: Callable[[float], Check],
    outputs: Accuracy | Sequence[OutputFidelity],
    size_bytes: int,
) -> tuple[Check, ...]:
    """Of all that has a limit but time."""
    found = list[Check]()
    if limits.drop_points is not None:
        found.append(lost(limits.drop_points))
    if limits.sqnr_db is not None:
        found.append(sqnr_check(outputs, limits.sqnr_db))
    if limits.size_mb is not None:
        found.append(size_check(size_bytes, limits.size_mb))
    return tuple(found)


def _timed(
    verdict: Verdict,
    limits: GateLimits,
    time_again: Callable[[], Latency],
    budget_seconds: float,
    report: Report,
    spent: Callable[[], float],
) -> Verdict:
    """With time checked too, where that has a limit."""
    latency, others, against = verdict.result.latency, verdict.checks, verdict.against
    took = list[float]()

    def timed_again() -> Latency:
        begun = spent()
        found = time_again()
        took.append(spent() - begun)
        return found

    if limits.instructions_percent is not None:
        result = verdict.result
        if latency.instructions is None:  # kept from before they were counted
            latency = timed_again()
            result = replace(result, latency=latency)
        others = (*others, instructions_check(latency, against, limits.instructions_percent))
        verdict = replace(verdict, result=result, checks=others, series=1, seconds=spent())
    if limits.slowdown_percent is None:
        return verdict
    latencies, confidence = [latency], confidence_of_each(MAX_LOOKS)
    while True:
        timed = slowdown_check(latencies, against, limits.slowdown_percent, confidence)
        verdict = replace(verdict, checks=(*others, timed), series=len(latencies), seconds=spent())
        failed = overall(others) is Outcome.FAIL if others else False
        if timed.outcome is not Outcome.UNDECIDED or failed or len(latencies) == MAX_LOOKS:
            return verdict
        each = fmean(took) if took else latency.seconds
        if verdict.seconds + each > budget_seconds:
            return verdict
        report(
            verdict.seconds / budget_seconds,
            f"{timed.words}; timing series {len(latencies) + 1} of at most {MAX_LOOKS}",
        )
        latencies.append(timed_again())
