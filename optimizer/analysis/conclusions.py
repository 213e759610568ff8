"""What a complexity run tells, in sentences, and as JSON for others. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from optimizer.analysis.growth import (
    break_even_bracket,
    effects,
    fits,
    frame,
    growth_factors,
    headline,
    predicted_break_even,
    ten_times,
)
from optimizer.analysis.scaling import (
    SKIPPING,
    STACK,
    ComplexityRun,
    ExecutionKind,
    against_dense,
    counts,
    n_is,
)
from optimizer.analysis.slopes import SLOPE_MARGIN, Fit, Growth, order_stays
from optimizer.analysis.statistics import LatencySummary, LatencyVerdict
from optimizer.formats import count, format_count, format_ns, format_ratio, significant

NAMES = {ExecutionKind.SPARSE: "Sparse kernel", ExecutionKind.CSR: "CSR"}


def conclusions(run: ComplexityRun, others: Iterable[ComplexityRun] = ()) -> tuple[str, ...]:
    """What the numbers say, in sentences. ``others`` are runs at other shares: those that measured the same
    points on this machine tell between which shares an execution that skips zeros breaks even with dense."""
    return (*of_each(run, others), *lesson(run))


def of_each(run: ComplexityRun, others: Iterable[ComplexityRun]) -> tuple[str, ...]:
    """What the removal does to each execution, and the slopes."""
    removal = _removal(run, effects(run), [*others]) if run.request.removed_share else ()
    return (*removal, *_slopes(run))


def lesson(run: ComplexityRun) -> tuple[str, ...]:
    """That no removal makes the time constant, and where it looks so."""
    return (*_ten_times(run, effects(run)), *_overheads(run))


def _removal(
    run: ComplexityRun, summaries: Mapping[str, LatencySummary], others: Sequence[ComplexityRun]
) -> Iterable[str]:
    points, share = headline(run), _percent(run.request.removed_share)
    doing = "Halving the weights" if run.request.removed_share == 0.5 else f"Removing {share} of the weights"
    where = f"at n = {format_count(points[0].n)}"
    if run.request.family != STACK:
        where = f"in {count(len(points), 'layer')} of {run.request.family} together"
    before = sum(point.n for point in points)

    def visits(execution: str) -> str:
        after = sum(point.operations(execution, removed=True) for point in points)
        return f"{format_count(after)} of {format_count(before)} visits"

    yield (
        f"{doing} {where}, dense execution: {_change(summaries[ExecutionKind.DENSE])}; "
        f"the zeros are multiplied too ({visits(ExecutionKind.DENSE)})."
    )
    for execution in SKIPPING:
        if execution in run.executions:
            name = NAMES[execution]
            own = _change(summaries[execution], "of its own time before")
            yield f"{name}: {own}; the zeros are skipped ({visits(execution)})."
            yield _break_even(run, execution, summaries[against_dense(execution)], others)
    rows, int8 = ExecutionKind.ROWS, ExecutionKind.INT8
    yield f"Rows removed: {_change(summaries[rows])}; the layers are smaller, still dense ({visits(rows)})."
    if int8 in run.executions:
        own = _change(summaries[int8], "of its own time before")
        dense = _change(summaries[against_dense(int8)], "of its time")
        yield f"int8: {own}; the zeros are multiplied too ({visits(int8)}). Against dense float32: {dense}."


def _break_even(
    run: ComplexityRun, execution: ExecutionKind, effect: LatencySummary, others: Sequence[ComplexityRun]
) -> str:
    """Where skipping zeros catches up with dense: measured at other shares, or as predicted."""
    share = _percent(run.request.removed_share)
    against = f"{NAMES[execution]} with {share} removed against dense: {_change(effect, 'of the dense time')}"
    if bracket := break_even_bracket(run, execution, others):
        low, high = map(_percent, bracket)
        return f"{against}; measured at other shares too, break-even lies between {low} and {high} removed."
    if (even := predicted_break_even(run, execution)) is not None:
        return f"{against}; predicted, not measured: break-even at {_percent(even)} removed."
    return f"{against}; predicted, not measured: it would not catch up even at 99 % removed."


def _change(summary: LatencySummary, of: str = "of the time before") -> str:
    ratio = f"{summary.ratio_words} {of}"
    if summary.verdict is LatencyVerdict.NOISY:
        return f"{ratio}, but noisy: {summary.noise[0]}"
    if summary.verdict is LatencyVerdict.SAME:
        return f"{summary.verdict.label}, {ratio} ({summary.detectable_words})"
    return f"{summary.verdict.label}, {ratio}"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _after(run: ComplexityRun) -> str:
    return "After the removal" if run.request.removed_share else "With every weight"


def _slopes(run: ComplexityRun) -> Iterable[str]:
    if lines := fits(run):
        slopes = ", ".join(
            f"{execution.label} n^{fit.slope:.2f} ({fit.low:.2f} to {fit.high:.2f})"
            for execution, fit in lines.items()
        )
        yield (
            f"{_after(run)}, time above the overhead grows as {slopes}; the ranges describe how the sizes "
            "scatter around the line."
        )
        yield from _shapes(lines)


def _ten_times(run: ComplexityRun, summaries: Mapping[str, LatencySummary]) -> Iterable[str]:
    if (pair := ten_times(run)) is None:
        return
    small, large = pair
    factors = growth_factors(run, small, large)
    took = ", ".join(f"{execution.label} {format_ratio(*factor)}" for execution, factor in factors.items())
    more = f"{significant(large.n / small.n, 3)} times the {n_is(run)}"
    step = f"{more} ({format_count(small.n)} to {format_count(large.n)}) multiply the time: {took}"
    flat = [execution.label for execution, (_, low, _) in factors.items() if low <= 1]
    unsure = f" For {', '.join(flat)} the times are too noisy to show growth: measure again." if flat else ""
    if len(flat) == len(factors) or not run.request.removed_share:
        yield f"{_after(run)}, {step}.{unsure}"
    else:
        fell = [
            execution.label
            for execution in run.executions
            if summaries[execution].verdict is LatencyVerdict.FASTER
        ]
        noisy = [execution.label for execution in run.executions if summaries[execution].noise]
        why = f", as times are noisy ({', '.join(noisy)})" if noisy else ""
        constant = (
            f"The constant falls ({', '.join(fell)})" if fell else f"No fall of the constant is shown{why}"
        )
        yield (
            f"Pruning does not make the time constant: after it, {step}. {constant}; {_order(run)}.{unsure}"
        )


def _shapes(lines: Mapping[ExecutionKind, Fit]) -> Iterable[str]:
    """Of which executions linear growth is shown, of which not, and which have no slope to speak of."""
    alike = {kind: [one.label for one, fit in lines.items() if fit.growth == kind] for kind in Growth}
    if linear := alike[Growth.LINEAR]:
        yield f"Linear growth is shown for {', '.join(linear)}: the slope's whole range is {_within('1')}."
    if unsure := alike[Growth.NOT_SHOWN]:
        yield f"Linear growth is not shown for {', '.join(unsure)}: the slope's range is not {_within('1')}."
    bent = [
        f"{execution.label} ({_percent(round(abs(worst.share), 2))} "
        f"{'above' if worst.share > 0 else 'below'} the fit at n = {format_count(worst.n)})"
        for execution, fit in lines.items()
        if (worst := fit.bent)
    ]
    if bent:
        yield f"Not a straight line, so that its slope says little: {', '.join(bent)}."


def _order(run: ComplexityRun) -> str:
    """Whether the order is shown to stay, by :func:`optimizer.analysis.slopes.order_stays`."""
    before, after = fits(run, removed=False), fits(run)
    stays = [one.label for one in after if one in before and order_stays(before[one], after[one])]
    if not stays:
        return "that the order stays is not shown"
    return f"the order stays ({', '.join(stays)}: slopes before and after {_within('1 and of each other')})"


def _within(what: str) -> str:
    return f"within {SLOPE_MARGIN:g} of {what}"


def _overheads(run: ComplexityRun) -> Iterable[str]:
    if lines := fits(run):
        floors = ", ".join(f"{execution.label} {format_ns(fit.floor_ns)}" for execution, fit in lines.items())
        longer = ", ".join(
            f"{format_count(fit.from_n)} ({execution.label})" for execution, fit in lines.items()
        )
        smallest = format_count(run.points[0].n)
        yield (
            f"A layer's call has an overhead that no removal saves: {floors} (the smallest stack, "
            f"n = {smallest}). The weights take longer than that from n = {longer}; only below does time "
            "look constant, pruned or not."
        )


def as_json(run: ComplexityRun) -> dict[str, Any]:
    """The figures derived from a run, as a JSON object versioned by ``schema``. Times are ns a call.

    - ``family``, ``removed_share``, ``batch``, ``threads``, ``quick``, ``seed``, ``created``, ``environment``
    - ``n_is``: what n counts
    - ``layers``: the operations counted layer by layer, as in :func:`optimizer.analysis.scaling.counts`
    - ``before``, ``after``: a row a point and execution, as in :func:`optimizer.analysis.scaling.frame`
    - ``growth``: by execution, after the removal: ``linear``, ``not shown to be linear`` or ``not a straight
      line``; ``order_stays``: whether the removal is shown to leave linear growth
    - ``effects``: by execution, and for those of other kernels against dense (``csr against dense``):
      ``ratio``, ``ratio_low``, ``ratio_high``, ``verdict``, ``detectable`` (the share by which a time must
      change to be told, or null), ``noise``, ``rounds``, at the points named in ``effects_at``
    - ``fits_before``, ``fits_after``: by execution, the fields of :class:`optimizer.analysis.slopes.Fit`
    - ``predicted_break_even``: for each execution that skips zeros a share, or null
    - ``conclusions``: sentences
    - ``skipped``: layers that were not timed, and why
    """
    fits_before, fits_after = fits(run, removed=False), fits(run)
    plain: dict[str, Any] = msgspec.to_builtins(
        {
            "schema": run.schema,
            "family": run.request.family,
            "removed_share": run.request.removed_share,
            "batch": run.batch,
            "threads": run.threads,
            "quick": run.request.quick,
            "seed": run.request.seed,
            "created": run.created,
            "environment": run.environment,
            "n_is": n_is(run),
            "layers": counts(run).to_dict("records"),
            "before": frame(run, removed=False).to_dict("records"),
            "after": frame(run).to_dict("records"),
            "effects": {name: summary.to_dict() for name, summary in effects(run).items()},
            "effects_at": [point.name for point in headline(run)],
            "fits_before": fits_before,
            "fits_after": fits_after,
            "growth": {execution: fit.growth for execution, fit in fits_after.items()},
            "order_stays": {
                execution: order_stays(fits_before[execution], fit)
                for execution, fit in fits_after.items()
                if execution in fits_before
            },
            "predicted_break_even": {
                execution: predicted_break_even(run, execution)
                for execution in SKIPPING
                if execution in run.executions
            },
            "conclusions": conclusions(run),
            "skipped": run.skipped,
        }
    )
    return plain
