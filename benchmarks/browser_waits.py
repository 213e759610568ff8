"""What a visitor waits for in a browser, from a control's change to each figure: part of ``sliders.py``.

Watches Explore in headless Chromium. A position is drawn when its recipe in words or the last card has
changed; from then on a figure is there when its card has no dash, and accuracy is that of all images when it
does not say "so far". What is not there within MAX_WAIT_MS counts as that long, and is told as ``late``.

Where the time goes is read off the server's log of jobs, on the same clock: of each position, what STAGES
names adds up to what everything takes (their medians need not).
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
STAGES = (
    "page and server",
    "queue",
    "compression",
    "building and first images",
    "all images",
    "timing",
    "drawing",
)
"""From the change to the job asked for, until it begins, its counts, its first accuracy, that on all images,
a result, and everything on screen."""
WATCH = """
() => {
  const cards = '[data-testid=stMetricValue]';
  const position = () => document.querySelector('[data-testid=stMain] strong')?.textContent
    + [...document.querySelectorAll(cards)].at(-1)?.textContent;
  const known = card => card && card.textContent !== '–';
  const whole = card => !card.closest('[data-testid=stVerticalBlock]').textContent.includes('so far');
  const before = position(), begun = performance.now(), seen = {};
  const watch = window.paretoscopeWatch = {changed: false, seen, begun: performance.timeOrigin + begun};
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


@dataclass(frozen=True)
class Watched:
    """A position that changed something: since when it was asked for, in seconds since 1970, and by figure
    the milliseconds until it was there."""

    begun: float
    seen: dict[str, float]


Waited = Watched | None
"""None where nothing changed that can be seen, as between positions of one size."""


def waits(positions: int, model: str, data: DataSpec) -> dict[str, dict[str, Any]]:
    """Milliseconds by what was changed and by figure (:func:`summary`)."""
    path = next(filter(None, map(shutil.which, CHROMIUM)))
    found: dict[str, list[Waited]] = {}
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
        log = Path(home, "jobs.jsonl")
        with dashboard(Path(home), "--job-log", str(log), *roots) as url:
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
        events = [json.loads(line) for line in log.read_text().splitlines()]
    return {what: summary(one) | {"stages": stages(one, events)} for what, one in found.items()}


def stages(watched: Sequence[Waited], events: list[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds of each of STAGES by the server's ``events``, medians over the ``positions`` of which it
    has all: not of one that was found in the store."""
    jobs: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["task"] == "measure":
            jobs.setdefault(event["key"], []).append(event)
    rows = [row for one in watched if one and (row := _stages_of(one, jobs.values()))]
    if not rows:
        return {"positions": 0}
    medians = map(float, np.median(rows, axis=0))
    return dict(zip(STAGES, medians, strict=True)) | {"positions": len(rows)}


def _stages_of(one: Watched, jobs: Iterable[list[dict[str, Any]]]) -> list[float]:
    """Nothing where no job has all of them. A result is there before its job's end where it was noisy, and is
    timed again."""
    end = one.begun + one.seen.get("everything", MAX_WAIT_MS) / 1e3
    for events in jobs:
        begun = [event["time"] for event in events if event["state"] == "running"]
        known = [event["time"] for event in events if event["images"] is not None]
        scored = [event["time"] for event in events if event["images"]]
        asked = events[0]["time"]
        if one.begun <= asked <= end and scored:
            timed = next((event["time"] for event in events if event["time"] > scored[-1]), end)
            moments = (one.begun, asked, begun[0], known[0], scored[0], scored[-1], timed, end)
            return [1e3 * float(taken) for taken in np.diff(moments)]
    return []


def summary(watched: Sequence[Waited]) -> dict[str, Any]:
    """Median and 95th percentile of each figure over the positions that changed something, how many were
    ``late``, and how many positions were ``unchanged``."""
    changed = [one for one in watched if one is not None]
    found: dict[str, Any] = {"unchanged": len(watched) - len(changed)}
    for figure in FIGURES if changed else ():
        taken = [one.seen.get(figure, MAX_WAIT_MS) for one in changed]
        found[figure] = {
            "median_ms": float(np.median(taken)),
            "p95_ms": float(np.quantile(taken, 0.95)),
            "positions": len(taken),
            "late": sum(figure not in one.seen for one in changed),
        }
    return found


def never_seen(found: dict[str, dict[str, Any]]) -> list[str]:
    """A sentence for each control of which there is no figure."""
    return [
        f"no new position of {what} could be seen on the page"
        for what in found
        if not found[what].keys() & set(FIGURES)
    ]


def _press(page: Page, slider: str, key: str) -> Waited:
    thumb = page.get_by_role("slider", name=slider)
    thumb.focus()
    page.evaluate(WATCH)
    thumb.press(key)
    return _seen(page)


def _choose(page: Page, method: str) -> Waited:
    field = page.get_by_role("combobox", name="Method")
    field.click()
    field.fill(method)
    option = page.get_by_role("option", name=method, exact=True)
    page.evaluate(WATCH)
    option.click()
    return _seen(page)


def _seen(page: Page) -> Waited:
    everything = "'everything' in window.paretoscopeWatch.seen"
    with suppress(BrowserTimeoutError):
        page.wait_for_function(everything, timeout=MAX_WAIT_MS, polling=100)
    found = page.evaluate("window.paretoscopeWatch")
    time.sleep(0.3)
    return Watched(found["begun"] / 1e3, found["seen"]) if found["changed"] else None
