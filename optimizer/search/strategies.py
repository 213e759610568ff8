"""How a search goes through a space: in order, at random, or guided by what it has seen."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from optimizer.search.space import Position, Space

Losses = Sequence[float]
STARTS = 10
"""Positions that a guided search takes at random before it trusts what it has seen."""


class Strategy(Protocol):
    """What a search asks for the next position, and tells what came of it.

    ``patience``: after so many positions in a row that were known already, it has nothing more to say.
    """

    @property
    def patience(self) -> float: ...

    def ask(self) -> Position | None:
        """The next position; None where none is left."""

    def tell(self, losses: Losses, excess: Losses) -> None:
        """Of the position asked for last: its losses (lower is better), and by how much it is beyond each
        limit (above 0: it is), both estimated where it was given up early."""


class Listed:
    """Positions one after the other, whatever comes of them."""

    patience = math.inf

    def __init__(self, positions: Iterable[Position]) -> None:
        self._left = iter(positions)

    def ask(self) -> Position | None:
        return next(self._left, None)

    def tell(self, losses: Losses, excess: Losses) -> None:
        pass


class Guided:
    """A model of where good positions lie: the multi-objective tree-structured Parzen estimator (Y. Ozaki et
    al., GECCO 2020), as Optuna has it. It begins with what is likely to be of use."""

    patience = 20

    def __init__(self, space: Space, seed: int, losses: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sparsities = sorted(space.sparsity)
        steps = optuna.distributions.IntDistribution(0, len(self._sparsities) - 1)
        self._axes: dict[str, optuna.distributions.BaseDistribution] = {
            name: steps if name == "sparsity" else optuna.distributions.CategoricalDistribution(choices)
            for name, choices in space.axes.items()
        }
        self._sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTS, multivariate=True)
        self._study = optuna.create_study(directions=["minimize"] * losses, sampler=self._sampler)
        for position in space.likely():
            step = self._sparsities.index(float(position["sparsity"]))
            self._study.enqueue_trial(position | {"sparsity": step})
        self._asked: Any = None

    def ask(self) -> Position | None:
        self._asked = self._study.ask(self._axes)
        asked = dict(self._asked.params)
        return asked | {"sparsity": self._sparsities[asked["sparsity"]]}

    def tell(self, losses: Losses, excess: Losses) -> None:
        for number, beyond in enumerate(excess):
            self._asked.set_constraint(str(number), float(beyond))
        self._study.tell(self._asked, [float(one) for one in losses])


def _shuffled(space: Space, seed: int, losses: int) -> Strategy:
    positions = space.all()
    random.Random(seed).shuffle(positions)
    return Listed(positions)


STRATEGIES: dict[str, Callable[[Space, int, int], Strategy]] = {
    "guided": Guided,
    "random": _shuffled,
    "grid": lambda space, seed, losses: Listed(space.all()),
}
"""Of a space, a seed and the number of losses."""
