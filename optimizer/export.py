"""Results to bytes: tables, pictures, and one HTML file that opens without a network.

``EXPORTERS["csv"].write(results)``. Pictures are drawn by a Chrome through kaleido; :func:`chrome` says where
it is, or why there is none.
"""

import asyncio
import importlib.util
import io
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import jinja2
import msgspec
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from optimizer import __version__
from optimizer.charts import accuracy_info, compare_info, frontier_info, latency_info, size_info
from optimizer.errors import UnavailableError
from optimizer.figures import HEIGHT, Bars, Lines, alternative, figure
from optimizer.frame import frame, summarise, table
from optimizer.metrics import METRICS
from optimizer.records import Result
from optimizer.theme import DARK, FONT, LIGHT, Theme

TABLE_VERSION = 1
PICTURE_WIDTH = 640
PICTURE_SCALE = 2
RENDER_SECONDS = 90

Charts = Mapping[str, Lines | Bars]


@dataclass(frozen=True)
class Exporter:
    """One kind of file. ``needs_chrome``: ``write`` raises UnavailableError where :func:`chrome` has a problem."""

    label: str
    extension: str
    mime: str
    write: Callable[[Sequence[Result]], bytes]
    needs_chrome: bool = False


def file_name(title: str, extension: str) -> str:
    """A name that every file system takes, made of letters, digits, dots, dashes and underscores."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", title)[:80].strip("-._")
    return f"paretoscope-{slug}.{extension}" if slug else f"paretoscope.{extension}"


def charts_of(results: Sequence[Result]) -> dict[str, Lines]:
    """The charts that suit these results: curves for one model on one set of images, else one row a result."""
    if len({(result.request.model, result.request.data) for result in results}) <= 1:
        return {
            "accuracy": accuracy_info(results),
            "size": size_info(results),
            "latency": latency_info(results),
            "frontier": frontier_info(results),
        }
    return {name: compare_info(results, name) for name in ("accuracy", "drop", "file_size", "latency_ratio")}


# Tables


def write_csv(results: Sequence[Result]) -> bytes:
    """The frame, numbers at full precision. Text that a spreadsheet would run as a formula gets a leading quote."""
    rows = frame(results)
    for column in rows.columns:
        if not (pd.api.types.is_numeric_dtype(rows[column]) or pd.api.types.is_bool_dtype(rows[column])):
            rows[column] = rows[column].map(_inert)
    return rows.to_csv(index=False, lineterminator="\n").encode()


def _inert(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else cell


def write_json(results: Sequence[Result]) -> bytes:
    """The frame as ``{"version", "columns", "rows"}``: label and unit of each metric's column, missing is null."""
    columns = {measured.column: {"label": measured.label, "unit": measured.unit} for measured in METRICS.values()}
    rows = frame(results).to_dict("records")
    return msgspec.json.encode({"version": TABLE_VERSION, "columns": columns, "rows": rows})


_LATEX = {"×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$", "−": "$-$", "–": "--", "µ": r"$\mu$", "|": "$|$"}


def write_latex(results: Sequence[Result]) -> bytes:
    """The table that people read, as a LaTeX tabular; it needs the package booktabs."""
    text = table(results).to_latex(index=False, escape=True)
    for character, command in _LATEX.items():
        text = text.replace(character, command)
    return f"% \\usepackage{{booktabs}}\n{text}".encode()


# Pictures


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
        problem = f"BROWSER_PATH is {asked!r}, which is not a program: set it to a Chrome or Chromium, or unset it"
        return Chrome(path, "" if path else problem)
    from choreographer.browsers.chromium import Chromium

    path = Chromium.find_browser(skip_local=False)
    return Chrome(
        path,
        ""
        if path
        else "pictures are drawn by a Chrome, and none is found: install Chrome or Chromium, or set BROWSER_PATH "
        "to one. The camera button of each chart needs none",
    )


def render(charts: Sequence[Lines | Bars], kind: str, dark: bool = False) -> list[bytes]:
    """Each chart as an opaque picture, ``png`` or ``svg``. One browser is started for the call and stopped after it.

    Raises UnavailableError without a Chrome, or when it fails.
    """
    browser = chrome()
    if browser.problem:
        raise UnavailableError(browser.problem)
    figures = [_opaque(chart, dark) for chart in charts]
    with ThreadPoolExecutor(1) as thread:  # the caller's thread may run an event loop of its own
        try:
            return thread.submit(asyncio.run, _render(figures, kind, browser.path)).result()
        except Exception as error:  # a browser fails in many ways, and kaleido lets each one through
            raise UnavailableError(
                f"the Chrome at {browser.path} could not draw the charts ({type(error).__name__}: {error}): try again, "
                "or set BROWSER_PATH to another one"
            ) from error


async def _render(figures: Sequence[go.Figure], kind: str, path: str | None) -> list[bytes]:
    import kaleido

    # mathjax is off: it would be fetched from a network. kaleido passes --no-sandbox by itself.
    async with kaleido.Kaleido(mathjax=False, path=path, timeout=RENDER_SECONDS) as browser:
        return [
            await browser.calc_fig(
                drawn,
                opts={
                    "format": kind,
                    "width": PICTURE_WIDTH,
                    "height": drawn.layout.height,
                    "scale": PICTURE_SCALE if kind == "png" else 1,
                },
            )
            for drawn in figures
        ]


def _opaque(chart: Lines | Bars, dark: bool) -> go.Figure:
    drawn = figure(chart, dark=dark)
    drawn.update_layout(paper_bgcolor=(DARK if dark else LIGHT).page)
    return drawn


def write_png(results: Sequence[Result]) -> bytes:
    """All charts in one picture, two a row. Raises UnavailableError without a Chrome."""
    pictures = [Image.open(io.BytesIO(picture)) for picture in render(list(charts_of(results).values()), "png")]
    places, size = _places([picture.size for picture in pictures])
    sheet = Image.new("RGB", size, LIGHT.page)
    for picture, place in zip(pictures, places, strict=True):
        sheet.paste(picture, place)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def write_svg(results: Sequence[Result]) -> bytes:
    """All charts in one vector picture, two a row. Raises UnavailableError without a Chrome."""
    charts = [figure_of.decode() for figure_of in render(list(charts_of(results).values()), "svg")]
    heights = [chart.height for chart in map(_svg_size, charts)]
    places, (width, height) = _places([(PICTURE_WIDTH, high) for high in heights])
    nested = "".join(
        f'<g transform="translate({x},{y})">{chart[chart.index("<svg") :]}</g>'
        for chart, (x, y) in zip(charts, places, strict=True)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{nested}</svg>'
    ).encode()
