"""Every page in light and dark, on a laptop and on a telephone, and without a mouse."""

import pytest

from browser.conftest import Visit

pytestmark = pytest.mark.browser
SIZES = ((1440, 900), (420, 900))


@pytest.mark.parametrize("address", ["/?sparsity=50", "/compare", "/complexity", "/models_and_data"])
def test_nothing_is_wider_than_the_window(visit: Visit, address: str) -> None:
    page = visit(address)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert overflow <= 0, (scheme, width)


def test_sliders_are_reached_by_keyboard(visit: Visit) -> None:
    page = visit()
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert {"Sparsity", "Weight bits"} <= set(reached)
