"""A series of rounds shared by fresh processes, each of which loads the networks from files, anew.

    python -m optimizer.measurement.fresh_processes FOLDER NUMBER

Where in memory a build happens to lie makes it a percent faster or slower for as long as it lives. More
rounds can't show that; more builds do (T. Kalibera and R. Jones, Rigorous benchmarking in reasonable time,
ISMM 2013).
"""

import gc
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from optimizer.engine.base import Array, Loader, Runner, save_for_process
from optimizer.errors import UnavailableError, WorkError, words_of
from optimizer.measurement.latency import LatencyEffort, LatencySeries, time_interleaved
from optimizer.methods.entries import load
from optimizer.progress import Report
from optimizer.records import Execution, Settings, Visits, decode, encode
from optimizer.system.processes import run_module

BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class TimingTask:
    """What a fresh process is to time. ``loaders`` are the names ``module:function`` of each network's
    :data:`~optimizer.engine.base.Loader`, by the folder that its files are in; the baseline is one of them.
    """

    loaders: dict[str, str]
    settings: Settings
    effort: LatencyEffort


def time_in_processes(
    baseline: Runner,
    variants: Mapping[str, Runner],
    images: Array,
    settings: Settings,
    effort: LatencyEffort,
    report: Report,
) -> LatencySeries:
    """One series over ``images`` ``[N, C, H, W]``, its rounds in ``effort.processes`` processes, one after
    the other. One that dies costs its share, and one that takes too long that of those after it.

    Raises UnavailableError where the engine has no loader, a network can't be written for another process (as
    on a full disk), or none could time anything.
    """
    runners = {BASELINE: baseline, **variants}
    found: list[LatencySeries] = []
    problem, began, total = "", time.monotonic(), effort.processes
    try:
        with tempfile.TemporaryDirectory(prefix="paretoscope-") as name:
            folder = Path(name)
            loaders = {part: _save(runner, folder / part) for part, runner in runners.items()}
            np.save(folder / "images.npy", images)
            (folder / "task.json").write_bytes(encode(TimingTask(loaders, settings, effort)))
            for number in range(total):
                left = (time.monotonic() - began) / number * (total - number) if number else 0
                words = f", about {left:.0f} s left" if left else ""
                report(number / total, f"timing in fresh processes, {number + 1} of {total}{words}")
                own = time.monotonic()
                try:
                    found.append(_run(folder, number, effort.process_seconds))
                except WorkError as error:
                    problem = str(error)
                    if time.monotonic() - own >= effort.process_seconds:  # the others would, too
                        break
    except OSError as error:  # a full disk, or no temporary folder
        raise UnavailableError(f"no other process can be given these networks: {words_of(error)}") from error
    if not found:
        raise UnavailableError(f"none of {total} processes could time these networks: {problem}")
    return replace(joined(found), lost=total - len(found))


def _save(runner: Runner, folder: Path) -> str:
    """Write what a process needs to load a network; the name of what loads it there. Raises
    UnavailableError."""
    loader = save_for_process(runner, folder)
    if loader is None:
        raise UnavailableError("this engine can't load its networks in another process")
    return loader


def _run(folder: Path, number: int, max_seconds: float) -> LatencySeries:
    """Raises WorkError."""
    run_module("optimizer.measurement.fresh_processes", str(folder), str(number), max_seconds=max_seconds)
    return decode((folder / f"{number}.json").read_bytes(), LatencySeries)


def joined(series: Sequence[LatencySeries]) -> LatencySeries:
    """Those of several processes, one after the other."""
    first, second = (Visits.joined([one.baseline[build] for one in series]) for build in (0, 1))
    return LatencySeries(
        baseline=(first, second),
        variants={name: Visits.joined([one.variants[name] for one in series]) for name in series[0].variants},
        stolen_share=float(np.mean([one.stolen_share for one in series])),
        warmup_calls=min(one.warmup_calls for one in series),
        processes=tuple(rounds for one in series for rounds in one.processes),
        lost=sum(one.lost for one in series),
        instructions={
            name: tuple(count for one in series for count in one.instructions.get(name, ()))
            for name in max((one.instructions for one in series), key=len)
        },
    )


# In the fresh process


def time_share(folder: Path, number: int) -> LatencySeries:
    """What the process of a ``number`` times, of what lies in a folder."""
    task = decode((folder / "task.json").read_bytes(), TimingTask)
    images = np.load(folder / "images.npy")
    settings = replace(task.settings, seed=task.settings.seed + number)
    shape = (settings.batch, *images.shape[1:])

    def runner(part: str) -> Runner:
        loader: Loader = load(task.loaders[part])
        infer = loader()(folder / part, settings.threads, shape)
        return Runner(infer, infer, lambda: Execution((), ()))

    parts = [BASELINE, BASELINE, *(part for part in task.loaders if part != BASELINE)]
    order = np.random.default_rng(settings.seed).permutation(len(parts))  # who is loaded first may lie better
    built = {place: runner(parts[place]) for place in order.tolist()}
    variants = {part: built[place] for place, part in enumerate(parts) if place > 1}
    return time_interleaved((built[0], built[1]), variants, images, settings, task.effort)


if __name__ == "__main__":
    place, number = Path(sys.argv[1]), int(sys.argv[2])
    (place / f"{number}.json").write_bytes(encode(time_share(place, number)))
    gc.freeze()  # all that was imported is not looked through for garbage at the end
