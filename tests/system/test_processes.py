"""Which process is gone, by the name that it gave itself, and how one ended."""

import os
import socket
from pathlib import Path

import psutil
import pytest

from optimizer.errors import WorkError
from optimizer.system import processes
from optimizer.system.processes import identity, is_gone, run_module


def test_a_process_of_another_boot_or_container_is_not_judged_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same host name, and of a number that nobody has here."""
    mine, number = identity(), f"/{os.getpid()}/"
    ended = mine.replace(number, "/999999999/")
    assert not is_gone(mine)
    assert is_gone(ended)
    (tmp_path / "boot_id").write_text("another")
    monkeypatch.setattr(processes, "BOOT_ID", tmp_path / "boot_id")
    assert not is_gone(mine)
    assert not is_gone(ended)
    assert is_gone(identity().replace(number, "/999999999/"))
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[1]")
    elsewhere = identity()
    monkeypatch.undo()
    assert elsewhere != mine
    assert not is_gone(elsewhere)


def test_a_clock_that_is_set_makes_no_process_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil adds the time of the machine's start, which Linux works out from today's clock."""
    mine, create_time = identity(), psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: create_time(process) + 1)
    assert identity() == mine
    assert not is_gone(mine)
    assert is_gone(f"{mine}0")


def test_where_nothing_tells_boots_apart_a_host_is_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "BOOT_ID", Path("/nowhere"))
    assert identity().startswith(socket.gethostname())
    assert not is_gone(identity())
    assert is_gone(identity().replace(f"/{os.getpid()}/", "/999999999/"))


def test_who_was_named_before_boots_were_told_apart_is_known_by_its_silence_alone() -> None:
    began = psutil.Process().create_time()
    assert not is_gone(f"{socket.gethostname()}/999999999/{began:.2f}")


def test_a_module_that_fails_says_why() -> None:
    with pytest.raises(WorkError, match=r"(?s)a fresh process ended with exit code \d: .*nowhere"):
        run_module("json.tool", "nowhere", max_seconds=60)
