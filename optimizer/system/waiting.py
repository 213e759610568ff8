"""How threads of torch wait for each other, in processes of our own."""

import os

WAITING = {"GOMP_SPINCOUNT": "50000"}
"""Awake for less than a millisecond, then asleep. libgomp's default is six times as long, at each sum of two
halves: where another program has a core, it keeps the other core from whoever is waited for. Beside one busy
process compressing took 2.5 times as long by it, and torch eager, alone, takes no longer with ours
(``benchmarks/busy.py``); with a tenth of ours it does."""


def waiting() -> dict[str, str]:
    """What to add to a process's variables before it imports torch: WAITING, where those say nothing of how
    threads wait."""
    said = any(os.environ.get(name) for name in ("OMP_WAIT_POLICY", *WAITING))
    return {} if said else WAITING
