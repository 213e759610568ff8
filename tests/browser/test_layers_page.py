"""Layers in a real browser: look at a layer, give it something of its own, and see what that does."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from browser.conftest import Dashboard, Visit, act, expect_figures, pick, table_of
from optimizer.recipe import Override, PruneSpec, Recipe

pytestmark = pytest.mark.browser
HALF = Recipe(PruneSpec(sparsity=0.5))
FIRST_ROW = {"x": 40, "y": 52}
EDITABLE = 5
"""The first column that can be written to, counted from 0."""


def go(page: Page, name: str) -> None:
    act(page, page.get_by_role("link", name=name).click)


def write(page: Page, row: int, column: int, text: str) -> None:
    """Type into a cell of the table, which is a canvas: by keyboard from its first cell."""
    table, editor = page.get_by_test_id("stDataFrame"), page.locator(".gdg-input")
    table.locator("canvas").first.wait_for()
    table.scroll_into_view_if_needed()

    def opened() -> bool:
        """A click while the table is still being laid out selects nothing: then it takes another."""
        table.click(position=FIRST_ROW)
        for key, times in (("ArrowDown", row), ("ArrowRight", column), ("Enter", 1)):
            for _ in range(times):
                page.keyboard.press(key)
        page.wait_for_timeout(500)
        return editor.is_visible()

    assert any(opened() for _ in range(5))
    editor.press_sequentially(text)
    page.wait_for_timeout(500)  # the grid takes over what was typed a while after it was: not before Enter
    act(page, lambda: editor.press("Enter"))


def write_until(page: Page, row: int, column: int, text: str, told: Locator) -> None:
    """Once more where the table has lost what was typed, as it may on a busy machine."""
    for _ in range(4):
        write(page, row, column, text)
        with contextlib.suppress(AssertionError):
            expect(told).to_be_visible(timeout=10_000)
            return
    expect(told).to_be_visible()


@pytest.mark.slow
def test_a_layer_apart(visit: Visit, dashboard: Dashboard, tmp_path: Path) -> None:
    page = visit("/?model=fashion-mlp&method=Magnitude&sparsity=50")
    go(page, "Layers")
    pick(page, "Layer", "4")
    assert "layer=4" in page.url
    for name in ("Weights of 4", "Sensitivity of each layer alone"):
        figure = page.get_by_role("figure", name=name)
        expect(figure.locator(".js-plotly-plot .plot-container")).to_be_visible()
    expect(page.get_by_role("figure", name="Weights of 4")).to_contain_text("threshold, |w| ≤ ")

    words = page.get_by_text("50 % of layer weights pruned · 1 layer override")
    write_until(page, 1, EDITABLE, "80", words)
    table = table_of(page).set_index("layer")
    assert table.loc[4, "zeros"] == pytest.approx(80, abs=0.01)
    assert table["own sparsity"].dropna().to_dict() == {4: 80}
    address = page.url.removeprefix(dashboard.url)

    go(page, "Explore")
    expect(words).to_be_visible()
    file = tmp_path / "recipe.json"
    file.write_text(replace(HALF, layers=(Override("4.weight", sparsity=0.8),)).to_json())
    apart = dashboard.measured("fashion-mlp", "--recipe", str(file))
    expect_figures(page, apart)

    other = visit(address)
    expect(other.get_by_text("50 % of layer weights pruned · 1 layer override")).to_be_visible()
    assert table_of(other).set_index("layer")["own sparsity"].dropna().to_dict() == {4: 80}

    go(other, "Explore")
    expect(other.get_by_role("combobox", name="Method")).to_have_value("Magnitude")
    expect_figures(other, apart)
    expect_figures(visit(other.url.removeprefix(dashboard.url)), apart)

    go(page, "Layers")
    act(page, page.get_by_role("button", name="Clear overrides").click)
    expect(words).to_have_count(0)
    assert "layers=" not in page.url
    go(page, "Explore")
    plain = dashboard.measured("fashion-mlp", "--sparsity", "0.5")
    expect_figures(page, plain)
    assert json.dumps(plain["weights"]) != json.dumps(apart["weights"])


@pytest.mark.slow
def test_layers_that_belong_together_are_shown(visit: Visit, dashboard: Dashboard) -> None:
    page = visit("/layers?model=fashion-resnet")
    expect(page.get_by_role("heading", name="Coupled layers")).to_be_visible()
    table = table_of(page, 1)
    assert list(table) == ["layers", "why", "channels", "together", "apart"]
    names = set(table_of(page)["layer"])
    for layers in table["layers"].str.split(" + ", regex=False):
        assert len(layers) > 1
        assert names.issuperset(layers)
    assert table["why"].str.contains("residual sum").any()
    assert (table["channels"] > 0).all()
    assert (table[["together", "apart"]] > 0).all(axis=None)
