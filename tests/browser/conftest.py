"""The real dashboard, started from its command line, in a headless Chromium.

Nothing is mocked: a page measures on this machine. Fixtures have the package's scope, so that server and
browser are gone before other tests time anything.
"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from lacking import skip_for
from PIL import Image
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    expect,
    sync_playwright,
)
from playwright.sync_api import Error as BrowserError
from playwright.sync_api import TimeoutError as BrowserTimeoutError
from ports import free_port

from optimizer.analysis.metrics import METRICS
from optimizer.cli.main import main
from optimizer.formats import format_bytes
from optimizer.store.results import Store
from optimizer.system.paths import PACKAGE, asset

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
PATIENCE_MS = 120_000
BROKEN_DRAWING = "Bad delta path"
CLASSES = {"T-shirt top": 0, "Trouser": 1, "Sneaker": 7, "Bag": 8}
"""Class folders of the image folder that the tests make, and the label of each."""

LISTEN = """
    window.WebSocket = class extends window.WebSocket {
        constructor(...options) {
            super(...options);
            this.addEventListener("message", () => {
                window.answered = window.asked !== false;
                window.calmSince = undefined;
            });
        }
        send(...message) {
            window.asked = true;
            super.send(...message);
        }
    };
"""
"""Notes in every page when the server says something, once the page has asked it something. That the page
*runs* can't be watched: where its thread is busy, the beginning and the end of a script are drawn as one."""

STILL = """
    document.addEventListener("DOMContentLoaded", () => {
        const style = document.createElement("style");
        style.textContent = `*, *::before, *::after {
            animation-duration: 1ms !important; animation-iteration-count: 1 !important;
            transition-duration: 0s !important;
        }`;
        document.head.append(style);
    });
"""
"""Nothing fades or turns: each of its frames would be painted by the processor, while it measures."""

AWAIT = "() => { window.asked = window.answered = false; window.calmSince = undefined; }"

SETTLED = """() => {
    const app = document.querySelector("[data-testid=stApp]");
    const works = "[data-testid=stProgress], [data-testid=stSpinner], [data-testid=stSkeleton], "
        + "[aria-label^=hourglass]";
    const calm = window.answered !== false && app?.dataset.testScriptState === "notRunning"
        && !document.querySelector(works)
        && document.querySelector("[data-testid=stMainBlockContainer]")?.innerText.trim();
    window.calmSince = calm ? window.calmSince ?? performance.now() : undefined;
    return calm && performance.now() - window.calmSince > 300;
}"""
"""No script runs and no job either, for longer than a slider waits before it tells its value (0.2 s); and no
widget waits for its code, which a fresh tab of a busy machine was seen to load for 18 s after its script."""


SAID = """() => [
    document.querySelector("[data-testid=stApp]")?.dataset.testScriptState,
    `asked ${window.asked}, answered ${window.answered}`,
    [...new Set([...document.querySelectorAll("[data-testid]")].map(one => one.dataset.testid))].join(" "),
    document.querySelector("[data-testid=stMain]")?.innerText,
].join("\\n")"""


WINDOW = {"viewport": {"width": 1440, "height": 900}, "accept_downloads": True}


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        skip_for(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
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

    def measured(self, *arguments: str) -> dict[str, Any]:
        """What ``paretoscope measure ...`` says of what the page has measured already."""
        return self.said("measure", *arguments)

    def said(self, *command: str) -> dict[str, Any]:
        """What a command with ``--quick --json`` prints where the page has measured all that it asks for."""
        before = Store(self.home / "results.sqlite").count()
        printed = run(self.home, *command, "--quick", "--json")
        assert Store(self.home / "results.sqlite").count() == before, "page and shell name it differently"
        said: dict[str, Any] = json.loads(printed)
        return said


def run(home: Path, *command: str) -> str:
    """What a command prints that works on a data folder, run in this process."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
        patch.setenv("PARETOSCOPE_HOME", str(home))
        assert main(command) == 0
    return output.getvalue()


def _environment(home: Path) -> dict[str, str]:
    """With no model downloaded and no network, whatever there is on this machine."""
    return {
        **os.environ,
        "PARETOSCOPE_HOME": str(home),
        "TORCH_HOME": str(home.parent / "torch"),
        "https_proxy": "http://127.0.0.1:9",
    }


@contextlib.contextmanager
def serve(home: Path, images: Path) -> Iterator[Dashboard]:
    """``paretoscope dashboard`` on a free port, until the block ends."""
    port = free_port()
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
        await_health(server, url, log)
        yield Dashboard(url, home, images)
    finally:
        server.terminate()
        server.wait(30)


def await_health(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a Streamlit server answers; fail with its log when it ends or doesn't."""
    end = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < end and server.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=5),
        ):
            return
        time.sleep(0.1)
    pytest.fail(f"the dashboard does not answer:\n{log.read_text()}")


