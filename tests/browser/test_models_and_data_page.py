"""Models and data in a real browser, with a folder of real images."""

import pytest
from playwright.sync_api import expect

from browser.conftest import CLASSES, Dashboard, Visit, act, pick, table_of

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
