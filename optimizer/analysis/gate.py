"""Whether a result keeps to limits, by its intervals' bounds: what lets a release through or stops it.

A limit is kept where the whole interval lies on its good side, and broken where it lies on the other. Between
the two nothing is decided: a point estimate would pass and fail by luck.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from optimizer.analysis.earlier import Conditions, check_scored_alike, check_timed_alike
from optimizer.analysis.fidelity import each_of, no_interval, sqnrs
from optimizer.analysis.outcomes import PairedDrop, disagreement, interval_over, paired_drop
from optimizer.analysis.rounds import CONFIDENCE, t_quantile
from optimizer.analysis.statistics import mean_of_processes, process_ratios
from optimizer.analysis.summary import summarise
from optimizer.analysis.two_files import TwoFiles, accuracy_lost, same_answers, time_taken
from optimizer.errors import InputError
from optimizer.formats import count, decimals, format_percent, format_points, format_ratio
from optimizer.records import Accuracy, Latency, OutputFidelity, Result

MEGABYTE = 1e6
NARROWER = 0.8
"""By how much narrower than just enough an interval is to be, when it is said what that takes: it is known
only roughly."""

MAX_IMAGES = 10**8
"""More are not said to decide anything."""
MIN_DIGITS, MAX_DIGITS = 3, 17
"""Of a figure beside its limit; with the last ones each float is told from the next."""
MAX_PLACES = {"points": format_points.most, "%": format_percent.most, "": format_ratio.most}
USUAL_PLACES = 4
"""Digits after the point of one with an interval, by its unit, unless its side of the limit takes more."""


class Outcome(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"


MIN_LIMIT = -100.0
"""Of what may be below 0."""


def check_limits(given: Mapping[str, tuple[float | None, float, float]]) -> None:
    """By its name: a limit, None for no limit, and what it has to lie between. Raises InputError where
    there is none, or one that can't be."""
    if all(value is None for value, _, _ in given.values()):
        raise InputError(f"no limit is given: give {', '.join(given)}, or several of them")
    for name, (value, lowest, highest) in given.items():
        if value is not None and not lowest < value < highest:
            below = "" if highest == math.inf else f" and below {highest:g}"
            raise InputError(f"{name} {value:g} is not allowed: give a number above {lowest:g}{below}")


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What may be lost at most; None is no limit. Raises InputError where there is none, or one that can't
    be."""

    drop_points: float | None = None
    slowdown_percent: float | None = None
    size_mb: float | None = None
    sqnr_db: float | None = None
    instructions_percent: float | None = None

    @property
    def of_time(self) -> list[str]:
        """The options of those that are given and need what was timed."""
        timed = {"--max-slowdown": self.slowdown_percent, "--max-instructions": self.instructions_percent}
        return [option for option, limit in timed.items() if limit is not None]

    def __post_init__(self) -> None:
        check_limits(
            {
                "--max-drop": (self.drop_points, MIN_LIMIT, math.inf),
                "--max-slowdown": (self.slowdown_percent, MIN_LIMIT, math.inf),
                "--max-instructions": (self.instructions_percent, MIN_LIMIT, math.inf),
                "--max-size": (self.size_mb, 0, math.inf),
                "--min-sqnr": (self.sqnr_db, MIN_LIMIT, math.inf),
            }
        )


@dataclass(frozen=True, slots=True)
class Check:
    """One figure against its limit, both in ``unit``: at most that, or ``at_least``. ``takes``: what would
    decide it, were it not."""

    name: str
    unit: str
    limit: float
    value: float
    low: float
    high: float
    takes: str = ""
    at_least: bool = False

    @property
    def outcome(self) -> Outcome:
        kept, broken = self.high <= self.limit, self.low > self.limit
        if self.at_least:
            kept, broken = self.low >= self.limit, self.high < self.limit
        return Outcome.PASS if kept else Outcome.FAIL if broken else Outcome.UNDECIDED

    @property
    def allowed(self) -> str:
        """``at most 1``."""
        limit = np.format_float_positional(self.limit, trim="-").replace("-", "−")
        return f"at {'least' if self.at_least else 'most'} {limit}"

    @property
    def said(self) -> str:
        """The outcome, and where there is none what would decide it."""
        takes = self.takes if self.outcome is Outcome.UNDECIDED else ""
        return f"{self.outcome}; {takes}" if takes else self.outcome

    @property
    def equal(self) -> bool:
        """Whether it is the SQNR of outputs that do not differ at all, which no number of decibels says."""
        return self.low == math.inf

    @property
    def written(self) -> tuple[str, str, str]:
        """The value and both ends, with the digits that the interval leaves them, and each with enough to
        stand on its side of the limit."""
        if self.equal:
            return ("equal",) * 3
        places = None
        if self.low < self.high < math.inf:
            places = min(MAX_PLACES.get(self.unit, USUAL_PLACES), decimals(self.value, self.low, self.high))
        value, low, high = (_beside(one, self.limit, places) for one in (self.value, self.low, self.high))
        return value, low, high

    @property
    def words(self) -> str:
        value, low, high = self.written
        interval = "" if self.low == self.high else f" ({low} to {high})"
        figure = f"{self.name}: {value}" if self.equal else f"{self.name} {value} {self.unit}".rstrip()
        return f"{figure}{interval}, {self.allowed} allowed: {self.said}"

    def to_dict(self) -> dict[str, Any]:
        """Its fields, with None for an end that is not known, and the outcome."""
        fields = asdict(self).items()
        finite = {name: None if value in (math.inf, -math.inf) else value for name, value in fields}
        takes = self.takes if self.outcome is Outcome.UNDECIDED else ""
        return finite | {"takes": takes, "outcome": self.outcome}


def _beside(value: float, limit: float, least: int | None) -> str:
    """With ``least`` digits after the point where they are known, without an exponent, with a true minus
    sign and never a negative zero."""
    text = ""
    for digits in range(MIN_DIGITS, MAX_DIGITS + 1):
        more = digits - MIN_DIGITS
        places = decimals(value, None, None, digits) if least is None else least + more
        text = f"{round(value, places) + 0.0:.{places}f}"
        written = float(text)
        if (written > limit, written < limit) == (value > limit, value < limit):
            break
    if least is None and "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", "−")


def overall(checks: Sequence[Check]) -> Outcome:
    """Of all of them: failed where one has, passed where all have."""
    outcomes = {check.outcome for check in checks}
    return next(one for one in (Outcome.FAIL, Outcome.UNDECIDED, Outcome.PASS) if one in outcomes)


def drop_check(drop: PairedDrop, limit: float, labelled: bool) -> Check:
    """Accuracy lost, image by image; of images that are not ``labelled`` agreement."""
    needed = images_to_decide(drop, limit)
    return Check(
        "accuracy lost" if labelled else "agreement lost",
        "points",
        limit,
        drop.points,
        drop.low,
        drop.high,
        f"about {count(needed, 'image')} would decide it"
        if needed
        else "no number of images is sure to decide it",
    )


def images_to_decide(drop: PairedDrop, limit: float) -> int:
    """About how many images show on which side of a limit a loss lies, if flips go on as among those seen;
    0 where it lies on the limit, or more than MAX_IMAGES would be needed."""

    def decides(images: int) -> bool:
        low, high = interval_over(drop, images)
        return high <= limit if drop.points < limit else low > limit

    fewest, most = drop.total, MAX_IMAGES
    if drop.points == limit or not decides(most):
        return 0
    while most - fewest > max(1, fewest // 100):
        middle = (fewest + most) // 2
        fewest, most = (fewest, middle) if decides(middle) else (middle, most)
    return most


def check_against(now: Conditions, against: Result, limits: GateLimits) -> None:
    """Whether an earlier result says anything of one under these conditions, as far as the limits ask for it.
    Raises InputError where it does not."""
    before = Conditions.of(against)
    if limits.drop_points is not None:
        check_scored_alike(now, before)
    if options := limits.of_time:
        check_timed_alike(now, before, " and ".join(options))


def no_accuracy(
    name: str,
    instead: str = "--min-sqnr (min_sqnr_db in Python) in place of --max-drop (max_drop)",
) -> InputError:
    """Of a network that is no classifier."""
    return InputError(f"{name} is no classifier, so it has no accuracy to lose: give {instead}")


def drop_of(result: Result, against: Result | None) -> PairedDrop:
    """Against the uncompressed model or an earlier result. Raises InputError where that has other images, or
    without labels another uncompressed model, and for outputs that are no answers."""
    if result.accuracy.is_fidelity:
        raise no_accuracy(result.request.model)
    if against is None:
        return summarise(result).drop
    check_scored_alike(Conditions.of(result), Conditions.of(against))
    return paired_drop(against.accuracy.outcomes, result.accuracy.outcomes)


def drop_of_files(run: TwoFiles) -> PairedDrop:
    """Accuracy lost where there are labels, else the images that are answered otherwise. Raises InputError
    for outputs that are no answers."""
    if drop := accuracy_lost(run):
        return drop
    if not run.same:
        raise no_accuracy(run.b.name)
    return disagreement(same_answers(run))


def sqnr_check(
    outputs: Accuracy | Sequence[OutputFidelity], limit: float, confidence: float = CONFIDENCE
) -> Check:
    """Of the worst output: the lowest figure, and the lowest of either end."""
    value, low, high = (min(column) for column in zip(*sqnrs(outputs, confidence), strict=True))
    takes = next(filter(None, map(no_interval, each_of(outputs))), "")
    return Check("SQNR of the outputs", "dB", limit, value, low, high, takes, at_least=True)


def size_check(size_bytes: int, limit: float) -> Check:
    size = size_bytes / MEGABYTE
    return Check("size of the file", "MB", limit, size, size, size)


def slowdown_check(
    latencies: Sequence[Latency],
    against: Result | None,
    limit: float,
    confidence: float = CONFIDENCE,
) -> Check:
    """Time added, in percent of the uncompressed model's, or of an earlier result's, over all processes of
    ``latencies``.

    Each process counts once: within one, rounds share a build. An earlier result and this one are both taken
    as ratios to the uncompressed model, which is timed beside each: what the machine has become slower by in
    between cancels.
    """
    logs, earlier = np.concatenate([_logs(latency) for latency in latencies]), np.zeros(0)
    middle, half = mean_of_processes(logs, confidence)
    if against is not None:
        earlier = _logs(against.latency)
        middle, half = _difference(logs, earlier, confidence)
    value, low, high = (100 * (math.exp(one) - 1) for one in (middle, middle - half, middle + half))
    distance = abs(math.log1p(limit / 100) - middle)
    takes = _takes(logs, earlier, half, NARROWER * distance) if 0 < half < math.inf else ""
    return Check("time added", "%", limit, value, low, high, takes)


def _takes(logs: np.ndarray, earlier: np.ndarray, half: float, wanted: float) -> str:
    """What brings half of an interval down to what is ``wanted``: more processes, which tell no more of an
    earlier result's."""
    own, theirs = _squared_error(logs), _squared_error(earlier) if len(earlier) else 0.0
    left = (wanted / half) ** 2 * (own + theirs) - theirs
    if left <= 0:
        beside = f" beside the earlier result's {len(earlier)}" if len(earlier) else ""
        return f"no number of processes is sure to decide it{beside}"
    return f"about {count(math.ceil(len(logs) * own / left), 'process', 'processes')} in all would decide it"


