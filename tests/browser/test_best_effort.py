"""Best effort in a real browser: watched while it comes nearer, and ended with the best so far."""

import re

import pytest
from playwright.sync_api import expect

from browser.conftest import Dashboard, Visit, expect_figures, settle

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_best_effort_comes_nearer_as_one_watches_and_ends_with_the_best_so_far(
    visit: Visit, dashboard: Dashboard
) -> None:
    page = visit("/?model=fashion-resnet&sparsity=95")
    recipe = ("fashion-resnet", "--prune", "compensated", "--sparsity", "0.95")
    fast = dashboard.measured(*recipe)
    page.get_by_role("button", name="More").click()
    seconds = page.get_by_role("spinbutton", name="Best effort, seconds")
    seconds.fill("300")
    seconds.press("Enter")
    enough = page.get_by_role("button", name="Take the best so far")
    expect(enough).to_be_visible()
    assert "effort=300" in page.url
    told = page.get_by_test_id("stProgress")
    expect(told).to_contain_text(re.compile(r"divergence \S+ before and \S+ so far, \d+ s left"))

    def divergences() -> tuple[float, float]:
        before, now = re.findall(r"divergence (\S+) before and (\S+) so far", told.inner_text())[0]
        return float(before), float(now)

    before, now = divergences()
    while now > 0.7 * before:
        page.wait_for_timeout(200)
        assert now <= before
        _, now = divergences()
    page.keyboard.press("Escape")
    enough.click()
    settle(page)
    best = dashboard.measured(*recipe, "--best-effort", "300")
    expect_figures(page, best)
    assert best["accuracy"]["value"] > fast["accuracy"]["value"] + 0.1
    told_of = re.compile(r"best effort was ended after \d+ of 300 s, with the best until then")
    assert any(told_of.fullmatch(note) for note in best["notes"])
    expect(page.get_by_text("Stopped")).to_have_count(0)
