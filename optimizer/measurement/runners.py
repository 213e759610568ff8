"""A compressed model and its baseline, built for an engine and not yet run: what is scored and timed."""

from dataclasses import dataclass, replace

import numpy as np

from optimizer.compression.apply import CompressedModel, compress
from optimizer.engine import Runner, engine_named
from optimizer.engine.base import Build
from optimizer.measurement.compressed import build_of, compressed_model
from optimizer.measurement.workspace import Workspace, once, uncompressed_alone
from optimizer.methods.engines import engine_info
from optimizer.model.added.cards import version_of
from optimizer.progress import Report, quiet
from optimizer.recipe import Recipe
from optimizer.records import Execution, Request, digest
from optimizer.system.environment import check_precision, environment, resolve_threads
from optimizer.system.machine_lock import exclusive

TIMED_IMAGES = 64


def checked(request: Request) -> Request:
    """With the number of threads that 0 stands for. Raises, before anything is compressed, InputError for an
    unknown engine, more threads than there are cores and a precision that the CPU has not, and
    UnavailableError for an engine that can't run here."""
    engine_named(request.engine)
    check_precision(request.recipe.quantize.precision, environment())
    threads = resolve_threads(request.settings.threads)
    return replace(request, settings=replace(request.settings, threads=threads))


@dataclass(frozen=True)
class RunnerPair:
    """A compressed model and its baseline on one engine, with the same threads and folding, ready to be
    timed, and not yet run.

    ``images`` ``[N, C, H, W]`` are some to time them with.
    """

    compressed: CompressedModel
    runner: Runner
    baseline: Runner
    images: np.ndarray

    @property
    def removed_share(self) -> float:
        """Of the layers' weights that are left, the share that is zero."""
        weights = self.compressed.weights.values()
        elements = sum(weight.values.numel() for weight in weights)
        return 1 - sum(weight.nonzero for weight in weights) / max(1, elements)


def pair(workspace: Workspace, request: Request, report: Report = quiet) -> RunnerPair:
    """Compress and build, and score nothing. Raises InputError, UnavailableError, WorkError."""
    request = checked(request)
    images = timed_images(workspace)
    report(None, f"preparing {engine_info(request.engine).label}")
    compressed = compressed_model(workspace, request.recipe, report=report)
    build = build_of(workspace, request.recipe, request.engine, report)
    with exclusive(report):
        runner = run_by(workspace, build, compressed, request).ready()
        baseline = second_baseline(workspace, *baseline_key(request)).ready()
    return RunnerPair(compressed, runner, baseline, images)


def baseline_key(request: Request) -> tuple[str, int, int]:
    """What a baseline depends on beside its workspace: engine, threads, batch."""
    return request.engine, request.settings.threads, request.settings.batch


def timed_images(workspace: Workspace) -> np.ndarray:
    """Some images ``[N, C, H, W]`` to time with."""
    images: np.ndarray = workspace.images.evaluation.images[:TIMED_IMAGES].numpy()
    return images


def run_by(workspace: Workspace, build: Build, compressed: CompressedModel, request: Request) -> Runner:
    settings = request.settings
    images = workspace.images_for(compressed.recipe)
    return build(compressed, images, threads=settings.threads, batch=settings.batch)


@once
def first_baseline(workspace: Workspace, engine: str, threads: int, batch: int) -> Runner:
    """The baseline as it is scored, and timed."""
    return uncompressed(workspace, engine, threads, batch)


@once
def second_baseline(workspace: Workspace, engine: str, threads: int, batch: int) -> Runner:
    """The baseline once more, built for itself: what it differs in from the first is what noise is here."""
    return uncompressed(workspace, engine, threads, batch)


def uncompressed(workspace: Workspace, engine: str, threads: int, batch: int) -> Runner:
    """A baseline's runner, built anew."""
    compressed = compress(workspace.model.module, Recipe())
    build, images = workspace.model.builder(engine), workspace.images_for(compressed.recipe)
    with uncompressed_alone():
        return build(compressed, images, threads=threads, batch=batch)


def signature_of(workspace: Workspace, request: Request, execution: Execution, threads: int) -> str:
    """Equal for configurations that run the same instructions: same shapes, kernels and precisions. How many
    channels of each layer are left may hang on the calibration images."""
    prune: object = None
    if request.recipe.prune.shrinks:
        weights = compressed_model(workspace, request.recipe).weights
        prune = request.recipe.prune, [(name, one.values.shape) for name, one in weights.items()]
    return digest(
        [
            request.model,
            version_of(request.model),
            request.engine,
            execution.layers,
            request.recipe.quantize.activation_bits,
            prune,
            threads,
            request.settings.batch,
            environment().key,
        ]
    )
