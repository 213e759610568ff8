"""``paretoscope compare``, and the gate between two files."""

import json
from pathlib import Path

import numpy as np
import pytest
from hostile_graphs import SIDES, classifier, save

import optimizer as px
from optimizer import on_demand
from optimizer.analysis.two_files import CompareRequest, NetworkRef
from optimizer.cli.main import main
from optimizer.errors import InputError
from optimizer.export.artifacts import networks
from optimizer.records import Settings

TIMED = ["--quick", "--threads", "1"]


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(save(classifier(sides=(1, *SIDES)), tmp_path / "mine.onnx"))


@pytest.mark.slow
def test_the_answer_begins_with_a_sentence(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", file, file, *TIMED]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("mine.onnx ")
    assert "mine.onnx (B) gives the outputs of mine.onnx (A) exactly on 64 made-up images" in first
    assert any("Conv" in line for line in rest)
    assert main(["compare", file, file, *TIMED, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["sentence"] == first
    assert said["size_ratio"] == 1


LACKING = (
    ("no.onnx", "there is no file"),
    ("nothing", "unknown model"),
    ("~nosuchuser/a.onnx", "there is no file"),
    (f"{'long' * 100}.onnx", "there is no file"),
    ("long" * 100, "unknown model"),
)


def test_bad_input_is_one_line(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    for other, words in LACKING:
        assert main(["compare", file, other]) == 2
        assert words in capsys.readouterr().err


def test_a_file_of_weights_is_not_taken_for_a_model_s_name(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("taken.safetensors", "fashion-mlp"):  # the second is a model's, wherever a file has it too
        (tmp_path / name).write_bytes(b"weights")
    weights = str(tmp_path / "taken.safetensors")
    for command in (["compare", file, weights], ["gate", weights, "--against", file, "--max-drop", "1"]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "taken.safetensors is no file that says which network it is: give one of .onnx" in said
    monkeypatch.chdir(tmp_path)
    assert networks.opened(NetworkRef("fashion-mlp")).name == "fashion-mlp"


@pytest.mark.slow
def test_python_compares_as_the_command_does(file: str) -> None:
    run = px.compare(file, file, settings=Settings(quick=True, threads=1), progress=False)
    assert repr(run).startswith("mine.onnx ")
    assert run.to_dict()["same_answer"]["value"] == 1
    with pytest.raises(InputError, match="don't fit the networks"):
        px.compare(file, file, np.zeros((4, 1, 28, 28), np.float32), progress=False)


@pytest.mark.slow
def test_a_gate_takes_a_file_as_its_baseline(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--max-drop", "10", "--min-sqnr", "60", "--max-size", "1"]
    assert main(["gate", file, "--against", file, *limits, *TIMED, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["outcome"] == "pass"
    assert (said["model"], said["against"]) == ("mine.onnx", "mine.onnx")
    assert [check["name"] for check in said["checks"]] == [
        "agreement lost",
        "SQNR of the outputs",
        "size of the file",
    ]
    assert main(["gate", file, "--against", file, "--max-size", "0.001", *TIMED]) == 1
    assert capsys.readouterr().out.startswith("FAIL: mine.onnx against mine.onnx on openvino")
    assert main(["gate", file, "--max-size", "1"]) == 2
    assert main(["gate", file, "--against", file, "--max-size", "1", "--weight-bits", "8"]) == 2


@pytest.mark.slow
def test_a_gate_takes_a_model_as_the_baseline_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "mine.onnx")
    assert main(["save", "fashion-mlp", "--format", "onnx", "-o", file]) == 0
    capsys.readouterr()
    limits = ["--max-drop", "1", "--min-sqnr", "60", "--limit", "500"]
    assert main(["gate", file, "--against", "fashion-mlp", *limits, *TIMED, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["against"]) == ("mine.onnx", "fashion-mlp")
    lost, noise = said["checks"]
    assert lost["name"] == "accuracy lost", "on the model's own images, with their labels"
    assert (lost["value"], noise["outcome"]) == (0, "pass")
    assert any("500 of 10,000 images" in note for note in said["notes"])


def test_what_a_gate_is_held_against_is_told_by_what_it_is(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[CompareRequest] = []

    def comparison(request: CompareRequest, report: object) -> None:
        asked.append(request)
        raise InputError("asked")

    monkeypatch.setattr(on_demand, "comparison", comparison)
    monkeypatch.chdir(tmp_path)
    Path("fashion-vit").write_text("a file that has a model's name")
    result, limits = Path("fashion-vit"), ["--max-size", "1"]
    for model, against in ((file, "fashion-mlp"), ("fashion-resnet", "fashion-mlp"), (file, "mistyped")):
        assert main(["gate", model, "--against", against, *limits]) == 2
        assert (asked[-1].a.place, asked[-1].b.place) == (against, model)
    assert [one.like for one in asked] == ["", "fashion-resnet", ""]
    capsys.readouterr()
    for model, against, words in (
        (file, None, "none is given: give --against a file of one, or a model's name"),
        (file, str(result), "fashion-vit is none: give --against a file of one, or a model's name"),
        ("fashion-mlp", str(result), "fashion-vit is no result that --save has written"),
        ("fashion-mlp", "mistyped", "or a network: a file of one or a model's name"),
    ):
        given = [] if against is None else ["--against", against]
        assert main(["gate", model, *given, *limits]) == 2
        assert words in capsys.readouterr().err
    assert len(asked) == 3


@pytest.mark.slow
def test_a_recipe_is_held_against_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "plain.zip"
    assert main(["save", "fashion-mlp", "--format", "openvino", "-o", str(archive)]) == 0
    int8 = ["--weight-bits", "8", "--activation-bits", "8", "--limit", "500"]
    capsys.readouterr()
    code = main(
        ["gate", "fashion-mlp", *int8, "--against", str(archive), "--max-drop", "10", *TIMED, "--json"]
    )
    said = json.loads(capsys.readouterr().out)
    assert code == 0, said
    assert said["model"].startswith("fashion-mlp, ")
    assert said["against"] == "plain.zip"
