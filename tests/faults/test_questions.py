"""A question under limits whose searcher is killed or stopped: it goes on, nothing is measured twice, and its
answer comes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from databases import query
from tasks import until
from test_sweeps import SERVER, kept, running

from optimizer.analysis.limits import Limits
from optimizer.cli.main import main
from optimizer.records import DataSpec
from optimizer.search import drain
from optimizer.search.questions import answer_of, ask, keys_of, progress_of
from optimizer.search.records import Outcome, Progress, Question
from optimizer.search.space import Space
from optimizer.store import ledger
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.system.processes import identity

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")

SPACE = Space(
    ("openvino",),
    pruning=("none", "magnitude"),
    sparsity=tuple(number / 20 for number in range(1, 8)),
    weight_bits=(32, 8),
    activation_bits=(32,),
)
QUESTION = Question("fashion-mlp", Limits(size_mb=100), "drop", SPACE, "grid", 3600.0, DataSpec(limit=200))
BUSY_SECONDS = 600.0
"""A real measurement beside other work may take."""
POSITIONS = {QUESTION.request(position) for position in SPACE.all()}


@pytest.fixture
def store(home: Path) -> Store:
    return Store()


def progress(store: Store) -> Progress:
    return progress_of(store, keys_of(QUESTION)[0])


def measured(store: Store) -> int:
    return sum(trial.outcome is Outcome.MEASURED for trial in progress(store).trials)


def more(store: Store) -> None:
    """Wait until another position is measured, or the question is answered."""
    before = measured(store)
    until(lambda: measured(store) > before or not ledger.any_open(store))


@pytest.mark.slow
def test_a_search_goes_on_after_each_kill_and_measures_nothing_twice(store: Store, home: Path) -> None:
    chance, number = random.Random(5), ask(store, QUESTION, "ann")
    for is_last in (False, True):
        spent, known = progress(store).seconds, measured(store)
        with running(SERVER) as server:
            more(store)
            time.sleep(chance.uniform(0, 0.1))
            for worker in psutil.Process(server.pid).children():
                with suppress(psutil.NoSuchProcess):
                    if "-P" in worker.cmdline():
                        worker.kill()
            more(store)
            if is_last:
                until(lambda: not ledger.any_open(store))
        assert progress(store).seconds > spent
        assert measured(store) > known
    assert [(item.state, item.message) for item in ledger.items(store, number)] == [("done", "")]
    found = answer_of(store, ledger.find(store, number).answer)
    assert found is not None
    assert found.best is not None
    assert found.answer.progress.seconds > spent
    assert [trial.outcome for trial in found.answer.progress.trials] == [Outcome.MEASURED] * len(POSITIONS)
    assert {result.request for result in store.results()} == POSITIONS
    twice = [key for key, times in kept(home).items() if times > 1]
    assert len(twice) <= 1, "but what the killed server's worker was at, when that had not ended yet"
    assert ask(store, QUESTION, "bob") == number
    assert len(ledger.sweeps(store)) == 1


@pytest.mark.slow
def test_what_kills_each_process_that_measures_it_is_given_up_and_the_search_goes_on(
    store: Store, home: Path
) -> None:
    deadly = QUESTION.request(SPACE.all()[5])
    (home / "deadly").write_text(request_key(deadly))
    number = ask(store, QUESTION, "ann")
    with running(SERVER):
        until(lambda: not ledger.any_open(store), BUSY_SECONDS)
    (item,) = ledger.items(store, number)
    assert (item.state, item.message) == ("done", "")
    found = answer_of(store, item.answer)
    assert found is not None
    trials = found.answer.progress.trials
    (failed,) = (one for one in trials if one.outcome is not Outcome.MEASURED)
    assert QUESTION.request(failed.position) == deadly
    assert failed.message == "the process that measured it was gone 3 times in a row"
    assert {result.request for result in store.results()} == POSITIONS - {deadly}


@pytest.mark.slow
def test_a_server_is_told_to_stop_and_answers_with_the_best_so_far(store: Store, home: Path) -> None:
    number = ask(store, QUESTION, "ann")
    with running(SERVER):
        more(store)
        ledger.conclude(store, number)
        until(lambda: not ledger.any_open(store))
        early = answer_of(store, ledger.find(store, number).answer)
        assert early is not None
        assert early.answer.is_early
        assert early.best is not None
        assert len(early.measured) < len(POSITIONS)
        longer = ask(store, replace(QUESTION, budget_seconds=7200.0), "bob")
        until(lambda: not ledger.any_open(store))
    whole = answer_of(store, ledger.find(store, longer).answer)
    assert whole is not None
    assert not whole.answer.is_early
    assert len(whole.measured) == len(POSITIONS)
    assert max(kept(home).values()) == 1


def test_ctrl_c_in_a_shell_that_waits_for_others_leaves_their_search(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number = ask(store, QUESTION, "ann")
    item = ledger.claim(store, f"{identity()}/server", number)
    assert item is not None
    monkeypatch.setattr(drain, "time", SimpleNamespace(sleep=lambda _: os.kill(os.getpid(), signal.SIGINT)))
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a shell
    try:
        assert main(["find", "--resume", str(number)]) == 130
    finally:
        signal.signal(signal.SIGINT, usual)
    assert "is being worked on" in capsys.readouterr().err
    assert [one.state for one in ledger.items(store, number)] == ["running"]
    assert not ledger.is_enough(store, item)


@pytest.mark.slow
def test_a_shell_s_search_is_killed_gone_on_with_and_stopped(store: Store) -> None:
    """Of a real network; another host that had it meanwhile goes silent, and a waiting shell takes it up."""
    command = [
        *("find", "fashion-mlp", "--limit=200", "--engine=torch", "--prune=magnitude", "--rounding=nearest"),
        *("--threads=1", "--search=grid", "--max-size-mb=100", "--budget=3600", "--json"),
    ]
    shell = [sys.executable, "-m", "optimizer.cli", *command]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(shell, env=paths) as first:
        until(store.count, BUSY_SECONDS)
        first.kill()
    before = store.results()
    assert ledger.claim(store, "elsewhere/1/1.00", 1)
    with subprocess.Popen(
        shell, env=paths, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as second:
        assert second.stderr is not None
        assert "is being worked on" in second.stderr.readline()
        query(store.path, "UPDATE items SET beaten = 0")  # it tells nothing more
        until(lambda: store.count() > len(before), BUSY_SECONDS)
        second.send_signal(signal.SIGINT)
        printed, said = second.communicate()
    assert second.returncode == 0, said
    assert "ending with the best so far" in said
    assert "`paretoscope find --resume 1` goes on with it" in said
    found = json.loads(printed)
    assert found["ended_early"]
    assert found["words"].startswith("Ended early. ")
    assert found["tried"][0]["key"] == before[0].key
    assert all(result in store.results() for result in before), "one was measured twice"
    assert [one.state for one in ledger.sweeps(store)] == ["done"]
