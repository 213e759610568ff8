"""A recipe is scored on one machine and timed on another, and which may do so."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cluster.test_spread import REQUESTS, Elsewhere
from factories import OTHER_MACHINE, SERVER
from faults.storing import make_result
from PIL import Image

import optimizer as px
from optimizer.cluster import content, node, remote, spread
from optimizer.cluster.content import Asked, Parcel
from optimizer.cluster.nodes import NodeLost, Nodes, NotTaken
from optimizer.cluster.spread import work_off
from optimizer.measurement import experiment
from optimizer.measurement.runners import TIMED_IMAGES
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
from optimizer.store import ledger
from optimizer.store.items import Item
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.system.environment import environment, lanes

ACCURACY = Accuracy(b"\x0f", 8, "labels", 3, 21.5, 0.02)


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


@pytest.mark.slow
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


def test_what_one_worker_loses_no_other_loses_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would count as one more time that it was tried."""
    nodes, lose = Mixed(), ledger.lose

    def lost(*_: Any) -> Result:
        raise NodeLost("no node is left")

    def slowly(store: Store, item: Item) -> None:
        lose(store, item)
        time.sleep(0.5)

    monkeypatch.setattr(spread, "measure", lost)
    monkeypatch.setattr(ledger, "lose", slowly)
    nodes.slots = 4
    sweep = asked(store, nodes, REQUESTS[:1])
    monkeypatch.setattr(spread, "drain", _late(spread.drain))
    with pytest.raises(NodeLost):
        list(work_off(store, nodes, sweep))
    (item,) = ledger.items(store, sweep)
    assert (item.state, item.attempts) == ("queued", 1)


def _late(drain: Callable[..., Any]) -> Callable[..., Any]:
    """All but the first worker begin a moment later."""

    def begun(store: Store, do: Any, sweep: int | None, owner: str, device: str) -> Any:
        if not owner.endswith("-0"):
            time.sleep(0.2)
        return drain(store, do, sweep, owner, device)

    return begun


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
    found = remote.score(nodes, REQUESTS[0])
    assert found
    other = replace(found, files="as they were before")
    assert remote.measure(nodes, REQUESTS[0], other).scored_on is None
    assert remote.measure(nodes, REQUESTS[0], found).scored_on == SERVER


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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert torch.equal(timed, every.evaluation.images[:TIMED_IMAGES])
    assert torch.equal(opened[0].images.calibration.images, every.calibration.images)
    assert not folder or len(every.calibration.images) == 10


def test_machines_compare_by_the_vectors_of_their_cores() -> None:
    raspberry = replace(OTHER_MACHINE, cores=4, instruction_sets=("neon", "dotprod"))
    unknown, server = (replace(raspberry, instruction_sets=sets) for sets in ((), ("avx2", "avx512f")))
    assert lanes(unknown) == lanes(raspberry) < lanes(server)
    assert lanes(replace(raspberry, cores=8)) == 2 * lanes(raspberry)
