"""Take the picture of Explore that the README shows: the real dashboard, of what this machine has measured.

    python -m tools.screenshot                                  # docs/explore.png
    python -m tools.screenshot --home FOLDER --output FILE      # what FOLDER lacks is measured into it

Nothing is made up: the curves are swept and the recipe under the sliders is measured in full first, which
takes some minutes and a quiet machine, else the picture says noisy. Needs Playwright (a dependency of the
tests) and a Chromium on the PATH.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import ViewportSize, sync_playwright

from optimizer.system.paths import PACKAGE
from tools.soak import free_port, healthy

MODEL, ENGINE, SPARSITY, BITS = "fashion-resnet", "sparse", 0.8, 4
ASKED = (
    *(MODEL, "--engine", ENGINE, "--threads", "1"),
    *("--prune", "compensated", "--rounding", "compensated"),
)
CURVES = ("--sparsities", "0,0.3,0.5,0.7,0.8,0.9", "--weight-bits", "32,8,4,3", "--quick")
RECIPE = ("--sparsity", str(SPARSITY), "--weight-bits", str(BITS))
COMMANDS = (("sweep", *ASKED, *CURVES), ("measure", *ASKED, *RECIPE))
WINDOW: ViewportSize = {"width": 1440, "height": 1000}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_SECONDS = 120.0
LINK = {
    **{"model": MODEL, "engine": ENGINE, "timed_threads": "1"},
    **{"method": "compensated", "sparsity": str(round(100 * SPARSITY)), "bits": str(BITS)},
}
SETTLED = """() => {
    const app = document.querySelector("[data-testid=stApp]");
    const works = "[data-testid=stProgress], [data-testid=stSpinner], [data-testid=stSkeleton]";
    return app?.dataset.testScriptState === "notRunning" && !document.querySelector(works)
        && document.querySelectorAll(".js-plotly-plot .gtitle").length === 4;
}"""
"""Nothing runs, and four charts are drawn."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--home", type=Path, help="a data folder to measure into (default: one of its own)")
    parser.add_argument("--output", type=Path, default=PACKAGE.parent / "docs" / "explore.png")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="paretoscope-screenshot-") as own:
        home = options.home or Path(own, "home")
        measure(home)
        with served(home) as url:
            take(url, options.output)
    print(options.output)
    return 0


def command(home: Path, *words: str) -> "subprocess.Popen[bytes]":
    """``paretoscope ...`` on that data folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "optimizer.cli", *words],
        cwd=PACKAGE.parent,
        env={**os.environ, "PARETOSCOPE_HOME": str(home)},
        stdout=subprocess.DEVNULL,
    )


def measure(home: Path) -> None:
    """The curves, and the recipe under the sliders in full. Raises CalledProcessError."""
    for words in COMMANDS:
        running = command(home, *words)
        if code := running.wait():
            raise subprocess.CalledProcessError(code, running.args)


@contextmanager
def served(home: Path) -> Iterator[str]:
    """The address of a dashboard on that data folder, until the block ends."""
    port = free_port()
    server = command(home, "dashboard", "--headless", "--no-work-ahead", "--port", str(port))
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        while not healthy(port):
            if server.poll() is not None or time.monotonic() > until:
                raise TimeoutError("the dashboard does not answer")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def take(url: str, output: Path) -> None:
    """Explore, in the light, with the recipe under its sliders."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=WINDOW, color_scheme="light")
        page.goto(f"{url}/?{urlencode(LINK)}")
        page.wait_for_function(SETTLED, timeout=1000 * PATIENCE_SECONDS)
        page.wait_for_timeout(2_000)  # what fades in
        page.screenshot(path=output)
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
