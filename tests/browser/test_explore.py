"""Explore in a real browser: controls, figures, links, exports."""

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browser.conftest import Dashboard, Visit, act, card, cards, choose, downloaded, move, pick, settle
from playwright.sync_api import Page, expect

from optimizer.metrics import METRICS, format_bytes

pytestmark = pytest.mark.browser


def figures(page: Page) -> dict[str, str]:
    """The text of each card at the top, by its label."""
    return {text.split("\n")[0]: text for text in cards(page)}


def as_shown(measured: dict[str, Any]) -> tuple[str, str]:
    """Accuracy as the page writes it: value, and interval without its brackets."""
    accuracy = measured["accuracy"]
    percent = 100 * accuracy["correct"] / accuracy["total"]
    written = METRICS["accuracy"].format(percent, 100 * accuracy["low"], 100 * accuracy["high"])
    value, _, interval = written.partition(" (")
    return value, interval.rstrip(")")


def expect_figures(page: Page, measured: dict[str, Any]) -> None:
    """The cards say what the command line says."""
    value, interval = as_shown(measured)
    expect(card(page, "Accuracy")).to_contain_text(value)
    expect(card(page, "Accuracy")).to_contain_text(interval)
    size = card(page, "Size of the file")
    expect(size).to_contain_text(format_bytes(measured["size_bytes"]["file"]))
    expect(size).to_contain_text(f"packed {format_bytes(measured['size_bytes']['packed'])}")
    expect(size).to_contain_text(f"zstd {format_bytes(measured['size_bytes']['compressed'])}")
    operations = METRICS["operations"].format(measured["weights"]["operations"])
    expect(card(page, "Operations left")).to_contain_text(operations)


def test_opening(visit: Visit) -> None:
    page = visit()
    expect(page).to_have_title("Explore · Paretoscope")
    assert list(figures(page)) == ["Accuracy", "Size of the file", "Latency", "Operations left"]
    charts = ["Accuracy against sparsity", "Latency against sparsity", "Size against bits", "Frontier"]
    for name in charts:
        figure = page.get_by_role("figure", name=name)
        expect(figure.locator(".js-plotly-plot .plot-container")).to_be_visible()
        assert figure.locator(".scatterlayer .point").count()


def test_every_slider_changes_the_figures(visit: Visit, dashboard: Dashboard) -> None:
    page = visit("/?model=fashion-mlp")
    before = figures(page)

    move(page, "Sparsity", "PageUp", 3)
    move(page, "Sparsity", "ArrowRight", 2)
    sparsity = int(page.get_by_role("slider", name="Sparsity").input_value())
    assert sparsity > 2
    pruned = figures(page)
    assert pruned["Operations left"] != before["Operations left"]
    expect_figures(page, dashboard.measured("fashion-mlp", "--sparsity", str(sparsity / 100)))

    move(page, "Weight bits", "ArrowLeft", 5)
    assert "bits=5" in page.url
    rounded = figures(page)
    assert rounded["Size of the file"] != pruned["Size of the file"]
    options = ["--sparsity", str(sparsity / 100), "--weight-bits", "5"]
    expect_figures(page, dashboard.measured("fashion-mlp", *options))

    choose(page, "Prune by", "Threshold")
    move(page, "Threshold", "ArrowRight", 12)
    assert "threshold=0.024" in page.url
    expect_figures(
        page, dashboard.measured("fashion-mlp", "--threshold", "0.024", "--weight-bits", "5")
    )


def test_every_other_control_changes_the_figures(visit: Visit, dashboard: Dashboard) -> None:
    page = visit("/?model=fashion-mlp&sparsity=60&bits=4")
    recipe = ["fashion-mlp", "--sparsity", "0.6", "--weight-bits", "4"]
    settings = [
        ("Sparsity holds", "in each layer", ["--scope", "layer"]),
        ("One grid", "a tensor", ["--granularity", "tensor"]),
    ]
    seen = [figures(page)["Accuracy"]]
    page.get_by_role("button", name="More").click()
    for group, option, arguments in settings:
        choose(page, group, option)
        recipe += arguments
        expect_figures(page, dashboard.measured(*recipe))
        seen.append(figures(page)["Accuracy"])
    for switch, arguments in [("Asymmetric", ["--asymmetric"]), ("least squared", ["--range", "mse"])]:
        act(page, page.get_by_test_id("stCheckbox").filter(has_text=switch).click)
        recipe += arguments
        expect_figures(page, dashboard.measured(*recipe))
        seen.append(figures(page)["Accuracy"])
    assert len(set(seen)) == len(seen)
    page.keyboard.press("Escape")

    choose(page, "Activation bits", "8")
    expect(card(page, "Latency")).to_contain_text("int8")
    choose(page, "Engine", "torch eager")
    expect(card(page, "Latency")).to_contain_text("torch eager")
