"""Where the time of a call goes: by the kind of kernel, and layer by layer."""

import html

from optimizer.analysis.coverage import NEGLIGIBLE_SHARE, Coverage, Part, called, part, parts, uncompressed_ns
from optimizer.analysis.coverage import rows as operations
from optimizer.analysis.realisation import Realisation
from optimizer.charts.axes import from_zero, rows_axis
from optimizer.charts.points import clip, wrapped
from optimizer.charts.spec import Axis, Lines, Point, Segment, Series, StackPart, Stacks
from optimizer.charts.theme import MARKERS
from optimizer.formats import format_ns

PARTS = {
    Part.INT8: Realisation.INT8,
    Part.HALF: Realisation.HALF,
    Part.SPARSE: Realisation.SPARSE,
    Part.DENSE: Realisation.DENSE,
}
"""The realisation whose colour and marker a part has."""
COLOURS = {**PARTS, Part.CONVERSION: "file", Part.OTHER: "faint"}


def parts_info(run: Coverage) -> Stacks:
    """The time of a call by what ran, uncompressed and compressed, under the engine's profiler."""
    networks = {"uncompressed": run.baseline}
    if not run.request.recipe.identity:
        networks[wrapped(run.request.recipe.describe(details=False), 26)] = run.kernels
    bars = []
    for name, kernels in networks.items():
        taken = parts(kernels)
        total = sum(taken.values())
        segments = tuple(
            Segment(
                kind,
                time,
                f"<b>{kind.label}</b><br>{format_ns(time)}, {100 * time / total:.1f} %",
            )
            for kind, time in taken.items()
        )
        bars.append((name, segments))
    there = {segment.part for _, segments in bars for segment in segments}
    longest = max(sum(segment.value for segment in segments) for _, segments in bars)
    return Stacks(
        "Where the time goes",
        Axis("time of a call, from 0", "ns", "lower", span=from_zero(longest)),
        {kind: StackPart(kind.label, COLOURS[kind]) for kind in Part if kind in there},
        tuple(bars),
        note="under the profiler",
    )


def kernels_info(run: Coverage) -> Lines:
    """Time of each layer and each conversion of note, in the order of the network, beside the time that the
    layer took uncompressed."""
    every = operations(run.kernels)
    told = [
        (row, clip(name, 40))
        for row, name in zip(every, called(every), strict=True)
        if row.role == "layer" or (row.role == "conversion" and row.share >= NEGLIGIBLE_SHARE)
    ]
    shown, names = [row for row, _ in told], tuple(name for _, name in told)
    before = uncompressed_ns(run)

    def point(row: int, time_ns: float, words: str, marker: str) -> Point:
        return Point(
            time_ns, row, hover=f"<b>{html.escape(names[row])}</b><br>{html.escape(words)}", marker=marker
        )

    old = tuple(
        point(row, before[one.name], f"uncompressed: {format_ns(before[one.name])}", "circle")
        for row, one in enumerate(shown)
        if one.name in before
    )
    series = [Series("uncompressed", "baseline", old, line="none")] if not run.request.recipe.identity else []
    for kind in dict.fromkeys(part(one) for one in shown):
        ran = tuple(
            point(
                row,
                one.time_ns,
                f"{one.precision}, {one.kernel}: {format_ns(one.time_ns)}, {100 * one.share:.1f} %",
                MARKERS[PARTS[kind]] if kind in PARTS else "x",
            )
            for row, one in enumerate(shown)
            if part(one) == kind
        )
        series.append(Series(kind.label, COLOURS[kind], ran, line="none"))
    longest = max((point.x for one in series for point in one.points), default=1.0)
    return Lines(
        "Time of each layer, and the kernels that ran",
        Axis("time a call, from 0", "ns", "lower", span=from_zero(longest)),
        rows_axis(names),
        tuple(series),
        note="profiled: compare layers, not with the latency",
    )
