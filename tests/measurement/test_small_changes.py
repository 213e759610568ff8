"""A small difference that a quick timing finds is looked for in fresh processes too."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_runs import Ready
from simulated_clock import Clock

from optimizer.analysis.statistics import SAME
from optimizer.compression.apply import compress
from optimizer.engine.base import Runner
from optimizer.errors import UnavailableError
from optimizer.measurement import timing
from optimizer.measurement.fresh_processes import joined
from optimizer.measurement.latency import EFFORTS, LatencyEffort, LatencySeries, time_interleaved
from optimizer.measurement.timing import CONFIRMING, time_series
from optimizer.recipe import Recipe
from optimizer.records import Settings

IMAGES = np.zeros((4, 1, 2, 2), np.float32)
Build = Callable[[str], Runner]


def fresh_processes(monkeypatch: pytest.MonkeyPatch, build: Build) -> list[Settings]:
    """What each asks of simulated processes, in which every network is built anew."""
    asked: list[Settings] = []

    def time_in_processes(
        baseline: Runner,
        variants: Mapping[str, Runner],
        images: np.ndarray,
        settings: Settings,
        effort: LatencyEffort,
        report: object,
    ) -> LatencySeries:
        asked.append(settings)
        return joined(
            [
                time_interleaved(
                    (build("baseline"), build("baseline again")),
                    {name: build(name) for name in variants},
                    images,
                    settings,
                    replace(effort, processes=0),
                )
                for _ in range(effort.processes)
            ]
        )

    monkeypatch.setattr(timing, "time_in_processes", time_in_processes)
    return asked


def compared(build: Build, settings: Settings = Settings()) -> LatencySeries:  # noqa: B008
    pair = build("baseline"), build("baseline again")
    return time_series(pair, {"one": build("one")}, IMAGES, settings)[0]


@pytest.mark.parametrize(
    ("ratio", "later", "verdict"),
    [
        (0.95, 0.951, "faster"),
        (1.06, 1.059, "slower"),
        (0.96, 1.0, SAME),
        (1.03, 0.985, SAME),
    ],
)
def test_a_small_difference_is_told_where_networks_built_anew_tell_it_too(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, ratio: float, later: float, verdict: str
) -> None:
    asked = fresh_processes(
        monkeypatch, lambda name: clock.network(name, later * 1e6 if name == "one" else 1e6)
    )
    series = compared(
        lambda name: clock.network(name, ratio * 1e6 if name == "one" else 1e6), Settings(seed=3)
    )
    found = series.summaries["one"]
    assert found.verdict == verdict
    assert [one.seed for one in asked] == [4], "another order of the visits"
    assert len(series.processes) == 1 + CONFIRMING
    assert sum(series.processes) == found.rounds
    assert found.ratio == pytest.approx(np.exp(np.log([ratio, *[later] * CONFIRMING]).mean()), rel=1e-3)


@pytest.mark.parametrize("ratio", [0.5, 0.84, 1.0, 1.01, 1.17])
def test_what_is_large_or_none_needs_no_other_process(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, ratio: float
) -> None:
    asked = fresh_processes(monkeypatch, lambda name: clock.network(name, 1e6))
    series = compared(lambda name: clock.network(name, ratio * 1e6 if name == "one" else 1e6))
    assert not asked
    assert len(series.processes) == 1


def test_nor_does_what_loads_for_minutes_or_is_timed_in_full(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(name: str) -> Runner:
        return clock.network(name, 0.95e6 if name == "one" else 1e6)

    asked = fresh_processes(monkeypatch, build)
    assert compared(lambda name: replace(build(name), loads_slowly=True)).summaries["one"].verdict == "faster"
    assert not asked
    full = compared(build, Settings(quick=False))
    assert len(full.processes) == EFFORTS[False].processes
    assert len(asked) == 1, "which is in processes as it is"


def test_where_no_process_can_load_the_networks_the_difference_is_told_as_it_was_found(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> LatencySeries:
        raise UnavailableError("no process could")

    monkeypatch.setattr(timing, "time_in_processes", refused)
    series = compared(lambda name: clock.network(name, 0.95e6 if name == "one" else 1e6))
    assert (len(series.processes), series.summaries["one"].verdict) == (1, "faster")


@pytest.mark.slow
@pytest.mark.parametrize("scatter", [0.01, 0.02, 0.04])
def test_builds_that_scatter_are_not_called_different(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, scatter: float
) -> None:
    """The same network three times, each build of it faster or slower by chance: one comparison in a hundred
    may be wrong. The first process alone is in a tenth of them."""
    random = np.random.default_rng(1)

    def build(name: str) -> Runner:
        return clock.network(name, 1e6 * np.exp(random.normal(0, scatter)))

    asked = fresh_processes(monkeypatch, build)
    verdicts = [compared(build).summaries["one"].verdict for _ in range(300)]
    assert len(asked) > 10
    assert sum(one in ("faster", "slower") for one in verdicts) <= 3


@pytest.mark.slow
def test_a_small_difference_is_taken_to_real_processes(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    module, prepare = ready("onnxruntime", "auxiliary")
    images = torch.rand(4, 1, 8, 8)
    one, again, variant = (prepare(compress(module, Recipe()), images, threads=1, batch=1) for _ in range(3))
    monkeypatch.setattr(timing, "_is_small", lambda summary: True)
    series, _ = time_series((one, again), {"one": variant}, images.numpy(), Settings(threads=1))
    assert len(series.processes) == 1 + CONFIRMING
    assert series.lost == 0
    assert len(series.variants["one"].timed) == sum(series.processes)
