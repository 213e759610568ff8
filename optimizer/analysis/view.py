"""A result as one reads it in a notebook: figures with their intervals, in words and as a table."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from optimizer.analysis.frame import frame
from optimizer.analysis.frontier import ranked_words
from optimizer.analysis.labels import engine_label
from optimizer.analysis.measures import Measure
from optimizer.analysis.metrics import METRICS, metric
from optimizer.analysis.summary import FIDELITY, Summary, label_of, summarise
from optimizer.records import Request, Result

if TYPE_CHECKING:
    import pandas as pd

KEPT = ("accuracy", "drop")
"""Metrics of what is left of a classifier; FIDELITY stands in their place where outputs are no logits."""
ROWS = ("file_size", "latency", "latency_ratio")
"""Metrics that a result shows of itself, after these."""
COLUMNS = ("file_bytes", "latency_ratio", "latency_ratio_low", "latency_ratio_high", "frontier")
"""Columns of :func:`optimizer.analysis.frame.frame` that results show of themselves, after those."""


@dataclass(frozen=True, slots=True)
class AccuracyMeasures:
    """Accuracy in percent, and what was lost in points; each has ``value``, ``low``, ``high``, ``baseline``.

    ``reference`` is ``labels``, or ``baseline`` where without labels "right" means as the uncompressed model
    answers: less of that means other answers, not less accuracy. ``verdict`` says whether a difference was
    shown. Where outputs are no logits it is empty, and ``sqnr`` alone has a value.
    """

    value: Measure
    drop: Measure
    agreement: Measure
    sqnr: Measure
    reference: str
    verdict: str


@dataclass(frozen=True, slots=True)
class LatencyMeasures:
    """Nanoseconds a call at its steady pace, and the ratio to the uncompressed model on the same engine; the
    same of the first call after another network. ``noise`` has the reasons, in words, why the times are not
    to be trusted."""

    median: Measure
    ratio: Measure
    first_call: Measure
    first_call_ratio: Measure
    p95: Measure
    verdict: str
    noise: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SizeMeasures:
    """Bytes: of the file, packed to its bits, through zstd, and in memory where that was measured."""

    file: Measure
    packed: Measure
    compressed: Measure
    memory: Measure


@dataclass(frozen=True, slots=True, eq=False)
class ResultView:
    """What was measured of one recipe. ``record`` has the raw samples, as they are stored; ``workspace`` is
    what they were measured on, for :func:`optimizer.save`."""

    record: Result
    workspace: Any = field(default=None, repr=False)

    @property
    def summary(self) -> Summary:
        return summarise(self.record)

    @property
    def request(self) -> Request:
        return self.record.request

    @property
    def accuracy(self) -> AccuracyMeasures:
        found = self.summary
        value, drop, agreement, sqnr = self._measures("accuracy", "drop", "agreement", "sqnr")
        verdict = "" if found.fidelity else str(found.drop.verdict)
        return AccuracyMeasures(value, drop, agreement, sqnr, found.reference, verdict)

    @property
    def latency(self) -> LatencyMeasures:
        found = self.summary
        median, ratio, first, first_ratio, p95 = self._measures(
            "latency", "latency_ratio", "first_call", "first_call_ratio", "latency_p95"
        )
        return LatencyMeasures(
            median, ratio, first, first_ratio, p95, str(found.latency.verdict), found.noise
        )

    @property
    def size(self) -> SizeMeasures:
        return SizeMeasures(*self._measures("file_size", "packed_size", "compressed_size", "memory"))

    def _measures(self, *names: str) -> list[Measure]:
        return [self.summary.measures[name] for name in names]

    def __repr__(self) -> str:
        rows = self._rows()
        width = max(len(label) for label, *_ in rows)
        lines = [f"  {label:<{width}}  {value}{before}" for label, value, before in rows]
        notes = [f"  {note}" for note in self._notes()]
        return "\n".join((self._title(), *lines, *notes))

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(label)}</th><td>{html.escape(value)}</td><td>{html.escape(before)}</td></tr>"
            for label, value, before in self._rows()
        )
        notes = "; ".join(map(html.escape, self._notes()))
        return f"<p>{html.escape(self._title())}</p><table>{rows}</table><p>{notes}</p>"

    def _notes(self) -> list[str]:
        """How far the figures can be trusted, and what else there is to know about model and images."""
        found = self.summary
        notes = filter(None, (found.note_on_sharing, *found.notes))
        return [*(badge.text for badge in found.badges), *(f"note: {one}" for one in notes)]

    def _title(self) -> str:
        found = self.summary
        engine = engine_label(found.request.engine)
        return f"{found.request.model}: {found.description}, on {engine}, {found.served}, {found.images}"

    def _rows(self) -> list[tuple[str, str, str]]:
        """Label, value with its interval, and the uncompressed model's."""
        found = self.summary
        return [
            (label_of(name, [found]), found.text(name), _before(name, found.measures[name].baseline))
            for name in (*(FIDELITY if found.fidelity else KEPT), *ROWS)
        ]


