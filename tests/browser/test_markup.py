"""Text of others in a real browser: as Streamlit's own renderer draws it, and in the pages."""

import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from markup_texts import MEANINGFUL, as_shown
from playwright.sync_api import Browser, expect

from browser.conftest import Visit, await_health, free_port
from optimizer.system.paths import PACKAGE

pytestmark = pytest.mark.browser

SCRIPT = """
import json, pathlib, streamlit as st
from pages.markup import plain
texts = json.loads(pathlib.Path(__file__).with_name("texts.json").read_text())
st.metric(plain(texts[0]), "1", help=plain(texts[0]))
for number, text in enumerate(texts):
    with st.container(key=f"text{number}"):
        (st.markdown, st.caption, st.error, st.button)[number % 4](plain(text))
"""

DRAWN = """() => [...document.querySelectorAll('[class*="st-key-text"]')].map(one => {
    const text = one.querySelector("[data-testid=stMarkdownContainer], [data-testid=stCaptionContainer]");
    const drawn = "a, img, svg, mark, em, strong, del, ul, ol, h1, h2, h3, blockquote, table, hr, pre, "
        + "[class*=katex], [role=img], span[style]";
    return [text?.textContent ?? "", text ? text.querySelectorAll(drawn).length : 0];
})"""


@pytest.mark.slow
def test_streamlit_draws_the_characters(chromium: Browser, tmp_path: Path) -> None:
    draw = random.Random(0)
    made = ["".join(draw.choices(MEANINGFUL, k=draw.randint(1, 6))) for _ in range(300)]
    texts = [
        text for text in {as_shown(text): text for text in (*MEANINGFUL, *made)}.values() if text.strip()
    ]
    (tmp_path / "app.py").write_text(SCRIPT)
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", str(tmp_path / "app.py"), f"--server.port={port}"]
    command += ["--server.headless=true", "--server.address=127.0.0.1", "--browser.gatherUsageStats=false"]
    with (tmp_path / "log").open("w") as output:
        server = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
            cwd=tmp_path,
            stdout=output,
            stderr=output,
        )
    try:
        await_health(server, f"http://127.0.0.1:{port}", tmp_path / "log")
        page = chromium.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{port}")
        expect(
            page.locator(f".st-key-text{len(texts) - 1} [data-testid=stMarkdownContainer]")
        ).to_be_attached()
        page.wait_for_function(
            "document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'"
        )
        drawn = page.evaluate(DRAWN)
        page.close()
    finally:
        server.terminate()
        server.wait(30)
    assert [(as_shown(text), marked) for text, marked in drawn] == [(as_shown(text), 0) for text in texts]
    assert [url for url in asked if f"127.0.0.1:{port}" not in url and not url.startswith("data:")] == []


@pytest.fixture
def heard() -> Iterator[tuple[int, list[bytes]]]:
    """A port of this machine, and what is sent to it."""
    listener = socket.create_server(("127.0.0.1", 0))
    received: list[bytes] = []

    def listen() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            received.append(connection.recv(1000))
            connection.close()

    threading.Thread(target=listen, daemon=True).start()
    yield listener.getsockname()[1], received
    listener.close()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["/?images=", "/models_and_data?images="])
def test_a_picture_in_the_address_is_shown_as_text(
    visit: Visit, heard: tuple[int, list[bytes]], place: str
) -> None:
    port, received = heard
    picture = f"![x](http://127.0.0.1:{port}/a.png)"
    page = visit(place + quote(picture))
    alert = page.get_by_test_id("stAlert").first
    expect(alert).to_contain_text(picture)
    assert alert.locator("img, a").count() == 0
    assert received == []
