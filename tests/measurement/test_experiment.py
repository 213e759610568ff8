"""Requests of the bundled residual network on a few of its images, end to end."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_request import build_of, close_all, compressed_model, inspect, measure, open_model, opened, score
from factories import OTHER_MACHINE, visits
from torch import Tensor, nn

from optimizer import on_demand
from optimizer.analysis.headline import headlines
from optimizer.analysis.outcomes import growing_drop, growing_share_interval, paired_drop
from optimizer.analysis.statistics import SAME
from optimizer.analysis.summary import summarise, summarise_scores
from optimizer.compression.apply import compress
from optimizer.data.loading import load_images
from optimizer.data.memory import in_memory
from optimizer.data.selection import fingerprint
from optimizer.engine import Runner, engine_named
from optimizer.engine.memory import Start
from optimizer.errors import EngineError, InputError, WorkError
from optimizer.measurement import experiment, latency, runners
from optimizer.measurement.latency import LatencyEffort
from optimizer.measurement.visits import VisitEffort
from optimizer.measurement.workspace import Workspace
from optimizer.measurement.workspace import open_model as make_open
from optimizer.model.catalogue import LoadedModel
from optimizer.model.own import own_model
from optimizer.progress import Asker, Cancelled, asked_by
from optimizer.recipe import Override, PruneSpec, QuantizeSpec, Recipe
from optimizer.records import (
    ColdStart,
    DataSpec,
    Execution,
    Known,
    Latency,
    Request,
    Result,
    Scores,
    Settings,
    decode,
    encode,
)
from optimizer.store.keys import request_key
from optimizer.store.results import UNFINISHED, Store
from optimizer.system.environment import environment, threads_available

IMAGES = 120
MLP = "fashion-mlp"
"""Where it makes no difference which network it is: an engine prepares it in a fifth of the time."""
BASE = Request("fashion-resnet", data=DataSpec(limit=IMAGES), settings=Settings(threads=1))
HALF = Recipe(PruneSpec(sparsity=0.5))
FOUR_BITS = Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=4))
INT8 = Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8))
INT8_KERNELS = Recipe(PruneSpec(sparsity=0.5), QuantizeSpec(weight_bits=4, activation_bits=8))
ENGINES = ("openvino", "torch")
VISIT = VisitEffort(settle_seconds=0.01, seconds=0, min_calls=4, max_calls=4)

Measured = Callable[..., Result]


def request(recipe: Recipe, **changes: object) -> Request:
    return replace(BASE, recipe=recipe, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Just enough rounds to have an interval: how long a series lasts is tested with the latency module."""
    with pytest.MonkeyPatch.context() as patch:
        for quick in (True, False):
            patch.setitem(
                latency.EFFORTS,
                quick,
                LatencyEffort(
                    2, warmup_seconds=0, seconds=0, min_rounds=10, visit=VISIT, processes=0 if quick else 2
                ),
            )
        yield


@pytest.fixture(scope="module")
def measured() -> Measured:
    """``measured(recipe, **changes)``: the result of a request, run once for all tests here."""
    results: dict[Request, Result] = {}

    def result(recipe: Recipe = Recipe(), **changes: object) -> Result:  # noqa: B008 - frozen
        asked = request(recipe, **changes)
        if asked not in results:
            results[asked] = measure(asked)
        return results[asked]

    return result


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


def test_progress_is_reported_from_loading_to_timing() -> None:
    messages: list[str] = []
    measure(request(HALF), lambda share, message: messages.append(message))
    steps = [
        "loading the model",
        "preparing OpenVINO",
        "compressing",
        "reading the images",
        f"scoring {IMAGES} images",
        "timing",
    ]
    assert [message for message in messages if message in steps] == steps


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


# What is shared, and what is not


@pytest.mark.slow
def test_recipes_that_run_the_same_kernels_share_a_signature(measured: Measured) -> None:
    asymmetric = replace(INT8, quantize=replace(INT8.quantize, symmetric=False))
    float32, int8, others = (
        {measured(recipe, model=MLP).latency.signature for recipe in recipes}
        for recipes in ((Recipe(), HALF, FOUR_BITS), (INT8, INT8_KERNELS), (asymmetric,))
    )
    assert len(float32) == len(int8) == 1
    assert len(float32 | int8 | others) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"engine": "openvino"}, {"settings": Settings(threads=1, batch=2)}, {"model": MLP}],
    ids=["engine", "batch", "model"],
)
def test_another_engine_batch_or_model_is_another_signature(
    measured: Measured, change: dict[str, object]
) -> None:
    on_torch = {"engine": "torch"}
    assert measured(**on_torch | change).latency.signature != measured(**on_torch).latency.signature


@pytest.mark.skipif(threads_available() < 2, reason="one core")
def test_no_thread_count_means_every_core_and_is_another_signature(measured: Measured) -> None:
    # A small network: threads of this test's and of others wait for each other.
    small = {"engine": "torch", "model": MLP}
    every = measured(settings=Settings(threads=0), **small).latency
    assert every.threads == threads_available()
    assert every.signature != measured(**small).latency.signature


