"""A sweep and a search on EfficientNet-Lite0, from nothing, against what a user would otherwise wait for.

    python benchmarks/sweep.py [--images FOLDER] [--loop 3] [--long SECONDS] [--json]

- The grid of `notebook.py`, 6 sparsities x 4 bit widths over 500 photographs, each configuration measured
  whole (accuracy on all images, size, latency), against the notebook's loop at batch size 32, which only
  scores and whose time is that of ``--loop`` configurations times 24 / ``--loop``. Calibration statistics,
  reading of the images and conversion are in our time.
- ``find`` with half of the uncompressed latency and two points as limits, in 60 s; with ``--long``, against
  the best that a search of so many seconds finds.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from notebook import BITS, MODEL, PHOTOGRAPHS, SPARSITIES, halves, notebook, timed

from optimizer import on_demand
from optimizer.analysis.frontier import frontier_of
from optimizer.analysis.limits import Limits
from optimizer.analysis.summary import summarise
from optimizer.data.loading import load_images
from optimizer.model.catalogue import load
from optimizer.recipe import NORMAL
from optimizer.records import DataSpec, Request, Settings
from optimizer.search.answers import headline
from optimizer.search.find import Question
from optimizer.search.questions import Answered
from optimizer.search.space import Space
from optimizer.search.sweep import grid
from optimizer.store.results import Store
from optimizer.system.environment import describe, environment

LOOP_BATCH = 32


def measured_grid(data: DataSpec, store: Store) -> tuple[float, int]:
    """Seconds of the whole grid, and how many of it are on the frontier."""
    requests = grid(Request(MODEL, NORMAL, data=data), SPARSITIES, BITS)
    begun = time.perf_counter()
    results = []
    for number, request in enumerate(requests, 1):
        results.append(on_demand.load_or_measure(request, store))
        print(f"{number} of {len(requests)}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    seconds = time.perf_counter() - begun
    found = frontier_of([summarise(one) for one in results])
    return seconds, int(found.optimal.sum())


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


def search(data: DataSpec, store: Store, seconds: float) -> Answered:
    """What is found under half of the uncompressed latency and two points."""
    settings = Settings(threads=1)
    uncompressed = on_demand.load_or_measure(Request(MODEL, data=data, settings=settings), store)
    latency = summarise(uncompressed).measures["latency"].value
    assert latency
    limits = Limits(drop_points=2.0, latency_ms=latency / 2 / 1e6)
    space = replace(Space(), engine=on_demand.engines_to_search(), threads=(1,))
    question = Question(MODEL, limits, "latency", space, budget_seconds=seconds, data=data, settings=settings)
    return on_demand.answer(question, store)


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
    parser.add_argument("--loop", type=int, default=3, help="configurations of the loop that are run (3)")
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
        first = search(data, Store(Path(folder) / "find.sqlite"), 60.0)
        figures["find"] = told(first)
        ours, optimal = measured_grid(data, Store(Path(folder) / "grid.sqlite"))
        theirs = loop(data, options.loop)
        figures |= {
            "grid_seconds": ours,
            "on_the_frontier": optimal,
            "loop_seconds": theirs,
            "times_faster": theirs / ours,
        }
        if options.long:
            figures["long"] = told(search(data, Store(Path(folder) / "long.sqlite"), options.long))
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
