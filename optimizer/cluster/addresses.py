"""The nodes at an address, whichever cluster it is of."""

from optimizer.cluster.nodes import Cluster, Executor, Nodes
from optimizer.errors import InputError
from optimizer.progress import Report, quiet

PREFIX = "slurm:"
"""Of the address of a SLURM cluster, which a partition follows."""


def connect(executor: Executor | str, on: str = "", report: Report = quiet) -> Nodes:
    """The nodes of an executor, or of the cluster at an address: those that are like the one called ``on``.

    Raises InputError for what is no address and a name that no node has, UnavailableError where nobody
    answers.
    """
    if isinstance(executor, str) and executor.startswith(PREFIX):
        executor = _slurm(executor)
    if isinstance(executor, str):
        from optimizer.cluster.dask_nodes import connect_to

        return connect_to(executor, on, report)
    if on:
        raise InputError("an executor's nodes have no names: leave `on` out")
    return Nodes(executor)


def open_cluster(address: str) -> Cluster:
    """All the nodes of the cluster at an address. Raises what :func:`connect` does."""
    if address.startswith(PREFIX):
        return Cluster(_slurm(address), address)
    from optimizer.cluster.dask_nodes import DaskCluster

    return DaskCluster(address)


def check_address(address: str) -> None:
    """Whether a cluster answers at an address. Raises what :func:`connect` does."""
    if address.startswith(PREFIX):
        _slurm(address)
        return
    from optimizer.cluster.dask_client import check_scheduler

    check_scheduler(address)


def _slurm(address: str) -> Executor:
    from optimizer.cluster.slurm import slurm_executor

    return slurm_executor(address.removeprefix(PREFIX))
