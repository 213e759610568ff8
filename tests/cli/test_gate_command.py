"""``paretoscope gate``: exit codes, and what CI servers read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock
from xml.etree import ElementTree

import pytest
from factories import detector, make_result, recipe, remade

from optimizer.analysis.gate import sqnr_check
from optimizer.cli import gate
from optimizer.cli.main import main
from optimizer.data.selection import fingerprint
from optimizer.errors import InputError, WorkError
from optimizer.model.added import cards
from optimizer.model.preprocessing import IMAGENET
from optimizer.records import DataSpec, Request, Settings, encode
from optimizer.search.gate import Verdict, judge
from optimizer.store.keys import request_key
from optimizer.store.results import Store

GATE = ["gate", "fashion-mlp", "--prune", "magnitude", "--sparsity", "0.9", "--limit", "200", "--quick"]


@pytest.mark.slow
def test_exit_codes_say_kept_broken_and_not_to_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GATE, "--max-drop", "90", "--max-size", "100"]) == 0
    assert capsys.readouterr().out.startswith("PASS: fashion-mlp on openvino, 90 %")
    assert main([*GATE, "--max-drop", "90", "--max-size", "0.01"]) == 1
    assert "size of the file 4.28 MB, at most 0.01 allowed: fail" in capsys.readouterr().out
    assert main([*GATE, "--max-drop", "1e-9", "--json"]) in (1, 3)
    lost = json.loads(capsys.readouterr().out)["checks"][0]
    assert main([*GATE, "--max-drop", str(lost["value"])]) == 3
    assert "undecided; no number of images is sure to decide it" in capsys.readouterr().out
    assert main(GATE) == 2
    assert main([*GATE, "--max-drop", "1", "--budget", "0"]) == 2
    assert main([*GATE, "--max-drop", "1", "--against", "nowhere.json"]) == 2
    assert "--save" in capsys.readouterr().err


@pytest.mark.slow
def test_a_saved_result_is_a_later_gates_measure_and_reports_are_read_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # a shell expands no ~ behind a =
    report = tmp_path / "gate.xml"
    limits = ["--max-drop", "0", "--max-slowdown", "100"]
    assert main([*GATE, "--max-drop", "90", "--save=~/before.json"]) == 0
    capsys.readouterr()
    code = main([*GATE, *limits, "--against=~/before.json", "--budget=1", "--markdown", "--junit=~/gate.xml"])
    out = capsys.readouterr().out
    assert "against fashion-mlp on openvino, 90 %" in out
    assert "| Accuracy lost, points | 0.0 | " in out, "it is the same network"
    suite = ElementTree.parse(report).getroot()
    assert [case.get("name") for case in suite] == ["accuracy lost", "time added"]
    bad = int(suite.get("failures", "")) + int(suite.get("errors", ""))
    assert bad == sum(len(case) for case in suite)
    assert (code == 0) == (bad == 0)


def test_images_that_are_not_the_earlier_result_s_are_seen_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate, "judge", lambda *_: pytest.fail("measured"))
    data = DataSpec(limit=200)
    earlier = make_result(recipe(0.5), model="fashion-mlp", images=200)
    scored = replace(earlier.accuracy, images=fingerprint(data))
    request, latency = replace(earlier.request, data=data), replace(earlier.latency, threads=1, quick=True)
    alike = remade(earlier, request=request, accuracy=scored, latency=latency)
    saved = tmp_path / "before.json"
    given, drop = [*GATE, "--threads", "1", "--against", str(saved)], ["--max-drop", "1"]
    slower = ["--max-slowdown", "1"]
    others = replace(scored, images="other pictures")
    for result, asked, words in (
        (alike, [*drop, "--limit", "300"], "on 200 images against labels, this one on 300 images"),
        (alike, [*drop, "--seed", "1"], "give the same --data, --limit and --seed"),
        (remade(alike, accuracy=others), drop, "give the same --data, --limit and --seed"),
        (alike, ["--max-slowdown", "1", "--engine", "torch"], "is of engine openvino, this one of torch"),
        (alike, [*slower, "--batch-size", "4"], "timed with batch size 1, this one with batch size 4: give "),
        (
            remade(alike, latency=replace(latency, quick=False)),
            slower,
            "the earlier result was timed in full, this one quickly: leave out --quick\n",
        ),
    ):
        saved.write_bytes(encode(result))
        assert main([*given, *asked]) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setattr(gate, "judge", wanted := Mock(side_effect=InputError("judged")))
    saved.write_bytes(encode(alike))
    assert main([*given, *drop, "--max-slowdown", "1"]) == 2
    assert "judged" in capsys.readouterr().err, "what fits is measured"
    saved.write_bytes(encode(remade(alike, accuracy=others)))
    assert main([*given, "--max-size", "1"]) == 2, "images count for nothing but accuracy"
    assert wanted.call_count == 2


def test_a_network_without_an_accuracy_is_seen_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate, "judge", lambda *_: pytest.fail("measured"))
    cards.save_card(cards.AddedModel("depth", "onnx", f"{'0' * 20}.onnx", IMAGENET, classes=0))
    assert main(["gate", "depth", "--max-drop", "1"]) == 2
    assert "depth is no classifier" in capsys.readouterr().err


def test_what_is_no_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.json").write_text('{"key": "a", "req')
    assert main([*GATE, "--max-drop", "1", "--against", str(tmp_path / "cut.json")]) == 2
    assert "cut.json is no result that --save has written" in capsys.readouterr().err


def test_outputs_that_do_not_differ_are_said_to_be_equal_in_a_table_too() -> None:
    result = detector(recipe(), 0.0)
    verdict = Verdict(result, (sqnr_check(result.accuracy, 60),), 1, 1.0)
    assert "| SQNR of the outputs, dB | equal |  | at least 60 | pass |" in gate.markdown(verdict)


@pytest.mark.slow
def test_what_was_found_out_about_the_images_is_said_with_the_verdict(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "200 of 10,000 images are evaluated, drawn with seed 0"
    for form, shown in ((), f"  note: {words}"), (["--markdown"], f"- {words}"), (["--json"], f'"{words}"'):
        assert main([*GATE, "--max-size", "100", *form]) == 0
        assert shown in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--save", "--junit"])
def test_a_file_that_can_t_be_written_is_refused_before_anything_is_measured(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate, "judge", lambda *_: pytest.fail("measured"))
    for place, why in ((tmp_path / "absent" / "file", "there is no folder"), (tmp_path, "it is a folder")):
        assert main([*GATE, "--max-drop", "90", option, str(place)]) == 2
        assert f"{option} {place} can't be written: {why}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_verdict_is_told_though_it_can_t_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()

    def judging(*asked: object) -> Verdict:
        found = judge(*asked)  # type: ignore[arg-type]
        shutil.rmtree(folder)
        return found

    monkeypatch.setattr(gate, "judge", judging)
    assert main([*GATE, "--max-size", "0.01", "--junit", str(folder / "gate.xml")]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("FAIL: fashion-mlp")
    assert "gate.xml can't be written (No such file or directory)" in said.err


@pytest.mark.parametrize("error", [WorkError("a worker died"), ZeroDivisionError("a fault of ours")])
def test_an_error_is_no_broken_limit(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object) -> Verdict:
        raise error

    monkeypatch.setattr(gate, "judge", failing)
    assert main([*GATE, "--max-drop", "1"]) == gate.NO_VERDICT not in gate.EXIT_CODES.values()
    assert str(error) in capsys.readouterr().err


def test_a_full_time_that_is_stored_answers_for_a_quick_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate, "judge", Mock(side_effect=InputError("judged")))
    earlier = make_result(recipe(0.5), model="fashion-mlp", images=200)
    earlier = remade(earlier, latency=replace(earlier.latency, threads=1, quick=False))
    (saved := tmp_path / "before.json").write_bytes(encode(earlier))
    asked = [*GATE, "--threads", "1", "--max-slowdown", "1", "--against", str(saved)]
    assert main(asked) == 2
    assert "leave out --quick" in capsys.readouterr().err
    full = Request("fashion-mlp", recipe(0.9), data=DataSpec(limit=200), settings=Settings(threads=1))
    Store().put(replace(remade(earlier, request=full), key=request_key(full)))
    assert main(asked) == 2
    assert "judged" in capsys.readouterr().err


@pytest.mark.slow
def test_the_file_of_a_recipe_is_as_large_beside_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["gate", "fashion-mlp", "--weight-bits", "8", "--limit", "200", "--quick", "--max-size", "2"]
    found = []
    for against in ([], ["--against", "fashion-mlp"]):
        assert main([*asked, *against, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["checks"])
    assert found[0] == found[1]
