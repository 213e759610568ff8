"""A fresh process: resident memory and cold start."""

import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from engine_runs import Ready, close, run
from small_models import SMALL_SHAPE, Small
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.engine import memory
from optimizer.engine.memory import measure_start
from optimizer.errors import UnavailableError, WorkError
from optimizer.recipe import QuantizeSpec, Recipe

IMAGE = torch.zeros(1, *SMALL_SHAPE).numpy()


@pytest.mark.slow
def test_resident_memory_is_at_least_the_weights() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100_000), nn.Linear(100_000, 10)).eval()
    weights_bytes = sum(4 * parameter.numel() for parameter in model.parameters())
    runner = run("torch", model, Recipe(), torch.zeros(1, *SMALL_SHAPE))
    began = time.perf_counter_ns()
    start = measure_start(runner, 1, IMAGE)
    assert start is not None
    assert start.memory_bytes > 0.9 * weights_bytes
    assert 0 < start.cold_start_ns < time.perf_counter_ns() - began


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "bits"),
    [("openvino", 8), ("onnxruntime", 8), ("onnxruntime", 32), ("torch", 8), ("sparse", 8)],
)
def test_every_loader_loads_what_was_saved(
    ready: Ready, small_images: Tensor, engine: str, bits: int, tmp_path: Path
) -> None:
    """Here; tests/measurement/test_fresh_processes.py has each do so in a fresh process."""
    model, build = ready(engine, "cnn")
    recipe = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=bits))
    runner = build(compress(model, recipe), small_images, threads=1, batch=1)
    assert runner.memory_probe is not None
    assert runner.loader is not None
    runner.memory_probe(str(tmp_path))
    images = small_images[:1].numpy()
    close(runner.loader()(tmp_path, 1, images.shape)(images), runner.infer(images))


SLOW_TO_IMPORT = """
import time
from torch import nn

TABLE = bytearray(200 * 2**20)
time.sleep(5)

class Net(nn.Sequential):
    pass
"""


@pytest.mark.slow
def test_importing_what_a_network_s_classes_are_in_is_no_part_of_its_start(
    small_images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision takes seconds and 90 MB: a network of a few MB would seem to take as much, compressed or
    not."""
    (tmp_path / "slow_to_import.py").write_text(SLOW_TO_IMPORT)
    monkeypatch.syspath_prepend(str(tmp_path))
    net = import_module("slow_to_import").Net(nn.Flatten(), nn.Linear(64, 8)).eval()
    start = measure_start(run("torch", net, Recipe(), small_images), 1, IMAGE)
    assert start is not None
    assert start.memory_bytes < 100 * 2**20
    assert start.cold_start_ns < 4e9


def test_a_runner_without_a_loader_has_no_figures(small: Small, small_images: Tensor) -> None:
    runner = run("torch", small("cnn"), Recipe(), small_images)
    assert measure_start(replace(runner, memory_probe=None), 1, IMAGE) is None
    assert measure_start(replace(runner, loader=None), 1, IMAGE) is None


def test_a_network_that_no_other_process_can_load_is_told_before_one_begins(small_images: Tensor) -> None:
    class Local(nn.Sequential):
        """Pickled by its name, which leads nowhere."""

    runner = run("torch", Local(nn.Flatten(), nn.Linear(64, 8)).eval(), Recipe(), small_images)
    with pytest.raises(UnavailableError, match=r"no other process can load this network: .*Local"):
        measure_start(runner, 1, IMAGE)


def _never() -> object:
    """A loader whose network never answers."""

    def load(folder: Path, threads: int, shape: tuple[int, ...]) -> object:
        time.sleep(600)
        return None

    return load


def test_a_process_that_hangs_is_ended_in_words(
    small: Small, small_images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = replace(run("torch", small("cnn"), Recipe(), small_images), loader=_never)
    monkeypatch.setattr(memory, "MAX_SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(
        WorkError, match="start and memory could not be measured: a fresh process took longer than 1 s"
    ):
        measure_start(runner, 1, IMAGE)
    assert time.monotonic() - began < 60
