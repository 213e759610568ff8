"""A sweep and a search on EfficientNet-Lite0, from nothing, against what a user would otherwise wait for.

    python benchmarks/sweep.py [--images FOLDER] [--part grid|find] [--loop 3] [--whole]
                               [--by milliseconds|ratio] [--long SECONDS]

- The frontier of the grid of `notebook.py`, 6 sparsities x 4 bit widths over 500 photographs, every point of
  it measured whole (accuracy on all images, size, latency), against the notebook's loop at batch size 32,
  which only scores and whose time is that of ``--loop`` configurations times 24 / ``--loop``. Reading the
  images, calibration statistics and conversion are in our time; what the first two took, which later sweeps
  find kept, is told beside. With ``--whole`` the grid is measured whole as well, and its frontier compared:
  ends with 1 where it is another.
- ``find`` with half of the uncompressed latency and two points as limits, in 60 s; with ``--long``, against
  the best that a search of so many seconds finds. Half the latency is asked for in milliseconds, and as a
  ratio to the uncompressed model's: the former only a quiet machine can tell.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from notebook import BITS, MODEL, PHOTOGRAPHS, SPARSITIES, halves, notebook, timed

from optimizer import on_demand
from optimizer.analysis.frontier import frontier_of
from optimizer.analysis.limits import Limits
from optimizer.analysis.summary import summarise
from optimizer.analysis.view import Failed, Screened
from optimizer.data.loading import load_images
from optimizer.errors import WorkError
from optimizer.measurement.workspace import OPENED, open_workspace
from optimizer.model.catalogue import load
from optimizer.recipe import NORMAL
from optimizer.records import DataSpec, Request, Result, Settings
from optimizer.search.answers import headline
from optimizer.search.questions import Answered
from optimizer.search.records import Question
from optimizer.search.space import Space
from optimizer.search.sweep import Grid, grid, sweep
from optimizer.store.keys import request_keys
from optimizer.store.results import Store
from optimizer.system.environment import describe, environment
from optimizer.system.paths import HOME_VARIABLE

LOOP_BATCH = 32
LIMITS = ("milliseconds", "ratio")


@contextmanager
def from_nothing() -> Iterator[Store]:
    """A store in a data folder of its own, with nothing kept there or in this process."""
    before = os.environ.get(HOME_VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        OPENED.kept.clear()
        os.environ[HOME_VARIABLE] = folder
        try:
            yield Store()
        finally:
            os.environ.pop(HOME_VARIABLE)
            if before is not None:
                os.environ[HOME_VARIABLE] = before


class Stopwatch:
    """Seconds, and those of the processors, since it was made."""

    def __init__(self) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]


@dataclass(frozen=True)
class Measured:
    """The recipes on a grid's frontier, in words; how many configurations were measured whole, and how many
    images were scored; what all took, and what reading the images and calibration took of that, in seconds
    and in those of the processors."""

    frontier: tuple[str, ...]
    measured_whole: int
    images_scored: int
    seconds: tuple[float, float]
    prepared: tuple[float, float]


def measured_grid(data: DataSpec, frontier_only: bool) -> Measured:
    """From nothing. Raises WorkError where a configuration fails."""
    base = Request(MODEL, NORMAL, data=data)
    asked = Grid(base, SPARSITIES, BITS, (32,), (base.engine,), frontier_only=frontier_only).requests()
    with from_nothing() as store:
        watch = Stopwatch()
        open_workspace(MODEL, data).statistics()
        prepared = watch.read()
        measure = partial(on_demand.load_or_measure, store=store)
        if frontier_only:
            measure = partial(on_demand.load_or_screen, grid=request_keys(asked), store=store)
        results, images = list[Result](), 0
        for number, one in enumerate(sweep(asked, measure), 1):
            words = "measured whole"
            if isinstance(one, Failed):
                raise WorkError(one.message)
            if isinstance(one, Result):
                results.append(one)
                images += one.accuracy.total
            else:
                words = one.message
                images += one.images if isinstance(one, Screened) else 0
            recipe = one.request.recipe.describe(details=False)
            print(f"{number} of {len(asked)}, {watch.read()[0]:.0f} s: {recipe}: {words}", file=sys.stderr)
        seconds = watch.read()
    # All share one time. Where that is noisy, a frontier over it as well would be empty.
    assert len({one.latency.signature for one in results}) == 1
    found = frontier_of([summarise(one) for one in results], ("drop", "compressed_size"))
    on_it = [
        one.request.recipe.describe(False) for one, best in zip(results, found.optimal, strict=True) if best
    ]
    return Measured(tuple(sorted(on_it)), len(results), images, seconds, prepared)


def loop(data: DataSpec, configurations: int) -> float:
    """Seconds of the notebook's loop for the whole grid."""
    loaded = load(MODEL)
    images = load_images(loaded, data).evaluation.images
    requests = grid(Request(MODEL, data=data), SPARSITIES, BITS)
    chosen = [requests[i] for i in np.linspace(0, len(requests) - 1, configurations).round().astype(int)]
    seconds = 0.0
    for request in chosen:
        share, bits = request.recipe.prune.sparsity, request.recipe.quantize.weight_bits
        seconds += timed(notebook, loaded.module, share, bits, images, LOOP_BATCH)[1]
    return seconds * len(requests) / len(chosen)


