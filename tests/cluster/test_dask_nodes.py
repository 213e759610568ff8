"""A real Dask cluster of two nodes, TLS on: where sweeps go, and what becomes of them when something dies."""

import hashlib
import http.server
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cluster import made_up
from cluster.dask_cluster import OLD, OPENSSL, ROOT, DaskCluster
from cluster.test_spread import REQUESTS
from faults.tasks import until
from image_folders import Fill

from optimizer.cli.main import main, parser
from optimizer.cluster import content, dask_client, dask_nodes
from optimizer.cluster.addresses import connect
from optimizer.cluster.attached import Attached
from optimizer.cluster.nodes import Nodes
from optimizer.cluster.spread import work_off
from optimizer.errors import InputError, UnavailableError
from optimizer.model.added import cards
from optimizer.model.added.cards import AddedModel
from optimizer.model.preprocessing import IMAGENET
from optimizer.records import DataSpec, Request, Settings
from optimizer.store import ledger
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.system.environment import environment

dask = pytest.importorskip("dask")
if find_spec("distributed") is None:  # it takes a second to import, also where it is only collected
    pytest.skip("needs the package distributed", allow_module_level=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """Two nodes that can be used, one without the resource and one of another version."""
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(made_up.NOTES, str(folder / "notes"))
        made = DaskCluster(folder)
        try:
            for name, value in made.settings.items():
                patch.setenv(name, value)
            dask.config.refresh()
            made.node("bare", resource=0, preload="os")
            made.node("old", before=OLD)
            for name in ("one", "two"):
                made.node(name, preload="cluster.made_up")
            _until_there(made, {"bare", "old", "one", "two"})
            yield made
        finally:
            made.close()
    dask.config.refresh()


def _until_there(cluster: DaskCluster, names: set[str]) -> None:
    from distributed import Client
    from distributed.security import Security

    with Client(cluster.address, security=Security(), set_as_default=False) as client:
        until(lambda: names <= {one["name"] for one in client.scheduler_info()["workers"].values()})


@pytest.fixture(autouse=True)
def notes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What nodes began in this test."""
    if "cluster" not in request.fixturenames:
        return Path()
    file: Path = request.getfixturevalue("cluster").folder / "notes"
    for one in (file, file.with_name("died")):
        one.unlink(missing_ok=True)
    return file


@pytest.fixture
def nodes(cluster: DaskCluster) -> Iterator[Nodes]:
    with connect(cluster.address) as found:
        yield found


def asked(nodes: Nodes, requests: list[Request]) -> int:
    return ledger.create(Store(), b"", requests, "ann", nodes.environment.key)


def begun(notes: Path) -> list[list[str]]:
    return [line.split() for line in notes.read_text().splitlines()] if notes.exists() else []


@pytest.mark.slow
def test_both_nodes_measure_each_configuration_once_and_it_is_kept_here(nodes: Nodes, notes: Path) -> None:
    sweep = asked(nodes, REQUESTS)
    assert {item.state for item in work_off(Store(), nodes, sweep)} == {"done"}
    assert Store().known(item.key for item in ledger.items(Store(), sweep))
    assert sorted(share for _, share, _ in begun(notes)) == [f"0.{share}" for share in range(1, 7)]
    assert len({home for home, _, _ in begun(notes)}) == 2
    assert [*work_off(Store(), nodes, asked(nodes, REQUESTS))] == []


@pytest.mark.slow
def test_nodes_that_can_not_be_used_are_told_with_the_reason(cluster: DaskCluster) -> None:
    told: list[str] = []
    with connect(cluster.address, report=lambda share, words: told.append(words)):
        pass
    assert any("bare offers no paretoscope: start it with" in words for words in told)
    assert any("old has paretoscope 0.0.1" in words for words in told)
    assert len(told) == 2


def test_a_node_is_chosen_by_its_name(cluster: DaskCluster) -> None:
    with connect(cluster.address, "two") as found:
        assert found.environment.key == environment().key
    for name in ("bare", "old", "three"):
        with pytest.raises(InputError, match=f"unknown node '{name}': use one of (one, two|two, one)"):
            connect(cluster.address, name)


@pytest.mark.slow
def test_a_node_is_ready_and_not_profiled_before_it_is_there(cluster: DaskCluster) -> None:
    from distributed import Client
    from distributed.security import Security

    def state(dask_worker: Any) -> tuple[bool, bool]:
        import sys

        return "torch" in sys.modules, "profile" in dask_worker.periodic_callbacks

    with Client(cluster.address, security=Security(), set_as_default=False) as client:
        names = {
            address: one["name"] for address, one in client.scheduler_info(n_workers=-1)["workers"].items()
        }
        found = {names[address]: one for address, one in client.run(state).items()}
    assert found["old"] == (True, False), "the node's preload"
    assert found["bare"] == (False, True), "without it, as Dask comes"


@pytest.mark.slow
def test_images_reach_a_node_once_and_again_where_half_are_missing(
    cluster: DaskCluster, notes: Path, fill: Fill
) -> None:
    names = [f"images/{kind}/{number}.png" for kind in ("boot", "bag") for number in range(4)]
    data = DataSpec(str(fill(*names, "images/imagenet_class_index.json") / "images"))
    requests = [replace(request, data=data) for request in REQUESTS]
    received = [cluster.folder / name / "home" / content.FOLDER for name in ("one", "two")]

    def kept() -> list[list[str]]:
        return [sorted(str(file.stat().st_ino) for file in place.rglob("*.*")) for place in received]

    with connect(cluster.address) as nodes:
        assert {item.state for item in work_off(Store(), nodes, asked(nodes, requests[:2]))} == {"done"}
    first = kept()
    assert [len(files) for files in first] == [9, 9]
    with connect(cluster.address) as nodes:
        assert {item.state for item in work_off(Store(), nodes, asked(nodes, requests[2:4]))} == {"done"}
        assert kept() == first
        for place in received:
            shutil.rmtree(next(place.rglob("boot")))
        assert {item.state for item in work_off(Store(), nodes, asked(nodes, requests[4:]))} == {"done"}
    assert [len(files) for files in kept()] == [9, 9]
    assert {images for _, _, images in begun(notes)} == {"8"}


def test_a_model_of_ones_own_reaches_the_nodes(cluster: DaskCluster, nodes: Nodes) -> None:
    content_of = b"weights"
    name = hashlib.sha256(content_of).hexdigest()[:20] + ".safetensors"
    cards.content_path(name).write_bytes(content_of)
    cards.save_card(AddedModel("mine", "checkpoint", name, IMAGENET))
    (item,) = work_off(Store(), nodes, asked(nodes, [Request("mine")]))
    assert item.state == "done"
    for node in ("one", "two"):
        assert (cluster.folder / node / "home" / cards.FOLDER / name).read_bytes() == content_of
    cards.save_card(AddedModel("mine", "checkpoint", name, IMAGENET, class_names=("another",)))
    with pytest.raises(UnavailableError, match="another model has the name mine there"):
        list(work_off(Store(), nodes, asked(nodes, [Request("mine")])))


@pytest.mark.slow
def test_a_configuration_whose_node_dies_is_measured_by_another(
    cluster: DaskCluster, nodes: Nodes, notes: Path
) -> None:
    requests = [replace(one, settings=Settings(seed=made_up.DIES)) for one in REQUESTS[:3]]
    sweep = asked(nodes, requests)
    assert {item.state for item in work_off(Store(), nodes, sweep)} == {"done"}
    assert (notes.parent / "died").exists()
    gone = next(one for one in cluster.processes if one.poll() is not None)
    name = "one" if cluster.processes.index(gone) == 3 else "two"
    cluster.node(name, preload="cluster.made_up")
    _until_there(cluster, {"one", "two"})
    again = asked(nodes, REQUESTS[3:])
    assert {item.state for item in work_off(Store(), nodes, again)} == {"done"}


@pytest.mark.slow
def test_a_cancelled_sweep_ends_at_the_nodes_too_and_goes_on(nodes: Nodes, notes: Path) -> None:
    requests = [replace(one, settings=Settings(seed=made_up.WAITS)) for one in REQUESTS[:2]]
    sweep = asked(nodes, requests)
    work = threading.Thread(target=lambda: [*work_off(Store(), nodes, sweep)])
    work.start()
    until(lambda: len(begun(notes)) == 2)
    ledger.cancel(Store(), sweep)
    work.join(60)
    assert not work.is_alive()
    assert set(ledger.find(Store(), sweep).counts) == {"cancelled"}
    after = asked(nodes, REQUESTS)  # would wait for ever beside work that did not end
    assert {item.state for item in work_off(Store(), nodes, after)} == {"done"}
    ledger.resume(Store(), sweep)
    assert ledger.find(Store(), sweep).state == "queued"


@pytest.mark.slow
def test_what_a_killed_process_had_handed_out_is_handed_out_again(
    cluster: DaskCluster, nodes: Nodes, notes: Path
) -> None:
    sweep = asked(nodes, [replace(one, settings=Settings(seed=made_up.SLOW)) for one in REQUESTS])
    resume = f"main(['sweep', '--resume', '{sweep}', '--cluster', '{cluster.address}'])"
    command = [sys.executable, "-c", f"from optimizer.cli.main import main; {resume}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as home:
        until(lambda: ledger.find(Store(), sweep).counts.get("done"))
        home.kill()
    left, kept = ledger.find(Store(), sweep), Store().count()  # a result may be kept and not yet told of
    assert left.counts["running"]
    ended = [item.number for item in work_off(Store(), nodes, sweep)]
    assert len(ended) == len(REQUESTS) - kept
    assert ledger.find(Store(), sweep).counts == {"done": len(REQUESTS)}
    assert len(begun(notes)) <= len(REQUESTS) + left.counts["running"]


@pytest.mark.slow
def test_the_command_sweeps_on_a_cluster(cluster: DaskCluster, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["--cluster", cluster.address]
    assert main(["sweep", "fashion-mlp", "--sparsities", "0,0.5", "--bits", "32", "--json", *there]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert "paretoscope: not used: old has paretoscope 0.0.1" in printed.err
    assert main(["sweep", "--resume", "1", *there, "--on", "two"]) == 0
    assert main(["sweep", "--resume", "1"]) == 2
    assert "timed on another kind of machine: give its --cluster" in capsys.readouterr().err
    assert main(["sweep", "fashion-mlp", "--on", "two"]) == 2
    assert "give its --cluster ADDRESS too" in capsys.readouterr().err
    assert main(["sweep", "fashion-rennet", *there]) == 2
    assert "fashion-resnet" in capsys.readouterr().err


@pytest.fixture
def nobody() -> Iterator[str]:
    """What takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def website() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who connects tries again and again till then: seconds, of which a tenth will do here."""
    monkeypatch.setattr(dask_client, "CONNECT_SECONDS", dask_client.CONNECT_SECONDS / 10)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("address", ["nobody", "website"])
def test_what_is_no_scheduler_is_told_soon(address: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(UnavailableError, match="no Dask scheduler answers at tcp://127"):
        connect(request.getfixturevalue(address))


@pytest.mark.usefixtures("impatient")
def test_where_nothing_listens_is_told_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UnavailableError, match="no Dask scheduler answers"):
        connect(f"tcp://127.0.0.1:{port}")


def test_the_document_says_what_runs_here() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    commands = [line for line in text.splitlines() if line.startswith("paretoscope ")]
    assert all(parser().parse_args(shlex.split(line)[1:]).run for line in commands)
    assert len(commands) == 4
    assert dask_nodes.START.partition("ADDRESS ")[2] in text
    assert OPENSSL in text


@pytest.mark.parametrize("address", ["", "nonsense", "foo://1:2", "tcp://127.0.0.1:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="is not the address of a scheduler"):
        connect(address)


def test_the_address_of_a_node_is_refused(cluster: DaskCluster, nodes: Nodes) -> None:
    address = next(iter(nodes._usable()))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="is the address of a Worker, not of a scheduler"):
        connect(address)


def test_without_its_certificates_a_cluster_answers_nobody(
    cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnavailableError, match="its address begins with tls://"):
        connect(cluster.address.replace("tls", "tcp"))
    with (
        dask.config.set({"distributed.comm.require-encryption": True}),
        pytest.raises(InputError, match="its address begins with tls://"),
    ):
        connect(cluster.address.replace("tls", "tcp"))
    with (
        dask.config.set({"distributed.comm.tls.ca-file": None}),
        pytest.raises(InputError, match="needs cert"),
    ):
        connect(cluster.address)


def test_without_dask_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UnavailableError, match=r"pip install 'paretoscope\[cluster\]'"):
        connect("tcp://127.0.0.1:8786")


def test_what_a_node_gives_has_the_key_that_it_has_here(nodes: Nodes) -> None:
    sweep = asked(nodes, REQUESTS[:1])
    (item,) = work_off(Store(), nodes, sweep)
    assert item.key == request_key(REQUESTS[0], device=nodes.environment.key)


@pytest.mark.slow
def test_a_dashboard_hands_out_what_waits_for_the_nodes(cluster: DaskCluster, notes: Path) -> None:
    made = Attached(Store(), cluster.address)
    try:
        key = environment().key
        until(lambda: made.devices)
        assert [(one.names, one.slots) for one in made.devices.values()] == [(("one", "two"), 4)]
        assert {words.split()[0] for words in made.unused} == {"bare", "old"}
        lasting = [replace(one, settings=Settings(seed=made_up.KEPT)) for one in REQUESTS]
        sweep = ledger.create(Store(), b"", lasting, "ann", key)
        made.ring()
        until(lambda: not ledger.find(Store(), sweep).open)
        assert ledger.find(Store(), sweep).state == "done"
        assert len({home for home, _, _ in begun(notes)}) == 2
    finally:
        made.close()


def _stopped(
    nodes: Nodes, requests: list[Request], notes: Path, *processes: "subprocess.Popen[bytes]"
) -> str:
    """What is told where these are killed while configurations run, all of which wait again."""
    sweep = asked(nodes, requests)
    with ThreadPoolExecutor(1) as working:
        told = working.submit(lambda: [*work_off(Store(), nodes, sweep)])
        until(lambda: begun(notes))
        for process in processes:
            process.kill()
        error = told.exception(timeout=60)
    assert isinstance(error, UnavailableError)
    assert {item.state for item in ledger.items(Store(), sweep)} == {"queued"}
    return str(error)


@pytest.mark.slow
def test_when_the_last_node_and_when_the_scheduler_is_gone_what_was_begun_waits_again(
    cluster: DaskCluster, notes: Path
) -> None:
    """The last test here: it takes the cluster down."""
    waiting = [replace(one, settings=Settings(seed=made_up.WAITS)) for one in REQUESTS]
    usable = [one for one in cluster.processes[3:] if one.poll() is None]
    with connect(cluster.address) as nodes:
        assert "no node is left with" in _stopped(nodes, waiting, notes, *usable)
    notes.unlink()
    cluster.node("one", preload="cluster.made_up")
    _until_there(cluster, {"one"})
    made = Attached(Store(), cluster.address)
    try:
        until(lambda: made.devices)
        with connect(cluster.address) as nodes:
            assert "the scheduler answers no more" in _stopped(nodes, waiting, notes, cluster.scheduler)
        until(lambda: "scheduler answers" in made.waits_for(environment().key))
    finally:
        made.close()
    with pytest.raises(UnavailableError, match="no Dask scheduler answers"):
        connect(cluster.address)
