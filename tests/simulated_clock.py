"""A clock that stands still but for the calls of networks whose times are known."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from optimizer.engine import Runner
from optimizer.records import Execution


@dataclass(frozen=True)
class Call:
    """The first value and the shape of its batch, and whether garbage was collected meanwhile."""

    network: str
    value: float
    shape: tuple[int, ...]
    collecting: bool


@dataclass
class Clock:
    """``calls`` in their order, and ``sessions`` as they begin and end. A network that ran after another one
    found none of its own in the caches."""

    now_ns: int = 0
    calls: list[Call] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)

    def network(self, name: str, steady_ns: float, first: float = 1.0, decay: float = 0.6) -> Runner:
        """Its first call after another network takes ``first`` times its steady time; what is above that
        shrinks by ``decay`` from call to call."""
        return self.runner(name, lambda since: steady_ns * (1 + (first - 1) * decay**since))

    def runner(self, name: str, time_ns: Callable[[int], float]) -> Runner:
        """``time_ns`` of a call, given how many of its own came right before it."""
        since = 0

        def infer(images: np.ndarray) -> np.ndarray:
            nonlocal since
            since = since + 1 if self.calls and self.calls[-1].network == name else 0
            self.calls.append(Call(name, float(images.flat[0]), images.shape, gc.isenabled()))
            self.now_ns += round(time_ns(since))
            return images.reshape(len(images), -1)

        @contextmanager
        def session() -> Iterator[None]:
            self.sessions.append(f"{name} begins")
            try:
                yield
            finally:
                self.sessions.append(f"{name} ends")

        return Runner(infer, infer, lambda: Execution((), ()), session=session)

    def pair(self, steady_ns: float = 1e6, first: float = 1.0) -> tuple[Runner, Runner]:
        """Two builds of a baseline."""
        return self.network("baseline", steady_ns, first), self.network("baseline again", steady_ns, first)
