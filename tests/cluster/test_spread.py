"""A sweep handed to executors: each configuration measured once, and kept in the store here."""

import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import OTHER_MACHINE
from faults.storing import make_result
from image_folders import Fill

import optimizer as px
from optimizer.cli import sweeps
from optimizer.cli.main import main
from optimizer.cluster import node
from optimizer.cluster.addresses import connect
from optimizer.cluster.content import Asked
from optimizer.cluster.nodes import Nodes
from optimizer.cluster.slurm import slurm_executor
from optimizer.cluster.spread import work_off
from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.progress import Cancelled, ended_by
from optimizer.records import DataSpec, Environment, Request, decode, encode
from optimizer.search import drain
from optimizer.search.answers import describe
from optimizer.search.sweep import grid
from optimizer.store import ledger
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.system.environment import environment
from optimizer.system.processes import identity, is_gone

REQUESTS = [Request("fashion-mlp", px.Recipe.of(sparsity=share / 10)) for share in range(1, 7)]


class Elsewhere:
    """An executor whose node is another machine: it makes results up, in ``threads``, and counts them."""

    def __init__(self, threads: int = 3) -> None:
        self.pool = ThreadPoolExecutor(threads)
        self.measured: list[Request] = []
        self.failing: Callable[[Request], object] = lambda request: None
        self._max_workers = threads

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> "Future[Any]":
        return self.pool.submit(
            {node.introduce: self.introduce, node.measure: self.measure}[function], *arguments
        )

    def introduce(self) -> tuple[str, str, bytes]:
        return px.__version__, "elsewhere", encode(OTHER_MACHINE)

    def measure(self, version: str, wanted: bytes, asked: bytes) -> node.Outcome:
        assert decode(wanted, Environment) == OTHER_MACHINE
        one = decode(asked, Asked)
        self.failing(one.request)
        self.measured.append(one.request)
        key = request_key(one.request, one.files, OTHER_MACHINE.key)
        return node.DONE, encode(make_result(key, request=one.request, environment=OTHER_MACHINE))


def asked(store: Store, nodes: Nodes) -> int:
    return ledger.create(store, b"", REQUESTS, "ann", nodes.environment.key)


def test_each_is_measured_once_and_kept_under_the_environment_that_gave_it(store: Store) -> None:
    executor = Elsewhere()
    nodes = Nodes(executor)
    sweep = asked(store, nodes)
    done = [item.state for item in work_off(store, nodes, sweep)]
    assert done == ["done"] * len(REQUESTS)
    assert sorted(map(encode, executor.measured)) == sorted(map(encode, REQUESTS))
    for request in REQUESTS:
        assert store.get(request_key(request)) is None
        found = store.get(request_key(request, device=OTHER_MACHINE.key))
        assert found is not None
        assert found.environment == OTHER_MACHINE
    assert [*work_off(store, nodes, asked(store, nodes))] == []
    assert len(executor.measured) == len(REQUESTS)
    assert ledger.seconds_each(store, REQUESTS[0]) is None  # of this machine nothing is known


def test_who_measures_on_this_machine_leaves_it_alone(store: Store) -> None:
    sweep = asked(store, Nodes(Elsewhere()))
    assert ledger.claim(store, "me") is None
    assert ledger.claim(store, "me", sweep) is None
    assert not ledger.any_open(store)
    assert ledger.find(store, sweep).state == "queued"
    here = ledger.create(store, b"", REQUESTS, "bob")
    assert ledger.line(store, here).before_next == 0
    repeated = ledger.repeat(store, sweep, "ann")
    assert ledger.find(store, repeated).device == OTHER_MACHINE.key
    ledger.extend(store, sweep, b"", [*REQUESTS, Request("fashion-vit")])
    assert ledger.items(store, sweep)[-1].key == request_key(Request("fashion-vit"), device=OTHER_MACHINE.key)


def test_nodes_that_join_are_given_work_as_well(store: Store) -> None:
    executor, together = Elsewhere(3), threading.Barrier(3)
    executor._max_workers = 1
    nodes = Nodes(executor)

    def join(request: Request) -> None:
        nodes.slots = 3
        if request in REQUESTS[2:5]:
            together.wait(60)

    executor.failing = join
    assert [item.state for item in work_off(store, nodes, asked(store, nodes))] == ["done"] * len(REQUESTS)


