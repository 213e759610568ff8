"""Accuracy that is worked out on another machine than the one that times: who does it, and what becomes of it
where somebody fails."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cluster import made_up
from cluster.test_lost_nodes import Client
from cluster.test_spread import REQUESTS, Elsewhere
from factories import OTHER_MACHINE
from faults.storing import make_result
from image_folders import Fill
from PIL import Image

import optimizer as px
from optimizer.cluster import content, dask_nodes, node, spread
from optimizer.cluster.content import Asked, Parcel
from optimizer.cluster.dask_nodes import AHEAD, MAX_FAILED, DaskNodes, DaskScorer, connect_to
from optimizer.cluster.spread import NodeLost, Nodes, NotTaken, work_off
from optimizer.errors import UnavailableError
from optimizer.measurement import experiment
from optimizer.measurement.workspace import Workspace, open_workspace
from optimizer.on_demand import load_or_measure, scores_of
from optimizer.recipe import QuantizeSpec, Recipe
from optimizer.records import (
    Accuracy,
    DataSpec,
    Environment,
    Request,
    Result,
    Scores,
    Settings,
    decode,
    encode,
)
from optimizer.search import drain
from optimizer.store import ledger
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.system.environment import environment, lanes

SERVER = replace(OTHER_MACHINE, cpu="A fast CPU", cores=2 * OTHER_MACHINE.cores)
ACCURACY = Accuracy(b"\x0f", 8, "labels", 3, 21.5, 0.02)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(drain, "BEAT_SECONDS", 0.02)
    return Store()


class Server(Elsewhere):
    """An executor whose node works out accuracy, for the other machine."""

    def __init__(self) -> None:
        super().__init__()
        self.scored: list[Request] = []
        self.ending = node.DONE

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        return self.pool.submit(self.score if function is node.score else self.introduce, *arguments)

    def score(self, version: str, device: bytes, asked: bytes) -> node.Outcome:
        assert decode(device, Environment) == OTHER_MACHINE
        one = decode(asked, Asked)
        self.failing(one.request)
        self.scored.append(one.request)
        if self.ending != node.DONE:
            return self.ending, encode(Parcel("images", "none"))
        inspection = make_result("").inspection
        return node.DONE, encode(Scores(SERVER, one.files, inspection, ACCURACY, ACCURACY, ("noted there",)))


class Device(Elsewhere):
    """An executor whose node times, and works out accuracy where it is given none."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Scores | None] = []

    def measure(self, version: str, wanted: bytes, asked: bytes, *scores: bytes) -> node.Outcome:
        ending, found = super().measure(version, wanted, asked)
        (given,) = [decode(one, Scores) for one in scores] or [None]
        self.given.append(given)
        if given:
            changes = {"accuracy": given.accuracy, "scored_on": given.environment, "notes": given.notes}
            found = encode(replace(decode(found, Result), **changes))  # type: ignore[arg-type]
        return ending, found


class Mixed(Nodes):
    """Nodes that time, and one that works out accuracy for them."""

    def __init__(self) -> None:
        self.device, self.server = Device(), Server()
        super().__init__(self.device)
        self.other = Nodes(self.server)

    def scorer(self, recipe: Recipe) -> Nodes:
        return self.other


def asked(store: Store, nodes: Nodes, requests: list[Request] = REQUESTS) -> int:
    return ledger.create(store, b"", requests, "ann", nodes.environment.key)


def measured(store: Store, sweep: int) -> list[Result]:
    assert {item.state for item in ledger.items(store, sweep)} == {"done"}
    return store.several([item.key for item in ledger.items(store, sweep)])


def test_each_is_scored_once_there_and_timed_once_here(store: Store) -> None:
    nodes = Mixed()
    sweep = asked(store, nodes)
    assert {item.state for item in work_off(store, nodes, sweep)} == {"done"}
    for requests in (nodes.server.scored, nodes.device.measured):
        assert sorted(map(encode, requests)) == sorted(map(encode, REQUESTS))
    for result in measured(store, sweep):
        assert (result.environment, result.scored_on) == (OTHER_MACHINE, SERVER)
        assert (result.accuracy, result.notes) == (ACCURACY, ("noted there",))
    assert not store.documents(spread.SCORES, Scores)


def fail(request: Request) -> None:
    raise RuntimeError("out of memory")


def refuse(asked: Asked, anew: bool = False) -> None:
    raise NotTaken("server: no space left on device")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda nodes: setattr(nodes.server, "failing", fail),
        lambda nodes: setattr(nodes.server, "ending", node.FAILED),
        lambda nodes: setattr(nodes.server, "ending", node.REFUSED),
        lambda nodes: setattr(nodes.server, "ending", node.LACKING),
        lambda nodes: setattr(nodes.other, "deliver", refuse),
        lambda nodes: nodes.server.pool.shutdown(),
    ],
    ids=["raises", "fails", "refuses", "lacks", "can't be sent", "is gone"],
)
def test_what_can_not_be_scored_there_is_scored_where_it_is_timed(
    store: Store, spoil: Callable[[Mixed], Any]
) -> None:
    nodes = Mixed()
    spoil(nodes)
    sweep = asked(store, nodes)
    assert {item.state for item in work_off(store, nodes, sweep)} == {"done"}
    assert [result.scored_on for result in measured(store, sweep)] == [None] * len(REQUESTS)
    assert nodes.device.given == [None] * len(REQUESTS)