def make_home(home: Path, statistics: Path) -> Path:
    """A data folder, empty but for the calibration statistics that all dashboards of a run share."""
    home.mkdir(mode=0o700)
    (home / "studies").symlink_to(statistics)
    return home


@pytest.fixture(scope="package")
def dashboard(
    tmp_path_factory: pytest.TempPathFactory, chromium: Browser, statistics: Path
) -> Iterator[Dashboard]:
    """A dashboard whose store has two results already, so that it starts no sweep of its own."""
    top = tmp_path_factory.mktemp("dashboard")
    home, images = make_home(top / "home", statistics), make_images(top / "images")
    run(home, "sweep", "fashion-resnet", "--sparsities", "0,0.5", "--bits", "32", "--quick")
    with serve(home, images) as running:
        yield running


def make_images(root: Path) -> Path:
    """An image root: ``clothes`` (32 readable images of four classes, a damaged one, a text file and a folder
    that is no class)."""
    with np.load(asset("fashion-test.npz")) as archive:
        pixels, labels = archive["images"], archive["labels"]
    for folder, label in CLASSES.items():
        place = root / "clothes" / folder
        place.mkdir(parents=True)
        for number, image in enumerate(pixels[labels == label][:8]):
            Image.fromarray(image).save(place / f"{number}.png")
    (root / "clothes" / "Trouser" / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    (root / "clothes" / "Trouser" / "read me.txt").write_text("not an image")
    (root / "clothes" / "Spaceship").mkdir()
    for number in range(3):
        Image.fromarray(pixels[number]).save(root / "clothes" / "Spaceship" / f"{number}.png")
    return root


# Pages


Visit = Callable[..., Page]


@pytest.fixture(scope="package")
def profile(chromium: Browser) -> Iterator[BrowserContext]:
    """One for all visits that choose nothing of the browser, so that it loads Streamlit's scripts once. A tab
    is a session of its own to the server."""
    context = prepared(chromium)
    yield context
    context.close()


OPENED = pytest.StashKey[list[Page]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where a test fails, its report has what each of its pages said, and to which state it had come."""
    report = yield
    if report.when == "call" and report.failed:
        for page in item.stash.get(OPENED, []):
            with contextlib.suppress(BrowserError):  # one that is closed
                report.sections.append((f"page {page.url}", page.evaluate(SAID)))
    return report


@pytest.fixture
def visit(
    chromium: Browser, profile: BrowserContext, dashboard: Dashboard, request: pytest.FixtureRequest
) -> Iterator[Visit]:
    """``visit("/compare?...")``: a visitor of their own in a fresh tab, at a settled page; with options of a
    browser context, in one of their own.

    Afterwards no page may have reported an error, and none may have asked another host for anything.
    """
    with visiting(chromium, dashboard, profile) as visit:
        opened = request.node.stash[OPENED] = []

        def remembered(*address: str, **options: Any) -> Page:
            opened.append(visit(*address, **options))
            return opened[-1]

        yield remembered


def prepared(chromium: Browser, **options: Any) -> BrowserContext:
    context = chromium.new_context(**WINDOW | options)
    context.add_init_script("delete window.showSaveFilePicker")  # a table downloads instead of asking
    context.add_init_script(LISTEN)
    context.add_init_script(STILL)
    context.set_default_timeout(PATIENCE_MS)
    return context


@contextlib.contextmanager
def visiting(
    chromium: Browser, dashboard: Dashboard, profile: BrowserContext | None = None
) -> Iterator[Visit]:
    opened: list[Page | BrowserContext] = []
    errors: list[str] = []
    elsewhere: list[str] = []

    def noted(message: ConsoleMessage) -> None:
        place = message.location.get("url", "")
        # On an address with a path Streamlit looks for its own endpoints under that path first.
        if message.type == "error" and place.startswith(dashboard.url) and "/_stcore/" not in place:
            errors.append(f"{message.text} ({place})")

    def visit(address: str = "/", wait: bool = True, **options: Any) -> Page:
        shared = profile is not None and not options
        context = profile if shared else prepared(chromium, **options)
        page = context.new_page()
        opened.append(page if shared else context)
        page.on("console", noted)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto(dashboard.url + address)
        if wait:
            settle_or_reload(page, errors)
        return page

    yield visit
    for one in opened:
        one.close()
    assert not errors
    local = (dashboard.url, dashboard.url.replace("http", "ws"), "data:", "blob:")
    assert [url for url in elsewhere if not url.startswith(local)] == []


def settle_or_reload(page: Page, errors: list[str]) -> None:
    """Settle, and load a page once more on which Streamlit's own script broke, as a visitor would: about once
    in a thousand visits it refuses the place of an element that is drawn while the page is drawn anew."""
    known = len(errors)
    try:
        settle(page)
    except BrowserTimeoutError:
        if not any(BROKEN_DRAWING in error for error in errors[known:]):
            raise
        del errors[known:]
        page.reload()
        settle(page)


def settle(page: Page) -> None:
    """Wait until no script runs and nothing is being measured."""
    page.wait_for_function(SETTLED, polling=50)
    assert page.get_by_test_id("stException").count() == 0


def act(page: Page, action: Callable[[], object]) -> None:
    """Do what makes the page run its script again, and wait until all that follows from it is shown."""
    page.evaluate(AWAIT)
    action()
    settle(page)


def move(page: Page, slider: str, key: str, times: int = 1) -> None:
    """Press a key on a slider's thumb, as a visitor without a mouse does."""
    thumb = page.get_by_role("slider", name=slider)
    for _ in range(times - 1):
        thumb.press(key)
    act(page, lambda: thumb.press(key))


def choose(page: Page, group: str, option: str) -> None:
    """Press one of a group's buttons."""
    radio = page.get_by_role("radiogroup", name=group).get_by_role("radio", name=option, exact=True)
    act(page, radio.click)


def toggle(page: Page, label: str) -> Locator:
    return page.get_by_test_id("stCheckbox").filter(has_text=label)


def flip(page: Page, label: str) -> None:
    act(page, toggle(page, label).click)


def pick(page: Page, box: str | re.Pattern[str], option: str) -> None:
    """Take one of a list's options, typing to find it."""
    field = page.get_by_role("combobox", name=box)
    field.click()  # first: a list that is scrolled into view while it opens closes again
    field.fill(option)
    act(page, page.get_by_role("option", name=option, exact=True).click)


def card(page: Page, label: str) -> Locator:
    """One of the figures at the top, with what stands below it."""
    metric = page.get_by_test_id("stMetric").filter(has_text=label)
    return page.get_by_test_id("stVerticalBlock").filter(has=metric).last


def cards(page: Page) -> list[str]:
    return page.get_by_test_id("stMetric").all_inner_texts()


def expect_figures(page: Page, measured: dict[str, Any]) -> None:
    """The cards say what the command line says."""
    accuracy, size = measured["accuracy"], measured["size_bytes"]
    percent = 100 * accuracy["correct"] / accuracy["total"]
    written = METRICS["accuracy"].format(percent, 100 * accuracy["low"], 100 * accuracy["high"])
    for part in written.rstrip(")").split(" ("):
        expect(card(page, "Accuracy")).to_contain_text(part)
    for kind, words in (("file", "{}"), ("packed", "packed {}"), ("compressed", "zstd {}")):
        expect(card(page, "Size of the file")).to_contain_text(words.format(format_bytes(size[kind])))
    operations = METRICS["operations"].format(measured["weights"]["operations"])
    expect(card(page, "Operations left")).to_contain_text(operations)


def downloaded(page: Page, click: Callable[[], None]) -> tuple[str, bytes]:
    """The name and the bytes of the file that a click brings."""
    with page.expect_download() as waiting:
        click()
    path = waiting.value.path()
    return waiting.value.suggested_filename, Path(path).read_bytes()


def table_of(page: Page, number: int = 0) -> pd.DataFrame:
    """What one of the page's tables shows, by the download in its toolbar."""
    table = page.get_by_test_id("stDataFrame").nth(number)
    table.evaluate("table => table.scrollIntoView({block: 'center'})")  # not below the page's header
    table.hover()
    button = page.get_by_test_id("stElementToolbar").get_by_role("button", name="Download as CSV")
    press = button.nth(number).dispatch_event  # a table at the top has its toolbar under the page's header
    return pd.read_csv(io.BytesIO(downloaded(page, lambda: press("click"))[1]))
