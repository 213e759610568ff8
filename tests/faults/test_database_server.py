"""Servers that share a database: it is killed at a random moment and started again, and so are they."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from databases import Server, query
from tasks import SEEDS, lines, until
from test_questions import POSITIONS, QUESTION
from test_sweeps import ALONE, SERVER, kept, running

from optimizer.recipe import Recipe
from optimizer.records import Request
from optimizer.search.questions import answer_of, ask
from optimizer.search.records import Outcome
from optimizer.store import ledger
from optimizer.store.results import Store

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")

KILLS = 6
REQUESTS = [Request("fashion-mlp", Recipe.of(sparsity=number / 100)) for number in range(1, 61)]


@pytest.fixture
def store(postgresql: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Empty, and what every process that a test starts uses."""
    monkeypatch.setenv("PARETOSCOPE_STORE", postgresql.empty())
    home.mkdir()
    return Store()


def check(store: Store, server: Server, home: Path, sweep: int) -> None:
    """Every result is there once, and none was worked out twice."""
    items = ledger.items(store, sweep)
    assert Counter(item.state for item in items) == {"done": len(REQUESTS)}
    kept = Counter(line.split()[1] for line in lines(home / "noted"))
    assert kept == Counter(item.key for item in items)
    stored = query(server.url, "SELECT key FROM results")
    assert Counter(key for (key,) in stored) == kept
    assert {item.attempts for item in items} == {1}


@pytest.mark.slow
def test_two_servers_never_do_the_same(store: Store, postgresql: Server, home: Path) -> None:
    sweep = ledger.create(store, b"", REQUESTS, "ann")
    with running(ALONE), running(ALONE), running(ALONE):
        until(lambda: not ledger.any_open(store))
    check(store, postgresql, home, sweep)


def kill_again_and_again(store: Store, postgresql: Server, chance: random.Random) -> int:
    """Until all is done; how often."""
    for kill in range(KILLS):
        time.sleep(chance.uniform(0.05, 0.3))
        if not ledger.any_open(store):  # on a busy machine each kill takes longer
            return kill
        postgresql.stop(chance.choice([signal.SIGKILL, signal.SIGINT]))
        postgresql.start()
    until(lambda: not ledger.any_open(store))
    return KILLS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(len(SEEDS) + 1))
def test_a_sweep_goes_on_after_each_kill_of_the_database(
    store: Store, postgresql: Server, home: Path, seed: int
) -> None:
    sweep = ledger.create(store, b"", REQUESTS, "ann")
    with running(ALONE), running(SERVER):
        assert kill_again_and_again(store, postgresql, random.Random(seed)) > 1
    check(store, postgresql, home, sweep)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_search_goes_on_after_each_kill_of_the_database(
    store: Store, postgresql: Server, home: Path, seed: int
) -> None:
    number = ask(store, QUESTION, "ann")
    with running(SERVER):
        assert kill_again_and_again(store, postgresql, random.Random(seed)) > 1
    (item,) = ledger.items(store, number)
    assert (item.state, item.message) == ("done", "")
    found = answer_of(store, item.answer)
    assert found is not None
    assert found.best is not None
    assert [trial.outcome for trial in found.answer.progress.trials] == [Outcome.MEASURED] * len(POSITIONS)
    assert {result.request for result in found.measured} == POSITIONS
    assert Counter(key for (key,) in query(postgresql.url, "SELECT key FROM results")) == kept(home)
