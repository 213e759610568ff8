"""The best of several configurations, timed once more: it was chosen for a good figure, which may have been
luck."""

from dataclasses import replace

from optimizer.analysis.metrics import metric
from optimizer.analysis.serving import BestServed, ServingRequest, ServingRun, comparisons
from optimizer.formats import format_ns


def alone(run: ServingRun, best: BestServed) -> ServingRequest:
    """What times the best one by itself, and in another order."""
    one, request = best.comparison.configuration, run.request
    return replace(
        request,
        batches=(one.batch,),
        threads=(one.threads,),
        streams=(one.streams,),
        seed=request.seed + 1,
    )


def timed_afresh(best: BestServed, again: ServingRun, limit_ns: float) -> str:
    """What that came to, and whether it is still under the limit, by the bound of its interval."""
    (one,) = comparisons(again)
    figures = one.of(best.network)
    kept = figures.latency_high <= limit_ns
    return (
        f"Timed afresh: {metric('throughput').format(figures.throughput)}, "
        f"{format_ns(figures.latency_ns)} a request"
        f"{'' if kept else f', and no longer shown to be under {format_ns.given(limit_ns)}'}."
    )
