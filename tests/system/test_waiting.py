"""How threads of torch wait for each other in processes of our own."""

import json
import os
import pickle
from typing import Any

import pytest

from optimizer.progress import Report, quiet
from optimizer.system.environment import environment
from optimizer.system.processes import run_module
from optimizer.system.waiting import WAITING
from optimizer.system.worker import Worker

SAID = ("OMP_WAIT_POLICY", *WAITING)


def variables(task: str, request: Any, report: Report) -> dict[str, str]:
    """What a worker of these tests is started for."""
    return {name: os.environ[name] for name in SAID if name in os.environ}


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SAID:
        monkeypatch.delenv(name, raising=False)


def said_by_a_worker() -> object:
    worker = Worker("test_waiting:variables")
    try:
        state, answer = worker.run("variables", pickle.dumps(None), quiet, lambda known: None, lambda: True)
    finally:
        worker.close()
    assert state == "done", answer
    return pickle.loads(answer)


def test_workers_and_fresh_processes_are_told_and_this_one_stays_as_it_was() -> None:
    assert said_by_a_worker() == WAITING
    assert json.loads(run_module("test_waiting", max_seconds=60)) == WAITING
    assert not {*WAITING} & {*os.environ}


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")])
def test_what_a_user_says_holds(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert said_by_a_worker() == {name: value}


def test_a_machine_is_the_same_with_what_we_say_and_another_with_what_a_user_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def key() -> str:
        environment.cache_clear()
        return environment().key

    try:
        plain = key()
        monkeypatch.setenv("GOMP_SPINCOUNT", WAITING["GOMP_SPINCOUNT"])
        assert key() == plain
        monkeypatch.setenv("GOMP_SPINCOUNT", "7")
        assert key() != plain
    finally:
        environment.cache_clear()


if __name__ == "__main__":  # in a fresh process
    print(json.dumps(variables("", None, quiet)))