def _before(name: str, baseline: float | None) -> str:
    if baseline is None or metric(name).relative:  # against itself it has none
        return ""
    return f", uncompressed {metric(name).format(baseline)}"


@dataclass(frozen=True, slots=True)
class Failed:
    """A recipe that could not be measured, and why."""

    request: Request
    message: str


@dataclass(frozen=True, slots=True)
class Screened:
    """A recipe that was scored on some ``images`` alone since it can't be on the frontier, and how that is
    known."""

    request: Request
    message: str
    images: int


@dataclass(frozen=True, slots=True, eq=False)
class Results(Sequence[ResultView]):
    """What a sweep measured, in its order, the recipes that failed, and those that a sweep of the frontier
    left out."""

    results: tuple[ResultView, ...]
    failed: tuple[Failed, ...] = ()
    screened: tuple[Screened, ...] = ()

    @overload
    def __getitem__(self, index: int) -> ResultView: ...
    @overload
    def __getitem__(self, index: slice) -> "Results": ...
    def __getitem__(self, index: int | slice) -> "ResultView | Results":
        if isinstance(index, slice):
            return Results(self.results[index], self.failed, self.screened)
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[ResultView]:
        return iter(self.results)

    @property
    def records(self) -> tuple[Result, ...]:
        return tuple(result.record for result in self.results)

    def frame(self) -> "pd.DataFrame":
        """One row a result, with every figure and its interval (:func:`optimizer.analysis.frame.frame`)."""
        return frame(self.records)

    def __repr__(self) -> str:
        return "\n".join((self._shown().to_string(), *self._notes()))

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{html.escape(words)}</p>" for words in self._notes())
        return f"{self._shown().to_html()}{notes}"

    def _notes(self) -> list[str]:
        noisy = sum(bool(one.summary.noise) for one in self)
        unranked = "which are not ranked for the frontier"
        if noisy == len(self):
            unranked = f"so the frontier is of {ranked_words([one.summary for one in self])}"
        words = f"noisy: {noisy} of {len(self)} results, {unranked}; latency.noise of each says why"
        return [
            *([words] if noisy else ()),
            *(
                f"{what}: {one.request.recipe.describe()}: {one.message}"
                for what, those in (("not measured", self.failed), ("screened out", self.screened))
                for one in those
            ),
        ]

    def _shown(self) -> "pd.DataFrame":
        of = {result.summary.fidelity for result in self}
        names = (*(KEPT if of != {True} else ()), *(FIDELITY if True in of else ()))
        columns = ("sparsity", "weight_bits", *(METRICS[name].column for name in names), *COLUMNS)
        whole = self.frame()
        return whole[list(columns)].round(4).assign(noisy=whole["noise"] != "")
