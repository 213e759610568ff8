"""Rounds in real processes, some of which are killed."""

import errno
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
import torch
from engine_runs import Ready

from optimizer.compression.apply import compress
from optimizer.engine import Runner
from optimizer.engine.base import Array
from optimizer.engine.torch import saved
from optimizer.errors import UnavailableError
from optimizer.measurement import fresh_processes
from optimizer.measurement.fresh_processes import BASELINE, TimingTask, time_in_processes, time_share
from optimizer.measurement.latency import LatencyEffort
from optimizer.measurement.visits import VisitEffort
from optimizer.methods.engines import ENGINES
from optimizer.progress import quiet
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import Execution, Settings, encode

SHORT = LatencyEffort(
    warmup_calls=1,
    warmup_seconds=0,
    seconds=0,
    min_rounds=3,
    visit=VisitEffort(settle_seconds=0.01, seconds=0, min_calls=2, max_calls=2),
    processes=2,
)
SETTINGS = Settings(threads=1, seed=5)
IMAGES = torch.rand(4, 1, 8, 8)


def runner(engine: str, ready: Ready, recipe: Recipe = Recipe()) -> Runner:  # noqa: B008
    module, build = ready(engine, "auxiliary")  # with the fewest kernels
    return build(compress(module, recipe), IMAGES, threads=1, batch=1)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "processes"), [(name, 1 + (name == "onnxruntime")) for name in ENGINES])
def test_every_engine_is_timed_in_processes(engine: str, processes: int, ready: Ready) -> None:
    """In two one after the other on the one that is there the soonest; torch.compile, which compiles each
    network anew, without another beside the baseline."""
    words: list[str] = []
    bits = Recipe(quantize=QuantizeSpec(weight_bits=8))
    variants = {"variant": runner(engine, ready, bits)} if engine != "compile" else {}
    series = time_in_processes(
        runner(engine, ready),
        variants,
        IMAGES.numpy(),
        SETTINGS,
        replace(SHORT, processes=processes),
        lambda share, message: words.append(message),
    )
    assert (series.processes, series.lost) == ((3,) * processes, 0)
    assert series.variants.keys() == variants.keys()
    for visits in (*series.baseline, *series.variants.values()):
        assert visits.timed == (2, 2, 2) * processes
        assert (visits.calls.values > 0).all()
    assert words[0] == f"timing in fresh processes, 1 of {processes}"
    assert all(told.startswith("timing in fresh processes, 2 of 2, about ") for told in words[1:])
    assert len(words) == processes


def test_any_may_be_loaded_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what it gains by that would be in each process's ratio, and in no interval."""
    loaded: list[str] = []

    def read(folder: Path, threads: int, shape: tuple[int, ...]) -> Callable[[Array], Array]:
        loaded.append(folder.name)
        return lambda images: images

    monkeypatch.setattr(fresh_processes, "load", lambda name: lambda: read)
    np.save(tmp_path / "images.npy", IMAGES.numpy())
    task = TimingTask({BASELINE: "", "variant": ""}, SETTINGS, SHORT)
    (tmp_path / "task.json").write_bytes(encode(task))
    orders = set()
    for number in range(12):
        loaded.clear()
        time_share(tmp_path, number)
        orders.add(tuple(loaded))
    same, variant = BASELINE, "variant"
    assert orders == {(same, same, variant), (same, variant, same), (variant, same, same)}


WITHOUT_TORCH = """
import sys
import optimizer.measurement.fresh_processes
from optimizer.engine import memory, onnxruntime_session, openvino_core
assert sys.modules["openvino_telemetry"] is None
sys.exit("torch" in sys.modules)
"""


def test_what_loads_a_graph_imports_no_torch_and_nothing_that_reports_home() -> None:
    """Torch takes longer than all that such a process times."""
    assert not subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=False).returncode


def timing_processes() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [one for one in children if fresh_processes.__name__ in one.cmdline()]


def kill_one(killed: threading.Event) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for process in timing_processes():
            process.kill()
            killed.set()
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_a_process_that_is_killed_costs_its_share(ready: Ready) -> None:
    killed = threading.Event()
    killer = threading.Thread(target=kill_one, args=(killed,))
    killer.start()
    made = runner("onnxruntime", ready)
    effort = replace(SHORT, processes=3)
    series = time_in_processes(made, {"variant": made}, IMAGES.numpy(), SETTINGS, effort, quiet)
    killer.join()
    assert killed.is_set()
    assert (series.processes, series.lost) == ((3, 3), 1)
    assert len(series.variants["variant"].timed) == 6


@pytest.mark.slow
def test_where_no_process_can_time_the_reason_is_said(ready: Ready) -> None:
    made = runner("onnxruntime", ready)
    broken = replace(made, memory_probe=lambda folder: None)
    with pytest.raises(
        UnavailableError, match=r"(?s)none of 2 processes could time these networks: .*folded"
    ):
        time_in_processes(broken, {}, IMAGES.numpy(), SETTINGS, SHORT, quiet)
    with pytest.raises(UnavailableError, match="can't load its networks in another process"):
        time_in_processes(replace(made, loader=None), {}, IMAGES.numpy(), SETTINGS, SHORT, quiet)
    short = replace(SHORT, processes=1, process_seconds=0.01)
    with pytest.raises(UnavailableError, match=r"took longer than 0\.01 s"):
        time_in_processes(made, {}, IMAGES.numpy(), SETTINGS, short, quiet)


def test_after_a_process_that_takes_too_long_no_other_is_tried(ready: Ready) -> None:
    made, words, short = runner("torch", ready), list[str](), replace(SHORT, process_seconds=0.01)
    with pytest.raises(UnavailableError, match=r"took longer than 0\.01 s"):
        time_in_processes(
            made, {}, IMAGES.numpy(), SETTINGS, short, lambda share, message: words.append(message)
        )
    assert words == ["timing in fresh processes, 1 of 2"]


@pytest.mark.parametrize(
    ("part", "number"), [(np, errno.ENOSPC), (subprocess, errno.ENOMEM)], ids=["disk is full", "no memory"]
)
def test_a_machine_that_is_full_has_no_other_process_to_time_in(
    part: ModuleType, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quick timing, which has found a difference by then, is kept as it is."""

    def refuse(*given: object, **options: object) -> None:
        raise OSError(number, "there is no room")

    monkeypatch.setattr(part, "save" if part is np else "Popen", refuse)
    made = Runner(
        infer=lambda images: images,
        score=lambda images: images,
        executed=lambda: Execution((), ()),
        memory_probe=lambda folder: None,
        loader=saved,
    )
    with pytest.raises(UnavailableError, match="there is no room"):
        time_in_processes(made, {"variant": made}, IMAGES.numpy(), SETTINGS, SHORT, quiet)
