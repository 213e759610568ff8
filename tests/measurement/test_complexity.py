"""Stacks and layers in three executions: counted, compared with a reference, and timed once for real."""

import gc
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from by_request import close_all
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from optimizer.analysis.conclusions import as_json, conclusions
from optimizer.analysis.growth import frame
from optimizer.analysis.scaling import (
    STACK,
    STACK_SIZES,
    ComplexityRequest,
    ComplexityRun,
    ExecutionKind,
    LayerWork,
    complexity_key,
)
from optimizer.engine import int8, kernels
from optimizer.engine.csr import to_csr
from optimizer.engine.kernels.matrix import chain as sparse_chain
from optimizer.errors import InputError
from optimizer.measurement import complexity
from optimizer.measurement.complexity import (
    Matrix,
    PointEffort,
    chain,
    columns_in,
    measure,
    remove,
    stack,
    stack_shapes,
)
from optimizer.model.catalogue import SOURCES
from optimizer.model.sources import LoadedModel, Source
from optimizer.records import ModelCard, decode, encode
from optimizer.system.environment import threads_available

DENSE, KERNEL, CSR, ROWS, INT8 = EXECUTIONS = tuple(ExecutionKind)


shares = st.integers(0, 99).map(lambda percent: percent / 100)


@given(st.integers(10, 10_000_000))
def test_a_stack_has_about_n_weights_and_its_layers_fit_together(n: int) -> None:
    shapes = stack_shapes(n)
    assert abs(sum(map(math.prod, shapes)) - n) <= max(math.sqrt(n) / 2, n / 500)
    assert max(map(max, shapes)) <= 1026
    assert all(before[0] == after[1] for before, after in pairwise(shapes))


def test_the_largest_stack_is_ten_layers_of_a_million() -> None:
    assert stack_shapes(10_000_000) == [(1000, 1000)] * 10
    assert [len(stack_shapes(n)) for n in STACK_SIZES[:-2]] == [1] * (len(STACK_SIZES) - 2)


def brute_force(weight: Tensor, threshold: float) -> int:
    """The seed idea: loop over the weights, visit those above the threshold."""
    visited = 0
    for row in weight.tolist():
        for value in row:
            if abs(value) > threshold:
                visited += 1
    return visited


