import csv
import io
import json
import math
import os
import re
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import psutil
import pytest
from factories import OTHER_MACHINE, make_result, make_sweep, recipe
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from playwright.sync_api import sync_playwright

from optimizer.analysis.frame import frame
from optimizer.analysis.metrics import METRICS
from optimizer.charts import accuracy_info, figure, size_info
from optimizer.errors import UnavailableError
from optimizer.export import pictures
from optimizer.export.pictures import chrome, render
from optimizer.export.report import report
from optimizer.export.tables import Section, charts_of, file_name, page, title_of
from optimizer.methods.exporters import EXPORTERS

SWEEP = make_sweep((0.0, 0.5, 0.9), (32, 4))
EVIL = '</script><script>alert(1)</script><img src=x onerror=alert(1)>"&'

needs_chrome = pytest.mark.skipif(bool(chrome().problem), reason=f"no picture: {chrome().problem}")


@pytest.fixture
def browser_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    pictures._chrome.cache_clear()
    yield monkeypatch
    pictures._chrome.cache_clear()


def test_exporters_say_what_they_write() -> None:
    assert {"csv", "json", "html", "png", "svg"} <= set(EXPORTERS)
    for exporter in EXPORTERS.values():
        assert "/" in exporter.mime
        assert exporter.label
        assert re.fullmatch("[a-z]+", exporter.extension)
    assert {name for name, exporter in EXPORTERS.items() if exporter.needs_chrome} == {"png", "svg"}


@pytest.mark.parametrize("name", ["csv", "json", "latex", "html"])
def test_nothing_measured_can_be_exported(name: str) -> None:
    assert EXPORTERS[name].write([])


# Tables


def test_csv_reads_back_to_the_same_frame() -> None:
    rows = list(csv.DictReader(io.StringIO(EXPORTERS["csv"].write(SWEEP).decode())))
    expected = frame(SWEEP)
    assert list(rows[0]) == list(expected.columns)
    for column in expected.select_dtypes("number"):
        written = [float(row[column]) if row[column] else math.nan for row in rows]
        np.testing.assert_array_equal(written, expected[column])
    assert [row["recipe"] for row in rows] == list(expected["recipe"])
    assert [row["frontier"] for row in rows] == list(map(str, expected["frontier"]))


@pytest.mark.parametrize("start", list("=+-@\t\r\n"))
def test_csv_runs_no_formula_in_a_spreadsheet(start: str) -> None:
    text = f'{start}HYPERLINK("http://example.com")'
    rows = pd.read_csv(io.BytesIO(EXPORTERS["csv"].write([make_result(model=text)])))
    assert rows["model"][0].lstrip("\r\n") == f"'{text}".lstrip("\r\n")
    assert rows["model"][0].startswith("'")


def test_csv_leaves_negative_numbers_alone() -> None:
    rows = pd.read_csv(io.BytesIO(EXPORTERS["csv"].write([make_result(recipe(weight_bits=8))])))
    assert rows["drop_points_low"][0] < 0


def test_json_table_says_what_its_columns_are() -> None:
    table = json.loads(EXPORTERS["json"].write(SWEEP))
    assert table["version"] == 1
    assert table["columns"]["latency_ns"] == {"label": "latency", "unit": "ns"}
    assert set(table["columns"]) == {measured.column for measured in METRICS.values()}
    expected = frame(SWEEP)
    assert len(table["rows"]) == len(SWEEP)
    for row, (_, wanted) in zip(table["rows"], expected.iterrows(), strict=True):
        assert set(row) == set(expected.columns)
        assert row["accuracy_percent"] == wanted["accuracy_percent"]
        assert row["latency_ratio_low"] == wanted["latency_ratio_low"]
        assert row["latency_p99_ns"] is None
        assert isinstance(row["file_bytes"], int)


def test_latex_is_plain_ascii_with_its_characters_escaped() -> None:
    text = EXPORTERS["latex"].write([make_result(recipe(0.5, 4), model="a_b & c%")]).decode()
    assert text.isascii()
    assert r"a\_b \& c\%" in text
    assert r"50 \% of layer weights pruned $\cdot$ 4-bit weights" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1


# File names


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("fashion-resnet", "paretoscope-fashion-resnet.csv"),
        ("../../etc/passwd", "paretoscope-etc-passwd.csv"),
        ("C:\\CON", "paretoscope-C-CON.csv"),
        ("", "paretoscope.csv"),
        ("日本", "paretoscope.csv"),
    ],
)
def test_file_names_are_safe(title: str, name: str) -> None:
    assert file_name(title, "csv") == name


@given(st.text('aZ09._-/\\:*?"<>| \0\n日é', max_size=300))
def test_file_names_are_always_safe(title: str) -> None:
    name = file_name(title, "png")
    assert re.fullmatch(r"paretoscope(-[A-Za-z0-9][A-Za-z0-9._-]*)?\.png", name)
    assert len(name) < 110
    assert Path(name).name == name


# The HTML file


