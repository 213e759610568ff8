"""The sidebar, which every page has, without a browser."""

from dataclasses import replace
from pathlib import Path

import pytest
from page_runs import ROOT, words
from PIL import Image
from streamlit.testing.v1 import AppTest

from optimizer.methods.engines import ENGINES
from pages import sidebar

PAGES = sorted(path.stem for path in (ROOT / "pages").glob("*.py") if "(Not a page.)" not in path.read_text())


def test_every_engine_is_offered_or_told_why_not(stored: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    page = stored.run()
    engine = page.selectbox(key="engine")
    found = sidebar.catalogue()
    assert engine.options == [ENGINES[name].label for name, problem in found.engines.items() if not problem]
    assert set(ENGINES) == set(found.engines)
    assert ENGINES["openvino"].help in words(page)
    assert ENGINES["sparse"].help in engine.help

    engines = found.engines | {"compile": "there is no C++ compiler"}
    monkeypatch.setattr(
        sidebar, "catalogue", lambda: replace(found, engines=engines, lacking={"sparse": "none was built"})
    )
    page.selectbox(key="engine").set_value("sparse").run()
    assert "torch.compile" not in page.selectbox(key="engine").options
    assert "Not here: torch.compile, since there is no C++ compiler." in words(page)
    assert "torch's CSR takes their place: none was built" in words(page)


def test_a_folder_that_is_not_open_is_refused_in_words(stored: AppTest) -> None:
    stored.query_params["images"] = "/etc"
    page = stored.run()
    assert not page.exception
    assert "outside the folders that are allowed" in words(page)


def test_a_model_without_images_says_what_to_do(stored: AppTest) -> None:
    stored.query_params["model"] = "resnet18"
    page = stored.run()
    assert not page.exception
    assert "Models and data" in words(page) or "--images" in words(page)


@pytest.mark.parametrize("name", PAGES)
def test_every_page_opens_with_images_of_ones_own(
    stored: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    for label in ("Bag", "Coat"):
        (tmp_path / "clothes" / label).mkdir(parents=True)
        for number in range(4):
            image = Image.new("L", (28, 28), 60 * number + 7 * len(label))  # no two alike
            image.save(tmp_path / "clothes" / label / f"{number}.png")
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", str(tmp_path))
    stored.query_params |= {"model": "fashion-mlp", "images": "clothes"}
    page = stored.switch_page(f"pages/{name}.py").run()
    assert not page.exception
    assert not page.error
    assert page.selectbox(key="images").value == str(tmp_path / "clothes")


def test_the_images_follow_the_model(
    stored: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "photographs"
    (folder / "n01440764").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "n01440764" / "one.png")
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", str(tmp_path))
    page = stored.run()
    chosen = [page.selectbox(key="images").value]
    for model in ("resnet18", "fashion-mlp"):
        page.selectbox(key="model").set_value(model).run()
        chosen.append(page.selectbox(key="images").value)
    assert chosen == [sidebar.BUNDLED, str(folder), sidebar.BUNDLED]
    page.selectbox(key="images").set_value(str(folder)).run()
    page.selectbox(key="model").set_value("fashion-resnet").run()
    assert page.selectbox(key="images").value == str(folder), "both models see any image: the choice stays"
