"""The operator's cluster beside a dashboard: who is there, and what the ledger has for its nodes handed out.

Visitors choose among its devices; they give no address, since whoever listens at one could run code here.
"""

import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress

from optimizer.cluster.addresses import open_cluster
from optimizer.cluster.nodes import Cluster, Device
from optimizer.cluster.spread import work_off
from optimizer.errors import words_of
from optimizer.progress import Cancelled, ended_by
from optimizer.records import Environment
from optimizer.store import ledger
from optimizer.store.results import Store

CLUSTER_VARIABLE = "PARETOSCOPE_CLUSTER"
"""Environment variable: the address of the cluster that a dashboard's visitors may time sweeps on."""
LOOK_SECONDS = 2.0
"""Between two looks at who is there and what waits for them."""
AGAIN_SECONDS = 10.0
"""Until nodes that could not go on are given work again."""


class Attached:
    """A thread that looks after the cluster at an address until it is closed, and one for each device that
    has work.

    ``devices`` are there now, by the keys of their environments; ``unused`` says why other nodes can't be
    used, ``problem`` why nobody knows who is there, where that is so.
    """

    def __init__(self, store: Store, address: str) -> None:
        self.devices: Mapping[str, Device] = {}
        self.unused: tuple[str, ...] = ()
        self.problem = f"asking {address} which nodes it has"
        self._store, self._address = store, address
        self._failed: dict[str, tuple[float, str]] = {}
        self._bell, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="cluster", daemon=True)
        self._thread.start()

    def ring(self) -> None:
        """There is work."""
        self._bell.set()

    def close(self) -> None:
        """Hand out nothing any more; what nodes have waits again."""
        self._closed.set()
        self._bell.set()
        self._thread.join()

    def waits_for(self, device: str) -> str:
        """Why nothing that is timed on a device goes on at the moment; empty where it does."""
        if self.problem:
            return self.problem
        if device not in self.devices:
            return "no node of the kind that this is timed on is there"
        return self._failed.get(device, (0.0, ""))[1]

    def _work(self) -> None:
        with suppress(Cancelled), ended_by(self._closed.is_set):
            while not self._closed.is_set():
                try:
                    with closing(open_cluster(self._address)) as cluster:
                        self._look_after(cluster)
                except Exception as error:  # a page that waits is told, whatever it was
                    self.devices, self.unused, self.problem = {}, (), words_of(error)
                self._wait()

    def _wait(self) -> None:
        self._bell.wait(LOOK_SECONDS)
        self._bell.clear()

    def _look_after(self, cluster: Cluster) -> None:
        """Raises what :meth:`Cluster.devices` does; what was handed out waits again then. What else goes
        wrong concerns one device."""
        working, over = dict[str, threading.Thread](), threading.Event()
        try:
            while not self._closed.is_set():
                self.devices = {one.environment.key: one for one in cluster.devices()}
                self.unused, self.problem = cluster.unused, ""
                for key, device in self.devices.items():
                    busy = key in working and working[key].is_alive()
                    later = self._failed.get(key, (0.0, ""))[0]
                    if not busy and time.monotonic() > later and self._has_work(key):
                        given = (cluster, device.environment, over)
                        working[key] = threading.Thread(target=self._hand_out, args=given, daemon=True)
                        working[key].start()
                self._wait()
        finally:
            over.set()
            for thread in working.values():
                thread.join()

    def _has_work(self, device: str) -> bool:
        try:
            return ledger.any_open(self._store, device)
        except Exception as error:
            self._put_off(device, error)
            return False

    def _hand_out(self, cluster: Cluster, environment: Environment, over: threading.Event) -> None:
        device = environment.key
        try:
            with suppress(Cancelled), ended_by(over.is_set):
                for _ in work_off(self._store, cluster.nodes(environment)):
                    self._failed.pop(device, None)
            self._failed.pop(device, None)
        except Exception as error:
            self._put_off(device, error)

    def _put_off(self, device: str, error: Exception) -> None:
        self._failed[device] = time.monotonic() + AGAIN_SECONDS, words_of(error)
