"""Every page in light and dark, on a laptop and on a telephone, and without a mouse."""

import re
from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect
from test_growth import run as complexity_run

from browser.conftest import Dashboard, Visit, act
from optimizer.analysis.scaling import ComplexityRequest, complexity_key
from optimizer.charts.theme import DARK, LIGHT
from optimizer.records import encode
from optimizer.store.results import Store

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.mark.parametrize(
    "address",
    [
        "/?sparsity=50&method=Magnitude",
        "/latency",
        "/layers",
        "/sweep",
        "/compare",
        "/complexity",
        "/models_and_data",
    ],
)
def test_light_and_dark_narrow_and_wide(visit: Visit, dashboard: Dashboard, address: str) -> None:
    if address == "/complexity":
        keep_a_complexity_run(dashboard)
    page = visit(address)
    for scheme, theme, widths in (("light", LIGHT, (1440, 1024, 800, 420)), ("dark", DARK, (420, 1440))):
        if scheme == "dark":
            page.emulate_media(color_scheme="dark")
            act(page, page.reload)
        expect(page.get_by_test_id("stApp")).to_have_css("color-scheme", scheme)
        expect(page.get_by_test_id("stApp")).to_have_css("background-color", rgb(theme.page))
        if address.startswith("/?"):  # else titles would be looked at before there are any
            expect(page.locator(".js-plotly-plot").first).to_be_visible()
        for chart in page.locator(".js-plotly-plot").all():
            expect(chart.locator(".gtitle")).to_have_css("fill", rgb(theme.text))
        expect(page.get_by_test_id("stCaptionContainer").first).to_have_css("opacity", "0.7")
        for button in page.get_by_test_id("stBaseButton-primary").all():
            expect(button).to_have_css("background-color", rgb(theme.colours["accent"]))
            expect(button).to_have_css("color", rgb(theme.page))
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            assert overflow(page) <= 0, (scheme, width)
            page.wait_for_function(WHOLE_TITLES)
            page.wait_for_function(WHOLE_CONTROLS)


def test_a_telephone_has_short_things_beside_each_other(visit: Visit, dashboard: Dashboard) -> None:
    keep_a_complexity_run(dashboard)
    page = visit("/complexity", viewport={"width": 390, "height": 900})
    for address, things in (
        ("", page.get_by_test_id("stMetric")),
        ("/latency", page.get_by_role("radiogroup", name="Recipe").get_by_role("radio")),
    ):
        if address:
            page.goto(dashboard.url + address)
        expect(things.nth(1)).to_be_visible()
        first, second = (things.nth(number).bounding_box() for number in range(2))
        assert first
        assert second
        assert first["y"] == second["y"]
        assert second["x"] + second["width"] <= 390


def keep_a_complexity_run(dashboard: Dashboard) -> None:
    """What the page would measure for half a minute, made up."""
    request = ComplexityRequest(quick=True)
    made = replace(complexity_run(), request=request, key=complexity_key(request))
    Store(dashboard.home / "results.sqlite").put_document("complexity", made.key, encode(made))


def test_toolbars_that_a_touch_screen_always_shows_cover_no_words(visit: Visit, dashboard: Dashboard) -> None:
    """In one browser, which loads Streamlit's scripts once."""
    telephone = {"viewport": {"width": 420, "height": 900}, "is_mobile": True, "has_touch": True}
    table = "[data-testid=stElementToolbar]"
    page = visit("/?sparsity=50&method=Magnitude", wait=False, **telephone)
    for address, bar in (("", ".modebar-btn:visible"), ("/sweep", table), ("/layers", table)):
        if address:
            page.goto(dashboard.url + address)
        expect(page.locator(bar).first).to_be_visible()
        page.wait_for_function(WORDS_CLEAR_OF_TOOLBARS)


