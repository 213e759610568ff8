"""What leaves the browser: each export is downloaded, opened and checked."""

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from browser.conftest import Dashboard, Visit, act, downloaded
from optimizer.store import Store

pytestmark = pytest.mark.browser


def exported(page: Page, label: str) -> tuple[str, bytes]:
    page.get_by_role("button", name="Export").click()
    try:
        return downloaded(page, page.get_by_role("button", name=label, exact=True).click)
    finally:
        page.keyboard.press("Escape")


def opens_offline(chromium: Browser, path: Path) -> None:
    """The file draws its charts in a browser that may load nothing else."""
    context = chromium.new_context()
    elsewhere: list[str] = []
    context.on("request", lambda request: elsewhere.append(request.url))
    page = context.new_page()
    page.goto(path.as_uri())
    expect(page.locator(".js-plotly-plot .plot-container").first).to_be_visible()
    assert [url for url in elsewhere if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


def test_tables(visit: Visit, dashboard: Dashboard) -> None:
    page = visit("/?sparsity=50")
    stored = Store(dashboard.home / "results.sqlite").results(model="fashion-resnet", engine="openvino")
    percents = sorted(100 * result.accuracy.outcomes.mean() for result in stored)
    name, content = exported(page, "Table as CSV")
    assert name == "paretoscope-fashion-resnet.csv"
    assert sorted(pd.read_csv(io.BytesIO(content))["accuracy_percent"]) == pytest.approx(percents)
    _, content = exported(page, "Table as JSON")
    assert sorted(row["accuracy_percent"] for row in json.loads(content)["rows"]) == pytest.approx(percents)
    _, content = exported(page, "Table as LaTeX")
    assert b"\\begin{tabular}" in content


def test_one_html_file_opens_without_a_network(visit: Visit, chromium: Browser, tmp_path: Path) -> None:
    name, content = exported(visit("/?sparsity=50"), "Charts and table as one HTML file")
    (tmp_path / name).write_bytes(content)
    opens_offline(chromium, tmp_path / name)


def test_pictures_from_the_server(visit: Visit) -> None:
    page = visit("/?sparsity=50")
    _, content = exported(page, "Charts as PNG")
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
    _, content = exported(page, "Charts as SVG")
    assert b"<svg" in content


@pytest.mark.parametrize(("kind", "signature"), [("PNG", b"\x89PNG"), ("SVG", b"<svg")])
def test_a_charts_own_camera_saves_from_the_browser(visit: Visit, kind: str, signature: bytes) -> None:
    page = visit("/?sparsity=50")
    if kind != "PNG":
        page.get_by_role("button", name="Export").click()
        act(page, page.get_by_role("radio", name=kind, exact=True).click)
        page.keyboard.press("Escape")
    chart = page.get_by_role("figure", name="Accuracy against sparsity")
    chart.hover()
    camera = chart.locator("[data-title*='ownload plot']")
    name, content = downloaded(page, camera.click)
    assert name == f"paretoscope-accuracy.{kind.lower()}"
    assert signature in content[:200]


def test_pinned_configurations_become_a_report(visit: Visit, chromium: Browser, tmp_path: Path) -> None:
    page = visit("/?sparsity=50")
    act(page, page.get_by_role("button", name="Pin for Compare").click)
    act(page, page.get_by_role("link", name="Compare").click)
    expect(page.get_by_test_id("stDataFrame")).to_be_visible()
    name, content = downloaded(page, page.get_by_role("button", name="Report").click)
    (tmp_path / name).write_bytes(content)
    assert "50 % of all weights pruned" in content.decode()
    opens_offline(chromium, tmp_path / name)


def test_the_complexity_page_tells_a_slope_near_one(visit: Visit) -> None:
    page = visit("/complexity")
    legend = page.get_by_role("figure", name="Time against the number of weights")
    text = legend.locator(".legendtext").all_inner_texts()
    slopes = {
        line.split(",")[0]: float(found[1]) for line in text if (found := re.search(r"slope ([\d.]+)", line))
    }
    assert 0.7 < slopes["dense"] < 1.3
    expect(page.get_by_text("the zeros are multiplied too").first).to_be_visible()
