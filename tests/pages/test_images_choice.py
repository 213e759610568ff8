"""The choice of images: what is offered, and what stays of the sidebar when they can't be used."""

import io
import itertools
import os
import shutil
from pathlib import Path

import pytest
from page_runs import words
from PIL import Image
from started import PAGES, Started, open_page
from streamlit.testing.v1 import AppTest

from optimizer.data import selection, uploaded
from optimizer.system import recent
from pages import sidebar


def opened(name: str, images: Path | str) -> AppTest:
    return open_page(name, {"model": "fashion-mlp", "images": str(images)})


def remarks(page: AppTest) -> list[str]:
    return [caption.help for caption in page.sidebar.caption if "can't be used" in caption.value]


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("/etc", "outside the folders that are allowed"),
        ("gone", "does not exist"),
        ("texts", "holds no image"),
    ],
)
def test_the_other_controls_stay_where_images_cannot_be_used(
    started: Started, clothes: Path, name: str, images: str, words: str
) -> None:
    (clothes.parent / "texts").mkdir()
    (clothes.parent / "texts" / "a.txt").write_text("not an image")
    page = opened(name, clothes.parent / images)
    (remark,) = remarks(page)
    assert words in remark.replace("\\", "")
    assert [error.value for error in page.error] == ([] if name in ("compare", "complexity") else [remark])
    for key in ("model", "images", "engine", "timed_threads"):
        assert page.selectbox(key=key).options
    page.selectbox(key="images").set_value(sidebar.BUNDLED).run()
    assert not page.error
    assert not remarks(page)


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ({"images": "clothes", "class_index": "/etc/passwd", "limit": "-4"}, "leads outside the folders"),
        ({"images": "/etc"}, "outside the folders that are allowed"),
        ({"images": "nothing"}, "holds nothing"),
        ({"images": "texts"}, "no image, only 1 other file"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_words(
    started: Started, clothes: Path, link: dict[str, str], told: str
) -> None:
    for folder in ("nothing", "texts"):
        (clothes.parent / folder).mkdir()
    (clothes.parent / "texts" / "a.txt").write_text("not an image")
    assert told in words(
        open_page("models_and_data", link | {"images": str(clothes.parent / link["images"])})
    )


def test_images_that_vanish_are_told_at_the_next_run(
    started: Started, clothes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = opened("explore", "clothes")
    assert not remarks(page)
    shutil.rmtree(clothes)
    monkeypatch.setattr(recent, "monotonic", itertools.count(1e9, 6).__next__)
    assert remarks(page.run())
    assert page.slider(key="sparsity").value == 0


def test_images_that_changed_are_read_again(
    started: Started, clothes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened("models_and_data", clothes)
    shutil.copy(clothes / "Bag" / "one.png", clothes / "Bag" / "two.png")
    monkeypatch.setattr(recent, "monotonic", itertools.count(1e9, 6).__next__)
    opened("models_and_data", clothes)
    assert started.tasks().count("images") == 2


@pytest.mark.parametrize("limit", ["1e309", "-1e309", "nan", "words", "0", "1000000"])
def test_a_limit_that_can_not_be_is_left_out(started: Started, clothes: Path, limit: str) -> None:
    page = open_page("explore", {"model": "fashion-mlp", "images": str(clothes), "limit": limit})
    assert page.number_input(key="limit").value == 1_000
    assert "limit" not in page.query_params


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_images_are_looked_at_once_a_run(
    started: Started, clothes: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also where each question comes when the answer to the one before has become too old."""
    looks: list[object] = []
    look = selection.list_folder

    def noted(path: str | Path) -> selection.Listing:
        looks.append(path)
        return look(path)

    monkeypatch.setattr(selection, "list_folder", noted)
    monkeypatch.setattr(recent, "monotonic", itertools.count(1e9, 6).__next__)
    page = opened(name, "clothes")
    for _ in range(2):
        looks.clear()
        page.run()
        assert looks == [str(clothes)]


def test_a_folder_that_would_be_refused_is_not_in_the_list(started: Started, clothes: Path) -> None:
    secret = clothes.parent.parent / "secret"
    shutil.copytree(clothes, secret)
    (clothes.parent / "out").symlink_to(secret)
    page = opened("explore", "clothes")
    assert page.selectbox(key="images").options == [sidebar.BUNDLED, "clothes"]


def test_a_set_is_in_the_list_once(started: Started, clothes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOSCOPE_IMAGE_ROOTS", f"{clothes.parent}{os.pathsep}{clothes}")
    assert opened("explore", "clothes").selectbox(key="images").options == [sidebar.BUNDLED, "clothes", "Bag"]


def test_no_heading_is_left_alone_where_images_are_asked_for_above(started: Started) -> None:
    page = open_page("models_and_data", {"model": "efficientnet-lite0"})
    assert len(page.file_uploader) == 2
    assert "Add images" not in [heading.value for heading in page.subheader]
    page = open_page("models_and_data", {"model": "fashion-mlp"})
    assert "Add images" in [heading.value for heading in page.subheader]


@pytest.mark.slow
def test_images_are_uploaded_where_they_are_lacking_and_removed_again(started: Started) -> None:
    image = io.BytesIO()
    Image.new("RGB", (40, 40), 60).save(image, "PNG")
    page = open_page("explore", {"model": "efficientnet-lite0"})
    assert "needs images of yours: upload some here" in words(page)
    given = [("one.png", image.getvalue(), "image/png"), ("none.png", b"", "image/png")]
    page.file_uploader[0].set_value([*given, ("no.zip", b"PK", "application/zip")]).run()
    started.do("unpack")
    page.run()
    (kept,) = uploaded.sets()
    (toast,) = page.toast
    assert toast.value.startswith("no.zip can't be unpacked (")
    assert "none.png" in toast.value
    assert page.selectbox(key="images").value == str(kept)
    assert not page.file_uploader
    assert started.requests()[-1].data.path == str(kept)

    page.switch_page("pages/models_and_data.py").run()
    assert "1 image" in words(page)
    for name in ("no.zip", "none.png"):
        assert name not in words(page), "it is told to who gave it, and no other visitor"
    assert "is told under Images" in words(page)
    page.button(key=f"remove {kept}").click().run()
    assert not uploaded.sets()
    assert not page.error
    assert page.selectbox(key="images").value is None
    page.file_uploader[0].set_value([("no.zip", b"PK", "application/zip")]).run()
    started.do("unpack")
    assert "no.zip can't be unpacked" in words(page.run())
    assert started.tasks().count("unpack") == 1, "what was refused is not unpacked again"
    assert not page.exception
