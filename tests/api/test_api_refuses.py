"""What the public API refuses, and in which words."""

import ast
import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from own_net import HALF, Net, measured
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import optimizer as px
from optimizer import api
from optimizer.errors import InputError, UnavailableError
from optimizer.measurement import workspace
from optimizer.progress import quiet


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


def test_what_can_not_be_saved_is_said(net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    result = measured(net, images)
    with pytest.raises(InputError, match=r"unknown format '\.tflite'.*onnx"):
        px.save(result, tmp_path / "net.tflite")
    with pytest.raises(InputError, match="list is no result: give what px.measure gave"):
        px.save([result], tmp_path / "net.zip")  # type: ignore[arg-type]
    with pytest.raises(UnavailableError, match="can't write"):
        px.save(result, tmp_path / "nowhere" / "net.zip")


def test_what_a_process_of_its_own_can_not_do_is_said_in_words() -> None:
    with pytest.raises(InputError, match="^what was given can't be brought to a process of its own .*lambda"):
        api._measure_apart((lambda: None,), quiet)


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
    (infinite("head.weight", torch.nan), lambda images: images, "head.weight has values that are not finite"),
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
    (lambda _: Net(), lambda images: "no such folder", "no such folder"),
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


def test_a_module_is_refused_without_the_images_that_it_needs(net: nn.Module, images: Tensor) -> None:
    """Calibration images alone are not what it is scored on; to be compressed, they are what it needs."""
    with pytest.raises(InputError, match="a model of your own needs images: give data$"):
        measured(net, None, calibration=images)
    compensated = px.Recipe.of(sparsity=0.5, pruning="compensated")
    with pytest.raises(InputError, match="a model of your own needs images: give calibration$"):
        px.compress(net, compensated, input_shape=(3, 16, 16), progress=False)


def test_a_missing_folder_is_said_before_what_its_images_would_tell(net: nn.Module, tmp_path: Path) -> None:
    photos, missing = tmp_path / "photos", tmp_path / "missing"
    photos.mkdir()
    for number in range(4):
        Image.new("RGB", (8 + number, 8)).save(photos / f"{number}.png")
    for data, calibration in ((missing, None), (photos, missing)):
        with pytest.raises(InputError, match=f"'{missing}' does not exist"):
            measured(net, data, calibration=calibration)
    compensated = px.Recipe.of(sparsity=0.5, pruning="compensated")
    with pytest.raises(InputError, match=f"'{missing}' does not exist"):
        px.compress(net, compensated, calibration=missing, progress=False)
    with pytest.raises(InputError, match="the model's input shape is not known: give input_shape"):
        measured(net, photos)


def test_images_are_not_evaluated_and_calibrated_with(net: nn.Module, images: Tensor) -> None:
    with pytest.raises(InputError, match="every calibration image is also evaluated: give others"):
        measured(net, images, calibration=images)


def test_images_of_a_wrong_size_are_refused(net: nn.Module, images: Tensor) -> None:
    with pytest.raises(InputError, match=r"images of shape \[3, 16, 16\] don't fit"):
        measured(net, images, input_shape=(3, 20, 20))


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


class Wings(nn.Flatten):
    """Of the script that runs, as far as pickle is told."""


def test_what_another_process_can_t_find_is_refused_before_one_is_started(
    monkeypatch: pytest.MonkeyPatch, images: Tensor
) -> None:
    monkeypatch.setattr(api, "Pool", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr(Wings, "__module__", "__main__")

    def double(values: Tensor) -> Tensor:
        return 2 * values

    with_function = Net()
    with_function.double = double
    for model, data, words in (
        (nn.Sequential(Wings()), images, "Wings is defined in the script or notebook that runs"),
        ("fashion-mlp", [Wings()], "Wings is defined in the script or notebook that runs"),
        (with_function, images, r"can't be brought to a process of its own \(.*double"),
        (
            "fashion-mlp",
            (one for one in images),
            r"can't be brought .* \(TypeError: .*'generator'",
        ),
    ):
        with pytest.raises(InputError, match=f"{words}.*leave isolated=True out"):
            px.measure(model, data=data, isolated=True, progress=False)  # type: ignore[arg-type]


def test_no_error_of_python_speaks_of_an_option_of_the_command_line() -> None:
    """But for a whole command that is to be typed, and for the gate, which only the command line has."""
    package = Path(px.__file__).parent
    gate = {package / "analysis" / "gate.py", package / "analysis" / "earlier.py"}
    for file in sorted({*package.rglob("*.py")} - {*package.glob("cli/*")} - gate):
        for error in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(error, ast.Call) and getattr(error.func, "id", "").endswith("Error"):
                parts = [one.value for one in ast.walk(error) if isinstance(one, ast.Constant)]
                words = "".join(one for one in parts if isinstance(one, str))
                assert "paretoscope " in words or not re.search(r"(^|[ (`])--[a-z]", words), (file, words)
