"""The very first start: the curves fill by themselves, and a visitor can stop that."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from browser.conftest import act, make_home, serve, visiting
from optimizer.search.sweep import STARTER_BITS, STARTER_SPARSITIES
from optimizer.store.results import Store

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_starter_sweep_shows_its_progress_and_stops(
    chromium: Browser, tmp_path: Path, statistics: Path
) -> None:
    home = make_home(tmp_path / "home", statistics)
    asked = len(STARTER_SPARSITIES) * len(STARTER_BITS)
    with serve(home, tmp_path) as dashboard, visiting(chromium, dashboard) as visit:
        page = visit(wait=False)
        progress = page.get_by_test_id("stProgress").filter(has_text="Filling the curves")
        expect(progress).to_have_text(re.compile(rf"[1-9]\d* of {asked} measured"))
        act(page, page.get_by_role("button", name="Stop filling").click)

        measured = Store(home / "results.sqlite").count()
        assert 1 <= measured < asked
        fill = page.get_by_role("button", name=f"({asked - measured} to measure)")
        expect(fill).to_be_enabled()
        expect(page.get_by_test_id("stMetricValue").first).to_contain_text("%")
        page.reload()
        expect(fill).to_be_enabled()
