"""Every engine: what it computes, what it says ran, and what it says when it can't."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_runs import (
    EXACT,
    ON_INT8_KERNELS,
    PRUNED,
    QUICK,
    Ready,
    close,
    eager,
    needs_compiler,
    off,
    run,
)
from factories import make_result
from small_models import SMALL_MODELS, SMALL_SHAPE, Branching, Small, untouched
from torch import Tensor, nn

from optimizer.cli.main import main
from optimizer.compression.apply import compress
from optimizer.engine import Engine, engine_named
from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.methods.engines import ENGINES
from optimizer.model.folding import fold_batch_norm
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.store.results import Store
from optimizer.system.environment import check_precision, environment, precisions

# Every engine


@pytest.mark.slow
@pytest.mark.parametrize("engine", QUICK)
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_engines_compute_what_eager_torch_does(
    ready: Ready, small_images: Tensor, engine: str, name: str
) -> None:
    """Shared, tied and never-called layers, and attention's projections, all carry the recipe's weights."""
    model, build = ready(engine, name)
    for recipe in EXACT if name == "cnn" else EXACT[4:5]:
        runner = build(compress(model, recipe), small_images, threads=1, batch=1)
        close(runner.score(small_images.numpy()), eager(model, recipe, small_images))
        assert runner.execution.precisions.keys() == {"f32"}


@pytest.mark.slow
@pytest.mark.parametrize("engine", QUICK)
@pytest.mark.parametrize(("batch", "recipe"), [(1, EXACT[3]), (3, ON_INT8_KERNELS[0])])
def test_infer_and_score_agree(
    ready: Ready, small_images: Tensor, engine: str, batch: int, recipe: Recipe
) -> None:
    model, build = ready(engine, "cnn")
    images = small_images.numpy()
    runner = build(compress(model, recipe), small_images, threads=1, batch=batch)
    scored = runner.score(images)
    assert scored.shape == (len(images), 10)
    assert scored.dtype == np.float32
    timed = [runner.infer(images[start : start + batch]) for start in range(0, len(images), batch)]
    close(np.concatenate(timed), scored)


@pytest.mark.slow
@pytest.mark.parametrize("engine", QUICK)
def test_scoring_takes_any_number_of_images_in_order(ready: Ready, engine: str) -> None:
    model, build = ready(engine, "cnn")
    images = torch.randn(503, *SMALL_SHAPE, generator=torch.Generator().manual_seed(5))
    runner = build(compress(model, Recipe()), images, threads=1, batch=1)
    expected = eager(model, Recipe(), images)
    for count in (1, 7, 50, 100, 503):
        close(runner.score(images[:count].numpy()), expected[:count])


@pytest.mark.parametrize("engine", QUICK)
def test_an_answer_is_not_overwritten_by_the_next(ready: Ready, small_images: Tensor, engine: str) -> None:
    model, build = ready(engine, "cnn")
    runner = build(compress(model, Recipe()), small_images, threads=1, batch=1)
    first = runner.infer(small_images[:1].numpy())
    kept = first.copy()
    runner.infer(small_images[1:2].numpy())
    assert np.array_equal(first, kept)


@pytest.mark.slow
@pytest.mark.parametrize("engine", QUICK)
def test_building_leaves_the_compressed_model_and_torch_as_they_were(
    small: Small, small_images: Tensor, engine: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A second runner of the same model gives the same answers, and nothing is printed."""
    model, _ = fold_batch_norm(small("cnn"))
    build = engine_named(engine).prepare(model, SMALL_SHAPE)
    compressed = compress(model, ON_INT8_KERNELS[1])
    threads = torch.get_num_threads()
    with untouched(compressed.module):
        scores = [
            build(compressed, small_images, threads=1, batch=1).score(small_images.numpy()) for _ in range(2)
        ]
    close(scores[0], scores[1])
    assert torch.get_num_threads() == threads
    assert capfd.readouterr().out == ""


def test_an_unknown_engine_is_refused_listing_the_known() -> None:
    with pytest.raises(InputError, match="unknown engine 'tvm': use one of openvino, onnxruntime, "):
        engine_named("tvm")


def test_an_engine_that_cannot_run_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = replace(
        ENGINES["openvino"], code=Engine(lambda: "the package openvino is not installed", pytest.fail)
    )
    monkeypatch.setitem(ENGINES, "openvino", missing)
    with pytest.raises(UnavailableError, match="engine openvino can't run here: the package openvino is not"):
        engine_named("openvino")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "encoder", "shared", "tied"])