def test_html_reaches_nothing_outside_itself() -> None:
    text = EXPORTERS["html"].write(SWEEP).decode()
    head, _, rest = text.partition("<script>")
    for fetched in ('src="', "href=", "@import", "url("):
        assert fetched not in head
    assert "default-src 'none'" in head
    assert rest.count("plotly.js v") == 1
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", text)


def test_html_has_every_chart_in_both_modes_and_the_table() -> None:
    text = EXPORTERS["html"].write(SWEEP).decode()
    found = re.search('<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert found
    figures = json.loads(found[1])
    assert set(figures) == set(charts_of(SWEEP))
    for name, modes in figures.items():
        assert set(modes) == {"light", "dark"}
        assert modes["light"]["data"]
        assert f'id="chart-{name}"' in text
    for words in ("How to read this", "Environment", "50 % of layer weights pruned", "openvino 2026"):
        assert words in text


def test_html_escapes_what_users_name() -> None:
    text = EXPORTERS["html"].write([make_result(model=EVIL, path=f"/photos/{EVIL}")]).decode()
    assert "<img" not in text
    assert "alert(1)</script><" not in text.replace("\\u003c", "<").partition('id="figures"')[0]
    assert text.count("</script>") == 3


@needs_chrome
@pytest.mark.browser
def test_html_draws_its_charts_and_pictures_without_a_network(tmp_path: Path) -> None:
    page_file = tmp_path / "export.html"
    page_file.write_bytes(EXPORTERS["html"].write(SWEEP))
    complaints: list[str] = []
    schemes: dict[Literal["light", "dark"], str] = {"light": "rgb(255, 255, 255)", "dark": "rgb(23, 22, 20)"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chrome().path, args=["--no-sandbox"])
        for scheme, background in schemes.items():
            page = browser.new_context(offline=True, color_scheme=scheme).new_page()
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(page_file.as_uri())
            for name in charts_of(SWEEP):
                assert page.locator(f"#chart-{name} .main-svg").first.is_visible()
                picture = page.evaluate(f"Plotly.toImage('chart-{name}', {{format: 'png'}})")
                assert picture.startswith("data:image/png;base64,")
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
        browser.close()
    assert complaints == []


@needs_chrome
@pytest.mark.browser
def test_no_table_of_a_report_is_cut_at_a_desktop_window(tmp_path: Path) -> None:
    """A column beyond the window's edge is found by nobody: a scrollbar is hidden until it is used."""
    page_file = tmp_path / "report.html"
    page_file.write_text(report([*SWEEP, *make_sweep((0.5,), (32, 4), noisy=True)]))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chrome().path, args=["--no-sandbox"])
        page = browser.new_context(offline=True, viewport={"width": 1440, "height": 900}).new_page()
        page.goto(page_file.as_uri())
        beyond = page.evaluate(
            "[...document.querySelectorAll('.table')].map(one => one.scrollWidth - one.clientWidth)"
        )
        browser.close()
    assert beyond == [0, 0, 0]


def test_a_cell_that_is_missing_is_a_dash() -> None:
    """pandas makes a number that is none of it."""
    rows = pd.DataFrame({"recipe": ["a", "b"], "latency": [1.5, None]})
    text = page("Title", SWEEP, {}, after=(Section("Tried", rows=rows),))
    assert "<td>–</td>" in text
    assert ">nan<" not in text


def test_html_of_two_machines_warns() -> None:
    text = EXPORTERS["html"].write([make_result(), make_result(recipe(0.5), other_machine=True)]).decode()
    assert "Times of different machines can&#39;t be compared" in text
    assert OTHER_MACHINE.cpu not in text  # it has angle brackets
    assert "Another CPU &lt;b&gt;" in text


def test_results_of_several_models_are_compared_in_rows() -> None:
    mixed = [make_result(), make_result(model="fashion-vit")]
    assert set(charts_of(mixed)) == {"accuracy", "drop", "file_size", "latency_ratio"}
    assert set(charts_of(SWEEP)) == {"accuracy", "size", "latency", "frontier"}


def test_titles_count() -> None:
    assert title_of(SWEEP[:1]) == "fashion-resnet: 1 configuration"
    assert title_of(SWEEP) == f"fashion-resnet: {len(SWEEP)} configurations"
    assert title_of([make_result(model=name) for name in "abcd"]) == "4 models: 4 configurations"


# Pictures


def test_a_missing_browser_is_said_in_words(browser_path: pytest.MonkeyPatch) -> None:
    browser_path.setenv("BROWSER_PATH", "/nowhere/chrome")
    assert chrome().path is None
    with pytest.raises(UnavailableError, match="BROWSER_PATH is '/nowhere/chrome', which is not a program"):
        EXPORTERS["png"].write(SWEEP)


def test_no_browser_at_all_is_said_with_what_to_do(browser_path: pytest.MonkeyPatch) -> None:
    from choreographer.browsers.chromium import Chromium

    browser_path.delenv("BROWSER_PATH", raising=False)
    browser_path.setattr(Chromium, "find_browser", lambda **options: None)
    assert "install Chrome or Chromium" in chrome().problem


