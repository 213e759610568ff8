"""Under which names the dashboard answers: a page of another name that leads here gets no connection."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer.cli.dashboard import OPEN_TO_OTHERS, allowed_hosts, is_loopback
from optimizer.system.paths import PACKAGE

PATIENCE_SECONDS = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """The port of a dashboard that listens on every address, and what it says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("hosts") / "log"
    command = [sys.executable, "-m", "optimizer.cli", "dashboard", "--headless", "--port", str(port)]
    command += ["--host", "0.0.0.0", "--allow-host", "models.example"]
    with log.open("w") as output:
        dashboard = subprocess.Popen(
            command,
            env={**os.environ, "PARETOSCOPE_HOME": str(log.parent / "home")},
            cwd=PACKAGE.parent,
            stdout=output,
            stderr=output,
        )
    try:
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end and dashboard.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        yield port, log
    finally:
        dashboard.terminate()
        dashboard.wait(60)


def connected(port: int, host: str) -> int:
    """The status that a browser gets for its socket on a page of ``http://host``."""
    request = (
        f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: http://{host}:{port}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: streamlit\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.settimeout(30)
        connection.sendall(request.encode())
        return int(connection.recv(1000).split()[1])


@pytest.mark.slow
def test_only_known_names_get_a_connection(server: tuple[int, Path]) -> None:
    port, log = server
    names = ("127.0.0.1", "localhost", "models.example", "evil.example")
    assert [connected(port, name) for name in names] == [101, 101, 101, 403]
    assert OPEN_TO_OTHERS in log.read_text()


def test_names_that_are_allowed() -> None:
    assert allowed_hosts("127.0.0.1", ["a.example"]) == ["localhost", "127.0.0.1", "::1", "a.example"]
    assert socket.gethostname() in allowed_hosts("0.0.0.0", [])
    assert not {"", "*", "0.0.0.0", "::"} & set(allowed_hosts("0.0.0.0", []))
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "models.example")] == [
        True, True, True, False, False,
    ]  # fmt: skip
