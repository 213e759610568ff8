"""How many threads torch computes with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from optimizer.system.environment import threads_available


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Run torch with ``threads`` threads, and put the old count back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def pinned_threads() -> Iterator[None]:
    """Run torch with every core of this machine, whatever ``OMP_NUM_THREADS`` or the caller say.

    How a sum is split over threads decides how it is rounded. What becomes weights is computed like this, so
    that a recipe gives the same weights each time; also as a decorator: ``@pinned_threads()``.
    """
    with thread_count(threads_available()):
        yield
