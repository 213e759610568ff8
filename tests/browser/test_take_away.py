"""What a visitor takes away: every download is opened and checked."""

import io
import json
import re
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, expect

from browser.conftest import Dashboard, Visit, act, choose, downloaded, move, table_of
from optimizer.analysis.frame import COLUMNS
from optimizer.data.loading import load_images
from optimizer.export import artifacts
from optimizer.export.pictures import chrome
from optimizer.model.catalogue import load as load_model
from optimizer.model.folding import fold_batch_norm
from optimizer.model.layers import walk
from optimizer.records import DataSpec

pytestmark = pytest.mark.browser


def check_html(chromium: Browser, path: Path, content: bytes) -> str:
    """Open a page where there is no network; the text that it shows, with its charts drawn."""
    path.write_bytes(content)
    context = chromium.new_context(offline=True)
    requests, errors = [], []
    page = context.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.route(re.compile("^(?!file:)"), lambda route: route.abort())
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible()
    charts = page.locator(".chart")
    assert charts.count()
    for chart in charts.all():
        expect(chart.locator(".scatterlayer .point").filter(visible=True).first).to_be_visible()
    shown = page.locator("body").inner_text()
    context.close()
    assert requests == [path.as_uri()]
    assert not errors
    return shown


def check_svg(content: bytes) -> None:
    text = content.decode()
    assert text.startswith("<svg")
    assert "Accuracy against sparsity" in text


@pytest.mark.slow
def test_export_menu(visit: Visit, dashboard: Dashboard, chromium: Browser, tmp_path: Path) -> None:
    page = visit("/?sparsity=50&method=Magnitude")
    page.get_by_role("button", name="Export").click()

    def take(label: str) -> tuple[str, bytes]:
        return downloaded(page, page.get_by_role("button", name=label, exact=True).click)

    name, content = take("Table as CSV")
    assert name == "paretoscope-fashion-resnet.csv"
    table = pd.read_csv(io.BytesIO(content))
    assert set(COLUMNS) < set(table.columns)
    told = dashboard.measured("fashion-resnet", "--sparsity", "0.5")
    row = table.set_index("key").loc[told["key"]]
    assert (row.correct, row.total) == (told["accuracy"]["correct"], told["accuracy"]["total"])
    assert row.drop_points == told["drop"]["points"]
    assert row.latency_ns == told["latency"]["median_ns"]

    name, content = take("Table as JSON")
    rows = json.loads(content)["rows"]
    assert [one["key"] for one in rows] == list(table["key"])

    name, content = take("Table as LaTeX")
    assert name.endswith(".tex")
    assert content.decode().count(r"\\") == len(table) + 1  # and the heading
    assert r"\toprule" in content.decode()

    name, content = take("Charts and table as one HTML file")
    shown = check_html(chromium, tmp_path / name, content)
    assert "50 % of layer weights pruned" in shown

    if chrome().problem:
        for picture in ("PNG", "SVG"):
            expect(page.get_by_role("button", name=f"Charts as {picture}")).to_be_disabled()
        return
    name, content = take("Charts as PNG")
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").resize((64, 64)).getcolors(5000) or ()) > 50
    name, content = take("Charts as SVG")
    check_svg(content)


def test_camera_button_of_a_chart(visit: Visit) -> None:
    page = visit()
    figure = page.get_by_role("figure", name="Accuracy against sparsity")

    def photograph() -> tuple[str, bytes]:
        figure.hover()
        return downloaded(page, figure.locator("[data-title*='ownload plot']").click)

    name, content = photograph()
    assert name == "paretoscope-accuracy.png"
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "PNG"
        assert picture.width > 600

    page.get_by_role("button", name="Export").click()
    choose(page, "Camera button", "SVG")
    page.keyboard.press("Escape")
    name, content = photograph()
    assert name == "paretoscope-accuracy.svg"
    check_svg(content)


@pytest.mark.slow
def test_pinned_configurations_are_compared(visit: Visit, chromium: Browser, tmp_path: Path) -> None:
    page = visit("/?sparsity=50&method=Magnitude")
    act(page, page.get_by_role("button", name="Pin for Compare").click)
    move(page, "Sparsity", "Home")
    act(page, page.get_by_role("button", name="Pin for Compare").click)
    act(page, page.get_by_role("link", name="Compare").click)
    recipes = ["50 % of layer weights pruned", "uncompressed"]
    assert list(table_of(page).recipe) == recipes
    for metric in ("latency ratio", "file size"):
        choose(page, "Metric", metric)
        expect(page.get_by_role("figure", name=metric.capitalize())).to_be_visible()

    name, content = downloaded(page, page.get_by_role("button", name="Report").click)
    assert name == "paretoscope-report.html"
    shown = check_html(chromium, tmp_path / name, content)
    assert all(recipe in shown for recipe in recipes)
    page.get_by_role("button", name="Export").click()
    name, content = downloaded(page, page.get_by_role("button", name="Table as LaTeX").click)
    assert r"50 \% of layer weights pruned" in content.decode()
    page.keyboard.press("Escape")

    other = visit(page.url.removeprefix(page.url.partition("/compare")[0]))
    assert list(table_of(other).recipe) == recipes
    expect(other.get_by_role("radio", name="file size")).to_be_checked()


@pytest.mark.slow
def test_the_model_that_is_taken_away_is_the_one_that_was_measured(
    visit: Visit, dashboard: Dashboard
) -> None:
    page = visit("/?model=fashion-mlp&sparsity=50&bits=4")
    recipe = ("--prune", "compensated", "--sparsity", "0.5", "--rounding", "compensated")
    told = dashboard.measured("fashion-mlp", *recipe, "--weight-bits", "4")
    page.get_by_role("button", name="Export").click()
    loaded = load_model("fashion-mlp")
    images = load_images(loaded, DataSpec()).evaluation
    labels = {"safetensors": "Weights as safetensors", "packed": "Weights packed to their bits"}
    for kind, label in labels.items():
        name, content = downloaded(page, page.get_by_role("button", name=label, exact=True).click)
        assert name == f"paretoscope-fashion-mlp-{kind}.zip"
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert json.loads(archive.read("recipe.json")) == told["recipe"]
            assert f"{100 * told['accuracy']['value']:.1f} %" in archive.read("MODEL_CARD.md").decode()
        module = artifacts.load(content, fold_batch_norm(loaded.module)[0])
        nonzero = sum(int(layer.weight.count_nonzero()) for layer in walk(module))
        assert nonzero == told["weights"]["nonzero"]
        with torch.inference_mode():
            right = (module(images.images).argmax(1) == images.labels).sum()
        assert abs(int(right) - told["accuracy"]["correct"]) <= 2  # kernels round sums in another order
