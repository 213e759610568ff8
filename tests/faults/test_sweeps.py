"""Whoever works on a sweep is killed at a random moment: nothing is lost, and nothing is measured twice."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from tasks import lines, until

from optimizer.errors import UnavailableError
from optimizer.recipe import Recipe
from optimizer.records import Request
from optimizer.search.drain import drain
from optimizer.store import ledger
from optimizer.store.items import Item
from optimizer.store.keys import request_key
from optimizer.store.results import Store
from optimizer.store.sqlite import MIN_FREE_BYTES
from optimizer.system.processes import kill_group

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")

REQUESTS = [Request("fashion-mlp", Recipe.of(sparsity=number / 100)) for number in range(1, 31)]
ALONE = """
from storing import keep_here
from optimizer.search.drain import drain
from optimizer.store.results import Store
print("begun", flush=True)
store = Store()
for _ in drain(store, lambda item: keep_here(item.request)):
    pass
"""
TO_ITS_END = """
from storing import keep_here
from optimizer.search.drain import drain, until_over
from optimizer.store.results import Store
print("begun", flush=True)
store = Store()
for _ in until_over(store, 1, lambda: drain(store, lambda item: keep_here(item.request))):
    pass
"""
"""Also what others leave behind when there is nothing else to do."""
SERVER = """
import time
from optimizer.search import drain
from optimizer.search.drain import Background, by_pool
from optimizer.store.results import Store
from optimizer.system.process_pool import Pool
drain.BEAT_SECONDS = 0.2  # what is made up takes no longer
pool = Pool("tasks:run")
work = Background(Store(), by_pool(pool, 10))
print("begun", flush=True)
time.sleep(600)
"""


@pytest.fixture
def store(home: Path) -> Store:
    return Store()


@contextmanager
def running(code: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
    finally:
        kill_group(process.pid)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def kept(home: Path) -> Counter[str]:
    """How often each result was put."""
    return Counter(line.split()[1] for line in lines(home / "noted"))


def check(store: Store, home: Path, sweep: int) -> None:
    """Every result is there, of every item, and none was put twice."""
    items = ledger.items(store, sweep)
    assert {item.state for item in items} == {"done"}, [item for item in items if item.state != "done"]
    assert {result.key for result in store.results()} == {item.key for item in items}
    assert {item.key for item in items} == {request_key(request) for request in REQUESTS}
    assert max(kept(home).values()) == 1
    assert store.count() == len(REQUESTS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_sweep_goes_on_after_each_kill_of_who_works_on_it(store: Store, home: Path, seed: int) -> None:
    chance, sweep = random.Random(seed), ledger.create(store, b"", REQUESTS, "ann")
    for _ in range(3):
        before = len(kept(home))
        with running(ALONE):
            until(lambda before=before: len(kept(home)) > before or not ledger.any_open(store))
            time.sleep(chance.uniform(0, 0.1))
    for _ in drain(store, keep, sweep):
        pass
    check(store, home, sweep)


def keep(item: Item) -> str:
    from storing import keep_here

    assert item.request is not None
    return keep_here(item.request)


@pytest.mark.slow
def test_two_who_work_on_one_sweep_share_it_though_one_is_killed(store: Store, home: Path) -> None:
    chance, sweep = random.Random(7), ledger.create(store, b"", REQUESTS, "ann")
    assert sweep == 1
    with running(TO_ITS_END):
        for _ in range(2):
            with running(ALONE):
                time.sleep(chance.uniform(0, 0.2))
        until(lambda: not ledger.any_open(store))
    check(store, home, sweep)


@pytest.mark.slow
def test_a_killed_worker_or_server_costs_no_more_than_what_ran(store: Store, home: Path) -> None:
    chance, sweep = random.Random(3), ledger.create(store, b"", REQUESTS, "ann")

    def more() -> None:
        before = len(kept(home))
        until(lambda: len(kept(home)) > before or not ledger.any_open(store))
        time.sleep(chance.uniform(0, 0.1))

    for is_last in (False, True):
        with running(SERVER) as server:
            more()
            workers = [one for one in psutil.Process(server.pid).children() if "-P" in one.cmdline()]
            assert workers
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            more()
            if is_last:
                until(lambda: not ledger.any_open(store))
    check(store, home, sweep)


@pytest.mark.slow
def test_what_kills_whoever_measures_it_is_given_up_and_the_others_are_measured(
    store: Store, home: Path
) -> None:
    (home / "deadly").write_text(request_key(REQUESTS[1]))
    sweep = ledger.create(store, b"", REQUESTS[:3], "ann")
    for _ in range(ledger.MAX_ATTEMPTS + 1):
        with running(ALONE) as process:
            process.wait(60)
    assert [item.state for item in ledger.items(store, sweep)] == ["done", "failed", "done"]
    assert "gone 3 times in a row" in ledger.items(store, sweep)[1].message
    (home / "deadly").unlink()
    ledger.resume(store, sweep)
    [*drain(store, keep, sweep)]
    assert {item.state for item in ledger.items(store, sweep)} == {"done"}


def test_a_full_disk_pauses_a_sweep_and_loses_nothing(store: Store, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system, where that is allowed at all")
    try:
        store = Store(folder / "results.sqlite")
        sweep = ledger.create(store, b"", REQUESTS[:6], "ann")
        filling = folder / "of another program"
        measured: list[str] = []

        def measure(item: Item) -> str:
            from storing import make_result

            measured.append(item.key)
            if len(measured) == 3:
                with filling.open("ab", buffering=0) as file:
                    while os.statvfs(folder).f_bavail:
                        file.write(bytes(4096))
            store.put(make_result(measured[-1], notes=("x" * 100_000,)))
            return measured[-1]

        for _ in range(2):
            with pytest.raises(UnavailableError, match="no room is left on its disk"):
                [*drain(store, measure, sweep)]
            assert len(measured) == 3, "nothing is measured that could not be kept"
        states = Counter(item.state for item in ledger.items(store, sweep))
        assert states["done"] == 2
        filling.unlink()
        assert os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize > MIN_FREE_BYTES
        [*drain(store, measure, sweep)]
        assert {item.state for item in ledger.items(store, sweep)} == {"done"}
        assert store.count() == 6
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
