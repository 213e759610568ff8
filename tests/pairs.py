"""Combinations of parameters in which every two values meet, in the place of their full product."""

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest


def sample(*parameters: Iterable[object]) -> list[tuple[Any, ...]]:
    """Few combinations of the parameters' values, so that every value of one is there with every value of
    each other one. A mistake that needs three of them at once is rare; hypothesis looks for those."""
    every = list(product(*parameters))
    met = [set(combinations(enumerate(values), 2)) for values in every]
    missing: set[Any] = set().union(*met)
    chosen = []
    while missing:
        index = max(range(len(every)), key=lambda index: len(met[index] & missing))
        chosen.append(every[index])
        missing -= met[index]
    return chosen


def pairs(**parameters: Iterable[object]) -> pytest.MarkDecorator:
    """``@pairs(kernel=[3, 5], stride=[1, 2], ...)``: parametrize with a ``sample`` of them."""
    return pytest.mark.parametrize(list(parameters), sample(*parameters.values()))
