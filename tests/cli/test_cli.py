"""The command line: one JSON object on standard output, and words for people."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from factories import make_result, remade
from refusals import refused
from test_coverage import layer, profile
from test_growth import run as complexity_run

from optimizer import __version__, on_demand, work
from optimizer.analysis import conclusions
from optimizer.analysis.result_json import as_json
from optimizer.analysis.scaling import ComplexityRequest, complexity_key
from optimizer.cli import results
from optimizer.cli.main import COMMANDS, command_parser, main, parser
from optimizer.cli.options import add_recipe_options, recipe_of, recipe_to_run
from optimizer.cli.parser import Parser
from optimizer.cli.terminal import print_result
from optimizer.errors import InputError
from optimizer.methods.exporters import EXPORTERS
from optimizer.methods.pruners import PRUNERS
from optimizer.recipe import Recipe
from optimizer.records import Request, Result, encode
from optimizer.store.keys import request_key
from optimizer.store.results import Store

QUICK = ["--limit", "200", "--quick"]


@pytest.mark.slow
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


def test_a_shell_ends_without_looking_through_what_it_imported() -> None:
    """That would take as long as a third of importing torch."""
    code = "import atexit, gc; atexit.register(lambda: print('left alone:', gc.get_freeze_count() > 1000)); "
    code += "from optimizer.cli.main import main; main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "left alone: True"


@pytest.mark.slow
def test_a_result_is_measured_once_and_then_read_also_in_words_for_people(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["measure", "fashion-mlp", "--weight-bits", "4", *QUICK]
    assert main([*arguments, "--json"]) == main([*arguments, "--json"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first) == json.loads(second)
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "fashion-mlp on openvino: 4-bit weights" in out
    assert "accuracy lost" in out
    assert "the kernels are float32" in out
    assert Store().count() == 1


@pytest.mark.slow
def test_a_threshold_removes_what_lies_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "fashion-mlp", "--threshold", "0.02", *QUICK, "--json"]) == 0
    weights = json.loads(capsys.readouterr().out)["weights"]
    assert 0 < weights["nonzero"] < weights["total"]


def test_a_sweep_prunes_and_rounds_as_it_is_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_up(request: Request, store: Store, report: object) -> Result:
        made = replace(make_result(request.recipe), key=request_key(request), request=request)
        store.put(made)
        return made

    monkeypatch.setattr(on_demand, "load_or_measure", make_up)
    way = ["--prune", "compensated", "--allocation", "uniform", "--rounding", "compensated", "--range", "mse"]
    arguments = ["sweep", "fashion-mlp", "--sparsities", "0.5", "--bits", "4", *way, *QUICK, "--json"]
    assert main(arguments) == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert [recipe["prune"][key] for key in ("method", "allocation")] == ["compensated", "uniform"]
    assert [recipe["quantize"][key] for key in ("method", "range")] == ["compensated", "mse"]


@pytest.mark.slow
def test_a_sweep_measures_the_grid_and_prints_a_line_each_and_that_is_exported_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", "fashion-mlp", "--sparsities", "0,0.5", "--bits", "32,8", *QUICK, "--json"]
    assert main(arguments) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    pairs = {(one["recipe"]["prune"]["sparsity"], one["recipe"]["quantize"]["weight_bits"]) for one in found}
    assert pairs == {(None, 32), (0.5, 32), (None, 8), (0.5, 8)}
    table, page = tmp_path / "table.csv", tmp_path / "report.html"
    assert main(["export", "fashion-mlp", "--format", "csv", "--output", str(table)]) == 0
    assert main(["report", "fashion-mlp", "--output", str(page)]) == 0
    assert len(pd.read_csv(table)) == 4
    assert "fashion-mlp" in page.read_text()


@pytest.mark.parametrize(
    ("command", "extension"), [("report", "report.html"), ("export", "html"), ("export --format csv", "csv")]
)
@pytest.mark.parametrize(
    ("model", "name"), [("fashion-mlp", "fashion-mlp"), ("timm/resnet18.a1_in1k", "timm-resnet18.a1_in1k")]
)
def test_without_an_output_a_file_of_the_model_s_name_is_written_here(
    command: str, extension: str, model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Store().put(make_result(model=model))
    assert main([*command.split(), model]) == 0
    (file,) = tmp_path.glob("*.*")
    assert file.name == f"{name}.{extension}"
    assert model in file.read_text()


@pytest.mark.slow
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
    images = "bundled images (up to 200)"
    assert f"fashion-mlp on OpenVINO, {images}: Magnitude, 0, 50 % at 32 bits: 2 configurations" in line
    assert line.endswith("1 done, 1 cancelled")
    assert main(["sweeps", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["outcome"] in line
    assert said["asked"] in line
    assert [said[name] for name in ("id", "kind", "state", "waits_for")] == [1, "sweep", "cancelled", None]
    assert said["counts"] == {"done": 1, "cancelled": 1}
    assert main(["sweep", "--resume", "1", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["sweeps", "--cancel", "1"]) == 0
    printed = capsys.readouterr()
    assert "sweep 1: 0 configurations cancelled" in printed.err
    assert "2 configurations, 2 done" in printed.out


def test_a_sweep_that_ends_in_its_first_measurement_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(on_demand, "load_or_measure", stopped)
    assert main(["sweep", "fashion-mlp", "--sparsities", "0,0.5", "--bits", "32", *QUICK]) == 130
    assert "`paretoscope sweep --resume 1` goes on with it" in capsys.readouterr().err
    assert main(["sweeps"]) == 0
    assert capsys.readouterr().out.strip().endswith("2 cancelled")


def test_one_that_is_stopped_while_its_options_are_read_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That imports what the command needs: a second or more on a slow machine."""

    def stopped(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("optimizer.cli.main.import_module", stopped)
    assert refused(["models"], capsys, 130).startswith("paretoscope: stopped")


@pytest.mark.skipif(os.name != "posix", reason="needs a shell that closes what a command inherits")
@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_one_without_standard_streams_runs_and_opens_no_file_in_their_place(
    closed: str, tmp_path: Path
) -> None:
    """As of a service that closes them: what a library prints there would land in a file of ours."""
    said = tmp_path / "said"
    code = (
        "import os, sys; from optimizer.cli.main import main; from optimizer.cli import terminal\n"
        "code = main(['stored']); terminal.tell(.5, 'measuring'); terminal.say('a note')\n"
        "with open(sys.argv[1], 'w') as said: said.write(f'{code} {said.fileno() > 2}')"
    )
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code, str(said)]
    assert subprocess.run(shell, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert said.read_text() == "0 True"


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


def test_a_time_of_the_one_build_that_was_left_is_told_as_that(capsys: pytest.CaptureFixture[str]) -> None:
    made = make_result()
    print_result(remade(made, latency=replace(made.latency, lost=4)))
    assert "note: 4 processes ended early, and one build says little of others" in capsys.readouterr().out


def test_what_was_measured_is_read_under_its_own_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another than was looked for, where images changed meanwhile."""
    made = profile(layer("first", 20, "i8"))

    monkeypatch.setattr(work, "run", lambda *asked: "changed")
    assert main(["coverage", "fashion-mlp"]) == 1
    assert "what was measured was dropped meanwhile: ask again" in capsys.readouterr().err
    Store().put_document("coverage", "changed", encode(made))
    assert main(["coverage", "fashion-mlp"]) == 0
    assert "1 of 1 layers ran int8 kernels" in capsys.readouterr().out


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--source", "bundled", "--json"]) == 0
    names = {card["name"] for card in json.loads(capsys.readouterr().out)}
    assert names == {"fashion-mlp", "fashion-resnet", "fashion-mobilenet", "fashion-vit"}


@pytest.mark.slow
def test_a_folder_of_ones_own_is_measured_and_its_oddities_counted(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", "fashion-mlp", "--data", str(photographs), "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    notes = " ".join(found["notes"])
    assert "broken.jpg" in notes
    assert "unicorn" in notes
    assert 0 < found["accuracy"]["total"] < 12  # a share is set aside for calibration


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"paretoscope {__version__}"


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--best-effort 2", "--best-effort has no effect on this recipe (uncompressed)"),
        ("--match --finetune 2", "--finetune, --match have no effect on this recipe (uncompressed)"),
        ("--asymmetric --sparsity 0.5", "--asymmetric has no effect"),
        ("--prune compensated", "--prune has no effect"),
        ("--weight-bits 4 --rounding compensated --equalise", "--equalise has no effect"),
        ("--prune compensated --sparsity 0.5 --snap 8", "--snap has no effect"),
        ("--prune compensated --sparsity 0.5 --best-effort 2", ""),
        ("--prune magnitude --sparsity 0.5 --weight-bits 4 --range mse --asymmetric", ""),
        ("--prune channels --sparsity 0.5 --snap 8 --weight-bits 32", ""),
        ("", ""),
    ],
)
def test_options_that_have_no_effect_are_named(
    capsys: pytest.CaptureFixture[str], options: str, words: str
) -> None:
    parser = Parser()
    add_recipe_options(parser)
    asked = parser.parse_args(options.split())
    assert recipe_to_run(asked) == recipe_of(asked)
    said = capsys.readouterr().err
    assert words in said if words else not said


def test_fine_tuning_is_asked_for_in_steps_and_once_was_in_seconds() -> None:
    assert recipe_from("--finetune", "100").finetune_steps == 100
    assert recipe_from("--best-effort", "60").effort_seconds == 60
    assert recipe_from("--train", "20").finetune_steps == 100
    assert recipe_from().finetune_steps == 0
    with pytest.raises(InputError, match="--train is an older way to say --finetune"):
        recipe_from("--train", "20", "--finetune", "100")
    with pytest.raises(InputError, match="fine-tuning steps are not allowed"):
        recipe_from("--finetune", "1000000")


def test_a_recipe_is_a_file_or_its_text(tmp_path: Path) -> None:
    wanted, file = recipe_from("--weight-bits", "4"), tmp_path / "recipe.json"
    file.write_text(wanted.to_json())
    given = Parser()
    add_recipe_options(given)
    for place in (str(file), wanted.to_json(), json.dumps(wanted.to_dict(), indent=1)):
        assert recipe_of(given.parse_args(["--recipe", place])) == wanted
    with pytest.raises(InputError, match="not a recipe|no recipe|unknown"):
        recipe_of(given.parse_args(["--recipe", '{"prune": {"wings": 2}}']))


@pytest.mark.parametrize("option", ["--bits", "--weight-bits"])
def test_the_bits_of_a_sweep_go_by_either_name(option: str) -> None:
    options = parser().parse_args(["sweep", "fashion-mlp", option, "8,4"])
    assert options.bits == [8, 4]
    assert recipe_of(options).quantize.weight_bits == 32


def test_a_method_s_label_may_have_a_percent_sign(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = replace(PRUNERS["magnitude"], name="odd", label="10 % at a time")
    monkeypatch.setitem(PRUNERS, "odd", odd)
    with pytest.raises(SystemExit):
        main(["measure", "--help"])
    assert "odd (10 % at a time)" in " ".join(capsys.readouterr().out.split())


def test_the_help_of_save_says_that_one_file_is_written_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["save", "--help"])
    assert "a file such as .onnx, or a zip with recipe and model card" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.slow
def test_ctrl_c_ends_learning_with_the_best_so_far_which_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = list[str]()

    def tell(share: float | None, words: str) -> None:
        told.append(words)
        if sum(one.startswith("best effort: ") for one in told) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(results, "tell", tell)
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a shell
    asked = [
        "--prune",
        "compensated",
        "--sparsity",
        "0.9",
        "--best-effort",
        "300",
        "--limit",
        "200",
        "--quick",
    ]
    try:
        assert main(["measure", "fashion-mlp", *asked]) == 0
    finally:
        signal.signal(signal.SIGINT, usual)
    assert re.search(r"note: best effort was ended after \d+ of 300 s", capsys.readouterr().out)
    assert "timing" in told


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_default_is_said_to_be_one(command: str) -> None:
    """In bare brackets it reads as another name of what stands before it."""
    for action in command_parser(command)._actions:
        if action.default not in (None, "", (), [], False, argparse.SUPPRESS) and action.help:
            assert "default" in action.help, action.option_strings
        assert not re.search(r"\((magnitude|nearest|channel|unstructured|f32|[\d.,]+)\)", action.help or "")
