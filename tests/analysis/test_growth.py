"""What follows from a complexity run, on synthetic runs whose truth is known."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer import __version__
from optimizer.analysis import growth, scaling
from optimizer.analysis.conclusions import conclusions
from optimizer.analysis.growth import (
    effect,
    fits,
    frame,
    growth_factors,
    headline,
    predicted_break_even,
    predicted_effects,
)
from optimizer.analysis.rounds import median_interval
from optimizer.analysis.scaling import (
    QUICK_SIZES,
    STACK,
    ComplexityPoint,
    ComplexityRequest,
    ComplexityRun,
    ExecutionKind,
    LayerWork,
    Timing,
    complexity_key,
    counts,
    kept_count,
    removed_count,
)
from optimizer.analysis.statistics import LatencyVerdict
from optimizer.charts import complexity_info
from optimizer.errors import InputError
from optimizer.model.added import cards
from optimizer.model.preprocessing import IMAGENET
from optimizer.records import decode, digest, encode
from optimizer.system.environment import environment, threads_available

DENSE, KERNEL, CSR, ROWS, INT8 = EXECUTIONS = tuple(ExecutionKind)


COSTS = {DENSE: 1.0, KERNEL: 1.5, CSR: 3.0, ROWS: 1.0, INT8: 0.25}
FLOORS = {DENSE: 1_000.0, KERNEL: 500.0, CSR: 4_000.0, ROWS: 1_000.0, INT8: 2_000.0}
DENSE_ONLY = [(DENSE, False), (DENSE, True)]
KINDS = [*((one, removed) for one in (DENSE, KERNEL, CSR, INT8) for removed in (False, True)), (ROWS, True)]


def layer(rows: int, columns: int, share: float, pixels: int = 1) -> LayerWork:
    surviving = rows * columns - removed_count(rows * columns, share)
    return LayerWork(
        "layer",
        "linear",
        rows,
        columns,
        pixels,
        0.1,
        rows * columns,
        surviving,
        kept_count(rows, share),
        columns,
    )


def run(
    share: float = 0.5,
    costs: dict[str, float] = COSTS,
    power: float = 1.0,
    noise: float = 0.002,
    sizes: tuple[int, ...] = QUICK_SIZES,
    rounds: int = 30,
    seed: int = 0,
    kinds: Sequence[tuple[ExecutionKind, bool]] = KINDS,
) -> ComplexityRun:
    """Time = floor + cost x operations ** power, with lognormal noise."""
    random = np.random.default_rng(seed)

    def timing(work: LayerWork, execution: str, removed: bool) -> Timing:
        truth = FLOORS[execution] + costs[execution] * work.operations(execution, removed) ** power
        drawn = 10 * truth * np.exp(random.normal(0, noise, (1 if removed else 2, rounds)))
        return Timing(execution, removed, 10, tuple(tuple(map(int, series)) for series in drawn))

    points = []
    for size in sizes:
        work = layer(size // 10, 10, share)
        points.append(
            ComplexityPoint(f"stack of {size}", STACK, (work,), tuple(timing(work, *k) for k in kinds))
        )
    request = ComplexityRequest(removed_share=share)
    return ComplexityRun(
        complexity_key(request),
        request,
        environment(),
        "2026-01-01T00:00:00+00:00",
        32,
        1,
        tuple(points),
        (),
        0.0,
    )


@pytest.mark.parametrize("power", [0.8, 1.0, 1.3])
def test_the_fit_recovers_the_slope_under_an_overhead(power: float) -> None:
    for execution, fit in fits(run(power=power)).items():
        assert fit.slope == pytest.approx(power, abs=0.02)
        assert fit.low < fit.slope < fit.high
        assert fit.high - fit.low < 0.1
        assert fit.floor_ns == pytest.approx(FLOORS[execution], rel=0.05)  # ten weights are in it


@pytest.mark.slow
@pytest.mark.parametrize("scatter", [0.006, 0.01])
def test_where_builds_lie_in_memory_is_not_told_as_an_effect(scatter: float) -> None:
    """Each build has a speed of its own: two before the removal, and one after it."""
    random = np.random.default_rng(12)
    quiet = run(share=0.0, sizes=(10, 100_000), rounds=60, noise=0.001, kinds=DENSE_ONLY)
    told = []
    for _ in range(300):
        *_, largest = quiet.points
        timings = tuple(
            replace(
                one, samples_ns=tuple(_slower(series, random.normal(0, scatter)) for series in one.samples_ns)
            )
            for one in largest.timings
        )
        point = replace(largest, timings=timings)
        told.append(effect(replace(quiet, points=(quiet.points[0], point)), DENSE).verdict)
    assert np.mean([verdict in (LatencyVerdict.FASTER, LatencyVerdict.SLOWER) for verdict in told]) <= 0.02
    assert np.mean([verdict == LatencyVerdict.SAME for verdict in told]) >= 0.6


def _slower(samples: tuple[int, ...], by: float) -> tuple[int, ...]:
    return tuple(np.rint(np.array(samples) * np.exp(by)).astype(int).tolist())


@pytest.mark.slow
def test_the_interval_of_a_slope_covers_it() -> None:
    lines = [fits(run(noise=0.1, seed=seed, kinds=DENSE_ONLY))[DENSE] for seed in range(200)]
    assert sum(line.low < 1 < line.high for line in lines) in range(180, 200)


def test_the_slope_is_the_same_after_the_removal_and_the_floor_is_not_part_of_it() -> None:
    before, after = fits(run(), removed=False), fits(run())
    assert list(before) == list(after) == list(EXECUTIONS)
    for execution in EXECUTIONS:
        assert before[execution].slope == pytest.approx(after[execution].slope, abs=0.02)


def test_the_floor_rules_until_the_weights_take_longer() -> None:
    # after halving: dense n, sparse kernel 3 n / 4, csr 3 n / 2, rows removed n / 2, int8 n / 4 nanoseconds,
    # against 1, 0.5, 4, 1 and 2 µs
    assert {execution: fit.from_n for execution, fit in fits(run()).items()} == {
        DENSE: 10_000,
        KERNEL: 1_000,
        INT8: 10_000,
        CSR: 10_000,
        ROWS: 10_000,
    }
    shifted = run(sizes=(10, 1_500, 2_200, 10_000, 100_000, 1_000_000))
    assert {execution: fit.from_n for execution, fit in fits(shifted).items()} == {
        DENSE: 1_500,
        KERNEL: 1_500,
        CSR: 10_000,
        ROWS: 2_200,
        INT8: 10_000,
    }


def test_too_few_points_above_the_floor_give_no_slope() -> None:
    assert fits(run(sizes=(10, 100, 10_000, 100_000))) == {}


def test_the_effect_is_read_off_the_largest_quiet_stack() -> None:
    quiet, loud = run(), run(noise=0.3)
    mixed = replace(quiet, points=(*quiet.points[:-1], loud.points[-1]))
    assert headline(quiet) == quiet.points[-1:]
    assert headline(mixed) == quiet.points[-2:-1]
    assert headline(loud) == loud.points[-1:]


def test_a_model_is_read_off_all_its_layers_together() -> None:
    stack = run(sizes=(10, 10_000, 100_000, 1_000_000))
    layers = tuple(replace(point, family="some-model") for point in stack.points[1:])
    model = replace(
        stack, request=ComplexityRequest("some-model"), points=(stack.points[0], *layers), batch=1
    )
    assert headline(model) == layers
    assert {fit.points for fit in fits(model).values()} == {4}  # and the smallest stack
    total = sum(FLOORS[ROWS] + point.operations(ROWS, removed=True) for point in layers)
    full = sum(FLOORS[DENSE] + point.n for point in layers)
    assert effect(model, ROWS).ratio == pytest.approx(total / full, rel=0.01)
    assert "in 3 layers of some-model together" in conclusions(model)[0]


def test_growth_is_known_as_little_as_both_of_its_points() -> None:
    measured = run(noise=0.05)
    small, large = measured.points[-2:]
    factors = growth_factors(measured, small, large)
    assert set(factors) == set(EXECUTIONS)
    for execution, (_, low, high) in factors.items():
        (_, few_low, few_high), (_, many_low, many_high) = (
            median_interval(point.call_ns(execution, removed=True).T) for point in (small, large)
        )
        assert few_low < few_high
        assert (low, high) == pytest.approx((many_low / few_high, many_high / few_low))


def test_the_frame_is_what_the_chart_expects() -> None:
    table = frame(run())
    assert set(table["execution"]) == set(EXECUTIONS)
    assert (table["low_ns"] <= table["median_ns"]).all()
    assert (table["median_ns"] <= table["high_ns"]).all()
    largest = table[table["n"] == 10_000_000].set_index("execution")
    assert largest["operations"].to_dict() == {
        **dict.fromkeys((DENSE, INT8), 10_000_000),
        **dict.fromkeys((KERNEL, CSR, ROWS), 5_000_000),
    }
    assert largest["surviving"].to_dict() == dict.fromkeys(EXECUTIONS, 5_000_000)
    assert largest["removed_share"].to_dict() == dict.fromkeys(EXECUTIONS, 0.5)
    assert largest["median_ns"][CSR] == pytest.approx(FLOORS[CSR] + 3 * 5e6, rel=0.01)
    complexity_info(table, fits(run()))
    complexity_info(table, fits(run()), "operations")


def test_before_the_removal_everything_is_visited() -> None:
    table = frame(run(), removed=False)
    assert (table["operations"] == table["n"]).all()
    assert (table["removed_share"] == 0).all()


def test_operations_are_counted_layer_by_layer() -> None:
    table = counts(run(share=0.9, sizes=(10, 1000)))
    assert table["visited before"].tolist() == [10, 1000]
    assert table["above the threshold"].tolist() == [1, 100]
    assert table[DENSE].tolist() == [10, 1000]
    assert table[CSR].tolist() == [1, 100]
    assert table[ROWS].tolist() == [10, 100]  # one row of ten weights can't be a tenth of a row


def test_a_convolution_visits_its_weights_once_a_pixel() -> None:
    work = layer(4, 5, 0.5, pixels=9)
    assert [work.operations(execution, removed=False) for execution in EXECUTIONS] == [180] * 5
    assert [work.operations(execution, removed=True) for execution in EXECUTIONS] == [180, 90, 90, 90, 180]


def test_what_was_measured_is_what_is_predicted_for_it() -> None:
    measured = run(share=0.7)
    for share, removed in ((0.7, True), (0.0, False)):
        for point in measured.points:
            for execution in EXECUTIONS:
                guess = growth._predicted_ns(measured, point, execution, share)
                assert guess == pytest.approx(point.median_ns(execution, removed), rel=0.01)


@pytest.mark.slow
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99).map(lambda percent: percent / 100))
def test_predicted_operations_are_those_that_would_be_counted(rows: int, columns: int, share: float) -> None:
    point = ComplexityPoint("stack", STACK, (layer(rows, columns, 0.5),), ())
    wanted = layer(rows, columns, share)
    for execution in EXECUTIONS:
        found = growth._operations_at(point, execution, share)
        assert found == wanted.operations(execution, removed=True)


def test_the_prediction_follows_the_linear_model() -> None:
    guess = predicted_effects(run(), 0.9)
    assert guess[DENSE].ratio == pytest.approx(1, rel=0.01)
    assert guess[CSR].time_ns == pytest.approx(FLOORS[CSR] + 3 * 1e6, rel=0.01)
    assert guess[ROWS].ratio == pytest.approx(0.1, rel=0.01)
    assert predicted_break_even(run()) == pytest.approx(0.67)


@pytest.mark.parametrize("share", [1.5, 1.0, -0.1, float("nan"), float("inf")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    for refused in (lambda: ComplexityRequest(removed_share=share), lambda: predicted_effects(run(), share)):
        with pytest.raises(InputError, match=r"from 0 to 0\.99"):
            refused()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("batch", 0, "batch size 0"),
        ("batch", 5000, "1 to 1024"),
        ("threads", -1, "threads -1"),
        ("seed", -1, "seed -1"),
        ("sizes", (5,), "10 to 10,000,000"),
        ("sizes", (10**8,), "10 to 10,000,000"),
    ],
)
def test_bad_requests_are_refused(field: str, value: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ComplexityRequest(**{field: value})  # type: ignore[arg-type]


def test_sizes_are_refused_for_a_model() -> None:
    with pytest.raises(InputError, match="have their own"):
        ComplexityRequest("fashion-mlp", sizes=(100,))


def test_an_unknown_execution_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="csr, int8, rows removed"):
        run().points[0].operations("blocked", removed=True)
    with pytest.raises(InputError, match="dense, sparse kernel, csr, int8"):
        effect(run(), "blocked")


def test_the_smallest_stack_is_always_measured() -> None:
    assert ComplexityRequest(sizes=(500, 100)).stack_sizes == (10, 100, 500)
    assert ComplexityRequest("fashion-mlp").stack_sizes == (10,)
    assert ComplexityRequest(quick=True).stack_sizes == QUICK_SIZES
    assert ComplexityRequest().stack_sizes[-1] == 10_000_000


def test_a_run_survives_json() -> None:
    original = run()
    assert decode(encode(original), ComplexityRun) == original


def test_the_key_changes_with_the_request() -> None:
    keys = {
        complexity_key(ComplexityRequest(**changed))  # type: ignore[arg-type]
        for changed in (
            {},
            {"removed_share": 0.6},
            {"batch": 1},
            {"threads": 2},
            {"quick": True},
            {"seed": 1},
        )
    }
    assert len(keys) == 6
    every = ComplexityRequest(threads=threads_available())
    for one, same in (
        (ComplexityRequest(), ComplexityRequest(batch=32)),
        (ComplexityRequest("fashion-mlp"), ComplexityRequest("fashion-mlp", batch=1)),
        (ComplexityRequest(), ComplexityRequest(sizes=ComplexityRequest().stack_sizes[1:])),
        (ComplexityRequest(sizes=(100, 30)), ComplexityRequest(sizes=(30, 100, 10))),
        (ComplexityRequest(threads=0), every),
    ):
        assert complexity_key(one) == complexity_key(same)


def test_a_network_added_under_the_same_name_is_timed_anew() -> None:
    """And bundled ones, and those of other sources, are found under the key that they had."""
    keys = []
    for digit in "01":
        cards.save_card(cards.AddedModel("mine", "onnx", f"{digit * 20}.onnx", IMAGENET))
        keys.append(complexity_key(ComplexityRequest("mine")))
    cards.remove("mine")
    assert len({*keys, complexity_key(ComplexityRequest("mine"))}) == 3
    bundled = ComplexityRequest("fashion-mlp")
    asked = [scaling.SCHEMA, __version__, bundled, environment().key]
    assert complexity_key(bundled) == digest(asked)
