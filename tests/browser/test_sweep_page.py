"""Sweeps in a real browser: the one that a first start begins by itself, and one whose server is killed."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import psutil
import pytest
from faults.storing import make_result
from playwright.sync_api import Browser, expect

from browser.conftest import Dashboard, act, make_home, serve, settle, visiting
from optimizer.search.sweep import STARTER_BITS, STARTER_SPARSITIES
from optimizer.store import ledger
from optimizer.store.results import Store

SHARES, BITS = (0, 50, 70, 90), (32, 4)
GRID = [("sweep_shares", one) for one in SHARES] + [("sweep_bits", one) for one in BITS]
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def first(
    chromium: Browser, tmp_path_factory: pytest.TempPathFactory, statistics: Path
) -> Iterator[Dashboard]:
    """A dashboard that nobody has visited."""
    folder = tmp_path_factory.mktemp("first")
    with serve(make_home(folder / "home", statistics), folder) as running:
        yield running


def test_starter_sweep_shows_its_progress_and_stops(first: Dashboard, chromium: Browser) -> None:
    """The curves fill by themselves, and a visitor can stop that."""
    asked = len(STARTER_SPARSITIES) * len(STARTER_BITS)
    with visiting(chromium, first) as visit:
        page = visit(wait=False)
        progress = page.get_by_test_id("stProgress").filter(has_text="Filling the curves")
        expect(progress).to_have_text(re.compile(rf"[1-9]\d* of {asked} measured"))
        act(page, page.get_by_role("button", name="Stop filling").click)

        measured = Store(first.home / "results.sqlite").count()
        assert 1 <= measured < asked
        fill = page.get_by_role("button", name=f"({asked - measured} to measure)")
        expect(fill).to_be_enabled()
        expect(page.get_by_test_id("stMetricValue").first).to_contain_text("%")
        page.reload()
        expect(fill).to_be_enabled()


def kill_server_of(home: Path) -> None:
    """The dashboard on a data folder, at once; what it started ends with it."""
    for child in psutil.Process().children():
        if "dashboard" in child.cmdline() and child.environ().get("PARETOSCOPE_HOME") == str(home):
            for process in (child, *child.children()):
                process.kill()


def test_a_sweep_goes_on_after_its_server_was_killed(first: Dashboard, chromium: Browser) -> None:
    """The last test here: it takes the first dashboard down."""
    store = Store(first.home / "results.sqlite")
    store.put(make_result("there"))  # from here on this is no first start
    with visiting(chromium, first) as visit:
        page = visit(f"/sweep?model=fashion-mlp&sweep_method=Magnitude&{urlencode(GRID)}")
        page.get_by_role("button", name="Start").click()
        progress = page.get_by_test_id("stProgress")
        expect(progress).to_contain_text(re.compile(r"(?<!\d)[1-7] of 8"))
    kill_server_of(first.home)
    before = ledger.sweeps(store)[0]
    assert before.open
    with serve(first.home, first.images) as dashboard, visiting(chromium, dashboard) as visit:
        page = visit(f"/sweep?sweep={before.id}", wait=False)
        frontier = page.get_by_role("figure", name="Frontier").first
        expect(frontier).to_be_visible()
        expect(page.get_by_text("done", exact=True).first).to_be_visible()
        assert {item.state for item in ledger.items(store, before.id)} == {"done"}
        settle(page)  # the charts are drawn once more when all is done
        point = frontier.locator(".scatterlayer .point").last
        act(page, lambda: point.click(force=True))
        act(page, page.get_by_role("link", name="Open in Explore").click)
        expect(page.get_by_role("combobox", name="Model")).to_have_value("fashion-mlp")
