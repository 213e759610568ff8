import os
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer.system.whole_files import write_whole


def test_a_file_takes_the_place_of_another_with_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_whole(path, b"first")
    path.chmod(0o640)
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.skipif(os.name != "posix", reason="no limit of files' sizes")
def test_where_there_is_no_room_the_file_before_stays_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")
    code = (
        "import pathlib, resource, signal, sys\n"
        "from optimizer.system.whole_files import write_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_whole(pathlib.Path(sys.argv[1]), bytes(2000))\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "File too large" in run.stderr
    assert path.read_bytes() == b"before"
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.skipif(os.name != "posix", reason="no links without more rights")
def test_a_link_still_leads_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("model.onnx")
    write_whole(tmp_path / "current", b"content")
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "model.onnx").read_bytes() == b"content"


@pytest.mark.skipif(os.name != "posix", reason="no such files")
def test_what_is_no_file_is_written_as_it_is() -> None:
    reads, writes = os.pipe()
    try:
        write_whole(Path(f"/dev/fd/{writes}"), b"content")
        assert os.read(reads, 100) == b"content"
    finally:
        os.close(reads)
        os.close(writes)
