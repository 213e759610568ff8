"""A disk that is really full: what is there is read, and what does not fit is refused whole."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faults.storing import make_result

from optimizer.errors import UnavailableError
from optimizer.records import Request
from optimizer.search.documents import DOCUMENTS
from optimizer.store.results import Store
from optimizer.system.disk_cache import kept, read


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder on a file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(folder)]
    if getattr(os, "geteuid", lambda: 1)() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system, where that is allowed at all")
    monkeypatch.setenv("PARETOSCOPE_HOME", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    file = disk / "of another program"
    with file.open("ab", buffering=0) as filling:
        while os.statvfs(disk).f_bavail:
            filling.write(bytes(4096))
    return file


def test_results_are_read_and_new_ones_refused_until_there_is_room(disk: Path) -> None:
    store = Store()
    store.put(make_result("there"))
    store.put_failure("failed", Request("fashion-vit"), "no network")
    filling = fill(disk)
    for act in (
        lambda: store.put(make_result("new", notes=("x" * 100_000,))),
        lambda: store.put_failure("new", Request("fashion-vit"), "no network"),
        lambda: store.put_document("complexity", "new", b"{}"),
    ):
        with pytest.raises(UnavailableError, match=r"no room is left on its disk.*PARETOSCOPE_HOME"):
            act()
        assert [result.key for result in store.results()] == ["there"]
        assert [failure.key for failure in Store().failures()] == ["failed"]
    filling.unlink()
    assert store.count() == 1
    store.put(make_result("new"))
    assert [result.key for result in Store().results()] == ["there", "new"]
    assert store.unreadable(DOCUMENTS) == []


def test_one_that_fills_the_disk_is_refused_whole(disk: Path) -> None:
    store = Store()
    store.put(make_result("there"))
    with pytest.raises(UnavailableError, match="no room is left on its disk"):
        store.put(make_result("too large", notes=("x" * 2_000_000,)))
    assert [result.key for result in store.results()] == ["there"]
    store.put(make_result("after"))
    assert store.count() == 2


def test_a_new_store_on_a_full_disk_is_refused_and_begins_later(disk: Path) -> None:
    filling = fill(disk)
    with pytest.raises(UnavailableError, match="no room is left on its disk"):
        Store()
    filling.unlink()
    store = Store()
    store.put(make_result("after"))
    assert store.count() == 1


def test_what_does_not_fit_is_made_and_not_kept_and_leaves_nothing(disk: Path) -> None:
    made = []

    def make(size: int) -> torch.Tensor:
        def fresh(_: Path | None) -> torch.Tensor:
            made.append(size)
            return torch.ones(size)

        return kept(f"ones {size}", fresh, lambda one: ({"one": one}, {}), lambda parts: parts[0]["one"])

    assert len(make(10)) == 10
    for _ in range(2):
        assert len(make(1_000_000)) == 1_000_000
    assert made == [10, 1_000_000, 1_000_000]
    assert [path.name for path in (disk / "studies").glob("*.safetensors")] == ["ones 10.safetensors"]
    assert not [path for path in (disk / "studies").iterdir() if path.suffix not in (".safetensors", ".lock")]
    filling = fill(disk)
    assert len(make(11)) == 11
    assert read(disk / "studies" / "ones 10.safetensors") is not None
    filling.unlink()
    assert len(make(11)) == 11
    assert read(disk / "studies" / "ones 11.safetensors") is not None
