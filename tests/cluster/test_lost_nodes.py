"""Nodes of a Dask cluster that come and go while one waits for what they were given, without Dask."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from factories import OTHER_MACHINE

import optimizer as px
from optimizer.cluster import dask_nodes, node, spread
from optimizer.cluster.dask_nodes import TOKEN, DaskNodes
from optimizer.errors import UnavailableError, WorkError
from optimizer.progress import quiet
from optimizer.records import encode


class Client:
    """A Dask client whose scheduler lists ``workers``; of what is submitted nothing ends by itself, and
    ``slept`` is called where one waits for it."""

    def __init__(self) -> None:
        self.workers = ["one"]
        self.submitted: list[tuple[str, Future[Any]]] = []
        self.slept: Callable[[], object] = lambda: None
        self.scheduler = self

    def identity(self) -> None:
        """What a scheduler is asked for."""

    def sync(self, function: Callable[..., Any], **how: Any) -> Any:
        return {"workers": {name: {"name": name, "resources": {TOKEN: 1}} for name in self.workers}}

    def run(self, function: Callable[..., Any], *arguments: Any, workers: list[str], **how: Any) -> Any:
        assert function is node.introduce
        return {workers[0]: (px.__version__, workers[0], encode(OTHER_MACHINE))}

    def get_executor(self, workers: list[str], **how: Any) -> "Client":
        self.given = ",".join(workers)
        return self

    def submit(self, *_: Any, **how: Any) -> "Future[Any]":
        self.submitted.append((self.given, Future()))
        return self.submitted[-1][1]

    # In place of the module ``time``: each look comes late enough to ask who is there

    seconds = 0.0

    def monotonic(self) -> float:
        self.seconds += 2 * spread.CHECK_SECONDS
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    made = Client()
    monkeypatch.setattr(dask_nodes, "_connect", lambda address: made)
    monkeypatch.setattr(spread, "time", made)
    return made


def outcome(client: Client) -> Any:
    return DaskNodes("tcp://127.0.0.1:1", "", quiet).outcome(print)


def test_a_result_that_comes_as_one_looks_after_its_node_is_taken(client: Client) -> None:
    client.slept = lambda: client.submitted[-1][1].set_result("measured")
    assert outcome(client) == "measured"
    assert len(client.submitted) == 1


def test_what_a_lost_node_had_goes_to_one_that_joined(client: Client) -> None:
    def replaced() -> None:
        if client.workers == ["one"]:
            client.workers = ["two"]
        else:
            client.submitted[-1][1].set_result("measured")

    client.slept = replaced
    assert outcome(client) == "measured"
    assert [name for name, _ in client.submitted] == ["one", "two"]
    assert client.submitted[0][1].cancelled()


def test_where_each_node_is_lost_under_it_it_fails_and_where_none_is_left_it_waits(client: Client) -> None:
    client.slept = lambda: client.workers.append(f"{client.workers.pop()}+")
    with pytest.raises(WorkError, match="its node was lost 3 times in a row"):
        outcome(client)
    client.slept = lambda: client.workers.clear()
    with pytest.raises(UnavailableError, match="^no node is left with"):
        outcome(client)


def test_what_the_scheduler_cancels_is_given_out_again(client: Client) -> None:
    client.slept = lambda: (
        client.submitted[-1][1].set_result("measured")
        if len(client.submitted) > 1
        else client.submitted[-1][1].cancel()
    )
    assert outcome(client) == "measured"
