"""Nodes and the scheduler of a Dask cluster are killed at random moments: a dashboard's sweep goes on when
others take their place, nothing is lost, and nothing that was done is measured again."""

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
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
from optimizer.system.environment import environment

pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")

RECIPES = [Recipe.of(sparsity=number / 200) for number in range(1, 121)]
VICTIMS = ("one", "two", "scheduler")
PATIENCE_SECONDS = 600


class Killed(DaskCluster):
    """A cluster of two nodes, each started anew when it was killed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, tls=False)
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.start_nodes()

    def start_nodes(self) -> None:
        for name in ("one", "two"):
            self.nodes[name] = self.node(name, preload="cluster.made_up")

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
            self.nodes[victim] = self.node(victim, preload="cluster.made_up")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(made_up.NOTES, str(folder / "notes"))
        made = Killed(folder)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sweep_goes_on_after_each_kill_of_a_node_or_the_scheduler(cluster: Killed, seed: int) -> None:
    chance, store = random.Random(seed), Store()
    victims = chance.sample(VICTIMS, len(VICTIMS))
    data, settings = DataSpec(limit=1000 + seed), Settings(seed=made_up.KEPT)  # nodes keep what was before
    requests = [Request("fashion-mlp", recipe, data=data, settings=settings) for recipe in RECIPES]
    notes = cluster.folder / "notes"
    notes.unlink(missing_ok=True)
    sweep = ledger.create(store, b"", requests, "ann", environment().key)
    attached = Attached(store, cluster.address)

    def done() -> set[str]:
        ended = (item.request for item in ledger.items(store, sweep) if item.state == "done")
        return {str(request.recipe.prune.share) for request in ended if request}

    kept = list[tuple[set[str], int]]()  # what was done before each kill, and the lines that nodes had noted
    try:
        for victim in victims:
            before = len(done())
            until(lambda before=before: len(done()) > before + 5, PATIENCE_SECONDS)
            kept.append((done(), len(lines(notes))))
            time.sleep(chance.uniform(0.1, 0.6))  # the scheduler is told a little later
            assert ledger.find(store, sweep).open
            cluster.kill(victim)
        until(lambda: not ledger.find(store, sweep).open, PATIENCE_SECONDS)
    finally:
        attached.close()
    items = ledger.items(store, sweep)
    assert Counter(item.state for item in items) == {"done": len(requests)}, [one.message for one in items]
    assert {result.key for result in store.results()} == {item.key for item in items}
    begun = [line.split()[1] for line in lines(notes)]
    assert not [share for ended, noted in kept for share in begun[noted:] if share in ended]
    assert max(Counter(begun).values()) <= 1 + len(victims), "only what a kill interrupts is measured again"
