"""How numbers are written: with a unit, and as many digits as they earn.

Bytes are decimal (1 kB = 1,000 B).
"""

import math
from collections.abc import Sequence
from typing import Protocol

MISSING = "–"


class Formatter(Protocol):
    """Writes a value with its unit, and its interval where there is one: ``93.4 % (92.9 to 93.9)``."""

    def __call__(self, value: float | None, low: float | None = None, high: float | None = None) -> str: ...


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


def writer(
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


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 call``, ``1,200 calls``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def format_p(p: float) -> str:
    """The outcome of a test: ``p = 0.031``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


format_bytes = writer(((1, " B"), (1e3, " kB"), (1e6, " MB"), (1e9, " GB")))
"""Decimal units: ``format_bytes(1_230_000) == "1.23 MB"``."""

format_ns = writer(((1, " ns"), (1e3, " µs"), (1e6, " ms"), (1e9, " s")))
"""``format_ns(612_300) == "612 µs"``."""

format_percent = writer(((1, " %"),), most=2)
format_ratio = writer(((1, "×"),), most=3)
format_points = writer(((1, " points"),), most=2, significant=2)
format_large = writer(((1, ""), (1e3, " k"), (1e6, " M"), (1e9, " G")))


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
