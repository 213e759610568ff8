"""What a visitor waits for in a browser, from a control's change to each figure: part of ``sliders.py``.

Watches Explore in headless Chromium. A position is drawn when its recipe in words or the last card has
changed; from then on a figure is there when its card has no dash, and accuracy is that of all images when it
does not say "so far". What is not there within MAX_WAIT_MS counts as that long, and is told as ``late``.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from playwright.sync_api import Page, sync_playwright
from playwright.sync_api import TimeoutError as BrowserTimeoutError

from optimizer.records import DataSpec

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
PATIENCE_MS = 120_000
START_SECONDS = 120.0
MAX_WAIT_MS = 60_000.0
SETTLE_SECONDS = 15
FIGURES = ("counts and size", "first accuracy", "accuracy", "everything")
WATCH = """
() => {
  const cards = '[data-testid=stMetricValue]';
  const position = () => document.querySelector('[data-testid=stMain] strong')?.textContent
    + [...document.querySelectorAll(cards)].at(-1)?.textContent;
  const known = card => card && card.textContent !== '–';
  const whole = card => !card.closest('[data-testid=stVerticalBlock]').textContent.includes('so far');
  const before = position(), begun = performance.now(), seen = {};
  const watch = window.paretoscopeWatch = {changed: false, seen};
  const look = () => {
    watch.changed = position() !== before;
    if (!watch.changed) return;
    const [accuracy, size, latency] = document.querySelectorAll(cards);
    const found = {
      'counts and size': known(size),
      'first accuracy': known(accuracy),
      'accuracy': known(accuracy) && whole(accuracy),
      'everything': known(accuracy) && whole(accuracy) && known(size) && known(latency),
    };
    for (const figure in found)
      if (found[figure] && !(figure in seen)) seen[figure] = performance.now() - begun;
    if ('everything' in seen) clearInterval(timer);
  };
  const timer = setInterval(look, 10);
}
"""


@contextmanager
def dashboard(home: Path, *options: str) -> Iterator[str]:
    """Its address. Ends the benchmark where it ends by itself, or does not answer within START_SECONDS."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "optimizer.cli",
        "dashboard",
        "--headless",
        "--port",
        str(port),
        *options,
    ]
    server = subprocess.Popen(
        command,
        env={**os.environ, "PARETOSCOPE_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            if server.poll() is not None:
                raise SystemExit(f"the dashboard ended with {server.returncode} before it answered")
            if time.monotonic() > end:
                raise SystemExit(f"the dashboard has not answered within {START_SECONDS:g} s")
            with suppress(OSError), urllib.request.urlopen(f"{url}/_stcore/health", timeout=5):
                break
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(60)


Watched = dict[str, float] | None
"""When each figure was there, in milliseconds, of a position; None where nothing changed that can be seen, as
between positions of one size."""


def waits(positions: int, model: str, data: DataSpec) -> dict[str, dict[str, Any]]:
    """Milliseconds by what was changed and by figure (:func:`summary`)."""
    path = next(filter(None, map(shutil.which, CHROMIUM)))
    found: dict[str, list[Watched]] = {}
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        measure, roots = [sys.executable, "-m", "optimizer.cli", "measure", model, "--quick"], []
        link = {"model": model, "sparsity": "20"}
        if data.path and data.calibration:
            measure += ["--data", data.path, "--calibration", data.calibration]
            lead = {str(one.resolve().parent) for one in Path(data.path).iterdir()}  # they may be links
            roots = [part for root in (data.path, data.calibration, *lead) for part in ("--images", root)]
            link |= {"images": data.path, "calibration": data.calibration}
        subprocess.run(measure, env={**os.environ, "PARETOSCOPE_HOME": home}, capture_output=True, check=True)
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        with dashboard(Path(home), *roots) as url:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(PATIENCE_MS)
            page.goto(f"{url}/?{urlencode(link)}")
            page.get_by_role("slider", name="Sparsity").wait_for()
            _press(page, "Sparsity", "ArrowRight")  # libraries load, the first statistics are worked out
            time.sleep(SETTLE_SECONDS)  # the positions beside it are measured too
            for number in range(positions):
                method = ("Magnitude", "Data-aware (OBS)")[number % 2]
                for what, key in (
                    ("Sparsity", "ArrowRight"),
                    ("Weight bits", ("ArrowLeft", "ArrowRight")[number % 2]),
                    ("Activation bits", ("ArrowLeft", "ArrowRight")[number % 2]),
                ):
                    found.setdefault(what, []).append(_press(page, what, key))
                found.setdefault("Method", []).append(_choose(page, method))
        browser.close()
    return {what: summary(one) for what, one in found.items()}


def summary(watched: Sequence[Watched]) -> dict[str, Any]:
    """Median and 95th percentile of each figure over the positions that changed something, how many were
    ``late``, and how many positions were ``unchanged``."""
    changed = [one for one in watched if one is not None]
    found: dict[str, Any] = {"unchanged": len(watched) - len(changed)}
    for figure in FIGURES if changed else ():
        taken = [one.get(figure, MAX_WAIT_MS) for one in changed]
        found[figure] = {
            "median_ms": float(np.median(taken)),
            "p95_ms": float(np.quantile(taken, 0.95)),
            "positions": len(taken),
            "late": sum(figure not in one for one in changed),
        }
    return found


def never_seen(found: dict[str, dict[str, Any]]) -> list[str]:
    """A sentence for each control of which there is no figure."""
    return [
        f"no new position of {what} could be seen on the page"
        for what in found
        if not found[what].keys() & set(FIGURES)
    ]


def _press(page: Page, slider: str, key: str) -> Watched:
    thumb = page.get_by_role("slider", name=slider)
    thumb.focus()
    page.evaluate(WATCH)
    thumb.press(key)
    return _seen(page)


def _choose(page: Page, method: str) -> Watched:
    field = page.get_by_role("combobox", name="Method")
    field.click()
    field.fill(method)
    option = page.get_by_role("option", name=method, exact=True)
    page.evaluate(WATCH)
    option.click()
    return _seen(page)


def _seen(page: Page) -> Watched:
    everything = "'everything' in window.paretoscopeWatch.seen"
    with suppress(BrowserTimeoutError):
        page.wait_for_function(everything, timeout=MAX_WAIT_MS, polling=100)
    found = page.evaluate("window.paretoscopeWatch")
    time.sleep(0.3)
    seen: dict[str, float] = found["seen"]
    return seen if found["changed"] else None
