"""ONNX files as people have them, from adding them to what is measured of them."""

import io
import re
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hostile_graphs import SIDES, classifier, graph, node, save
from PIL import Image
from test_onnx_files import weights

from optimizer import work
from optimizer.cli.main import main
from optimizer.engine import onnx_export
from optimizer.measurement.given import open_given
from optimizer.methods.artifacts import ARTIFACTS
from optimizer.model import catalogue
from optimizer.model.added import cards, files, onnx_check
from optimizer.model.layers import walk
from optimizer.progress import quiet
from optimizer.recipe import Recipe
from optimizer.records import Request

REAL = Path(__file__).resolve().parents[3] / "shared/data/models"


@pytest.mark.slow
def test_an_added_network_is_measured_and_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(classifier(), tmp_path / "small.onnx")
    assert main(["add", "small", "--onnx", str(path), "--classes", str(names_of_five(tmp_path))]) == 0
    assert "ONNX Runtime's to" in capsys.readouterr().out
    loaded = catalogue.load("small")
    assert loaded.card.classes == 5
    assert loaded.classes == ("a", "b", "c", "d", "e")
    images = torch.rand(2, *SIDES, generator=torch.Generator().manual_seed(0))
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": images.numpy()})[0]
    assert np.allclose(loaded.module(images), expected, atol=1e-6 * np.abs(expected).max())
    assert main(["add", "small2", "--onnx", str(path), "--architecture", "resnet18"]) == 2
    assert main(["remove", "small"]) == 0


@pytest.fixture(scope="module")
def exported_once() -> Iterator[None]:
    """Of one network for all recipes: it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "export", cache(onnx_export.export))
        yield


def names_of_five(folder: Path) -> Path:
    path = folder / "names.txt"
    path.write_text("a\nb\nc\nd\ne\n")
    return path


@pytest.mark.slow
def test_at_an_input_shape_that_was_given_images_fill_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [node("Conv", "x w", "a"), node("GlobalAveragePool", "a", "b"), node("Flatten", "b")]
    path = save(graph(nodes, {"w": weights(5, 3, 3, 3)}, sides=(1, 3, "h", "w")), tmp_path / "open.onnx")
    assert main(["add", "open", "--onnx", str(path), "--input-shape", "3x320x320"]) == 0
    assert "the shorter side to 366, the middle 320 x 320" in capsys.readouterr().out
    workspace, _ = open_given(path, None, None, (3, 320, 320), quiet, needs_data=False)
    for loaded in (catalogue.load("open"), workspace.model.loaded):
        assert loaded.preprocess(Image.new("RGB", (500, 400), "white")).min() > 2


@pytest.mark.slow
@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("bits", [32, 8])
def test_what_is_exported_as_onnx_comes_back_with_the_same_predictions(bits: int, tmp_path: Path) -> None:
    """A bundled network, and the same with 8-bit weights and activations, on all of its test images."""
    recipe = Recipe.of(weight_bits=bits, activation_bits=bits) if bits < 32 else Recipe()
    content = work.run("artifact", ("onnx", Request("fashion-mobilenet", recipe)), quiet)
    assert isinstance(content, bytes)
    path = unzipped(content, tmp_path)
    about = files.examine(path)
    loaded, model = files.opened(about, cards.Choices()), catalogue.load("fashion-mobilenet")
    assert about.preprocessing == model.preprocessing
    assert about.class_names == loaded.classes == model.classes
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8))
    grey = loaded.preprocess(picture.convert("L"))
    torch.testing.assert_close(grey, model.preprocess(picture.convert("L")), rtol=0, atol=1e-5)
    images = torch.rand(200, 1, 28, 28)
    session = onnxruntime.InferenceSession(str(path))
    expected = session.run(None, {"images": images.numpy()})[0]
    with torch.inference_mode():
        answers = loaded.module(images).numpy()
    assert np.array_equal(answers.argmax(1), expected.argmax(1))
    if bits == 32:  # in 8 bits ONNX Runtime rounds between its own kernels, so that values differ by a step
        assert onnx_check.difference(answers, expected) < onnx_check.MAX_DIFFERENCE
    assert len(list(walk(loaded.module))) >= 15
    assert ARTIFACTS["onnx"].extension == path.suffix


def unzipped(content: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return Path(archive.extract("model.onnx", folder))


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}")
@pytest.mark.parametrize("name", ["fastestdet", "ppocr-v4-det"])
def test_files_as_people_have_them(name: str) -> None:
    assert main(["add", name, "--onnx", str(REAL / f"{name}.onnx")]) == 0
    loaded = catalogue.load(name)
    assert loaded.card.classes == 0
    assert loaded.module(torch.zeros(2, *loaded.card.input_shape)).shape[0] == 2


@pytest.mark.slow
def test_a_network_that_is_no_classifier_is_measured_by_how_far_its_outputs_move(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class folders are no labels to it, and no number a class is made up."""
    model = graph([node("Conv", "x w", pads=[1, 1, 1, 1])], {"w": weights(4, 3, 3, 3)})
    assert main(["add", "edges", "--onnx", str(save(model, tmp_path / "edges.onnx"))]) == 0
    random = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(6):
            pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.png")
    capsys.readouterr()
    command = ["measure", "edges", "--data", str(tmp_path / "set"), "--weight-bits", "4", "--quick"]
    assert main([*command, "--rounding", "nearest"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"SQNR +\d+\.\d dB$", said, re.MULTILINE), "of 12 images, with no interval"
    assert "(an interval takes 20 images)" in said
    assert re.search(r"cosine similarity +0\.9", said)
    assert "accuracy" not in said
