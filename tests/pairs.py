"""Combinations of parameters in which every two values meet, in the place of their full product."""

from collections.abc import Iterable
from itertools import combinations, product

import pytest


def pairs(**parameters: Iterable[object]) -> pytest.MarkDecorator:
    """``@pairs(kernel=[3, 5], stride=[1, 2], ...)``: parametrize with few combinations of the values, so that
    every value of one parameter is there with every value of each other one. A mistake that needs three of
    them at once is rare; hypothesis looks for those."""
    every = list(product(*parameters.values()))
    met = {values: set(combinations(enumerate(values), 2)) for values in every}
    missing, chosen = set().union(*met.values()), []
    while missing:
        chosen.append(max(every, key=lambda values: len(met[values] & missing)))
        missing -= met[chosen[-1]]
    return pytest.mark.parametrize(list(parameters), chosen)
