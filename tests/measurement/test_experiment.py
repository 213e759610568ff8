"""A request in, a result out: what a result holds, and what is refused."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_request import build_of, close_all, compressed_model, inspect, measure, open_model, opened, score
from factories import OTHER_MACHINE
from small_requests import BASE, FOUR_BITS, HALF, IMAGES, INT8, INT8_KERNELS, MLP, Measured, Own, request
from torch import nn

from optimizer.analysis.outcomes import paired_drop
from optimizer.analysis.statistics import SAME
from optimizer.analysis.summary import summarise
from optimizer.compression.apply import compress
from optimizer.data.loading import load_images
from optimizer.data.memory import in_memory
from optimizer.engine import Runner, engine_named
from optimizer.engine.memory import Start
from optimizer.errors import EngineError, InputError, WorkError
from optimizer.measurement import experiment, latency
from optimizer.measurement.workspace import Workspace
from optimizer.measurement.workspace import open_model as make_open
from optimizer.model.catalogue import LoadedModel
from optimizer.model.own import own_model
from optimizer.recipe import Override, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import ColdStart, Execution, Request, Result, Scores, Settings, decode, encode
from optimizer.store.keys import request_key
from optimizer.system.environment import environment, threads_available

pytestmark = pytest.mark.usefixtures("few_rounds")

ENGINES = ("openvino", "torch")


# A result


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_baseline_against_itself_loses_exactly_nothing(measured: Measured, engine: str) -> None:
    result = measured(engine=engine)
    assert result.accuracy == result.baseline_accuracy
    drop = paired_drop(result.baseline_accuracy.outcomes, result.accuracy.outcomes)
    assert (drop.points, drop.lost, drop.gained) == (0, 0, 0)
    assert (result.accuracy.agreement, result.accuracy.sqnr_db, result.accuracy.kl) == (IMAGES, None, 0)
    assert result.inspection.size == result.inspection.baseline_size


@pytest.mark.timing
@pytest.mark.parametrize("engine", ENGINES)
def test_the_baseline_is_not_told_apart_from_itself(measured: Measured, engine: str) -> None:
    """One comparison in a hundred may be wrong, and not two of three, each of a network built anew."""
    asked, result = request(Recipe(), engine=engine), measured(engine=engine)
    times = [result.latency, *(experiment.time_again(opened(asked), asked) for _ in range(2))]
    verdicts = [summarise(replace(result, latency=one)).latency.verdict for one in times]
    assert sum(one in (SAME, "noisy") for one in verdicts) >= 2, verdicts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "engine"), [(Recipe(), "openvino"), (FOUR_BITS, "torch"), (INT8, "openvino")]
)
def test_a_result_says_what_was_run_and_survives_json(
    measured: Measured, recipe: Recipe, engine: str
) -> None:
    result = measured(recipe, engine=engine, model=MLP)
    assert result.request == request(recipe, engine=engine, model=MLP)
    assert result.key == request_key(result.request)
    assert result.environment == environment()
    assert decode(encode(result), Result) == result
    assert result.accuracy.total == result.baseline_accuracy.total == IMAGES
    assert result.accuracy.reference == "labels"
    assert [layer.name for layer in result.execution.layers] == [
        layer.name for layer in result.inspection.layers
    ]
    assert (result.latency.threads, result.latency.batch, result.latency.quick) == (1, 1, True)
    assert any(f"{IMAGES} of 10,000 images are evaluated" in note for note in result.notes)


@pytest.mark.parametrize("recipe", [Recipe(), HALF, FOUR_BITS, INT8], ids=Recipe.describe)
def test_a_recipe_is_measured_as_it_is_inspected(measured: Measured, recipe: Recipe) -> None:
    assert measured(recipe, model=MLP).inspection == inspect(request(recipe, model=MLP))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_accuracy_is_that_of_a_loop_over_the_model_and_its_images(
    measured: Measured, resnet: LoadedModel, engine: str
) -> None:
    images = load_images(resnet, BASE.data).evaluation
    assert images.labels is not None
    with torch.inference_mode():
        expected = resnet.module(images.images).argmax(1) == images.labels
    baseline = measured(engine=engine).baseline_accuracy
    assert baseline.outcomes.tolist() == expected.tolist()
    assert baseline.outcomes.mean() > 0.88
    # The order of float32 sums may turn a tie: no more than that.
    others = measured(FOUR_BITS, engine="torch").accuracy.outcomes != measured(FOUR_BITS).accuracy.outcomes
    assert others.sum() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "engine"), [(Recipe(), "openvino"), (FOUR_BITS, "torch")])
def test_with_the_scores_of_another_machine_a_recipe_is_timed_and_not_scored(
    measured: Measured, recipe: Recipe, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(recipe, engine=engine, model=MLP)
    whole = measured(recipe, engine=engine, model=MLP)
    scores = score(asked).scores
    assert scores.environment == environment()
    there = decode(encode(replace(scores, environment=OTHER_MACHINE)), Scores)
    close_all()
    for name in ("score", "_baseline", "score_at_random"):
        monkeypatch.delattr(experiment, name)
    timed = measure(asked, scores=there)
    assert timed.scored_on == OTHER_MACHINE
    assert timed.latency.signature == whole.latency.signature
    same = replace(timed, scored_on=None, created=whole.created, latency=whole.latency)
    assert same == whole
    assert measure(asked, scores=scores).scored_on is None


def test_a_harsh_recipe_shows_in_every_figure(measured: Measured) -> None:
    result = measured(Recipe(PruneSpec(sparsity=0.97), QuantizeSpec(weight_bits=2)))
    assert result.accuracy.outcomes.sum() < result.baseline_accuracy.outcomes.sum()
    assert result.accuracy.agreement < IMAGES
    assert result.accuracy.kl > 0.1
    assert result.accuracy.sqnr_db is not None
    assert result.accuracy.sqnr_db < 20
    size, before = result.inspection.size, result.inspection.baseline_size
    assert size.elements == before.elements
    assert size.nonzero <= 0.031 * before.nonzero
    assert size.packed_bytes < 0.05 * before.packed_bytes
    assert size.file_bytes < 0.3 * before.file_bytes
    assert size.compressed_bytes < 0.1 * before.compressed_bytes


# Counts


def test_counts_add_up(measured: Measured) -> None:
    inspection = inspect(request(FOUR_BITS))
    layers, size = inspection.layers, inspection.size
    assert sum(layer.elements for layer in layers) == size.elements
    assert sum(layer.nonzero for layer in layers) == size.nonzero
    assert all(layer.elements == np.prod(layer.shape) for layer in layers)
    assert {layer.bits for layer in layers} == {4}
    thresholds = [layer.threshold for layer in layers]
    assert np.ptp(thresholds) < 0.02 * max(thresholds), "one cut through the magnitudes of all layers"
    before = inspect(BASE)
    assert before.size == inspection.baseline_size == before.baseline_size
    assert [layer.macs for layer in layers] == [layer.macs for layer in before.layers]
    assert [layer.nonzero for layer in before.layers] == [layer.elements for layer in before.layers]


def test_pruning_looks_at_the_weights_as_published(resnet: LoadedModel) -> None:
    """Not at those that batch norm was folded into: a threshold is in units of the model's own weights."""
    weights = {name: value for name, value in resnet.module.named_parameters() if value.dim() > 1}
    found = inspect(request(Recipe(PruneSpec(threshold=0.05)))).layers
    assert [layer.name for layer in found] == list(weights)
    for layer in found:
        assert layer.nonzero == int((weights[layer.name].abs() > 0.05).sum())
        assert layer.threshold <= 0.05
    kept = inspect(request(HALF)).size
    assert kept.nonzero == kept.elements - round(0.5 * kept.elements)


