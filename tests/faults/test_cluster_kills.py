"""Nodes and the scheduler of a Dask cluster are killed at random moments: a dashboard's sweep goes on when
others take their place, nothing is lost, and nothing that was done is measured again. It is so
where both are alike, and where one times and the other works out the accuracy."""

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from cluster import made_up
from cluster.dask_cluster import DaskCluster
from tasks import SEEDS, lines, until

from optimizer.cluster.attached import Attached
from optimizer.recipe import Recipe
from optimizer.records import DataSpec, Request, Settings
from optimizer.store import ledger
from optimizer.store.results import Store
from optimizer.system.environment import usable_cpus

if find_spec("distributed") is None:  # it takes a second to import, also where it is only collected
    pytest.skip("needs the package distributed", allow_module_level=True)
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")

RECIPES = [Recipe.of(sparsity=number / 100) for number in range(1, 41)]
VICTIMS = ("one", "two", "scheduler")
PATIENCE_SECONDS = 600


class Killed(DaskCluster):
    """A cluster of two nodes, each started anew when it was killed. The first runs on ``cpus``, by default on
    all."""

    def __init__(self, folder: Path, cpus: str = "") -> None:
        super().__init__(folder, tls=False)
        self.cpus = {"one": cpus}
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.start_nodes()

    def start_nodes(self) -> None:
        for name in ("one", "two"):
            self.start_node(name)

    def start_node(self, name: str) -> None:
        self.nodes[name] = self.node(name, preload="cluster.made_up", cpus=self.cpus.get(name, ""))

    def kill(self, victim: str) -> None:
        process = self.scheduler if victim == "scheduler" else self.nodes[victim]
        process.kill()
        process.wait()
        if victim == "scheduler":
            for node in self.nodes.values():  # they end by themselves, sooner or later
                node.kill()
                node.wait()
            self.start_scheduler()
            self.start_nodes()
        else:
            self.start_node(victim)


FIRST = str(min(usable_cpus()))


@pytest.fixture(
    scope="module",
    params=["", pytest.param(FIRST, marks=pytest.mark.slow)],
    ids=["alike", "two kinds"],
)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    if request.param and len(usable_cpus()) < 2:
        pytest.skip("one CPU")
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(made_up.NOTES, str(folder / "notes"))
        made = Killed(folder, request.param)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_sweep_goes_on_after_each_kill_of_a_node_or_the_scheduler(cluster: Killed, seed: int) -> None:
    chance, store = random.Random(seed), Store()
    victims = chance.sample(VICTIMS, len(VICTIMS))
    data, settings = DataSpec(limit=1000 + seed), Settings(seed=made_up.KEPT)  # nodes keep what was before
    requests = [Request("fashion-mlp", recipe, data=data, settings=settings) for recipe in RECIPES]
    notes = cluster.folder / "notes"
    notes.unlink(missing_ok=True)
    attached = Attached(store, cluster.address)
    until(lambda: {name for one in attached.devices.values() for name in one.names} == {"one", "two"})
    (device,) = (key for key, one in attached.devices.items() if "one" in one.names)
    sweep = ledger.create(store, b"", requests, "ann", device)
    attached.ring()

    def done() -> set[str]:
        ended = (item.request for item in ledger.items(store, sweep) if item.state == "done")
        return {str(request.recipe.prune.share) for request in ended if request}

    kept = list[tuple[set[str], int]]()  # what was done before each kill, and the lines that nodes had noted
    try:
        for victim in victims:
            before = len(done())
            until(lambda before=before: len(done()) > before + 2, PATIENCE_SECONDS)
            kept.append((done(), len(lines(notes))))
            time.sleep(chance.uniform(0.1, 0.6))  # the scheduler is told a little later
            assert ledger.find(store, sweep).open
            cluster.kill(victim)
        until(lambda: not ledger.find(store, sweep).open, PATIENCE_SECONDS)
    finally:
        attached.close()
    items = ledger.items(store, sweep)
    assert Counter(item.state for item in items) == {"done": len(requests)}, [one.message for one in items]
    results = store.results()
    assert {result.key for result in results} == {item.key for item in items}
    assert any(result.scored_on for result in results) == bool(cluster.cpus["one"])
    begun = [(share, what == "scored") for _, share, what in map(str.split, lines(notes))]
    assert not [share for ended, noted in kept for share, _ in begun[noted:] if share in ended]
    assert max(Counter(begun).values()) <= 1 + len(victims), "only what a kill interrupts is measured again"
