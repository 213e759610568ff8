"""Models and data in a real browser, with a folder of real images."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from browser.conftest import CLASSES, Dashboard, Visit, act, pick, table_of
from optimizer.system.uploads import MAX_UPLOAD_MB

pytestmark = pytest.mark.browser


def test_models_are_listed_with_what_they_cost(visit: Visit) -> None:
    page = visit("/models_and_data")
    models = table_of(page).set_index("model")
    assert models.loc["fashion-resnet", "source"] == "bundled"
    resnet18 = models.loc["resnet18"]
    assert resnet18.source == "torchvision"
    assert resnet18.download == pytest.approx(46.8, rel=0.01)
    assert not resnet18.ready
    assert len(models) > 80


@pytest.mark.slow
def test_a_model_that_cannot_be_fetched_says_so(visit: Visit) -> None:
    page = visit("/models_and_data")
    pick(page, "Model", "resnet18")
    act(page, page.get_by_role("button", name="Download 46.8 MB").click)
    expect(page.get_by_test_id("stAlert")).to_contain_text("network")
    pick(page, "Model", "fashion-mlp")
    expect(page.get_by_test_id("stAlert")).to_have_count(0)


@pytest.mark.slow
def test_reading_a_folder(visit: Visit, dashboard: Dashboard) -> None:
    page = visit("/models_and_data")
    pick(page, "Images", "clothes")
    main = page.get_by_test_id("stMainBlockContainer")
    expect(main).to_contain_text("images of clothes, with labels")
    expect(main).to_contain_text("skipped: damaged.jpg")
    expect(main).to_contain_text("read me.txt")
    expect(main).to_contain_text("Spaceship")
    page.get_by_text(f"{len(CLASSES)} classes mapped, 1 not").click()
    assert sorted(table_of(page).folder) == sorted(CLASSES)


@pytest.mark.slow
def test_of_files_that_are_given_together_those_that_can_not_be_taken_are_named(
    visit: Visit, dashboard: Dashboard, tmp_path: Path
) -> None:
    """Also where the browser itself uploads none as large, and none of another kind."""
    large = tmp_path / "large.zip"
    with large.open("wb") as file:
        file.truncate((MAX_UPLOAD_MB + 1) * 10**6)
    page = visit("/models_and_data")
    image = next(dashboard.images.rglob("*.png"))
    other = tmp_path / "photo.heic"
    other.write_bytes(b"of a kind that is not read")
    act(page, lambda: page.locator("input[type=file]").last.set_input_files([large, image, other]))
    told = expect(page.get_by_test_id("stToast"))  # one, of them all
    told.to_contain_text("large.zip has 301 MB: a file may have 300 MB")
    told.to_contain_text("1 file (photo.heic) left out: not an image by name")
    expect(page.get_by_role("combobox", name="Images")).to_have_value(re.compile("images [0-9a-f]{8}"))
    act(page, page.get_by_role("button", name="Remove", exact=True).first.click)
