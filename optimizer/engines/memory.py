"""How much a process grows when an engine loads a model and runs it once. Run as a program of its own.

    python -m optimizer.engines.memory FOLDER THREADS SHAPE...

A measurement inside a long-lived process says little: its allocator hands out memory freed earlier.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil

from optimizer.engines.base import Runner
from optimizer.errors import WorkError


def measure_memory(runner: Runner, threads: int, shape: tuple[int, ...]) -> int | None:
    """Bytes of resident memory that loading and one call on ``shape`` ``[N, C, H, W]`` add.

    None without a probe. Raises WorkError when the process fails.
    """
    if runner.memory_probe is None:
        return None
    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        runner.memory_probe(folder)
        command = [sys.executable, "-m", "optimizer.engines.memory", folder, str(threads), *map(str, shape)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkError(f"resident memory could not be measured: {done.stderr.strip()[-500:]}")
    return int(done.stdout)


def _growth(folder: Path, threads: int, images: np.ndarray) -> int:
    process = psutil.Process()
    if (folder / "model.xml").exists():
        import openvino

        core = openvino.Core()
        before = process.memory_info().rss
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(
            folder / "model.xml", "CPU", {**settings, "INFERENCE_NUM_THREADS": threads}
        )
        compiled([images])
    else:
        import torch

        torch.set_num_threads(threads)
        before = process.memory_info().rss
        model = torch.load(folder / "model.pt", weights_only=False)  # our own file, written a moment ago
        with torch.inference_mode():
            model(torch.from_numpy(images))
    return process.memory_info().rss - before


if __name__ == "__main__":
    folder, threads, *shape = sys.argv[1:]
    print(_growth(Path(folder), int(threads), np.zeros([int(size) for size in shape], np.float32)))
