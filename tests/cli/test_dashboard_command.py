"""The dashboard's process and its server's, from the shell."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from ports import free_port
from refusals import refused

from optimizer.cli.main import main
from optimizer.system.paths import JOB_LOG_VARIABLE


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(["dashboard", "--headless", "--port", str(port)], capsys)
    assert f"can't serve on 127.0.0.1:{port}" in line
    assert "--port" in line


class Served(subprocess.Popen[str]):
    """A process that must not be: still a class, which mcp subscripts when it is first imported here."""

    def __init__(self, *_: object, **__: object) -> None:
        pytest.fail("served")


def test_a_folder_that_would_be_read_as_two_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``photos:2024`` would open ``photos`` and ``2024`` to visitors."""
    folder = tmp_path / f"photos{os.pathsep}2024"
    folder.mkdir()
    monkeypatch.setattr(subprocess, "Popen", Served)
    for command in (["dashboard", "--port", "0", "--images"], ["mcp", "--allow"]):
        if command[0] == "dashboard" or find_spec("mcp"):
            assert f"{command[-1]} {folder} can't be opened" in refused([*command, str(folder)], capsys)


def test_a_log_of_jobs_that_can_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "Popen", Served)
    for path in (tmp_path, tmp_path / "nowhere" / "jobs.jsonl"):
        assert f"can't write --job-log {path} (" in refused(
            ["dashboard", "--port", "0", "--job-log", str(path)], capsys
        )


class Ended(Exception):
    """In the place of a server."""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a server is started with, which then ends at once."""
    given: dict[str, str] = {}

    class Server(Served):
        def __init__(self, *_: object, env: dict[str, str], **__: object) -> None:
            given.update(env)
            raise Ended

    monkeypatch.setattr(subprocess, "Popen", Server)
    return given


def test_a_log_of_jobs_may_lie_in_the_home_folder(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shells leave ``--job-log=~/jobs.jsonl`` as it is."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Ended):
        main(["dashboard", "--headless", "--port", "0", "--job-log=~/jobs.jsonl"])
    assert environment[JOB_LOG_VARIABLE] == os.path.realpath(tmp_path / "jobs.jsonl")
    assert (tmp_path / "jobs.jsonl").is_file()


@pytest.mark.skipif(os.name != "posix", reason="users without a home folder are POSIX's")
def test_a_user_without_a_home_folder_serves_from_the_data_folder(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a number which no user has. Streamlit would end with a traceback."""
    import pwd

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(Ended):
        main(["dashboard", "--headless", "--port", "0"])
    assert environment["HOME"] == str(tmp_path / "data")


def test_a_user_s_home_folder_stays(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    with pytest.raises(Ended):
        main(["dashboard", "--headless", "--port", "0"])
    assert environment["HOME"] == "/home/ann"


def test_the_server_finds_its_pages_where_python_leaves_out_the_working_folder(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed wheel has them in no folder that is searched otherwise."""
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    with pytest.raises(Ended):
        main(["dashboard", "--headless", "--port", "0"])
    assert "PYTHONSAFEPATH" not in environment


@contextmanager
def serving(port: int, *options: str, **how: Any) -> Iterator["subprocess.Popen[str]"]:
    """A dashboard in a process of its own that has said where it is; gone at the end, whatever happened."""
    command = [sys.executable, "-m", "optimizer.cli", "dashboard", "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **how) as dashboard:
        try:
            assert dashboard.stdout is not None
            said = next(line for line in dashboard.stdout if "http:" in line)
            assert said == f"Paretoscope is open at http://127.0.0.1:{port} (Ctrl-C ends it)\n"
            yield dashboard
        finally:
            dashboard.kill()


@pytest.mark.slow
@pytest.mark.parametrize("read", [True, False])
def test_a_first_visit_is_asked_nothing_in_the_shell_and_whoever_ends_the_dashboard_ends_its_server(
    read: bool, tmp_path: Path
) -> None:
    """Streamlit would ask for an e-mail address, and end where nobody can type one. It would say goodbye at
    the end, also where nobody reads its output any more."""
    first = {**os.environ, "HOME": str(tmp_path), "BROWSER": "true"}
    said, port, headless = tmp_path / "said", free_port(), ["--headless"] if read else []
    with (
        said.open("w") as errors,
        serving(port, *headless, stdin=subprocess.DEVNULL, stderr=errors, env=first) as dashboard,
    ):
        assert dashboard.poll() is None
        assert "WARNING" not in said.read_text()
        if sys.platform == "win32":  # there, processes end without a word
            return
        if not read:
            assert dashboard.stdout is not None
            dashboard.stdout.close()
        dashboard.terminate()
        assert dashboard.wait(60) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_dashboard_takes_its_server_along() -> None:
    with serving(free_port(), "--headless") as dashboard:
        server = next(
            one for one in psutil.Process(dashboard.pid).children() if "pages.serve" in one.cmdline()
        )
        dashboard.kill()
        dashboard.wait(60)
        psutil.wait_procs([server], timeout=30)
        assert not server.is_running()
