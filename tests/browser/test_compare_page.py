"""Compare in a real browser: the raw times behind a ratio, and two files."""

import re
from pathlib import Path

import numpy as np
import pytest
from hostile_graphs import graph, node, save
from playwright.sync_api import expect

from browser.conftest import Dashboard, Visit, act, choose, pick, settle
from optimizer.model.catalogue import load
from optimizer.store.results import Store

pytestmark = pytest.mark.browser

BUSY = """() => {
    const post = MessagePort.prototype.postMessage;
    MessagePort.prototype.postMessage = function(...message) {
        setTimeout(() => post.apply(this, message), 50);
    };
}"""
"""The page draws later than it tells the server what was clicked, as in a busy browser now and then:
what it tells has the address from before the click."""


@pytest.mark.slow
def test_the_raw_times_of_a_configuration(visit: Visit, dashboard: Dashboard) -> None:
    results = Store(dashboard.home / "results.sqlite").results("fashion-resnet")
    plain = next(result for result in results if result.request.recipe.identity)
    other = next(result for result in results if not result.request.recipe.identity)
    page = visit(f"/compare?configurations={plain.key}&configurations={other.key}")
    rounds = page.get_by_role("figure", name="Round by round")
    expect(rounds.locator(".scatterlayer .point")).to_have_count(3 * len(plain.latency.variant.timed))
    expect(rounds).to_contain_text("baseline again")

    page.evaluate(BUSY)
    choose(page, "Raw times as", "distribution")
    assert "view=distribution" in page.url
    expect(page.get_by_role("figure", name="All calls by time")).to_contain_text("time of a call, from 0")
    pick(page, "Raw times of", "fashion-resnet · 50 % of layer weights pruned · OpenVINO")
    assert f"times={other.key}" in page.url
    assert "view=distribution" in page.url


@pytest.mark.slow
def test_pins_survive_a_reload_on_any_page_and_a_link_says_which_are_none(
    visit: Visit, dashboard: Dashboard
) -> None:
    page = visit("/?sparsity=50&method=Magnitude")
    act(page, page.get_by_role("button", name="Pin for Compare").click)
    act(page, page.get_by_role("link", name="Models and data").click)  # which measures nothing
    (pinned,) = re.findall(r"pins=([0-9a-f]{20})(?:&|$)", page.url)
    page.reload()
    settle(page)
    assert f"pins={pinned}" in page.url
    act(page, page.get_by_role("link", name="Compare").click)
    chosen = page.get_by_test_id("stMultiSelect")
    expect(chosen).to_contain_text("50 % of layer weights pruned")
    assert f"pins={pinned}" in page.url

    other = visit(f"/compare?pins={pinned}.nope")
    expect(other.get_by_test_id("stMultiSelect")).to_contain_text("50 % of layer weights pruned")
    expect(other.get_by_test_id("stToast")).to_contain_text("Some pins of this link are left out")
    assert other.url.endswith(f"pins={pinned}") or f"pins={pinned}&" in other.url


@pytest.mark.slow
def test_a_file_is_held_against_a_model(visit: Visit, tmp_path: Path) -> None:
    """Its last layer is another one: there they part ways."""
    values = {name: tensor.numpy() for name, tensor in load("fashion-mlp").module.state_dict().items()}
    noise = np.random.default_rng(0).normal(0, 0.05, values["7.weight"].shape)
    layers = [
        node("Flatten", "x", "a"),
        node("Gemm", "a 1.weight 1.bias", "b", transB=1),
        node("Relu", "b", "c"),
        node("Gemm", "c 4.weight 4.bias", "d", transB=1),
        node("Relu", "d", "e"),
        node("Gemm", "e changed 7.bias", transB=1),
    ]
    values["changed"] = values.pop("7.weight") + noise.astype(np.float32)
    path = save(graph(layers, values, ("batch", 1, 28, 28)), tmp_path / "new release.onnx")
    page = visit("/compare?of=Two+files")
    main = page.get_by_test_id("stMainBlockContainer")
    expect(main).to_contain_text("Give two")
    pick(page, re.compile("^A$"), "fashion-mlp")
    act(page, lambda: page.locator("input[type=file]").set_input_files(path))
    act(page, page.get_by_role("button", name="Compare", exact=True).click)
    answer = main.locator("strong").first
    expect(answer).to_contain_text("new release")
    expect(answer).to_contain_text("fashion-mlp")
    expect(page.get_by_role("figure", name="What each layer gives")).to_be_visible()
    said = answer.inner_text()

    again = visit(page.url[page.url.index("/compare") :])
    expect(again.get_by_test_id("stMainBlockContainer").locator("strong").first).to_have_text(said)
