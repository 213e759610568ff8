"""Compare in a real browser: the raw times behind a ratio."""

import re

import pytest
from playwright.sync_api import expect

from browser.conftest import Dashboard, Visit, act, choose, pick, settle
from optimizer.store.results import Store

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_the_raw_times_of_a_configuration(visit: Visit, dashboard: Dashboard) -> None:
    results = Store(dashboard.home / "results.sqlite").results("fashion-resnet")
    plain = next(result for result in results if result.request.recipe.identity)
    other = next(result for result in results if not result.request.recipe.identity)
    page = visit(f"/compare?configurations={plain.key}&configurations={other.key}")
    rounds = page.get_by_role("figure", name="Round by round")
    expect(rounds.locator(".scatterlayer .point")).to_have_count(3 * len(plain.latency.variant.timed))
    expect(rounds).to_contain_text("baseline again")

    choose(page, "Raw times as", "distribution")
    expect(page.get_by_role("figure", name="All calls by time")).to_contain_text("time of a call, from 0")
    pick(page, "Raw times of", "fashion-resnet · 50 % of all weights pruned · OpenVINO")
    assert f"times={other.key}" in page.url
    assert "view=distribution" in page.url

    again = visit(page.url.removeprefix(dashboard.url))
    expect(again.get_by_role("combobox", name="Raw times of")).to_have_value(re.compile("50 %"))
    expect(again.get_by_role("figure", name="All calls by time")).to_be_visible()


@pytest.mark.slow
def test_pins_survive_a_reload_on_any_page_and_a_link_says_which_are_none(
    visit: Visit, dashboard: Dashboard
) -> None:
    page = visit("/?sparsity=50&method=Magnitude")
    act(page, page.get_by_role("button", name="Pin for Compare").click)
    act(page, page.get_by_role("link", name="Complexity").click)
    (pinned,) = re.findall(r"pins=([0-9a-f]{20})(?:&|$)", page.url)
    page.reload()
    settle(page)
    assert f"pins={pinned}" in page.url
    act(page, page.get_by_role("link", name="Compare").click)
    chosen = page.get_by_test_id("stMultiSelect")
    expect(chosen).to_contain_text("50 % of all weights pruned")
    assert f"pins={pinned}" in page.url

    other = visit(f"/compare?pins={pinned}.nope")
    expect(other.get_by_test_id("stMultiSelect")).to_contain_text("50 % of all weights pruned")
    expect(other.get_by_test_id("stToast")).to_contain_text("Some pins of this link are left out")
    assert other.url.endswith(f"pins={pinned}") or f"pins={pinned}&" in other.url