@pytest.mark.slow
def test_the_limit_of_images_and_the_seed_do_not_change_the_signature(measured: Measured) -> None:
    other = measured(data=DataSpec(limit=50, seed=1), settings=Settings(threads=1, seed=9))
    assert other.latency.signature == measured().latency.signature


def test_networks_of_other_widths_have_another_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which channels go by what they were measured to be worth hangs on the calibration images."""
    channels = PruneSpec("channels", sparsity=0.5, allocation="measured")
    workspace, ran = Workspace(make_open(own_model(Own(), (3, 2, 2)))), Execution((), ())

    def signature(recipe: Recipe, width: int) -> str:
        made = compress(nn.Sequential(nn.Linear(12, width), nn.Linear(width, 4)), Recipe())
        monkeypatch.setattr(runners, "compressed_model", lambda *_: made)
        return runners.signature_of(workspace, request(recipe), ran, 1)

    for recipe, differ in ((Recipe(channels), True), (HALF, False)):
        assert signature(recipe, 6) == signature(recipe, 6)
        assert (signature(recipe, 6) != signature(recipe, 5)) == differ


def steady(signature: str, noisy: bool = False) -> Latency:
    """Twenty rounds without any spread; or with a variant that doubles half-way."""
    rounds = 20
    variant = visits([1_000_000 * (2 if noisy and index >= rounds / 2 else 1) for index in range(rounds)])
    calm = visits([1_000_000] * rounds)
    return Latency(signature, Recipe(), (calm, calm), variant, 1, 1, True, 0, 10, 0.0, 1, (rounds,))


@pytest.mark.slow
def test_an_earlier_measurement_of_the_same_kernels_is_used_instead_of_timing() -> None:
    asked: list[tuple[str, bool]] = []

    def shared(signature: str, quick: bool) -> Latency:
        asked.append((signature, quick))
        return steady(signature)

    messages: list[str] = []
    result = measure(request(FOUR_BITS), lambda share, message: messages.append(message), shared)
    assert asked == [(result.latency.signature, True)]
    assert result.latency == steady(result.latency.signature)
    assert "timing" not in messages


def test_scores_are_published_before_anything_is_timed() -> None:
    told: list[object] = []
    with asked_by(Asker(told.append, lambda: False)):
        result = measure(request(FOUR_BITS), lambda share, message: told.append(message))
    counted, *_, scores = known = [one for one in told if isinstance(one, Known)]
    assert told.index(scores) < told.index("timing")
    assert (scores.accuracy, scores.baseline_accuracy) == (result.accuracy, result.baseline_accuracy)
    assert {one.inspection for one in known} == {result.inspection}
    assert summarise_scores(counted) is None
    early, whole = summarise_scores(scores), summarise(result)
    assert early is not None
    for name in early.measures:
        assert (early.text(name), early.parts(name)) == (whole.text(name), whole.parts(name))
    assert headlines(None, scores.inspection, early)[0] == headlines(whole, result.inspection)[0]
    assert headlines(None, scores.inspection, early)[2].basis == "being measured"


def test_what_a_timed_call_needs_is_made_after_accuracy_is_known_and_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, ready = list[object](), Runner.ready

    def noted(runner: Runner) -> Runner:
        told.append("made")
        return ready(runner)

    def timed(builds: tuple[Runner, Runner], runner: Runner, *others: Any) -> Latency:
        assert all("execution" in vars(one) for one in (*builds, runner))
        return time_latency(builds, runner, *others)

    time_latency = experiment.time_latency
    monkeypatch.setattr(Runner, "ready", noted)
    monkeypatch.setattr(experiment, "time_latency", timed)
    with asked_by(Asker(told.append, lambda: False)):
        result = measure(request(FOUR_BITS, model=MLP))
    known = [at for at, one in enumerate(told) if isinstance(one, Known)]
    last = told[known[-1]]
    assert isinstance(last, Known)
    assert last.accuracy == result.accuracy
    assert known[-1] < told.index("made")


@pytest.mark.slow
def test_a_noisy_latency_is_published_with_its_result_before_it_is_timed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[object] = []
    monkeypatch.setattr(latency, "stolen_share", lambda: nullcontext(lambda: 0.5))
    monkeypatch.setitem(latency.EFFORTS, True, replace(latency.EFFORTS[True], attempts=2))
    with asked_by(Asker(told.append, lambda: False)):
        result = measure(request(FOUR_BITS), lambda share, message: told.append(message))
    (before,) = [one for one in told if isinstance(one, Result)]
    assert told[told.index(before) + 1] == "timing for longer, since it was noisy"
    assert (before.latency.attempts, result.latency.attempts) == (1, 2)
    assert summarise(before).noise
    assert replace(before, latency=result.latency, created=result.created) == result


def test_accuracy_of_more_images_is_not_told_at_once_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(experiment, "TOLD_SECONDS", 60.0)
    with asked_by(Asker(told.append, lambda: False)):
        scored = score(request(FOUR_BITS))
    first, whole = [one.accuracy for one in told if isinstance(one, Known) and one.accuracy]
    assert first.total < whole.total
    assert whole == scored.accuracy


def test_accuracy_grows_in_a_random_order_with_an_interval_for_every_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[object] = []
    monkeypatch.setattr(experiment, "TOLD_SECONDS", 0.0)
    with asked_by(Asker(told.append, lambda: False)):
        scored = score(request(FOUR_BITS))
    *grown, whole = [one for one in told if isinstance(one, Known) and one.accuracy]
    sizes = [one.accuracy.total for one in grown if one.accuracy]
    assert sizes == sorted(set(sizes))
    assert len(sizes) >= 2
    assert whole.accuracy == scored.accuracy
    assert {one.images for one in (*grown, whole)} == {scored.accuracy.total}
    order = np.random.default_rng(0).permutation(scored.accuracy.total)
    for one, size in zip(grown, sizes, strict=True):
        assert one.accuracy is not None
        assert np.array_equal(one.accuracy.outcomes, scored.accuracy.outcomes[order[:size]])
        summary = summarise_scores(one)
        assert summary is not None
        assert summary.partial
        low, high = growing_share_interval(int(one.accuracy.outcomes.sum()), size)
        assert summary.measures["accuracy"].low == 100 * low
        assert summary.measures["accuracy"].high == 100 * high
        assert summary.drop == growing_drop(
            paired_drop(scored.baseline_accuracy.outcomes[order[:size]], one.accuracy.outcomes)
        )


@pytest.mark.slow
@pytest.mark.parametrize(("last", "bits"), [("compressing", 5), ("scoring", 6), ("timing", 7)])
def test_work_that_is_not_wanted_any_more_ends_and_the_next_is_as_without_it(last: str, bits: int) -> None:
    asked = request(replace(HALF, quantize=QuantizeSpec(weight_bits=bits)), model=MLP)
    reached = [""]
    with pytest.raises(Cancelled), asked_by(Asker(lambda known: None, lambda: reached[-1] == last)):
        measure(asked, lambda share, message: reached.append(message.split()[0]))
    assert reached[-1] == last
    after = measure(asked)
    close_all()
    anew = measure(asked)
    assert (after.accuracy, after.inspection, after.notes) == (anew.accuracy, anew.inspection, anew.notes)


def test_an_earlier_measurement_that_was_noisy_is_used_too() -> None:
    """It has its badge, and is measured anew when it is measured in full."""
    result = measure(request(HALF), shared_latency=lambda signature, quick: steady(signature, noisy=True))
    assert result.latency == steady(result.latency.signature, noisy=True)


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


class Own(nn.Module):
    """As a script or a notebook has it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


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