def test_scores_survive_the_loss_of_the_node_that_was_to_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, measure = Mixed(), spread.measure

    def lose(*_: Any) -> Result:
        raise NodeLost("no node is left")

    sweep = asked(store, nodes, REQUESTS[:1])
    monkeypatch.setattr(spread, "measure", lose)
    with pytest.raises(NodeLost):
        list(work_off(store, nodes, sweep))
    monkeypatch.setattr(spread, "measure", measure)
    nodes.server.failing = fail
    assert [item.state for item in work_off(store, nodes, sweep)] == ["done"]
    assert [result.scored_on for result in measured(store, sweep)] == [SERVER]
    assert nodes.server.scored == REQUESTS[:1]
    assert not store.documents(spread.SCORES, Scores)


def test_scores_of_what_fails_where_it_is_timed_are_not_kept(store: Store) -> None:
    nodes = Mixed()
    nodes.device.failing = fail
    sweep = asked(store, nodes)
    assert {item.state for item in work_off(store, nodes, sweep)} == {"failed"}
    assert len(nodes.server.scored) == len(REQUESTS)
    assert not store.documents(spread.SCORES, Scores)


def test_what_a_node_was_lost_under_is_not_scored_anew_elsewhere(store: Store) -> None:
    """Else it would end the others too."""
    nodes = Mixed()
    sweep = asked(store, nodes, REQUESTS[:1])
    item = ledger.claim(store, "me", sweep, nodes.environment.key)
    assert item
    ledger.lose(store, item)
    assert [item.state for item in work_off(store, nodes, sweep)] == ["done"]
    assert not nodes.server.scored


def test_scores_of_other_images_are_not_used() -> None:
    nodes = Mixed()
    found = spread.score(nodes, REQUESTS[0])
    assert found
    other = replace(found, files="as they were before")
    assert spread.measure(nodes, REQUESTS[0], other).scored_on is None
    assert spread.measure(nodes, REQUESTS[0], found).scored_on == SERVER


def test_a_cancelled_sweep_ends_while_it_is_scored(store: Store) -> None:
    nodes, begun, go = Mixed(), threading.Event(), threading.Event()

    def wait(request: Request) -> None:
        begun.set()
        assert go.wait(60)

    nodes.server.failing = wait
    sweep = asked(store, nodes)
    work = threading.Thread(target=lambda: [*work_off(store, nodes, sweep)])
    work.start()
    assert begun.wait(60)
    ledger.cancel(store, sweep)
    work.join(60)
    go.set()
    assert not work.is_alive()
    assert set(ledger.find(store, sweep).counts) == {"cancelled"}
    assert not nodes.device.measured


# Who may


@pytest.mark.parametrize(
    ("recipe", "change", "may"),
    [
        (Recipe.of(sparsity=0.5, weight_bits=4), {}, True),
        (Recipe.of(sparsity=0.5, weight_bits=4), {"instruction_sets": ("neon",)}, True),
        (Recipe.of(), {"libraries": {"openvino": "2026.5.0"}}, False),
        (Recipe.of(), {"libraries": {"openvino": "2026.4.0+cpu"}}, True),
        (Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8)), {}, True),
        (Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8)), {"instruction_sets": ()}, False),
        (Recipe(quantize=QuantizeSpec(activation_bits=4)), {"instruction_sets": ()}, False),
        (Recipe(quantize=QuantizeSpec(precision="bf16")), {"instruction_sets": ()}, False),
        (Recipe.of(sparsity=0.5, finetune_steps=5), {}, False),
    ],
)
def test_what_another_machine_may_score(recipe: Recipe, change: dict[str, object], may: bool) -> None:
    scorer = replace(SERVER, **change)  # type: ignore[arg-type]
    assert node.may_score(scorer, OTHER_MACHINE, recipe) is may


def test_instruction_sets_that_nobody_could_read_are_not_the_same() -> None:
    device, scorer = (replace(one, instruction_sets=()) for one in (OTHER_MACHINE, SERVER))
    assert node.may_score(scorer, device, Recipe())
    assert not node.may_score(scorer, device, Recipe(quantize=QuantizeSpec(activation_bits=8)))


