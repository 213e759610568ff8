"""How numbers are written: with a unit, and as many digits as they earn.

Bytes are decimal (1 kB = 1,000 B).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

MISSING = "–"


def decimals(value: float, low: float | None, high: float | None, significant: int = 3) -> int:
    """Digits after the point that ``value`` earns.

    Half the interval's width is written with two digits where it begins with 1, 2 or 3, otherwise with one
    (the Particle Data Group's rule), and the value to the same place. Without an interval: ``significant``
    digits, counted in what rounding gives: 9.999 is 10.0.
    """
    half = (high - low) / 2 if low is not None and high is not None else 0.0
    if half > 0 and math.isfinite(half):
        place = math.floor(math.log10(half))
        return max(0, -place + (half / 10.0**place < 3.55))
    if value == 0 or not math.isfinite(value):
        return 0
    exponent = int(f"{value:.{significant - 1}e}".partition("e")[2])
    return max(0, significant - 1 - exponent)


@dataclass(frozen=True, slots=True)
class Formatter:
    """Writes a value in the largest of ``units`` (divisor, suffix) that it reaches, and its interval where
    there is one: ``93.4 % (92.9 to 93.9)``, with at most ``most`` decimals.

    Only what is one of the ``exact`` values is written as it: what rounding would make 100 has more decimals,
    ``99.998 %``. So it is with ``exact_ends`` for the ends of an interval, and for a value where they are
    not in its interval: ``0.9996× (0.999 to 0.9999)``. With a ``sign`` of ``+`` what is above 0 has one too.
    """

    units: tuple[tuple[float, str], ...]
    most: int = 4
    significant: int = 3
    exact: tuple[float, ...] = (0.0,)
    exact_ends: tuple[float, ...] = (0.0,)
    sign: Literal["-", "+"] = "-"

    def __call__(self, value: float | None, low: float | None = None, high: float | None = None) -> str:
        text, interval = self.parts(value, low, high)
        return f"{text} ({interval})" if interval else text

    def given(self, value: float) -> str:
        """A value that was given, not measured, such as a limit: with all its decimals, or it would be
        another."""
        divisor, suffix = self.unit(value)
        number = value / divisor
        said = len(f"{number:.9f}".rstrip("0").partition(".")[2])
        places = max(said, min(self.most, decimals(number, None, None, self.significant)))
        return f"{self._rounded(number, places)}{suffix}"

    def unit(self, value: float) -> tuple[float, str]:
        """The largest that it reaches."""
        reached = [unit for unit in self.units if abs(value) >= unit[0]]
        return reached[-1] if reached else self.units[0]

    def parts(
        self, value: float | None, low: float | None = None, high: float | None = None
    ) -> tuple[str, str]:
        """The value, with the digits that its interval leaves it, and the interval (empty without one)."""
        if value is None or math.isnan(value):
            return MISSING, ""

        def scaled(number: float | None) -> float | None:
            return None if number is None or math.isnan(number) else number / divisor

        for unit in self.units[self.units.index(self.unit(value)) :]:
            divisor = unit[0]
            number, lower, upper = value / divisor, scaled(low), scaled(high)
            places = min(self.most, decimals(number, lower, upper, self.significant))
            # Rounding may take it to the next unit: 999,999 B are 1.00 MB.
            if self.unit(round(number, places) * divisor)[0] <= divisor:
                break
        # Whether 0 is between the ends is to be read: one that is not 0 reads 0 only if it nearly is.
        ends = [end for end in (lower, upper) if end is not None]
        enough = (
            more
            for more in range(places, self.most + 1)
            if all(_shown(end, more, self.exact_ends) for end in ends)
        )
        places = next(enough, places)
        exact = (
            self.exact
            if len(ends) < 2
            else [one for one in {*self.exact, *self.exact_ends} if not min(ends) <= one <= max(ends)]
        )
        text = f"{self._written(number, places, exact)}{unit[1]}"
        if lower is None or upper is None:
            return text, ""
        return text, " to ".join(self._written(end, places, self.exact_ends) for end in ends)

    def _written(self, number: float, places: int, exact: Sequence[float]) -> str:
        enough = (more for more in range(places, self.most + 3) if _shown(number, more, exact))
        return self._rounded(number, next(enough, places))

    def _rounded(self, number: float, places: int) -> str:
        """With a true minus sign, and no sign of a zero."""
        rounded = round(number, places) + 0.0
        return f"{rounded:{self.sign if rounded else '-'},.{places}f}".replace("-", "−")


def _shown(number: float, places: int, exact: Sequence[float]) -> bool:
    return all(number == one or round(number, places) != one for one in exact)


def significant(value: float, digits: int) -> str:
    """With so many digits, a whole number of more with all it has, and without an exponent: ``12,346``."""
    return f"{value:,.0f}" if abs(value) >= 10**digits - 0.5 else f"{value:.{digits}g}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 call``, ``1,200 calls``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(names: Sequence[str], most: int = 3, number: int | None = None) -> str:
    """At most so many of the names, and how many more there are: ``conv1, conv2 and 3 more``. ``number`` is
    that of all, where ``names`` are but the first."""
    more = (len(names) if number is None else number) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def capital(words: str) -> str:
    """With a capital letter first, the others as they are."""
    return words[:1].upper() + words[1:]


def format_p(p: float) -> str:
    """The outcome of a test: ``p = 0.031``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


format_count = Formatter(((1, ""),), most=0)
"""A whole number with its thousands set apart: it was counted, so every digit is meant."""

format_bytes = Formatter(((1, " B"), (1e3, " kB"), (1e6, " MB"), (1e9, " GB")))
"""Decimal units: ``format_bytes(1_230_000) == "1.23 MB"``."""

format_ns = Formatter(((1, " ns"), (1e3, " µs"), (1e6, " ms"), (1e9, " s")))
"""``format_ns(612_300) == "612 µs"``."""

format_percent = Formatter(((1, " %"),), most=2, exact=(0.0, 100.0), exact_ends=(0.0, 100.0))
format_rate = Formatter(((1, " requests/s"),))
format_ratio = Formatter(((1, "×"),), most=3, exact_ends=(0.0, 1.0))
format_points = Formatter(((1, " points"),), most=2, significant=2)
format_change = replace(format_points, sign="+")
format_large = Formatter(((1, ""), (1e3, " k"), (1e6, " M"), (1e9, " G")))


def format_share(share: float) -> str:
    """Of 1, in whole percent: ``format_share(0.5) == "50 %"``; 0 and 100 are exact."""
    if 0 < share < 0.005:
        return "under 1 %"
    return "over 99 %" if 0.995 < share < 1 else f"{100 * share:.0f} %"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first one the heads, in columns that fit: what begins with a digit to the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    right = [
        all(cell[:1].isdigit() or len(cell) < 2 for cell in cells[1:]) for cells in zip(*rows, strict=True)
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    )
