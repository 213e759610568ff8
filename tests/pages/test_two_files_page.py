"""Two files on Compare, without a browser."""

import pytest
from hostile_graphs import SIDES, classifier
from image_folders import Fill
from page_runs import press, words
from started import Started, go_to, open_page
from streamlit.testing.v1 import AppTest

from optimizer.model.added import cards
from pages import two_files

CONTENT = classifier(sides=(1, *SIDES)).SerializeToString()


@pytest.fixture
def page(stored: AppTest) -> AppTest:
    stored.query_params["of"] = "Two files"
    return go_to(stored, "compare")


def give(page: AppTest, side: str, name: str, content: bytes) -> None:
    uploader = next(one for one in page.file_uploader if one.label == f"File {side}")
    uploader.set_value([(name, content, "application/octet-stream")])


@pytest.mark.slow
def test_two_uploads_are_compared_and_a_link_shows_it_again(page: AppTest, started: Started) -> None:
    assert "Give two" in words(page)
    give(page, "A", "old.onnx", CONTENT)
    give(page, "B", "new.onnx", CONTENT)
    page.run()
    assert not page.exception
    press(page, "Compare")
    assert "compare" in started.tasks()
    started.do("compare")
    page.run()
    assert not page.exception
    assert not page.error
    assert "new.onnx " in words(page)
    assert "gives the outputs of old.onnx exactly on 64 made-up images" in words(page)
    assert "made-up images (noise, and smooth shapes), by OpenVINO." in words(page)
    assert list(page.dataframe[0].value.columns)[1:3] == ["A: old.onnx", "B: new.onnx"]
    assert len(page.get("plotly_chart")) == 1
    assert page.query_params["files"]
    again = open_page("compare", {"of": "Two files", "files": page.query_params["files"]})
    assert "gives the outputs of old.onnx exactly" in words(again)
    press(page, "Compare")
    assert "gives the outputs" not in words(page), "an earlier one, which may be of other files"


@pytest.mark.slow
def test_what_is_refused_is_said(page: AppTest, started: Started) -> None:
    give(page, "A", "old.onnx", b"no network")
    page.selectbox(key="side B").set_value("fashion-mlp")
    page.run()
    press(page, "Compare")
    started.do("compare")
    page.run()
    assert not page.exception
    assert "old.onnx is refused" in words(page)
    assert all(path.suffix == ".onnx" for path in cards.folder().iterdir()), "the upload alone is kept"


@pytest.mark.parametrize("calibration", ["", "/nowhere"])
def test_no_others_take_the_place_of_images_that_are_refused(
    started: Started, fill: Fill, monkeypatch: pytest.MonkeyPatch, calibration: str
) -> None:
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", str(fill("photographs/Bag/one.png")))
    link = {"of": "Two files", "images": "photographs", "calibration": calibration}
    page = open_page("compare", link)
    for side in ("A", "B"):
        page.selectbox(key=f"side {side}").set_value("fashion-mlp")
    offered = "Compare" in [button.label for button in page.run().button]
    assert (offered, "/nowhere" in words(page)) == (not calibration, bool(calibration))


def test_no_model_can_be_called_what_stands_for_none() -> None:
    assert not any(map(cards.NAME.fullmatch, (two_files.AS_USUAL, two_files.FILE)))


def test_several_networks_for_one_side_are_refused(page: AppTest) -> None:
    uploader = next(one for one in page.file_uploader if one.label == "File A")
    uploader.set_value([(name, b"x", "application/octet-stream") for name in ("a.onnx", "b.zip")])
    page.run()
    assert not page.exception
    assert "give one network" in words(page)


@pytest.mark.parametrize("name", ["weights.safetensors", "WEIGHTS.SafeTensors"])
def test_weights_without_a_network_are_refused_by_what_to_give_instead(page: AppTest, name: str) -> None:
    give(page, "A", name, b"x")
    page.selectbox(key="side B").set_value("fashion-mlp")
    page.run()
    assert not page.exception
    (said,) = page.error
    assert f"{name} has weights and no network: give its zip, or ONNX" in said.value
    assert "Compare" not in [button.label for button in page.button]
    assert not list(cards.folder().iterdir()), "nothing of it is kept"


@pytest.mark.parametrize(
    "written", ["²x3x3", "0x0x0", "3x0x8", "3x-8x8", "3x8", "axbxc", f"3x3x{'9' * 5_000}"]
)
def test_an_input_shape_that_is_none_is_refused_in_words(page: AppTest, written: str) -> None:
    for side in ("A", "B"):
        page.selectbox(key=f"side {side}").set_value("fashion-mlp")
    page.run()
    (shape,) = (one for one in page.text_input if one.label == "Input shape")
    shape.set_value(written).run()
    assert not page.exception
    assert "is not allowed: a file takes channels (1 or 3), height and width, such as 3x224x224" in words(
        page
    )
    shape.set_value(" 1 X 28x28").run()
    assert "a file takes channels" not in words(page)
