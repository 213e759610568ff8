"""A Dask cluster in processes of its own on this machine, with TLS; each ended by its number."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from faults.tasks import until

from optimizer.cluster.dask_nodes import RESOURCE

ROOT = Path(__file__).parents[2]
DASK = "import sys; from dask.__main__ import main; sys.argv[0] = 'dask'; main()"
OPENSSL = (
    "openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj /CN=paretoscope -keyout key.pem -out cert.pem"
)
"""Makes the certificate, as docs/cluster.md says."""
OLD = "import optimizer; optimizer.__version__ = '0.0.1'; "
"""What makes a node one of another version."""


class DaskCluster:
    """A scheduler and its nodes. Each node has a data folder and locks of its own, as on a machine of its
    own, and runs on ``cpus``, by default on all."""

    def __init__(self, folder: Path, tls: bool = True) -> None:
        self.folder, self.tls = folder, tls
        self.processes: list[subprocess.Popen[bytes]] = []
        if tls:
            subprocess.run(OPENSSL.split(), cwd=folder, check=True, capture_output=True)
        self.address = ":0"
        self.start_scheduler()

    def start_scheduler(self) -> None:
        """At the address that an earlier one had; the nodes of that one have ended with it."""
        about, port = self.folder / "scheduler.json", self.address.rpartition(":")[2]
        about.unlink(missing_ok=True)
        self.scheduler = self.start(["scheduler", "--port", port, "--scheduler-file", str(about)])
        until(about.is_file)
        self.address = str(until(lambda: json.loads(about.read_text() or "{}").get("address")))

    @property
    def settings(self) -> dict[str, str]:
        """Environment variables by which Dask finds the certificates."""
        key, cert = self.folder / "key.pem", self.folder / "cert.pem"
        files = {"CA_FILE": cert}
        for role in ("CLIENT", "SCHEDULER", "WORKER"):
            files |= {f"{role}__KEY": key, f"{role}__CERT": cert}
        return {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(file) for name, file in files.items()}

    def start(
        self, arguments: list[str], variables: Mapping[str, str] = {}, before: str = "", cpus: str = ""
    ) -> "subprocess.Popen[bytes]":
        on = ["taskset", "-c", cpus] if cpus else []
        command = [*on, sys.executable, "-c", before + DASK, *arguments]
        command += ["--host", "127.0.0.1", "--no-dashboard", *(["--protocol", "tls"] if self.tls else [])]
        paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        with (self.folder / f"{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, **paths, **(self.settings if self.tls else {}), **variables},
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=self.folder,
            )
        self.processes.append(process)
        return process

    def node(
        self,
        name: str,
        resource: int = 1,
        before: str = "",
        cpus: str = "",
        preload: str = "optimizer.cluster.node",
    ) -> "subprocess.Popen[bytes]":
        home = self.folder / name
        home.mkdir(exist_ok=True)
        fixed = f"--nthreads 1 --no-nanny --memory-limit 0 --preload {preload}"
        return self.start(
            ["worker", self.address, "--name", name, *fixed.split(), "--resources", f"{RESOURCE}={resource}"],
            {"PARETOSCOPE_HOME": str(home / "home"), "XDG_DATA_HOME": str(home)},
            before,
            cpus,
        )

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
