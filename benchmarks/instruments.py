"""Is the latency that we report the one that other people's instruments report?

    python benchmarks/instruments.py [--models NAME ...] [--alternations 5] [--seconds 3] [--json]

Each network, in float32 and with int8 kernels, batch 1, is timed in turns by

- this package: a fresh process of the full mode, float32 and int8 in shuffled visits;
- OpenVINO's ``benchmark_app`` on the very file (synchronous, one stream, float32 hint);
- for ONNX Runtime: a plain loop of ``session.run`` on the very file, in a fresh process. Its session has
  those options of ours that count: a transformer takes 3 % longer where the batch size is left open, and
  twice as long in int8 where products and sums are made one.

Prints the medians over the alternations, our figure over theirs, and the same for int8 over float32. Ends
with 1 where a figure differs by more than 3 % or a ratio by more than 2 %, in networks of at least 0.3 ms.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from optimizer.compression.apply import compress
from optimizer.engine import Runner, engine_named
from optimizer.measurement.fresh_processes import time_in_processes
from optimizer.measurement.latency import EFFORTS
from optimizer.model.catalogue import load
from optimizer.model.folding import fold_batch_norm
from optimizer.progress import quiet
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import Settings
from optimizer.system.environment import describe, environment
from optimizer.system.machine_lock import exclusive

MODELS = ("efficientnet-lite0", "fashion-resnet", "fashion-mobilenet", "fashion-vit", "fashion-mlp")
RECIPES = {
    "float32": Recipe(),
    "int8": Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8)),
}
MAX_DIFFERENCE, MAX_RATIO_DIFFERENCE = 0.03, 0.02
MIN_MS = 0.3
"""Shorter calls are shown and not judged: what an instrument itself takes is no longer little."""
BENCHMARK_APP = "import sys; from openvino.tools.benchmark.main import main; sys.exit(main())"
ORT_LOOP = """
import sys, time, numpy, onnxruntime
path, threads, seconds, without, *shape = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
options.add_free_dimension_override_by_name("batch", int(shape[0]))
session = onnxruntime.InferenceSession(
    path, options, providers=["CPUExecutionProvider"], disabled_optimizers=without.split()
)
images = numpy.random.default_rng(0).random([int(size) for size in shape], numpy.float32)
name = session.get_inputs()[0].name
taken, end = [], time.perf_counter() + float(seconds)
while time.perf_counter() < end:
    before = time.perf_counter_ns()
    session.run(None, {name: images})
    taken.append(time.perf_counter_ns() - before)
