"""Sweeps, questions, compressed modules and files by the public API."""

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import safetensors
import torch
from own_net import EIGHT_BITS, HALF, measured
from small_models import Masked
from torch import Tensor, nn

import optimizer as px
from optimizer import api
from optimizer.analysis import measures
from optimizer.analysis.view import Failed
from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.measurement import experiment
from optimizer.measurement.compressed import compressed_model
from optimizer.model import catalogue
from optimizer.records import digest
from optimizer.search.answers import outcome_of
from optimizer.store import ledger
from optimizer.store.results import Store

SMALLER = px.Recipe.of(sparsity=0.5, pruning="channels")


def test_a_sweep_is_a_table_and_charts(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    results = px.sweep(
        net,
        [0, 0.5],
        [32, 4],
        (images, labels),
        recipe=px.Recipe.of(pruning="magnitude", rounding="nearest"),
        engine="torch",
        settings=px.Settings(threads=1),
        progress=False,
    )
    assert [one.request.recipe.prune.share for one in results] == [0, 0.5, 0, 0.5]
    assert results.failed == ()
    assert len(results.frame()) == len(results) == 4
    assert "frontier" in repr(results)
    assert "<table" in results._repr_html_()
    assert len(results[1:]) == 3
    for plot in (px.plot_accuracy, px.plot_frontier, px.plot_latency, px.plot_size):
        assert isinstance(plot(results), go.Figure)
        assert plot(results[0]) == plot(results[:1])
        with pytest.raises(InputError, match=r"int is no result: give what px.measure gave"):
            plot([1])  # type: ignore[list-item]
    with pytest.raises(InputError, match="unknown metric"):
        px.plot_frontier(results, cost="colour")


def test_a_recipe_that_fails_is_told_and_the_others_go_on(
    net: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = experiment.measure

    def some(workspace: Any, request: Any, *others: Any) -> Any:
        if request.recipe.prune.share:
            raise WorkError("no")
        return measure(workspace, request, *others)

    monkeypatch.setattr(experiment, "measure", some)
    results = px.sweep(net, [0, 0.5], [32], images, engine="torch", progress=False)
    assert len(results) == 1
    assert [one.message for one in results.failed] == ["no"]
    assert "not measured" in repr(results)


def test_a_sweep_ends_where_nothing_more_could_be_kept_and_what_is_kept_is_read(
    net: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(store: Store) -> None:
        raise UnavailableError("no room is left")

    px.sweep(net, 0, 32, images, engine="torch", progress=False)
    monkeypatch.setattr(Store, "check_room", full)
    monkeypatch.setattr(experiment, "measure", lambda *given: pytest.fail("it would be lost"))
    assert len(px.sweep(net, 0, 32, images, engine="torch", progress=False)) == 1
    with pytest.raises(UnavailableError, match="no room is left"):
        px.sweep(net, [0, 0.5, 0.7], 32, images, engine="torch", progress=False)


def test_compressed_is_what_was_measured(
    net: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    recipe = px.Recipe.of(sparsity=0.5, weight_bits=4)
    others = torch.randn(60, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    module = px.compress(net, recipe, calibration=others, progress=False)
    assert not module.training
    weights = [one for name, one in module.named_parameters() if one.ndim > 1]
    zeros = 1 - sum(int(one.count_nonzero()) for one in weights) / sum(one.numel() for one in weights)
    assert zeros >= 0.5
    assert all(len(one.unique()) <= 16 * len(one) for one in weights)
    result = px.measure(net, recipe, (images, labels), calibration=others, engine="torch", progress=False)
    again = px.compress(net, recipe, calibration=others, progress=False)
    with torch.inference_mode():
        right = (again(images).argmax(1) == labels).numpy()
    assert (result.record.accuracy.outcomes == right).all()


@pytest.mark.parametrize("scale", [1e-12, 1e-16, 1e-19, 1e-21])
@pytest.mark.parametrize("asked", [{"sparsity": 0.5}, {"weight_bits": 4}])
def test_activations_whose_squares_are_next_to_nothing_are_no_error(
    asked: dict[str, Any], scale: float, images: Tensor
) -> None:
    """As behind many layers of random weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, bias=False))
    net.extend([nn.ReLU(), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)])
    with torch.no_grad():
        net[0].weight.mul_(scale)
    module = px.compress(net.eval(), px.Recipe.of(**asked), calibration=images, progress=False)
    assert all(weight.isfinite().all() for weight in module.parameters())


def test_a_compressed_module_computes_with_float_activations(net: nn.Module, images: Tensor) -> None:
    recipes = (px.Recipe.of(None, 8, activation_bits=bits, rounding="nearest") for bits in (8, 32))
    module, plain = (px.compress(net, one, calibration=images, progress=False) for one in recipes)
    with torch.inference_mode():
        assert torch.equal(module(images), plain(images))
    assert "float32 activations" in str(px.compress.__doc__)


def test_a_masked_transformer_loses_channels_and_looks_ahead_no_more_than_before() -> None:
    torch.manual_seed(0)
    net, images = Masked().eval(), torch.randn(16, 6, 16)
    module = px.compress(
        net, px.Recipe.of(pruning="channels", sparsity=0.3), calibration=images, progress=False
    )
    layers, before = (dict(one.named_parameters()) for one in (module, net))
    smaller = {name for name, one in layers.items() if one.numel() < before[name].numel()}
    attention, hidden = (f"{half}coder.layers.0.{{}}.weight" for half in ("en", "de"))
    assert {attention.format("self_attn.out_proj"), hidden.format("linear1")} <= smaller
    assert torch.equal(module.mask, net.mask)
    others = torch.cat([images[:, :3], torch.zeros(16, 3, 16)], 1)  # alike up to the third
    with torch.inference_mode():
        seen, unseen = (module.encoder(one, mask=module.mask)[:, :3] for one in (images, others))
        torch.testing.assert_close(seen, unseen)
        assert (module(images) - net(images)).abs().mean() < 0.3 * net(images).std()


def test_a_result_is_saved_by_the_extension(net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    result = measured(net, images, EIGHT_BITS)
    suffixes = ("onnx", "safetensors", "xml", "zip")
    paths = {suffix: px.save(result, tmp_path / f"net.{suffix}") for suffix in suffixes}
    for path in paths.values():
        assert path.stat().st_size > 0
    with torch.inference_mode():
        expected = px.compress(
            net, px.Recipe.of(weight_bits=8, rounding="nearest"), input_shape=(3, 16, 16), progress=False
        )(images)
    session = onnxruntime.InferenceSession(paths["onnx"])
    model = openvino.compile_model(paths["xml"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for answer in (lambda one: session.run(None, {"images": one})[0], lambda one: model([one])[0]):
        found = np.concatenate([answer(one[None]) for one in images.numpy()])
        assert np.corrcoef(found.ravel(), expected.numpy().ravel())[0, 1] > 0.99
    with safetensors.safe_open(paths["safetensors"], "pt") as file:
        assert any("head" in name for name in file.keys())  # noqa: SIM118
    assert paths["zip"].read_bytes()[:2] == b"PK"


@pytest.mark.parametrize("recipe", [HALF, SMALLER], ids=["weights", "channels"])
def test_the_card_of_a_model_file_says_how_to_load_that_again(
    recipe: px.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is none of the catalogue's: the lines in the card take the file itself."""
    file = tmp_path / "net.pt"
    torch.save(catalogue.load("fashion-mlp").module.state_dict(), file)
    images = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    result = measured(file, images, recipe)
    assert result.request.model not in px.models()
    with zipfile.ZipFile(px.save(result, tmp_path / "model.zip")) as archive:
        code = archive.read("MODEL_CARD.md").decode().split("```python\n")[1].split("\n```")[0]
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {"file": file}
    exec(code, found)
    expected = compressed_model(result.workspace, recipe.canonical()).module
    with torch.inference_mode():
        assert torch.equal(found["module"](images), expected(images))


def test_the_path_of_what_was_saved_is_given(net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    result = measured(net, images)
    for name, format, written in (
        ("net.v2", "openvino", "net.xml"),
        ("other.bin", "openvino", "other.xml"),
        ("net", "safetensors", "net"),
        ("net.safetensors", "packed", "net.safetensors"),
        ("NET.ZIP", None, "NET.ZIP"),
    ):
        path = px.save(result, tmp_path / name, format=format)
        assert path == tmp_path / written
        assert path.is_file()


@pytest.mark.slow
def test_a_result_is_saved_with_the_images_that_it_was_measured_with_or_not_at_all(
    net: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    """What a process of its own measured has no workspace."""
    data = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    eight, half = (replace(measured("fashion-mlp", data, one), workspace=None) for one in (EIGHT_BITS, HALF))
    with pytest.raises(InputError, match="the images went with the process .* without isolated=True"):
        px.save(eight, tmp_path / "net.onnx")
    assert px.save(half, tmp_path / "net.safetensors").stat().st_size > 0
    with pytest.raises(InputError, match=r"Net-\w+ went with the process"):
        px.save(replace(measured(net, images), workspace=None), tmp_path / "net.zip")
    assert not (tmp_path / "net.onnx").exists()


def test_a_value_alone_and_numpy_s_numbers_are_taken_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "each", lambda requests, measure: [Failed(one, "") for one in requests])

    def asked(*amounts: Any) -> list[str]:
        return [digest(one.request) for one in px.sweep("fashion-mlp", *amounts, progress=False).failed]

    assert asked(0.5, 8) == asked([0.5], [8]) == asked(np.array([0.5], "f4"), np.array([8]))
    assert digest(px.Recipe.of(np.float64(0.5), np.int64(8))) == digest(px.Recipe.of(0.5, 8))
    assert px.Space("openvino", threads=4) == px.Space(("openvino",), threads=(4,))


def test_of_a_network_that_is_no_classifier_the_least_sqnr_is_a_limit(images: Tensor) -> None:
    torch.manual_seed(0)
    parts = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    space = px.Space(("torch",), (1,), pruning=("none",), weight_bits=(32, 8, 3), activation_bits=(32,))
    asked = {"data": images, "space": space, "budget_seconds": 30, "progress": False}
    found = px.find(parts, max_size_mb=1, min_sqnr_db=30, search="grid", **asked)
    assert found.best is not None
    (output,) = found.best.record.accuracy.outputs
    sqnr = measures.sqnr(output)
    assert sqnr.value is None or sqnr.low >= 30
    few = replace(space, weight_bits=(3,))
    assert px.find(parts, min_sqnr_db=60, **{**asked, "space": few}).best is None
    best = px.find(parts, max_size_mb=1, **asked)
    assert best.found.answer.question.minimise == "sqnr"
    history = ledger.sweeps(Store())
    assert outcome_of(Store(), history[1]) == "nothing keeps to the limits"
    assert {sweep.state for sweep in history} == {"done"}
    assert px.find(parts, max_size_mb=1, **asked).found.answer == best.found.answer
    assert ledger.sweeps(Store()) == history
    with pytest.raises(InputError, match=r"give --min-sqnr \(min_sqnr_db in Python\) in place of --max-drop"):
        px.find(parts, max_drop=1, **asked)