def test_weights_on_an_engine_are_those_that_were_inspected() -> None:
    scored = score(request(FOUR_BITS, engine="torch"))
    images = scored.workspace.images.evaluation.images
    target = open_model("fashion-resnet")
    compressed = compress(target.module, FOUR_BITS, target.published)
    assert sum(int(w.values.count_nonzero()) for w in compressed.weights.values()) == (
        scored.inspection.size.nonzero
    )
    with torch.inference_mode():
        expected = compressed.module(images).numpy()
    np.testing.assert_allclose(scored.logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_cached_model_and_torch_s_state_are_left_as_they_were() -> None:
    module = open_model("fashion-resnet").module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    random, threads, numbers = torch.get_rng_state(), torch.get_num_threads(), np.random.get_state()[1].copy()
    for engine in ENGINES:
        score(request(INT8_KERNELS, engine=engine))
    assert open_model("fashion-resnet").module is module
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert not any(part.training for part in module.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert np.array_equal(np.random.get_state()[1], numbers)


@pytest.mark.slow
def test_the_long_mode_measures_resident_memory_too() -> None:
    result = measure(request(HALF, settings=Settings(threads=1, quick=False)))
    assert result.latency.quick is False
    assert result.latency.processes == (10,) * 2
    for size in (result.inspection.size, result.inspection.baseline_size):
        assert size.memory_bytes is not None
        assert size.memory_bytes > size.elements


def in_full(module: nn.Module, engine: str) -> Result:
    images = in_memory(torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(0)))
    workspace = Workspace(make_open(own_model(module, (3, 2, 2))), given=images)
    asked = Request("own", HALF, engine, settings=Settings(threads=1, quick=False))
    return experiment.measure(workspace, asked)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "sparse"])
