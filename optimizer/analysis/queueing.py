"""Response times, waiting included, of requests at random moments, simulated from measured service times.

Of a busy network's queues only a few pass while it is measured, so that percentiles of those few requests
are known badly, or not at all. How long a call takes is known well. So the calls that were measured, in the
order in which they were, are served once more to many times as many simulated arrivals. Slow spells that the
measurement did not contain are in no interval: where they are rare, percentiles are too low. No torch.
"""

import numpy as np
from numpy.typing import NDArray

from optimizer.analysis.measures import Measure
from optimizer.analysis.rounds import CONFIDENCE, PERCENTILE_ROUNDS, dependence, t_quantile

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
NEEDED = {"p50": 100, "p95": 2 * PERCENTILE_ROUNDS[0.95], "p99": PERCENTILE_ROUNDS[0.99]}
"""How many calls a percentile takes; for p95 and p99 they have to be worth as many independent ones."""
BLOCKS = 20
"""Stretches of the measured calls that stay together: what slows one call often slows the next."""
RESAMPLES = 200
TAIL = 0.005
"""Of the resamples, to either side of a 95 % interval: 0.025 would miss what rare slow calls do to a queue in
some 10 of 100 simulated measurements, and this misses it in 5 (in 13 where one call in 300 is 30 times as
long)."""
MAX_UNSTABLE = 0.025
"""Of the resamples, those whose calls take longer than the time between requests, in which a queue grows
without end. With more of them no interval has an upper end."""
MIN_ARRIVALS, MAX_ARRIVALS, ARRIVALS_A_QUEUE = 500_000, 2_000_000, 20_000
"""A queue lasts for some 1 / (1 - busy)^2 requests, and so many queues are simulated."""
RESAMPLED_SHARE = 0.05
"""Of the arrivals, for which resamples are served: they differ by their calls, not by their arrivals."""
SECTIONS = 10
SEED = 0


def response_times(service: NDArray[np.float64], arrivals: NDArray[np.float64]) -> NDArray[np.float64]:
    """From arrival to answer, of requests that come at ``arrivals`` ``[N]``, ascending, and take ``service``
    ``[N]`` each, one after the other (D. V. Lindley, Math. Proc. Cambridge Phil. Soc. 48, 1952, 277-289)."""
    ended = np.cumsum(service)
    begun = ended - service
    return np.maximum.accumulate(arrivals - begun) + ended - arrivals


def response_percentiles(service_ns: NDArray[np.float64], rate: float) -> dict[str, Measure]:
    """PERCENTILES of the response time in ns, with 95 % intervals, of requests that come at random moments
    (a Poisson process), ``rate`` a second, to a network whose calls took ``service_ns`` ``[N]``, in their
    order.

    Intervals say how well the calls are known, by resampling blocks of them (H. R. Künsch, Annals of
    Statistics 17, 1989, 1217-1241), and how well the simulation knows the percentile. One is None where there
    are fewer calls than NEEDED says, or slow ones come in such bursts that they are worth fewer; all are,
    where the network may be too slow for the rate.
    """
    shares = {name: share for name, share in PERCENTILES.items() if _enough(service_ns, name)}
    nothing = dict.fromkeys(PERCENTILES, Measure(None))
    busy = rate * float(service_ns.mean()) / 1e9 if len(service_ns) else 1.0
    if not shares or busy >= 1:
        return nothing
    random = np.random.default_rng(SEED)
    calls = len(service_ns)
    length = max(1, calls // BLOCKS)
    drawn = random.integers(0, calls, (RESAMPLES, -(-calls // length)))
    resamples = [service_ns[_blocks(starts, length, calls)[:calls]] for starts in drawn]
    if np.mean([rate * one.mean() / 1e9 >= 1 for one in resamples]) > MAX_UNSTABLE:
        return nothing

    count = int(np.clip(ARRIVALS_A_QUEUE / (1 - busy) ** 2, MIN_ARRIVALS, MAX_ARRIVALS))
    arrivals = np.cumsum(random.exponential(1e9 / rate, count))
    evenly = np.linspace(0, calls, -(-count // length), endpoint=False).astype(int)
    order = _blocks(random.permutation(evenly), length, calls)[:count]
    asked = list(shares.values())
    responses = response_times(service_ns[order], arrivals)
    values = np.quantile(responses, asked)
    logs = np.log([np.quantile(section, asked) for section in np.array_split(responses, SECTIONS)])
    simulated = t_quantile(SECTIONS - 1, CONFIDENCE) * logs.std(axis=0, ddof=1) / np.sqrt(SECTIONS)

    some = max(calls, int(RESAMPLED_SHARE * count))
    found = [np.quantile(response_times(one[order[:some]], arrivals[:some]), asked) for one in resamples]
    low, high = np.quantile(np.log(found / np.quantile(responses[:some], asked)), [TAIL, 1 - TAIL], axis=0)
    lows = values * np.exp(-np.hypot(np.minimum(low, 0), simulated))
    highs = values * np.exp(np.hypot(np.maximum(high, 0), simulated))
    known = zip(shares, values.tolist(), lows.tolist(), highs.tolist(), strict=True)
    return nothing | {name: Measure(value, low, high) for name, value, low, high in known}


def _enough(service_ns: NDArray[np.float64], name: str) -> bool:
    enough = len(service_ns) >= NEEDED[name]
    if not enough or name == "p50":  # which hardly depends on when slow calls come
        return enough
    slow = service_ns >= np.quantile(service_ns, PERCENTILES[name])
    return dependence(slow.astype(float)).effective >= NEEDED[name]


def _blocks(starts: NDArray[np.int64], length: int, calls: int) -> NDArray[np.int64]:
    """Indices of so many of the ``calls`` from each of ``starts`` on, the first call after the last one."""
    return ((starts[:, None] + np.arange(length)) % calls).ravel()