@pytest.mark.parametrize("ended", [Cancelled, KeyboardInterrupt])
def test_what_is_ended_while_starts_are_measured_is_gone_on_with(
    ended: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*others: object) -> None:
        assert store.documents(UNFINISHED, Result), (
            "a kill, which nothing can be done about, loses it neither"
        )
        raise ended

    monkeypatch.setattr(experiment, "measure_start", end)
    monkeypatch.setitem(latency.EFFORTS, False, replace(latency.EFFORTS[False], processes=0))
    images = in_memory(torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(0)))
    asked = Request("own", HALF, "torch", settings=Settings(threads=1, quick=False))
    workspace = Workspace(make_open(own_model(Own(), (3, 2, 2))), files=fingerprint(asked.data), given=images)
    store, told = Store(tmp_path / "results.sqlite"), list[object]()
    with asked_by(Asker(told.append, lambda: False)), pytest.raises(ended):
        on_demand.load_or_measure(asked, store, workspace=workspace)
    (shown,) = [one for one in told if isinstance(one, Result)]
    assert "memory and cold start are not known" in shown.notes[-1]
    assert store.get(shown.key) is None, "asked again, memory is measured"
    monkeypatch.setattr(experiment, "measure_start", lambda *_: Start(1, 2))
    for name in ("score", "time_latency"):
        monkeypatch.setattr(experiment, name, lambda *_: pytest.fail("it was done again"))
    result = on_demand.load_or_measure(asked, store, workspace=workspace)
    assert (result.latency, result.accuracy) == (shown.latency, shown.accuracy)
    assert (result.notes, result.cold_start) == (shown.notes[:-1], ColdStart(2, 2))
    assert result.inspection.size.memory_bytes == 1
    assert store.get(result.key) == result
    assert not store.documents(UNFINISHED, Result)
    store.put_document(UNFINISHED, result.key, encode(result))
    store.forget([result.key])
    assert not store.documents(UNFINISHED, Result)


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
