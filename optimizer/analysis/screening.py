"""Which configurations can't be on the frontier, told from a part of the images and without timing them.

A configuration is beaten where another one, measured whole, is no larger, has no more errors, and shares its
time, as dense kernels of one execution signature do. Size is exact before an image is run. So a configuration
is off the frontier as soon as it has as many errors as the other one has on all images, whatever it answers
to the rest: no interval is needed. Where images come first that are likely to be errors, that takes few more
of them than there are errors.

What is left out by this is what :func:`optimizer.analysis.frontier.frontier_of` leaves out of its metrics
FRONTIER, had all been measured whole: these count figures, not intervals. A network without classes has no
errors to count, and is measured whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.analysis.summary import Summary
from optimizer.formats import count
from optimizer.records import Inspection, Latency, Request


@dataclass(frozen=True, slots=True)
class Bar:
    """With so many ``errors`` a configuration is beaten by the recipe described as ``by``. ``wrong`` ``[N]``
    is the share of those measured so far that have an error on each image."""

    errors: int
    by: str
    wrong: np.ndarray


Screen = Callable[[Inspection, Latency], Bar | None]
"""Of a configuration's counts and sizes, and of the time that it shares; None: nothing measured is as small
and as fast."""


class ScreenedOut(Exception):
    """A configuration was left before it was measured, since it can't be on the frontier: it had ``errors``
    on the ``scored`` of ``total`` images, as many as what it is beaten ``by`` has on all of them."""

    def __init__(self, by: str, errors: int, scored: int, total: int) -> None:
        super().__init__(by, errors, scored, total)
        self.by, self.errors, self.scored, self.total = by, errors, scored, total

    def __str__(self) -> str:
        return (
            f"not on the frontier: {count(self.errors, 'error')} on the first {self.scored:,} of "
            f"{self.total:,} images, likely errors first; {self.by} is no larger and no slower, and has no "
            "more on all of them"
        )


def bar_for(request: Request, rivals: Sequence[Summary], size: int, latency: Latency) -> Bar | None:
    """What beats a request of ``size`` bytes, compressed, that shares ``latency``; of ``rivals`` those are
    looked at that share it too, and were asked for the same but for their recipe. None where nothing can."""
    asked = _asked(request)
    alike = [
        one
        for one in rivals
        if _asked(one.request) == asked and one.latency.checksum == latency.checksum and not one.fidelity
    ]
    smaller = [one for one in alike if one.size.compressed_bytes <= size]
    if not smaller:
        return None

    def errors(one: Summary) -> int:
        """One more than an equal has, since both are on the frontier."""
        return one.total - one.correct + (one.size.compressed_bytes == size)

    best = min(smaller, key=errors)
    wrong = _wrong([one.outcomes for one in alike], best.total)
    return Bar(errors(best), best.recipe.describe(details=False), wrong)


def _wrong(outcomes: Sequence[bytes], total: int) -> np.ndarray:
    """The share ``[total]`` of those that have an error on each image."""
    packed = np.frombuffer(b"".join(outcomes), np.uint8).reshape(len(outcomes), -1)
    right = np.unpackbits(packed, axis=1, count=total).sum(axis=0, dtype=np.uint32)
    wrong: np.ndarray = (len(outcomes) - right) / len(outcomes)
    return wrong


def likely_errors_first(wrong: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Indices ``[N]`` of the images: first those that most configurations have wrong, by ``wrong`` ``[N]``;
    of equals, those of which the uncompressed model is least sure, by its ``logits`` ``[N, K]``."""
    best = np.sort(logits, axis=1)[:, -2:]
    return np.lexsort((best[:, -1] - best[:, 0], -wrong))


def _asked(request: Request) -> tuple[object, ...]:
    return request.model, request.engine, request.data, request.settings
