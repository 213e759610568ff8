"""One HTML file for a list of results: what was found in plain sentences, then how far it can be trusted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType

import pandas as pd

from optimizer.analysis.badges import NOT_SAID, BadgeKind
from optimizer.analysis.comparison import image_files
from optimizer.analysis.frontier import frontier_of, ranked_words
from optimizer.analysis.headline import may_be
from optimizer.analysis.labels import engine_label
from optimizer.analysis.measures import all_equal
from optimizer.analysis.metrics import metric
from optimizer.analysis.outcomes import AccuracyVerdict, images_needed, shown_within
from optimizer.analysis.rounds import confidence_of_each
from optimizer.analysis.statistics import LatencyVerdict
from optimizer.analysis.summary import FIDELITY, Summary, summarise
from optimizer.charts import compare_info, search_info
from optimizer.export.tables import HOW_TO_READ, Charts, Section, are_alike, charts_of, page, title_of
from optimizer.formats import capital, count, format_bytes, format_ns, format_p, format_ratio
from optimizer.records import Result
from optimizer.search.answer_data import command, trial_frame
from optimizer.search.answers import asked_words, details, headline
from optimizer.search.questions import Answered

TOLERATED_POINTS = 1
"""The accuracy loss under which the report looks for the fastest and the smallest configuration."""
MAX_SENTENCES = 12
MIN_RESULTS_OF_CHARTS, MAX_ROWS_IN_A_CHART = 4, 12

LIMITS = Section(
    "What these figures do not say",
    items=(
        *NOT_SAID,
        "Of twenty comparisons without any real difference, one is expected to show a difference by chance: "
        "read a long table with that in mind.",
    ),
)


def report(
    results: Sequence[Result],
    title: str | None = None,
    first: Sequence[Section] = (),
    more: Charts = MappingProxyType({}),
) -> str:
    """The report as one HTML document that opens without a network, its own sections and charts after those
    that are given. All text is escaped."""
    summaries = [summarise(result) for result in results]
    several = len(results) >= MIN_RESULTS_OF_CHARTS
    charts = {**more, **(charts_of(results) if several else {})}
    if len(results) <= MAX_ROWS_IN_A_CHART and (are_alike(results) or not several):  # else they are there
        charts |= {
            f"compare-{name}": compare_info(results, name)
            for name in ("accuracy", "file_size", "latency_ratio")
        }
    return page(
        title or f"Report on {title_of(results)}",
        results,
        charts,
        before=[*first, *_found(summaries), *_verdicts(summaries)],
        after=(_how_measured(summaries), HOW_TO_READ, LIMITS),
    )


def answer_report(found: Answered, only_python: bool = False) -> str:
    """The report of a question under limits: what was asked and what is the answer, how to repeat it, and all
    that was tried. ``only_python`` can ask again of a model or images that no name or path leads to."""
    question, steps = found.answer.question, found.answer.progress.steps
    limit = question.limits.given.get(question.minimise)
    repeat = "" if only_python else command(question)
    repeat = (
        repeat or "It was asked in Python, of a model or images that it had: ask px.find again with them."
    )
    asked = (
        f"{capital(asked_words(question))}.",
        f"Searched: {question.space.positions:,} configurations, {question.search}, seed "
        f"{question.settings.seed}. Limits are kept by the bounds of the 95 % intervals.",
    )
    return report(
        found.shown,
        f"{question.model}: {metric(question.minimise).label} under limits",
        (
            Section("What was asked", asked),
            Section("Answer", (headline(found),), details(found)),
            Section("How to repeat it", (repeat,)),
            Section("Everything that was tried", rows=trial_frame(found)),
        ),
        {"search": search_info(steps, question.minimise, limit)} if found.measured else {},
    )


def accuracy_sentence(summary: Summary) -> str:
    """``accuracy falls by 1.2 points (0.4 to 2.0), p = 0.004, to 92.2 % (91.7 to 92.7)``."""
    if summary.fidelity:
        figures = ", ".join(f"{metric(name).label} {summary.text(name)}" for name in FIDELITY)
        words = "equal to the uncompressed ones" if all_equal(summary.measures) else figures
        return f"outputs: {words} on {summary.images}"
    drop = summary.drop
    what = "accuracy" if summary.reference == "labels" else "agreement with the uncompressed model"
    if summary.recipe.identity:
        return f"{what} is {summary.text('accuracy')} on {summary.images}"
    test = "" if drop.p is None else f", {format_p(drop.p)}"
    if drop.verdict is AccuracyVerdict.SAME:
        may = may_be(drop)
        return (
            f"{what}: {drop.verdict.label}, {summary.text('accuracy')} on {summary.images}; "
            f"{may[0].lower()}{may[1:]}{test}"
        )
    if drop.verdict is AccuracyVerdict.WORSE:
        change = f"falls by {summary.text('drop')}"
    else:
        change = f"rises by {metric('drop').format(-drop.points, -drop.high, -drop.low)}"
    return f"{what} {change}{test}, to {summary.text('accuracy')} on {summary.images}"


def size_sentence(summary: Summary) -> str:
    """``the file shrinks from 2.35 MB to 593 kB (0.253×), 180 kB through zstd``."""
    before, after = summary.baseline_size.file_bytes, summary.size.file_bytes
    if before == after:
        change = f"the file is {summary.text('file_size')}"
        if not summary.recipe.identity:
            change += ", as before"
    else:
        verb = "shrinks" if after < before else "grows"
        change = (
            f"the file {verb} from {format_bytes(before)} to {summary.text('file_size')} "
            f"({format_ratio(after / before)})"
        )
    return f"{change}, {summary.text('compressed_size')} through zstd"


def latency_sentence(summary: Summary) -> str:
    """``a call takes 274 µs instead of 608 µs: 0.450× (0.449 to 0.451), faster``."""
    latency = summary.latency
    if latency.verdict is LatencyVerdict.NOISY:
        return f"the latency is not to be trusted ({'; '.join(latency.noise)})"
    if latency.verdict is LatencyVerdict.SAME:
        sentence = (
            f"latency: {latency.verdict.label}, {summary.text('latency')} a call, "
            f"{summary.text('latency_ratio')} ({latency.detectable_words})"
        )
    else:
        before = format_ns(summary.measures["latency"].baseline)
        sentence = (
            f"a call takes {summary.parts('latency')[0]} instead of {before}: "
            f"{summary.text('latency_ratio')}, {latency.verdict.label}"
        )
    if summary.note_on_sharing:
        sentence += f" ({summary.note_on_sharing})"
    return sentence + (", preliminary" if summary.preliminary else "")


def _found(summaries: Sequence[Summary]) -> Iterator[Section]:
    """What was found, on each set of images by itself: what is lost on others can't be compared."""
    sets = dict[object, list[Summary]]()
    for one, files in zip(summaries, image_files(summaries), strict=True):
        sets.setdefault((one.images, one.request.data, files, one.reference), []).append(one)
    for those in sets.values():
        if section := findings(those):
            heading = f"{section.heading} on {those[0].images}" if len(sets) > 1 else section.heading
            yield replace(section, heading=heading)


