"""Modules of one's own, measured by the public API: what is measured, and that nothing in them changes."""

import copy
import doctest
import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import make_result
from hostile_graphs import classifier, save
from own_net import HALF, Net, measured
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import optimizer as px
from optimizer import api
from optimizer.charts import accuracy_info
from optimizer.cli.main import main, parser
from optimizer.cli.options import data_of
from optimizer.compression.divergence import is_classifier
from optimizer.errors import InputError
from optimizer.measurement import experiment, given, workspace
from optimizer.measurement.workspace import Workspace
from optimizer.progress import quiet
from optimizer.records import DataSpec, Request, Result
from optimizer.store.keys import request_key
from optimizer.store.results import Store


def test_a_module_is_measured_and_stays_as_it_was(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    net.train()
    called = []
    net.head.register_forward_hook(lambda *_: called.append(1))
    net(images[:2]).sum().backward()
    called.clear()
    before = copy.deepcopy(net.state_dict())
    gradients = {name: one.grad.clone() for name, one in net.named_parameters()}
    random = torch.get_rng_state()
    result = measured(net, (images, labels))
    assert result.accuracy.reference == "labels"
    assert result.accuracy.value.low <= result.accuracy.value.value <= result.accuracy.value.high
    assert result.accuracy.drop.low <= result.accuracy.drop.value <= result.accuracy.drop.high
    assert result.latency.ratio.low <= result.latency.ratio.value <= result.latency.ratio.high
    assert result.size.packed.value < result.size.packed.baseline
    assert all(torch.equal(before[name], one) for name, one in net.state_dict().items())
    assert all(torch.equal(gradients[name], one.grad) for name, one in net.named_parameters())
    assert all(one.requires_grad for one in net.parameters())
    assert net.training
    assert len(net.head._forward_hooks) == 1
    assert called == []
    assert torch.equal(torch.get_rng_state(), random)


class Causal(nn.Module):
    """Rows of pixels, each with those above: the mask has -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Linear(48, 16), nn.Linear(16, 10)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(16))

    def forward(self, images: Tensor) -> Tensor:
        rows = self.rows(images.transpose(1, 2).flatten(2))
        attended, _ = self.attention(rows, rows, rows, attn_mask=self.mask, need_weights=False)
        return self.head((rows + attended).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "engine",
    ["torch", "openvino", pytest.param("onnxruntime", marks=pytest.mark.slow)],
)
def test_a_mask_of_attention_may_be_infinite(engine: str, images: Tensor) -> None:
    torch.manual_seed(0)
    recipe = px.Recipe.of(sparsity=0.3, weight_bits=8, activation_bits=8)
    result = px.measure(Causal(), recipe, images, engine=engine, progress=False)
    assert result.accuracy.value.value > 80


def test_the_same_weights_are_measured_once(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    first = measured(net, (images, labels))
    again = measured(copy.deepcopy(net), (images.clone(), labels.clone()))
    assert again.record == first.record
    with torch.no_grad():
        net.head.bias[0] += 1
    assert measured(net, (images, labels)).record.key != first.record.key
    torch.manual_seed(0)
    assert measured(Net(stride=1), (images, labels)).record.key != first.record.key
    assert measured(net, (images + 1, labels)).record.key != first.record.key
    assert Store().count() == 4


def test_a_model_that_was_replaced_under_its_name_is_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the figures of the old one would be kept under the key of the new one."""
    grey, opened = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0)), list[Workspace]()
    for version in ("first", "first", "second"):
        monkeypatch.setattr(workspace, "version_of", lambda name, version=version: version)
        opened.append(given.open_given("fashion-mlp", grey, None, None, quiet)[0])
    first, again, other = opened
    assert first is again
    assert first.model is not other.model


