"""``paretoscope find`` and ``px.find``: a question asked of a real, small network."""

import json

import pytest

import optimizer as px
from optimizer.cli.main import main
from optimizer.search.space import Space

FIND = [
    *("find", "fashion-mlp", "--limit", "2000", "--engine", "openvino"),
    *("--prune", "none,compensated", "--sparsity", "0.5,0.8", "--weight-bits", "32,8,4"),
]


def test_what_is_found_keeps_to_the_limits_and_asked_again_it_is_at_hand(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [*FIND, "--max-drop", "5", "--max-size-mb", "1.5", "--budget", "60", "--search", "grid"]
    assert main([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["met"]
    assert said["best"]["size_bytes"]["file"] <= 1.5e6
    assert {check["outcome"] for check in said["checks"]} <= {"pass", "undecided"}
    outcomes = {one["outcome"] for one in said["tried"]}
    assert {"measured", "too large"} <= outcomes, "the uncompressed file has 4.3 MB"
    assert main([*asked, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["best"]["key"] == said["best"]["key"]
    assert main(asked) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith(said["words"].split(":")[0])


def test_exit_codes_and_words_where_nothing_keeps_to_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIND, "--max-drop", "1e-9", "--max-size-mb", "0.01", "--budget", "20"]) == 3
    assert "Nothing of what was tried is shown to keep to the limits" in capsys.readouterr().out
    assert main(FIND) == 2
    assert "no limit is given" in capsys.readouterr().err
    assert main([*FIND, "--max-drop", "1", "--budget", "0"]) == 2
    assert main([*FIND[:4], "--engine", "tpu", "--max-drop", "1"]) == 2


def test_a_search_in_python_gives_views_of_what_it_measured() -> None:
    space = Space(("openvino",), pruning=("none",), weight_bits=(32, 8), activation_bits=(32,))
    found = px.find("fashion-mlp", max_drop=5, space=space, budget_seconds=30, progress=False)
    assert found.best is not None
    assert found.best.accuracy.drop.value < 5
    assert len(found.results) >= 1
    assert "configuration" in repr(found)
