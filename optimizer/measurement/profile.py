"""Profile a compressed network and its baseline with the engine's own profiler, in turns.

What comes of it, and all that is derived from it, is in :mod:`optimizer.analysis.coverage`, which needs no
torch.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from optimizer.analysis.coverage import Coverage, coverage_key
from optimizer.engine import Runner
from optimizer.errors import UnavailableError, WorkError
from optimizer.measurement.runners import pair
from optimizer.measurement.workspace import Workspace
from optimizer.progress import Report, quiet
from optimizer.records import KernelTime, Request
from optimizer.system.environment import environment, resolve_threads, timestamp
from optimizer.system.machine_lock import exclusive

PASSES, CALLS = 5, 30
"""Samples of each network, and calls that each is a figure of."""


def profile(workspace: Workspace, request: Request, report: Report = quiet) -> Coverage:
    """Each operation's precision, kernel and time, in the recipe's network and in the uncompressed one.

    Raises InputError, UnavailableError where the engine has no profiler, WorkError.
    """
    made = pair(workspace, request, report)
    batch = request.settings.batch
    images = np.ascontiguousarray(np.resize(made.images, (batch, *made.images.shape[1:])))
    networks = {"recipe": made.runner, "baseline": made.baseline}
    samples: dict[str, list[tuple[KernelTime, ...]]] = {name: [] for name in networks}
    random = np.random.default_rng(request.settings.seed)
    with exclusive(report):
        for done in range(PASSES):
            report(done / PASSES, "profiling")
            for name in random.permutation(list(networks)):
                samples[name].append(_profiled(networks[name], images, request.engine))
    return Coverage(
        key=coverage_key(request),
        request=request,
        environment=environment(),
        created=timestamp(),
        threads=resolve_threads(request.settings.threads),
        kernels=merged(samples["recipe"]),
        baseline=merged(samples["baseline"]),
        removed_share=made.removed_share,
        simulated=made.runner.execution.simulated,
    )


def _profiled(runner: Runner, images: np.ndarray, engine: str) -> tuple[KernelTime, ...]:
    if runner.profile is None:
        raise UnavailableError(
            f"engine {engine} has no profiler here: use openvino, onnxruntime, torch or compile"
        )
    with runner.session():
        return runner.profile(images, CALLS)


def merged(samples: Sequence[tuple[KernelTime, ...]]) -> tuple[KernelTime, ...]:
    """The same operations of several profiles, with all their times; those that took none are left out.

    Raises WorkError when the operations differ.
    """
    # By place: OpenVINO numbers what it adds anew each time that it compiles.
    ran = {
        tuple((row.role, row.precision, row.role == "layer" and row.name) for row in one) for one in samples
    }
    if len(ran) > 1:
        raise WorkError("the engine ran other operations in one profile than in the next: try again")
    times = [tuple(time for row in place for time in row.times_ns) for place in zip(*samples, strict=True)]
    rows = [replace(row, times_ns=taken) for row, taken in zip(samples[0], times, strict=True)]
    return tuple(row for row in rows if row.role == "between" or any(row.times_ns))