def test_the_sparse_engine_rounds_inputs_of_every_kind_of_layer(
    small: Small, small_images: Tensor, name: str
) -> None:
    model, _ = fold_batch_norm(small(name))
    runner = run("sparse", model, ON_INT8_KERNELS[1], small_images)
    answers = runner.score(small_images.numpy())
    expected = run("torch", model, ON_INT8_KERNELS[1], small_images).score(small_images.numpy())
    np.testing.assert_allclose(answers, expected, atol=0.02 * np.abs(expected).max())
    rounded = "8-bit activations: rounded between float32 kernels, which takes time of its own"
    assert rounded in " ".join(runner.execution.simulated)


class Doubled(nn.Module):
    """Multiplies with its weight, and with twice its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.flatten(1), self.head.weight * 2) + self.head(x.flatten(1))


@pytest.mark.slow
@pytest.mark.parametrize("engine", QUICK)
def test_what_is_worked_out_from_a_weight_follows_it_or_is_refused(small_images: Tensor, engine: str) -> None:
    torch.manual_seed(0)
    model = Doubled().eval().requires_grad_(False)
    if engine in ("openvino", "onnxruntime"):
        with pytest.raises(WorkError, match="worked out from a layer's weight.*Use engine torch"):
            run(engine, model, Recipe(PRUNED), small_images)
    else:
        answers = run(engine, model, Recipe(PRUNED), small_images).score(small_images.numpy())
        close(answers, eager(model, Recipe(PRUNED), small_images))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (
            "onnxruntime",
            "torch can't export this model to ONNX.*which no exported graph follows: use engine torch",
        ),
        pytest.param(
            "compile",
            "torch.compile can't compile this model.*which no exported graph follows: use engine torch",
            marks=needs_compiler,
        ),
    ],
)
def test_a_model_that_other_engines_cannot_take_is_a_failure_in_words(
    small_images: Tensor, engine: str, words: str
) -> None:
    model = nn.Sequential(nn.Flatten(), Branching(64, 8))
    with pytest.raises(WorkError, match=words) as info:
        run(engine, model.eval(), Recipe(), small_images).score(small_images.numpy())
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "onnxruntime"], "engine onnxruntime can't run here: no package onnxruntime"),
        (["--engine", "tvm"], "unknown engine 'tvm': use one of openvino"),
        (["--threads", "999"], "999 threads are more than this machine's"),
        (["--batch", "0"], "batch size 0 is too small: at least 1 image"),
        (["--precision", "f8"], "unknown precision 'f8': use one of f32, bf16, f16"),
    ],
)
def test_bad_input_is_told_and_other_engines_results_stay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    store = Store()
    store.put(make_result(model="fashion-mlp", engine="torch"))
    missing = replace(
        ENGINES["onnxruntime"], code=Engine(lambda: "no package onnxruntime (pip install it)", pytest.fail)
    )
    monkeypatch.setitem(ENGINES, "onnxruntime", missing)
    assert main(["measure", "fashion-mlp", "--limit", "50", "--quick", *options]) == 2
    assert words in capsys.readouterr().err
    assert [result.request.engine for result in store.results(model="fashion-mlp")] == ["torch"]


# Precisions


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_bfloat16_really_runs(small: Small, small_images: Tensor, engine: str) -> None:
    if "bf16" not in precisions(environment()):
        pytest.skip("this CPU has no instructions for bfloat16")
    model, _ = fold_batch_norm(small("cnn"))
    runner = run(engine, model, Recipe(quantize=QuantizeSpec(precision="bf16")), small_images)
    float32 = eager(model, Recipe(), small_images)
    answers = runner.score(small_images.numpy())
    assert answers.dtype == np.float32
    assert 1e-4 < off(answers, float32) < 0.05
    assert runner.execution.precisions == {"bf16": 4}
    assert runner.execution.simulated == ()


def test_a_precision_that_an_engine_has_not_is_simulated(ready: Ready, small_images: Tensor) -> None:
    model, build = ready("onnxruntime", "cnn")
    recipe = Recipe(quantize=QuantizeSpec(precision="bf16"))
    runner = build(compress(model, recipe), small_images, threads=1, batch=1)
    assert runner.execution.precisions == {"f32": 4}
    assert "bfloat16: 4 of 4 layers did not run in it" in " ".join(runner.execution.simulated)
    close(runner.score(small_images.numpy()), eager(model, Recipe(), small_images))


def test_a_precision_that_the_cpu_has_not_is_refused() -> None:
    old = replace(environment(), cpu="Old", instruction_sets=("avx2",))
    check_precision("f32", old)
    with pytest.raises(InputError, match=r"f16 needs avx512_fp16 or amx_fp16 .*\(Old\): use f32"):
        check_precision("f16", old)
    check_precision("bf16", replace(old, instruction_sets=("avx512_bf16",)))