def test_one_that_fails_is_told_and_the_others_go_on(store: Store) -> None:
    executor = Elsewhere(1)

    def fail(request: Request) -> None:
        if request == REQUESTS[2]:
            raise RuntimeError("out of memory")

    executor.failing = fail
    nodes = Nodes(executor)
    sweep = asked(store, nodes)
    assert [item.state for item in work_off(store, nodes, sweep)].count("failed") == 1
    assert ledger.items(store, sweep)[2].message == "RuntimeError: out of memory"
    executor.failing = lambda request: None
    ledger.resume(store, sweep)
    assert [item.number for item in work_off(store, nodes, sweep)] == [2]


def test_where_nobody_takes_work_any_more_what_was_begun_waits_again(store: Store) -> None:
    executor = Elsewhere(1)
    nodes = Nodes(executor)
    sweep = asked(store, nodes)
    working = work_off(store, nodes, sweep)
    next(working)
    executor.pool.shutdown()
    with pytest.raises(UnavailableError, match="takes no more work"):
        list(working)
    found = ledger.find(store, sweep)
    assert found.counts["done"] + found.counts["queued"] == len(REQUESTS)
    assert not any(item.attempts for item in ledger.items(store, sweep) if item.state == "queued")


def test_a_cancelled_sweep_ends_and_goes_on_where_it_was(store: Store) -> None:
    executor, first, go = Elsewhere(2), threading.Event(), threading.Event()

    def wait(request: Request) -> None:
        first.set()
        assert go.wait(60)

    executor.failing = wait
    nodes = Nodes(executor)
    sweep = asked(store, nodes)
    work = threading.Thread(target=lambda: [*work_off(store, nodes, sweep)])
    work.start()
    assert first.wait(60)
    ledger.cancel(store, sweep)
    work.join(60)
    assert not work.is_alive()
    assert set(ledger.find(store, sweep).counts) == {"cancelled"}
    go.set()
    ledger.resume(store, sweep)
    assert [item.state for item in work_off(store, nodes, sweep)] == ["done"] * len(REQUESTS)


def test_who_is_wanted_no_more_leaves_at_once(store: Store) -> None:
    executor, go = Elsewhere(2), threading.Event()
    executor.failing = lambda request: go.wait(60)
    nodes = Nodes(executor)
    sweep = asked(store, nodes)
    with ended_by(lambda: True), pytest.raises(Cancelled):
        [*work_off(store, nodes, sweep)]
    go.set()
    assert ledger.find(store, sweep).state == "queued"


def test_a_node_of_another_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Elsewhere()
    monkeypatch.setattr(executor, "introduce", lambda: ("0.0.1", "old", b""))
    with pytest.raises(UnavailableError, match=r"old has paretoscope 0\.0\.1, this is"):
        Nodes(executor)
    ending, words = node.measure("0.0.1", b"", b"")
    assert ending == node.FAILED
    assert b"install the same" in words


def test_a_node_that_runs_other_numbers_of_threads_is_of_another_kind() -> None:
    six, eight = replace(OTHER_MACHINE, threads=6), replace(OTHER_MACHINE, threads=8)
    assert node.differences(six, eight) == "threads 6 and not 8"
    assert node.differences(six, OTHER_MACHINE) == "threads 6 and not one a core"
    assert not node.differences(six, replace(six))


