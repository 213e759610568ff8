"""Does the stopwatch tell the truth on this machine?

    python benchmarks/self_test.py [--same 300] [--slower 100] [--engine openvino] [--quick] [--json]

On real networks and this machine's clock, between networks that are built anew each time, as
`paretoscope measure` times them (an hour or more in all; 0 leaves a test out). ``--quick`` takes the short
timing behind the sliders, which calls more of them noisy:

- the same network against itself: fewer than 2 in 100 are called faster or slower (a noisy one is not);
- a network with a tenth more layers: more than 9 in 10 are called slower;
- one with 5 % and one with 3 % more: how many are called slower is only told;
- the same beside a busy process on every core: all are called noisy.

A rate counts by its bound, one-sided at 95 % (C. J. Clopper and E. S. Pearson, Biometrika 26, 1934, 404-413):
2 false ones of 100 are 2 %, but of a true rate of 6 % they would be no surprise. Run it on a quiet machine.
Ends with 1 when a test fails.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from optimizer.analysis.statistics import LatencySummary
from optimizer.compression.apply import compress
from optimizer.engine import Runner, engine_named
from optimizer.engine.base import Build
from optimizer.measurement.timing import time_series
from optimizer.progress import quiet
from optimizer.recipe import Recipe
from optimizer.records import Settings
from optimizer.system.environment import describe, environment, threads_available
from optimizer.system.machine_lock import exclusive

SHAPE = (32, 14, 14)
LAYERS = 60
VARIANTS = {"same": LAYERS, "3 % more": 62, "5 % more": 63, "10 % more": 66}
"""How many layers each has."""
SLOWER = tuple(VARIANTS)[1:]
FALSE_SHARE, FOUND_SHARE = 0.02, 0.9
SPIN = "while True: pass"


class Stack(nn.Module):
    """So many equal convolutions: a tenth more of them is a tenth more work (62 of 60 are 3.3 %)."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        channels = SHAPE[0]
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()) for _ in range(layers))
        )
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).mean((2, 3)))
        return logits


class Bench:
    """Networks of an engine, built anew for every comparison: where they come to lie in memory is a part of
    what noise is."""

    def __init__(self, engine: str, settings: Settings) -> None:
        self.settings = settings
        self.images = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0))
        self.prepare = engine_named(engine).prepare
        self.known: dict[int, tuple[Stack, Build]] = {}

    def runner(self, layers: int) -> Runner:
        if layers not in self.known:
            model = Stack(layers).eval()
            self.known[layers] = model, self.prepare(model, SHAPE)
        model, build = self.known[layers]
        compressed = compress(model, Recipe())
        return build(compressed, self.images, threads=self.settings.threads, batch=self.settings.batch)

    def compare(self, names: Collection[str], seed: int) -> dict[str, LatencySummary]:
        """Each of the variants with the network of LAYERS, all in one series."""
        pair = self.runner(LAYERS), self.runner(LAYERS)
        variants = {name: self.runner(VARIANTS[name]) for name in names}
        settings = replace(self.settings, seed=seed)
        series, _ = time_series(pair, variants, self.images.numpy(), settings)
        return series.summaries


@contextmanager
def hogs() -> Iterator[None]:
    """A busy process for every core, until the block ends."""
    busy = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(threads_available())]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


Tell = Callable[[str], None]


def verdicts(
    bench: Bench, names: Collection[str], repetitions: int, tell: Tell
) -> dict[str, list[LatencySummary]]:
    found: dict[str, list[LatencySummary]] = {name: [] for name in names}
    for number in range(repetitions):
        for name, summary in bench.compare(names, seed=number).items():
            found[name].append(summary)
        words = [f"{name} {told[-1].verdict}, {told[-1].ratio:.3f}" for name, told in found.items()]
        tell(f"{number + 1} of {repetitions}: {'; '.join(words)}")
    return found


def figures(found: list[LatencySummary]) -> dict[str, object]:
    return {
        "verdicts": dict(Counter(summary.verdict for summary in found)),
        "median_ratio": round(float(np.median([summary.ratio for summary in found])), 4) if found else None,
        "ratios": [round(summary.ratio, 4) for summary in found],
    }


def bounds(happened: int, of: int) -> tuple[float, float]:
    """What the rate of something is at least, and at most, each with 95 % confidence."""
    if not of:
        return 0.0, 1.0
    at_least, at_most = (
        binomtest(happened, of, alternative=side).proportion_ci(0.95, method="exact")
        for side in ("greater", "less")
    )
    return round(float(at_least.low), 4), round(float(at_most.high), 4)


def self_test(bench: Bench, same: int, slower: int, busy: int, tell: Tell) -> dict[str, dict[str, object]]:
    """The tests, each so many times, with their figures and whether each ``passed``, where something is
    claimed."""
    (alike,) = verdicts(bench, ["same"], same, tell).values()
    more = verdicts(bench, SLOWER, slower, tell)
    with hogs():
        (disturbed,) = verdicts(bench, ["same"], busy, tell).values()
    false = sum(summary.verdict in ("faster", "slower") for summary in alike)
    found = {name: sum(summary.verdict == "slower" for summary in more[name]) for name in SLOWER}
    noisy = sum(summary.verdict == "noisy" for summary in disturbed)
    _, at_most = bounds(false, same)
    at_least = {name: bounds(found[name], slower)[0] for name in SLOWER}
    claimed = SLOWER[-1]
    return {
        "the same network": {
            "called different": false,
            "of": same,
            "rate is at most": at_most,
            "claimed": f"under {FALSE_SHARE}",
            "passed": at_most < FALSE_SHARE if same else None,
            **figures(alike),
        },
        **{
            f"{name} layers": {
                "called slower": found[name],
                "of": slower,
                "rate is at least": at_least[name],
                **(
                    {
                        "claimed": f"over {FOUND_SHARE}",
                        "passed": at_least[name] > FOUND_SHARE if slower else None,
                    }
                    if name == claimed
                    else {}
                ),
                **figures(more[name]),
            }
            for name in SLOWER
        },
        "beside a busy process on every core": {
            "called noisy": noisy,
            "of": busy,
            "passed": noisy == busy,
            **figures(disturbed),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--same", type=int, default=300, help="comparisons of a network with itself (300)")
    parser.add_argument("--slower", type=int, default=100, help="and with slower ones (100)")
    parser.add_argument("--busy", type=int, default=10, help="and with itself beside busy processes (10)")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument(
        "--threads", type=int, default=1, help="1 leaves a core to the rest of the system (1)"
    )
    parser.add_argument("--quick", action="store_true", help="the sliders' short timing")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bench = Bench(options.engine, Settings(threads=options.threads, quick=options.quick))

    def tell(words: str) -> None:
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)

    with exclusive(quiet):
        found = self_test(bench, options.same, options.slower, options.busy, tell)
    print("\r\033[K", end="", file=sys.stderr)
    print(json.dumps({"machine": describe(environment()), **found}, indent=None if options.json else 2))
    sys.exit(not all(test.get("passed") is not False for test in found.values()))


if __name__ == "__main__":
    main()
