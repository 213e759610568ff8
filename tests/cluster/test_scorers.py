"""Which node of a cluster works out the accuracy for another, on a scheduler that is made up."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster import made_up
from cluster.test_lost_nodes import Client
from cluster.test_spread import REQUESTS
from factories import OTHER_MACHINE, SERVER
from image_folders import Fill

import optimizer as px
from optimizer.cluster import content, dask_nodes, node, nodes, remote
from optimizer.cluster.dask_nodes import AHEAD, MAX_FAILED, DaskNodes, DaskScorer, connect_to
from optimizer.data.folders import list_folder
from optimizer.errors import UnavailableError
from optimizer.recipe import Recipe
from optimizer.records import DataSpec, Environment, encode


class Kinds(Client):
    """Nodes of kinds of their own; ``doing`` is what each has to do."""

    def __init__(self, **kinds: Environment) -> None:
        super().__init__()
        self.kinds, self.workers = kinds, [*kinds]
        self.doing: dict[str, list[str]] = {name: [] for name in kinds}
        self.questions: list[str] = []
        self.told: list[str] = []

    def processing(self) -> None:
        """What a scheduler is asked for."""

    def sync(self, function: Callable[..., Any], callback_timeout: float, **how: Any) -> Any:
        self.questions.append(function.__name__)
        if function == self.processing:
            return {name: self.doing[name] for name in self.workers}
        return super().sync(function, callback_timeout, **how)

    def run(self, function: Callable[..., Any], *arguments: Any, workers: list[str], **how: Any) -> Any:
        if function is node.introduce:
            self.asked.extend(workers)
            return {name: (px.__version__, name, encode(self.kinds[name])) for name in workers}
        return super().run(function, *arguments, workers=workers, **how)


TIMING, SCORING = (f"{one.__name__}-1" for one in (dask_nodes._while_wanted, dask_nodes._score_while_wanted))


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Kinds, DaskNodes]]:
    def connect(**kinds: Environment) -> tuple[Kinds, DaskNodes]:
        client = Kinds(rpi5=OTHER_MACHINE, **kinds)
        monkeypatch.setattr(dask_nodes, "client_of", lambda address: client)
        monkeypatch.setattr(dask_nodes, "time", client.clock)
        monkeypatch.setattr(nodes, "time", client)
        return client, connect_to("tcp://127.0.0.1:1", "rpi5", lambda share, words: client.told.append(words))

    return connect


Connected = Callable[..., tuple[Kinds, DaskNodes]]


def name(scorer: DaskScorer | None) -> str:
    return "".join(scorer._usable()) if scorer else ""


def test_nodes_of_one_kind_are_asked_nothing_more_and_given_as_many(connected: Connected) -> None:
    client, nodes = connected(second=OTHER_MACHINE)
    client.questions.clear()
    assert nodes.scorer(Recipe()) is None
    assert not client.questions
    assert nodes.slots == 2 * AHEAD


def test_the_one_with_least_to_do_scores_and_each_is_one_configuration_more(connected: Connected) -> None:
    client, nodes = connected(one=SERVER, two=replace(SERVER, cpu="Another fast CPU"))
    nodes.check()
    assert nodes.slots == AHEAD + 2
    first, second = nodes.scorer(Recipe()), nodes.scorer(Recipe())
    assert {name(first), name(second)} == {"one", "two"}
    assert first
    with first:
        client.doing[name(second)] = [SCORING, SCORING]
    assert name(nodes.scorer(Recipe())) == name(first)


def test_of_those_with_as_little_to_do_the_fastest_scores(connected: Connected) -> None:
    client, nodes = connected(one=SERVER, two=replace(SERVER, cores=2 * SERVER.cores), three=SERVER)
    assert name(nodes.scorer(Recipe())) == "two"
    client.doing["three"] = [SCORING]
    assert name(nodes.scorer(Recipe())) == "one"


@pytest.mark.parametrize("devices", [1, 10])
def test_a_device_leaves_it_all_to_a_scorer_of_its_own_and_many_do_not_wait_for_one(
    connected: Connected, devices: int
) -> None:
    _, nodes = connected(one=SERVER, **{f"device-{number}": OTHER_MACHINE for number in range(1, devices)})
    nodes.check()
    taken = [name(nodes.scorer(Recipe())) for _ in range(nodes.slots)]
    assert taken == ["one"] * (AHEAD + 1) + [""] * AHEAD * (devices - 1)


def test_what_others_have_scored_counts_too(connected: Connected) -> None:
    client, nodes = connected(one=SERVER)
    client.doing["one"] = [SCORING] * (AHEAD + 1)
    assert nodes.scorer(Recipe()) is None


def test_none_scores_beside_what_it_times_or_does_for_others(connected: Connected) -> None:
    client, nodes = connected(one=SERVER)
    for doing, free in (([], True), ([SCORING], True), ([SCORING, TIMING], False), (["sum-1"], False)):
        client.doing["one"] = doing
        assert (nodes.scorer(Recipe()) is not None) is free


@pytest.mark.parametrize(
    "other", [replace(SERVER, cores=1), replace(SERVER, libraries={"openvino": "2027.0"})]
)
def test_none_scores_that_is_slower_or_has_other_libraries(connected: Connected, other: Environment) -> None:
    _, nodes = connected(one=other)
    nodes.check()
    assert (nodes.scorer(Recipe()), nodes.slots) == (None, AHEAD)


def test_a_fast_node_with_other_libraries_is_told(connected: Connected) -> None:
    client, _ = connected(
        one=replace(SERVER, libraries={"openvino": "2027.0"}),
        two=replace(SERVER, libraries={"openvino": "2026.4.0+cpu"}),
        slow=replace(SERVER, libraries={}, cores=1),
    )
    words = "one can't score for rpi5: it has openvino 2027.0 and not 2026.4.0"
    assert client.told == [words]


def test_who_could_not_score_twice_in_a_row_is_asked_no_more(connected: Connected) -> None:
    _, nodes = connected(one=SERVER)
    for fails in (True, False, *[True] * MAX_FAILED):
        scorer = nodes.scorer(Recipe())
        assert scorer
        try:
            with scorer:
                assert not fails
        except AssertionError:
            pass
    assert nodes.scorer(Recipe()) is None


def test_a_scorer_that_is_lost_leaves_it_to_the_device(connected: Connected) -> None:
    client, nodes = connected(one=SERVER)
    client.slept = lambda: client.workers.remove("one") if "one" in client.workers else None
    assert remote.score(nodes, REQUESTS[0]) is None
    assert [name for name, _ in client.submitted] == ["one"]
    assert client.submitted[0][1].cancelled()
    assert nodes.scorer(Recipe()) is None


def test_nodes_that_share_a_disk_are_sent_images_at_once_and_keep_those_that_came_first(
    connected: Connected, monkeypatch: pytest.MonkeyPatch, fill: Fill, home: Path
) -> None:
    client, nodes = connected(one=SERVER)
    scorer = nodes.scorer(Recipe())
    assert scorer
    asked = content.pack(replace(REQUESTS[0], data=DataSpec(str(fill("a.png", "b.png")))))
    monkeypatch.setattr(content, "fingerprint", made_up.fingerprint)
    first: list[int] = []

    def delivered_before() -> None:
        scorer.deliver(asked)
        first.extend(kept())

    def kept() -> list[int]:
        return sorted(file.stat().st_ino for file in (home / content.FOLDER / asked.files).rglob("*.png"))

    waiting = [delivered_before]

    def run(function: Callable[..., Any], *arguments: Any, workers: list[str], **how: Any) -> Any:
        if function is content.keep and waiting:
            waiting.pop()()
        return {workers[0]: function(*arguments)}

    client.run = run  # type: ignore[method-assign]
    nodes.deliver(asked)
    assert not content.lacking(asked)
    assert kept() == first  # a node may be reading them
    assert len(first) == 2


def test_a_folder_that_calibrates_travels_also_where_the_bundled_images_are_evaluated(fill: Fill) -> None:
    folder = fill("calibration/a.png", "calibration/b.png") / "calibration"
    asked = content.pack(replace(REQUESTS[0], data=DataSpec(calibration=str(folder))))
    folder.rename(folder.with_name("elsewhere"))
    parcel = content.lacking(asked)
    assert parcel
    folder.with_name("elsewhere").rename(folder)
    pieces = [*content.pieces(asked, parcel)]
    folder.rename(folder.with_name("elsewhere"))
    content.receive(parcel, "sender", pieces)
    content.keep(parcel, "sender", asked)
    assert content.lacking(asked) is None
    there = content.at_this_place(asked).data
    assert there.path is None
    assert [path.name for path in list_folder(str(there.calibration)).images] == ["a.png", "b.png"]


def test_what_the_scheduler_does_not_answer_is_told_where_it_is_timed(connected: Connected) -> None:
    client, nodes = connected(one=SERVER)

    def silent(function: Callable[..., Any], callback_timeout: float, **how: Any) -> Any:
        raise TimeoutError

    client.sync = silent  # type: ignore[method-assign]
    assert remote.score(nodes, REQUESTS[0]) is None
    with pytest.raises(UnavailableError, match="the scheduler answers no more"):
        remote.measure(nodes, REQUESTS[0])