def findings(summaries: Sequence[Summary]) -> Section | None:
    """The fastest and the smallest configuration that is sure not to lose more than is tolerated.

    Each is the best of many, so what is sure of one is sure of all of them at once.
    """
    compressed = [one for one in summaries if not one.recipe.identity and not one.fidelity]
    if not compressed:
        return None
    tried = len(compressed)
    shown = shown_within([summary.drop.high_at for summary in compressed], TOLERATED_POINTS)
    sure = [summary for summary, one in zip(compressed, shown, strict=True) if one]
    points = count(TOLERATED_POINTS, "point")
    if not sure:
        best = min(compressed, key=lambda summary: summary.drop.high)
        words = (
            f"No configuration surely lost at most {points}: every bound reaches further.{_luck(compressed)}"
        )
        needed = images_needed(TOLERATED_POINTS, confidence_of_each(tried))
        images = max(summary.total for summary in compressed)
        if images < needed and any(summary.reference == "labels" for summary in compressed):
            words += (
                f" These are too few images to promise {points}: {images:,} here, {needed:,} needed even if "
                "no answer changes."
            )
        return Section("What was found", (words,), (f"The surest{_of(tried)} is {_with_sentences(best)}",))
    items = []
    faster = [summary for summary in sure if summary.latency.verdict is LatencyVerdict.FASTER]
    alike = _timed_alike(compressed)
    for words, its in alike.items():
        if sooner := [summary for summary in its if summary in faster]:
            fastest = min(sooner, key=lambda summary: (summary.latency.ratio, summary.drop.points))
            of = f" for {words}" if len(alike) > 1 else ""
            items.append(f"The fastest of these{of}{_of(len(its))} is {_with_sentences(fastest)}")
    if not faster:
        items.append("None of these is measurably faster than the uncompressed model.")
    smallest = min(sure, key=lambda s: (s.size.compressed_bytes, s.size.file_bytes, s.drop.points))
    items.append(f"The smallest of these through zstd{_of(tried)} is {_with_sentences(smallest)}")
    number = f"{len(sure)} of {count(tried, 'compressed configuration')}"
    words = f"{number} surely lost at most {points}: the bound of the loss lies below.{_luck(compressed)}"
    return Section("What was found", (words,), items)


