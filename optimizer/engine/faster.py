"""Which of two executions of a network is the faster, for engines that decide when they build one."""

import timeit
from collections.abc import Callable

import numpy as np

COMPARED = 15
CLEARLY = 0.98
"""Share of the other's time that the first must stay under: a smaller difference may be noise."""


def is_faster(first: Callable[[], object], other: Callable[[], object]) -> bool:
    """Of calls in turns, the second of each visit: clearly, in the median."""
    taken: list[list[float]] = [[], []]
    for _ in range(COMPARED):
        for times, call in zip(taken, (first, other), strict=True):
            call()
            times.append(timeit.timeit(call, number=1))
    return bool(np.median(taken[0]) <= CLEARLY * np.median(taken[1]))
