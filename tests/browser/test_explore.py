"""Explore in a real browser: every control and the figures that follow, and links."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import expect

from browser.conftest import (
    Dashboard,
    Visit,
    act,
    card,
    cards,
    choose,
    expect_figures,
    flip,
    move,
    pick,
    run,
    toggle,
)
from optimizer.store.results import Store
from optimizer.system.environment import threads_available

pytestmark = pytest.mark.browser


def test_opening(visit: Visit) -> None:
    page = visit()
    expect(page).to_have_title("Explore · Paretoscope")
    expect(page.get_by_test_id("stMetric")).to_have_count(4)  # the first script of a visit may be drawn late
    labels = [text.split("\n")[0] for text in cards(page)]
    assert labels == ["Accuracy", "Size of the file", "Latency", "Operations left"]
    for name in ("Accuracy against sparsity", "Latency against sparsity", "Size against bits", "Frontier"):
        figure = page.get_by_role("figure", name=name)
        expect(figure.locator(".js-plotly-plot .plot-container")).to_be_visible()
        assert figure.locator(".scatterlayer .point").count()


@pytest.mark.slow
def test_each_slider_changes_the_figures_and_a_link_restores_them(visit: Visit, dashboard: Dashboard) -> None:
    page = visit("/?model=fashion-mlp&bits=16&method=Magnitude")
    seen = [cards(page)]

    move(page, "Weight bits", "ArrowLeft")
    assert "bits=8" in page.url
    expect_figures(page, dashboard.measured("fashion-mlp", "--weight-bits", "8"))
    seen.append(cards(page))

    move(page, "Sparsity", "PageUp")
    assert "sparsity=10" in page.url
    expect_figures(page, dashboard.measured("fashion-mlp", "--sparsity", "0.1", "--weight-bits", "8"))
    seen.append(cards(page))

    pick(page, "Method", "Threshold")
    move(page, "Threshold", "PageUp")
    assert "threshold=0.05" in page.url
    expect_figures(page, dashboard.measured("fashion-mlp", "--threshold", "0.05", "--weight-bits", "8"))
    seen.append(cards(page))

    for before, after in pairwise(seen):  # the clock may not tell two positions apart: latency is left out
        assert [before[card] for card in (0, 1, 3)] != [after[card] for card in (0, 1, 3)]

    other = visit(page.url.removeprefix(dashboard.url))
    expect(other.get_by_role("combobox", name="Model")).to_have_value("fashion-mlp")
    expect(other.get_by_role("combobox", name="Method")).to_have_value("Threshold")
    assert other.get_by_role("slider", name="Threshold").input_value() == "0.05"
    expect(other.get_by_role("slider", name="Weight bits")).to_have_attribute("aria-valuetext", "8")
    assert cards(other) == cards(page)


def test_back_leads_to_the_page_before_with_its_recipe(visit: Visit) -> None:
    page = visit("/?model=fashion-mlp&method=Magnitude&bits=16&sparsity=10")
    asked, entries = page.url, page.evaluate("history.length")
    for link in ("Layers", "Explore"):
        act(page, page.get_by_role("link", name=link).first.click)
    assert page.evaluate("history.length") == entries + 2, "one a page"
    assert "/layers?" not in page.url
    assert {"bits=16", "sparsity=10"} <= set(page.url.partition("?")[2].split("&"))
    act(page, page.go_back)
    assert "/layers?" in page.url
    assert "recipe=" in page.url
    act(page, page.go_back)
    assert page.url == asked
    expect(page.get_by_role("slider", name="Sparsity")).to_have_value("10")


def test_back_leads_to_a_recipe_that_a_link_brought(visit: Visit) -> None:
    page = visit('/?model=fashion-mlp&recipe={"prune":{"method":"magnitude","sparsity":0.5}}')
    sparsity = page.get_by_role("slider", name="Sparsity")
    expect(sparsity).to_have_value("50")
    act(page, page.get_by_role("link", name="Compare").click)
    act(page, page.go_back)
    expect(sparsity).to_have_value("50")
    assert "recipe=" in page.url
    for step in (page.go_forward, page.go_back):
        act(page, step)
    expect(sparsity).to_have_value("50")


ACCURACY_WITHOUT_LATENCY = """
() => {
  const [accuracy, size, latency] = [...document.querySelectorAll('[data-testid=stMetricValue]')]
    .map(card => card.innerText !== '–');
  return accuracy && size && !latency;
}
"""


@pytest.mark.slow
def test_accuracy_is_there_while_timing_goes_on(visit: Visit) -> None:
    recipe = "method=Magnitude&sparsity=10&bits=8&activations=8"
    page = visit(f"/?model=fashion-mlp&{recipe}&engine=ONNX+Runtime", wait=False)
    page.wait_for_function(ACCURACY_WITHOUT_LATENCY, polling=20)
    expect(card(page, "Latency")).to_contain_text("ONNX Runtime, int8 kernels")


MARK = """() => document.querySelectorAll(".js-plotly-plot").forEach(one => one.dataset.marked = "yes")"""
MARKED_AT_42 = """() => {
    const heading = document.querySelector("[data-testid=stMain] strong");
    if (!heading?.textContent.startsWith("42 %")) return null;
    window.arrived ??= performance.now();  // by then what is drawn anew is gone
    if (performance.now() < window.arrived + 500) return null;
    return [...document.querySelectorAll(".js-plotly-plot")].map(one => one.dataset.marked ?? "drawn anew");
}"""


@pytest.mark.slow
def test_charts_are_not_drawn_anew_while_a_position_is_measured(visit: Visit) -> None:
    page = visit("/?model=fashion-resnet&method=Magnitude&sparsity=41")
    page.evaluate(MARK)
    page.get_by_role("slider", name="Sparsity").press("ArrowRight")
    seen = page.wait_for_function(MARKED_AT_42, polling=20).json_value()
    assert seen == ["yes"] * 4


@pytest.mark.slow
@pytest.mark.skipif(threads_available() == 1, reason="every core is one thread here")
def test_threads_are_chosen_and_a_link_keeps_them(visit: Visit, dashboard: Dashboard) -> None:
    page = visit("/?model=fashion-mlp")
    points = page.get_by_role("figure", name="Latency against sparsity").locator(".scatterlayer .point")
    pick(page, "Threads", "1")
    assert re.search(r"timed_threads=1(&|$)", page.url)
    found = Store(dashboard.home / "results.sqlite").results("fashion-mlp", engine="openvino")
    assert sorted({result.latency.threads for result in found}) == [1, threads_available()]
    alone = [result for result in found if result.latency.threads == 1]
    expect(points).to_have_count(len(alone) + 1)  # and the mark of what the sliders say

    again = visit(page.url.removeprefix(dashboard.url))
    expect(again.get_by_role("combobox", name="Threads")).to_have_value("1")
    pick(again, "Threads", f"every core ({threads_available()})")
    assert "timed_threads" not in again.url


@pytest.mark.slow
def test_each_other_control_changes_the_figures_and_a_link_restores_them(
    visit: Visit, dashboard: Dashboard
) -> None:
    page = visit("/?model=fashion-mlp&sparsity=60&bits=4&method=Magnitude")
    recipe = ["fashion-mlp", "--sparsity", "0.6", "--weight-bits", "4"]
    expect_figures(page, dashboard.measured(*recipe))
    page.get_by_role("button", name="More").click()

    pick(page, "Sparsity allocation", "uniform")
    choose(page, "Granularity", "per tensor")
    recipe += ["--allocation", "uniform", "--granularity", "tensor"]
    expect_figures(page, dashboard.measured(*recipe))

    choose(page, "Grid", "Asymmetric")
    expect_figures(page, dashboard.measured(*recipe, "--asymmetric"))
    pick(page, "Range", "MSE")
    recipe += ["--asymmetric", "--range", "mse"]
    expect_figures(page, dashboard.measured(*recipe))
    page.keyboard.press("Escape")

    move(page, "Activation bits", "ArrowLeft")
    recipe += ["--activation-bits", "8"]
    expect_figures(page, dashboard.measured(*recipe))
    expect(card(page, "Latency")).to_contain_text("OpenVINO, int8 kernels")

    pick(page, "Engine", "torch eager")
    assert "engine=torch+eager" in page.url
    expect_figures(page, dashboard.measured(*recipe, "--engine", "torch"))
    expect(card(page, "Latency")).to_contain_text("torch eager, dense fp32")

    other = visit(page.url.removeprefix(dashboard.url))
    expect(other.get_by_role("combobox", name="Engine")).to_have_value("torch eager")
    assert cards(other) == cards(page)


@pytest.mark.slow
def test_compensation_keeps_what_magnitude_loses(visit: Visit, dashboard: Dashboard) -> None:
    page = visit("/?model=fashion-mlp&sparsity=90")
    recipe = ("fashion-mlp", "--prune", "compensated", "--sparsity", "0.9")
    compensated = dashboard.measured(*recipe)
    expect_figures(page, compensated)
    pick(page, "Method", "Magnitude")
    by_magnitude = dashboard.measured("fashion-mlp", "--sparsity", "0.9")
    expect_figures(page, by_magnitude)
    assert compensated["accuracy"]["value"] > by_magnitude["accuracy"]["value"] + 0.1

    pick(page, "Method", "Data-aware (OBS)")
    page.get_by_role("button", name="More").click()
    pick(page, "Pattern", "2:4")
    pattern = ("fashion-mlp", "--prune", "compensated", "--pattern", "2:4")
    expect_figures(page, dashboard.measured(*pattern))


@pytest.mark.slow
def test_bits_that_differ_by_layer(visit: Visit, dashboard: Dashboard) -> None:
    page = visit("/?model=fashion-mlp&bits=4")
    recipe = ("fashion-mlp", "--rounding", "compensated")
    expect_figures(page, dashboard.measured(*recipe, "--weight-bits", "4"))
    page.get_by_role("button", name="More").click()
    flip(page, "Mixed precision")
    expect_figures(page, dashboard.measured(*recipe, "--average-bits", "4"))


@pytest.mark.slow
def test_matched_outputs_and_equalised_channels(visit: Visit, dashboard: Dashboard) -> None:
    """Each changes the figures where the method has a use for it, and is in the address; the other methods
    don't offer it."""
    page = visit("/?model=fashion-resnet&method=Magnitude&sparsity=70")
    pruned = dashboard.measured("fashion-resnet", "--sparsity", "0.7")
    expect_figures(page, pruned)
    page.get_by_role("button", name="More").click()
    flip(page, "Batch-norm re-estimation")
    assert "match=true" in page.url
    matched = dashboard.measured("fashion-resnet", "--sparsity", "0.7", "--match")
    expect_figures(page, matched)
    assert matched["accuracy"]["correct"] > pruned["accuracy"]["correct"]
    expect(page.get_by_text("batch norm re-estimated").first).to_be_visible()

    page = visit("/?model=fashion-mlp&method=Magnitude&bits=3")
    page.get_by_role("button", name="More").click()
    choose(page, "Granularity", "per tensor")
    recipe = ("fashion-mlp", "--weight-bits", "3", "--granularity", "tensor")
    plain = dashboard.measured(*recipe)
    expect_figures(page, plain)
    flip(page, "Cross-layer equalisation")
    assert "equalise=true" in page.url
    equalised = dashboard.measured(*recipe, "--equalise")
    expect_figures(page, equalised)
    assert equalised["accuracy"]["correct"] != plain["accuracy"]["correct"]
    other = visit(page.url.removeprefix(dashboard.url))
    expect_figures(other, equalised)

    page = visit("/?model=fashion-mlp&bits=4")  # data-aware and GPTQ, as above
    page.get_by_role("button", name="More").click()
    expect(page.get_by_role("combobox", name="Pattern")).to_be_visible()
    for label in ("Batch-norm re-estimation", "Cross-layer equalisation"):
        expect(toggle(page, label)).to_have_count(0)


