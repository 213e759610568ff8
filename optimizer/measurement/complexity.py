"""Time against the number of weights, measured: dense, sparse, with rows removed, and int8.

What is recorded, and the figures that follow, are in :mod:`optimizer.analysis.scaling`, the sentences in
:mod:`optimizer.analysis.conclusions`; neither needs torch.
"""

import math
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from optimizer.analysis.scaling import (
    STACK,
    ComplexityPoint,
    ComplexityRequest,
    ComplexityRun,
    ExecutionKind,
    LayerWork,
    Timing,
    check_share,
    complexity_key,
    kept_count,
)
from optimizer.compression.prune.magnitude import thresholds
from optimizer.engine import int8, kernels
from optimizer.engine.csr import to_csr
from optimizer.engine.kernels import matrix
from optimizer.errors import InputError, UnavailableError, WorkError
from optimizer.measurement.visits import settle
from optimizer.measurement.workspace import open_workspace
from optimizer.model.catalogue import card
from optimizer.model.layers import walk
from optimizer.progress import Report, quiet
from optimizer.recipe import PruneSpec
from optimizer.system.environment import environment, resolve_threads, stolen_share, timestamp
from optimizer.system.machine_lock import exclusive
from optimizer.system.threads import thread_count

WIDEST = 1024
"""Rows and columns of a stack's layer, at most."""
MAX_INPUT_BYTES = 2**30

BEFORE = 2
"""Builds of an execution before the removal, all of them timed in a round: what is compared with comes twice,
each with its weights at a place of their own in memory, which shifts a time by about one percent."""
CACHE_LINE_BYTES, PAGE_BYTES = 64, 4096


@dataclass(frozen=True, slots=True)
class PointEffort:
    """How long one point is measured. A sample lasts at least ``sample_ns``, so that neither the clock's
    resolution nor its own cost shows; rounds stop at ``seconds``, but not before ``min_rounds``."""

    warmup_calls: int
    warmup_seconds: float
    sample_ns: int
    seconds: float
    min_rounds: int
    max_rounds: int
    settle_seconds: float


EFFORTS = {
    True: PointEffort(2, 0.005, 100_000, 0.2, 6, 60, settle_seconds=0.01),
    False: PointEffort(3, 0.02, 300_000, 0.6, 8, 120, settle_seconds=0.03),
}
"""By whether the request is quick."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A layer's weight as a matrix ``[rows, columns]`` that multiplies ``pixels`` columns an input."""

    name: str
    kind: str
    weight: Tensor
    pixels: int


def measure(request: ComplexityRequest, report: Report = quiet) -> ComplexityRun:
    """Time every point of a family before and after weights are removed.

    A stack of about n weights is one linear layer, and above 1024 x 1024 as many square ones as it takes. A
    model's layers are timed one by one, convolutions as the matrix products that they are (im2col). Inputs
    are random: no kernel here is faster for some numbers than for others. The machine lock is held.

    Raises InputError for an unknown model, more threads than there are cores, or a model without a layer to
    time; UnavailableError where this build of torch can't multiply CSR matrices.
    """
    threads = resolve_threads(request.threads)
    report(None, "preparing the layers")
    subjects, skipped = _subjects(request)
    random = np.random.default_rng(request.seed)
    points = []

    with (
        exclusive(report),
        thread_count(threads),
        torch.inference_mode(),
        stolen_share() as stolen,
    ):
        _require_csr()
        for done, one in enumerate(subjects):
            report(done / len(subjects), f"timing {one.name}")
            point, lacking = _time(one, request, threads, random)
            points.append(point)
            skipped = (*skipped, *(reason for reason in lacking if reason not in skipped))
    return ComplexityRun(
        key=complexity_key(request),
        request=request,
        environment=environment(),
        created=timestamp(),
        batch=request.inputs,
        threads=threads,
        points=(points[0], *sorted(points[1:], key=lambda point: point.n)),
        skipped=skipped,
        stolen_share=stolen(),
    )


# What is timed


@dataclass(frozen=True, slots=True)
class PointSpec:
    """What becomes a point. ``build`` makes its matrices only when their turn comes: ten million weights in
    five forms are not kept while others are timed."""

    name: str
    family: str
    inputs: int
    build: Callable[[], list[Matrix]]


def _subjects(request: ComplexityRequest) -> tuple[list[PointSpec], tuple[str, ...]]:
    """The smallest stack, then the others or the model's layers; and which layers are skipped, and why."""
    if request.family == STACK:
        return [_stack_point(n, request.inputs, request.seed) for n in request.stack_sizes], ()
    layers, skipped = _layer_subjects(request)
    # Two columns take the matrix kernels that a convolution takes; a single one would take the vector's.
    smallest = _stack_point(request.stack_sizes[0], max(2, request.inputs), request.seed)
    return [smallest, *layers], skipped


def stack_shapes(n: int) -> list[tuple[int, int]]:
    """Rows and columns of the layers of a stack of about ``n`` weights, the first layer first."""
    depth = math.ceil(n / WIDEST**2)
    if depth > 1:
        width = round(math.sqrt(n / depth))
        return [(width, width)] * depth
    rows = math.isqrt(n)
    return [(rows, round(n / rows))]