def search(data: DataSpec, store: Store, seconds: float, as_ratio: bool) -> Answered:
    """What is found under half of the uncompressed latency and two points."""
    settings, half = Settings(threads=1), Limits(2.0, latency_ratio=0.5)
    if not as_ratio:
        uncompressed = on_demand.load_or_measure(Request(MODEL, data=data, settings=settings), store)
        latency = summarise(uncompressed).measures["latency"].value
        assert latency
        half = Limits(2.0, latency / 2 / 1e6)
    space = replace(Space(), engine=on_demand.engines_to_search(), threads=(1,))
    question = Question(MODEL, half, "latency", space, budget_seconds=seconds, data=data, settings=settings)
    return on_demand.answer(question, store)


def grids(data: DataSpec, options: argparse.Namespace) -> dict[str, object]:
    """Figures of the grid, and of the loop."""
    found = measured_grid(data, frontier_only=True)
    figures: dict[str, object] = {"grid": asdict(found)}
    if options.whole:
        whole = measured_grid(data, frontier_only=False)
        figures |= {"whole_grid": asdict(whole), "same_frontier": whole.frontier == found.frontier}
    if options.loop:
        seconds = loop(data, options.loop)
        figures |= {
            "loop_seconds": seconds,
            "times_faster": seconds / found.seconds[0],
            "times_faster_once_prepared": seconds / (found.seconds[0] - found.prepared[0]),
        }
    return figures


def not_reached(figures: dict[str, object]) -> str | None:
    if figures.get("same_frontier", True):
        return None
    return "not reached: the grid measured whole has another frontier than --frontier-only finds"


def told(found: Answered) -> dict[str, object]:
    latency = summarise(found.best).measures["latency"].value if found.best else None
    return {
        "words": headline(found),
        "latency_ns": latency,
        "seconds": found.answer.progress.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=Path, default=PHOTOGRAPHS, help="folder of WordNet-id class folders")
    parser.add_argument("--part", choices=("grid", "find"), help="one of them alone")
    parser.add_argument(
        "--loop", type=int, default=3, help="configurations of the loop that are run (3; 0: none)"
    )
    parser.add_argument(
        "--whole", action="store_true", help="measure the grid whole too, and compare frontiers"
    )
    parser.add_argument("--by", choices=LIMITS, help="how half of the latency is asked for (as each)")
    parser.add_argument("--long", type=float, default=0.0, help="seconds of the long search (0: none)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.images.is_dir():
        sys.exit(f"{options.images} is not there: give --images FOLDER with one WordNet-id subfolder a class")
    figures: dict[str, object] = {
        "threads": torch.get_num_threads(),
        "environment": describe(environment()),
    }
    with tempfile.TemporaryDirectory() as folder:
        data = halves(options.images, Path(folder))
        if options.part != "find":
            figures |= grids(data, options)
        if options.part != "grid":
            for seconds in (60.0, options.long):
                for by in (options.by,) if options.by else LIMITS:
                    if seconds:
                        with from_nothing() as store:
                            found = told(search(data, store, seconds, by == "ratio"))
                            figures[f"find in {seconds:g} s, by {by}"] = found
                            print(found["words"], file=sys.stderr)
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))
    sys.exit(not_reached(figures))


if __name__ == "__main__":
    main()
