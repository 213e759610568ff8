"""What is timed in a few calls, where a test asks what comes of it and not how long it took."""

from optimizer.measurement.latency import LatencyEffort
from optimizer.measurement.visits import VisitEffort

A_FEW_CALLS = LatencyEffort(
    warmup_calls=1,
    warmup_seconds=0,
    seconds=0,
    min_rounds=10,
    visit=VisitEffort(settle_seconds=0, seconds=0, min_calls=2, max_calls=2),
)
"""Just enough rounds to have an interval."""