def test_the_toolbar_that_a_mouse_calls_covers_no_title_and_a_whole_screen_has_all_of_it(
    visit: Visit,
) -> None:
    page = visit("/?sparsity=50&method=Magnitude")
    for width in (420, 800, 1200, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(TITLES_CLEAR_OF_TOOLBARS)
    chart = page.locator(".js-plotly-plot").first
    chart.hover()
    expect(chart.locator(".modebar-btn:visible")).to_have_count(2)
    chart.locator(".modebar-btn:visible").last.click()
    expect(chart.locator(".modebar-btn:visible")).to_have_count(8)
    page.wait_for_function(WHOLE_TITLES)


def test_what_to_do_with_a_sweep_is_on_one_line(visit: Visit) -> None:
    page = visit("/sweep")
    buttons = page.get_by_role("button", name=re.compile("Repeat$|Extend$"))
    expect(buttons).to_have_count(2)
    for width in range(900, 1440, 20):
        page.set_viewport_size({"width": width, "height": 900})
        first, second = (one.bounding_box() for one in buttons.all())
        assert first
        assert second
        assert first["y"] == second["y"], width


def test_what_the_figures_are_of_is_said_where_the_sidebar_is_folded(visit: Visit) -> None:
    page = visit("/latency?model=fashion-resnet")
    line = page.get_by_test_id("stMain").get_by_text("fashion-resnet · OpenVINO · bundled images")
    expect(line).to_be_hidden()
    for width, shown in ((420, True), (1440, False)):
        page.set_viewport_size({"width": width, "height": 900})
        act(page, page.reload)
        expect(line).to_be_visible(visible=shown)


def test_a_telephone_says_how_to_come_to_a_table_s_other_columns(visit: Visit) -> None:
    page = visit("/sweep?model=fashion-resnet")
    hint = page.get_by_text(re.compile("columns: swipe the table sideways to see them all")).last
    expect(hint).to_be_hidden()
    page.set_viewport_size({"width": 420, "height": 900})
    expect(hint).to_be_visible()
    size, quiet = (hint.evaluate(f"one => getComputedStyle(one).{what}") for what in ("fontSize", "opacity"))
    assert (size, float(quiet) < 1) == ("14px", True), "as quiet as a caption"


def test_charts_follow_a_switch_between_light_and_dark(visit: Visit) -> None:
    page = visit("/?model=fashion-resnet&method=Magnitude&sparsity=50", color_scheme="light")
    titles = page.locator(".js-plotly-plot .gtitle")
    for theme in (DARK, LIGHT):
        page.emulate_media(color_scheme="dark" if theme is DARK else "light")
        for number in range(titles.count()):
            expect(titles.nth(number)).to_have_css("fill", rgb(theme.text))
    page.get_by_test_id("stMainMenu").click()
    page.get_by_role("menuitemradio", name="Dark").click()
    expect(titles.first).to_have_css("fill", rgb(DARK.text))


WHOLE_TITLES = """
    [...document.querySelectorAll(".js-plotly-plot")].every(chart =>
        chart.querySelector(".gtitle").getBoundingClientRect().right <= chart.getBoundingClientRect().right)
"""
"""Whether the title of every chart fits into it, which is drawn anew a moment after its width has changed."""


TITLES_CLEAR_OF_TOOLBARS = """() => [...document.querySelectorAll(".js-plotly-plot")].every(chart => {
    const boxes = selector => [...chart.querySelectorAll(selector)].map(one => one.getBoundingClientRect());
    const bars = boxes(".modebar-btn").filter(bar => bar.width);
    return bars.length && boxes(".gtitle tspan.line").every(box => bars.every(bar =>
        box.right <= bar.left || bar.right <= box.left || box.bottom <= bar.top || bar.bottom <= box.top));
})"""
"""Whether no button of a chart, seen or not, lies over a line of its title."""


WORDS_CLEAR_OF_TOOLBARS = """() => {
    const boxes = selector => [...document.querySelectorAll(selector)]
        .filter(one => one.checkVisibility()).map(one => one.getBoundingClientRect());
    const words = boxes(".gtitle, .gtitle-subtitle, [data-testid=stMain] [data-testid=stMarkdownContainer]");
    return boxes(".modebar-btn, [data-testid=stElementToolbar]").every(bar => words.every(box =>
        box.right <= bar.left || bar.right <= box.left || box.bottom <= bar.top || bar.bottom <= box.top));
}"""
"""Whether no button of a chart and no toolbar of a table lies over a title or a paragraph."""


WHOLE_CONTROLS = """
    [...document.querySelector("[data-testid=stMain]")
        .querySelectorAll("[role=combobox], [data-testid=stMarkdownContainer]")]
        .every(one => one.scrollWidth <= one.clientWidth + 1)
"""
"""Whether what is chosen in each menu, and the words of each button, switch and card, can be read whole."""


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(byte) for byte in bytes.fromhex(colour.removeprefix('#')))})"


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    wider: int = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    return wider


def test_a_page_in_the_menu_that_has_the_focus_is_outlined(visit: Visit) -> None:
    page = visit("/compare")
    link = page.get_by_role("link", name="Layers")
    for _ in range(9):
        page.keyboard.press("Tab")
        if link.evaluate("link => link === document.activeElement"):
            break
    expect(link).to_be_focused()
    expect(link).to_have_css("outline-style", "solid")


def test_sliders_are_reached_and_moved_by_keyboard(visit: Visit) -> None:
    page = visit()
    expect(page.get_by_test_id("stStatusWidget")).to_be_hidden()  # what is drawn anew loses the focus
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        if reached[-1] == "Weight bits":
            break
    assert reached.index("Sparsity") < reached.index("Weight bits")