def instructions_check(latency: Latency, against: Result | None, limit: float) -> Check:
    """Instructions added a call, in percent of the uncompressed model's, or of an earlier result's; the
    interval is over processes, which build anew. One process alone decides nothing.

    Raises InputError where one of them was timed without a count.
    """
    before, now = (against.latency if against else latency).instructions, latency.instructions
    if before is None or now is None:
        which = "the earlier result" if now else "this one"
        raise InputError(f"{which} was timed without a count of instructions: leave out --max-instructions")
    if against is None:
        middle, half = mean_of_processes(np.log(np.array(now.variant) / now.baseline))
    else:
        middle, half = _difference(np.log(now.variant), np.log(before.variant), CONFIDENCE)
    value, low, high = (100 * math.expm1(one) for one in (middle, middle - half, middle + half))
    several = "counts of several processes would decide it" + ": leave out --quick" * latency.quick
    takes = several if half == math.inf else ""
    return Check("instructions added", "%", limit, value, low, high, takes)


def _logs(latency: Latency) -> np.ndarray:
    """The logarithm of the ratio to the baseline that each process found; of one alone, of its rounds."""
    return np.log(process_ratios(latency) or [time_taken(latency).ratio])


def _difference(logs: np.ndarray, earlier: np.ndarray, confidence: float) -> tuple[float, float]:
    """Of two means, with half of its interval (Welch)."""
    if min(len(logs), len(earlier)) < 2:
        return float(logs.mean() - earlier.mean()), math.inf
    parts = [_squared_error(one) for one in (logs, earlier)]
    if not sum(parts):  # counts can be alike to the last one
        return float(logs.mean() - earlier.mean()), 0.0
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(one) - 1) for part, one in zip(parts, (logs, earlier), strict=True)
    )
    half = t_quantile(freedom, confidence) * math.sqrt(sum(parts))
    return float(logs.mean() - earlier.mean()), float(half)


def _squared_error(logs: np.ndarray) -> float:
    """Of their mean."""
    return float(logs.var(ddof=1) / len(logs))
