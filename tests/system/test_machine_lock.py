"""One timing at a time on this machine, where no other user can hold or break the lock."""

import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.tasks import lines, note, until

from optimizer.errors import UnavailableError
from optimizer.system.machine_lock import _folder, machine_lock
from optimizer.system.process_pool import Pool

ROOT = pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root may give files away")

pytestmark = pytest.mark.usefixtures("own_locks")


@pytest.fixture
def pool(own_locks: Path) -> Iterator[Pool]:
    with Pool("faults.tasks:run") as pool:
        yield pool


@pytest.fixture
def no_home(own_locks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The temporary folder, where the lock lies when the user's own folder can't be used."""
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    temporary.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return temporary


@pytest.mark.slow
def test_it_is_held_by_one_process_at_a_time_whatever_its_data_folder(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    job = pool.submit("measure", "hold", {"lock": "work", "begun": str(begun), "go": str(go)}, "k")
    until(lambda: lines(begun))
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path / "another"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    waits: list[float] = []

    def waiting(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            note(tmp_path / "order", "waited")
            go.touch()

    with machine_lock("work", waiting), machine_lock("work"):  # the same thread may take it again
        note(tmp_path / "order", "held")
    assert pool.wait(job, 60).state == "done", job
    assert len(waits) >= 2
    assert waits == sorted(waits)
    assert lines(tmp_path / "order") == ["waited", "held"]


def test_waiting_can_be_given_up_and_a_thread_does_not_share_it() -> None:
    outcomes: list[str] = []

    def give_up(seconds: float) -> None:
        raise TimeoutError

    def ask() -> None:
        try:
            with machine_lock(waiting=give_up):
                outcomes.append("held")
        except TimeoutError:
            outcomes.append("gave up")

    with machine_lock():
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    ask()
    assert outcomes == ["gave up", "held"]


@pytest.mark.skipif(os.name != "posix", reason="modes tell nothing on Windows")
def test_no_other_user_reaches_it(own_locks: Path) -> None:
    with machine_lock():
        (file,) = own_locks.rglob("work.lock")
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_a_home_it_is_in_a_folder_of_its_own(no_home: Path) -> None:
    with machine_lock():
        assert [path.name for path in no_home.rglob("*.lock")] == ["work.lock"]
    (folder,) = no_home.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_home_that_others_can_write_to_or_on_a_network_is_not_locked_in(
    own_locks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert own_locks in _folder().parents
    own_locks.chmod(0o777)
    assert own_locks not in _folder().parents
    own_locks.chmod(0o700)
    monkeypatch.setattr("optimizer.system.machine_lock.is_network", lambda folder: True)
    assert own_locks not in _folder().parents


@ROOT
def test_a_folder_that_another_user_took_first_is_said(no_home: Path) -> None:
    taken = no_home / f"paretoscope-{os.geteuid()}"
    taken.mkdir(mode=0o755)
    os.chown(taken, 1000, 1000)
    with (
        pytest.raises(
            UnavailableError, match=rf"{taken} belongs to user 1000.*remove {taken}, or set TMPDIR"
        ),
        machine_lock(),
    ):
        pass


def test_a_lock_file_that_cannot_be_used_is_named() -> None:
    (_folder() / "work.lock").mkdir()
    with pytest.raises(UnavailableError, match=r"can't lock .*work\.lock.*Remove that file"):  # noqa: SIM117
        with machine_lock():
            pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_takes_it_too() -> None:
    with machine_lock():
        pass
    child = os.fork()
    if not child:
        code = 1
        try:
            with machine_lock():
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