def test_a_module_that_no_other_process_can_load_is_measured_in_this_one(engine: str) -> None:
    class Local(Own):
        pass

    result = in_full(Local(), engine)
    assert result.latency.processes == (10,)
    assert result.accuracy.total == 16
    assert result.inspection.size.memory_bytes is None
    assert result.cold_start is None
    assert "memory and cold start are not known: no other process can load" in result.notes[-1]


@pytest.mark.parametrize("error", [WorkError("a fresh process ended:\n  at\nno Own"), OSError("no Own")])
def test_what_was_measured_is_not_lost_where_a_start_can_not_be(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*others: object) -> None:
        raise error

    monkeypatch.setattr(experiment, "measure_start", fail)
    monkeypatch.setitem(latency.EFFORTS, False, replace(latency.EFFORTS[False], processes=0))
    result = in_full(Own(), "torch")
    assert result.cold_start is None
    assert result.notes[-1].startswith("memory and cold start are not known: ")
    assert result.notes[-1].endswith("no Own")
    assert "\n" not in result.notes[-1]
    monkeypatch.setattr(experiment, "measure_start", lambda *_: Start(1, 2))
    assert in_full(Own(), "torch").cold_start == ColdStart(2, 2)


# Bad input


@pytest.mark.parametrize("task", [inspect, measure])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (replace(BASE, model="fashion-lstm"), "unknown model 'fashion-lstm': use one of .*fashion-mlp"),
        (request(Recipe(layers=(Override("stem"),))), "unknown layer 'stem': use one of "),
    ],
    ids=["model", "layer"],
)
def test_unknown_names_are_refused(task: Callable[[Request], object], bad: Request, words: str) -> None:
    with pytest.raises(InputError, match=words):
        task(bad)


def test_an_unknown_engine_is_refused_before_anything_is_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "compressed_model", lambda *_, **__: pytest.fail("compressed"))
    with pytest.raises(InputError, match="unknown engine 'tvm': use one of openvino, onnxruntime, "):
        measure(request(HALF, engine="tvm"))


def test_what_fails_of_the_uncompressed_network_is_the_engine_s_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such kernel")

    runner = Runner(fail, fail, lambda: Execution((), ()))
    for prepared in (fail, lambda *_: fail, lambda *_: lambda *_, **__: runner):
        close_all()
        monkeypatch.setattr("optimizer.measurement.workspace.prepare", prepared)
        with pytest.raises(EngineError, match="^RuntimeError: no such kernel$"):
            measure(request(HALF, engine="torch", model=MLP))
    close_all()


def test_more_threads_than_cores_are_refused() -> None:
    cores = threads_available()
    with pytest.raises(InputError, match=f"{cores + 1} threads are more than this machine's {cores} cores"):
        measure(request(HALF, settings=Settings(threads=cores + 1)))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "sparse", "compile"])
@pytest.mark.parametrize(
    ("followed_up", "model"),
    [
        (Recipe(PruneSpec(sparsity=0.8, match=True), QuantizeSpec(weight_bits=4)), BASE.model),
        (Recipe(PruneSpec(sparsity=0.8), finetune_steps=20), MLP),
        (Recipe(PruneSpec(sparsity=0.8), QuantizeSpec(weight_bits=3), finetune_steps=20), MLP),
    ],
    ids=["matched", "fine-tuned", "fine-tuned on grids"],
)
def test_engines_run_what_became_of_biases_and_norms_too(
    followed_up: Recipe, model: str, engine: str
) -> None:
    """Matching and fine-tuning change more than layers' weights. (torch.compile takes the fewest kernels.)"""
    if problem := engine_named(engine).problem():
        pytest.skip(problem)
    asked = request(followed_up, engine=engine, model=MLP if engine == "compile" else model)
    compressed = compressed_model(asked)
    images = torch.rand(8, *open_model(asked.model).input_shape, generator=torch.Generator().manual_seed(0))
    runner = build_of(asked)(compressed, images, threads=1, batch=1)
    with torch.inference_mode():
        expected = compressed.module(images).numpy()
    np.testing.assert_allclose(runner.score(images.numpy()), expected, atol=1e-4 * np.abs(expected).max())
    before = dict(open_model(asked.model).module.named_parameters())
    others = [name for name, _ in compressed.module.named_parameters() if name not in compressed.weights]
    assert any(not torch.equal(compressed.module.get_parameter(name), before[name]) for name in others)


@pytest.mark.parametrize("equalise", [False, True])
def test_layers_whose_channels_were_scaled_are_not_rounded_once_more(
    equalise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The uncompressed network's inputs are not those that such a layer is to have."""
    asked: list[object] = []

    def improved(module: nn.Module, *others: object) -> tuple[nn.Module, float]:
        asked.append(others[-1])
        return module, 1.0

    monkeypatch.setattr("optimizer.measurement.compressed.improved", improved)
    coarse = QuantizeSpec(weight_bits=3, equalise=equalise)
    compressed_model(request(Recipe(quantize=coarse, effort_seconds=1)))
    assert asked == [not equalise]