def _of(tried: int) -> str:
    return f", best of {tried} tried," if tried > 1 else ""


def _timed_alike(summaries: Sequence[Summary]) -> dict[str, list[Summary]]:
    """By what their times are ratios to, in words: half of a slow engine's time may be more than all of a
    fast one's."""
    machines = {summary.environment_key for summary in summaries}
    found = dict[str, list[Summary]]()
    for summary in summaries:
        words = f"{summary.request.model} on {engine_label(summary.request.engine)}, {summary.served}"
        words += f" ({summary.environment})" if len(machines) > 1 else ""
        found.setdefault(words, []).append(summary)
    return found


def _luck(compressed: Sequence[Summary]) -> str:
    """Why the bounds of many reach further than the intervals that are printed."""
    if len(compressed) == 1:
        return ""
    alone = sum(summary.drop.high <= TOLERATED_POINTS for summary in compressed)
    return (
        f" The best of {len(compressed)} tried is in part the luckiest, so the bounds hold for all of them "
        f"at once (Holm's method); by their own intervals, as printed below, {alone} would pass."
    )


def _verdicts(summaries: Sequence[Summary]) -> Iterator[Section]:
    """Each configuration in sentences; of a long list only those on the frontier."""
    chosen = list(summaries)
    words = []
    if len(chosen) > MAX_SENTENCES:
        chosen = [summary for summary, on in zip(chosen, frontier_of(chosen).optimal, strict=True) if on]
        words = [f"The configurations on the frontier of {ranked_words(summaries)}:"]
    items = [capital(_with_sentences(summary)) for summary in chosen]
    if items:
        yield Section("Each configuration", words, items)


def _with_sentences(summary: Summary) -> str:
    engine = engine_label(summary.request.engine)
    name = f"{summary.description} ({summary.request.model} on {engine}, {summary.served})"
    return f"{name}: {accuracy_sentence(summary)}; {size_sentence(summary)}; {latency_sentence(summary)}."


def _how_measured(summaries: Sequence[Summary]) -> Section:
    networks: dict[str, Callable[[Summary], str]] = {
        "model": lambda summary: summary.request.model,
        "engine": lambda summary: engine_label(summary.request.engine),
    }
    several = {name: of for name, of in networks.items() if len({*map(of, summaries)}) > 1}
    rows = [
        {name: of(summary) for name, of in several.items()}
        | {
            "recipe": summary.description,
            "images": summary.images,
            "kernels": ", ".join(
                f"{count(layers, 'layer')} {kind}" for kind, layers in summary.precisions.items()
            ),
            "rounds": summary.latency.rounds,
            "processes": max(1, len(summary.processes)),
            "first call": f"{summary.text('first_call')}, {summary.text('first_call_ratio')}",
            "served with": summary.served,
            "baseline against itself": metric("latency_ratio").format(
                summary.latency.aa_ratio, summary.latency.aa_low, summary.latency.aa_high
            ),
            "to know": "; ".join(
                [badge.text for badge in summary.badges if badge.kind is not BadgeKind.MEASURED]
                + ([summary.note_on_sharing] if summary.note_on_sharing else [])
                + [*summary.notes]
                # The badge of what is simulated says it already.
                + ([summary.scored_elsewhere] if summary.scored_elsewhere and not summary.simulated else [])
            ),
        }
        for summary in summaries
    ]
    return Section(
        "How each number was measured",
        (
            "Accuracy and time come from the same graph and weights; precision and kernels are those of what "
            "is timed. Latency is timed in rounds: each visits two builds of the baseline and the "
            "configuration, in a shuffled order, and calls them until they have settled; what is timed comes "
            "after that. In full mode several fresh processes do so, each with builds of its own. Where a "
            "quick timing finds a difference below 15 %, two fresh processes follow it.",
            *sorted(
                {
                    f"To repeat a latency with another instrument, export the model and run: {one.repeat}"
                    for one in summaries
                    if one.repeat
                }
            ),
        ),
        rows=pd.DataFrame(rows),
    )
