"""Latency in a real browser: which kernels ran, and throughput against latency on this machine's clock."""

import io
import json
import re

import pandas as pd
import pytest
from playwright.sync_api import Page, expect

from browser.conftest import Visit, act, downloaded

pytestmark = pytest.mark.browser
ADDRESS = "/latency?model=fashion-mlp&batches=1&batches=4&threads=1&streams=1"


def said(page: Page) -> str:
    return page.get_by_test_id("stMainBlockContainer").inner_text()


@pytest.mark.slow
def test_kernels_are_profiled_and_served_configurations_compared(visit: Visit) -> None:
    page = visit(ADDRESS)
    for name in ("Where the time goes", "Time of each layer, and the kernels that ran"):
        figure = page.get_by_role("figure", name=name)
        expect(figure.locator(".js-plotly-plot .plot-container")).to_be_visible()
    assert "3 of 3 layers ran int8 kernels" in said(page)
    expect(page.get_by_role("figure", name="Throughput against latency")).to_contain_text("Not measured yet")

    act(page, page.get_by_role("button", name="Measure", exact=True).click)
    chart = page.get_by_role("figure", name="Throughput against latency")
    expect(chart).to_contain_text("median latency of a request, log")
    expect(page.get_by_role("figure", name="What the recipe brings")).to_be_visible()
    assert "Compressed, against the uncompressed model on OpenVINO" in said(page)
    assert "Against torch eager, which is another engine and no baseline" in said(page)

    limit = page.get_by_role("spinbutton", name="Latency limit, ms")

    def under(milliseconds: str) -> None:
        limit.fill(milliseconds)
        act(page, lambda: limit.press("Enter"))

    under("60000")
    assert re.search(
        r"Under 60\.0 s, most images a second: .* at batch size [14], 1 thread, 1 stream", said(page)
    )
    expect(chart).to_contain_text("limit 60.0 s")
    expect(chart).to_contain_text("best under the limit")
    assert "Timed afresh: " in said(page)
    assert "limit_ms=60000" in page.url
    under("0.001")
    assert "Nothing here is shown to answer within 1.00 µs. The quickest is" in said(page)
    expect(chart).not_to_contain_text("best under the limit")

    name, content = downloaded(page, page.get_by_role("button", name="CSV").first.click)
    assert name == "paretoscope-throughput.csv"
    assert list(pd.read_csv(io.BytesIO(content)).batch) == [1, 1, 4, 4]
    name, content = downloaded(page, page.get_by_role("button", name="JSON").last.click)
    assert name == "paretoscope-kernels.json"
    assert sum(row["share"] for row in json.loads(content)["operations"]) == pytest.approx(1)

    again = visit(page.url.removeprefix(page.url.partition("/latency")[0]))  # stored: shown at once
    assert "Nothing here is shown to answer within 1.00 µs" in said(again)


@pytest.mark.slow
def test_a_comparison_can_be_cancelled(visit: Visit) -> None:
    page = visit("/latency?model=fashion-resnet&batches=64&threads=1&streams=1&full=true")
    page.get_by_role("button", name="Measure", exact=True).click()
    act(page, page.get_by_role("button", name="Stop measuring throughput").click)
    expect(page.get_by_role("button", name="Measure", exact=True)).to_be_visible()
    expect(page.get_by_role("figure", name="Throughput against latency")).to_contain_text("Not measured yet")


@pytest.mark.slow
def test_what_is_set_under_explore_is_compared(visit: Visit) -> None:
    page = visit("/?model=fashion-mlp&method=Magnitude&sparsity=50")
    act(page, page.get_by_role("link", name="Latency").click)
    assert "recipe of the Explore page" in said(page)
    assert "50 % of layer weights pruned" in said(page)
    assert "dense kernels multiply the zeros too (50.0 % of the weights)" in said(page)


@pytest.mark.slow
def test_a_limit_of_milliseconds_is_not_the_limit_of_images(visit: Visit) -> None:
    page = visit("/latency?model=fashion-mlp&images=clothes&limit=20&limit_ms=5")
    expect(page.get_by_role("spinbutton", name="Latency limit, ms")).to_have_value("5.00")
    page.get_by_text("Calibration and classes").click()
    expect(page.get_by_role("spinbutton", name="Maximum images to evaluate")).to_have_value("20")
