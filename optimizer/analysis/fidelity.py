"""How far outputs lie from a reference's, output by output, with intervals over the images."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from optimizer.analysis.measures import Measure, sqnr, sqnr_ends
from optimizer.analysis.metrics import METRICS
from optimizer.analysis.noise import percent
from optimizer.analysis.rounds import CONFIDENCE
from optimizer.analysis.skewed import MIN_IMAGES, positive_mean_interval
from optimizer.formats import MISSING
from optimizer.records import Accuracy, OutputFidelity, PerImage


def sqnrs(
    outputs: Accuracy | Sequence[OutputFidelity], confidence: float = CONFIDENCE
) -> list[tuple[float, float, float]]:
    """Of each output, or of the logits, with both ends, to be held against a limit: infinite where outputs
    are equal, and where an end is not known."""
    return [_sqnr_with_ends(one, confidence) for one in each_of(outputs)]


def each_of(outputs: Accuracy | Sequence[OutputFidelity]) -> Sequence[OutputFidelity | Accuracy]:
    """The outputs one by one; what was recorded of logits stands for itself."""
    return (outputs.outputs or (outputs,)) if isinstance(outputs, Accuracy) else outputs


def _sqnr_with_ends(one: OutputFidelity | Accuracy, confidence: float) -> tuple[float, float, float]:
    if one.sqnr_db is None:  # no noise, or no signal that it could be held against
        lost = isinstance(one, OutputFidelity) and one.was_silent
        return (-math.inf if lost else math.inf,) * 3
    return one.sqnr_db, *sqnr_ends(one, one.sqnr_db, confidence)


def no_interval(one: OutputFidelity | Accuracy) -> str:
    """Why its SQNR has no interval, in words; empty where it has one, or was recorded without the images."""
    measure = sqnr(one)
    if measure.value is None or measure.low is not None or one.noise_images is None:
        return ""
    if len(one.noise_images.codes) < MIN_IMAGES:
        return f"an interval takes {MIN_IMAGES} images"
    return "few images carry most of the change, so no upper end is known"


def cosine(one: OutputFidelity) -> Measure:
    """The mean over images, with its interval."""
    interval = _mean_interval(one.angle_images)
    if one.cosine is None or interval is None:
        return Measure(one.cosine)
    low, high = (1 - end for end in reversed(interval))
    return Measure(one.cosine, min(low, one.cosine), max(min(high, 1.0), one.cosine))


def largest_of_an_image(one: OutputFidelity) -> Measure:
    """The mean over images of the largest difference in each, with its interval."""
    if one.largest_images is None:
        return Measure(0.0)
    mean = float(one.largest_images.values.mean())
    interval = _mean_interval(one.largest_images)
    return Measure(mean, max(interval[0], 0.0), interval[1]) if interval else Measure(mean)


def _mean_interval(values: PerImage | None) -> tuple[float, float] | None:
    interval = values and positive_mean_interval(values.values)
    return interval if interval and math.isfinite(interval[1]) else None


def sqnr_text(one: OutputFidelity) -> str:
    """In dB with its interval or why there is none, or that the two are equal."""
    measure = sqnr(one)
    if measure.value is None:
        return MISSING if one.was_silent else "equal"
    text, why = METRICS["sqnr"].format(measure.value, measure.low, measure.high), no_interval(one)
    return f"{text} ({why})" if why else text


def rows(outputs: Iterable[OutputFidelity]) -> list[dict[str, str]]:
    """One row an output, as it is shown."""
    found = []
    for one in outputs:
        angle, typical = cosine(one), largest_of_an_image(one)
        found.append(
            {
                "output": one.name,
                "shape": " × ".join(map(str, one.shape)),
                "SQNR": sqnr_text(one),
                "cosine": METRICS["cosine"].format(angle.value, angle.low, angle.high),
                "largest difference": f"{one.largest:.3g} ({percent(one.largest_share, 2)} of its range)",
                "largest difference of an image, mean": _significant(typical),
            }
        )
    return found


def _significant(measure: Measure) -> str:
    """Outputs may be of any size, so that digits are counted from the first: three, zeros too."""
    value, low, high = (
        "" if one is None else f"{one:#.3g}".rstrip(".") for one in (measure.value, measure.low, measure.high)
    )
    return f"{value} ({low} to {high})" if low and high else value


def as_json(outputs: Iterable[OutputFidelity]) -> list[dict[str, Any]]:
    """An object an output: ``name``, ``reference`` (its name there), ``shape`` for one image; ``sqnr_db``,
    ``cosine`` and ``largest_of_an_image`` with ``value``, ``low``, ``high``; ``largest``, and ``range`` of
    the reference's values."""
    return [
        {
            "name": one.name,
            "reference": one.reference,
            "shape": list(one.shape),
            "sqnr_db": _figure(sqnr(one)),
            "cosine": _figure(cosine(one)),
            "largest": one.largest,
            "largest_of_an_image": _figure(largest_of_an_image(one)),
            "range": one.span,
        }
        for one in outputs
    ]


def _figure(measure: Measure) -> dict[str, float | None]:
    return {"value": measure.value, "low": measure.low, "high": measure.high}
