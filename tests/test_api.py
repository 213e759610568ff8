"""The public verbs, on modules of one's own: what is measured, what is refused, and that nothing changes."""

import copy
import doctest
import json
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import safetensors
import torch
from factories import make_result
from hostile_graphs import classifier, save
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import optimizer as px
from optimizer import api
from optimizer.analysis import measures
from optimizer.analysis.view import Failed
from optimizer.charts import accuracy_info
from optimizer.cli.main import main, parser
from optimizer.cli.options import data_of
from optimizer.compression.divergence import is_classifier
from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.measurement import experiment, given, workspace
from optimizer.measurement.workspace import Workspace
from optimizer.progress import quiet
from optimizer.records import DataSpec, Request, Result, digest
from optimizer.search import confirming
from optimizer.search.answers import outcome_of
from optimizer.store import ledger
from optimizer.store.keys import request_key
from optimizer.store.results import Store

HALF = px.Recipe.of(sparsity=0.5, pruning="magnitude")
EIGHT_BITS = px.Recipe.of(weight_bits=8, activation_bits=8, rounding="nearest")


class Net(nn.Module):
    """Ten classes of images of 3 x 16 x 16."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=stride),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path / "home"))
    given._workspaces.clear()
    yield
    given._workspaces.clear()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a winner is timed is tested elsewhere."""
    monkeypatch.setattr(confirming, "MAX_CONFIRMING_SECONDS", 0.1)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(60, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(60) % 10


def measured(model: Any, data: Any, recipe: px.Recipe = HALF, **others: Any) -> px.Result:
    return px.measure(
        model, recipe, data, engine="torch", settings=px.Settings(threads=1), progress=False, **others
    )


# What it does


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
    module = px.compress(net, recipe, calibration=images, progress=False)
    assert not module.training
    weights = [one for name, one in module.named_parameters() if one.ndim > 1]
    zeros = 1 - sum(int(one.count_nonzero()) for one in weights) / sum(one.numel() for one in weights)
    assert zeros >= 0.5
    assert all(len(one.unique()) <= 16 * len(one) for one in weights)
    result = px.measure(net, recipe, (images, labels), calibration=images, engine="torch", progress=False)
    again = px.compress(net, recipe, calibration=images, progress=False)
    with torch.inference_mode():
        right = (again(images).argmax(1) == labels).numpy()
    assert (result.record.accuracy.outcomes == right).all()


@pytest.mark.slow
def test_a_module_of_other_inputs_than_images_is_measured(labels: Tensor) -> None:
    """As the refusal of such an ONNX file promises."""
    torch.manual_seed(0)  # with some weights all that goes is of the second layer
    layers = nn.Conv1d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 10)
    inputs = torch.randn(60, 1, 65, generator=torch.Generator().manual_seed(1))
    result = measured(nn.Sequential(*layers), (inputs, labels))
    assert [layer.pruned > 0 for layer in result.record.inspection.layers] == [True, True]


def test_a_compressed_module_computes_with_float_activations(net: nn.Module, images: Tensor) -> None:
    recipes = (px.Recipe.of(None, 8, activation_bits=bits, rounding="nearest") for bits in (8, 32))
    module, plain = (px.compress(net, one, calibration=images, progress=False) for one in recipes)
    with torch.inference_mode():
        assert torch.equal(module(images), plain(images))
    assert "float32 activations" in str(px.compress.__doc__)


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


