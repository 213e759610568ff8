"""Time as overhead and a power of n: the exponent, how straight the line is, and whether growth is linear."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike

from optimizer.analysis.labels import Labelled
from optimizer.analysis.rounds import t_quantile

SLOPE_MARGIN = 0.08
"""An exponent is shown to be 1 when its whole interval lies so close to it: over ten times the weights, the
time then grows 8.3 to 12 times."""
RESIDUAL_LIMIT = 0.1
"""How far points may lie from the line, as a share of their time, before it is no straight line."""


class Growth(Labelled):
    """What a fit shows of the growth of time with n."""

    LINEAR = "linear"
    NOT_SHOWN = "not shown to be linear"
    BENT = "not a straight line"


@dataclass(frozen=True, slots=True)
class Residual:
    """How far the time at ``n`` lies above the fitted line, as a share of it, and how well it is known: the
    half width of its interval, as a share."""

    n: int
    share: float
    known_to: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Time = overhead of each layer's call (``floor_ns``) + ``cost_ns`` x n ^ ``slope``, fitted to ``points``
    points; ``degrees`` more than it has parameters.

    ``low`` and ``high`` describe the scatter of the points around the line, taken as independent: they are a
    description and no interval at a known confidence, since what the line lacks is no chance. From ``from_n``
    on the weights take longer than the overhead; ``residuals`` are those of the points from there on.
    """

    slope: float
    low: float
    high: float
    floor_ns: float
    cost_ns: float
    from_n: int
    points: int
    degrees: int
    residuals: tuple[Residual, ...]

    def time_ns(self, n: float, layers: int = 1) -> float:
        """What the fit has a call take, overhead of ``layers`` layers and all."""
        return layers * self.floor_ns + self.weights_ns(n)

    def weights_ns(self, n: float) -> float:
        """The same without the overhead."""
        return float(self.cost_ns * n**self.slope)

    @property
    def bent(self) -> Residual | None:
        """The farthest point, where it lies beyond RESIDUAL_LIMIT and beyond what its time is known to."""
        beyond = [one for one in self.residuals if abs(one.share) > max(RESIDUAL_LIMIT, one.known_to)]
        return max(beyond, key=lambda one: abs(one.share), default=None)

    @property
    def growth(self) -> Growth:
        """Linear, when the line is straight and the whole interval of its slope within SLOPE_MARGIN of 1."""
        if self.bent:
            return Growth.BENT
        inside = self.low >= 1 - SLOPE_MARGIN and self.high <= 1 + SLOPE_MARGIN
        return Growth.LINEAR if inside else Growth.NOT_SHOWN


def order_stays(before: Fit, after: Fit) -> bool:
    """Whether a removal is shown to leave linear growth: an equivalence test (D. J. Schuirmann, Journal of
    Pharmacokinetics and Biopharmaceutics 15, 1987, 657-680). Growth is linear on both sides of it, and the
    interval of the slope after less the slope before lies within SLOPE_MARGIN of 0 as a whole.
    """
    difference = after.slope - before.slope
    half = math.hypot(after.high - after.slope, before.high - before.slope)
    linear = before.growth == after.growth == Growth.LINEAR
    return linear and abs(difference) + half <= SLOPE_MARGIN


def fit_power(
    n: Sequence[int], layers: Sequence[int], times_ns: ArrayLike, known_to: Sequence[float], from_n: int
) -> Fit:
    """Fit overhead and power law together, by least squares of the logarithms, to one time a point.

    ``layers`` is how many calls a point makes, ``known_to`` the half width of its time's interval as a share.
    At least four points, the smallest first.
    """
    visits, calls, times = np.asarray(n, float), np.asarray(layers, float), np.asarray(times_ns, float)
    middle = math.exp(np.log(visits).mean())  # the cost at a middle n hangs least on the slope

    def misfit(parameters: np.ndarray) -> np.ndarray:
        """How far each time lies above the line, in logarithms."""
        floor, cost, slope = parameters
        weights = cost + slope * np.log(visits / middle)
        return np.asarray(np.log(times) - np.logaddexp(floor + np.log(calls), weights))

    largest = int(visits.argmax())
    start = [
        math.log(times[0] / calls[0]),
        math.log(times[largest]) + math.log(middle / visits[largest]),
        1.0,
    ]
    found = scipy.optimize.least_squares(misfit, start)
    residuals = found.fun
    degrees = len(times) - len(start)
    jacobian = np.asarray(found.jac)
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * float(residuals @ residuals) / degrees
    floor, cost, slope = map(float, found.x)
    half = t_quantile(degrees, 0.95) * math.sqrt(covariance[2, 2])
    return Fit(
        slope=slope,
        low=slope - half,
        high=slope + half,
        floor_ns=math.exp(floor),
        cost_ns=math.exp(cost - slope * math.log(middle)),
        from_n=from_n,
        points=len(times),
        degrees=degrees,
        residuals=tuple(
            Residual(int(at), math.expm1(share), known)
            for at, share, known in sorted(zip(visits, map(float, residuals), known_to, strict=True))
            if at >= from_n
        ),
    )
