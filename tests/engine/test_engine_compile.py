"""torch.compile: kernels that recipes share."""

import os
import stat
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_runs import EXACT, ON_INT8_KERNELS, close, eager, needs_compiler, run
from small_models import Small
from torch import Tensor, nn

from optimizer.compression.apply import compress
from optimizer.engine import engine_named
from optimizer.engine.compile import CACHE_VARIABLE
from optimizer.model.architectures import IMAGE_SHAPE, VisionTransformer
from optimizer.model.folding import fold_batch_norm
from optimizer.recipe import Recipe


@pytest.mark.slow
@needs_compiler
def test_a_recipe_compiles_nothing_anew() -> None:
    """A block of the bundled transformer: attention, norms and a convolution."""
    torch.manual_seed(0)
    model = VisionTransformer(width=32, depth=1).eval().requires_grad_(False)
    build = engine_named("compile").prepare(model, IMAGE_SHAPE)
    images = torch.randn(60, *IMAGE_SHAPE)
    runner = build(compress(model, Recipe()), images, threads=1, batch=1)
    close(runner.score(images.numpy()), eager(model, Recipe(), images))
    from torch._dynamo import config

    with config.patch(error_on_recompile=True):
        for recipe in EXACT[1:4]:
            runner = build(compress(model, recipe), images, threads=1, batch=1)
            close(runner.score(images.numpy()), eager(model, recipe, images))


@needs_compiler
@pytest.mark.slow
def test_compiled_layers_round_their_inputs_as_eager_ones_do(small: Small, small_images: Tensor) -> None:
    model, _ = fold_batch_norm(small("cnn"))
    recipe = ON_INT8_KERNELS[1]
    found = run("compile", model, recipe, small_images)
    expected = run("torch", model, recipe, small_images).score(small_images.numpy())
    apart = np.abs(found.score(small_images.numpy()) - expected)
    assert np.median(apart) < 1e-5
    assert "rounded between float32 kernels" in " ".join(found.execution.simulated)


@pytest.mark.slow
@needs_compiler
def test_compiling_from_nothing_is_part_of_a_cold_start(
    small_images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, os.environ[CACHE_VARIABLE])  # it is put back
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU()).eval(), small_images[:1]
    runner = run("compile", model, Recipe(), small_images)
    assert runner.memory_probe is not None
    assert runner.loader is not None
    runner.memory_probe(str(tmp_path))
    with warnings.catch_warnings(action="ignore"):  # torch's own, where its compiler is first imported
        infer = runner.loader()(tmp_path, 1, tuple(images.shape))
    assert [*(tmp_path / "inductor").rglob("*.so")], "compiled here, not what the machine has kept"
    close(infer(images.numpy()), eager(model, Recipe(), images))


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from optimizer.engine import compile

    monkeypatch.setenv("CXX", "/bin/false")
    assert "can't compile what inductor writes" in str(compile.problem.__wrapped__())
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert "no C++ compiler" in str(compile.problem.__wrapped__())
    hanging = tmp_path / "c++"
    hanging.write_text("#!/bin/sh\nexec sleep 600\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("CXX", str(hanging))
    monkeypatch.setattr(compile, "MAX_TRIAL_SECONDS", 0.5)
    assert "took more than 0.5 s" in str(compile.problem.__wrapped__())


def test_the_compiler_that_is_tried_is_the_one_that_inductor_takes() -> None:
    from torch._inductor import cpp_builder

    from optimizer.engine import compile

    assert compile.cpp_compiler() == cpp_builder.get_cpp_compiler()


@needs_compiler
def test_compiled_code_is_loaded_from_a_folder_of_the_user_s_own(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing torch's compiler names a folder that anybody may make first."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    monkeypatch.delenv(CACHE_VARIABLE)
    cache_dir()
    folder = home / "inductor"
    assert os.environ[CACHE_VARIABLE] != str(folder)
    engine_named("compile").prepare(nn.Linear(2, 2), (1, 2, 2))
    assert os.environ[CACHE_VARIABLE] == str(folder)
    assert os.name != "posix" or stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "named"))
    engine_named("compile").prepare(nn.Linear(2, 2), (1, 2, 2))
    assert os.environ[CACHE_VARIABLE] == str(tmp_path / "named")