def test_a_node_whose_variables_choose_other_kernels_is_of_another_kind() -> None:
    capped = replace(OTHER_MACHINE, variables={"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert node.differences(capped, OTHER_MACHINE) == "ONEDNN_MAX_CPU_ISA AVX2 and not none"
    assert not node.may_score(capped, OTHER_MACHINE, px.Recipe())
    assert node.may_score(capped, replace(capped), px.Recipe())


@pytest.mark.slow
def test_what_another_kind_of_machine_took_is_told_and_not_kept(store: Store) -> None:
    """An executor's nodes are not all alike: one of them is this machine."""
    executor = Elsewhere(1)
    given_elsewhere = executor.measure

    def measure(version: str, wanted: bytes, asked: bytes) -> node.Outcome:
        here = decode(asked, Asked).request == REQUESTS[2]
        return (node.measure if here else given_elsewhere)(version, wanted, asked)

    executor.measure = measure  # type: ignore[method-assign]
    nodes = Nodes(executor)
    sweep = asked(store, nodes)
    assert [item.state for item in work_off(store, nodes, sweep)].count("done") == len(REQUESTS) - 1
    refused = ledger.items(store, sweep)[2]
    assert refused.state == "failed"
    assert "nothing was measured: " in refused.message
    assert f"the processor {environment().cpu} and not {OTHER_MACHINE.cpu}" in refused.message
    assert f"openvino {environment().libraries['openvino']} and not 2026.4.0" in refused.message
    assert store.count() == len(REQUESTS) - 1
    assert not store.failures()
    executor.measure = given_elsewhere  # type: ignore[method-assign]
    ledger.resume(store, sweep)
    assert [item.state for item in work_off(store, nodes, sweep)] == ["done"]


def test_px_sweep_takes_any_executor(store: Store) -> None:
    executor = Elsewhere()

    def fail(request: Request) -> None:
        if request.recipe.prune.share > 0.6:
            raise RuntimeError("out of memory")

    executor.failing = fail
    found = px.sweep("fashion-mlp", [0, 0.5, 0.7], [32], executor=executor, progress=False)
    assert [one.request.recipe.prune.share for one in found] == [0, 0.5]
    assert [(one.request.recipe.prune.share, one.message) for one in found.failed] == [
        (0.7, "RuntimeError: out of memory")
    ]
    assert store.count() == 2
    (sweep,) = ledger.sweeps(store)
    assert describe(sweep).endswith(f"timed on {OTHER_MACHINE.cpu}")


def test_px_sweep_waits_for_what_another_sweep_is_measuring(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, (request,) = Elsewhere(), grid(Request("fashion-mlp", px.Recipe.of()), [0.5], [32])
    other = ledger.create(store, b"", [request], "bob", OTHER_MACHINE.key)
    item = ledger.claim(store, f"{identity()}/other", other, OTHER_MACHINE.key)
    assert item is not None

    def end(seconds: float) -> None:
        store.put(make_result(item.key, request=request, environment=OTHER_MACHINE))
        ledger.finish(store, item, item.key, 1.0)

    monkeypatch.setattr(drain, "time", SimpleNamespace(monotonic=time.monotonic, sleep=end))
    found = px.sweep("fashion-mlp", [0, 0.5], [32], executor=executor, progress=False)
    assert [one.request.recipe.prune.share for one in found] == [0, 0.5]
    assert [one.recipe.prune.share for one in executor.measured] == [0]


def test_px_sweep_tells_that_a_folder_has_changed_and_does_not_wait_for_ever(
    store: Store, fill: Fill, wait: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a shared store it would be left to a server that has the images as they were."""
    monkeypatch.setattr(Store, "shared", True)
    folder = fill("images/boot/1.png", "images/bag/2.png") / "images"
    executor, slept = Elsewhere(1), list[float]()

    def change(request: Request) -> None:
        (folder / "bag" / "2.png").unlink()
        wait()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert len(slept) < 5, "waits silently"

    executor.failing = change
    monkeypatch.setattr(drain, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    with pytest.raises(InputError, match="sweep 1 waits for a server that has the images in"):
        px.sweep("fashion-mlp", [0, 0.5], [32], data=str(folder), executor=executor, progress=False)
    assert len(executor.measured) == 1


def test_px_sweep_tells_that_it_was_cancelled(store: Store) -> None:
    executor = Elsewhere(1)
    executor.failing = lambda request: ledger.cancel(store, ledger.sweeps(store)[0].id)
    with pytest.raises(WorkError, match="sweep 1 was cancelled: ask again"):
        px.sweep("fashion-mlp", [0, 0.5], [32], executor=executor, progress=False)


@pytest.mark.slow
def test_two_sweeps_of_a_process_leave_each_others_work_alone(store: Store) -> None:
    executor, begun, go = Elsewhere(1), threading.Event(), threading.Event()

    def wait(request: Request) -> None:
        begun.set()
        assert go.wait(60)

    executor.failing = wait
    sweep = asked(store, Nodes(executor))
    work = threading.Thread(target=lambda: [*work_off(store, Nodes(executor), sweep)])
    work.start()
    try:
        assert begun.wait(60)
        found = px.sweep("fashion-mlp", [0, 0.5], [8], executor=Elsewhere(1), progress=False)
        assert len(found) == 2
        assert next(item.state for item in ledger.items(store, sweep)) == "running"
    finally:
        go.set()
        work.join(60)
    assert len(executor.measured) == len(REQUESTS)


@pytest.mark.slow
def test_submitit_is_an_executor_like_any(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """On its local executor, a configuration is measured by a job of its own."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    nodes = Nodes(slurm_executor(cluster="local"))
    assert nodes.environment.cpu == environment().cpu
    recipe, data = px.Recipe.of(sparsity=0.5, pruning="magnitude"), DataSpec(limit=50)
    request = Request("fashion-mlp", recipe, "torch", data)
    sweep = ledger.create(store, b"", [request], "ann", nodes.environment.key)
    (item,) = work_off(store, nodes, sweep)
    assert item.state == "done", item.message
    result = store.get(item.key)
    assert result is not None
    assert (result.request, result.accuracy.total) == (request, 50)


def test_the_command_tells_how_to_go_on_where_nobody_takes_work_any_more(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    executor = Elsewhere(1)
    executor.failing = lambda request: executor.pool.shutdown(wait=False)
    monkeypatch.setattr(sweeps, "connect", lambda address, on, report: Nodes(executor))
    there = ["--cluster", "tcp://10.0.0.5:8786", "--on", "rpi 5"]
    assert main(["sweep", "fashion-mlp", "--sparsities", "0,0.5", "--bits", "32", *there]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "takes no more work" in told
    command = "`paretoscope sweep --resume 1 --cluster tcp://10.0.0.5:8786 --on 'rpi 5'`"
    assert told.endswith(f"{command} goes on with it")
    given = Namespace(cluster=None, on="", store="postgresql://ann:secret@db/results")
    with_store = sweeps.how_to_resume(7, given)
    assert with_store == "`paretoscope sweep --resume 7`, with the same --store, goes on with it"


def test_a_sweep_of_another_environment_is_told_to_who_gave_a_cluster(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweeps, "connect", lambda address, on, report: Nodes(Elsewhere()))
    ledger.create(store, b"", REQUESTS, "ann", "a third")
    assert main(["sweep", "--resume", "1", "--cluster", "tcp://10.0.0.5:8786"]) == 2
    told = capsys.readouterr().err
    assert f"another kind of machine than {OTHER_MACHINE.cpu}: say --on which node instead" in told
    assert main(["sweep", "--resume", "1"]) == 2
    assert "another kind of machine: give its --cluster" in capsys.readouterr().err


def test_an_owner_of_several_is_gone_with_its_process() -> None:
    code = "from optimizer.system.processes import identity; print(identity())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert is_gone(f"{printed.strip()}/sweep-3")
    assert not is_gone(f"{identity()}/sweep-3")


def test_where_there_is_no_slurm_it_is_told() -> None:
    pytest.importorskip("submitit")
    with pytest.raises(UnavailableError, match="there is no SLURM here"):
        connect("slurm:")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "model.onnx"}, "models of the catalogue"),
        ({"model": "fashion-mlp", "data": [[1.0]]}, "images in folders"),
        ({"model": "fashion-mlp", "on": "rpi5"}, "have no names"),
        ({"model": "nothing"}, "unknown model"),
        ({"model": "fashion-mlp", "engine": "tvm"}, "unknown engine 'tvm'"),
    ],
)
def test_what_an_executor_can_not_measure_is_told_first(given: dict[str, Any], words: str) -> None:
    executor = Elsewhere()
    with pytest.raises(InputError, match=words):
        px.sweep(**given, executor=executor, progress=False)
    assert not executor.measured
