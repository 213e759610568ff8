"""One table of everything that is measured: its label, unit, direction, and how it is written.

Whatever shows a number reads it from :data:`METRICS`. Bytes are decimal (1 kB = 1,000 B); times are
nanoseconds until they are written.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from optimizer.errors import unknown

MISSING = "–"


class Formatter(Protocol):
    """Writes a value with its unit, and its interval where there is one: ``93.4 % (92.9 to 93.9)``."""

    def __call__(self, value: float | None, low: float | None = None, high: float | None = None) -> str: ...


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured figure. ``column`` is its name in a frame; ``help`` says what it counts."""

    label: str
    unit: str
    direction: Literal["lower", "higher"]
    column: str
    format: Formatter
    help: str

    def loss(self, values: Iterable[float] | np.ndarray) -> np.ndarray:
        """``values`` turned so that lower is better. Missing ones (NaN) stay missing."""
        array = np.asarray(values, float)
        return array if self.direction == "lower" else -array


def decimals(value: float, low: float | None, high: float | None, significant: int = 3) -> int:
    """Digits after the point that ``value`` earns.

    Half the interval's width is written with two digits where it begins with 1, 2 or 3, otherwise with one
    (the Particle Data Group's rule), and the value to the same place. Without an interval: ``significant``
    digits.
    """
    half = (high - low) / 2 if low is not None and high is not None else 0.0
    if half > 0 and math.isfinite(half):
        place = math.floor(math.log10(half))
        return max(0, -place + (half / 10.0**place < 3.55))
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, significant - 1 - math.floor(math.log10(abs(value))))


def _writer(
    units: tuple[tuple[float, str], ...], most: int = 4, significant: int = 3, factor: float = 1
) -> Formatter:
    """A formatter that takes the largest of ``units`` (divisor, suffix) that ``value`` reaches."""

    def write(value: float | None, low: float | None = None, high: float | None = None) -> str:
        if value is None or math.isnan(value):
            return MISSING
        reached = [unit for unit in units if abs(value) * factor >= unit[0]]
        divisor, suffix = reached[-1] if reached else units[0]

        def scaled(number: float | None) -> float | None:
            return None if number is None or math.isnan(number) else number * factor / divisor

        number, lower, upper = value * factor / divisor, scaled(low), scaled(high)
        places = min(most, decimals(number, lower, upper, significant))
        text = f"{_signed(number, places)}{suffix}"
        if lower is None or upper is None:
            return text
        return f"{text} ({_signed(lower, places)} to {_signed(upper, places)})"

    return write


def _signed(number: float, places: int) -> str:
    """With a true minus sign, and never a negative zero."""
    return f"{round(number, places) + 0.0:,.{places}f}".replace("-", "−")


