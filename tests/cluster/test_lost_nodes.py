"""Nodes of a Dask cluster that come and go while one waits for what they were given, without Dask."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from factories import OTHER_MACHINE

import optimizer as px
from optimizer.cluster import content, dask_nodes, node, nodes
from optimizer.cluster.dask_nodes import RESOURCE, DaskNodes, connect_to
from optimizer.cluster.nodes import NotTaken
from optimizer.errors import UnavailableError, WorkError
from optimizer.progress import Report, quiet
from optimizer.records import Request, encode


class Clock:
    """In place of the module ``time``: it goes on where one waits."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Client:
    """A Dask client whose scheduler lists ``workers``; of what is submitted nothing ends by itself, and
    ``slept`` is called where one waits for it. Those that are ``silent``, as the scheduler may be, take all
    the time that they are given. A node answers what it is asked with ``answer``, or raises it."""

    def __init__(self) -> None:
        self.workers = ["one"]
        self.submitted: list[tuple[str, Future[Any]]] = []
        self.slept: Callable[[], object] = lambda: None
        self.scheduler = self
        self.silent: set[str] = set()
        self.answer: Any = b""
        self.clock = Clock()
        self.asked: list[str] = []

    def identity(self) -> None:
        """What a scheduler is asked for."""

    def sync(self, function: Callable[..., Any], callback_timeout: float, **how: Any) -> Any:
        self._answer("scheduler", callback_timeout)
        return {"workers": {name: {"name": name, "resources": {RESOURCE: 1}} for name in self.workers}}

    def run(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        workers: list[str],
        callback_timeout: float,
        **how: Any,
    ) -> Any:
        (name,) = workers
        self.asked.append(name)
        self._answer(name, callback_timeout)
        if function is node.introduce:
            return {name: (px.__version__, name, encode(OTHER_MACHINE))}
        return {name: self.answer}

    def close(self, timeout: float) -> None:
        self._answer("scheduler", timeout)

    def _answer(self, who: str, seconds: float) -> None:
        if who in self.silent:
            self.clock.seconds += seconds
            raise TimeoutError(f"{who} is silent")

    def get_executor(self, workers: list[str], **how: Any) -> "Client":
        self.given = ",".join(workers)
        return self

    def submit(self, *_: Any, **how: Any) -> "Future[Any]":
        self.submitted.append((self.given, Future()))
        return self.submitted[-1][1]

    # In place of the module ``time``: each look comes late enough to ask who is there

    seconds = 0.0

    def monotonic(self) -> float:
        self.seconds += 2 * nodes.CHECK_SECONDS
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    made = Client()
    monkeypatch.setattr(dask_nodes, "client_of", lambda address: made)
    monkeypatch.setattr(dask_nodes, "time", made.clock)
    monkeypatch.setattr(nodes, "time", made)
    return made


def connected(client: Client, report: Report = quiet) -> DaskNodes:
    return connect_to("tcp://127.0.0.1:1", "", report)


def outcome(client: Client) -> Any:
    return connected(client).outcome(print)


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


@pytest.mark.parametrize(
    ("workers", "silent", "words"),
    [
        ([], set(), "no node can be used: none has joined"),
        (["one"], {"one"}, "no node can be used: one doesn't answer"),
        (["one"], {"scheduler"}, "the scheduler answers no more"),
    ],
)
def test_what_is_wrong_is_told_within_10_s(
    client: Client, monkeypatch: pytest.MonkeyPatch, workers: list[str], silent: set[str], words: str
) -> None:
    """Where the scheduler takes as long as it may until it answers at all, too."""

    def connect(address: str) -> Client:
        client.clock.seconds += 2 * dask_nodes.CONNECT_SECONDS
        return client

    client.workers, client.silent = workers, silent
    for begin in (lambda address: client, connect):
        monkeypatch.setattr(dask_nodes, "client_of", begin)
        client.clock.seconds = 0.0
        with pytest.raises(UnavailableError, match=words):
            connected(client)
        assert client.clock.seconds < 10


def test_once_nodes_were_met_a_scheduler_has_more_time(client: Client) -> None:
    nodes = connected(client)
    client.silent, before = {"scheduler"}, client.clock.seconds
    with pytest.raises(UnavailableError, match="the scheduler answers no more"):
        nodes.check()
    assert client.clock.seconds - before == dask_nodes.PATIENCE_SECONDS


def test_a_node_that_was_silent_is_asked_again_later_and_told_once(client: Client) -> None:
    told: list[str] = []
    client.workers, client.silent = ["one", "two"], {"two"}
    nodes = connected(client, lambda share, words: told.append(words))
    assert nodes.slots == dask_nodes.AHEAD
    client.clock.seconds += dask_nodes.AGAIN_SECONDS / 2
    nodes.check()
    assert sorted(client.asked) == ["one", "two"]
    client.clock.seconds += dask_nodes.AGAIN_SECONDS
    nodes.check()
    assert sorted(client.asked) == ["one", "two", "two"]
    client.silent = set()
    client.clock.seconds += 2 * dask_nodes.AGAIN_SECONDS
    nodes.check()
    assert nodes.slots == 2 * dask_nodes.AHEAD
    assert len(told) == 1


def test_of_what_several_threads_meet_at_once_each_is_asked_once(client: Client) -> None:
    nodes = connected(client)
    client.workers += ["two", "three"]
    with ThreadPoolExecutor(8) as threads:
        assert {len(found) for found in threads.map(lambda _: nodes._usable(), range(8))} == {3}
    assert sorted(client.asked) == ["one", "three", "two"]


def test_a_node_that_can_not_take_what_it_lacks_says_so_and_one_that_is_gone_is_left_alone(
    client: Client,
) -> None:
    nodes, asked = connected(client), content.pack(Request("fashion-mlp"))
    client.answer = OSError(28, "No space left on device")
    with pytest.raises(NotTaken, match="one: OSError.*No space left"):
        nodes.deliver(asked)
    client.workers.append("two")
    nodes.check()

    def leave(address: str, *_: Any, **how: Any) -> Any:
        client.workers = ["two"]
        return KeyError(address) if address == "one" else b""

    nodes._cluster.ask = leave  # type: ignore[method-assign]
    nodes.deliver(asked)
    assert nodes._cluster._sent["two"][1]
    assert not nodes._cluster._sent["one"][1]
