"""What a model file says of its preprocessing and classes, believed no more than what a user types."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from hostile_graphs import SIDES, classifier, graph, node, save
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_added_models import in_this_process

from optimizer.cli.main import main
from optimizer.model import catalogue
from optimizer.model.added import declared, files, onnx_reading
from optimizer.model.added.cards import Choices
from optimizer.model.cifar_resnet import CifarResNet
from optimizer.model.preprocessing import CHANNELS, IMAGENET, INTERPOLATIONS, RANGES, Preprocessing

HALF = (0.5, 0.5, 0.5)
TIMM = {"input_size": [3, 160, 160], "crop_pct": 0.9, "interpolation": "bicubic", "mean": HALF, "std": HALF}
HUGGING_FACE = {
    **{"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}, "do_center_crop": True},
    **{"resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "image_mean": HALF, "image_std": HALF},
}


def read(said: dict[str, Any], fixed_size: bool = False) -> declared.Declared:
    return declared.read(said, IMAGENET, fixed_size)


SIDE = st.integers(1, 512)
MEAN, DEVIATION = st.floats(-300, 300), st.floats(0.01, 300)


@st.composite
def preprocessings(draw: st.DrawFn) -> Preprocessing:
    channels = draw(st.sampled_from(["grey", "RGB", "BGR"]))
    mean, std = (
        tuple(draw(st.lists(each, min_size=(count := CHANNELS[channels]), max_size=count)))
        for each in (MEAN, DEVIATION)
    )
    return Preprocessing(
        (draw(SIDE), draw(SIDE)),
        draw(st.none() | SIDE),
        channels,
        draw(st.sampled_from(RANGES)),
        mean,
        std,
        draw(st.sampled_from([*INTERPOLATIONS])),
    )


@given(preprocessings(), st.lists(st.sampled_from(["coat", "dress, red", "éclair"]), unique=True))
def test_what_an_exported_file_says_is_read_as_the_same_again(one: Preprocessing, names: list[str]) -> None:
    usual = IMAGENET.with_channels("grey" if one.channels == "grey" else "RGB")
    for fixed in (False, True):
        found = declared.read(
            declared.plain(declared.said(one, tuple(names))), replace(usual, size=one.size), fixed
        )
        assert found == declared.Declared(one, tuple(names))


BICUBIC = Preprocessing((160, 160), 177, mean=HALF, std=HALF, interpolation="bicubic")
USUAL = Preprocessing((224, 224), 256)
CAFFE = {"mean": [103.53, 116.28, 123.675], "std": [1, 1, 1], "channels": "bgr"}
OFFSET = {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}
BYTES = {"Image.BitmapPixelFormat": "Bgr8", "Image.NominalPixelRange": "NominalRange_0_255"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (TIMM, BICUBIC),
        ({"pretrained_cfg": TIMM}, BICUBIC),
        (TIMM | {"crop_pct": 1.0, "crop_mode": "squash"}, replace(BICUBIC, resize=None)),
        (HUGGING_FACE, replace(BICUBIC, size=(64, 64), resize=72)),
        ({"size": 32, "image_mean": HALF, "image_std": HALF}, Preprocessing((32, 32), mean=HALF, std=HALF)),
        (CAFFE, replace(USUAL, channels="BGR", range=255, mean=(103.53, 116.28, 123.675))),
        ({"author": "Ultralytics", "imgsz": [160, 96], "stride": 32}, Preprocessing((160, 96))),
        (OFFSET, replace(USUAL, mean=HALF, std=HALF)),
        (BYTES, replace(USUAL, channels="BGR", range=255)),
        ({"Image.NominalPixelRange": "Normalized_1_1"}, replace(USUAL, mean=HALF, std=HALF)),
    ],
)
def test_what_the_field_writes_is_understood(said: dict[str, Any], expected: Preprocessing) -> None:
    found = read(said)
    assert not found.left_out
    assert found.preprocessing is not None
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))
    assert found.preprocessing.size == expected.size
    assert found.preprocessing.channels == expected.channels
    assert np.allclose(found.preprocessing(image), expected(image), atol=1e-5)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"id2label": {"1": "dog", "0": "cat"}}, ("cat", "dog")),
        ({"class_to_idx": {"dog": 1, "cat": 0}}, ("cat", "dog")),
        ({"classes": ["cat ", "dog"]}, ("cat", "dog")),
        ({"names": {0: "cat", 1: "dog"}}, ("cat", "dog")),
        ({"labels": "cat\ndog\n"}, ("cat", "dog")),
        ({"labels": "cat"}, ()),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, ()),
    ],
)
def test_names_of_classes_in_their_order(said: dict[str, Any], names: tuple[str, ...]) -> None:
    assert read(said) == declared.Declared(None, names)


@pytest.mark.parametrize(
    "said",
    [
        {"mean": [float("nan")] * 3},
        {"std": [0, 0, 0]},
        {"std": "wide"},
        {"mean": [0.5] * 4},
        {"mean": {"a": 1}},
        {"rescale_factor": 0},
        {"rescale_factor": float("inf")},
        {"input_size": [3, 10**9, 10**9]},
        {"size": {"height": -1, "width": 5}},
        {"size": {"shortest_edge": 1e300}},
        {"crop_pct": 1e-300},
        {"crop_pct": float("nan")},
        {"crop_mode": "border"},
        {"Image.BitmapPixelFormat": "Gray8"},
        {"Image.NominalPixelRange": "NominalRange_16_235"},
        {"classes": ["cat", "dog\x07"]},
        {"classes": ["cat", "\u202egod"]},
        {"classes": ["cat", "d" * 1000]},
        {"classes": ["cat", 5]},
        {"classes": ["x"] * 60_000},
        {"id2label": {"0": "cat", "7": "dog"}},
    ],
)
def test_what_can_t_be_is_left_out_and_said(said: dict[str, Any]) -> None:
    found = read(said)
    assert (found.preprocessing, found.class_names) == (None, ())
    (words,) = found.left_out
    assert len(words) < 200
    assert words.isprintable()


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
KEYS = (
    *("mean", "image_std", "size", "crop_size", "crop_pct", "crop_mode", "resample", "input_size", "imgsz"),
    *("do_rescale", "rescale_factor", "channels", "pretrained_cfg", *declared.CLASSES, *declared.NUMBERED),
    *(
        "Image.BitmapPixelFormat",
        "Image.NominalPixelRange",
        "do_center_crop",
        "rescale_offset",
        "interpolation",
    ),
)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(KEYS), PLAIN, max_size=6), st.booleans())
def test_whatever_is_said_gives_something_usable_or_nothing(said: dict[str, Any], fixed: bool) -> None:
    found = read(said, fixed)
    assert all(name.isprintable() for name in found.class_names)
    assert found.preprocessing is None or not fixed or found.preprocessing.size == IMAGENET.size


def test_text_is_read_as_json_or_as_a_literal_and_never_run() -> None:
    said = {
        "a": "[1, 2]",
        "b": "{0: 'cat'}",
        "c": "__import__('os').getcwd()",
        "d": "(" * 100_000,
        "e": "b'x'",
    }
    assert declared.plain(said) == said | {"a": [1, 2], "b": {0: "cat"}}
    assert declared.plain({"a": "x" * (declared.MAX_SAID + 1)}) == {}


@pytest.mark.slow
def test_an_onnx_file_brings_its_preprocessing_and_classes(tmp_path: Path) -> None:
    model = classifier()
    onnx.helper.set_model_props(
        model, {"names": "{0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e'}", "mean": "[0, 0, 0]"}
    )
    model.doc_string = json.dumps({"std": [0.25, 0.25, 0.25]})
    found = onnx_reading.read_onnx(
        save(model, tmp_path / "x.onnx"), tmp_path / "y.onnx", False, lambda more: None
    )
    assert json.loads(json.dumps(found["metadata"]))["std"] == [0.25] * 3
    about = files.examine(tmp_path / "x.onnx")
    assert about.preprocessing_of == "the file says"
    loaded = files.opened(about, Choices())
    assert loaded.classes == ("a", "b", "c", "d", "e")
    black = loaded.preprocess(Image.new("RGB", SIDES[1:]))
    white = loaded.preprocess(Image.new("RGB", SIDES[1:], "white"))
    assert (float(black.max()), float(white.min())) == (0, 4)


def test_a_checkpoint_brings_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process(monkeypatch)
    weights = CifarResNet(20, classes=2).state_dict()
    said = {"mean": [0.1, 0.2, 0.3], "classes": ["cat", "dog"]}
    torch.save({"state_dict": weights, "optimizer": {"state": weights}, **said}, tmp_path / "a.pt")
    metadata = {name: json.dumps(value) for name, value in said.items()}
    safetensors.torch.save_file(weights, tmp_path / "a.safetensors", metadata)
    for file in ("a.pt", "a.safetensors"):
        about = files.examine(tmp_path / file, "cifar-resnet20")
        assert about.preprocessing.mean == (0.1, 0.2, 0.3)
        assert dict(about.facts)["class names"] == "2 in the file: cat, dog"
        assert files.opened(about, Choices()).classes == ("cat", "dog")
    torch.save({"state_dict": weights, "classes": ["one"]}, tmp_path / "b.pt")
    assert files.opened(files.examine(tmp_path / "b.pt", "cifar-resnet20"), Choices()).classes == ()


# A wrong choice


@pytest.mark.slow
def test_a_wrong_preprocessing_is_told_from_a_few_labelled_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network that says which of red and blue is stronger, above the middle of 0 to 255."""
    chosen = {"w": np.array([[[[1.0]], [[0.0]], [[0.0]]], [[[0.0]], [[0.0]], [[1.0]]]], np.float32)}
    nodes = [node("Conv", "x w", "a"), node("GlobalAveragePool", "a", "b"), node("Flatten", "b")]
    model = save(graph(nodes, chosen), tmp_path / "colour.onnx")
    random = np.random.default_rng(0)
    for name, place in (("blue", 2), ("red", 0)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(30):
            pixels = random.integers(0, 100, (16, 16, 3), np.uint8)
            pixels[..., place] += 100
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.png")
    command = [
        "add",
        "--onnx",
        str(model),
        "--classes",
        str(tmp_path / "set"),
        "--data",
        str(tmp_path / "set"),
    ]
    # Alphabetical: the first output is "blue", so that this network was trained on BGR.
    assert main([*command, "wrong"]) == 0
    said = capsys.readouterr().out
    assert "0 of 48 labelled images are answered rightly with this preprocessing, 48 with" in said
    assert "BGR" in said
    assert "100 points more. The one that is chosen is probably wrong" in said
    assert main([*command, "right", "--channels", "BGR"]) == 0
    said = capsys.readouterr().out
    assert "48 of 48 labelled images are answered rightly with this preprocessing" in said
    assert "probably wrong" not in said
    assert main([*command[:-1], str(tmp_path / "nowhere"), "untried"]) == 0
    assert "no folder there has a class of this model" in capsys.readouterr().out
    assert catalogue.load("right").classes == ("blue", "red")
