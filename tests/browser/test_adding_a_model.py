"""A model file of one's own in a real browser: from choosing it to the first figures, and away again."""

import re
import zipfile
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect

from browser.conftest import Dashboard, Visit, act, card
from optimizer.model.cifar_resnet import CifarResNet

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_from_a_file_to_its_first_figures_in_three_actions(
    visit: Visit, dashboard: Dashboard, tmp_path: Path
) -> None:
    path = tmp_path / "clothes net.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = CifarResNet(20, classes=5).state_dict()
    # As large as real ones are: servers refuse large bodies on their own account.
    torch.save({"state_dict": weights, "optimizer": {"moments": torch.zeros(4_000_000)}}, path)

    def kept() -> set[Path]:
        return set((dashboard.home / "models").glob("*"))

    before = kept()
    page = visit("/models_and_data")
    main = page.get_by_test_id("stMainBlockContainer")

    act(page, lambda: page.locator("input[type=file]").first.set_input_files(path))  # 1
    expect(main).to_contain_text("cifar-resnet20")
    expect(main).to_contain_text("What the network will see")
    act(page, page.get_by_role("button", name="Add", exact=True).click)  # 2
    expect(page.get_by_role("combobox", name="Model")).to_have_value("clothes-net")
    expect(page.get_by_role("combobox", name="Images")).to_have_value("clothes")  # the one that there is
    act(page, page.get_by_role("link", name="Explore").click)  # 3
    expect(card(page, "Accuracy")).to_contain_text("%")

    act(page, page.get_by_role("link", name="Models and data").click)
    photos = tmp_path / "photos.zip"
    with zipfile.ZipFile(photos, "w") as archive:
        for image in dashboard.images.rglob("*.png"):
            archive.write(image, f"photos/{image.parent.name}/{image.name}")
    act(page, lambda: page.locator("input[type=file]").last.set_input_files(photos))
    expect(page.get_by_role("combobox", name="Images")).to_have_value(re.compile("photos [0-9a-f]{8}"))
    expect(main).to_contain_text("in 5 classes")
    for left in (1, 0):
        act(page, page.get_by_role("button", name="Remove", exact=True).first.click)
        expect(page.get_by_role("button", name="Remove", exact=True)).to_have_count(left)
    assert kept() == before
