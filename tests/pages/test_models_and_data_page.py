"""Models and data, without a browser."""

import os
from pathlib import Path

import pytest
from page_runs import words
from PIL import Image
from started import Started
from streamlit.testing.v1 import AppTest

from optimizer.records import Request
from optimizer.system.downloads import DEFAULT_DOWNLOADS, DOWNLOADS_VARIABLE
from pages import tasks


@pytest.mark.slow
def test_models_and_data_lists_what_there_is_and_reads_the_images(stored: AppTest, started: Started) -> None:
    page = stored.switch_page("pages/models_and_data.py").run()
    started.do("images")
    assert "10,000" in words(page.run())
    table = page.dataframe[0].value.set_index("model")
    assert table.loc["resnet18", "download"] == pytest.approx(46.8, abs=0.1), "MB"
    assert table.loc["resnet18", "weights"] == pytest.approx(11.69, abs=0.01), "millions"
    assert table.loc["fashion-resnet", "top-1"] == pytest.approx(93.8, abs=0.1), "percent"


def test_folders_that_are_no_classes_are_named(
    stored: AppTest, started: Started, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder, names in (("strangers", ("Comet", "Moon")), ("mixed", ("Bag", "Moon"))):
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
            for grey in range(60, 65):
                Image.new("L", (28, 28), grey).save(tmp_path / folder / name / f"{grey}.png")
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", str(tmp_path))
    stored.query_params["images"] = "strangers"
    page = stored.switch_page("pages/models_and_data.py").run()
    started.do("images")
    assert "Comet, Moon" in words(page.run())
    page.sidebar.selectbox(key="images").set_value(str(tmp_path / "mixed")).run()
    started.do("images")
    assert "1 class mapped, 1 not" in [one.label for one in page.run().expander]


def test_what_may_not_be_downloaded_is_said_instead(stored: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    stored.query_params["model"] = "squeezenet1_1"
    stored.run()
    assert os.environ[DOWNLOADS_VARIABLE] == DEFAULT_DOWNLOADS  # its workers inherit it
    for allowed, disabled in (("5GB", False), ("0", True)):
        monkeypatch.setenv(DOWNLOADS_VARIABLE, allowed)
        page = stored.switch_page("pages/models_and_data.py").run()
        (button,) = [button for button in page.button if button.label.startswith("Download")]
        assert button.disabled == disabled
        assert ("no weights may be downloaded to this machine" in words(page)) == disabled


def test_images_that_can_not_be_read_are_said_once(
    stored: AppTest, started: Started, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "damaged" / "Bag").mkdir(parents=True)
    (tmp_path / "damaged" / "Bag" / "one.png").write_bytes(b"no image")
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", str(tmp_path))
    stored.query_params["images"] = "damaged"
    page = stored.switch_page("pages/models_and_data.py").run()
    (asked,) = (job for job in started.jobs() if job.task == "measure")
    assert isinstance(asked.request, Request)
    tasks.store().put_failure(asked.key, asked.request, "no image can be read")
    tasks.store().put_failure("0" * 20, Request("fashion-mlp"), "another")
    started.do("images")
    page.run()
    assert not page.exception
    assert [button.label for button in page.button].count("Try again") == 2, "of the images, and of another"
    assert len(page.error) == 1
    assert "Uncompressed" not in words(page)
    assert "another" in [one.value for one in page.text]
