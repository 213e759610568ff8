"""The real dashboard, started from its command line, in a headless Chromium.

Nothing is mocked: a page measures on this machine. Fixtures have the package's scope, so that server and
browser are gone before other tests time anything.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

from optimizer.resources import PACKAGE, asset

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
REQUIRED = "PARETOSCOPE_REQUIRE_BROWSER"
PATIENCE_MS = 60_000
CLASSES = {"T-shirt top": 0, "Trouser": 1, "Sneaker": 7, "Bag": 8}
"""Class folders of the image folder that the tests make, and the label of each."""

SETTLED = """() => {
    const app = document.querySelector("[data-testid=stApp]");
    const waits = [...document.querySelectorAll("[data-testid=stIconMaterial]")]
        .some((icon) => icon.textContent === "hourglass_top");
    const calm = app && app.dataset.testScriptState === "notRunning" && !waits
        && !document.querySelector("[data-testid=stProgress], [data-testid=stSpinner]")
        && document.querySelector("[data-testid=stMainBlockContainer]")?.innerText.trim();
    window.calmSince = calm ? window.calmSince ?? performance.now() : undefined;
    return calm && performance.now() - window.calmSince > 700;
}"""
"""No script runs and no job either, for longer than a widget waits before it tells its value."""


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        reason = f"no browser: none of {', '.join(BROWSERS)} is on the PATH"
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(reason)
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


# The server


@dataclass(frozen=True)
class Dashboard:
    """A running dashboard: where it is served, and the data folder and the image root that it was given."""

    url: str
    home: Path
    images: Path

    def cli(self, *arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on the dashboard's own data folder, or on another."""
        return subprocess.run(
            [sys.executable, "-m", "optimizer.cli", *arguments],
            env=_environment(home or self.home),
            cwd=PACKAGE.parent,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def measure(self, *arguments: str, home: Path | None = None) -> dict[str, Any]:
        """What ``paretoscope measure ... --quick --json`` prints."""
        done = self.cli("measure", *arguments, "--quick", "--json", home=home)
        assert done.returncode == 0, done.stderr
        printed: dict[str, Any] = json.loads(done.stdout)
        return printed


def _environment(home: Path) -> dict[str, str]:
    torch_home = str(home.parent / "torch")  # what this user has downloaded makes no difference
    return {**os.environ, "PARETOSCOPE_HOME": str(home), "TORCH_HOME": torch_home}


@contextlib.contextmanager
def serve(home: Path, images: Path) -> Iterator[Dashboard]:
    """``paretoscope dashboard`` on a free port, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = home.parent / "dashboard.log"
    command = [sys.executable, "-m", "optimizer.cli", "dashboard", "--headless"]
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--images", str(images)],
            env=_environment(home),
            cwd=PACKAGE.parent,
            stdout=output,
            stderr=output,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _await_health(server, url, log)
        yield Dashboard(url, home, images)
    finally:
        server.terminate()
        server.wait(30)


def _await_health(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=5):
                return
        time.sleep(0.1)
    pytest.fail(f"the dashboard does not answer:\n{log.read_text()}")


@pytest.fixture(scope="package")
def dashboard(tmp_path_factory: pytest.TempPathFactory, chromium: Browser) -> Iterator[Dashboard]:
    """A dashboard whose store has four results already, so that it starts no sweep of its own."""
    top = tmp_path_factory.mktemp("dashboard")
    home, images = top / "home", make_images(top / "images")
    swept = Dashboard("", home, images).cli(
        *("sweep", "fashion-resnet", "--sparsities", "0,0.5", "--bits", "32,4", "--quick", "--json")
    )
    assert swept.returncode == 0, swept.stderr
    with serve(home, images) as running:
        yield running


def make_images(root: Path) -> Path:
    """An image root with folders to choose: ``clothes`` (32 readable images of four classes, a damaged one, a text file
    and a folder that is no class), ``strangers`` (no folder is a class), ``texts`` and ``nothing``."""
    with np.load(asset("fashion-test.npz")) as archive:
        pixels, labels = archive["images"], archive["labels"]
    for folder, label in CLASSES.items():
        place = root / "clothes" / folder
        place.mkdir(parents=True)
        for number, image in enumerate(pixels[labels == label][:8]):
            Image.fromarray(image).save(place / f"{number}.png")
    (root / "clothes" / "Trouser" / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    (root / "clothes" / "Trouser" / "read me.txt").write_text("not an image")
    for folder in ("clothes/Spaceship", "strangers/Comet", "strangers/Moon"):
        (root / folder).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(pixels[number]).save(root / folder / f"{number}.png")
    (root / "texts" / "Bag").mkdir(parents=True)
    (root / "texts" / "Bag" / "a.txt").write_text("not an image")
    (root / "nothing").mkdir()
    return root


# Pages


Visit = Callable[..., Page]


@pytest.fixture
def visit(chromium: Browser, dashboard: Dashboard) -> Iterator[Visit]:
    """``visit("/compare?...")``: a visitor of their own in a fresh browser context, at a settled page.

    Afterwards no page may have reported an error, and none may have asked another host for anything.
    """
    with visiting(chromium, dashboard) as visit:
        yield visit


@contextlib.contextmanager
def visiting(chromium: Browser, dashboard: Dashboard) -> Iterator[Visit]:
    contexts, errors, elsewhere = [], [], []

    def noted(message: ConsoleMessage) -> None:
        place = message.location.get("url", "")
        # On an address with a path Streamlit looks for its own endpoints under that path first.
        if message.type == "error" and place.startswith(dashboard.url) and "/_stcore/" not in place:
            errors.append(f"{message.text} ({place})")

    def visit(address: str = "/", wait: bool = True, **options: Any) -> Page:
        context = chromium.new_context(
            **{"viewport": {"width": 1440, "height": 900}, "accept_downloads": True} | options
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("console", noted)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto(dashboard.url + address)
        if wait:
            settle(page)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not errors
    local = (dashboard.url, dashboard.url.replace("http", "ws"), "data:", "blob:")
    assert [url for url in elsewhere if not url.startswith(local)] == []


def settle(page: Page) -> None:
    """Wait until no script runs and nothing is being measured."""
    page.evaluate("() => { window.calmSince = undefined }")
    page.wait_for_function(SETTLED, polling=100)
    assert page.get_by_test_id("stException").count() == 0


def move(page: Page, slider: str, key: str, times: int = 1) -> None:
    """Press a key on a slider's thumb, as a visitor without a mouse does."""
    thumb = page.get_by_role("slider", name=slider)
    for _ in range(times):
        thumb.press(key)
    settle(page)


def choose(page: Page, group: str, option: str) -> None:
    """Press one of a group's buttons."""
    page.get_by_role("radiogroup", name=group).get_by_role("radio", name=option, exact=True).click()
    settle(page)


def pick(page: Page, box: str, option: str) -> None:
    """Take one of a list's options, typing to find it."""
    page.get_by_role("combobox", name=box).fill(option)
    page.get_by_role("option", name=option, exact=True).click()
    settle(page)


def card(page: Page, label: str) -> Locator:
    """One of the figures at the top, with what stands below it."""
    metric = page.get_by_test_id("stMetric").filter(has_text=label)
    return page.get_by_test_id("stVerticalBlock").filter(has=metric).last


def cards(page: Page) -> list[str]:
    return page.get_by_test_id("stMetric").all_inner_texts()


def downloaded(page: Page, click: Callable[[], None]) -> tuple[str, bytes]:
    """The name and the bytes of the file that a click brings."""
    with page.expect_download() as waiting:
        click()
    path = waiting.value.path()
    return waiting.value.suggested_filename, Path(path).read_bytes()
