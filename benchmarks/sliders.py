"""What a slider waits for, and whether memory stays flat.

    python benchmarks/sliders.py [--json] [--configurations 200] [--browser [--photographs]]

On the bundled residual CNN: the page drawn anew at a position that is already measured (the script's time on
the server), exact counts and size of a new position, its accuracy on the first of 10,000 images and on all of
them with quick latency, and the worker's resident memory over many configurations. New positions are plain
(magnitude and nearest) and compensated, which first works the weights out. ``--browser`` times only what a
visitor sees in headless Chromium, from a control's change to each figure; it ends with 1 where there is none
of a control.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from streamlit.testing.v1 import AppTest

from optimizer.measurement.experiment import measure
from optimizer.measurement.workspace import open_workspace
from optimizer.on_demand import load_or_measure
from optimizer.recipe import NORMAL, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec, Known, Request
from optimizer.search.sweep import STARTER_BITS, STARTER_SPARSITIES, grid
from optimizer.store.results import Store
from optimizer.system.process_pool import Pool
from optimizer.work import TARGET

MODEL = "fashion-resnet"
APP = Path(__file__).resolve().parents[1] / "app.py"


def summary(seconds: list[float]) -> dict[str, float]:
    return {
        "median_ms": 1e3 * float(np.median(seconds)),
        "worst_ms": 1e3 * max(seconds),
        "runs": len(seconds),
    }


def page_at_measured_positions(repeats: int) -> dict[str, float]:
    """Seconds of the whole script, all cards and charts, as the slider goes to and fro."""
    store = Store()
    for request in grid(Request(MODEL, NORMAL), STARTER_SPARSITIES, STARTER_BITS):
        load_or_measure(request, store)
    page = AppTest.from_file(str(APP), default_timeout=120).run()
    seconds = []
    for number in range(repeats):
        slider = page.slider(key="sparsity").set_value((30, 50, 70, 80)[number % 4])
        started = time.perf_counter()
        slider.run()
        seconds.append(time.perf_counter() - started)
        assert not page.exception
    return summary(seconds[4:])  # each position once before: figures are derived when first read


def new_positions(base: Recipe, count: int) -> dict[str, dict[str, float]]:
    """From submitting to counts, to the first accuracy and to the whole result, through a worker as the page
    does it."""
    waited: dict[str, list[float]] = {"counts": [], "first accuracy": [], "everything": []}
    with Pool(TARGET) as pool:
        for job in pool.warm(Request(MODEL)):
            pool.wait(job)
        for number in range(count + 1):
            prune = replace(base.prune, sparsity=0.11 + 0.03 * number)
            recipe = replace(base, prune=prune, quantize=base.quantize.at(5)).canonical()
            started = time.perf_counter()
            job = pool.submit("interactive", "measure", Request(MODEL, recipe), f"{number}")
            pool.wait_news([job], [None], None)
            waited["counts"].append(time.perf_counter() - started)
            while not job.over and (not isinstance(job.known, Known) or job.known.accuracy is None):
                time.sleep(0.001)
            waited["first accuracy"].append(time.perf_counter() - started)
            assert pool.wait(job).state == "done", job.error
            waited["everything"].append(time.perf_counter() - started)
    return {what: summary(seconds[1:]) for what, seconds in waited.items()}  # the first one loads the model


def memory(configurations: int) -> dict[str, float]:
    """Resident memory of one process that measures one configuration after the other."""
    base, process, resident = Request(MODEL), psutil.Process(), []
    for recipe in recipes(configurations):
        measure(open_workspace(MODEL, base.data), replace(base, recipe=recipe))
        resident.append(process.memory_info().rss / 1e6)
    settled = resident[len(resident) // 4 :]
    slope = float(np.polyfit(np.arange(len(settled)), settled, 1)[0])
    return {
        "configurations": configurations,
        "after_a_quarter_mb": settled[0],
        "at_the_end_mb": settled[-1],
        "growth_kb_a_configuration": 1e3 * slope,
    }


def recipes(count: int) -> Iterator[Recipe]:
    for number in range(count):
        yield Recipe(
            PruneSpec(sparsity=(number + 1) / (count + 1)),
            QuantizeSpec(weight_bits=(32, 8, 4)[number % 3], activation_bits=(32, 8)[number % 2]),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--configurations", type=int, default=200, help="for the memory's curve (200)")
    parser.add_argument("--browser", action="store_true", help="in headless Chromium")
    parser.add_argument(
        "--positions", type=int, default=20, help="new ones of each control, in the browser (20)"
    )
    parser.add_argument(
        "--photographs", action="store_true", help="there, EfficientNet-Lite0 on 500 photographs"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.browser:
        from browser_waits import never_seen, waits
        from notebook import MODEL as LARGE
        from notebook import PHOTOGRAPHS, halves

        with tempfile.TemporaryDirectory() as place:
            asked = MODEL, DataSpec()
            if options.photographs:
                asked = LARGE, halves(PHOTOGRAPHS, Path(place))
            found = waits(options.positions, *asked)
        print(json.dumps(found, indent=None if options.json else 2))
        sys.exit("\n".join(never_seen(found)) or None)
    with tempfile.TemporaryDirectory() as home:
        os.environ["PARETOSCOPE_HOME"] = home
        figures = {
            "new_plain_position": new_positions(Recipe(), 12),
            "new_compensated_position": new_positions(NORMAL, 12),
            "page_at_a_measured_position": page_at_measured_positions(24),
            "memory": memory(options.configurations),
        }
    print(json.dumps(figures, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
