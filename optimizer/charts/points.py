"""A result as a point of a chart: its place and interval, its marker, and the words that it shows when
pointed at."""

import html
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from optimizer.analysis.badges import BadgeKind
from optimizer.analysis.labels import engine_label
from optimizer.analysis.measures import Measure
from optimizer.analysis.metrics import METRICS
from optimizer.analysis.realisation import Realisation, ran
from optimizer.analysis.summary import FIDELITY, Summary, label_of
from optimizer.charts.spec import Point
from optimizer.charts.theme import MARKERS
from optimizer.formats import count, format_count, format_p
from optimizer.recipe import WEIGHT_BITS


def point_of(summary: Summary, x: float, measure: Measure, timed: bool = False) -> Point | None:
    """A result at ``x``. ``timed``: the figure is a time, so noise fades it."""
    if measure.value is None or not math.isfinite(measure.value) or not math.isfinite(x):
        return None
    return Point(
        x,
        measure.value,
        summary.key,
        measure.low,
        measure.high,
        hover=hover(summary),
        marker="x" if timed and summary.other_machine else MARKERS[summary.realisation],
        simulated=bool(summary.simulated),
        noisy=timed and bool(summary.noise),
    )


def selected_point(points: Iterable[Point], key: str | None) -> Point | None:
    """The point of the result with that key, or None."""
    return next((point for point in points if point.key == key), None)


def hollow(points: Iterable[Point]) -> list[str]:
    """What their look means where some are hollow: a note of the chart."""
    return ["hollow: simulated"] * any(point.simulated for point in points)


def shapes(points: Iterable[Point]) -> tuple[tuple[str, str], ...]:
    """Their markers and what each stands for, where there are several."""
    markers = {point.marker for point in points}
    found = tuple(
        (marker, f"{'other environment, or ' * (kind is Realisation.UNKNOWN)}{kind.label}")
        for kind, marker in MARKERS.items()
        if marker in markers
    )
    return found if len(found) > 1 else ()


@lru_cache(maxsize=4096)
def hover(summary: Summary) -> str:
    """The recipe in words, every figure with its interval, and how it was measured; escaped for plotly."""
    lines = [
        f"<b>{html.escape(summary.description)}</b>",
        html.escape(f"{summary.request.model} on {engine_label(summary.request.engine)}, {summary.images}"),
        *(
            [f"{METRICS[name].label} {summary.text(name)}" for name in FIDELITY]
            if summary.fidelity
            else [f"{label_of('accuracy', [summary])} {summary.text('accuracy')}", html.escape(lost(summary))]
        ),
        f"file {summary.text('file_size')} · packed {summary.text('packed_size')}"
        f" · zstd {summary.text('compressed_size')}",
        f"latency {summary.text('latency')}",
        f"ratio {summary.text('latency_ratio')}: {summary.latency.verdict.label}",
        f"first call {summary.text('first_call')}, ratio {summary.text('first_call_ratio')}",
        f"non-zero weights {summary.text('nonzero')} of {format_count(summary.size.elements)}",
        f"ran: {ran(summary.realisation, summary.fallback)}, {summary.latency.rounds} rounds, "
        f"{count(summary.threads, 'thread')}, batch size {summary.batch}",
    ]
    if summary.measures["memory"].value is not None:
        lines.insert(5, f"memory {summary.text('memory')}")
    if summary.measures["cold_start"].value is not None:
        lines.append(f"cold start {summary.text('cold_start')}")
    if summary.shared_with:
        lines.append(html.escape(f"time shared with: {summary.shared_with}"))
    lines += [
        html.escape(clip(badge.text)) for badge in summary.badges if badge.kind is not BadgeKind.MEASURED
    ]
    return "<br>".join(lines)


def lost(summary: Summary) -> str:
    """``lost 1.2 points (0.4 to 2.0), worse, p = 0.004``; without labels no answer is known
    to be worse: ``lost 5.3 points (0.1 to 24.6): 1 of 19 images answered otherwise``."""
    drop = summary.drop
    if drop.p is None:
        otherwise = f": {drop.lost} of {count(drop.total, 'image')} answered otherwise"
        return f"lost {summary.text('drop')}{'' if summary.recipe.identity else otherwise}"
    verdict = "" if summary.recipe.identity else f", {drop.verdict.label}"
    return f"lost {summary.text('drop')}{verdict}, {format_p(drop.p)}"


def clip(text: str, most: int = 90) -> str:
    """The text, cut off where it is longer than ``most`` letters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def wrapped(text: str, most: int) -> str:
    """In lines of at most so many letters; a dot between two parts stays with the first."""
    lines = textwrap.wrap(text.replace(" · ", "\N{NO-BREAK SPACE}· "), most)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def brief(names: Sequence[tuple[str, str]]) -> list[str]:
    """Of each name, given in short and in full, the short one, unless two that differ have the same."""
    often = Counter(short for short, _ in {*names})
    return [short if often[short] == 1 else full for short, full in names]


def bits_role(bits: float) -> str:
    """The colour role of the width that comes nearest."""
    return f"bits {min(WEIGHT_BITS, key=lambda width: abs(width - bits))}"
