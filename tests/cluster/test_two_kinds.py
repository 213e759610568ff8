"""A real Dask cluster of a device with one core and a server with more: the server works out the accuracy."""

import os
import shutil
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from cluster import made_up
from cluster.dask_cluster import DaskCluster
from cluster.test_dask_nodes import begun
from faults.tasks import until

from optimizer.cluster.addresses import connect
from optimizer.cluster.attached import Attached
from optimizer.cluster.spread import work_off
from optimizer.on_demand import load_or_measure
from optimizer.recipe import PruneSpec, QuantizeSpec, Recipe
from optimizer.records import DataSpec, Request, Settings
from optimizer.store import ledger
from optimizer.store.results import Store
from optimizer.system.environment import usable_cpus

if find_spec("distributed") is None:  # it takes a second to import, also where it is only collected
    pytest.skip("needs the package distributed", allow_module_level=True)
pytestmark = pytest.mark.skipif(
    len(usable_cpus()) < 2 or not shutil.which("taskset"), reason="needs two CPUs, and taskset"
)

RECIPES = [
    Recipe(),
    Recipe(PruneSpec(sparsity=0.3), QuantizeSpec(weight_bits=4)),
    Recipe(quantize=QuantizeSpec(weight_bits=8, activation_bits=8)),
]


def requests(seed: int) -> list[Request]:
    """A thread each, so that this process works them out as the device does."""
    data, settings = DataSpec(limit=200), Settings(seed=seed, threads=1)
    return [Request("fashion-mlp", recipe, data=data, settings=settings) for recipe in RECIPES]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(made_up.NOTES, str(folder / "notes"))
        made = DaskCluster(folder, tls=False)
        try:
            first, *_ = sorted(os.sched_getaffinity(0))
            made.node("device", cpus=str(first), preload="cluster.made_up")
            made.node("server", preload="cluster.made_up")
            attached = Attached(Store(folder / "waiting.sqlite"), made.address)
            until(lambda: len(attached.devices) == 2)
            attached.close()
            yield made
        finally:
            made.close()


@pytest.fixture
def notes(cluster: DaskCluster) -> Path:
    file = cluster.folder / "notes"
    file.unlink(missing_ok=True)
    return file


def who(notes: Path) -> set[tuple[str, bool]]:
    """The nodes that began something, and whether they only scored."""
    return {(Path(home).parent.name, what == "scored") for home, _, what in begun(notes)}


@pytest.mark.slow
def test_the_server_works_out_the_accuracy_that_the_device_alone_gives(
    cluster: DaskCluster, notes: Path
) -> None:
    asked, store = requests(made_up.REAL), Store()
    with connect(cluster.address, "device") as nodes:
        sweep = ledger.create(store, b"", asked, "ann", nodes.environment.key)
        assert [item.message for item in work_off(store, nodes, sweep)] == [""] * len(asked)
        device = nodes.environment
    assert who(notes) == {("server", True), ("device", False)}
    assert len(begun(notes)) == 2 * len(asked)
    for result in store.several([item.key for item in ledger.items(store, sweep)]):
        alone = load_or_measure(result.request, store)
        assert result.environment == device
        assert result.scored_on is not None
        assert result.scored_on.cores > device.cores == 1
        assert alone.scored_on is None
        assert result.accuracy.correct == alone.accuracy.correct
        assert result.accuracy.agreement == alone.accuracy.agreement
        assert result.inspection == alone.inspection
        assert result.execution == alone.execution


@pytest.mark.slow
def test_a_dashboard_has_accuracy_worked_out_there_too_and_the_other_way_round_not(
    cluster: DaskCluster, notes: Path
) -> None:
    """The device is slower than the server: that would wait for it."""
    store = Store()
    attached = Attached(store, cluster.address)
    try:
        until(lambda: len(attached.devices) == 2)
        named = {one.names[0]: one for one in attached.devices.values()}
        assert {name: one.slots for name, one in named.items()} == {"device": 3, "server": 2}
        for name, expected in (
            ("server", {("server", False)}),
            ("device", {("server", True), ("device", False)}),
        ):
            notes.unlink(missing_ok=True)
            sweep = ledger.create(store, b"", requests(0), "ann", named[name].environment.key)
            attached.ring()
            until(lambda sweep=sweep: ledger.find(store, sweep).state == "done")
            assert who(notes) == expected
    finally:
        attached.close()


@pytest.mark.slow
def test_what_a_killed_server_was_to_score_is_measured_by_the_device_once_each(
    cluster: DaskCluster, notes: Path
) -> None:
    """The last test here: it takes the server down."""
    asked, store = requests(made_up.HELD), Store()
    with connect(cluster.address, "device") as nodes:
        sweep = ledger.create(store, b"", asked, "ann", nodes.environment.key)
        working = work_off(store, nodes, sweep)
        server = cluster.processes[-1]

        def kill() -> None:
            until(lambda: who(notes) == {("server", True)})
            server.kill()

        killing = threading.Thread(target=kill)
        killing.start()
        assert {item.state for item in working} == {"done"}
        killing.join()
    measured = [share for _, share, what in begun(notes) if what != "scored"]
    assert len(measured) == len(asked)
    found = store.several([item.key for item in ledger.items(store, sweep)])
    assert [result.scored_on for result in found] == [None] * len(asked)