def stack(n: int, seed: int) -> list[Matrix]:
    """A stack of about ``n`` normal weights, scaled so that what passes keeps its magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Matrix(f"layer {number}", "linear", torch.randn(shape, generator=generator) / math.sqrt(shape[1]), 1)
        for number, shape in enumerate(stack_shapes(n), 1)
    ]


def _stack_point(n: int, inputs: int, seed: int) -> PointSpec:
    shapes = stack_shapes(n)
    rows, columns = shapes[0]
    layers = "a linear layer" if len(shapes) == 1 else f"{len(shapes)} linear layers"
    return PointSpec(f"{layers} of {rows} × {columns}", STACK, inputs, partial(stack, n, seed))


def _layer_subjects(request: ComplexityRequest) -> tuple[list[PointSpec], tuple[str, ...]]:
    try:
        card(request.family)
    except InputError as error:
        raise InputError(f"{error}; or {STACK} for stacks of linear layers") from error
    model = open_workspace(request.family).model
    layers, skipped = [], []
    for layer in walk(model.module):
        pixels = model.multiplications[layer.name]
        weight = layer.weight.detach().flatten(1)
        input_bytes = 4 * weight.shape[1] * pixels * request.inputs
        if getattr(layer.module, "groups", 1) > 1:
            skipped.append(f"{layer.name}: a grouped convolution is many small matrices, not one")
        elif not pixels:
            skipped.append(f"{layer.name}: it does not run on an image")
        elif input_bytes > MAX_INPUT_BYTES:
            skipped.append(f"{layer.name}: its unrolled input is over 1 GiB (use a smaller batch size)")
        else:
            matrix = Matrix(layer.name, layer.kind, weight, pixels)
            layers.append(PointSpec(layer.name, request.family, request.inputs, partial(list, (matrix,))))
    if not layers:
        raise InputError(
            f"{request.family} has no layer to time: {'; '.join(skipped) or 'it has no weights'}"
        )
    return layers, tuple(skipped)


# Removing weights


Operands = dict[tuple[ExecutionKind, bool], list[Tensor]]
Calls = dict[tuple[ExecutionKind, bool], tuple[Callable[[], object], ...]]
"""By execution and whether weights are removed: one call through all layers, for each build."""


def remove(matrices: Sequence[Matrix], share: float) -> tuple[tuple[LayerWork, ...], Operands]:
    """Take ``share`` of each layer's weights away, and count.

    Gives each layer's counts and, by execution and by whether weights are removed, the matrices
    ``[rows, columns]`` to multiply with. By magnitude: a weight survives if ``|w| > threshold``, a row if its
    norm is among the largest. Raises InputError for a share that is not 0 to 0.99.
    """
    check_share(share)
    limits = thresholds(
        {matrix.name: matrix.weight for matrix in matrices}, PruneSpec(sparsity=share, allocation="uniform")
    )
    # Where nothing is to go, 0 is the threshold that keeps whatever is not zero already.
    limits = {name: max(0.0, limit) for name, limit in limits.items()}
    full = [matrix.weight for matrix in matrices]
    zeroed = [matrix.weight * (matrix.weight.abs() > limits[matrix.name]) for matrix in matrices]
    small = remove_rows(full, share)
    works = tuple(
        LayerWork(
            name=matrix.name,
            kind=matrix.kind,
            rows=matrix.weight.shape[0],
            columns=matrix.weight.shape[1],
            pixels=matrix.pixels,
            threshold=limits[matrix.name],
            nonzero=int(matrix.weight.count_nonzero()),
            surviving=int(after.count_nonzero()),
            kept_rows=cut.shape[0],
            kept_columns=cut.shape[1],
        )
        for matrix, after, cut in zip(matrices, zeroed, small, strict=True)
    )
    return works, {
        (ExecutionKind.DENSE, False): full,
        (ExecutionKind.CSR, False): [to_csr(weight) for weight in full],
        (ExecutionKind.DENSE, True): zeroed,
        (ExecutionKind.CSR, True): [to_csr(weight) for weight in zeroed],
        (ExecutionKind.ROWS, True): small,
    }


def remove_rows(weights: Sequence[Tensor], share: float) -> list[Tensor]:
    """Smaller dense matrices: layers in pairs, of which the first loses rows (its outputs) and the second the
    columns that they fed; a last layer without a partner loses rows.

    So every layer loses exactly the share. If each lost rows *and* columns, ten layers at one half would
    lose three quarters, and be compared with executions that lost half.
    """
    small: list[Tensor] = []
    for index in range(0, len(weights), 2):
        first, *partner = weights[index : index + 2]
        norms = torch.linalg.vector_norm(first, dim=1)
        kept = norms.topk(kept_count(len(first), share)).indices.sort().values
        small.append(first[kept])
        small.extend(second[:, kept].contiguous() for second in partner)
    return small


# Timing


def _time(
    one: PointSpec, request: ComplexityRequest, threads: int, random: np.random.Generator
) -> tuple[ComplexityPoint, list[str]]:
    """A point, and which executions it lacks, and why."""
    matrices = one.build()
    layers, operands = remove(matrices, request.removed_share)
    inputs = columns_in(matrices[0], one.inputs, request.seed)
    calls, lacking = _builds(operands, inputs, threads, random)
    return ComplexityPoint(
        one.name, one.family, layers, _rounds(calls, EFFORTS[request.quick], random)
    ), lacking


def _builds(
    operands: Operands, inputs: Tensor, threads: int, random: np.random.Generator
) -> tuple[Calls, list[str]]:
    """Every execution before the removal twice and after it once, none with memory of another's; and which
    executions are lacking, and why. Takes ``operands`` away as it copies them."""
    calls: Calls = {}
    lacking = []
    for execution, build in {ExecutionKind.SPARSE: _kernel_chain, ExecutionKind.INT8: int8.chain}.items():
        try:  # both make copies of their own
            calls |= {
                (execution, removed): tuple(
                    build(operands[ExecutionKind.DENSE, removed], inputs.numpy(), threads)
                    for _ in range(_copies(removed))
                )
                for removed in (False, True)
            }
        except (UnavailableError, WorkError) as error:
            lacking.append(f"{execution}: {error}")
    for series in [*operands]:
        weights = operands.pop(series)
        calls[series] = tuple(
            chain([placed(weight, random) for weight in weights], inputs) for _ in range(_copies(series[1]))
        )
    return calls, lacking


def _copies(removed: bool) -> int:
    return 1 if removed else BEFORE


def placed(weight: Tensor, random: np.random.Generator) -> Tensor:
    """A copy in memory of its own, that begins at a cache line of its page drawn from ``random``."""
    if weight.layout == torch.sparse_csr:
        rows, columns, values = (
            placed(part, random) for part in (weight.crow_indices(), weight.col_indices(), weight.values())
        )
        return torch.sparse_csr_tensor(rows, columns, values, weight.shape, check_invariants=False)
    lines = PAGE_BYTES // CACHE_LINE_BYTES
    line = CACHE_LINE_BYTES // weight.element_size()
    start = line * int(random.integers(lines))
    room = torch.empty(weight.numel() + line * lines, dtype=weight.dtype)
    return room[start : start + weight.numel()].view(weight.shape).copy_(weight)


def _kernel_chain(weights: Sequence[Tensor], inputs: np.ndarray, threads: int) -> Callable[[], object]:
    return matrix.chain(weights, inputs, kernels.kernels(), threads)


def columns_in(matrix: Matrix, inputs: int, seed: int) -> Tensor:
    """What a matrix multiplies: ``[columns, inputs x pixels]``.

    A single column is a vector where there is MKL, whose product of CSR and a vector is three times as fast
    as that of CSR and a matrix of one column.
    """
    columns, width = matrix.weight.shape[1], inputs * matrix.pixels
    vector = width == 1 and torch.backends.mkl.is_available()
    shape = (columns,) if vector else (columns, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chain(weights: Sequence[Tensor], inputs: Tensor) -> Callable[[], Tensor]:
    """The timed call: ``inputs`` ``[columns, width]`` through one matrix after the other."""

    def call() -> Tensor:
        values = inputs
        for weight in weights:
            values = weight @ values
        return values

    return call


def _rounds(calls: Calls, effort: PointEffort, random: np.random.Generator) -> tuple[Timing, ...]:
    # timeit's own loop: the garbage collector is off in it, and on again between two samples.
    timed = [(series, build) for series, builds in calls.items() for build in builds]
    timers = [timeit.Timer(build, timer=time.perf_counter_ns) for _, build in timed]
    repeats = dict.fromkeys(calls, 1)
    for (series, _), timer in zip(timed, timers, strict=True):
        repeats[series] = max(repeats[series], _warm_up(timer, effort))
    samples: list[list[int]] = [[] for _ in timed]
    started = time.perf_counter()
    for number in range(effort.max_rounds):
        if number >= effort.min_rounds and time.perf_counter() - started > effort.seconds:
            break
        for index in random.permutation(len(timed)):
            settle(partial(timers[index].timeit, 1), effort.settle_seconds)
            samples[index].append(int(timers[index].timeit(repeats[timed[index][0]])))
    return tuple(
        Timing(
            *series,
            repeats=repeats[series],
            samples_ns=tuple(
                tuple(taken) for (one, _), taken in zip(timed, samples, strict=True) if one == series
            ),
        )
        for series in calls
    )


def _warm_up(timer: timeit.Timer, effort: PointEffort) -> int:
    """Run until warm; the number of calls that fills a sample."""
    started = time.perf_counter()
    taken: list[float] = []
    while len(taken) < effort.warmup_calls or time.perf_counter() - started < effort.warmup_seconds:
        taken.append(timer.timeit(1))
    return max(1, math.ceil(effort.sample_ns / max(1.0, min(taken))))


def _require_csr() -> None:
    try:
        _ = to_csr(torch.eye(2)) @ torch.ones(2, 2)
    except RuntimeError as error:
        raise UnavailableError(
            f"this build of torch can't multiply CSR matrices ({error}): install torch for Linux with MKL"
        ) from error
