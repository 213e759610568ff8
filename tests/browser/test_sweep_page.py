"""A sweep in a real browser, whose server is killed in the middle."""

import re
from pathlib import Path
from urllib.parse import urlencode

import psutil
import pytest
from faults.storing import make_result
from playwright.sync_api import Browser, expect

from browser.conftest import act, serve, settle, visiting
from optimizer.store import ledger
from optimizer.store.results import Store

SHARES, BITS = (0, 50, 70, 90), (32, 4)
GRID = [("sweep_shares", one) for one in SHARES] + [("sweep_bits", one) for one in BITS]
pytestmark = pytest.mark.browser


def kill_server_of(home: Path) -> None:
    """The dashboard on a data folder, at once; what it started ends with it."""
    for child in psutil.Process().children():
        if "dashboard" in child.cmdline() and child.environ().get("PARETOSCOPE_HOME") == str(home):
            for process in (child, *child.children()):
                process.kill()


@pytest.mark.slow
def test_a_sweep_goes_on_after_its_server_was_killed(chromium: Browser, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    store = Store(home / "results.sqlite")
    store.put(make_result("there"))  # this is no first start
    with serve(home, tmp_path) as dashboard:
        with visiting(chromium, dashboard) as visit:
            page = visit(f"/sweep?model=fashion-mlp&sweep_method=Magnitude&{urlencode(GRID)}")
            page.get_by_role("button", name="Start").click()
            progress = page.get_by_test_id("stProgress")
            expect(progress).to_contain_text(re.compile(r"(?<!\d)[1-7] of 8"))
        kill_server_of(home)
    (before,) = ledger.sweeps(store)
    assert before.open
    with serve(home, tmp_path) as dashboard, visiting(chromium, dashboard) as visit:
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