@given(st.integers(1, 12), st.integers(1, 12), shares, st.integers(1, 9))
def test_operations_are_what_a_loop_over_the_weights_counts(
    rows: int, columns: int, share: float, pixels: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + 100 * columns))
    (work,), operands = remove([Matrix("layer", "linear", weight, pixels)], share)
    assert (
        work.surviving
        == brute_force(weight, work.threshold)
        == rows * columns - round(share * (rows * columns))
    )
    for execution in EXECUTIONS:
        assert work.operations(execution, removed=False) == rows * columns * pixels
    assert work.operations(DENSE, removed=True) == rows * columns * pixels
    assert (
        work.operations(CSR, removed=True)
        == work.surviving * pixels
        == operands[CSR, True][0]._nnz() * pixels
    )
    assert work.operations(ROWS, removed=True) == operands[ROWS, True][0].numel() * pixels
    assert work.kept_rows == max(1, -(-(100 - round(100 * share)) * rows // 100))


def test_zeros_that_a_model_comes_with_are_counted_as_csr_sees_them() -> None:
    weight = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    (work,), _ = remove([Matrix("layer", "linear", weight, 1)], 0.0)
    assert (work.nonzero, work.surviving, work.threshold) == (2, 2, 0.0)
    assert work.operations(CSR, removed=False) == 2
    assert work.operations(DENSE, removed=False) == 4


def run_all(matrices: list[Matrix], share: float, inputs: Tensor) -> tuple[tuple[LayerWork, ...], dict]:
    works, operands = remove(matrices, share)
    return works, {series: chain(weights, inputs)() for series, weights in operands.items()}


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
def test_executions_agree_with_a_dense_masked_reference(share: float, width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = [Matrix(f"{i}", "linear", torch.randn(20, 20, generator=generator), 1) for i in range(5)]
    inputs = columns_in(matrices[0], width, seed=2)
    assert inputs.shape == ((20,) if width == 1 and torch.backends.mkl.is_available() else (20, width))
    works, outputs = run_all(matrices, share, inputs)

    full = masked = inputs
    for matrix, work in zip(matrices, works, strict=True):
        full = matrix.weight @ full
        masked = torch.where(matrix.weight.abs() > work.threshold, matrix.weight, 0.0) @ masked
    for series, wanted in {
        (DENSE, False): full,
        (CSR, False): full,
        (DENSE, True): masked,
        (CSR, True): masked,
    }.items():
        torch.testing.assert_close(outputs[series], wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("width", [16, 33])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_the_sparse_kernel_and_int8_compute_the_same(share: float, width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(40, 40, generator=generator) / 6 for _ in range(3)]
    _, operands = remove([Matrix(f"{i}", "linear", weight, 1) for i, weight in enumerate(weights)], share)
    inputs = torch.randn(40, width, generator=generator)
    for removed in (False, True):
        wanted = chain(operands[DENSE, removed], inputs)()
        sparse = sparse_chain(operands[DENSE, removed], inputs.numpy(), kernels.kernels(), 1)
        for _ in range(2):
            torch.testing.assert_close(torch.from_numpy(sparse()), wanted, rtol=1e-4, atol=1e-5)
        quantized = int8.chain(operands[DENSE, removed], inputs.numpy(), 1)  # its result is its own memory
        rounded = torch.from_numpy(quantized()[0].T.copy())
        assert (rounded - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("width", [1, 2, 7])
def test_the_sparse_kernel_takes_a_few_columns(width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(40, 30, generator=generator), torch.randn(20, 40, generator=generator)]
    _, operands = remove([Matrix(f"{i}", "linear", weight, 1) for i, weight in enumerate(weights)], 0.5)
    inputs = torch.randn(30, width, generator=generator)
    got = sparse_chain(operands[DENSE, True], inputs.numpy(), kernels.kernels(), 2)()
    torch.testing.assert_close(
        torch.from_numpy(got), chain(operands[DENSE, True], inputs)(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
def test_removed_rows_are_zeroed_rows_left_out(share: float, depth: int) -> None:
    generator = torch.Generator().manual_seed(depth)
    matrices = [Matrix(f"{i}", "linear", torch.randn(10, 10, generator=generator), 1) for i in range(depth)]
    inputs = torch.randn(10, 3, generator=generator)
    kept = math.ceil(round(10 * (1 - share), 6))
    values, last = inputs, torch.arange(10)
    for index, matrix in enumerate(matrices):
        values = matrix.weight @ values
        if index % 2 == 0:  # the first of a pair loses the rows with the smallest norms
            last = matrix.weight.norm(dim=1).argsort(descending=True)[:kept].sort().values
            gone = torch.ones(10, dtype=torch.bool).index_fill(0, last, False)
            values[gone] = 0
        else:
            last = torch.arange(10)
    works, outputs = run_all(matrices, share, inputs)
    torch.testing.assert_close(outputs[ROWS, True], values[last], rtol=1e-4, atol=1e-4)
    assert [work.operations(ROWS, removed=True) for work in works] == [10 * kept] * depth


def test_every_layer_of_a_stack_loses_the_share_in_every_execution() -> None:
    works, _ = remove(stack(4_000_000, seed=0), 0.5)
    assert len(works) == 4
    for work in works:
        assert work.operations(CSR, removed=True) == pytest.approx(work.weights / 2, abs=1)
        assert work.operations(ROWS, removed=True) == work.weights / 2


def test_an_unrolled_convolution_is_the_convolution() -> None:
    convolution = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
    images = torch.randn(1, 3, 9, 9)
    columns = nn.functional.unfold(images, 3, padding=1, stride=2)[0]
    matrix = Matrix("conv", "convolution", convolution.weight.detach().flatten(1), 25)
    assert columns.shape == columns_in(matrix, 1, seed=0).shape
    _, outputs = run_all([matrix], 0.0, columns)
    for output in outputs.values():
        torch.testing.assert_close(
            output.view(1, 8, 5, 5), convolution(images).detach(), rtol=1e-4, atol=1e-5
        )


def addresses(operand: Tensor) -> list[int]:
    parts = [operand]
    if operand.layout == torch.sparse_csr:
        parts = [operand.crow_indices(), operand.col_indices(), operand.values()]
    return [part.data_ptr() for part in parts]


def test_every_build_has_its_weights_at_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[list[Tensor]] = []
    monkeypatch.setattr(
        complexity, "chain", lambda weights, inputs: built.append(weights) or chain(weights, inputs)
    )
    matrices = stack(10_000, 0)
    _, operands = remove(matrices, 0.5)
    wanted = {series: [weight.to_dense() for weight in weights] for series, weights in operands.items()}
    inputs = columns_in(matrices[0], 4, 0)
    calls, _ = complexity._builds(operands, inputs, 1, np.random.default_rng(0))
    assert {len(builds) for (_, removed), builds in calls.items() if not removed} == {complexity.BEFORE}
    assert {len(builds) for (_, removed), builds in calls.items() if removed} == {1}
    for series, weights in wanted.items():
        for build in calls[series]:
            torch.testing.assert_close(build(), chain(weights, inputs)(), rtol=1e-4, atol=1e-4)
    places = [place for weights in built for weight in weights for place in addresses(weight)]
    assert len(built) == 2 * complexity.BEFORE + 3
    assert len({*places, *(matrix.weight.data_ptr() for matrix in matrices)}) == len(places) + len(matrices)
    assert all(place % complexity.CACHE_LINE_BYTES == 0 for place in places)
    assert len({place % complexity.PAGE_BYTES for place in places}) > len(places) / 2


def test_csr_holds_the_nonzero_weights_with_narrow_indices() -> None:
    weight = torch.tensor([[0.0, 1.5, 0.0], [0.0, 0.0, 0.0], [2.5, 0.0, -3.5]])
    sparse = to_csr(weight)
    assert sparse.col_indices().dtype == sparse.crow_indices().dtype == torch.int32
    assert sparse.values().tolist() == [1.5, 2.5, -3.5]
    assert torch.equal(sparse.to_dense(), weight)
    assert torch.equal(to_csr(torch.zeros(2, 3)) @ torch.ones(3, 4), torch.zeros(2, 4))


def test_silencing_the_beta_warning_leaves_the_filters_alone() -> None:
    before = list(warnings.filters)
    to_csr(torch.eye(2))
    assert warnings.filters == before


@pytest.mark.slow
def test_a_tiny_stack_for_real() -> None:
    reports: list[tuple[float | None, str]] = []
    request = ComplexityRequest(batch=2, sizes=(1000, 200), quick=True)
    threads = torch.get_num_threads()
    run = measure(request, lambda share, message: reports.append((share, message)))
    assert torch.get_num_threads() == threads
    assert gc.isenabled()
    assert not torch.is_inference_mode_enabled()
    assert (run.batch, run.threads, run.key, run.skipped) == (2, 1, complexity_key(request), ())
    assert [point.n for point in run.points] == [9, 14 * 14, 31 * 32]
    for point in run.points:
        taken = {(timing.execution, timing.removed): timing.samples_ns for timing in point.timings}
        assert {series: len(samples) for series, samples in taken.items()} == {
            (DENSE, False): 2,
            (KERNEL, False): 2,
            (CSR, False): 2,
            (INT8, False): 2,
            (DENSE, True): 1,
            (KERNEL, True): 1,
            (CSR, True): 1,
            (ROWS, True): 1,
            (INT8, True): 1,
        }
        rounds = {len(series) for samples in taken.values() for series in samples}
        assert len(rounds) == 1
        assert rounds.pop() >= 6
        assert all(value > 0 for samples in taken.values() for series in samples for value in series)
    # A call takes microseconds; beside other processes not each of them.
    assert any(timing.repeats > 1 for point in run.points for timing in point.timings)
    shares_reported = [share for share, _ in reports if share is not None]
    assert shares_reported == sorted(shares_reported)
    assert all(0 <= share <= 1 for share in shares_reported)
    assert decode(encode(run), ComplexityRun) == run
    assert len(frame(run)) == 15
    assert as_json(run)["conclusions"] == conclusions(run)


@pytest.mark.parametrize(
    ("taken", "repeats"), [([30_000.0, 90_000.0], 4), ([250_000.0], 1), ([0.5], 100_000)]
)
def test_a_sample_is_of_so_many_calls_that_it_lasts(taken: list[float], repeats: int) -> None:
    class Timer:
        def timeit(self, number: int) -> float:
            assert number == 1
            return taken[-1] if len(taken) == 1 else taken.pop(0)

    effort = replace(complexity.EFFORTS[True], warmup_calls=2, warmup_seconds=0.0)
    assert effort.sample_ns == 100_000
    assert complexity._warm_up(Timer(), effort) == repeats  # type: ignore[arg-type]


def test_every_round_times_all_builds_in_an_order_of_its_own() -> None:
    log: list[str] = []
    calls: complexity.Calls = {
        series: tuple(partial(log.append, f"{series} {number}") for number in range(copies))
        for series, copies in {(DENSE, False): 2, (CSR, False): 2, (DENSE, True): 1, (CSR, True): 1}.items()
    }
    effort = PointEffort(1, 0, sample_ns=1, seconds=0, min_rounds=6, max_rounds=6, settle_seconds=0)
    timings = complexity._rounds(calls, effort, np.random.default_rng(0))
    warmed, visits = log[:6], log[6::2]  # a call that settles, and one that is timed
    assert visits == log[7::2]
    rounds = [tuple(visits[start : start + 6]) for start in range(0, 36, 6)]
    assert all(sorted(order) == sorted(warmed) for order in rounds)
    assert len({*rounds}) > 3
    assert [len(series) for timing in timings for series in timing.samples_ns] == [6] * 6


class Tiny(nn.Module):
    """Has what can be timed and what can't."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.depthwise(self.first(x)).mean((2, 3)))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "tiny-for-complexity"
    card = ModelCard(name, "", "", None, (3, 8, 8), 2)
    loaded = LoadedModel(card, Tiny(), lambda image: torch.zeros(3, 8, 8), ("a", "b"))
    monkeypatch.setitem(SOURCES, "test", Source(lambda: {name: card}, lambda _, report: loaded))
    yield name
    close_all()


@pytest.mark.slow
def test_a_models_own_layers_for_real(tiny: str) -> None:
    run = measure(ComplexityRequest(tiny, removed_share=0.75, quick=True, threads=0))
    assert run.threads == threads_available()
    assert run.batch == 1
    assert [(point.name, point.family) for point in run.points] == [
        ("a linear layer of 3 × 3", STACK),
        ("head.weight", tiny),
        ("first.weight", tiny),
    ]
    (head,), (first,) = (point.layers for point in run.subjects)
    assert (head.rows, head.columns, head.pixels, head.surviving) == (2, 4, 1, 2)
    assert (first.rows, first.columns, first.pixels, first.kind) == (4, 27, 64, "convolution")
    assert run.subjects[1].operations(CSR, removed=True) == 27 * 64
    assert run.subjects[1].operations(ROWS, removed=True) == 27 * 64
    assert [reason.split(":")[0] for reason in run.skipped] == ["depthwise.weight"]
    assert "together" in conclusions(run)[0]


@pytest.mark.slow
def test_a_layer_too_large_to_unroll_is_skipped_with_its_reason(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complexity, "MAX_INPUT_BYTES", 1000)
    run = measure(ComplexityRequest(tiny, quick=True))
    assert [point.name for point in run.subjects] == ["head.weight"]
    assert any(reason.startswith("first.weight: its unrolled input") for reason in run.skipped)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown model 'no-such-model'.*or stack for stacks"):
        measure(ComplexityRequest("no-such-model"))


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(InputError, match="10000 threads are more than"):
        measure(ComplexityRequest(threads=10_000))