print(numpy.median(taken[len(taken) // 10:]) / 1e6)
"""

Instrument = Callable[[Path, tuple[int, ...]], float]


def benchmark_app(threads: int, seconds: float) -> Instrument:
    def time(folder: Path, shape: tuple[int, ...]) -> float:
        options = f"-d CPU -api sync -nstreams 1 -nthreads {threads} -infer_precision f32 -t {seconds:g}"
        sizes = ",".join(map(str, shape))
        command = [sys.executable, "-c", BENCHMARK_APP, "-m", str(folder / "model.xml"), *options.split()]
        done = subprocess.run(
            [*command, "-hint", "none", "-shape", f"[{sizes}]"], capture_output=True, text=True, check=True
        )
        found = re.search(r"Median:\s+([\d.]+) (us|ms)", done.stdout)
        assert found is not None, done.stdout
        return float(found[1]) * {"us": 1e-3, "ms": 1.0}[found[2]]

    return time


def loop(threads: int, seconds: float) -> Instrument:
    def time(folder: Path, shape: tuple[int, ...]) -> float:
        without = "" if (folder / "folded").read_text() else "MatMulAddFusion"
        arguments = [str(folder / "model.onnx"), str(threads), str(seconds), without, *map(str, shape)]
        command = [sys.executable, "-c", ORT_LOOP, *arguments]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return time


INSTRUMENTS = {
    "openvino": ("benchmark_app", benchmark_app),
    "onnxruntime": ("a plain loop", loop),
}


def compare(name: str, engine: str, alternations: int, seconds: float, threads: int) -> dict[str, object]:
    """Milliseconds by both instruments, median over the alternations, and how they differ."""
    loaded = load(name)
    model, shape = fold_batch_norm(loaded.module)[0], loaded.card.input_shape
    images = torch.rand(16, *shape, generator=torch.Generator().manual_seed(0))
    build = engine_named(engine).prepare(model, shape)
    runners = {
        what: build(compress(model, recipe), images, threads=threads, batch=1)
        for what, recipe in RECIPES.items()
    }
    theirs_name, made = INSTRUMENTS[engine]
    instrument = made(threads, seconds)
    ours: dict[str, list[float]] = {what: [] for what in RECIPES}
    theirs: dict[str, list[float]] = {what: [] for what in RECIPES}
    with tempfile.TemporaryDirectory() as folder:
        for what, runner in runners.items():
            (Path(folder) / what).mkdir()
            assert runner.memory_probe is not None
            runner.memory_probe(str(Path(folder) / what))
        for number in range(alternations):
            for what, time_ms in _ours(runners, images.numpy(), seconds, threads, number).items():
                ours[what].append(time_ms)
            for what in RECIPES:
                theirs[what].append(instrument(Path(folder) / what, (1, *shape)))
    rows = {
        what: {
            "ours_ms": median(ours[what]),
            "theirs_ms": median(theirs[what]),
            "ours_over_theirs": float(median(np.divide(ours[what], theirs[what]))),
        }
        for what in RECIPES
    }
    ratios = [np.divide(one["int8"], one["float32"]) for one in (ours, theirs)]
    difference = float(median(ratios[0] / ratios[1])) - 1
    agrees = abs(difference) <= MAX_RATIO_DIFFERENCE and all(
        abs(row["ours_over_theirs"] - 1) <= MAX_DIFFERENCE for row in rows.values()
    )
    return {
        "model": name,
        "engine": engine,
        "instrument": theirs_name,
        **rows,
        "int8_over_float32": {
            "ours": median(ratios[0]),
            "theirs": median(ratios[1]),
            "difference": difference,
        },
        "judged": rows["float32"]["theirs_ms"] >= MIN_MS,
        "agrees": agrees,
    }


def _ours(
    runners: dict[str, Runner], images: np.ndarray, seconds: float, threads: int, seed: int
) -> dict[str, float]:
    effort = replace(EFFORTS[False], processes=1, seconds=2 * seconds)
    settings = Settings(threads=threads, quick=False, seed=seed)
    baseline, variants = runners["float32"], {"int8": runners["int8"]}
    series = time_in_processes(baseline, variants, images, settings, effort, quiet)
    times = {"float32": np.median([build.medians_ns for build in series.baseline])}
    times["int8"] = np.median(series.variants["int8"].medians_ns)
    return {what: float(time) / 1e6 for what, time in times.items()}


def _print(row: dict[str, object]) -> None:
    print(f"{row['model']} on {row['engine']}, {row['instrument']}:")
    for what in RECIPES:
        one = row[what]
        assert isinstance(one, dict)
        print(
            f"  {what:<8} ours {one['ours_ms']:.3f} ms, theirs {one['theirs_ms']:.3f} ms, "
            f"{one['ours_over_theirs']:.3f}"
        )
    ratio = row["int8_over_float32"]
    assert isinstance(ratio, dict)
    words = f"ours {ratio['ours']:.3f}, theirs {ratio['theirs']:.3f}, {ratio['difference']:+.1%}"
    verdict = ("agrees" if row["agrees"] else "DIFFERS") if row["judged"] else "not judged, short calls"
    print(f"  int8 over float32: {words}: {verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--engines", nargs="+", default=list(INSTRUMENTS), choices=list(INSTRUMENTS))
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of each network, each time (3)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with exclusive(quiet):
        for name in options.models:
            for engine in options.engines:
                found = compare(name, engine, options.alternations, options.seconds, options.threads)
                rows.append(found)
                if not options.json:
                    _print(found)
    if options.json:
        print(json.dumps({"machine": describe(environment()), "rows": rows}))
    sys.exit(not all(row["agrees"] for row in rows if row["judged"]))


if __name__ == "__main__":
    main()