def test_a_node_scores_with_all_its_cores_and_refuses_what_it_may_not() -> None:
    few = Request("fashion-mlp", px.Recipe.of(sparsity=0.5, pruning="magnitude"), data=DataSpec(limit=50))
    packed = content.pack(replace(few, settings=Settings(threads=10_000)))  # as the device may have
    there = replace(environment(), cpu="A slow CPU")
    ending, found = node.score(px.__version__, encode(there), encode(packed))
    assert ending == node.DONE, found
    scores = decode(found, Scores)
    assert (scores.environment, scores.files, scores.accuracy.total) == (environment(), packed.files, 50)
    other = replace(there, libraries={"openvino": "1.0"})
    ending, words = node.score(px.__version__, encode(other), encode(packed))
    assert ending == node.REFUSED
    assert b"and not 1.0" in words
    assert node.score("0.0.1", b"", b"")[0] == node.FAILED
    ending, found = node.measure(
        px.__version__,
        encode(environment()),
        encode(content.pack(few)),
        encode(replace(scores, environment=there)),
    )
    assert ending == node.DONE, found
    result = decode(found, Result)
    assert (result.accuracy, result.scored_on) == (scores.accuracy, there)


@pytest.mark.parametrize("folder", [False, True])
def test_who_is_given_scores_reads_no_more_images_than_it_times_with(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: bool
) -> None:
    """Images of both folders calibrate neither machine, whichever are read."""
    data = DataSpec(limit=200)
    if folder:
        places = [tmp_path / "evaluation", tmp_path / "calibration"]
        pixels = np.random.default_rng(0).integers(0, 255, (210, 28, 28), dtype=np.uint8)
        for place, drawn in zip(places, (range(200), range(100, 210)), strict=True):
            place.mkdir()
            for number in drawn:
                Image.fromarray(pixels[number]).save(place / f"{number}.png")
        data = DataSpec(*map(str, places), limit=200)
    request = Request("fashion-mlp", Recipe(), data=data)
    opened, measure = list[Workspace](), experiment.measure

    def noted(workspace: Workspace, *given: Any) -> Result:
        opened.append(workspace)
        return measure(workspace, *given)

    monkeypatch.setattr(experiment, "measure", noted)
    scores = scores_of(request)
    result = load_or_measure(request, store, scores=scores)
    assert (result.key, result.accuracy.total) == (request_key(request), 200)
    (timed,) = [workspace.images.evaluation.images for workspace in opened]
    every = open_workspace("fashion-mlp", data).images
    assert torch.equal(timed, every.evaluation.images[: experiment.TIMED_IMAGES])
    assert torch.equal(opened[0].images.calibration.images, every.calibration.images)
    assert not folder or len(every.calibration.images) == 10


def test_machines_compare_by_the_vectors_of_their_cores() -> None:
    raspberry = replace(OTHER_MACHINE, cores=4, instruction_sets=("neon", "dotprod"))
    unknown, server = (replace(raspberry, instruction_sets=sets) for sets in ((), ("avx2", "avx512f")))
    assert lanes(unknown) == lanes(raspberry) < lanes(server)
    assert lanes(replace(raspberry, cores=8)) == 2 * lanes(raspberry)


# Which node does, on a scheduler that is made up


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
        monkeypatch.setattr(dask_nodes, "_connect", lambda address: client)
        monkeypatch.setattr(dask_nodes, "time", client.clock)
        monkeypatch.setattr(spread, "time", client)
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
    assert spread.score(nodes, REQUESTS[0]) is None
    assert [name for name, _ in client.submitted] == ["one"]
    assert client.submitted[0][1].cancelled()
    assert nodes.scorer(Recipe()) is None


def test_nodes_that_share_a_disk_are_sent_images_at_once(
    connected: Connected, monkeypatch: pytest.MonkeyPatch, fill: Fill
) -> None:
    client, nodes = connected(one=SERVER)
    scorer = nodes.scorer(Recipe())
    assert scorer
    asked = content.pack(replace(REQUESTS[0], data=DataSpec(str(fill("a.png", "b.png")))))
    monkeypatch.setattr(content, "fingerprint", made_up.fingerprint)
    waiting = [lambda: scorer.deliver(asked)]

    def run(function: Callable[..., Any], *arguments: Any, workers: list[str], **how: Any) -> Any:
        if function is content.keep and waiting:
            waiting.pop()()
        return {workers[0]: function(*arguments)}

    client.run = run  # type: ignore[method-assign]
    nodes.deliver(asked)
    assert not content.lacking(asked)


def test_what_the_scheduler_does_not_answer_is_told_where_it_is_timed(connected: Connected) -> None:
    client, nodes = connected(one=SERVER)

    def silent(function: Callable[..., Any], callback_timeout: float, **how: Any) -> Any:
        raise TimeoutError

    client.sync = silent  # type: ignore[method-assign]
    assert spread.score(nodes, REQUESTS[0]) is None
    with pytest.raises(UnavailableError, match="the scheduler answers no more"):
        spread.measure(nodes, REQUESTS[0])