def test_a_program_that_is_no_browser_is_said_in_words(browser_path: pytest.MonkeyPatch) -> None:
    browser_path.setenv("BROWSER_PATH", "/bin/true")
    with pytest.raises(UnavailableError, match="the Chrome at /bin/true could not draw the charts"):
        render([accuracy_info(SWEEP)], "png")


@pytest.fixture
def hanging(browser_path: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file in which a browser that never answers writes its process id, and its child's."""
    pids = tmp_path / "pids"
    browser = tmp_path / "chrome"
    browser.write_text(f"#!/bin/sh\nsleep 600 &\necho $$ $! > {pids}\nwait\n")
    browser.chmod(0o755)
    browser_path.setenv("BROWSER_PATH", str(browser))
    return pids


@pytest.mark.skipif(os.name != "posix", reason="the browser is a shell script")
@pytest.mark.slow
def test_a_browser_that_hangs_is_ended(hanging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "RENDER_SECONDS", 3)
    begin = time.monotonic()
    with pytest.raises(UnavailableError, match="ended, as it took longer than 3 s to draw 2 charts"):
        render([accuracy_info(SWEEP), size_info(SWEEP)], "png")
    assert time.monotonic() - begin < 30
    pids = [int(pid) for pid in hanging.read_text().split()]
    assert len(pids) == 2
    assert not any(map(lives, pids))
    assert not pictures._lock.locked()


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_browser_that_begins_too_early_draws_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def draw(*given: object) -> list[bytes]:
        tried.append(given)
        if len(tried) % 3 == 1:
            raise RuntimeError("kaleido_scopes is not defined")
        if len(tried) == 5:
            raise TimeoutError
        return [b"picture"]

    monkeypatch.setattr(pictures, "_render", draw)
    monkeypatch.setattr(pictures, "chrome", lambda: pictures.Chrome("chrome", ""))
    assert render([size_info(SWEEP)], "png") == render([size_info(SWEEP)], "png") == [b"picture"]
    assert tried[0] == tried[1]
    with pytest.raises(UnavailableError, match="was ended"):
        render([size_info(SWEEP)], "png")
    assert len(tried) == 5


def test_pictures_are_drawn_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two visitors: the second waits, and is told so where the first takes too long."""
    drawing, done = threading.Event(), threading.Event()

    def draw(*_: object) -> list[bytes]:
        drawing.set()
        assert done.wait(60)
        return [b"picture"]

    monkeypatch.setattr(pictures, "_render", draw)
    monkeypatch.setattr(pictures, "chrome", lambda: pictures.Chrome("chrome", ""))
    monkeypatch.setattr(pictures, "TURN_SECONDS", 0.1)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(render, [size_info(SWEEP)], "png")
        assert drawing.wait(60)
        with pytest.raises(UnavailableError, match="drawn one after another.*try again"):
            render([size_info(SWEEP)], "png")
        monkeypatch.setattr(pictures, "TURN_SECONDS", 60)
        second = threads.submit(render, [size_info(SWEEP)], "png")
        done.set()
        assert first.result(60) == second.result(60) == [b"picture"]


@pytest.mark.slow
@needs_chrome
def test_png_has_all_charts_two_a_row() -> None:
    picture = Image.open(io.BytesIO(EXPORTERS["png"].write(SWEEP)))
    assert picture.format == "PNG"
    row = max(figure(chart).layout.height for chart in charts_of(SWEEP).values())
    assert picture.size == (2 * 2 * pictures.PICTURE_WIDTH, 2 * 2 * row)
    assert picture.getpixel((3, 3)) == (255, 255, 255)
    for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):
        width, height = picture.size[0] // 2, picture.size[1] // 2
        left, top = corner[0] * width, corner[1] * height
        assert len(picture.crop((left, top, left + width, top + height)).getcolors(10**6) or []) > 50


@pytest.mark.slow
@needs_chrome
def test_svg_is_one_document_with_every_title() -> None:
    root = ElementTree.fromstring(EXPORTERS["svg"].write(SWEEP))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = " ".join(root.itertext())
    for chart in charts_of(SWEEP).values():
        assert chart.title in text


@pytest.mark.slow
@needs_chrome
def test_a_chart_can_be_drawn_while_an_event_loop_runs() -> None:
    import asyncio

    async def draw() -> list[bytes]:
        return render([size_info(SWEEP)], "png")

    (picture,) = asyncio.run(draw())
    corner = Image.open(io.BytesIO(picture)).convert("RGB").getpixel((2, 2))
    assert corner == (255, 255, 255)


def test_missing_stays_missing() -> None:
    rows = pd.read_csv(io.BytesIO(EXPORTERS["csv"].write([make_result(quick=True, rounds=40)])))
    assert math.isnan(rows["memory_bytes"][0])
    assert math.isnan(rows["latency_p95_ns"][0])


def test_tables_compare_with_a_chosen_result() -> None:
    for name, words in (
        ("csv", b"against_lost_points"),
        ("json", b"against_lost_points"),
        ("latex", b"differs"),
    ):
        assert EXPORTERS[name].compares
        assert words in EXPORTERS[name].write(SWEEP[:3], SWEEP[1])
        assert words not in EXPORTERS[name].write(SWEEP[:3])
