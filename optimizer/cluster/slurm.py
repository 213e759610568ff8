"""Jobs of a SLURM cluster, by submitit (extra ``slurm``): its executor is one like any, once it is set up."""

from optimizer.cluster.nodes import Executor
from optimizer.errors import UnavailableError
from optimizer.system.paths import home

INSTALL = "pip install 'paretoscope[slurm]'"
MINUTES = 60
"""That a job may take."""


def slurm_executor(partition: str = "", cluster: str = "slurm") -> Executor:
    """Each configuration is a job with a node to itself, so that nothing runs beside what it times; jobs wait
    as long as the cluster lets them. What they print is in the data folder, which nodes share. Another
    ``cluster`` is one of submitit's: ``local``, for processes of this machine.

    Raises UnavailableError without submitit, or where there is no SLURM.
    """
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise UnavailableError(f"a SLURM cluster needs submitit: {INSTALL}") from error
    try:
        executor = AutoExecutor(folder=home() / "slurm", cluster=cluster)
    except RuntimeError as error:
        raise UnavailableError(f"there is no SLURM here ({error})") from error
    alone = {"slurm_exclusive": True, "slurm_use_srun": False}
    where = {"slurm_partition": partition} if partition else {}
    executor.update_parameters(name="paretoscope", timeout_min=MINUTES, **alone, **where)
    return executor
