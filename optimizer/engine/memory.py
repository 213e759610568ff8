"""What a fresh process takes to load a model and run it once: memory and time. Run as a program of its own.

    python -m optimizer.engine.memory LOADER FOLDER THREADS

A measurement inside a long-lived process says little: its allocator hands out memory freed earlier, and its
libraries have started their threads and kept their kernels.
"""

import gc
import importlib
import json
import pickletools
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from optimizer.engine.base import Array, Loader, Runner, save_for_process
from optimizer.errors import WorkError
from optimizer.methods.entries import load
from optimizer.system.processes import run_module

MAX_SECONDS = 900.0
"""A cold start may take: torch.compile compiles a large network in minutes."""

IMAGES = "images.npy"


@dataclass(frozen=True, slots=True)
class Start:
    """From files on the disk to the first answer, libraries imported before, and the modules that the
    network's classes are in: growth of the resident memory, and how long it took. One measurement."""

    memory_bytes: int
    cold_start_ns: int


def measure_start(runner: Runner, threads: int, images: Array) -> Start | None:
    """What loading and one call on ``images`` ``[N, C, H, W]`` take. None where the engine has no loader.

    Raises UnavailableError where no process can load the network, WorkError when the process fails, or takes
    longer than ``MAX_SECONDS``.
    """
    with tempfile.TemporaryDirectory(prefix="paretoscope-") as folder:
        loader = save_for_process(runner, Path(folder))
        if loader is None:
            return None
        np.save(Path(folder) / IMAGES, images)
        try:
            said = run_module(
                "optimizer.engine.memory", loader, folder, str(threads), max_seconds=MAX_SECONDS
            )
        except WorkError as error:
            raise WorkError(f"start and memory could not be measured: {error}") from error
    return Start(**json.loads(said.splitlines()[-1]))


def _start(loader: Loader, folder: Path, threads: int, images: Array) -> Start:
    process = psutil.Process()
    read = loader()
    import_classes(folder)
    before, begun = process.memory_info().rss, time.perf_counter_ns()
    infer = read(folder, threads, images.shape)
    infer(images)
    taken = time.perf_counter_ns() - begun
    return Start(process.memory_info().rss - before, taken)


def import_classes(folder: Path) -> None:
    """Import what torch's files in a folder name: torchvision alone takes a second or more, and 90 MB, which
    no compression changes."""
    for file in folder.glob("*.pt"):
        with zipfile.ZipFile(file) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            named = [
                what for code, what, _ in pickletools.genops(archive.read(pickled)) if code.name == "GLOBAL"
            ]
        for module in dict.fromkeys(str(what).partition(" ")[0] for what in named):
            with suppress(ImportError):  # a name of Python 2, or loading says why
                importlib.import_module(module)


if __name__ == "__main__":
    name, place, threads = sys.argv[1:]
    found: Loader = load(name)
    start = _start(found, Path(place), int(threads), np.load(Path(place) / IMAGES))
    print(json.dumps({"memory_bytes": start.memory_bytes, "cold_start_ns": start.cold_start_ns}))
    gc.freeze()  # all that was imported is not looked through for garbage at the end
