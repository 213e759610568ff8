"""Complexity in a real browser, with this machine's own times."""

import io
import json
import re
from collections.abc import Iterator

import pandas as pd
import pytest
from faults.storing import make_result
from playwright.sync_api import Browser, Page, expect

from browser.conftest import Dashboard, Visit, act, downloaded, serve
from optimizer.store.results import Store

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory, chromium: Browser) -> Iterator[Dashboard]:
    """One of its own: nothing here needs the results that are measured for the others."""
    home = tmp_path_factory.mktemp("dashboard") / "home"
    home.mkdir(mode=0o700)
    Store(home / "results.sqlite").put(make_result("there"))  # this is no first start
    with serve(home, home.parent) as running:
        yield running


def ratio(page: Page, execution: str) -> float:
    metric = page.get_by_test_id("stMetric").filter(has_text=execution)
    return float(metric.get_by_test_id("stMetricValue").inner_text().rstrip("×"))


@pytest.mark.slow
@pytest.mark.timing
def test_the_share_removed(visit: Visit) -> None:
    page = visit("/complexity")
    time = page.get_by_role("figure", name="Time against the number of weights")
    expect(time).to_contain_text(re.compile(r"rows removed, slope [\d.]+"))  # drawn
    slopes = dict(re.findall(r"([a-z][a-z ]+), slope ([\d.]+)", time.inner_text()))
    assert {"dense", "sparse kernel", "csr", "rows removed"} <= set(slopes)
    assert 0.6 < float(slopes["sparse kernel"]) < 1.5
    assert 0.6 < float(slopes["dense"]) < 1.5  # O(n); a busy machine bends it a little
    page.get_by_text("Each execution in words, and the slopes").click()
    expect(
        page.get_by_text(re.compile("Sparse kernel with 50 % removed against dense")).first
    ).to_be_visible()
    sentences = page.get_by_test_id("stMarkdown").get_by_role("listitem")
    # The latter on a busy machine.
    told = re.compile("Pruning does not make the time constant|too noisy to show growth")
    expect(sentences.filter(has_text=told)).to_have_count(1)
    assert ratio(page, "Rows removed") < ratio(page, "Dense kernels")

    thumb = page.get_by_role("slider", name="Share of the weights removed")

    def until_measured() -> None:
        thumb.press("End")
        expect(page.get_by_text("predicted", exact=True).first).to_be_visible()

    act(page, until_measured)
    assert "removed=99" in page.url
    expect(page.get_by_text("predicted", exact=True)).to_have_count(0)
    assert ratio(page, "Sparse kernel") < ratio(page, "Dense kernels")
    visits = page.get_by_role("figure", name="Operations against the number of weights")
    expect(visits).to_be_visible()

    name, content = downloaded(page, page.get_by_role("button", name="CSV").click)
    assert name == "paretoscope-complexity.csv"
    assert set(pd.read_csv(io.BytesIO(content)).execution) == {*slopes, "int8"}
    name, content = downloaded(page, page.get_by_role("button", name="JSON").click)
    assert json.loads(content)["removed_share"] == 0.99
