"""Compare in a real browser: the raw times behind a ratio."""

import re

import pytest
from playwright.sync_api import expect

from browser.conftest import Dashboard, Visit, choose, pick
from optimizer.store.results import Store

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_the_raw_times_of_a_configuration(visit: Visit, dashboard: Dashboard) -> None:
    results = Store(dashboard.home / "results.sqlite").results("fashion-resnet")
    plain = next(result for result in results if result.request.recipe.identity)
    other = next(result for result in results if not result.request.recipe.identity)
    page = visit(f"/compare?configurations={plain.key}&configurations={other.key}")
    rounds = page.get_by_role("figure", name="Round by round")
    expect(rounds.locator(".scatterlayer .point")).to_have_count(3 * len(plain.latency.variant_ns))
    expect(rounds).to_contain_text("baseline again")

    choose(page, "Raw times as", "distribution")
    expect(page.get_by_role("figure", name="All calls by time")).to_contain_text("time of a call, from 0")
    pick(page, "Raw times of", "fashion-resnet · 50 % of all weights pruned · OpenVINO")
    assert f"times={other.key}" in page.url
    assert "view=distribution" in page.url

    again = visit(page.url.removeprefix(dashboard.url))
    expect(again.get_by_role("combobox", name="Raw times of")).to_have_value(re.compile("50 %"))
    expect(again.get_by_role("figure", name="All calls by time")).to_be_visible()
