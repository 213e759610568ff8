"""``paretoscope find`` and ``px.find``: a question asked of a real, small network."""

import json
import os
import shlex
import signal
from dataclasses import replace

import pytest
from search_bench import Bench
from search_bench import question as bench_question

import optimizer as px
from optimizer import on_demand
from optimizer.analysis.limits import Limits
from optimizer.cli.find import question_from
from optimizer.cli.main import main, parser
from optimizer.cli.terminal import first_interrupt
from optimizer.errors import InputError
from optimizer.on_demand import load_or_measure as measure
from optimizer.records import DataSpec, Request, encode
from optimizer.search import confirming, find
from optimizer.search.answer_data import command
from optimizer.search.questions import ask, keys_of
from optimizer.search.records import Progress
from optimizer.search.space import Space
from optimizer.store import ledger
from optimizer.store.results import ANSWER, Store

FIND = [
    *("find", "fashion-mlp", "--limit", "2000", "--engine", "openvino"),
    *("--prune", "none", "--weight-bits", "32,4", "--activation-bits", "32,8", "--rounding", "nearest"),
]
BUDGET = ["--budget", "600"]
"""Four configurations are tried long before it is spent, also where the machine is busy."""


@pytest.fixture(autouse=True)
def soon_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long the winner is timed afresh: tests/search/test_find_times.py."""
    for module in (confirming, find):
        monkeypatch.setattr(module, "MAX_CONFIRMING_SECONDS", 1.0)


@pytest.mark.slow
def test_what_is_found_keeps_to_the_limits_and_asked_again_it_is_at_hand(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [*FIND, "--max-drop", "5", "--max-size-mb", "1.5", *BUDGET, "--search", "grid"]
    assert main([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["met"]
    assert said["best"]["size_bytes"]["file"] <= 1.5e6
    assert {check["outcome"] for check in said["checks"]} <= {"pass", "undecided"}
    outcomes = {one["outcome"] for one in said["tried"]}
    assert {"measured", "too large"} <= outcomes, "the uncompressed file has 4.3 MB"
    assert main([*asked, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == said
    assert main(asked) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith(said["words"].split(":")[0])


def test_threads_that_the_machine_lacks_are_refused_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*FIND, "--max-drop", "1", "--threads", "1,99999"]) == 2
    assert "99999 threads are more than this machine's" in capsys.readouterr().err
    with pytest.raises(InputError, match="99999 threads are more"):
        px.find("fashion-mlp", max_drop=1, space=Space(threads=(1, 99999)), engines=["openvino"])
    assert not ledger.sweeps(Store())


def test_images_that_a_model_cannot_take_are_refused_before_a_question_is_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["find", "efficientnet-lite0", "--max-drop", "1"]) == 2
    said = capsys.readouterr().err
    assert "not for efficientnet-lite0: give an image folder with its classes" in said
    assert "--resume" not in said
    assert not ledger.sweeps(Store())


@pytest.mark.slow
def test_exit_codes_and_words_where_nothing_keeps_to_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIND, "--max-drop", "1e-9", "--max-size-mb", "0.01", *BUDGET]) == 3
    assert "No configuration that was tried is shown to keep to the limits" in capsys.readouterr().out
    assert main(["sweeps"]) == 0
    assert "nothing keeps to the limits" in capsys.readouterr().out
    assert main(FIND) == 2
    assert "no limit is given" in capsys.readouterr().err
    assert main([*FIND, "--max-drop", "1", "--budget", "0"]) == 2
    assert main([*FIND[:4], "--engine", "tpu", "--max-drop", "1"]) == 2
    assert main(["find", "fashion-rennet", "--max-drop", "1"]) == 2
    assert main(["find", "--max-drop", "1"]) == 2
    assert "say which model" in capsys.readouterr().err
    assert main(["find", "--resume", "7"]) == 2
    assert main(["sweep", "--resume", "1"]) == 2
    assert "1 is a question: `paretoscope find --resume 1`" in capsys.readouterr().err
    sweep = ledger.create(Store(), b"", [Request("fashion-mlp")], "ann")
    assert main(["find", "--resume", str(sweep)]) == 2
    assert "is no question" in capsys.readouterr().err


def test_a_question_of_images_in_memory_is_gone_on_with_in_python_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, bench = Store(), Bench()
    question = replace(bench_question(Limits(drop_points=1)), data=DataSpec(content="0" * 20))
    number = ask(store, question, "ann")
    resumed = ["find", "--resume", str(number)]
    assert main(resumed) == 2
    assert "given in memory" in capsys.readouterr().err
    assert [item.state for item in ledger.items(store, number)] == ["queued"]
    for work in (lambda: on_demand.search(question, store), lambda: measure(question.base, store)):
        with pytest.raises(InputError, match="given in memory"):
            work()
    assert store.failures() == []
    found = bench.go_on(question, Progress())
    for result in found.measured:
        store.put(result)
    (item,) = ledger.items(store, number)
    store.put_document(ANSWER, str(item.answer), encode(found.answer))
    ledger.finish(store, item, str(item.answer), 1.0)
    assert main(resumed) == 0
    assert "8-bit" in capsys.readouterr().out, "what was found is told"


def test_a_question_of_a_module_is_gone_on_with_in_python_alone(capsys: pytest.CaptureFixture[str]) -> None:
    store, model = Store(), "Sequential-20b8178076"
    question = replace(bench_question(Limits(drop_points=1)), model=model)
    assert main(["find", "--resume", str(ask(store, question, "ann"))]) == 2
    assert f"unknown model '{model}'" in (told := capsys.readouterr().err)
    assert "ask again from there" in told
    with pytest.raises(InputError, match="given in Python: ask again from there, with it"):
        on_demand.search(question, store)


@pytest.mark.slow
def test_a_search_in_python_gives_views_of_what_it_measured() -> None:
    space = Space(
        ("openvino",), pruning=("none",), weight_bits=(32, 8), activation_bits=(32,), rounding=("nearest",)
    )
    options = {"space": space, "progress": False}
    found = px.find("fashion-mlp", max_drop=5, max_latency_ratio=10, budget_seconds=600, **options)
    assert found.found.answer.question.limits == Limits(drop_points=5, latency_ratio=10)
    assert found.best is not None
    assert found.best.accuracy.drop.value < 5
    assert len(found.results) >= 1
    assert "configuration" in repr(found)
    again = px.find("fashion-mlp", max_drop=5.0, max_latency_ratio=10.0, budget_seconds=600.0, **options)
    assert again.found.answer == found.found.answer
    assert ledger.ask(Store(), b"", Request("fashion-mlp"), *keys_of(found.found.answer.question), "ann") == 1
    assert ledger.find(Store(), 1).state == "done", "what was answered in Python is answered everywhere"


@pytest.mark.parametrize(
    "options",
    [
        ["--max-drop", "1.5", "--engine", "openvino,torch", "--budget", "20"],
        ["--min-sqnr", "32.5", "--engine", "openvino"],
        ["--max-latency-ratio", "0.5", "--max-drop", "2"],
        [
            *("--max-size-mb", "0.5", "--max-latency-ms", "3", "--minimise", "file_size", "--full"),
            *("--engine", "sparse", "--threads", "1,2", "--prune", "none", "--sparsity", "0.25"),
            *("--weight-bits", "8", "--activation-bits", "8", "--precision", "f32", "--seed", "3"),
            *("--data", "/photos of mine", "--limit", "50", "--batch-size", "4", "--search", "random"),
        ],
    ],
)
def test_a_question_says_how_to_repeat_it(options: list[str]) -> None:
    asked = question_from(parser().parse_args(["find", "fashion-mlp", *options]))
    name, *again = shlex.split(command(asked))
    assert name == "paretoscope"
    assert question_from(parser().parse_args(again)) == asked


def test_the_second_interrupt_interrupts() -> None:
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a shell
    with first_interrupt("once more drops it", lambda: True) as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with first_interrupt("", lambda: False), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, usual)


def test_a_question_that_is_dropped_says_how_to_go_on_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("optimizer.cli.find.work_off", stopped)
    assert main(["find", "fashion-mlp", "--max-drop", "1", "--engine", "torch"]) == 130
    assert "question 1 is cancelled; `paretoscope find --resume 1` goes on with it" in capsys.readouterr().err
    assert ledger.find(Store(), 1).state == "cancelled"
