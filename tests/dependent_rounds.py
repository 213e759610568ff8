"""Simulated times of rounds that depend on each other."""

from collections.abc import Callable

import numpy as np

Process = Callable[[np.random.Generator, int], np.ndarray]
"""Draws so many rounds."""


def correlated(rho: float, heavy: bool = False) -> Process:
    """Rounds that keep a share ``rho`` of the one before; ``heavy``: some far slower."""
    from scipy.signal import lfilter  # takes a second, which collecting tests need not

    def draw(random: np.random.Generator, rounds: int) -> np.ndarray:
        noise = random.normal(size=rounds + 100)
        values = lfilter([(1 - rho**2) ** 0.5], [1, -rho], noise)[100:]
        return np.exp(values) if heavy else values

    return draw


def bursts(share: float, length: int) -> Process:
    """Times that scatter by 2 %, three times as long in bursts of ``length`` rounds on average, which are
    ``share`` of all rounds."""

    def draw(random: np.random.Generator, rounds: int) -> np.ndarray:
        calm = length * (1 - share) / share
        stays = np.column_stack(
            [random.geometric(1 / calm, rounds), random.geometric(1 / length, rounds)]
        ).ravel()
        states = np.repeat(np.resize([False, True], len(stays)), stays)
        start = random.integers(50 * length)
        return np.exp(random.normal(0, 0.02, rounds)) * np.where(states[start : start + rounds], 3, 1)

    return draw
