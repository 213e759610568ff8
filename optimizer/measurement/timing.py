"""How a latency is measured: quick in this process, in full in fresh ones; for longer where it is noisy, and
a small difference that a quick one finds in fresh ones too."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np

from optimizer.analysis.noise import SMALL_CHANGE, NoiseKind
from optimizer.analysis.statistics import LatencySummary, LatencyVerdict
from optimizer.engine.base import Runner
from optimizer.errors import UnavailableError
from optimizer.measurement.fresh_processes import joined, time_in_processes
from optimizer.measurement.latency import BASELINE, EFFORTS, LatencyEffort, LatencySeries, time_interleaved
from optimizer.progress import Report, quiet
from optimizer.recipe import Recipe
from optimizer.records import Instructions, Latency, Settings

VARIANT = "variant"
CONFIRMING = 2
"""Fresh processes. With the one that found a difference they are the fewest whose scatter says much."""
CONFIRMING_SECONDS = 20.0
"""So long each of them may take, and twice what the rounds of the first series took."""


def time_latency(
    baselines: tuple[Runner, Runner],
    variant: Runner,
    images: np.ndarray,
    settings: Settings,
    signature: str,
    recipe: Recipe,
    report: Report = quiet,
    noisy: Callable[[Latency], None] = lambda latency: None,
    efforts: Mapping[bool, LatencyEffort] = EFFORTS,
) -> Latency:
    """Compare one variant with its baseline, over ``images`` ``[N, C, H, W]``.

    ``signature`` and ``recipe`` are kept with it. ``noisy`` is given a measurement that is made again;
    ``efforts`` are by whether it is quick. Raises WorkError where an engine fails.
    """

    def latency(series: LatencySeries, attempts: int) -> Latency:
        return Latency(
            signature=signature,
            recipe=recipe,
            baseline=series.baseline,
            variant=series.variants[VARIANT],
            batch=settings.batch,
            threads=settings.threads,
            quick=settings.quick,
            seed=settings.seed,
            warmup_calls=series.warmup_calls,
            stolen_share=series.stolen_share,
            attempts=attempts,
            processes=series.processes,
            lost=series.lost,
            instructions=Instructions(series.instructions[BASELINE[0]], series.instructions[VARIANT])
            if series.instructions
            else None,
        )

    return latency(
        *time_series(
            baselines,
            {VARIANT: variant},
            images,
            settings,
            report,
            lambda series, attempt: noisy(latency(series, attempt)),
            efforts,
        )
    )


def time_series(
    baselines: tuple[Runner, Runner],
    variants: Mapping[str, Runner],
    images: np.ndarray,
    settings: Settings,
    report: Report = quiet,
    noisy: Callable[[LatencySeries, int], None] = lambda series, attempt: None,
    efforts: Mapping[bool, LatencyEffort] = EFFORTS,
) -> tuple[LatencySeries, int]:
    """Time the variants by name, quick or in full, and the attempts it took: a series that is ``noisy`` for
    one of them goes on where it had too few rounds, and is measured anew where it was disturbed; the last is
    kept as it is.

    A quick one that finds a small difference goes on in fresh processes, which build the networks anew:
    rounds of the same builds would find it again, whatever the networks.
    """
    effort, before = efforts[settings.quick], None
    for attempt in range(1, effort.attempts + 1):
        report(None, "timing" if attempt == 1 else "timing for longer, since it was noisy")
        began = time.monotonic()
        other = replace(settings, seed=settings.seed + bool(before))  # another order of the visits
        series = _time(baselines, variants, images, other, effort.again(attempt), report)
        if before:
            series = _longer(before, series)
        summaries = series.summaries.values()
        reasons = {reason.kind for summary in summaries for reason in summary.reasons}
        if not reasons:
            break
        before = series if reasons == {NoiseKind.BUILDS_UNKNOWN} else None
        if attempt < effort.attempts:
            noisy(series, attempt)
    doubtful = not effort.processes and any(map(_is_small, summaries))
    if doubtful and not any(one.loads_slowly for one in (*baselines, *variants.values())):
        report(None, "timing in fresh processes, since the difference is small")
        seconds = CONFIRMING_SECONDS + 2 * (time.monotonic() - began)
        effort = replace(EFFORTS[True], processes=CONFIRMING, process_seconds=seconds)
        other = replace(settings, seed=settings.seed + 1)  # another order of the visits
        with suppress(UnavailableError):  # as it is, where no process can load the networks
            found = time_in_processes(baselines[0], variants, images, other, effort, report)
            series = joined([series, found])
    return series, attempt


def _longer(before: LatencySeries, series: LatencySeries) -> LatencySeries:
    """One series of two. Those of this process, with the same builds, are of one process."""
    found = joined([before, series])
    if max(len(before.processes), len(series.processes)) > 1:
        return found
    return replace(found, processes=(sum(found.processes),), instructions=series.instructions)


def _is_small(summary: LatencySummary) -> bool:
    """Whether a difference is told that builds alone may make."""
    told = summary.verdict in (LatencyVerdict.FASTER, LatencyVerdict.SLOWER)
    return told and abs(summary.ratio - 1) < SMALL_CHANGE


def _time(
    baselines: tuple[Runner, Runner],
    variants: Mapping[str, Runner],
    images: np.ndarray,
    settings: Settings,
    effort: LatencyEffort,
    report: Report,
) -> LatencySeries:
    """Where no process can load the networks again (an engine without a loader, a class of a notebook), all
    rounds are in this one."""
    if effort.processes:
        try:
            return time_in_processes(baselines[0], variants, images, settings, effort, report)
        except UnavailableError:
            effort = replace(effort, seconds=effort.processes * effort.seconds, processes=0)
    return time_interleaved(baselines, variants, images, settings, effort)
