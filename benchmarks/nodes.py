"""How much sooner two nodes of a Dask cluster are through a sweep than one, each with a core of its own.

    PYTHONPATH=tests python benchmarks/nodes.py

The sweep is whole: opening the model, calibration statistics, accuracy and time, in nodes that begin with
empty stores. The two ways take turns, so that what else this machine does meets both.
"""

import argparse
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

from cluster.dask_cluster import DaskCluster

from optimizer.cluster.addresses import connect
from optimizer.cluster.dask_nodes import AHEAD
from optimizer.cluster.nodes import Nodes
from optimizer.cluster.spread import work_off
from optimizer.errors import UnavailableError
from optimizer.recipe import Recipe
from optimizer.records import Request
from optimizer.search.sweep import grid
from optimizer.store import ledger
from optimizer.store.results import Store

JOIN_SECONDS = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="fashion-resnet")
    parser.add_argument("--sparsities", type=int, default=24, help="of which the grid has 2 bit widths each")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    shares = [number / (options.sparsities + 1) for number in range(options.sparsities)]
    requests = grid(Request(options.model, Recipe.of(sparsity=0.5)), shares, [32, 8])
    ratios, later = list[float](), list[float]()
    for number in range(options.rounds):
        orders = ([cores, cores[:1]], [cores[:1], cores])
        took = {len(one): seconds(requests, one) for one in orders[number % 2]}
        ratios.append(took[1][0] / took[2][0])
        later.append(took[1][1] / took[2][1])
        print(
            f"round {number + 1}, {len(requests)} configurations: one node {took[1][0]:.0f} s, two "
            f"{took[2][0]:.0f} s, {ratios[-1]:.2f}x; after the first of each node {later[-1]:.2f}x",
            flush=True,
        )
    print(f"two nodes are {median(ratios):.2f}x as fast as one; {median(later):.2f}x once they have begun")


def seconds(requests: list[Request], cores: list[int]) -> tuple[float, float]:
    """What a sweep takes on a node for each core, in all, and a configuration after the first of each."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cluster = DaskCluster(Path(folder), tls=False)
        try:
            for core in cores:
                cluster.node(f"core{core}", cpus=str(core))
            store = Store(Path(folder) / "results.sqlite")
            with _joined(cluster.address, len(cores)) as nodes:
                sweep = ledger.create(store, b"", requests, "benchmark", nodes.environment.key)
                begin, ended = time.monotonic(), list[float]()
                for item in work_off(store, nodes, sweep):
                    assert item.state == "done", item.message
                    ended.append(time.monotonic() - begin)
        finally:
            cluster.close()
    begun = len(cores) - 1
    return ended[-1], (ended[-1] - ended[begun]) / (len(ended) - 1 - begun)


def _joined(address: str, number: int) -> Nodes:
    """The nodes, once so many are there. Ends the benchmark where they don't come."""
    end = time.monotonic() + JOIN_SECONDS
    while time.monotonic() < end:
        with suppress(UnavailableError):
            nodes = connect(address)
            if nodes.slots == AHEAD * number:
                return nodes
            nodes.close()
    raise SystemExit(f"{number} nodes have not joined {address} within {JOIN_SECONDS:g} s")


if __name__ == "__main__":
    main()