@pytest.mark.slow
def test_a_preset_sets_the_sliders(visit: Visit, dashboard: Dashboard) -> None:
    page = visit("/?model=fashion-mlp")
    page.get_by_role("button", name="Presets").click()
    page.get_by_role("button", name="Safe").click()
    expect(page.get_by_role("button", name="Balanced")).to_have_count(0)
    expect(page.get_by_role("button", name="Presets")).to_be_disabled()
    expect(page.get_by_test_id("stToast")).to_contain_text("At most 0.5 points lost", timeout=120_000)
    found = dashboard.said("preset", "safe", "fashion-mlp")
    assert found["met"]
    expect_figures(page, found)
    assert f"bits={found['recipe']['quantize']['weight_bits']}" in page.url


@pytest.mark.slow
def test_another_model_scores_as_in_a_data_folder_of_its_own(
    visit: Visit, dashboard: Dashboard, tmp_path: Path
) -> None:
    page = visit("/?sparsity=50&method=Magnitude")
    pick(page, "Model", "fashion-mlp")
    measure = "measure", "fashion-mlp", "--sparsity", "0.5", "--quick", "--json"
    elsewhere = json.loads(run(tmp_path / "home", *measure))
    expect_figures(page, elsewhere)
    here = dashboard.measured("fashion-mlp", "--sparsity", "0.5")
    for part in ("accuracy", "agreement", "drop", "weights"):
        assert here[part] == elsewhere[part]


def test_bad_values_in_the_address_are_refused_in_words(visit: Visit) -> None:
    """What else an address may hold is tested with the pages, without a browser."""
    page = visit("/?images=..%2F..%2Fetc%00")
    expect(page.get_by_test_id("stAlert").first).to_contain_text("is not a path")
    assert "Traceback" not in page.locator("body").inner_text()