def test_a_name_and_a_format_that_contradict_each_other_are_refused(
    net: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    result = measured(net, images)
    for name, format, ends in (
        ("net.safetensors", "onnx", r"\.onnx or \.zip"),
        ("net.onnx", "openvino", r"\.xml or \.zip"),
        ("net.xml", "packed", r"\.safetensors or \.zip"),
    ):
        words = f"{name} has the extension of .*, but {format} was asked for: give a name that ends in {ends}"
        with pytest.raises(InputError, match=words):
            px.save(result, tmp_path / name, format=format)
    assert not [*tmp_path.glob("net*")]


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


def test_what_can_not_be_saved_is_said(net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    result = measured(net, images)
    with pytest.raises(InputError, match=r"unknown format '\.tflite'.*onnx"):
        px.save(result, tmp_path / "net.tflite")
    with pytest.raises(InputError, match="list is no result: give what px.measure gave"):
        px.save([result], tmp_path / "net.zip")  # type: ignore[arg-type]
    with pytest.raises(UnavailableError, match="can't write"):
        px.save(result, tmp_path / "nowhere" / "net.zip")


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


def test_what_a_process_of_its_own_can_not_do_is_said_in_words() -> None:
    with pytest.raises(WorkError, match="^measuring could not be run: "):
        api._measure_apart((lambda: None,), quiet)


@pytest.mark.slow
def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(api).failed == 0


# What it refuses


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.conv(first + second)


class Pair(TwoInputs):
    def forward(self, images: Tensor) -> Any:  # type: ignore[override]
        return self.conv(images), None


class FailsInEvaluation(TwoInputs):
    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        if not self.training:
            raise RuntimeError("only for training")
        return self.conv(images).flatten(1)


def not_finite(images: Tensor) -> nn.Module:
    net = Net()
    with torch.no_grad():
        net.head.weight[0, 0] = torch.nan
    return net


def infinite(name: str, value: float = torch.inf) -> Callable[[Tensor], nn.Module]:
    def made(images: Tensor) -> nn.Module:
        net = Net()
        net.register_buffer("mask", torch.zeros(2))
        net.state_dict()[name][0] = value
        return net

    return made


def with_an_empty_layer(images: Tensor) -> nn.Module:
    net = Net()
    net.spare = nn.Linear(16, 1, bias=False)
    net.spare.weight = nn.Parameter(net.spare.weight[:0])
    return net


REFUSED: list[tuple[Callable[[Tensor], Any], Callable[[Tensor], Any], str]] = [
    (lambda _: Pair(), lambda images: images, "gives tuple, not one tensor of floats"),
    (lambda _: TwoInputs(), lambda images: images, r"needs 2 inputs \(first, second\): wrap it"),
    (lambda _: FailsInEvaluation(), lambda images: images, "fails in evaluation mode.*only for training"),
    (not_finite, lambda images: images, "head.weight has values that are not finite"),
    (infinite("head.bias"), lambda images: images, "head.bias has values that are not finite"),
    (infinite("body.1.running_var"), lambda images: images, "running_var has values that are not finite"),
    (infinite("mask", torch.nan), lambda images: images, "mask has values that are not finite"),
    (lambda _: nn.ReLU(), lambda images: images, "nothing to compress"),
    (
        with_an_empty_layer,
        lambda images: images,
        r"spare.weight is empty \(a weight of shape \[0, 16\]\): leave it",
    ),
    (lambda _: 3, lambda images: images, "int is no model"),
    (lambda _: Net(), lambda images: None, "needs images: give data"),
    (lambda _: Net(), lambda images: TensorDataset(images[:0]), "no example"),
    (lambda _: Net(), lambda images: images[:1], "single image"),
    (lambda _: Net(), lambda images: images[:, :2], "fails in evaluation mode.*The images decide the shape"),
    (lambda _: Net(), lambda images: (images, torch.full((60,), 10)), "labels from 10 to 10 are out of"),
    (lambda _: Net(), lambda images: (images, torch.arange(59)), "don't fit 60 images"),
    (lambda _: Net(), lambda images: (images, torch.rand(60)), "one whole number an image"),
    (lambda _: Net(), lambda images: (images * 255).byte(), "torch.uint8: give them as the model takes them"),
    (lambda _: Net(), lambda images: object(), "object is no set of images"),
    (lambda _: Net(), lambda images: "no such folder", "input shape is not known"),
    (lambda _: "fashion-mlp", lambda images: "no such folder", "no such folder"),
    (lambda _: "no such model", lambda images: images, "unknown model 'no such model'"),
]


@pytest.mark.parametrize(("model", "data", "words"), REFUSED)
def test_bad_input_is_one_error_that_says_what_to_do(
    model: Callable[[Tensor], Any], data: Callable[[Tensor], Any], words: str, images: Tensor
) -> None:
    made = model(images)
    before = copy.deepcopy(made.state_dict()) if isinstance(made, nn.Module) else {}
    with pytest.raises(InputError, match=words):
        measured(made, data(images))
    if isinstance(made, nn.Module):
        assert made.training
        assert all(
            torch.equal(one, made.state_dict()[name]) or one.isnan().any() for name, one in before.items()
        )


def test_images_of_a_wrong_size_are_refused(net: nn.Module, images: Tensor) -> None:
    with pytest.raises(InputError, match=r"images of shape \[3, 16, 16\] don't fit"):
        measured(net, images, input_shape=(3, 20, 20))


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


@pytest.mark.parametrize("shape", [(16, 16), (4, 16, 16), (3, 0, 16)])
def test_a_shape_that_no_file_of_images_takes_is_refused(shape: tuple[int, ...], images: Tensor) -> None:
    for asked in (
        lambda: measured("no.onnx", images, input_shape=shape),
        lambda: px.compare("a.onnx", "b.onnx", input_shape=shape, progress=False),
    ):
        with pytest.raises(InputError, match=r"input shape .* is not allowed: a file takes channels"):
            asked()


def test_an_engine_that_is_not_there_is_refused_before_anything_is_loaded(
    net: nn.Module, images: Tensor
) -> None:
    with pytest.raises(InputError, match="unknown engine 'tvm'"):
        px.measure(net, HALF, images, engine="tvm", progress=False)
    with pytest.raises(InputError, match="unknown engine 'tvm'"):
        px.sweep("no such model", engine="tvm", progress=False)


NO_RECIPE: list[Callable[[Any], object]] = [
    lambda given: px.measure("fashion-mlp", given),
    lambda given: px.measure("fashion-mlp", given, isolated=True),
    lambda given: px.sweep("fashion-mlp", recipe=given),
    lambda given: px.sweep("fashion-mlp", recipe=given, executor="tcp://127.0.0.1:1"),
    lambda given: px.compress("fashion-mlp", given),
]


@pytest.mark.parametrize("asked", NO_RECIPE)
@pytest.mark.parametrize("given", [{"sparsity": 0.5}, {}, torch.zeros(2, 3)], ids=["dict", "empty", "images"])
def test_what_is_no_recipe_is_refused_with_how_to_make_one(
    asked: Callable[[Any], object], given: object
) -> None:
    with pytest.raises(InputError, match=r"recipe is (dict|Tensor), no px.Recipe: give one of px.Recipe.of"):
        asked(given)


TEXT_FOR_A_NUMBER: list[tuple[Callable[[], object], str]] = [
    (lambda: px.sweep("fashion-mlp", "0.5"), "sparsities '0.5' is no number"),  # type: ignore[arg-type]
    (lambda: px.sweep("fashion-mlp", weight_bits=["8"]), "weight bits '8' is no number"),  # type: ignore[list-item]
    (lambda: px.find("fashion-mlp", "1"), "max drop '1' is no number"),  # type: ignore[arg-type]
    (lambda: px.find("fashion-mlp", 1, budget_seconds="60"), "budget seconds '60' is no number"),  # type: ignore[arg-type]
    (lambda: px.Recipe.of(weight_bits="8"), "weight bits '8' is no number"),  # type: ignore[arg-type]
    (lambda: px.Settings(threads="2"), "threads '2' is no number"),  # type: ignore[arg-type]
    (lambda: px.Space(sparsity=("0.5",)), "sparsity '0.5' is no number"),  # type: ignore[arg-type]
    (lambda: px.find("fashion-mlp", 1, engines="tvm"), "unknown engine 'tvm'"),
]


@pytest.mark.parametrize(("asked", "words"), TEXT_FOR_A_NUMBER)
def test_text_in_place_of_a_number_is_refused_at_the_door(asked: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        asked()


def test_a_value_alone_and_numpy_s_numbers_are_taken_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "each", lambda requests, measure: [Failed(one, "") for one in requests])

    def asked(*amounts: Any) -> list[str]:
        return [digest(one.request) for one in px.sweep("fashion-mlp", *amounts, progress=False).failed]

    assert asked(0.5, 8) == asked([0.5], [8]) == asked(np.array([0.5], "f4"), np.array([8]))
    assert digest(px.Recipe.of(np.float64(0.5), np.int64(8))) == digest(px.Recipe.of(0.5, 8))
    assert px.Space("openvino", threads=4) == px.Space(("openvino",), threads=(4,))


def test_an_operation_that_an_engine_lacks_is_said_and_found_out_once(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(768, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(torch.linalg.matrix_exp(images[:, 0]).flatten(1).repeat(1, 3))

    prepared, prepare = list[str](), workspace.prepare

    def counted(engine: str, *others: Any) -> Any:
        prepared.append(engine)
        return prepare(engine, *others)

    monkeypatch.setattr(workspace, "prepare", counted)
    plain = {"pruning": ("none",), "activation_bits": (32,), "rounding": ("nearest",)}
    space = px.Space(("openvino", "torch"), weight_bits=(32, 8, 4), **plain)
    asked = {"data": images, "space": space, "search": "grid", "progress": False}
    found = px.find(Odd(), max_size_mb=1, budget_seconds=600, **asked)
    assert len(found.results) == len(found.results.failed) == 3
    assert all(re.search(r"Odd|OpenVINO|convert", failed.message) for failed in found.results.failed)
    assert prepared == ["openvino", "torch"]


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
        px.measure(first, data=torch.zeros(4, 3, 8, 8), progress=False)


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


def test_a_task_that_does_not_fit_is_refused(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    for model, data, task, words in (
        (net, images, "regression", "unknown task 'regression'.*classification, fidelity"),
        (net, (images, labels), "fidelity", "is no classifier.*leave the labels out"),
        (
            nn.Conv2d(3, 2, 3),
            (images, labels),
            None,
            "is no classifier.*leave the labels out.*single logit z",
        ),
        (
            nn.Conv2d(3, 2, 3),
            images,
            "classification",
            r"no logits \[N, K\].*leave task='classification' out",
        ),
        ("fashion-mlp", None, "fidelity", "leave task='fidelity' out"),
    ):
        with pytest.raises(InputError, match=words):
            px.measure(model, HALF, data, task=task, engine="torch", progress=False)  # type: ignore[arg-type]
