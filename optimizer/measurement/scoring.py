"""Many images through a network, part by part: in which order, and when what is known is looked at."""

import math
from collections.abc import Callable

import numpy as np

from optimizer.analysis.screening import Bar, ScreenedOut, likely_errors_first
from optimizer.progress import stop_if_cancelled

FIRST_SHARE = 0.04
"""Of the images, after which accuracy is told for the first time."""
GROWTH = 4.0
"""By how much more of the images it is told again."""
SCREENED_SHARE, SCREENED_GROWTH = 0.02, 0.125
"""Of all images, and of those that are known: so many are scored at least between two looks at whether a
configuration is beaten."""
MAX_COPIED_BYTES = 32 * 2**20
"""Images that are copied at a time to be scored in another order."""

Score = Callable[[np.ndarray], np.ndarray]
"""Of images ``[N, C, H, W]`` the logits ``[N, K]``."""
Tell = Callable[[np.ndarray, np.ndarray], None]
"""Given the logits of all images and the indices of those that are known."""


def score_at_random(score: Score, images: np.ndarray, tell: Tell) -> np.ndarray:
    """Logits ``[N, K]`` of ``images`` ``[N, C, H, W]``, scored in a random order, so that the first of them
    stand for all: ``tell`` is told of those that are known, as they grow."""
    ends = growing(len(images))

    def look(logits: np.ndarray, known: np.ndarray) -> int:
        if len(known):
            tell(logits, known)
        return next(end for end in ends if end > len(known))

    return _score(score, images, np.random.default_rng(0).permutation(len(images)), look)


def score_unless_beaten(
    score: Score,
    images: np.ndarray,
    bar: Bar,
    baseline: np.ndarray,
    errors: Callable[[np.ndarray, np.ndarray], int],
) -> np.ndarray:
    """Logits ``[N, K]`` of ``images`` ``[N, C, H, W]``, likely errors first, by ``bar`` and the logits
    ``[N, K]`` of the ``baseline``. ``errors`` counts those of what is known.

    Raises ScreenedOut as soon as there are as many as the bar has.
    """

    def look(logits: np.ndarray, known: np.ndarray) -> int:
        found = errors(logits, known) if len(known) else 0
        if found >= bar.errors:
            raise ScreenedOut(bar.by, found, len(known), len(images))
        least = max(SCREENED_SHARE * len(images), SCREENED_GROWTH * len(known))
        return len(known) + max(bar.errors - found, math.ceil(least))

    return _score(score, images, likely_errors_first(bar.wrong, baseline), look)


def growing(total: int) -> list[int]:
    """Numbers of images after which accuracy is told; the last is all of them."""
    steps = math.ceil(math.log(1 / FIRST_SHARE, GROWTH))
    return sorted({math.ceil(total / GROWTH**step) for step in range(steps)})


def _score(
    score: Score, images: np.ndarray, order: np.ndarray, look: Callable[[np.ndarray, np.ndarray], int]
) -> np.ndarray:
    """Scored in ``order``. ``look`` is given the logits and the indices of those that are known, of none to
    begin with, and says how many are to be known when it looks again; what it raises ends the scoring."""
    most = max(1, MAX_COPIED_BYTES // max(1, images[:1].nbytes))
    logits, known = np.empty(0, np.float32), 0
    while known < len(images):
        until = min(look(logits, order[:known]), len(images))
        while known < until:
            stop_if_cancelled()
            part = order[known : min(until, known + most)]
            found = score(images[part])
            if not known:
                logits = np.empty((len(images), *found.shape[1:]), found.dtype)
            logits[part] = found
            known += len(part)
    return logits
