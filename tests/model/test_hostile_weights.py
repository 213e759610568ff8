"""Weights files that attack, or are damaged: refused in words, with nothing run."""

import json
import os
import re
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest
from hostile_files import RAN, weights_files

from optimizer.errors import InputError
from optimizer.model.added import cards, child, containers, files, limits

IN_A_PROCESS = [
    "torch.save, runs a call of the system, alone",
    "torch.save, runs memory, in a dict, as of old",
    "torch.save, a tensor stretched",
    "torch.save, a bomb",
    "safetensors, header of 1099511627776",
]
MAX_BYTES = 512 << 20
MANY, EVERY = 210, 25
"""Of so many files at least, those that are read in a process of its own: each loads torch anew, which takes
seconds."""
MEASURED = """
import json, resource, subprocess, sys
said = subprocess.run(sys.argv[1:], capture_output=True, text=True).stdout.splitlines()[-1]
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([said, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""
"""What a process says and takes, seen from a small one: the memory of who starts it counts as its own."""


@cache
def hostile() -> dict[str, tuple[str, bytes]]:
    """Suffix and content by name: made when they are needed, for it takes a second."""
    return {name: (suffix, content) for name, suffix, content in weights_files()}


def written(name: str, folder: Path) -> Path:
    suffix, content = hostile()[name]
    path = folder / f"weights{suffix}"
    path.write_bytes(content)
    return path


def is_a_sentence(words: str) -> bool:
    """One, of a length that is read, without a trace or a place in code."""
    return (
        10 < len(words) < 700 and "\n" not in words and not re.search(r"Traceback|\.py|0x[0-9a-f]{6}", words)
    )


def test_there_are_many() -> None:
    assert len(hostile()) >= MANY


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.onnx"])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=rf"^{name} is empty \(0 bytes\): export or download it again$"):
        files.examine(tmp_path / name)


def test_text_is_no_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.safetensors"
    path.write_text("no weights")
    with pytest.raises(InputError, match="it is no safetensors file"):
        child.READERS["checkpoint"]({"file": str(path)}, lambda **_: None)


@pytest.mark.slow
def test_each_is_refused_and_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, whose memory is not limited: what would ask for too much of it is caught before."""
    monkeypatch.chdir(tmp_path)
    for name in hostile().keys() - {"torch.save, runs memory, in a dict, as of old"}:
        path, target = written(name, tmp_path), tmp_path / "target.safetensors"
        asked = {"file": str(path), "target": str(target)}
        try:
            child.READERS["checkpoint"](asked, lambda **_: None)
            words = ""
        except (Exception, RecursionError) as error:
            words = limits.refusal(error)
        assert is_a_sentence(words), (name, words)
        assert not target.exists(), name
        assert not (tmp_path / RAN).exists(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_the_limited_process_ends_as_it_should(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"weights\.\w+ is refused: ") as refused:
        files.examine(written(name, tmp_path))
    assert is_a_sentence(str(refused.value))
    assert not (tmp_path / RAN).exists()
    assert not list(cards.folder().iterdir())


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs what a process took")
@pytest.mark.parametrize("number", range(0, MANY, EVERY))
def test_some_in_processes_of_their_own_within_5_seconds_and_512_mb(number: int, tmp_path: Path) -> None:
    path = written(sorted(hostile())[number], tmp_path)
    limits_of_it = {"seconds": 5, "size": path.stat().st_size, "runs": False}
    asked = {"file": str(path), "target": str(tmp_path / "x"), **limits_of_it}
    command = [sys.executable, "-P", "-m", "optimizer.model.added.child", "checkpoint", json.dumps(asked)]
    printed = subprocess.run(
        [sys.executable, "-c", MEASURED, *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=_environment(),
    ).stdout
    said, seconds, kilobytes = json.loads(printed)
    assert is_a_sentence(json.loads(said)["refused"])
    assert seconds < 5
    assert kilobytes * 1024 < MAX_BYTES
    assert not (tmp_path / RAN).exists()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def test_a_file_that_is_too_large_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with path.open("wb") as file:
        file.truncate(limits.MAX_FILE_BYTES + 1)
    with pytest.raises(InputError, match=r"files of up to 4\.29 GB are read"):
        files.examine(path)


@pytest.mark.parametrize("name", ["nothing.pt", "readme.txt", "model.pt2", "folder.safetensors"])
def test_what_is_no_model_file_is_said_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "model.pt2").write_text("hello")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match=r"no file|no kind that is read"):
        files.examine(tmp_path / name)


def test_torchscript_is_called_so_although_its_code_is_compressed(tmp_path: Path) -> None:
    file = tmp_path / "ts.pt"
    with zipfile.ZipFile(file, "w") as archive:  # as torch.jit.save writes it
        archive.writestr("ts/data.pkl", b"")
        archive.writestr("ts/code/__torch__/net.py", "def forward(self): ..." * 9, zipfile.ZIP_DEFLATED)
        archive.writestr("ts/constants.pkl", b"")
    with pytest.raises(InputError, match="it is a TorchScript program.*optimizer.measure"):
        containers.check_zip(file)