def format_count(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A whole number with its thousands set apart: it was counted, so every digit is meant."""
    return MISSING if value is None or math.isnan(value) else f"{value:,.0f}"


def count(number: int, noun: str) -> str:
    """``1 call``, ``1,200 calls``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_p(p: float) -> str:
    """The outcome of a test: ``p = 0.031``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


format_bytes = _writer(((1, " B"), (1e3, " kB"), (1e6, " MB"), (1e9, " GB")))
"""Decimal units: ``format_bytes(1_230_000) == "1.23 MB"``."""

format_ns = _writer(((1, " ns"), (1e3, " µs"), (1e6, " ms"), (1e9, " s")))
"""``format_ns(612_300) == "612 µs"``."""

format_percent = _writer(((1, " %"),), most=2)
format_ratio = _writer(((1, "×"),), most=3)
_format_points = _writer(((1, " points"),), most=2, significant=2)
_format_large = _writer(((1, ""), (1e3, " k"), (1e6, " M"), (1e9, " G")))


METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        "accuracy",
        "%",
        "higher",
        "accuracy_percent",
        format_percent,
        "Share of the images whose first answer is right, with its 95 % Wilson interval.",
    ),
    "balanced_accuracy": Metric(
        "balanced accuracy",
        "%",
        "higher",
        "balanced_accuracy_percent",
        format_percent,
        "Mean over the classes of the share that is right, where they have unequal numbers of images, with a "
        "95 % interval.",
    ),
    "drop": Metric(
        "accuracy lost",
        "points",
        "lower",
        "drop_points",
        _format_points,
        "Percentage points lost against the uncompressed model on the same images, paired image by image.",
    ),
    "file_size": Metric(
        "file size",
        "B",
        "lower",
        "file_bytes",
        format_bytes,
        "The safetensors file that would be served: int8, half or float32 values with their scales.",
    ),
    "packed_size": Metric(
        "packed size",
        "B",
        "lower",
        "packed_bytes",
        format_bytes,
        "Counted, not written: k bits a surviving weight and the cheapest way to say which survive.",
    ),
    "compressed_size": Metric(
        "compressed size",
        "B",
        "lower",
        "compressed_bytes",
        format_bytes,
        "The served file through zstd.",
    ),
    "memory": Metric(
        "memory",
        "B",
        "lower",
        "memory_bytes",
        format_bytes,
        "Growth of a fresh process's resident memory when the engine loads the model and runs it once.",
    ),
    "cold_start": Metric(
        "cold start",
        "ns",
        "lower",
        "cold_start_ns",
        format_ns,
        "From files on the disk to the first answer, in a fresh process with its libraries imported: "
        "reading, preparing or compiling, and one call. One measurement.",
    ),
    "latency": Metric(
        "latency",
        "ns",
        "lower",
        "latency_ns",
        format_ns,
        "Median time of one call, with a 95 % interval for the median; rounds may depend on each other.",
    ),
    "latency_ratio": Metric(
        "latency ratio",
        "×",
        "lower",
        "latency_ratio",
        format_ratio,
        "Time of a call over the uncompressed model's in the same round: 0.5× takes half the time.",
    ),
    "latency_p95": Metric(
        "95th percentile",
        "ns",
        "lower",
        "latency_p95_ns",
        format_ns,
        "A time that 95 % of calls stay under, at 99 % confidence; needs 130 rounds, "
        "and more where slow calls come in bursts.",
    ),
    "latency_p99": Metric(
        "99th percentile",
        "ns",
        "lower",
        "latency_p99_ns",
        format_ns,
        "A time that 99 % of calls stay under, at 99 % confidence; needs 662 rounds, "
        "and more where slow calls come in bursts.",
    ),
    "throughput": Metric(
        "throughput",
        "images/s",
        "higher",
        "throughput_images_per_s",
        _writer(((1, " images/s"),)),
        "Images over all the time that calls took, slow ones among them, when calls follow each other.",
    ),
    "nonzero": Metric(
        "non-zero weights",
        "",
        "lower",
        "nonzero_weights",
        format_count,
        "Weights that are not zero after pruning and rounding; a weight that layers share counts once.",
    ),
    "operations": Metric(
        "operations left",
        "",
        "lower",
        "operations",
        _format_large,
        "Multiply-accumulates for one image that meet a non-zero weight. Dense kernels do the others too.",
    ),
    "agreement": Metric(
        "agreement",
        "%",
        "higher",
        "agreement_percent",
        format_percent,
        "Share of the images with the same first answer as the uncompressed model.",
    ),
    "sqnr": Metric(
        "logits SQNR",
        "dB",
        "higher",
        "sqnr_db",
        _writer(((1, " dB"),), most=1),
        "Power of the uncompressed model's logits over the power of the change in them.",
    ),
    "kl": Metric(
        "KL divergence",
        "nats",
        "lower",
        "kl_nats",
        _writer(((1, " nats"),), significant=2),
        "Mean divergence of the predicted distribution from the uncompressed model's.",
    ),
}


TIMES = ("latency", "latency_ratio", "latency_p95", "latency_p99", "throughput")
"""Metrics that a noisy or another machine spoils."""

RELATIVE = ("drop", "latency_ratio", "agreement", "sqnr", "kl")
"""Metrics against the uncompressed model on the same engine: another model's or engine's can't be ranked."""

SERVED = (*TIMES, "memory", "cold_start")
"""Metrics that depend on machine, threads and batch."""


def metric(name: str) -> Metric:
    """The metric of that name. Raises InputError for an unknown one."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first one the heads, in columns that fit: what begins with a digit to the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    right = [
        all(cell[:1].isdigit() or len(cell) < 2 for cell in cells) for cells in zip(*rows[1:], strict=True)
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    )
