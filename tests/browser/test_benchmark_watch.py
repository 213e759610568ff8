"""What ``benchmarks/browser_waits.py`` notes of a page, on one that is made up."""

import runpy
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

WAITS = str(Path(__file__).parents[2] / "benchmarks" / "browser_waits.py")
CARD = "<div data-testid=stVerticalBlock><p>{words}</p><b data-testid=stMetricValue>{value}</b></div>"


def cards(accuracy: str, words: str, size: str, latency: str) -> str:
    given = {"Accuracy " + words: accuracy, "Size": size, "Latency": latency}
    return "".join(CARD.format(words=title, value=value) for title, value in given.items())


@pytest.fixture(scope="module")
def waits() -> dict[str, Any]:
    return runpy.run_path(WAITS)


@pytest.fixture
def page(chromium: Browser, waits: dict[str, Any]) -> Any:
    page = chromium.new_page()
    page.set_content(
        f"<div data-testid=stMain><strong>30 %</strong><p>{cards('0.9', '', '1', '2')}</p></div>"
    )
    page.evaluate(waits["WATCH"])
    yield page
    page.close()


def draw(page: Page, recipe: str, drawn: str) -> dict[str, Any]:
    page.evaluate(
        "([recipe, drawn]) => { document.querySelector('[data-testid=stMain]').innerHTML ="
        " `<strong>${recipe}</strong>${drawn}`; }",
        [recipe, drawn],
    )
    page.wait_for_timeout(100)
    watched: dict[str, Any] = page.evaluate("window.paretoscopeWatch")
    return watched


def test_everything_is_there_once_accuracy_is_of_all_images(page: Page, waits: dict[str, Any]) -> None:
    """The time may be known before."""
    found = draw(page, "40 %", cards("0.8", "so far", "1", "2"))
    assert found["changed"]
    assert set(found["seen"]) == {"counts and size", "first accuracy"}
    found = draw(page, "40 %", cards("0.81", "", "1", "2"))
    assert set(found["seen"]) == set(waits["FIGURES"])


def test_a_position_whose_figures_are_not_there_has_changed(page: Page) -> None:
    begun = time.time()
    same, other = draw(page, "30 %", cards("0.9", "", "1", "2")), draw(page, "40 %", cards("–", "", "–", "–"))
    assert (same["changed"], other["changed"]) == (False, True)
    assert same["seen"] == other["seen"] == {}
    assert 0 <= begun - other["begun"] / 1e3 < 60, "on the clock of the server's log"