def test_page_and_command_line_find_what_was_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_up(workspace: Workspace, request: Request, *_: object) -> Result:
        made = make_result(request.recipe, engine="torch", quick=True)
        return replace(made, key=request_key(request, workspace.files), request=request)

    monkeypatch.setattr(experiment, "measure", make_up)
    result = px.measure("fashion-mlp", HALF, engine="torch", settings=px.Settings(threads=1), progress=False)
    monkeypatch.setattr(experiment, "measure", lambda *_: pytest.fail("it was measured twice"))
    command = ["measure", "fashion-mlp", "--prune", "magnitude", "--sparsity", "0.5", "--engine", "torch"]
    assert main([*command, "--threads", "1", "--quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == result.record.key
    assert Store().count() == 1


def test_without_labels_the_figures_are_agreement(net: nn.Module, images: Tensor) -> None:
    result = measured(net, images.numpy())
    assert result.accuracy.reference == "baseline"
    assert result.accuracy.value.baseline == 100
    assert result.accuracy.sqnr.value > 0
    assert 0 < result.record.accuracy.cosine < 1


def test_a_dataset_is_data_too(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    pair, dataset = measured(net, (images, labels)), measured(net, TensorDataset(images, labels))
    assert dataset.record == pair.record


@pytest.mark.slow
def test_what_is_evaluated_on_beside_calibration_images_is_the_model_s_own(tmp_path: Path) -> None:
    grey = torch.rand(9, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    folder = photographs(tmp_path / "photos", "apple pear")
    usual = given.open_given("fashion-mlp", None, None, None, quiet)[0].images
    for calibration in (grey, folder):
        workspace, request = given.open_given("fashion-mlp", None, calibration, None, quiet)
        evaluated, calibrating = workspace.images.evaluation, workspace.images.calibration
        assert torch.equal(evaluated.images, usual.evaluation.images)
        assert evaluated.labels is not None
        assert usual.evaluation.labels is not None
        assert torch.equal(evaluated.labels, usual.evaluation.labels)
        assert len(calibrating.images) == (9 if calibration is grey else 12)
        assert request.data.path is None
    for calibration in (grey, folder):
        with pytest.raises(InputError, match="needs images: give data"):
            measured(Net(), None, calibration=calibration, input_shape=(1, 28, 28))


def photographs(folder: Path, classes: str, each: int = 6) -> Path:
    random = np.random.default_rng(len(str(folder)))
    for name in classes.split():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 255, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def of_photographs(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def test_a_folder_s_classes_are_its_own_whatever_was_measured_before(tmp_path: Path) -> None:
    net, opened = of_photographs(3), []
    for classes in ("a b c", "b c d", "b c d", "a b c"):
        folder = tmp_path / f"{classes} {len(opened)}"
        opened.append(
            given.open_given(net, photographs(folder, classes, 3), None, (3, 32, 32), lambda *_: None)[0]
        )
        entries = opened[-1].images.mapping.mapped
        assert [(entry.folder, entry.index) for entry in entries] == [
            *zip(classes.split(), range(3), strict=True)
        ]
        assert opened[-1].images.mapping.unmapped == ()
    assert len({workspace.model.module for workspace in opened}) == 1, "it is opened once"


def test_a_folder_is_known_by_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [photographs(tmp_path / place / "photos", "apple pear").parent for place in ("one", "two")]
    asked = []
    for place in places:
        monkeypatch.chdir(place)
        for folder in ("photos", Path("photos"), str(place / "photos"), place / ".." / place.name / "photos"):
            workspace, request = given.open_given(
                of_photographs(2), folder, folder, (3, 32, 32), lambda *_: None
            )
            assert request.data == DataSpec(str(place / "photos"), str(place / "photos"))
            asked.append((request_key(request), request_key(request, workspace.files)))
    assert len(set(asked)) == 2, "one for each, also within the seconds that a fingerprint holds"
    assert all(looked_up == measured for looked_up, measured in asked)
    monkeypatch.setenv("HOME", str(places[0]))
    options = parser().parse_args(["measure", "fashion-mlp", "--data", "~/photos"])
    _, request = given.open_given("fashion-mlp", "~/photos", None, None, lambda *_: None, needs_data=False)
    assert request.data == data_of(options) == DataSpec(str(places[0] / "photos"))
    compared: list[Any] = []
    monkeypatch.setattr(api.on_demand, "compare", lambda request, *_: compared.append(request))
    px.compare("a.onnx", "b.onnx", "photos", progress=False)
    assert compared[0].data == DataSpec(str(places[1] / "photos"))
    with pytest.raises(InputError, match="is no path"):
        given.open_given("fashion-mlp", "a\0b", None, None, lambda *_: None)


def test_a_folder_is_data_too(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", "apple pear")
    result = measured(of_photographs(2), tmp_path / "photos", input_shape=(3, 32, 32))
    assert result.accuracy.reference == "labels"
    assert result.record.accuracy.total == 10  # a fifth of the twelve calibrates


def test_outputs_of_any_shape_are_compared(images: Tensor) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    half, eight = (measured(net, images, recipe) for recipe in (HALF, px.Recipe.of(weight_bits=8)))
    assert half.record.accuracy.kl is None
    assert half.accuracy.sqnr.value < eight.accuracy.sqnr.value
    assert eight.accuracy.value.value is None
    assert "SQNR" in accuracy_info([half.record, eight.record]).y.title


def test_a_result_shows_itself(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    result = measured(net, (images, labels))
    words = repr(result)
    assert re.match(
        r"Net-[0-9a-f]{10}: 50 % of layer weights pruned.*, on torch eager, 1 thread, 48 images", words
    )
    assert all(label in words for label in ("accuracy lost", "file size", "latency ratio"))
    assert "<table>" in result._repr_html_()


@pytest.mark.slow
def test_a_module_of_other_inputs_than_images_is_measured(labels: Tensor) -> None:
    """As the refusal of such an ONNX file promises."""
    torch.manual_seed(0)  # with some weights all that goes is of the second layer
    layers = nn.Conv1d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 10)
    inputs = torch.randn(60, 1, 65, generator=torch.Generator().manual_seed(1))
    result = measured(nn.Sequential(*layers), (inputs, labels))
    assert [layer.pruned > 0 for layer in result.record.inspection.layers] == [True, True]


def test_models_and_engines_are_listed() -> None:
    assert "fashion-mlp" in px.models()
    assert px.engines()["torch"] == ""


@pytest.mark.slow
def test_a_process_of_its_own_measures_the_same_and_tells_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    data, told = torch.rand(200, 1, 28, 28, generator=torch.Generator().manual_seed(0)), list[str]()
    line = nullcontext(lambda share, words: told.append(words))
    monkeypatch.setattr(api, "progress_line", lambda shown: line)
    there = px.measure("fashion-mlp", HALF, data, engine="torch", isolated=True, progress=False)
    assert any(told)
    Store().forget([there.record.key])
    here = px.measure("fashion-mlp", HALF, data, engine="torch", progress=False)
    assert here.record.accuracy == there.record.accuracy
    assert here.record.key == there.record.key
    with pytest.raises(InputError, match="no such folder"):
        px.measure("fashion-mlp", HALF, "no such folder", engine="torch", isolated=True, progress=False)


@pytest.mark.slow
def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(api).failed == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporter that can leave sides open
def test_a_file_that_takes_any_size_takes_that_of_the_images(tmp_path: Path, images: Tensor) -> None:
    file = tmp_path / "any.onnx"
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    sides = {number: name for number, name in enumerate(("n", "c", "h", "w")) if name != "c"}
    torch.onnx.export(
        network.eval(), (images[:1],), str(file), input_names=["x"], dynamic_axes={"x": sides}, dynamo=False
    )
    with pytest.raises(InputError, match=r"which takes \[3, 20, 20\]"):
        measured(file, images, input_shape=(3, 20, 20))
    assert measured(file, images).accuracy.reference == "baseline"


@pytest.mark.slow
def test_a_path_of_a_model_file_is_taken_wherever_a_model_is(images: Tensor, tmp_path: Path) -> None:
    """Known by its content: the same file elsewhere has been measured already."""
    labels = torch.arange(len(images)) % 5
    first, second = (save(classifier(), tmp_path / name) for name in ("net.onnx", "copy.onnx"))
    result = px.measure(first, HALF, (images, labels), engine="torch", progress=False)
    assert result.request.model.startswith("net-")
    assert result.accuracy.reference == "labels"
    again = px.measure(str(first), HALF, (images, labels), engine="torch", progress=False)
    assert again.record == result.record
    other = px.measure(str(second), HALF, (images, labels), engine="torch", progress=False)
    assert other.accuracy.value == result.accuracy.value
    module = px.compress(first, HALF, progress=False)
    assert module(images[:2]).shape == (2, 5)
    assert not [name for name, card in px.models().items() if card.source == "added"]
    with pytest.raises(InputError, match="no file"):
        px.measure(tmp_path / "nothing.onnx", data=images, progress=False)
    with pytest.raises(InputError, match=r"3 x 16 x 16|\[3, 16, 16\]"):
        px.measure(first, data=torch.rand(4, 3, 8, 8), progress=False)


def test_outputs_of_rows_may_be_said_to_be_no_classes(
    net: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    usual, said = (measured(net, images, HALF, task=task) for task in (None, "fidelity"))
    assert measured(net, images, HALF, task="classification").record == usual.record
    assert said.request.model != usual.request.model
    assert said.record.accuracy.is_fidelity
    assert said.accuracy.value.value is None
    channels = px.Recipe.of(sparsity=0.3, pruning="channels")
    for recipe in (HALF, channels):
        module = px.compress(net, recipe, calibration=images, task="fidelity", progress=False)
        assert not is_classifier(module), "what compresses it knows"
    assert is_classifier(px.compress(net, HALF, calibration=images, progress=False))
    swept = px.sweep(net, [0.5], [32], images, task="fidelity", engine="torch", progress=False)
    assert all(one.record.accuracy.is_fidelity for one in swept)
    with pytest.raises(InputError, match=r"give --min-sqnr \(min_sqnr_db in Python\) in place of --max-drop"):
        px.find(net, max_drop=1, data=images, task="fidelity", engines="torch", progress=False)
    file = save(classifier(), tmp_path / "net.onnx")
    assert px.measure(
        file, HALF, images, engine="torch", task="fidelity", progress=False
    ).record.accuracy.outputs


def test_what_a_script_has_set_changes_no_result(net: nn.Module, images: Tensor) -> None:
    """Results are kept under keys that know nothing of it."""
    recipe = px.Recipe.of(sparsity=0.5)
    try:
        torch.set_float32_matmul_precision("medium")
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", torch.bfloat16):
            changed = px.compress(net, recipe, calibration=images, progress=False)
            result = measured(net, images, recipe)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
    given._workspaces.clear()
    expected = px.compress(net, recipe, calibration=images, progress=False)
    for one, other in zip(changed.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
    again = experiment.measure(result.workspace, result.request, quiet)
    assert result.record.accuracy.sqnr_db == again.accuracy.sqnr_db
