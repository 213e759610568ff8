"""Charts as pictures, drawn by a Chrome through kaleido.

:func:`chrome` says where it is, or why there is none.
"""

import asyncio
import importlib.util
import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from typing import Any

import plotly.graph_objects as go

from optimizer.charts.drawing import figure
from optimizer.charts.spec import Lines
from optimizer.charts.theme import LIGHT
from optimizer.errors import UnavailableError
from optimizer.formats import count
from optimizer.system.processes import kill_group

PICTURE_WIDTH = 640
PICTURE_SCALE = 2
RENDER_SECONDS = 90
"""For all the pictures of a file, the browser's start and end included."""
TURN_SECONDS = 30
"""How long one waits while the pictures of others are drawn."""
END_SECONDS = 5
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Chrome:
    """Where a browser is that can draw pictures, or the problem in words, with what to do."""

    path: str | None
    problem: str


def chrome() -> Chrome:
    """The Chrome that ``BROWSER_PATH`` names, else one found on this machine."""
    return _chrome(os.environ.get("BROWSER_PATH"))


@cache
def _chrome(asked: str | None) -> Chrome:
    if importlib.util.find_spec("kaleido") is None:
        return Chrome(None, "pictures need the package kaleido: pip install kaleido")
    if asked is not None:
        path = shutil.which(asked)
        problem = (
            f"BROWSER_PATH is {asked!r}, which is not a program: set it to a Chrome or Chromium, or unset it"
        )
        return Chrome(path, "" if path else problem)
    from choreographer.browsers.chromium import Chromium

    path = Chromium.find_browser(skip_local=False)
    return Chrome(
        path,
        ""
        if path
        else "pictures are drawn by a Chrome, and none is found: install Chrome or Chromium, or set "
        "BROWSER_PATH to one. The camera button of each chart needs none",
    )


def render(charts: Sequence[Lines], kind: str) -> list[bytes]:
    """Each chart as an opaque picture, ``png`` or ``svg``.

    One browser is started for the call and stopped after it, since its memory grows; one at a time in this
    process. Raises UnavailableError without a Chrome, when it fails twice or takes longer than
    RENDER_SECONDS, or when its turn does not come within TURN_SECONDS.
    """
    browser = chrome()
    if browser.problem:
        raise UnavailableError(browser.problem)
    figures = [_opaque(chart) for chart in charts]
    if not _lock.acquire(timeout=TURN_SECONDS):
        raise UnavailableError(
            f"pictures are drawn one after another, and {TURN_SECONDS} s did not bring this one's turn: try "
            "again in a minute"
        )
    try:
        try:
            return _render(figures, kind, browser.path)
        except TimeoutError:
            raise
        except Exception:  # on a busy machine kaleido may begin before the browser has loaded its page
            return _render(figures, kind, browser.path)
    except TimeoutError as error:
        raise UnavailableError(
            f"the Chrome at {browser.path} was ended, as it took longer than {RENDER_SECONDS} s to draw "
            f"{count(len(figures), 'chart')}: try again, or set BROWSER_PATH to another one"
        ) from error
    except Exception as error:  # a browser fails in many ways, and kaleido lets each one through
        raise UnavailableError(
            f"the Chrome at {browser.path} could not draw the charts ({type(error).__name__}: {error}): "
            "try again, or set BROWSER_PATH to another one"
        ) from error
    finally:
        _lock.release()


def _render(figures: Sequence[go.Figure], kind: str, path: str | None) -> list[bytes]:
    """Raises TimeoutError, and whatever kaleido raises. The browser is gone afterwards."""
    import kaleido

    # mathjax is off: it would be fetched from a network. kaleido passes --no-sandbox by itself.
    browser = kaleido.Kaleido(mathjax=False, path=path, timeout=RENDER_SECONDS)
    pictures: Future[list[bytes]] = Future()

    def draw() -> None:
        try:
            pictures.set_result(asyncio.run(_draw(browser, figures, kind)))
        except BaseException as error:
            pictures.set_exception(error)

    # A thread, as the caller's may run an event loop of its own. It is left to itself where it hangs: in
    # kaleido a task that is cancelled waits for its browser once more.
    thread = threading.Thread(target=draw, name="pictures", daemon=True)
    thread.start()
    try:
        return pictures.result(RENDER_SECONDS)
    finally:
        if process := getattr(browser, "subprocess", None):
            kill_group(process.pid)  # kaleido starts it in a session of its own
            process.kill()  # where there are no groups
        thread.join(END_SECONDS)  # removes the browser's temporary files


async def _draw(opened: Any, figures: Sequence[go.Figure], kind: str) -> list[bytes]:
    async with opened as browser:
        return [
            await browser.calc_fig(
                opaque,
                opts={
                    "format": kind,
                    "width": PICTURE_WIDTH,
                    "height": opaque.layout.height,
                    "scale": PICTURE_SCALE if kind == "png" else 1,
                },
            )
            for opaque in figures
        ]


def _opaque(chart: Lines) -> go.Figure:
    opaque = figure(chart)
    opaque.update_layout(paper_bgcolor=LIGHT.page)
    return opaque


def sheet(charts: Sequence[Lines]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Where each chart goes, two a row, and the size of them all, in layout pixels."""
    row = max(figure(chart).layout.height for chart in charts)
    places = [(PICTURE_WIDTH * (index % 2), row * (index // 2)) for index in range(len(charts))]
    return places, (PICTURE_WIDTH * min(2, len(charts)), row * -(-len(charts) // 2))
